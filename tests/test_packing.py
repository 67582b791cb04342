"""Valid steps move to where a layer is called on them, and back."""

import numpy as np
import pytest
from keras import ops

from keras_td import packing
from reference import as_numpy

BATCH, TIME = 2, 8
STEPS = BATCH * TIME
each_number = pytest.mark.parametrize("number", range(STEPS + 1))


def some_valid(number, rng):
    valid = np.arange(STEPS) < number
    return rng.permutation(valid).reshape(BATCH, TIME)


def in_parts(valid):
    """The new places of steps, in parts: which step each has, and if it counts.

    Returns:
        Tuple of the packing and a list of pairs of arrays.
    """
    packed, sizes = packing.in_parts(ops.convert_to_tensor(valid))
    assert packed.sizes == (1, STEPS)
    edges = np.cumsum(sizes)
    assert edges[-1] == STEPS
    places, filled = as_numpy(packed.places), as_numpy(packed.filled)[0]
    parts = [np.split(x, edges[:-1]) for x in (places, filled)]
    return packed, list(zip(*parts, strict=True))


def test_the_parts_are_a_half_a_quarter_and_two_eighths(rng):
    _, parts = in_parts(some_valid(3, rng))

    assert [len(places) for places, _ in parts] == [8, 4, 2, 2]


@each_number
def test_each_valid_step_is_in_one_part(number, rng):
    valid = some_valid(number, rng)

    packed, parts = in_parts(valid)

    called = np.concatenate([places[filled] for places, filled in parts])
    assert sorted(called) == list(np.flatnonzero(valid))
    # It comes back from its new place.
    new_places = as_numpy(packed.new_places)[valid.ravel()]
    assert list(as_numpy(packed.places)[new_places]) == sorted(called)
    assert as_numpy(packed.filled)[0][new_places].all()


@each_number
def test_parts_that_are_called_hold_an_eighth_too_much_at_most(number, rng):
    _, parts = in_parts(some_valid(number, rng))

    called = sum(len(places) for places, filled in parts if filled.any())

    assert number <= called < number + STEPS // 8 or called == number == 0


@each_number
def test_no_call_sees_a_step_of_padding(number, rng):
    valid = some_valid(number, rng)

    _, parts = in_parts(valid)

    seen = np.concatenate([places for places, _ in parts])
    assert number == 0 or valid.ravel()[seen].all()


@pytest.mark.parametrize("at_least_one", [False, True])
@each_number
def test_a_batch_is_of_valid_steps_alone(number, at_least_one, rng):
    valid = some_valid(number, rng)

    packed = packing.only_valid(ops.convert_to_tensor(valid), at_least_one)

    expected = np.flatnonzero(valid)
    if at_least_one and not number:
        expected = np.array([0])
    np.testing.assert_array_equal(as_numpy(packed.places), expected)
    assert packed.sizes == (len(expected), 1)
    assert packed.filled is None


def test_shapes_depend_on_values_that_are_at_hand():
    assert not packing.is_static(ops.ones((BATCH, TIME), "bool"))

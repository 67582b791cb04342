"""Folding and unfolding tensors of any shape."""

import keras
import numpy as np
import pytest
from hypothesis import assume
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from backends import LIMITS
from keras_td import folding
from reference import assert_close

size = st.integers(0, 4)
shapes = st.lists(size, min_size=2, max_size=5).map(tuple)
unknown = st.lists(st.booleans(), min_size=5, max_size=5)


def arange(shape):
    return ops.reshape(ops.arange(int(np.prod(shape)), dtype="int32"), shape)


@given(shapes)
def test_unfold_undoes_fold(shape):
    x = arange(shape)

    folded = folding.fold(x)

    assert tuple(folded.shape) == (shape[0] * shape[1], *shape[2:])
    assert_close(folding.unfold(folded, x), x)


@given(shapes)
def test_a_folded_row_is_a_step_of_a_sample(shape):
    folded = folding.fold(arange(shape))

    flat = np.arange(np.prod(shape)).reshape(shape)
    rows = [flat[b, t] for b in range(shape[0]) for t in range(shape[1])]
    for row, expected in zip(ops.convert_to_numpy(folded), rows, strict=True):
        np.testing.assert_array_equal(row, expected)


@given(shapes, unknown)
def test_known_sizes_stay_known_and_unknown_ones_unknown(shape, unknown):
    shape = tuple(
        None if hide else d for d, hide in zip(shape, unknown, strict=False)
    )
    x = keras.KerasTensor(shape, "int8")

    folded = folding.fold(x)

    known = None not in shape[:2]
    steps = shape[0] * shape[1] if known else None
    assert folded.shape == (steps, *shape[2:])
    unfolded = folding.unfold(folded, x)
    assert unfolded.shape == shape
    assert unfolded.dtype == "int8"


@given(shapes, st.integers(0, 4))
def test_align_repeats_a_single_step(shape, time):
    x = arange((shape[0], 1, *shape[2:]))
    assume(0 not in x.shape or not LIMITS["empty broadcast"].holds())

    aligned = folding.align(x, shape[0], time)

    assert_close(aligned, ops.repeat(x, time, axis=1))


@given(shapes, st.integers(0, 4))
def test_align_repeats_a_single_sample(shape, batch):
    x = arange((1, *shape[1:]))
    assume(0 not in x.shape or not LIMITS["empty broadcast"].holds())

    aligned = folding.align(x, batch, shape[1])

    assert_close(aligned, ops.repeat(x, batch, axis=0))


def test_align_leaves_a_tensor_of_that_batch_and_time_alone():
    # Python makes a new integer of each large number.
    x = ops.ones((2, 1000, 4))
    assert folding.align(x, 2, int("1000")) is x


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ([(2, 3)], (2, 3)),
        ([(2, 3), (2, 1)], (2, 3)),
        ([(2, 1), (2, 3, 4)], (2, 3)),
        ([(2, 1), (2, 1)], (2, 1)),
        ([(2, 1), (2, 0)], (2, 0)),
        ([(1, 3), (2, 1)], (2, 3)),
        ([(1, 3), (0, 3)], (0, 3)),
        ([(1, 1), (1, 1)], (1, 1)),
        ([(1, 3), (None, 3)], (None, 3)),
        ([(None, None), (2, 1)], (2, None)),
        ([(None, 3), (2, None)], (2, 3)),
        ([(2, None), (None, 3)], (2, 3)),
        ([(None, 1), (None, None)], (None, None)),
        ([(None, None), (None, None)], (None, None)),
    ],
)
def test_the_batch_and_time_that_tensors_share(tensors, expected):
    named = {f"x{i}": keras.KerasTensor(s) for i, s in enumerate(tensors)}
    assert folding.common_sizes(named) == expected

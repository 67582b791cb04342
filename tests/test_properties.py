"""Properties of any nest, any order of the steps and any padding."""

import numpy as np
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import KerasTensor
from keras import layers
from keras import ops
from keras import tree

from backends import KERAS
from backends import LIMITS
from case import BATCH
from case import TIME
from case import leaves
from case import with_leaves
from cases import CASES
from cases import each
from cases import one_in
from keras_td import TimeDistributed
from nests import nests_of
from reference import as_numpy
from reference import assert_close

# Older Keras asks for torchvision; the checks of cases show that.
OLDER = ["Resizing"] if KERAS < (3, 15) else []
ANY = [
    c
    for c in CASES
    if c.mixes_samples != "always" and not (c.slow or c.only or c.name in OLDER)
]
ONE_INPUT = [c for c in ANY if len(c.step_shapes) == 1 and not c.options]
SEVERAL_INPUTS = [c for c in ANY if len(c.step_shapes) > 1]

few_examples = settings(max_examples=2)
rngs = st.integers(0, 99).map(np.random.default_rng)


def lists_of(sizes):
    return st.lists(sizes, max_size=3)


@st.composite
def nests_of_arrays(draw):
    smallest = int(LIMITS["empty broadcast"].holds())
    sizes = st.integers(smallest, 3)
    lead = draw(sizes), draw(sizes)
    arrays = lists_of(sizes).map(
        lambda inner: np.arange(np.prod([*lead, *inner])).reshape(*lead, *inner)
    )
    return draw(nests_of(arrays.map(lambda x: x.astype("int32"))))


@st.composite
def nests_of_symbols(draw):
    sizes = st.none() | st.integers(1, 3)
    lead = draw(sizes), draw(sizes)
    symbols = st.builds(
        lambda inner, kind: KerasTensor((*lead, *inner), kind),
        lists_of(sizes),
        st.sampled_from(["float32", "int8", "bool"]),
    )
    return draw(nests_of(symbols))


@given(nests_of_arrays())
def test_folding_and_unfolding_gives_any_nest_back(nest):
    outputs = TimeDistributed(layers.Identity())(nest)

    assert_close(outputs, tree.map_structure(ops.convert_to_tensor, nest))


@given(nests_of_symbols())
def test_folding_and_unfolding_keeps_what_is_known(nest):
    outputs = TimeDistributed(layers.Identity())(nest)

    tree.assert_same_structure(outputs, nest)
    for y, x in zip(tree.flatten(outputs), tree.flatten(nest), strict=True):
        assert (y.shape, y.dtype) == (x.shape, x.dtype)


@each(SEVERAL_INPUTS)
@few_examples
@given(st.data(), rngs)
def test_a_time_of_1_is_as_good_as_repetition(case, data, rng):
    arguments = case.arrays(rng)
    tensors = leaves(arguments)
    # One of them keeps all its steps.
    whole = data.draw(st.integers(0, len(tensors) - 1))
    single = [
        i != whole and data.draw(st.booleans()) for i in range(len(tensors))
    ]
    tensors = [
        x[:, :1] if s else x for x, s in zip(tensors, single, strict=True)
    ]
    repeated = [
        np.broadcast_to(x, (BATCH, TIME, *x.shape[2:])) for x in tensors
    ]
    td = case.wrapped()

    actual, expected = (
        td(*args, training=False, **kwargs)
        for args, kwargs in (
            with_leaves(arguments, tensors),
            with_leaves(arguments, repeated),
        )
    )

    assert_close(actual, expected)


@each(one_in(3, ANY))
@few_examples
@given(st.permutations(range(TIME)), rngs)
def test_steps_in_another_order_are_outputs_in_that_order(case, order, rng):
    arguments = case.arrays(rng)
    moved = with_leaves(arguments, [x[:, order] for x in leaves(arguments)])
    td = case.wrapped()

    expected, actual = (
        td(*args, training=False, **kwargs)
        for args, kwargs in (arguments, moved)
    )

    expected = tree.map_structure(lambda y: as_numpy(y)[:, order], expected)
    assert_close(tree.map_structure(as_numpy, actual), expected)


@each(one_in(3, ANY, 1))
@few_examples
@given(st.integers(1, TIME - 1), st.integers(0, 3), rngs)
def test_a_longer_tail_changes_nothing_before_it(case, valid, tail, rng):
    arguments = case.arrays(rng, BATCH, valid + tail)
    head = with_leaves(arguments, [x[:, :valid] for x in leaves(arguments)])
    td = case.wrapped()

    expected, actual = (
        td(*args, training=False, **kwargs)
        for args, kwargs in (head, arguments)
    )

    actual = tree.map_structure(lambda y: y[:, :valid], actual)
    assert_close(actual, expected)


@each(one_in(3, ONE_INPUT, 2))
@few_examples
@given(st.integers(1, 3), st.integers(1, 3), rngs)
def test_two_wrappers_equal_one_over_the_product(case, outer, inner, rng):
    ([x], kwargs) = case.arrays(rng, BATCH, outer, inner)
    one = case.wrapped()

    nested = TimeDistributed(one)(x, training=False, **kwargs)
    flat = one(
        x.reshape(BATCH, outer * inner, *x.shape[3:]), training=False, **kwargs
    )

    expected = tree.map_structure(
        lambda y: ops.reshape(y, (BATCH, outer, inner, *y.shape[2:])), flat
    )
    assert_close(nested, expected)

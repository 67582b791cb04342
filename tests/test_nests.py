"""Nests of any kind pass, whatever the order of their keys."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import layers
from keras import ops
from keras import tree

from keras_td import TimeDistributed
from modes import MODES
from modes import TIME
from modes import each_mode
from nests import nests_of
from reference import as_numpy
from reference import assert_close
from reference import mask_of

LEAVES = st.none() | st.integers(1, 99)


def mapped(fn, nest):
    """Maps like `keras.tree`, but in the order of the nest itself."""
    match nest:
        case dict():
            return {key: mapped(fn, nest[key]) for key in nest}
        case list() | tuple():
            return type(nest)(mapped(fn, x) for x in nest)
        case None:
            return None
    return fn(nest)


def in_order(nest):
    """The leaves of a nest in its own order, with the keys before them."""
    match nest:
        case dict():
            return [(key, in_order(nest[key])) for key in nest]
        case list() | tuple():
            return [in_order(x) for x in nest]
    return None if nest is None else int(as_numpy(nest).ravel()[0])


class Watch(keras.Layer):
    """Returns its inputs doubled, and as they are."""

    def call(self, inputs, *, other=None):
        self.seen = inputs, other
        return {"twice": mapped(lambda x: 2 * x, inputs), "as it is": inputs}


def filled(nest):
    return mapped(lambda n: np.full((2, 4, 3), n, "float32"), nest)


@each_mode
@settings(max_examples=12)
@given(nests_of(st.integers(1, 99)), nests_of(LEAVES))
def test_the_layer_gets_each_tensor_in_its_place(option, nest, other):
    layer = Watch()
    inputs, other = filled([1, nest]), filled({"z": 7, "y": other})

    outputs = TimeDistributed(layer, **MODES[option])(inputs, other=other)

    # JAX traces what it may recompute.
    if not (keras.backend.backend() == "jax" and "remat" in option):
        for seen, given_ in zip(layer.seen, (inputs, other), strict=True):
            assert in_order(seen) == in_order(given_)
    assert list(outputs) == ["twice", "as it is"]
    assert in_order(outputs["as it is"]) == in_order(inputs)
    twice = mapped(lambda x: 2 * x, inputs)
    assert in_order(outputs["twice"]) == in_order(twice)


@each_mode
def test_a_compiled_model_takes_keys_in_any_order(option, rng):
    inputs = {
        "z": keras.Input((None, 3)),
        "a": [{"y": keras.Input((None, 3)), "b": keras.Input((None, 3))}],
    }
    outputs = TimeDistributed(Watch(), **MODES[option])(inputs)
    model = keras.Model(tree.flatten(inputs), tree.flatten(outputs["as it is"]))
    x = [rng.normal(size=(2, TIME, 3)).astype("float32") for _ in "123"]

    found = model.predict_on_batch(x)

    assert_close(list(found), x)


class Masked(keras.Layer):
    """Sums what is valid, key by key."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True

    def call(self, inputs, mask=None):
        return {
            key: ops.sum(
                inputs[key] * ops.cast(mask[key], "float32")[..., None], axis=1
            )
            for key in ("c", "a", "b")
        }

    def compute_mask(self, inputs, mask=None):
        return None


@each_mode
@pytest.mark.parametrize("keys", ["abc", "cab", "bca"])
def test_masks_of_inputs_are_found_by_their_keys(option, keys):
    x = {key: np.ones((2, 4, 5, 3), "float32") for key in "bca"}
    valid = {
        key: np.broadcast_to(np.arange(5) < 1 + "abc".index(key), (2, 4, 5))
        for key in keys
    }

    sums = TimeDistributed(Masked(), **MODES[option])(x, mask=valid)

    assert list(sums) == ["c", "a", "b"]
    for key in keys:
        assert (as_numpy(sums[key]) == 1 + "abc".index(key)).all()
        np.testing.assert_array_equal(mask_of(sums[key]), np.ones((2, 4)))


@each_mode
def test_masks_of_outputs_are_those_of_their_keys(option):
    class Embeddings(keras.Layer):
        def __init__(self):
            super().__init__()
            self.embeddings = {
                key: layers.Embedding(9, 2, mask_zero=True) for key in "zay"
            }

        def call(self, ids):
            return {key: self.embeddings[key](ids[key]) for key in "zay"}

    ids = {
        key: np.broadcast_to(np.arange(5) < n, (2, 4, 5)).astype("int32")
        for n, key in enumerate("yaz", 1)
    }

    vectors = TimeDistributed(Embeddings(), **MODES[option])(ids)

    assert list(vectors) == ["z", "a", "y"]
    for key in vectors:
        np.testing.assert_array_equal(mask_of(vectors[key]), ids[key] != 0)

"""Calls made on a condition known only at run time equal those on valid steps.

PyTorch has concrete values, and makes no needless calls. It is made to call
here as compiled functions do, in which shapes may depend on data, as on
TensorFlow, or may not, as on JAX.
"""

import keras
import numpy as np
import pytest
from keras import ops
from keras import tree

from backends import needs
from keras_td import TimeDistributed
from keras_td import folding
from keras_td import packing
from reference import as_numpy
from reference import assert_close
from reference import normal

MASKS = {
    "none valid": np.zeros((3, 5), bool),
    "one valid": np.arange(15).reshape(3, 5) == 7,
    "some valid": np.arange(5) < np.array([[4], [1], [2]]),
    "most valid": np.arange(15).reshape(3, 5) != 7,
    "all valid": np.ones((3, 5), bool),
}
each_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
each_number = pytest.mark.parametrize("steps", [None, 1, 2, 9])


@pytest.fixture(params=["shapes of data", "static shapes"])
def as_compiled(request, monkeypatch):
    """Makes calls as in a compiled function."""

    def both(condition, true_fn, false_fn):
        return tree.map_structure(
            lambda a, b: ops.where(condition, a, b), true_fn(), false_fn()
        )

    def use():
        monkeypatch.setattr(folding, "has_values", lambda x: False)
        monkeypatch.setattr(ops, "cond", both)
        if request.param == "static shapes":
            monkeypatch.setattr(packing, "_places_of", lambda rows: None)

    return use


class Notes(keras.Layer):
    """Returns a nest, records that it was called, and adds a loss."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1],))
        state = {"shape": (), "initializer": "zeros", "trainable": False}
        self.called, self.never = (self.add_weight(**state) for _ in "12")

    def call(self, inputs):
        self.called.assign(1.0)
        self.add_loss(ops.sum(self.kernel**2))
        outer = inputs[..., None] * inputs[..., None, :]
        return {"outer": outer, "sum": ops.sum(inputs * self.kernel, axis=-1)}


@needs("training")
@each_number
@each_mask
def test_outputs_losses_and_state_are_those_of_valid_steps(
    mask, steps, as_compiled, rng
):
    x = np.where(mask[..., None], normal(rng, 3, 5, 4), np.nan)

    def found():
        keras.utils.set_random_seed(0)
        notes = Notes()
        td = TimeDistributed(notes, skip_masked=True, steps_per_call=steps)
        outputs = td(x.astype("float32"), mask=mask, training=True)
        losses = np.sum([as_numpy(loss) for loss in td.losses])
        return outputs, losses, as_numpy(notes.called), as_numpy(notes.never)

    expected = found()
    as_compiled()
    actual = found()

    assert_close(actual[0], expected[0])
    assert_close(list(actual[1:]), list(map(np.float32, expected[1:])))


@needs("training")
@each_number
@each_mask
def test_statistics_are_those_of_valid_steps(mask, steps, as_compiled, rng):
    x = np.where(mask[..., None], normal(rng, 3, 5, 4), np.nan)

    def found():
        norm = keras.layers.BatchNormalization()
        td = TimeDistributed(norm, skip_masked=True, steps_per_call=steps)
        outputs = td(x.astype("float32"), mask=mask, training=True)
        return [as_numpy(outputs), *map(as_numpy, norm.weights)]

    expected = found()
    as_compiled()

    assert_close(found(), expected)

"""A subclass may override what it likes, as one of Keras's layer may."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_td import TimeDistributed
from modes import MODES
from modes import TIME
from modes import each_kind
from reference import as_numpy
from reference import assert_close
from reference import loop
from reference import normal


def test_code_that_looks_for_the_layer_of_keras_finds_it():
    td = TimeDistributed(layers.Dense(4))

    assert isinstance(td, layers.TimeDistributed)
    # It is saved as what it is.
    saved = keras.saving.serialize_keras_object(td)
    assert saved["registered_name"] == "keras_td>TimeDistributed"
    assert type(keras.saving.deserialize_keras_object(saved)) is type(td)


class StepByStep(TimeDistributed):
    """Calls the layer as public code does."""

    def call(self, inputs, training=None, mask=None):
        steps = [self.layer.call(inputs[:, t]) for t in range(inputs.shape[1])]
        return ops.stack(steps, axis=1)


MAKE = {
    "Dense": lambda: layers.Dense(4),
    "BatchNormalization": layers.BatchNormalization,
    "Sequential": lambda: keras.Sequential([layers.Dense(4)]),
    "Embedding": lambda: layers.Embedding(9, 4),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("how", ["eager", "built", "functional"])
def test_the_layer_is_built_for_a_subclass_with_a_call_of_its_own(
    name, how, rng
):
    layer, x = MAKE[name](), normal(rng, 2, 3, 5)
    if name == "Embedding":
        x = rng.integers(0, 9, (2, 3, 5)).astype("int32")
    td = StepByStep(layer)
    match how:
        case "built":
            td.build(x.shape)
            assert layer.built
            outputs = td(x)
        case "functional":
            inputs = keras.Input(x.shape[1:], dtype=str(x.dtype))
            outputs = keras.Model(inputs, td(inputs))(x)
        case "eager":
            outputs = td(x)

    assert_close(outputs, loop(layer, x))


def test_a_subclass_may_read_weights_once_the_layer_is_built(rng):
    class Scaled(TimeDistributed):
        def build(self, input_shape):
            super().build(input_shape)
            self.scale = self.add_weight(
                shape=self.layer.kernel.shape, initializer="ones"
            )

        def call(self, inputs, training=None, mask=None):
            outputs = super().call(inputs, training=training, mask=mask)
            return outputs * ops.sum(self.scale)

    td, x = Scaled(layers.Dense(4)), normal(rng, 2, 3, 5)

    assert_close(td(x), loop(td.layer, x) * 20)


def test_a_subclass_may_have_arguments_of_its_own(rng):
    class Scaled(TimeDistributed):
        def call(self, inputs, scale=1.0, training=None, mask=None):
            return super().call(inputs, training=training, mask=mask) * scale

    td, x = Scaled(layers.Dense(4)), normal(rng, 2, 3, 5)

    assert_close(td(x, scale=2.0), td(x) * 2)
    inputs = keras.Input((3, 5))
    model = keras.Model(inputs, td(inputs, scale=2.0))
    assert_close(model(x), td(x) * 2)


class InOrder(TimeDistributed):
    """Passes on by position what Keras's own layer takes by position."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training, mask)


class Tells(keras.Layer):
    """Tells what it is told."""

    def call(self, inputs, training=False, mask=None):
        outputs = inputs * (3 if training else 1)
        return outputs if mask is None else ops.where(mask, outputs, -1.0)


@pytest.mark.parametrize("training", [None, False, True])
@pytest.mark.parametrize("masked", [False, True])
@each_kind
def test_a_subclass_may_pass_training_and_mask_by_position(
    option, masked, training, rng
):
    x = normal(rng, 2, TIME, 4)
    mask = np.arange(4) < rng.integers(1, 5, (2, TIME, 1)) if masked else None
    td = InOrder(Tells(), **MODES[option])

    outputs = td(x, training=training, mask=mask)

    expected = x * (3 if training else 1)
    expected = np.where(mask, expected, -1) if masked else expected
    assert_close(outputs, expected)


def test_a_subclass_builds_on_a_layer_that_is_built(rng):
    dense, x = layers.Dense(4), normal(rng, 2, 3, 5)
    dense.build((None, 5))
    kernel = as_numpy(dense.kernel)

    outputs = StepByStep(dense)(x)

    np.testing.assert_array_equal(as_numpy(dense.kernel), kernel)
    assert_close(outputs, loop(dense, x))

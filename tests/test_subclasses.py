"""A subclass may override anything, like a subclass of Keras's layer."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from custom import TwoInputs
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
    # It is saved under its own name.
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
    """Shows in its outputs which `training` and `mask` it gets."""

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


def test_a_subclass_may_pass_training_alone_by_position(rng):
    class TrainingAlone(TimeDistributed):
        def call(self, inputs, training=None):
            return super().call(inputs, training)

    x = normal(rng, 2, TIME, 4)

    assert_close(TrainingAlone(Tells())(x, training=True), 3 * x)


def test_a_subclass_may_pass_tensors_by_position(rng):
    class WithItself(TimeDistributed):
        def call(self, inputs):
            return super().call(inputs, inputs)

    td, x = WithItself(TwoInputs()), normal(rng, 2, TIME, 4)

    assert_close(td(x), loop(td.layer, x, x))


@pytest.mark.parametrize("make", [lambda: Tells(), lambda: layers.GRU(3)])
@pytest.mark.parametrize("training", [None, True])
def test_a_model_may_pass_training_and_mask_by_position(make, training, rng):
    class Holds(keras.Model):
        def __init__(self):
            super().__init__()
            self.td = TimeDistributed(make())

        def call(self, inputs):
            return self.td.call(inputs, training, mask)

    x = normal(rng, 2, TIME, 5, 4)
    mask = np.arange(5) < rng.integers(1, 5, (2, TIME, 1))
    if isinstance(make(), Tells):
        mask = mask[..., None]
    holds = Holds()
    expected = holds.td(x, training=training, mask=mask)

    assert_close(holds(x), expected)


class Joined(TimeDistributed):
    """Builds and calls the layer on its inputs and their squares."""

    def build(self, input_shape):
        super().build((*input_shape[:-1], 2 * input_shape[-1]))

    def call(self, inputs):
        return super().call(ops.concatenate([inputs, inputs**2], axis=-1))


class Gate(TimeDistributed):
    """Multiplies the layer's outputs for the first input by the second."""

    def build(self, input_shape):
        super().build(input_shape[0])

    def call(self, inputs):
        return super().call(inputs[0]) * inputs[1]


@pytest.mark.parametrize(
    "make",
    [lambda: layers.Dense(3), lambda: keras.Sequential([layers.Dense(3)])],
)
@each_kind
def test_a_subclass_may_build_the_layer_for_other_inputs(option, make, rng):
    x, gate = normal(rng, 2, TIME, 4), normal(rng, 2, TIME, 1)

    td = Joined(make(), **MODES[option])
    outputs = td(x)
    assert_close(outputs, loop(td.layer, np.concatenate([x, x**2], axis=-1)))

    td = Gate(make(), **MODES[option])
    outputs = td([x, gate])
    assert_close(outputs, ops.multiply(loop(td.layer, x), gate))
    symbols = [keras.Input(a.shape[1:]) for a in (x, gate)]
    model = keras.Model(symbols, Gate(td.layer)(symbols))
    assert_close(model([x, gate]), outputs)


def absolute(x):
    """A function of the backend, which Keras cannot trace."""
    if keras.backend.is_keras_tensor(x):
        raise AttributeError("A KerasTensor is not a backend tensor.")
    return ops.abs(x)


class Absolute(TimeDistributed):
    def call(self, inputs):
        return absolute(super().call(inputs))


class First(TimeDistributed):
    """Infers its shape, and computes with functions of the backend."""

    def call(self, inputs):
        return absolute(super().call(inputs))[:, 0]

    def compute_output_shape(self, input_shape):
        batch, _, *inner = super().compute_output_shape(input_shape)
        return (batch, *inner)


@pytest.mark.parametrize("cls", [Absolute, First])
@each_kind
def test_a_subclass_may_use_functions_of_the_backend(cls, option, rng):
    x = normal(rng, 2, TIME, 4)
    td = cls(layers.Dense(3), **MODES[option])
    model = keras.Sequential([keras.Input((TIME, 4)), td])

    expected = ops.abs(loop(td.layer, x))
    expected = expected[:, 0] if cls is First else expected
    assert model.output_shape == (None, *expected.shape[1:])
    assert_close(model(x), expected)


def test_a_subclass_builds_on_a_layer_that_is_built(rng):
    dense, x = layers.Dense(4), normal(rng, 2, 3, 5)
    dense.build((None, 5))
    kernel = as_numpy(dense.kernel)

    outputs = StepByStep(dense)(x)

    np.testing.assert_array_equal(as_numpy(dense.kernel), kernel)
    assert_close(outputs, loop(dense, x))

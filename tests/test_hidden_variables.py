"""Untracked variables that the layer uses change as they should."""

import unittest.mock

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from backends import needs
from keras_td import TimeDistributed
from modes import SEVERAL_CALLS
from modes import TIME
from modes import each_option
from reference import as_numpy
from reference import assert_close
from reference import loop
from reference import normal


class Metrics(keras.Layer):
    """Uses one more metric at each step of a clip that counts its steps."""

    def __init__(self):
        super().__init__()
        means = [keras.metrics.Mean() for _ in range(4)]
        # Keras does not look into functions.
        self.hidden = lambda: means

    def call(self, inputs):
        for step, mean in enumerate(self.hidden()):
            if float(as_numpy(inputs[0, 0])) >= step:
                mean.update_state(inputs)
        return inputs


def test_variables_that_a_later_call_is_the_first_to_use_change():
    layer = Metrics()
    td = TimeDistributed(layer, steps_per_call=1)
    steps = np.arange(4, dtype="float32")

    td(np.broadcast_to(steps[None, :, None], (2, 4, 3)))

    totals = [float(as_numpy(mean.result())) for mean in layer.hidden()]
    assert totals == [1.5, 2.0, 2.5, 3.0]


class Counts(keras.Layer):
    """Counts its calls, in a variable too."""

    def __init__(self):
        super().__init__()
        counter = keras.Variable(0.0, trainable=False)
        self.hidden = lambda: counter
        self.calls = 0

    def call(self, inputs):
        self.hidden().assign(self.hidden() + 1)
        self.calls += 1
        return inputs


@each_option
def test_no_call_is_wasted_once_variables_are_known(option):
    layer = Counts()
    td = TimeDistributed(layer, **SEVERAL_CALLS[option])
    x = np.ones((2, TIME, 3), "float32")
    td(x)
    calls, count = layer.calls, float(as_numpy(layer.hidden()))

    td(x)

    made, counted = layer.calls - calls, float(as_numpy(layer.hidden())) - count
    steps = SEVERAL_CALLS[option].get("steps_per_call", TIME)
    assert made == counted == -(-TIME // steps)


def test_variables_made_in_each_call_are_no_state():
    class MakesAnew(keras.Layer):
        def call(self, inputs):
            mean = keras.metrics.Mean()
            mean.update_state(inputs)
            return inputs * mean.result()

    td = TimeDistributed(MakesAnew(), steps_per_call=1)
    x = np.full((1, 3, 2), 3, "float32")

    for _ in range(3):
        np.testing.assert_allclose(as_numpy(td(x)), 3 * x)


@pytest.mark.parametrize("steps", [1, 2])
def test_frozen_weights_are_not_copied(steps, rng):
    if keras.backend.backend() not in ("torch", "jax"):
        pytest.skip(reason="a variable there is copied whenever it is read")

    class Looks(layers.Dense):
        def call(self, inputs):
            self.seen = self.kernel.value
            return super().call(inputs)

    layer = Looks(4)
    td = TimeDistributed(layer, steps_per_call=steps)
    td.build((2, 5, 3))
    td.trainable = False

    td(normal(rng, 2, 5, 3))

    assert layer.seen is layer.kernel.value


@needs("training")
@each_option
def test_a_frozen_layer_inside_of_one_that_trains_keeps_its_weights(
    option, rng
):
    frozen = layers.Dense(3)
    model = keras.Sequential(
        [frozen, layers.BatchNormalization(), layers.Dense(3)]
    )
    td = TimeDistributed(model, **SEVERAL_CALLS[option])
    td.build((2, TIME, 3))
    frozen.trainable = False
    before = frozen.get_weights()

    td(normal(rng, 2, TIME, 3), training=True)

    for weights, expected in zip(frozen.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weights, expected)
    mean = as_numpy(ops.sum(ops.abs(model.layers[1].moving_mean)))
    assert mean > 0


def test_an_object_that_has_any_attribute_is_left_alone():
    class Logs(keras.Layer):
        def __init__(self, logger):
            super().__init__()
            self.logger = logger

        def call(self, inputs):
            self.logger.info("called")
            return inputs

    logger = unittest.mock.MagicMock()

    TimeDistributed(Logs(logger), steps_per_call=1)(np.ones((2, 3, 4)))

    logger.info.assert_called_with("called")


@each_option
def test_an_infinite_variable_is_assigned_to(option):
    class Best(keras.Layer):
        def build(self, input_shape):
            infinite = keras.initializers.Constant(-np.inf)
            self.best = self.add_weight(shape=(1,), initializer=infinite)

        def call(self, inputs):
            self.best.assign(ops.maximum(self.best, ops.max(inputs)))
            return inputs - self.best

    td = TimeDistributed(Best(), **SEVERAL_CALLS[option])

    outputs = td(np.ones((2, TIME, 3), "float32"))

    np.testing.assert_array_equal(as_numpy(outputs), 0)
    np.testing.assert_array_equal(as_numpy(td.layer.best), 1)


def compiled_layer(of_class):
    """A layer that compiles a method, as public TensorFlow code does."""
    import tensorflow

    class Encoder(keras.Layer):
        def __init__(self):
            super().__init__()
            self.inner = keras.Sequential(
                [
                    layers.Dense(4),
                    layers.BatchNormalization(),
                    layers.Dropout(0.5),
                ]
            )
            if not of_class:
                self.encode = tensorflow.function(self.encode)

        def build(self, input_shape):
            self.inner.build(input_shape)

        def encode(self, inputs, training=False):
            return self.inner(inputs, training=training)

        def call(self, inputs, training=False):
            return self.encode(inputs, training=training)

    if of_class:
        Encoder.encode = tensorflow.function(Encoder.encode)
    return Encoder()


@pytest.mark.parametrize("of_class", [False, True])
@each_option
def test_a_layer_may_compile_its_methods(option, of_class, on_tensorflow, rng):
    import tensorflow

    layer = compiled_layer(of_class)
    td = TimeDistributed(layer, **SEVERAL_CALLS[option])
    x = normal(rng, 4, TIME, 3)
    td(x)
    layer.inner.layers[0].set_weights([np.ones((3, 4)), np.ones(4)])
    mean = layer.inner.layers[1].moving_mean

    assert_close(td(x), loop(layer, x))
    with tensorflow.GradientTape() as tape:
        first = td(x, training=True)
    weights = layer.inner.layers[0].trainable_variables
    gradients = tape.gradient(first, [w.value for w in weights])
    before = as_numpy(mean)
    second = td(x, training=True)

    assert all(g is not None for g in gradients)
    assert (before != 0).all()
    assert (as_numpy(mean) != before).all()
    assert ((as_numpy(first) == 0) != (as_numpy(second) == 0)).any()
    assert hasattr(layer.encode, "python_function")

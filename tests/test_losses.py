"""The losses that a layer adds count alike, however often it is called."""

import keras
import numpy as np
import pytest
from keras import ops

from backends import needs
from keras_td import TimeDistributed
from modes import MODES
from modes import each_mode
from modes import options_named
from reference import as_numpy
from reference import dtype
from reference import normal

# Losses are for training.
pytestmark = needs("training")


def number(loss):
    return float(as_numpy(ops.cast(loss, "float32")))


class Adds(keras.Layer):
    """Adds in each call what it is told to for so many rows."""

    def __init__(self, losses, **kwargs):
        super().__init__(**kwargs)
        self.losses_of_rows = losses

    def call(self, inputs):
        for loss in self.losses_of_rows(inputs):
            self.add_loss(loss)
        return inputs


@each_mode
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_a_mean_over_many_steps_is_exact(option, kind):
    layer = Adds(lambda x: [ops.mean(x)], dtype=kind)
    td = TimeDistributed(layer, **MODES[option])

    td(np.ones((1, 1024, 1), "float32"))

    [loss] = td.losses
    assert dtype(loss) == kind
    assert number(loss) == 1


def test_a_loss_that_some_calls_add_is_their_mean():
    # The first of three calls has one step of two.
    def losses(inputs):
        always = [ops.mean(inputs)]
        return always + [2 * ops.mean(inputs)] * (inputs.shape[0] > 2)

    td = TimeDistributed(Adds(losses), steps_per_call=2)
    steps = np.array([1.0, 3, 5, 7, 9])

    td(np.broadcast_to(steps[None, :, None], (2, 5, 1)).astype("float32"))

    assert sorted(map(number, td.losses)) == [5, 12]


def test_losses_of_two_layers_are_not_taken_for_each_other():
    small = Adds(lambda x: [ops.mean(x)] * (x.shape[0] > 2))
    large = Adds(lambda x: [100 * ops.mean(x)])
    both = keras.Sequential([small, large])
    td = TimeDistributed(both, steps_per_call=2)

    td(np.ones((2, 3, 1), "float32"))

    assert sorted(map(number, td.losses)) == [1, 100]


@needs("losses of layers")
def test_a_loss_of_later_calls_alone_is_a_mistake_where_calls_are_a_loop():
    if keras.backend.backend() not in ("tensorflow", "jax"):
        pytest.skip(reason="Keras compiles nothing into a loop there")

    # The first of 21 calls has one step of two.
    def losses(inputs):
        return [ops.mean(inputs)] * (inputs.shape[0] != 2)

    td = TimeDistributed(Adds(losses), steps_per_call=2)
    model = keras.Sequential([keras.Input((41, 3), batch_size=2), td])
    model.compile("sgd", "mse")
    x = np.ones((2, 41, 3), "float32")

    with pytest.raises(ValueError, match="same losses in each call"):
        model.evaluate(x, x, batch_size=2, verbose=0)


def of_each_sample(inputs):
    return [ops.sum(inputs, axis=-1)]


@options_named(["1 step", "3 steps", "2 steps, remat", "shared randomness"])
def test_a_loss_of_each_sample_is_a_mistake_in_several_calls(option):
    td = TimeDistributed(Adds(of_each_sample), **MODES[option])

    with pytest.raises(ValueError, match=r"must be scalars.*shape \(\d+,\)"):
        td(np.ones((2, 5, 3), "float32"))


@options_named(["one call", "remat"])
def test_a_loss_of_each_sample_stays_one_in_one_call(option, rng):
    td = TimeDistributed(Adds(of_each_sample), **MODES[option])
    x = normal(rng, 2, 5, 3)

    td(x)

    [loss] = td.losses
    expected = x.sum(axis=-1).reshape(10)
    np.testing.assert_allclose(as_numpy(loss), expected, rtol=1e-5)


@needs("losses of layers")
@each_mode
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_model_of_mixed_precision_has_the_loss_of_one_call(option, policy):
    keras.config.set_dtype_policy(policy)
    try:
        # On TensorFlow, Keras adds no loss of 16 bits to one of 32.
        layer = Adds(lambda x: [ops.cast(ops.mean(x) / 4, "float32")])
        td = TimeDistributed(layer, **MODES[option])
        model = keras.Sequential([keras.Input((40, 3)), td])
        model.compile("sgd", "mse")
        x = np.ones((2, 40, 3), "float32")

        loss = model.evaluate(x, x, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")

    np.testing.assert_allclose(loss, 0.25, rtol=1e-2)

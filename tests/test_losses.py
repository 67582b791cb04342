"""The losses that a layer adds count the same, however often it is called."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from backends import needs
from custom import Adds
from keras_td import TimeDistributed
from modes import MODES
from modes import SEVERAL_CALLS as OPTIONS
from modes import TIME
from modes import each_mode
from modes import each_option
from modes import options_named
from reference import as_numpy
from reference import assert_close
from reference import dtype
from reference import normal


def number(loss):
    return float(as_numpy(ops.cast(loss, "float32")))


@needs("training")
@each_mode
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_a_mean_over_many_steps_is_exact(option, kind):
    layer = Adds(lambda x: [ops.mean(x)], dtype=kind)
    td = TimeDistributed(layer, **MODES[option])

    td(np.ones((1, 1024, 1), "float32"))

    [loss] = td.losses
    assert dtype(loss) == kind
    assert number(loss) == 1


@needs("training")
def test_a_loss_that_some_calls_add_is_their_mean():
    # The first of three calls has one step of two.
    def losses(inputs):
        always = [ops.mean(inputs)]
        return always + [2 * ops.mean(inputs)] * (inputs.shape[0] > 2)

    td = TimeDistributed(Adds(losses), steps_per_call=2)
    steps = np.array([1.0, 3, 5, 7, 9])

    td(np.broadcast_to(steps[None, :, None], (2, 5, 1)).astype("float32"))

    assert sorted(map(number, td.losses)) == [5, 12]


@needs("training")
def test_losses_of_two_layers_are_not_taken_for_each_other():
    small = Adds(lambda x: [ops.mean(x)] * (x.shape[0] > 2))
    large = Adds(lambda x: [100 * ops.mean(x)])
    both = keras.Sequential([small, large])
    td = TimeDistributed(both, steps_per_call=2)

    td(np.ones((2, 3, 1), "float32"))

    assert sorted(map(number, td.losses)) == [1, 100]


@needs("training")
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


@needs("training")
@options_named(["1 step", "3 steps", "2 steps, remat", "shared randomness"])
def test_a_loss_of_each_sample_is_a_mistake_in_several_calls(option):
    td = TimeDistributed(Adds(of_each_sample), **MODES[option])

    with pytest.raises(ValueError, match=r"must be scalars.*shape \(\d+,\)"):
        td(np.ones((2, 5, 3), "float32"))


@needs("training")
@options_named(["one call", "remat"])
def test_a_loss_of_each_sample_stays_one_in_one_call(option, rng):
    td = TimeDistributed(Adds(of_each_sample), **MODES[option])
    x = normal(rng, 2, 5, 3)

    td(x)

    [loss] = td.losses
    expected = x.sum(axis=-1).reshape(10)
    np.testing.assert_allclose(as_numpy(loss), expected, rtol=1e-5)


@needs("training")
@needs("losses of layers")
@each_mode
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_model_of_mixed_precision_has_the_loss_of_one_call(option, policy):
    keras.config.set_dtype_policy(policy)
    try:
        # On TensorFlow, Keras cannot add a loss of 16 bits to one of 32.
        layer = Adds(lambda x: [ops.cast(ops.mean(x) / 4, "float32")])
        td = TimeDistributed(layer, **MODES[option])
        model = keras.Sequential([keras.Input((40, 3)), td])
        model.compile("sgd", "mse")
        x = np.ones((2, 40, 3), "float32")

        loss = model.evaluate(x, x, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")

    np.testing.assert_allclose(loss, 0.25, rtol=1e-2)


@needs("training")
@pytest.mark.usefixtures("float64")
@options_named(["1 step", "3 steps", "remat"])
def test_a_loss_of_float64_has_all_its_digits(option):
    small = 1 + 1e-12
    layer = Adds(lambda x: [x[0, 0]], dtype="float64")
    td = TimeDistributed(layer, **MODES[option])

    td(ops.convert_to_tensor(np.full((2, 5, 3), small), "float64"))

    [loss] = td.losses
    np.testing.assert_allclose(as_numpy(loss), small, rtol=1e-14)


class MeanSquare(layers.Dense):
    """Adds the mean square of its outputs to the loss."""

    def call(self, inputs):
        outputs = super().call(inputs)
        self.add_loss(ops.mean(ops.square(outputs)))
        return outputs


@each_option
def test_losses_do_not_depend_on_the_number_of_calls(option, rng):
    x = normal(rng, 4, TIME, 5)

    def losses(**options):
        keras.utils.set_random_seed(0)
        dense = MeanSquare(3, kernel_regularizer="l1")
        td = TimeDistributed(dense, **options)
        td(x)
        td(x)
        return td.losses

    actual, expected = losses(**OPTIONS[option]), losses()

    assert len(actual) == len(expected) == 2
    assert_close(sum(actual), sum(expected))


@needs("losses of layers")
@pytest.mark.parametrize("time", [TIME, None], ids=["known", "unknown"])
@each_option
def test_losses_reach_the_loss_of_a_model(option, time, rng):
    x, y = normal(rng, 4, TIME, 5), normal(rng, 4, TIME, 3)

    def loss(**options):
        keras.utils.set_random_seed(0)
        dense = MeanSquare(3, kernel_regularizer="l1")
        td = TimeDistributed(dense, **options)
        model = keras.Sequential([keras.Input((time, 5)), td])
        model.compile("sgd", "mse")
        return model.train_on_batch(x, y), model.evaluate(x, y, verbose=0)

    np.testing.assert_allclose(loss(**OPTIONS[option]), loss(), rtol=1e-5)


def test_stateless_calls_return_each_loss_once(rng):
    x = normal(rng, 4, TIME, 5)

    def numbers_of_losses(**options):
        td = TimeDistributed(MeanSquare(3), **options)
        td.build(x.shape)
        variables = td.trainable_variables, td.non_trainable_variables
        for _ in range(50):
            *_, losses = td.stateless_call(*variables, x, return_losses=True)
            yield len(losses)

    assert {*numbers_of_losses(steps_per_call=3)} == {*numbers_of_losses()}

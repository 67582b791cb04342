"""State is carried from each call to the next, but gradients are not."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from backends import needs
from backends import with_and_without_remat
from keras_td import TimeDistributed
from modes import SEVERAL_CALLS as OPTIONS
from modes import TIME
from modes import each_option
from reference import as_numpy
from reference import assert_close
from reference import normal


class Counter(keras.Layer):
    """Adds the number of the call, and counts it."""

    def build(self, input_shape):
        self.count = self.add_weight(
            shape=(), initializer="zeros", trainable=False, dtype="int32"
        )

    def call(self, inputs):
        self.count.assign_add(1)
        return inputs + ops.cast(self.count, inputs.dtype)


@with_and_without_remat
@pytest.mark.parametrize("time", [7, None])
def test_calls_come_in_order(time, remat):
    td = TimeDistributed(Counter(), steps_per_call=2, remat=remat)
    x = np.zeros((1, 7, 1), "float32")
    model = keras.Sequential([keras.Input((time, 1)), td])

    first = as_numpy(td(x)).ravel()
    second = model.predict_on_batch(x).ravel()

    np.testing.assert_array_equal(first, [1, 2, 2, 3, 3, 4, 4])
    # Not every backend keeps what `predict` changes.
    start = second[0] - 1
    np.testing.assert_array_equal(second - start, first)


class CountsAllButTheFirst(Counter):
    calls = 0

    def call(self, inputs):
        self.calls += 1
        return super().call(inputs) if self.calls > 1 else inputs


@needs("training")
@with_and_without_remat
def test_a_compiled_loop_tells_of_state_that_it_would_lose(remat):
    if keras.backend.backend() == "torch":
        pytest.skip(reason="Keras compiles no training on it")
    td = TimeDistributed(CountsAllButTheFirst(), steps_per_call=1, remat=remat)
    model = keras.Sequential([keras.Input((40, 1)), td, layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=False)
    td.layer.calls = -1  # `fit` calls it for its shapes

    with pytest.raises(ValueError, match="assign to the same variables"):
        model.fit(np.zeros((1, 40, 1)), np.zeros((1, 40, 1)), verbose=0)


@needs("training")
@pytest.mark.parametrize("run_eagerly", [True, False])
@with_and_without_remat
def test_fit_keeps_the_state(remat, run_eagerly):
    td = TimeDistributed(Counter(), steps_per_call=2, remat=remat)
    model = keras.Sequential([keras.Input((7, 1)), td, layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=run_eagerly)
    x = np.zeros((4, 7, 1), "float32")

    model.fit(x, x, batch_size=2, epochs=3, verbose=0)

    assert as_numpy(td.layer.count.value) == 6 * 4


def test_a_stateful_rnn_sees_the_steps_in_order(rng):
    x = normal(rng, 2, 3, 5, 4)
    td = TimeDistributed(layers.LSTM(4, stateful=True), steps_per_call=1)

    outputs = as_numpy(td(x)), as_numpy(td(x))

    # The last of each step: (batch, time * 5, ...) -> (batch, time, ...)
    sequence = np.concatenate([x, x], axis=1).reshape(2, 30, 4)
    bare = layers.LSTM(4, return_sequences=True)
    bare.build(sequence.shape)
    bare.set_weights(td.get_weights())
    expected = as_numpy(bare(sequence))[:, 4::5]
    np.testing.assert_allclose(
        np.concatenate(outputs, axis=1), expected, atol=1e-5
    )


def normalizer(wrapper, **options):
    keras.utils.set_random_seed(0)
    norm = layers.BatchNormalization(momentum=0.5)
    return wrapper(keras.Sequential([layers.Dense(4), norm]), **options)


class Memory(keras.Layer):
    """Adds half of what it remembers and the scaled mean of its inputs."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones")
        self.memory = self.add_weight(shape=(), trainable=False)

    def call(self, inputs):
        known = self.memory / 2 + ops.mean(inputs) * self.scale
        self.memory.assign(known)
        return ops.zeros_like(inputs) + known


@needs("training")
@pytest.mark.parametrize("time", [4, 12])
@pytest.mark.parametrize("run_eagerly", [True, False])
@with_and_without_remat
def test_no_gradients_pass_through_the_state(remat, run_eagerly, time):
    memory = Memory()
    td = TimeDistributed(memory, steps_per_call=1, remat=remat)
    model = keras.Sequential([keras.Input((time, 1)), td])
    # The gradient of the loss is that of the sum of the outputs.
    model.compile(
        keras.optimizers.SGD(1.0),
        lambda y, outputs: ops.sum(outputs, axis=(1, 2)),
        run_eagerly=run_eagerly,
    )
    x = np.ones((1, time, 1), "float32")

    model.fit(x, x, verbose=0)

    # The gradient at each step is the mean of the inputs, 1.
    assert as_numpy(memory.scale.value) == 1 - time


@needs("training")
@pytest.mark.parametrize("run_eagerly", [True, False])
@each_option
def test_a_layer_may_use_weights_of_another(option, run_eagerly, rng):
    x, y = normal(rng, 4, TIME, 5), normal(rng, 4, TIME, 5)

    def fit(**options):
        keras.utils.set_random_seed(0)
        dense = layers.Dense(3, use_bias=False)
        tied = layers.Lambda(
            lambda x: ops.matmul(x, ops.transpose(dense.kernel)),
            output_shape=(5,),
        )
        inputs = keras.Input((TIME, 5))
        outputs = TimeDistributed(tied, **options)(dense(inputs))
        model = keras.Model(inputs, outputs)
        model.compile("sgd", "mse", run_eagerly=run_eagerly)
        model.fit(x, y, epochs=2, verbose=0)
        return model.get_weights()

    assert_close(fit(**OPTIONS[option]), fit())


@each_option
def test_the_state_of_another_layer_changes_too(option, rng):
    x = normal(rng, 4, TIME, 5)

    def moving_mean(**options):
        norm = layers.BatchNormalization(momentum=0)
        norm.build((None, 5))
        td = TimeDistributed(
            layers.Lambda(lambda x: norm(x, training=True)), **options
        )
        td(x)
        return as_numpy(norm.moving_mean)

    steps = OPTIONS[option].get("steps_per_call", TIME)
    expected = x[:, -steps:].mean((0, 1))
    np.testing.assert_allclose(
        moving_mean(**OPTIONS[option]), expected, atol=1e-5
    )


class Watched(keras.Layer):
    """Keeps the mean of what it has seen, as a metric."""

    def __init__(self):
        super().__init__()
        self.seen = keras.metrics.Mean()

    def call(self, inputs):
        self.seen.update_state(inputs)
        return inputs


@each_option
def test_metrics_of_the_layer_see_all_calls(option):
    td = TimeDistributed(Watched(), **OPTIONS[option])

    td(np.arange(TIME, dtype="float32").reshape(1, TIME, 1))

    assert as_numpy(td.layer.seen.result()) == (TIME - 1) / 2


def test_batch_normalization_gives_the_numbers_of_stock(rng):
    x = normal(rng, 4, 5, 3) * 3 + 1
    stock = normalizer(layers.TimeDistributed)
    td = normalizer(TimeDistributed, steps_per_call=1)

    expected = stock(x, training=True)

    assert_close(td(x, training=True), expected)
    assert_close(td.get_weights(), stock.get_weights())


@needs("training")
@pytest.mark.parametrize("run_eagerly", [True, False])
@with_and_without_remat
def test_ten_steps_of_fit_give_the_numbers_of_stock(remat, run_eagerly, rng):
    x, y = normal(rng, 80, 5, 3) * 3 + 1, normal(rng, 80, 5, 4)

    def fit(td):
        model = keras.Sequential([keras.Input((5, 3)), td])
        model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=run_eagerly)
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        return model.get_weights()

    actual = fit(normalizer(TimeDistributed, steps_per_call=1, remat=remat))

    assert_close(actual, fit(normalizer(layers.TimeDistributed)))


@needs("training")
@with_and_without_remat
def test_a_frozen_layer_stays(remat, rng):
    td = normalizer(TimeDistributed, steps_per_call=2, remat=remat)
    model = keras.Sequential([keras.Input((5, 3)), td, layers.Dense(1)])
    td.trainable = False
    before = td.get_weights()
    model.compile("sgd", "mse")

    model.train_on_batch(normal(rng, 4, 5, 3), np.ones((4, 5, 1), "float32"))

    assert_close(td.get_weights(), before)


class Noise(keras.Layer):
    """Draws from Keras's global seed, as it has no seed."""

    def call(self, inputs):
        return inputs + keras.random.normal((5,))


@needs("fresh dropout")
@with_and_without_remat
@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.Dropout(0.5),
        lambda: layers.Dropout(0.5, seed=3),
        lambda: layers.GaussianNoise(1.0, seed=3),
        Noise,
    ],
    ids=["dropout", "seeded dropout", "seeded noise", "noise without a seed"],
)
def test_every_step_and_every_batch_draws_anew(make, remat):
    if make is Noise and remat and keras.backend.backend() == "jax":
        pytest.skip(reason="JAX compiles what it may recompute")
    td = TimeDistributed(make(), steps_per_call=1, remat=remat)
    x = np.ones((1, 20, 5), "float32")
    # `Dropout` draws 5 bits for a step, so that some agree.
    expected = 12 if isinstance(td.layer, layers.Dropout) else 40

    drawn = [as_numpy(td(x, training=True))[0] for _ in "12"]

    distinct = np.unique(np.concatenate(drawn), axis=0)
    assert (drawn[0] != drawn[1]).any()
    assert len(distinct) >= expected

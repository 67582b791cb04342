"""State changes and losses count as in one call of the layer."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from backends import needs
from keras_td import TimeDistributed
from reference import as_numpy
from reference import assert_close
from reference import normal


def total(losses):
    return sum(as_numpy(loss) for loss in losses)


def test_dropout_draws_per_step():
    td = TimeDistributed(layers.Dropout(0.5))
    x = np.ones((2, 50, 40), "float32")

    outputs = as_numpy(td(x, training=True))

    assert len(np.unique(outputs.reshape(100, 40), axis=0)) == 100
    np.testing.assert_allclose((outputs == 0).mean(), 0.5, atol=0.05)
    assert_close(td(x, training=False), ops.convert_to_tensor(x))


@needs("fresh dropout")
def test_the_next_call_draws_anew():
    td = TimeDistributed(layers.Dropout(0.5, seed=3))
    x = np.ones((2, 5, 40), "float32")

    first, second = (
        as_numpy(td(x, training=True)),
        as_numpy(td(x, training=True)),
    )

    assert (first != second).any()


def test_batch_normalization_updates_once_and_pools(rng):
    x = normal(rng, 4, 3, 5)
    td = TimeDistributed(layers.BatchNormalization())
    bare = layers.BatchNormalization()

    outputs = td(x, training=True)

    expected = bare(x.reshape(12, 5), training=True)
    assert_close(outputs, ops.reshape(expected, (4, 3, 5)))
    assert_close(td.layer.moving_mean.value, bare.moving_mean.value)
    assert_close(td.layer.moving_variance.value, bare.moving_variance.value)


@needs("training")
def test_batch_normalization_learns_in_fit(rng):
    x = normal(rng, 8, 3, 5) * 3 + 1
    td = TimeDistributed(layers.BatchNormalization(momentum=0.5))
    model = keras.Sequential([keras.Input((3, 5)), td])
    model.compile("sgd", "mse")

    model.fit(x, x, epochs=20, batch_size=8, verbose=0)

    np.testing.assert_allclose(
        as_numpy(td.layer.moving_mean.value), x.mean((0, 1)), rtol=1e-3
    )


def test_a_frozen_layer_stays(rng):
    td = TimeDistributed(layers.BatchNormalization())
    td.trainable = False
    x = normal(rng, 4, 3, 5)
    td.build(x.shape)
    before = td.get_weights()

    outputs = td(x, training=True)

    for weight, old in zip(td.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    assert td.trainable_weights == []
    np.testing.assert_allclose(as_numpy(outputs), x, atol=1e-2)


def test_an_activity_regularizer_counts_once(rng):
    dense = layers.Dense(4, activity_regularizer=keras.regularizers.L2(0.1))
    td = TimeDistributed(dense)
    x = normal(rng, 4, 3, 5)

    td(x)

    folded = layers.Dense(4, activity_regularizer=keras.regularizers.L2(0.1))
    folded.build((None, 5))
    folded.set_weights(dense.get_weights())
    folded(x.reshape(12, 5))
    assert len(td.losses) == 1
    np.testing.assert_allclose(
        total(td.losses), total(folded.losses), rtol=1e-5
    )


def test_a_weight_regularizer_counts_once(rng):
    td = TimeDistributed(layers.Dense(4, kernel_regularizer="l2"))

    td(normal(rng, 4, 3, 5))

    kernel = as_numpy(td.layer.kernel.value)
    assert len(td.losses) == 1
    np.testing.assert_allclose(
        total(td.losses), 0.01 * (kernel**2).sum(), rtol=1e-5
    )


def test_a_loss_that_the_layer_adds_counts_once(rng):
    class MeanLoss(keras.Layer):
        def call(self, inputs):
            self.add_loss(ops.mean(inputs))
            return inputs

    td, x = TimeDistributed(MeanLoss()), normal(rng, 4, 3, 5)

    td(x)
    td(x)

    assert len(td.losses) == 1
    np.testing.assert_allclose(total(td.losses), x.mean(), atol=1e-6)


@needs("losses of layers")
def test_losses_reach_the_loss_of_a_model(rng):
    regularizer = keras.regularizers.L2(0.1)
    td = TimeDistributed(layers.Dense(4, activity_regularizer=regularizer))
    model = keras.Sequential([keras.Input((3, 5)), td])
    model.compile("sgd", "mse")
    x, y = normal(rng, 4, 3, 5), normal(rng, 4, 3, 4)

    loss = model.evaluate(x, y, batch_size=4, verbose=0)

    outputs = td.layer(x.reshape(-1, 5))
    error = as_numpy(outputs) - y.reshape(-1, 4)
    expected = (error**2).mean() + total(td.layer.losses)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_the_wrapper_may_have_an_activity_regularizer(rng):
    plain = layers.Identity(activity_regularizer="l2")
    td = TimeDistributed(layers.Identity(), activity_regularizer="l2")
    x = normal(rng, 4, 3, 5)

    td(x)
    plain(x)

    np.testing.assert_allclose(total(td.losses), total(plain.losses), rtol=1e-5)


def test_training_reaches_every_layer_inside():
    class Probe(keras.Layer):
        seen = None

        def call(self, inputs, training=None):
            Probe.seen = training
            return inputs

    class NoTrainingArgument(keras.Layer):
        def __init__(self):
            super().__init__()
            self.inner = keras.Sequential([Probe()])

        def call(self, inputs):
            return self.inner(inputs)

    td = TimeDistributed(TimeDistributed(NoTrainingArgument()))

    for training in True, False:
        td(np.ones((2, 3, 4, 5), "float32"), training=training)
        assert Probe.seen is training


def test_a_subclass_may_always_train():
    class AlwaysTraining(TimeDistributed):
        def call(self, inputs):
            return super().call(inputs, training=True)

    x = np.ones((2, 3, 40), "float32")

    outputs = as_numpy(AlwaysTraining(layers.Dropout(0.5))(x))

    assert (outputs == 0).any()


def model_of_one_in_training():
    class OneInTraining(keras.Layer):
        def call(self, inputs, training=None):
            return inputs + 1 if training else inputs

    td = TimeDistributed(OneInTraining())
    model = keras.Sequential([keras.Input((3, 1)), td, layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def test_predict_and_evaluate_do_not_train():
    model, zeros = model_of_one_in_training(), np.zeros((2, 3, 1), "float32")

    assert (model.predict_on_batch(zeros) == 0).all()
    assert model.test_on_batch(zeros, zeros) == 0


@needs("training")
def test_fit_trains():
    model, zeros = model_of_one_in_training(), np.zeros((2, 3, 1), "float32")
    kernel = as_numpy(model.layers[-1].kernel.value).item()

    loss = model.train_on_batch(zeros, zeros)

    np.testing.assert_allclose(loss, kernel**2, rtol=1e-5)


def test_a_stateful_layer_keeps_its_state(rng):
    x = normal(rng, 2, 3, 5, 4)
    td = TimeDistributed(layers.LSTM(4, stateful=True))

    first, second = as_numpy(td(x)), as_numpy(td(x))

    bare = layers.LSTM(4)
    bare.build((6, 5, 4))
    bare.set_weights(td.get_weights())
    twice = bare(np.concatenate([x, x], axis=2).reshape(6, 10, 4))
    np.testing.assert_allclose(second.reshape(6, 4), as_numpy(twice), atol=1e-5)
    assert np.abs(first - second).max() > 1e-3


@needs("training")
def test_enable_lora_trains_only_the_low_ranks(rng):
    td = TimeDistributed(layers.Dense(4))
    model = keras.Sequential([keras.Input((3, 5)), td])
    td.layer.enable_lora(2)
    model.compile("sgd", "mse")
    kernel = as_numpy(td.layer._kernel)

    model.train_on_batch(normal(rng, 4, 3, 5), normal(rng, 4, 3, 4))

    assert len(td.trainable_weights) == 3
    np.testing.assert_array_equal(as_numpy(td.layer._kernel), kernel)
    assert np.any(as_numpy(td.layer.lora_kernel_b))


# Keras warns about every model with an `Input`.
@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have")
def test_quantize_takes_effect(rng):
    td = TimeDistributed(layers.Dense(16))
    model = keras.Sequential([keras.Input((3, 32)), td])
    x = normal(rng, 4, 3, 32)
    before = as_numpy(model(x))

    model.quantize("int8")

    after = as_numpy(model(x))
    assert "int8" in {w.dtype for w in td.weights}
    assert np.abs(after - before).max() > 0
    np.testing.assert_allclose(after, before, atol=0.1)


def test_a_quantized_layer_may_be_wrapped(rng):
    dense = layers.Dense(16)
    dense.build((None, 32))
    dense.quantize("int8")
    x = normal(rng, 4, 3, 32)

    td = TimeDistributed(dense)

    assert td.quantization_mode is None
    assert_close(td(x)[:, 1], dense(x[:, 1]))


@needs("training")
@pytest.mark.parametrize("run_eagerly", [True, False])
def test_fit_decreases_the_loss(run_eagerly, rng):
    x = normal(rng, 16, 4, 6, 6, 1)
    y = np.repeat(x.mean(axis=(2, 3)), 2, axis=-1)
    cnn = keras.Sequential(
        [
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.1),
            layers.Flatten(),
        ]
    )
    model = keras.Sequential(
        [
            TimeDistributed(cnn),
            layers.GRU(8, return_sequences=True),
            TimeDistributed(layers.Dense(2)),
        ]
    )
    adam = keras.optimizers.Adam(0.02)
    model.compile(adam, "mse", run_eagerly=run_eagerly)

    losses = model.fit(x, y, epochs=5, verbose=0).history["loss"]

    assert losses[-1] < losses[0] / 2

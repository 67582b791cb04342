"""Gradients, losses, statistics and random numbers."""

import keras
import numpy as np
from keras import layers
from keras import ops

from oracle import assert_equal
from oracle import cnn
from oracle import model_of
from oracle import normal
from oracle import numpy
from oracle import predict
from own_layers import Block
from own_layers import Penalty
from scenario import scenario


@scenario("A CNN and an LSTM learn: the loss falls")
def _(TimeDistributed):
    model = keras.Sequential([keras.Input((4, 8, 8, 3))])
    model.add(TimeDistributed(cnn()))
    model.add(layers.LSTM(8))
    model.add(layers.Dense(1))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x, y = normal(8, 4, 8, 8, 3), normal(8, 1)
    history = model.fit(x, y, epochs=15, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]


@scenario("One SGD step moves the weights as a loop by hand would")
def _(TimeDistributed):
    x, y = normal(2, 3, 4), normal(2, 3, 5)
    dense, other = layers.Dense(5), layers.Dense(5)
    model = model_of(TimeDistributed(dense), 3, 4)
    inputs = keras.Input((3, 4))
    steps = [other(inputs[:, t]) for t in range(3)]
    loop = keras.Model(inputs, ops.stack(steps, axis=1))
    loop.set_weights(model.get_weights())
    for m in model, loop:
        m.compile(keras.optimizers.SGD(0.1), "mse")
        m.train_on_batch(x, y)
    assert_equal(dense.get_weights(), other.get_weights())


@scenario("A frozen layer stays frozen")
def _(TimeDistributed):
    dense = layers.Dense(4)
    dense.trainable = False
    model = model_of(TimeDistributed(dense), 3, 4)
    model = keras.Sequential([model, layers.Dense(1)])
    model.compile("sgd", "mse")
    before = dense.get_weights()
    model.fit(normal(2, 3, 4), normal(2, 3, 1), verbose=0)
    assert_equal(dense.get_weights(), before)
    assert len(model.trainable_variables) == 2


@scenario("A weight regularizer counts once")
def _(TimeDistributed):
    dense = layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1))
    model = model_of(TimeDistributed(dense), 5, 4)
    model(normal(2, 5, 4))
    expected = 0.1 * np.sum(numpy(dense.kernel) ** 2)
    np.testing.assert_allclose(float(sum(model.losses)), expected, rtol=1e-4)


@scenario("An inner activity regularizer counts")
def _(TimeDistributed):
    for time in 1, 3:
        dense = layers.Dense(3, activity_regularizer=keras.regularizers.L2(0.1))
        layer = TimeDistributed(dense)
        y = numpy(layer(normal(2, time, 4)))
        loss = float(sum(layer.losses))
        assert loss > 0, "no loss"
        if time == 1:
            np.testing.assert_allclose(loss, 0.1 * np.sum(y**2) / 2, rtol=1e-4)


@scenario("`add_loss` of an inner layer counts")
def _(TimeDistributed):
    for time in 1, 3:
        layer = TimeDistributed(Penalty())
        x = normal(2, time, 4)
        layer(x)
        loss = float(sum(layer.losses))
        assert loss > 0, "no loss"
        if time == 1:
            np.testing.assert_allclose(loss, np.mean(x**2), rtol=1e-4)


@scenario("`add_loss` of an inner layer trains, lengths unknown")
def _(TimeDistributed):
    inner = keras.Sequential([layers.Dense(3), Penalty()])
    model = model_of(TimeDistributed(inner), None, 4)
    model.compile("sgd", loss=None)
    assert model.train_on_batch(normal(2, 3, 4)) > 0


@scenario("BatchNormalization updates once for each batch, as in Keras 2")
def _(TimeDistributed):
    norm = layers.BatchNormalization(momentum=0.9)
    model = model_of(TimeDistributed(norm), 5, 3)
    model.compile("sgd", "mse")
    x = 2 + normal(4, 5, 3)
    model.train_on_batch(x, x)
    expected = 0.1 * x.mean((0, 1))
    assert_equal(norm.moving_mean, expected.astype("float32"))


@scenario("Dropout draws new numbers for each step")
def _(TimeDistributed):
    layer = TimeDistributed(layers.Dropout(0.5))
    y = numpy(layer(np.ones((2, 4, 64), "float32"), training=True))
    assert set(np.unique(y)) == {0.0, 2.0}
    steps = {y[:, t].tobytes() for t in range(4)}
    assert len(steps) == 4


@scenario("Dropout draws new numbers for each step, lengths unknown")
def _(TimeDistributed):
    model = model_of(TimeDistributed(layers.Dropout(0.5)), None, 64)
    training = keras.Sequential([keras.Input((None, 64)), model])
    x = np.ones((2, 4, 64), "float32")
    y = numpy(training(x, training=True))
    assert set(np.unique(y)) == {0.0, 2.0}
    assert len({y[:, t].tobytes() for t in range(4)}) == 4


@scenario("Dropout is off in inference")
def _(TimeDistributed):
    x = normal(2, 4, 8)
    model = model_of(TimeDistributed(layers.Dropout(0.5)), 4, 8)
    assert_equal(predict(model, x), x)


@scenario("`training=True` reaches every sublayer")
def _(TimeDistributed):
    inner = keras.Sequential([layers.Dense(8), Block(layers.Dropout(0.5))])
    model = model_of(TimeDistributed(inner), 4, 8)
    x = normal(2, 4, 8)
    assert np.mean(numpy(model(x, training=True)) == 0) > 0.2
    assert np.mean(numpy(model(x, training=False)) == 0) == 0

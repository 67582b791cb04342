"""Padding and its masks."""

import keras
import numpy as np
from keras import layers

from oracle import assert_equal
from oracle import by_hand
from oracle import integers
from oracle import normal
from oracle import numpy
from oracle import padded
from oracle import predict
from scenario import scenario


@scenario("Padded steps change nothing in the LSTM that follows")
def _(TimeDistributed):
    inputs = keras.Input((None, 4))
    x = layers.Masking()(inputs)
    x = TimeDistributed(layers.Dense(3))(x)
    model = keras.Model(inputs, layers.LSTM(2)(x))
    x, _ = padded(normal(2, 6, 4), [4, 4])
    assert_equal(model(x), model(x[:, :4]))


@scenario("The loss leaves padded steps out")
def _(TimeDistributed):
    dense = layers.Dense(3)
    inputs = keras.Input((5, 4))
    outputs = TimeDistributed(dense)(layers.Masking()(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    x, mask = padded(normal(2, 5, 4), [2, 4])
    y = normal(2, 5, 3)
    expected = np.mean((by_hand(dense, x) - y)[mask] ** 2)
    received = model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(received, expected, rtol=1e-4)


@scenario("The mask of the words reaches the LSTM of each sentence")
def _(TimeDistributed):
    lstm = layers.LSTM(3)
    x = normal(2, 3, 5, 4)
    mask = np.arange(5) < np.array([[1, 5, 3], [2, 4, 5]])[..., None]
    received = numpy(TimeDistributed(lstm)(x, mask=mask))
    for b, t in np.ndindex(2, 3):
        words = x[b : b + 1, t, mask[b, t]]
        np.testing.assert_allclose(
            received[b, t], numpy(lstm(words))[0], 1e-4, 1e-5
        )


@scenario("Padded words and sentences change nothing")
def _(TimeDistributed):
    inputs = keras.Input((None, None), dtype="int32")
    x = layers.Embedding(10, 4, mask_zero=True)(inputs)
    x = TimeDistributed(layers.LSTM(3))(x)
    model = keras.Model(inputs, layers.LSTM(2)(x))
    text = integers(10, 2, 3, 4)
    more = np.pad(text, ((0, 0), (0, 2), (0, 3)))
    assert_equal(model(more), model(text))


@scenario("Labels of sentences: the loss leaves padded sentences out")
def _(TimeDistributed):
    inputs = keras.Input((None, None), dtype="int32")
    x = layers.Embedding(10, 4, mask_zero=True)(inputs)
    x = TimeDistributed(layers.LSTM(3))(x)
    model = keras.Model(inputs, x)
    model.compile("sgd", "mse")
    text, labels = integers(10, 2, 3, 4), normal(2, 3, 3)
    expected = np.mean((predict(model, text) - labels) ** 2)
    more = np.pad(text, ((0, 0), (0, 2), (0, 3)))
    labels = np.pad(labels, ((0, 0), (0, 2), (0, 0)), constant_values=9)
    received = model.evaluate(more, labels, verbose=0)
    np.testing.assert_allclose(received, expected, rtol=1e-4)


@scenario("An Embedding inside makes a mask, the next layer sees it")
def _(TimeDistributed):
    inputs = keras.Input((3, None), dtype="int32")
    x = TimeDistributed(layers.Embedding(10, 4, mask_zero=True))(inputs)
    model = keras.Model(inputs, TimeDistributed(layers.LSTM(3))(x))
    text = integers(10, 2, 3, 4)
    more = np.pad(text, ((0, 0), (0, 0), (0, 3)))
    assert_equal(model(more), model(text))


def check_step_mask(TimeDistributed, wrapped, x):
    """Valid steps equal those by hand."""
    x, mask = padded(x, [x.shape[1], 2])
    inputs = keras.Input(x.shape[1:])
    steps = keras.Input(mask.shape[1:], dtype="bool")
    outputs = TimeDistributed(wrapped)(inputs, mask=steps)
    model = keras.Model([inputs, steps], outputs)
    received = predict(model, [x, mask])
    assert_equal(received[mask], by_hand(wrapped, x)[mask])


@scenario("A (batch, time) mask with an LSTM inside")
def _(TimeDistributed):
    check_step_mask(TimeDistributed, layers.LSTM(3), normal(2, 4, 5, 3))


@scenario("A (batch, time) mask with a Bidirectional inside")
def _(TimeDistributed):
    inner = layers.Bidirectional(layers.LSTM(3))
    check_step_mask(TimeDistributed, inner, normal(2, 4, 5, 3))


@scenario("A (batch, time) mask with a ConvLSTM inside")
def _(TimeDistributed):
    inner = layers.ConvLSTM2D(2, 3)
    check_step_mask(TimeDistributed, inner, normal(2, 4, 3, 5, 5, 2))


def check_batch_norm(TimeDistributed, *shape):
    """Values at padded steps reach neither outputs nor statistics."""
    x, mask = padded(normal(*shape), [4, 2])
    outcomes = []
    for padding in 0.0, 9.0:
        norm = layers.BatchNormalization(axis=-1)
        filled = np.where(mask.reshape(2, 4, *[1] * (x.ndim - 2)), x, padding)
        filled = filled.astype("float32")
        outputs = TimeDistributed(norm)(filled, mask=mask, training=True)
        statistics = [norm.moving_mean, norm.moving_variance]
        outcomes.append([numpy(outputs)[mask], *numpy(statistics)])
    assert_equal(outcomes[0], outcomes[1])


@scenario("BatchNormalization of vectors leaves padded steps out")
def _(TimeDistributed):
    check_batch_norm(TimeDistributed, 2, 4, 3)


@scenario("BatchNormalization of frames leaves padded frames out")
def _(TimeDistributed):
    check_batch_norm(TimeDistributed, 2, 4, 5, 5, 3)


@scenario("Each of two inputs has its own mask")
def _(TimeDistributed):
    attention = layers.Attention()
    query, value = normal(2, 3, 4, 5), normal(2, 3, 6, 5)
    masks = [np.ones((2, 3, 4), bool), np.ones((2, 3, 6), bool)]
    masks[1][..., 4:] = False
    received = TimeDistributed(attention)([query, value], mask=masks)
    assert_equal(received, by_hand(attention, [query, value[:, :, :4]]))


@scenario("A mask shorter than the input raises a clear error")
def _(TimeDistributed):
    layer = TimeDistributed(layers.Dense(3))
    message = ""
    try:
        layer(normal(2, 5, 4), mask=np.ones((2, 4), bool))
    except ValueError as error:
        message = str(error)
    assert "mask" in message
    assert "2, 4" in message

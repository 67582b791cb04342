"""Which layers can be wrapped."""

import keras
import numpy as np
from keras import layers
from keras import ops

from oracle import assert_equal
from oracle import by_hand
from oracle import check
from oracle import cnn
from oracle import integers
from oracle import model_of
from oracle import normal
from oracle import predict
from own_layers import Block
from own_layers import Scale
from own_layers import Twice
from scenario import scenario


@scenario("A Dense head answers at each step")
def _(TimeDistributed):
    dense = layers.Dense(3, activation="softmax")
    check(TimeDistributed(dense), dense, normal(2, 5, 4))


@scenario("A CNN over the frames of a video")
def _(TimeDistributed):
    conv = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")
    check(TimeDistributed(conv), conv, normal(2, 4, 8, 8, 3))


@scenario("An unbuilt Sequential encodes each frame")
def _(TimeDistributed):
    encoder = cnn()
    check(TimeDistributed(encoder), encoder, normal(2, 4, 8, 8, 3))


@scenario("A functional model encodes each frame")
def _(TimeDistributed):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(3, 3, padding="same")(image)
    x = layers.Flatten()(layers.Add()([x, image]))
    encoder = keras.Model(image, layers.Dense(4)(x))
    check(TimeDistributed(encoder), encoder, normal(2, 4, 8, 8, 3))


@scenario("An LSTM sums up the words of each sentence")
def _(TimeDistributed):
    lstm = layers.LSTM(4)
    check(TimeDistributed(lstm), lstm, normal(2, 3, 5, 4))


@scenario("A Bidirectional GRU reads the words of each sentence")
def _(TimeDistributed):
    gru = layers.Bidirectional(layers.GRU(3, return_sequences=True))
    check(TimeDistributed(gru), gru, normal(2, 3, 5, 4))


@scenario("A TimeDistributed in a TimeDistributed")
def _(TimeDistributed):
    dense = layers.Dense(3)
    x = normal(2, 3, 4, 5)
    model = model_of(TimeDistributed(TimeDistributed(dense)), 3, 4, 5)
    kernel, bias = dense.get_weights()
    assert_equal(predict(model, x), x @ kernel + bias)


@scenario("A custom layer with weights")
def _(TimeDistributed):
    scale = Scale()
    check(TimeDistributed(scale), scale, normal(2, 3, 4))


@scenario("A layer made of layers, without its own `build`")
def _(TimeDistributed):
    block = Block(layers.Dense(4, activation="tanh"), layers.Dense(4))
    x = normal(2, 3, 4)
    model = model_of(TimeDistributed(block), 3, 4)
    assert_equal(predict(model, x), by_hand(block, x))
    assert len(model.trainable_variables) == 4


@scenario("A layer without `compute_output_shape`")
def _(TimeDistributed):
    twice = Twice()
    check(TimeDistributed(twice), twice, normal(2, 3, 4))


@scenario("uint8 frames through Rescaling")
def _(TimeDistributed):
    rescaling = layers.Rescaling(1 / 255)
    x = integers(255, 2, 3, 4, 4, 3).astype("uint8")
    check(TimeDistributed(rescaling), rescaling, x)


@scenario("A Normalization that was adapted")
def _(TimeDistributed):
    normalization = layers.Normalization()
    x = 3 + 2 * normal(2, 5, 4)
    normalization.adapt(x.reshape(-1, 4))
    layer = TimeDistributed(normalization)
    y = predict(model_of(layer, 5, 4), x)
    expected = (x - x.mean((0, 1))) / x.std((0, 1))
    np.testing.assert_allclose(y, expected, 1e-3, 1e-4)


@scenario("A Lambda makes one number of each step")
def _(TimeDistributed):
    mean = layers.Lambda(lambda x: ops.mean(x, axis=-1), output_shape=())
    check(TimeDistributed(mean), mean, normal(2, 3, 4))


@scenario("A model that ends in an argmax gives integers")
def _(TimeDistributed):
    inputs = keras.Input((5, 4))
    argmax = keras.Model(inputs, ops.argmax(inputs, axis=-1))
    model = model_of(TimeDistributed(argmax), 3, 5, 4)
    x = normal(2, 3, 5, 4)
    assert "int" in keras.backend.standardize_dtype(model.output.dtype)
    assert_equal(predict(model, x), by_hand(argmax, x))


@scenario("A backbone with BatchNormalization, in inference")
def _(TimeDistributed):
    backbone = keras.Sequential([layers.Conv2D(2, 3), Scale()])
    backbone.add(layers.BatchNormalization())
    model = model_of(TimeDistributed(backbone), 3, 6, 6, 1)
    backbone.set_weights([1 + normal(*w.shape) ** 2 for w in backbone.weights])
    x = normal(2, 3, 6, 6, 1)
    assert_equal(predict(model, x), by_hand(backbone, x, training=False))

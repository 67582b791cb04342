"""A model has its layers and weights in the same order as in Keras, so that the
weights of either load into the other."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_td import TimeDistributed
from reference import normal


def ids(*shape):
    return keras.Input(shape, dtype="int32")


def embed(cls=None, size=8):
    embedding = layers.Embedding(20, size, mask_zero=True)
    return cls(embedding) if cls else embedding


def bilstm(units=4, **options):
    return layers.Bidirectional(layers.LSTM(units, **options))


def questions_and_answers(cls):
    q, a = ids(6), ids(6)
    x = layers.LSTM(4)(layers.Dense(5)(embed()(q)))
    y = layers.LSTM(4)(cls(layers.Dense(5))(embed()(a)))
    return keras.Model([q, a], layers.Concatenate()([x, y]))


def tagger_of_words_and_characters(cls):
    words, characters = ids(5), ids(5, 7)
    y = cls(bilstm())(embed(cls)(characters))
    x = layers.Concatenate()([embed()(words), y])
    x = bilstm(return_sequences=True)(x)
    return keras.Model([words, characters], cls(layers.Dense(3))(x))


def tagger_of_characters_and_words(cls):
    words, characters = ids(None), ids(None, None)
    y = cls(layers.GRU(8))(embed(cls)(characters))
    x = layers.Add()([y, embed()(words)])
    x = layers.LSTM(8, return_sequences=True)(x)
    return keras.Model([characters, words], cls(layers.Dense(3))(x))


def tagger_with_a_convolution(cls):
    words, characters = ids(5), ids(5, 7)
    y = cls(layers.Conv1D(8, 3))(embed(cls)(characters))
    y = cls(layers.Flatten())(cls(layers.GlobalMaxPooling1D())(y))
    x = layers.Concatenate()([layers.Dropout(0.5)(embed()(words)), y])
    x = bilstm(return_sequences=True)(x)
    return keras.Model([words, characters], cls(layers.Dense(3))(x))


def two_documents(cls):
    def encode(inputs):
        x = cls(keras.Sequential([embed(), layers.LSTM(4)]))(inputs)
        return layers.LSTM(4)(cls(layers.Dense(4))(x))

    a, b = ids(3, 6), ids(3, 6)
    x = layers.Dense(4)(encode(a))
    return keras.Model([a, b], layers.Subtract()([x, encode(b)]))


def two_documents_embedded_outside(cls):
    a, b = ids(3, 4), ids(3, 4)
    x = cls(layers.LSTM(4))(layers.Dense(4)(embed()(a)))
    y = cls(layers.Dense(4))(cls(layers.LSTM(4))(embed()(b)))
    x = layers.Concatenate()([x, y])
    return keras.Model([a, b], cls(layers.Dense(3))(x))


def masked_series(cls):
    a, b = keras.Input((None, 5)), keras.Input((None, 5))
    x = layers.Masking()(layers.Dense(5)(a))
    x = cls(layers.Dense(5))(x)
    y = cls(layers.Dense(5))(layers.Dense(5)(layers.Masking()(b)))
    z = layers.Multiply()([x, cls(layers.Dense(5, "tanh"))(y)])
    return keras.Model([b, a], layers.GRU(3)(z))


def one_wrapper_twice(cls):
    a, b = ids(6), ids(6)
    td = cls(layers.Dense(8))
    x, y = td(embed()(a)), layers.Dense(8)(td(embed()(b)))
    return keras.Model([a, b], layers.LSTM(4)(layers.Maximum()([x, y])))


# Both see the same masks, and predict the same.
SAME = [questions_and_answers, masked_series, one_wrapper_twice]
# Keras's own layer loses masks.
OTHER = [
    tagger_of_words_and_characters,
    tagger_of_characters_and_words,
    tagger_with_a_convolution,
    two_documents,
    two_documents_embedded_outside,
]


def models(build):
    keras.utils.set_random_seed(0)
    stock = build(layers.TimeDistributed)
    keras.utils.set_random_seed(1)
    return stock, build(TimeDistributed)


@pytest.mark.parametrize("build", SAME + OTHER)
@pytest.mark.parametrize("way", ["from Keras", "to Keras"])
def test_weights_load_into_their_layers(build, way, tmp_path):
    stock, own = models(build)
    source, target = (stock, own) if way == "from Keras" else (own, stock)

    classes = [[type(x).__name__ for x in m.layers] for m in models(build)]
    assert classes[0] == classes[1]
    source.save_weights(tmp_path / "model.weights.h5")
    target.load_weights(tmp_path / "model.weights.h5")

    loaded = target.get_weights()
    for weights, expected in zip(loaded, source.get_weights(), strict=True):
        np.testing.assert_array_equal(weights, expected)
    # The same weights by their order, too.
    target.set_weights(source.get_weights())
    for weights, expected in zip(target.get_weights(), loaded, strict=True):
        np.testing.assert_array_equal(weights, expected)


@pytest.mark.parametrize("build", SAME)
def test_a_model_with_the_weights_of_keras_predicts_the_same(
    build, rng, tmp_path
):
    stock, own = models(build)
    stock.save_weights(tmp_path / "model.weights.h5")
    own.load_weights(tmp_path / "model.weights.h5")
    if stock.inputs[0].dtype == "int32":
        x = [rng.integers(0, 20, (2, 6)) for _ in "12"]
    else:
        x = [normal(rng, 2, 6, 5) for _ in "12"]
        x[0][:, 4:] = x[1][:, 4:] = 0

    np.testing.assert_allclose(
        own.predict_on_batch(x), stock.predict_on_batch(x), atol=1e-6
    )

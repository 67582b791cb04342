"""Attention over the words of each sentence, as in public models."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from backends import needs
from custom import Attention
from custom import MaskedAttention
from keras_td import TimeDistributed
from modes import MODES
from modes import each_kind
from reference import as_numpy

VOCABULARY = 20


def encoder(features, attention, words=None):
    return keras.Sequential(
        [
            keras.Input((words,), dtype="int32"),
            layers.Embedding(VOCABULARY, 5, mask_zero=True),
            layers.GRU(features, return_sequences=True),
            attention(),
        ]
    )


def document_of_ids(rng):
    ids = rng.integers(1, VOCABULARY, (2, 3, 7))
    ids[0, 1, 4:] = 0
    ids[0, 2] = 0
    ids[1, 1:] = 0
    return ids


# Mistakes hide where there are as many features as words, and as units of the
# next layer.
@pytest.mark.parametrize(
    ("next_layer", "features", "attention"),
    [
        (layers.GRU, 4, Attention),
        (layers.GRU, 7, MaskedAttention),
        (layers.LSTM, 7, Attention),
        (layers.LSTM, 7, MaskedAttention),
    ],
)
@pytest.mark.parametrize("known", [True, False])
@each_kind
def test_hierarchical_attention_is_that_of_each_sentence(
    option, known, next_layer, attention, features, rng
):
    ids = document_of_ids(rng)
    encode = encoder(features, attention, 7 if known else None)
    read = next_layer(features)
    inputs = keras.Input((3, 7) if known else (None, None), dtype="int32")
    td = TimeDistributed(encode, **MODES[option])
    model = keras.Model(inputs, read(td(inputs)))

    actual = model.predict_on_batch(ids)

    np.testing.assert_allclose(as_numpy(model(ids)), actual, atol=1e-6)
    for prediction, document in zip(actual, ids, strict=True):
        vectors = [encode(s[None]) for s in document if s.any()]
        expected = read(ops.stack(vectors, axis=1))
        np.testing.assert_allclose(prediction, as_numpy(expected)[0], atol=1e-5)


class Hops(keras.Layer):
    """Structured self-attention: several vectors of a sentence of words."""

    def __init__(self, hops):
        super().__init__()
        self.supports_masking = True
        self.scores = layers.Dense(hops)

    def build(self, input_shape):
        self.scores.build(input_shape)

    def call(self, inputs, mask=None):
        scores = self.scores(inputs)
        if mask is not None:
            scores = ops.where(mask[:, :, None], scores, -1e9)
        weights = ops.transpose(ops.softmax(scores, axis=1), (0, 2, 1))
        return ops.matmul(weights, inputs)


@pytest.mark.parametrize("words", [7, None])
@pytest.mark.parametrize("sentences", [3, None])
@each_kind
def test_a_mask_of_words_does_not_leave_on_other_vectors(
    option, sentences, words, rng
):
    ids = document_of_ids(rng)
    ids[0, 1, 2:] = 0  # fewer words than vectors
    embedding = layers.Embedding(VOCABULARY, 5, mask_zero=True)
    hops, read = Hops(4), layers.GRU(2)
    inputs = keras.Input((sentences, words), dtype="int32")
    vectors = TimeDistributed(hops, **MODES[option])(embedding(inputs))
    model = keras.Model(inputs, TimeDistributed(read)(vectors))

    actual = model.predict_on_batch(ids)

    np.testing.assert_allclose(as_numpy(model(ids)), actual, atol=1e-6)
    for d, t in zip(*np.nonzero(ids.any(axis=2)), strict=True):
        sentence = ids[d, t][ids[d, t] > 0][None]
        vectors_of_it = np.array(as_numpy(hops(embedding(sentence))))
        expected = read(vectors_of_it)  # a copy, which has no mask
        np.testing.assert_allclose(
            actual[d, t], as_numpy(expected)[0], atol=1e-5
        )


@needs("training")
@pytest.mark.parametrize("attention", [Attention, MaskedAttention])
def test_hierarchical_attention_trains(attention, rng):
    model = keras.Sequential(
        [
            keras.Input((3, 7), dtype="int32"),
            TimeDistributed(encoder(4, attention)),
            layers.GRU(2),
        ]
    )
    model.compile("sgd", "mse")

    loss = model.fit(document_of_ids(rng), np.ones((2, 2)), verbose=0)

    assert np.isfinite(loss.history["loss"]).all()

"""Words make sentences and sentences make documents, with any padding."""

import keras
import numpy as np
from keras import layers
from keras import ops

from backends import needs
from keras_td import TimeDistributed
from masked import IDS
from masked import padded
from reference import as_numpy
from reference import assert_close


def document_model(sentences=None, words=None):
    return keras.Sequential(
        [
            keras.Input((sentences, words), dtype="int32"),
            TimeDistributed(layers.Embedding(9, 4, mask_zero=True)),
            TimeDistributed(layers.LSTM(5)),
            layers.LSTM(3),
        ]
    )


def test_padded_words_and_sentences_change_nothing():
    model = document_model()

    bare, more = (
        model.predict_on_batch(IDS),
        model.predict_on_batch(padded(IDS)),
    )
    eager = as_numpy(model(padded(IDS)))

    np.testing.assert_allclose(more, bare, atol=1e-6)
    np.testing.assert_allclose(eager, bare, atol=1e-6)


def test_a_document_equals_its_sentences_one_by_one():
    model = document_model()
    _, lstm, document_lstm = model.layers
    embedding = model.layers[0].layer
    for ids, prediction in zip(IDS, model.predict_on_batch(IDS), strict=True):
        vectors = [
            lstm.layer(embedding(sentence[sentence != 0][None]))
            for sentence in ids
            if sentence.any()
        ]
        expected = document_lstm(ops.stack(vectors, axis=1))
        assert_close(ops.convert_to_tensor(prediction[None]), expected)


@needs("training")
def test_padding_does_not_change_training():
    losses = []
    for ids in IDS, padded(IDS):
        keras.utils.set_random_seed(1)
        model = document_model()
        model.compile("sgd", "mse")
        targets = np.ones((2, 3), "float32")
        for _ in range(3):
            loss = model.train_on_batch(ids, targets)
        losses.append(float(loss))

    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_padding_changes_nothing_inside_a_sequential_encoder():
    encoder = keras.Sequential(
        [layers.Embedding(9, 4, mask_zero=True), layers.LSTM(5)]
    )
    model = keras.Sequential(
        [keras.Input((None, None), dtype="int32"), TimeDistributed(encoder)]
    )

    bare, more = (
        model.predict_on_batch(IDS),
        model.predict_on_batch(padded(IDS)),
    )

    np.testing.assert_allclose(more[:, :2], bare, atol=1e-6)


def test_masks_pass_through_models_in_a_functional_model():
    ids = keras.Input((None, None), dtype="int32")
    x = TimeDistributed(layers.Embedding(9, 4, mask_zero=True))(ids)
    stack = keras.Sequential([layers.Dense(4, "relu"), layers.Dense(4)])
    x = TimeDistributed(stack)(x)
    x = TimeDistributed(layers.LSTM(5))(x)
    model = keras.Model(ids, layers.LSTM(3)(x))

    bare, more = (
        model.predict_on_batch(IDS),
        model.predict_on_batch(padded(IDS)),
    )

    np.testing.assert_allclose(more, bare, atol=1e-6)

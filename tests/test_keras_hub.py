"""Models with a text encoder of KerasHub are upgraded."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras.layers import TimeDistributed as Stock

import keras_td
from backends import needs
from reference import assert_close

hub = pytest.importorskip("keras_hub", reason="`nox -s keras_hub` installs it")


def documents():
    """Reads sentences with BERT, and documents with an LSTM."""
    bert = hub.models.BertBackbone(
        vocabulary_size=50,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=6,
    )
    tokens = keras.Input((6,), dtype="int32")
    features = {
        "token_ids": tokens,
        "segment_ids": ops.zeros_like(tokens),
        "padding_mask": ops.not_equal(tokens, 0),
    }
    encoder = keras.Model(tokens, bert(features)["pooled_output"])
    sentences = keras.Input((3, 6), dtype="int32")
    document = layers.LSTM(4)(Stock(encoder)(sentences))
    model = keras.Model(sentences, layers.Dense(2)(document))
    model.compile("adam", "mse")
    return model


@needs("training")
def test_a_model_that_reads_sentences_with_bert_is_upgraded(tmp_path):
    old, tokens = (
        documents(),
        np.random.default_rng(0).integers(1, 50, (2, 3, 6)),
    )
    targets = np.ones((2, 2))
    old.train_on_batch(tokens, targets)

    new = keras_td.upgrade(old)
    new.save(tmp_path / "new.keras")
    loaded = keras.saving.load_model(tmp_path / "new.keras")

    for model in new, loaded:
        assert type(model.layers[1]) is keras_td.TimeDistributed
        assert_close(model(tokens), old(tokens))

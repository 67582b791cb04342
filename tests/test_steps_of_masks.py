"""Masks of steps, of words, and of layers that read them in their own way."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_td import TimeDistributed
from masked import IDS
from masked import SENTENCES
from masked import WORDS
from masked import Recorder
from masked import assert_equal
from reference import as_numpy
from reference import assert_close
from reference import loop
from reference import mask_of
from reference import normal


def test_a_mask_of_one_sample_serves_all(rng):
    x, lstm = normal(rng, 2, 2, 3, 4), TimeDistributed(layers.LSTM(4))

    outputs = lstm(x, mask=WORDS[:1])

    assert_close(outputs, lstm(x, mask=np.repeat(WORDS[:1], 2, axis=0)))


CHANNELS_FIRST = {
    "ConvLSTM2D": (
        lambda: layers.ConvLSTM2D(2, 3, data_format="channels_first"),
        (3, 2, 6, 6),
    ),
    "pooling": (
        lambda: layers.GlobalAveragePooling1D(data_format="channels_first"),
        (4, 3),
    ),
    "a model of pooling": (
        lambda: keras.Sequential(
            [layers.GlobalAveragePooling1D(data_format="channels_first")]
        ),
        (4, 3),
    ),
    "normalization": (
        lambda: layers.BatchNormalization(axis=1),
        (4, 5, 3),
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CHANNELS_FIRST)
def test_a_mask_of_steps_serves_channels_that_come_first(name, training, rng):
    if "ConvLSTM" in name and keras.backend.backend() == "tensorflow":
        pytest.skip(reason="TensorFlow has no such convolution on a CPU")
    make, shape = CHANNELS_FIRST[name]
    layer, x = make(), normal(rng, 2, 2, *shape)
    filled = np.where(SENTENCES.reshape(2, 2, *[1] * len(shape)), x, 9)

    outputs = as_numpy(
        TimeDistributed(layer)(filled, mask=SENTENCES, training=training)
    )

    bare = make()
    bare.build((None, *shape))
    bare.set_weights(layer.get_weights())
    valid = x[SENTENCES]
    if name == "normalization" and training:
        mean = valid.mean(axis=(0, 2, 3), keepdims=True)
        variance = valid.var(axis=(0, 2, 3), keepdims=True)
        expected = (valid - mean) / np.sqrt(variance + bare.epsilon)
    else:
        expected = as_numpy(bare(valid, training=training))
    np.testing.assert_allclose(outputs[SENTENCES], expected, atol=1e-5)


def test_words_of_channels_that_come_first_have_a_mask(rng):
    pool = layers.GlobalAveragePooling1D(data_format="channels_first")
    x = normal(rng, 2, 2, 4, 3)

    outputs = TimeDistributed(pool)(x, mask=WORDS)

    for t in range(2):
        expected = as_numpy(pool(x[:, t], mask=ops.array(WORDS[:, t])))
        valid = SENTENCES[:, t]
        np.testing.assert_allclose(
            as_numpy(outputs)[:, t][valid], expected[valid], atol=1e-6
        )


def test_an_attribute_does_not_make_a_bidirectional():
    layer = Recorder()
    layer.forward_layer = layers.LSTM(3)
    layer.forward_layer.build((None, None, 4))
    mask = WORDS[..., None] & np.ones((2, 2, 3, 4), bool)

    TimeDistributed(layer)(np.ones((2, 2, 3, 4, 5), "float32"), mask=mask)

    assert layer.masks[0].shape == (4, 3, 4)


def test_a_mask_of_inner_steps_is_that_of_each_step(rng):
    x, lstm = normal(rng, 2, 2, 3, 4), layers.LSTM(4)

    actual = TimeDistributed(lstm)(x, mask=WORDS)

    for t in range(2):
        assert_close(actual[:, t], lstm(x[:, t], mask=ops.array(WORDS[:, t])))


def test_a_recurrent_layer_sees_no_mask_of_whole_steps(rng):
    x, lstm = normal(rng, 2, 2, 3, 4), layers.LSTM(4)

    outputs = TimeDistributed(lstm)(x, mask=SENTENCES)

    assert_close(outputs, TimeDistributed(lstm)(x))
    assert_equal(mask_of(outputs), SENTENCES)


def test_a_mask_of_higher_rank_is_one_of_inner_steps(rng):
    x, lstm = normal(rng, 2, 2, 3, 4), layers.LSTM(4)
    mask = WORDS[..., None] & (rng.random(x.shape) < 0.5)
    td = TimeDistributed(lstm)

    assert_close(td(x, mask=mask), td(x, mask=mask.any(axis=-1)))


def test_a_softmax_takes_a_mask_of_lower_rank(rng):
    x, softmax = normal(rng, 2, 2, 3, 4), layers.Softmax(axis=1)

    actual = TimeDistributed(softmax)(x, mask=WORDS)

    for t in range(2):
        mask = np.repeat(WORDS[:, t, :, None], 4, axis=-1)
        expected = softmax(x[:, t], mask=ops.array(mask))
        assert_close(actual[:, t], expected)


def test_a_softmax_takes_a_mask_of_numbers(rng):
    softmax, x = layers.Softmax(), normal(rng, 2, 3, 4)
    mask = rng.uniform(0.1, 0.9, (2, 3, 4)).astype("float32")

    outputs = TimeDistributed(softmax)(x, mask=mask)

    expected = softmax(x.reshape(6, 4), mask=mask.reshape(6, 4))
    assert_close(outputs, ops.reshape(expected, (2, 3, 4)))


def test_the_inner_axes_of_a_mask_are_the_layers_own():
    recorder = Recorder()

    TimeDistributed(recorder)(np.ones((2, 2, 3, 4)), mask=IDS[..., :1] > 0)

    assert recorder.masks[0].shape == (4, 1)


@pytest.mark.parametrize(
    "wrap", [lambda x: x, layers.Bidirectional], ids=["", "Bidirectional"]
)
def test_a_convolutional_rnn_takes_a_mask_of_steps(wrap, rng):
    x = normal(rng, 2, 2, 3, 6, 6, 2)
    layer = wrap(layers.ConvLSTM2D(2, 3))
    td = TimeDistributed(layer)

    outputs = td(x, mask=WORDS)

    assert_equal(mask_of(outputs), SENTENCES)
    for t in range(2):
        # By hand, JAX needs the inner axes.
        mask = ops.array(WORDS[:, t, :, None, None, None])
        assert_close(outputs[:, t], layer(x[:, t], mask=mask))
    by_step = td(x, mask=SENTENCES)
    np.testing.assert_allclose(
        as_numpy(by_step)[SENTENCES], as_numpy(td(x))[SENTENCES], atol=1e-6
    )


def softmax_of_tags(classes):
    return keras.Sequential([layers.Dense(classes), layers.Softmax()])


class OwnSoftmax(keras.Layer):
    def __init__(self):
        super().__init__()
        self.supports_masking = True
        self.model = softmax_of_tags(4)

    def call(self, inputs, mask=None):
        return self.model(inputs, mask=mask)


MISREAD = {
    "as many classes as steps": (lambda: softmax_of_tags(4), (5,)),
    "more classes than steps": (lambda: softmax_of_tags(6), (5,)),
    "inner steps": (lambda: softmax_of_tags(4), (6, 5)),
    "a custom layer": (OwnSoftmax, (5,)),
    "attention over images": (
        lambda: layers.MultiHeadAttention(2, 4, attention_axes=(1, 2)),
        (4, 4, 6),
    ),
    "a ConvLSTM": (
        lambda: keras.Sequential([layers.ConvLSTM2D(2, 3)]),
        (3, 6, 6, 1),
    ),
    "channels first": (
        lambda: layers.GlobalAveragePooling1D(data_format="channels_first"),
        (5, 4),
    ),
}


@pytest.mark.parametrize("name", MISREAD)
def test_a_mask_of_steps_changes_no_valid_step(name, rng):
    make, shape = MISREAD[name]
    layer, x = make(), normal(rng, 2, 2, *shape)
    args = (x, x) if "attention" in name else (x,)

    outputs = TimeDistributed(layer)(*args, mask=SENTENCES)

    assert_equal(mask_of(outputs), SENTENCES)
    expected = as_numpy(loop(layer, *args))
    np.testing.assert_allclose(
        as_numpy(outputs)[SENTENCES], expected[SENTENCES], atol=1e-6
    )


def test_a_model_with_a_recurrent_layer_gets_a_mask_of_its_steps(rng):
    x = normal(rng, 2, 2, 3, 6, 6, 2)
    layer = keras.Sequential([layers.ConvLSTM2D(2, 3)])
    filled = np.where(WORDS[..., None, None, None], x, 9)
    # By hand, other backends need the inner axes.
    as_it_is = keras.backend.backend() in ("tensorflow", "torch")
    mask = WORDS if as_it_is else WORDS[..., None, None, None]

    outputs = TimeDistributed(layer)(filled, mask=mask)

    assert_close(outputs, TimeDistributed(layer)(x, mask=mask))

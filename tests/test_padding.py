"""Padding changes no output, gradient, statistic or loss of valid steps, and
never makes NaN."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from backends import needs
from custom import Attention
from custom import MaskedAttention
from custom import norm
from keras_td import TimeDistributed
from modes import KINDS
from modes import MODES
from modes import names_and_options
from reference import as_numpy
from reference import assert_close
from reference import gradients
from reference import mask_of
from reference import normal

SENTENCES, WORDS, FEATURES = 3, 4, 5
LENGTHS = np.array([[4, 2, 1], [3, 0, 0]])
# So calls on a few steps at a time see the same valid ones.
MORE_SENTENCES, MORE_WORDS = 6, 2


class Mean(keras.Layer):
    """As in public code: it divides by the number of valid words."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True

    def call(self, inputs, mask=None):
        if mask is None:
            return ops.mean(inputs, axis=1)
        mask = ops.cast(mask, inputs.dtype)[..., None]
        return ops.sum(inputs * mask, axis=1) / ops.sum(mask, axis=1)

    def compute_mask(self, inputs, mask=None):
        return None


class CuDNN(layers.LSTM):
    """Rejects what cuDNN rejects."""

    def call(self, sequences, initial_state=None, mask=None, training=False):
        if mask is not None and not isinstance(mask, keras.KerasTensor):
            nothing = ops.logical_not(ops.any(mask, axis=1, keepdims=True))
            no_number = ops.where(nothing, np.nan, 0.0)[..., None]
            sequences = sequences + ops.cast(no_number, sequences.dtype)
        return super().call(sequences, initial_state, mask, training)


def sequential(*makers):
    return lambda: keras.Sequential([make() for make in makers])


def lstm():
    return layers.LSTM(3)


def dense():
    return layers.Dense(4, "tanh")


class Residual(keras.Model):
    """A custom model that keeps its layers as attributes."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(FEATURES)
        self.norm = norm()
        self.pool = layers.GlobalAveragePooling1D()

    def call(self, inputs, training=None, mask=None):
        x = inputs + self.norm(self.dense(inputs), training=training, mask=mask)
        return self.pool(x, mask=mask)


# Layers of sentences, of shape `(words, features)`.
OF_WORDS = {
    "LSTM": lstm,
    "LSTM on cuDNN": lambda: CuDNN(3),
    "GRU of sequences": lambda: layers.GRU(3, return_sequences=True),
    "Bidirectional": lambda: layers.Bidirectional(layers.GRU(3)),
    "GlobalAveragePooling1D": layers.GlobalAveragePooling1D,
    "BatchNormalization": norm,
    "attention of a user's own": MaskedAttention,
    "mean of a user's own": Mean,
    "dense, LSTM": sequential(dense, lstm),
    "norm, LSTM on cuDNN": sequential(norm, lambda: CuDNN(3)),
    "norm, pooling": sequential(norm, layers.GlobalAveragePooling1D),
    "LSTM, norm": sequential(lstm, norm),
    "dense, attention, dense, norm": sequential(
        dense, MaskedAttention, dense, norm
    ),
    "residual model": Residual,
    "norm in a wrapper, pooling": sequential(
        lambda: TimeDistributed(sequential(dense, norm)()),
        layers.GlobalAveragePooling1D,
    ),
}


# Layers for which only whole sentences may be padding, as some ignore masks.
OF_SENTENCES = {
    **OF_WORDS,
    "attention that reads no mask": Attention,
    "convolution, norm, pooling": sequential(
        lambda: layers.Conv1D(4, 3),
        norm,
        layers.GlobalAveragePooling1D,
    ),
    "flat, norm, dense": sequential(layers.Flatten, dense, norm, dense),
}


def sentences(rng):
    """Sentences, which words are valid, and the same with more padding."""
    lengths = np.pad(LENGTHS, ((0, 0), (0, MORE_SENTENCES)))
    words = np.arange(WORDS + MORE_WORDS) < lengths[..., None]
    x = normal(rng, *words.shape, FEATURES)
    few = np.s_[:, :SENTENCES, :WORDS]
    padded = np.where(words[..., None], x, 7).astype("float32")
    return padded[few], words[few], padded, words


def found(make, option, x, mask):
    """Outputs, gradients and state after a call in training."""
    keras.utils.set_random_seed(0)
    layer = make()
    td = TimeDistributed(layer, **MODES[option])
    td.build(x.shape)
    # On JAX, gradients come from a function without side effects.
    outputs = as_numpy(td(x, mask=mask, training=True))
    state = [as_numpy(v) for v in layer.non_trainable_variables]
    valid = mask.any(axis=tuple(range(2, mask.ndim)))
    outputs, weights = outputs[valid], layer.trainable_variables

    def loss():
        y = td(x, mask=mask, training=True)
        y = ops.reshape(y, (*valid.shape, -1, y.shape[-1]))
        if y.shape[2] > 1:
            y = y[:, :, :WORDS]
            inner = mask[:, :, :WORDS] if mask.ndim > 2 else valid[..., None]
        else:
            inner = valid[..., None]
        return ops.sum(ops.sin(y) * ops.cast(inner, "float32")[..., None])

    found_gradients = gradients(loss, weights) if weights else []
    return outputs, state, found_gradients


def assert_alike(few, more):
    few, more = ([y, *state, *grads] for y, state, grads in (few, more))
    if few[0].ndim == 3:
        more[0] = more[0][:, : few[0].shape[1]]
    for a, b in zip(few, more, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


@needs("training")
@names_and_options(OF_WORDS, KINDS)
def test_padded_words_and_sentences_change_nothing(name, option, rng):
    x, words, padded, more_words = sentences(rng)

    few = found(OF_WORDS[name], option, x, words)
    more = found(OF_WORDS[name], option, padded, more_words)

    assert_alike(few, more)


@needs("training")
@names_and_options(OF_SENTENCES, KINDS)
def test_padded_sentences_change_nothing(name, option, rng):
    x, words, _, more_words = sentences(rng)
    valid, more_valid = words.any(axis=-1), more_words.any(axis=-1)
    padding = ((0, 0), (0, MORE_SENTENCES), (0, 0), (0, 0))
    padded = np.pad(x, padding, constant_values=7)
    padded[:, :SENTENCES][~valid] = 7

    few = found(OF_SENTENCES[name], option, x, valid)
    more = found(OF_SENTENCES[name], option, padded, more_valid)

    assert_alike(few, more)


@pytest.mark.parametrize("name", OF_WORDS)
def test_zeros_leave_where_a_sentence_is_padding(name, rng):
    if name == "BatchNormalization":
        pytest.skip(reason="it computes each word of a sentence on its own")
    x, words, _, _ = sentences(rng)

    outputs = TimeDistributed(OF_WORDS[name]())(x, mask=words)

    nothing = ~words.any(axis=-1)
    assert (as_numpy(outputs)[nothing] == 0).all()
    assert not mask_of(outputs)[nothing].any()


@pytest.mark.parametrize(
    "make",
    [
        dense,
        lambda: layers.Dropout(0.5),
        lambda: layers.Conv1D(4, 2),
        sequential(dense, dense),
        lambda: TimeDistributed(dense()),
    ],
    ids=["dense", "dropout", "convolution", "model", "wrapper"],
)
def test_a_layer_that_reads_no_mask_gives_what_it_gives_without_one(make, rng):
    x, words, _, _ = sentences(rng)
    layer = make()

    outputs = TimeDistributed(layer)(x, mask=words)

    assert_close(outputs, TimeDistributed(layer)(x))


@needs("training")
@pytest.mark.parametrize(
    "pool", [layers.GlobalAveragePooling1D, Mean], ids=["Keras's", "own"]
)
def test_weights_stay_numbers_under_pooling(pool):
    model = keras.Sequential(
        [
            keras.Input((None, 12)),
            layers.Masking(),
            TimeDistributed(layers.Reshape((6, 2))),
            TimeDistributed(layers.Conv1D(4, 3)),
            TimeDistributed(pool()),
            layers.LSTM(2),
        ]
    )
    model.compile("sgd", "mse")
    x = np.ones((2, 4, 12), "float32")
    x[1, 2:] = 0

    model.fit(x, np.zeros((2, 2)), verbose=0)

    for weights in model.get_weights():
        assert np.isfinite(weights).all()


@pytest.mark.parametrize("inner", [True, False])
def test_the_state_of_a_stateful_layer_stays_at_a_padded_step(inner, rng):
    x, mask = normal(rng, 2, 3, 4, 5), np.ones((2, 3, 4), bool)
    mask[:, 1] = False
    rnn = layers.SimpleRNN(3, stateful=True)
    rnn.build((2, 4, 5))
    by_hand = [
        as_numpy(rnn(x[:, t], mask=ops.array(mask[:, t]))) for t in range(3)
    ]
    rnn.reset_state()

    outputs = TimeDistributed(rnn, steps_per_call=1)(
        x, mask=mask if inner else mask.any(axis=-1)
    )

    np.testing.assert_allclose(as_numpy(outputs)[:, 2], by_hand[2], atol=1e-6)


def test_a_state_that_is_given_leaves_a_padded_step_as_it_came(rng):
    x, state = normal(rng, 2, 3, 4, 5), normal(rng, 2, 3, 3)
    mask = np.ones((2, 3, 4), bool)
    mask[0, 1] = False
    td = TimeDistributed(layers.GRU(3, return_state=True))

    _, after = td(x, initial_state=state, mask=mask)

    np.testing.assert_allclose(as_numpy(after)[0, 1], state[0, 1], atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*functional.* does not support masking")
def test_a_step_with_an_input_without_a_mask_is_no_padding(rng):
    text, features = keras.Input((4, 5)), keras.Input((3,))
    x = layers.Concatenate()([layers.LSTM(3)(text), features])
    model = keras.Model([text, features], layers.Dense(2)(x))
    a, b = normal(rng, 2, 3, 4, 5), normal(rng, 2, 3, 3)
    mask = np.ones((2, 3, 4), bool)
    mask[0, 1] = False

    outputs = TimeDistributed(model)([a, b], mask=[mask, None])

    for t in range(3):
        masks = [ops.array(mask[:, t]), None]
        step = [ops.array(a[:, t]), ops.array(b[:, t])]
        assert_close(outputs[:, t], model(step, mask=masks))

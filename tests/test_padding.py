"""Padding changes nothing: no output, gradient, statistic or loss of what is
valid, and it never makes NaN."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from backends import needs
from keras_td import TimeDistributed
from modes import MODES
from modes import each_kind
from modes import each_mode
from reference import as_numpy
from reference import assert_close
from reference import gradients
from reference import mask_of
from reference import normal

SENTENCES, WORDS, FEATURES = 3, 4, 5
LENGTHS = np.array([[4, 2, 1], [3, 0, 0]])
# As many calls on some steps at a time see the same valid ones.
MORE_SENTENCES, MORE_WORDS = 6, 2


class Attention(keras.Layer):
    """As public code has it: it reads no mask, and passes one on by mistake."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True
        self.score = layers.Dense(1)

    def build(self, input_shape):
        self.score.build(input_shape)

    def call(self, inputs):
        weights = ops.softmax(self.score(inputs), axis=1)
        return ops.sum(weights * inputs, axis=1)


class MaskedAttention(Attention):
    def call(self, inputs, mask=None):
        scores = self.score(inputs)
        if mask is not None:
            large = ops.cast(ops.logical_not(mask), "float32") * -1e9
            scores = scores + large[..., None]
        return ops.sum(ops.softmax(scores, axis=1) * inputs, axis=1)


class Mean(keras.Layer):
    """As public code has it: it divides by the number of valid words."""

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
    """Refuses what cuDNN refuses."""

    def call(self, sequences, initial_state=None, mask=None, training=False):
        if mask is not None and not isinstance(mask, keras.KerasTensor):
            nothing = ops.logical_not(ops.any(mask, axis=1, keepdims=True))
            no_number = ops.where(nothing, np.nan, 0.0)[..., None]
            sequences = sequences + ops.cast(no_number, sequences.dtype)
        return super().call(sequences, initial_state, mask, training)


def sequential(*makers):
    return lambda: keras.Sequential([make() for make in makers])


def norm():
    return layers.BatchNormalization(momentum=0.5)


def lstm():
    return layers.LSTM(3)


def dense():
    return layers.Dense(4, "tanh")


class Residual(keras.Model):
    """A model of a user's own that keeps its layers as attributes."""

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
# They see no words that are padding, so only sentences may be.
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
    # JAX's gradients come from a function without side effects.
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
@each_kind
@pytest.mark.parametrize("name", OF_WORDS)
def test_padded_words_and_sentences_change_nothing(name, option, rng):
    x, words, padded, more_words = sentences(rng)

    few = found(OF_WORDS[name], option, x, words)
    more = found(OF_WORDS[name], option, padded, more_words)

    assert_alike(few, more)


@needs("training")
@each_kind
@pytest.mark.parametrize("name", OF_SENTENCES)
def test_padded_sentences_change_nothing(name, option, rng):
    x, words, _, more_words = sentences(rng)
    valid, more_valid = words.any(axis=-1), more_words.any(axis=-1)
    padding = ((0, 0), (0, MORE_SENTENCES), (0, 0), (0, 0))
    padded = np.pad(x, padding, constant_values=7)
    padded[:, :SENTENCES][~valid] = 7

    few = found(OF_SENTENCES[name], option, x, valid)
    more = found(OF_SENTENCES[name], option, padded, more_valid)

    assert_alike(few, more)


@needs("training")
@each_mode
def test_a_batch_of_padding_alone_changes_no_statistics(option, rng):
    normalization = norm()
    td = TimeDistributed(normalization, **MODES[option])
    td(normal(rng, 2, 4, 5), training=True)
    before = normalization.get_weights()

    td(normal(rng, 2, 4, 5), mask=np.zeros((2, 4), bool), training=True)

    assert_close(normalization.get_weights(), before)


def test_outside_of_the_wrapper_a_layer_does_what_it_did(rng):
    x, mask = normal(rng, 4, 3), np.array([True, False, True, True])
    normalization, twin = norm(), norm()
    for layer in normalization, twin:
        layer.build((None, 3))

    TimeDistributed(normalization)(x[None], mask=mask[None], training=False)

    for options in {"training": True}, {"training": True, "mask": mask}, {}:
        assert_close(normalization(x, **options), twin(x, **options))
    assert_close(normalization.get_weights(), twin.get_weights())


@pytest.mark.parametrize("name", OF_WORDS)
def test_zeros_leave_where_a_sentence_is_padding(name, rng):
    if name == "BatchNormalization":
        pytest.skip(reason="it computes each word of a sentence by itself")
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


# --- What is no padding, though a mask says so of a part ----------------------


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


class Prototypes(keras.Layer):
    """Normalizes a table of its own, which has as many rows as some batches."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.norm = rows, layers.BatchNormalization(momentum=0.0)

    def build(self, input_shape):
        self.norm.build((None, input_shape[-1]))
        self.table = self.add_weight(
            shape=(self.rows, input_shape[-1]), initializer="normal"
        )

    def call(self, inputs, training=None):
        table = self.norm(self.table, training=training)
        return ops.matmul(inputs, ops.transpose(table))


@needs("training")
@pytest.mark.parametrize("rows", [7, 12])
@pytest.mark.parametrize("how", ["eager", "fit"])
def test_statistics_of_other_things_than_samples_know_no_padding(
    how, rows, rng
):
    layer, x = Prototypes(rows), normal(rng, 2, 3, 5)
    mask = np.array([[1, 1, 0], [1, 0, 0]], bool)
    td = TimeDistributed(layer)
    if how == "eager":
        td(x, mask=mask, training=True)
        table = as_numpy(layer.table)
    else:
        inputs = keras.Input((None, 5)), keras.Input((None,), dtype="bool")
        model = keras.Model(inputs, td(inputs[0], mask=inputs[1]))
        model.compile("sgd", "mse")
        table = as_numpy(layer.table)
        model.fit([x, mask], np.ones((2, 3, rows)), verbose=0)

    np.testing.assert_allclose(
        as_numpy(layer.norm.moving_mean), table.mean(axis=0), atol=1e-6
    )


class CountingNorm(layers.BatchNormalization):
    """Has a variable that Keras casts in mixed precision."""

    def build(self, input_shape):
        super().build(input_shape)
        self.count = self.add_weight(shape=(), trainable=False)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_state_next_to_statistics_loses_no_digit(policy, rng):
    layer, x = CountingNorm(dtype=policy), normal(rng, 2, 3, 5)
    td = TimeDistributed(layer)
    td(x)
    layer.count.assign(4097)

    td(x, mask=np.array([[1, 1, 0], [1, 0, 0]], bool), training=True)

    assert as_numpy(layer.count) == 4097


class NormWithoutMask(layers.BatchNormalization):
    def call(self, inputs, training=None):
        return super().call(inputs, training=training)


class ConditionalNorm(layers.BatchNormalization):
    def call(self, inputs, condition=None, training=None, mask=None):
        return super().call(inputs, training=training, mask=mask)


@pytest.mark.parametrize("make", [NormWithoutMask, ConditionalNorm])
def test_a_normalization_may_have_arguments_of_its_own(make, rng):
    layer, x = make(), normal(rng, 2, 3, 5)
    mask = np.array([[1, 1, 0], [1, 0, 0]], bool)
    td = TimeDistributed(layer)

    for _ in range(2):
        td(x, mask=mask, training=True)

    mean = x[mask].mean(axis=0) if make is ConditionalNorm else x.mean((0, 1))
    after = as_numpy(layer.moving_mean)
    assert np.sign(after).tolist() == np.sign(mean).tolist()
    if make is ConditionalNorm:
        td(x, condition=x, mask=mask, training=True)
        layer(ops.array(x[0]), ops.array(x[0]), training=True)


class NormOfOnes(layers.Layer):
    """Has its normalization computed again."""

    def __init__(self):
        super().__init__()
        self.norm = norm()

    def build(self, input_shape):
        self.norm.build(input_shape)

    def call(self, inputs, training=None):
        return keras.remat(lambda x: self.norm(x, training=training))(inputs)


@pytest.mark.filterwarnings("ignore:.*time_dist.* does not support masking")
@needs("training")
@needs("remat")
@pytest.mark.parametrize("run_eagerly", [True, False])
@pytest.mark.parametrize(
    "make",
    [lambda: TimeDistributed(norm(), remat=True), NormOfOnes],
    ids=["in a wrapper", "in a layer"],
)
def test_what_is_computed_again_knows_the_padding(make, run_eagerly, rng):
    jax = keras.backend.backend() == "jax"
    if jax and make is NormOfOnes and not run_eagerly:
        pytest.skip(reason="JAX lets no state out of what it computes again")
    x, mask = normal(rng, 2, 3, 4, 5), np.array([[1, 1, 0], [1, 0, 0]], bool)
    y, weights = normal(rng, 2, 3, 4, 5), mask[..., None] * np.ones((2, 3, 4))
    x[~mask] = 9

    def trained(layer):
        inputs = keras.Input((3, 4, 5)), keras.Input((3,), dtype="bool")
        td = TimeDistributed(layer, supports_masking=False)
        model = keras.Model(inputs, td(inputs[0], mask=inputs[1]))
        sgd = keras.optimizers.SGD(1.0)
        model.compile(sgd, "mse", run_eagerly=run_eagerly)
        model.fit([x, mask], y, sample_weight=weights, verbose=0)
        # By hand too, `keras.remat` moves means once more on some backends.
        return [as_numpy(v) for v in model.trainable_variables]

    assert_close(trained(make()), trained(norm()))


# --- Hierarchical attention ---------------------------------------------------

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


# As many features as words, and as units of the next layer, hide a mistake.
@pytest.mark.parametrize(
    ("next_layer", "features"),
    [(layers.GRU, 4), (layers.GRU, 7), (layers.LSTM, 7)],
)
@pytest.mark.parametrize("attention", [Attention, MaskedAttention])
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

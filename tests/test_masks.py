"""Masks come in, reach the layer and leave."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras import tree

from backends import LIMITS
from backends import needs
from cases import CASES
from cases import each
from cases import each_case
from cases import leaves
from cases import with_leaves
from keras_td import TimeDistributed
from limits import no_worse_than_plain
from modes import MODES
from modes import each_kind
from reference import MaskSetter
from reference import as_numpy
from reference import assert_close
from reference import loop
from reference import mask_of
from reference import normal
from reference import with_mask

IDS = np.array([[[1, 2, 3], [4, 0, 0]], [[5, 6, 0], [0, 0, 0]]], "int32")
WORDS, SENTENCES = IDS != 0, (IDS != 0).any(axis=-1)
# A sentence of padding is shown as one without any.
SHOWN = (WORDS | ~SENTENCES[..., None]).reshape(4, 3)
# On symbolic tensors, their masks are not there: they come with the values.
MAKE_MASKS = ("Embedding, masked", "Masking", "Sequential encoder of sentences")


class Recorder(keras.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.masks = []

    def call(self, inputs, mask=None):
        self.masks.append(mask)
        return tree.flatten(inputs)[0] * 2

    def compute_mask(self, inputs, mask=None):
        return None


def assert_equal(actual, expected):
    np.testing.assert_array_equal(as_numpy(actual), expected)


def masked(case, args, make):
    """Attaches masks of `(batch, time)` to inputs.

    On those of a bare layer, they are masks of positions.
    """
    rank = 2 if case.has_time else -1
    inputs = tree.map_structure(
        lambda x: MaskSetter(make(x.shape[:rank]))(x), args[0]
    )
    return inputs, *args[1:]


@each([c for c in CASES if c.mixes_samples != "always"])
@no_worse_than_plain
def test_a_masked_tail_changes_nothing_before_it(case, rng):
    args, kwargs = case.arrays(rng)
    axis = len(case.lead) - 1
    valid = case.lead[axis] - 1

    def cut(x):
        return x[:, :valid] if case.has_time else x[:valid]

    head = map(cut, leaves((args, kwargs)))
    head_args, head_kwargs = with_leaves((args, kwargs), head)
    td = case.wrapped()

    expected = td(*head_args, training=False, **head_kwargs)
    args = masked(
        case,
        tree.map_structure(ops.convert_to_tensor, args),
        lambda shape: ops.convert_to_tensor(np.indices(shape)[axis] < valid),
    )
    actual = td(*args, training=False, **kwargs)

    assert_close(tree.map_structure(cut, actual), expected)


@each_case
@no_worse_than_plain
def test_symbolic_masks_have_the_shapes_of_eager_masks(case, rng):
    copies = LIMITS["masks as they came"]
    if copies.holds() and "Attention" in case.name:
        # So they leave in the rank that the layer sees, with the same values.
        pytest.skip(reason=copies.reason)

    args, kwargs = case.arrays(rng)
    args = tree.map_structure(ops.convert_to_tensor, args)
    args = masked(case, args, lambda shape: ops.ones(shape, "bool"))
    eager = case.wrapped()(*args, training=False, **kwargs)
    expected = [mask_of(y) for y in tree.flatten(eager)]

    args, kwargs = case.symbols(*case.lead)
    args = masked(case, args, lambda s: keras.KerasTensor(s, "bool"))
    symbolic = case.wrapped()(*args, **kwargs)

    masks = [getattr(y, "_keras_mask", None) for y in tree.flatten(symbolic)]
    if case.has_time and case.name in MAKE_MASKS:
        assert not any(mask is not None for mask in masks)
    else:
        assert [np.shape(m) for m in masks] == [np.shape(m) for m in expected]


def document_model(sentences=None, words=None):
    return keras.Sequential(
        [
            keras.Input((sentences, words), dtype="int32"),
            TimeDistributed(layers.Embedding(9, 4, mask_zero=True)),
            TimeDistributed(layers.LSTM(5)),
            layers.LSTM(3),
        ]
    )


def padded(ids):
    return np.pad(ids, ((0, 0), (0, 2), (0, 3)))


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


def test_the_layer_sees_the_mask_of_the_slice():
    recorder = Recorder()

    TimeDistributed(recorder)(np.ones((2, 2, 3, 4), "float32"), mask=WORDS)

    assert_equal(recorder.masks[0], SHOWN)


def test_a_mask_attached_to_the_inputs_reaches_the_layer():
    recorder = Recorder()

    TimeDistributed(recorder)(
        with_mask(np.ones((2, 2, 3, 4), "float32"), WORDS)
    )

    assert_equal(recorder.masks[0], SHOWN)


def test_a_mask_that_is_given_goes_before_one_that_is_attached():
    recorder = Recorder()
    x = with_mask(np.ones((2, 2, 3, 4), "float32"), ~WORDS)

    outputs = TimeDistributed(recorder)(x, mask=WORDS)

    assert_equal(recorder.masks[0], SHOWN)
    assert_equal(mask_of(outputs), SENTENCES)


@pytest.mark.parametrize("as_nest", [list, tuple], ids=["list", "tuple"])
def test_each_input_has_its_own_mask(as_nest):
    recorder = Recorder()
    x = np.ones((2, 2, 3, 4), "float32")

    outputs = TimeDistributed(recorder)(
        as_nest([x, x, x]), mask=as_nest([WORDS, None, ~SENTENCES])
    )

    # Of whole steps, a mask says nothing about a step. One that is valid in any
    # input is valid.
    first, second, third = recorder.masks[0]
    assert_equal(first, WORDS.reshape(4, 3))
    assert second is None
    assert third is None
    assert_equal(mask_of(outputs), SENTENCES | ~SENTENCES)


def test_masks_are_attached_to_nested_inputs():
    recorder = Recorder()
    x = np.ones((2, 2, 3, 4), "float32")

    TimeDistributed(recorder)({"a": with_mask(x, WORDS), "b": ops.ones((2, 2))})

    # What comes without a mask is valid, and so each step.
    mask = recorder.masks[0]
    assert_equal(mask["a"], WORDS.reshape(4, 3))
    assert mask["b"] is None


def test_the_mask_of_a_further_argument_reaches_the_layer(rng):
    attention = layers.MultiHeadAttention(2, 4)
    td = TimeDistributed(attention)
    query, value = normal(rng, 2, 2, 3, 4), normal(rng, 2, 2, 3, 4)
    longer = np.pad(value, ((0, 0), (0, 0), (0, 2), (0, 0)), constant_values=9)
    mask = np.arange(5) < np.full((2, 2, 1), 3)

    bare = td(query, ops.convert_to_tensor(value))

    assert_close(td(query, with_mask(longer, mask)), bare)


class MaskOfValue(keras.Layer):
    """Tells whether there is a mask of `value`, which Keras hands over."""

    def call(self, inputs, value, value_mask=None):
        return ops.cast(inputs, bool) if value_mask is None else value_mask


def test_a_mask_that_is_given_is_that_of_the_inputs_alone():
    query, value = np.ones((2, 2)), with_mask(np.ones((2, 2)), SENTENCES)
    td = TimeDistributed(MaskOfValue())

    assert_equal(td(query, value=value, mask=~SENTENCES), SENTENCES)
    assert_equal(td(query, value=query, mask=SENTENCES), query)


class Holds(keras.Layer):
    """Keeps a mask for itself, as layers with a layer inside may."""

    def __init__(self):
        super().__init__()
        self.inside = Recorder()

    def call(self, inputs, mask=None):
        return self.inside(inputs)


@pytest.mark.parametrize("steps", [None, 1])
def test_a_mask_that_is_given_is_not_seen_by_layers_inside(steps):
    x = np.ones((2, 2, 3, 4), "float32")
    layer = Holds()
    td = TimeDistributed(layer, steps_per_call=steps)

    # As by hand: what is given is the layer's, what is attached goes on.
    td(x, mask=WORDS)
    given = layer.inside.masks[-1]
    td(with_mask(x, WORDS))
    attached = layer.inside.masks[-1]

    assert given is None
    assert_equal(attached, SHOWN if steps is None else SHOWN[1::2])


class OwnNorm(keras.Layer):
    """Takes means over the valid samples of a batch."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True

    def call(self, inputs, mask=None):
        if mask is None:
            return inputs
        weights = ops.cast(mask, inputs.dtype)[:, None]
        mean = ops.sum(inputs * weights, axis=0) / ops.sum(weights)
        return inputs - mean


def test_a_layer_of_a_users_own_sees_which_vectors_are_valid(rng):
    x = normal(rng, 2, 2, 4)

    outputs = as_numpy(TimeDistributed(OwnNorm())(x, mask=SENTENCES))

    expected = x - x[SENTENCES].mean(axis=0)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


class Weighted(keras.Layer):
    """Multiplies by its mask, as partial convolutions do."""

    def call(self, inputs, mask=None):
        return inputs * ops.cast(mask, inputs.dtype)[..., None]


class Biased(keras.Layer):
    """Attention to all but what its mask, of numbers, has a 1 at."""

    def call(self, inputs, mask=None):
        scores = ops.matmul(inputs, ops.swapaxes(inputs, 1, 2))
        return ops.matmul(ops.softmax(scores - 1e9 * mask), inputs)


MASKS_OF_NUMBERS = {
    "weights": (Weighted, lambda rng: rng.uniform(0.1, 0.9, (2, 3, 4))),
    "zeros and ones": (Weighted, lambda rng: rng.integers(0, 2, (2, 3, 4))),
    "zeros": (Weighted, lambda rng: np.zeros((2, 3, 4), "int32")),
    "of scores": (Biased, lambda rng: rng.integers(0, 2, (2, 3, 1, 4))),
    "none of scores": (Biased, lambda rng: np.zeros((2, 3, 1, 4))),
}


@each_kind
@pytest.mark.parametrize("name", MASKS_OF_NUMBERS)
def test_a_mask_of_numbers_is_the_layers_own(name, option, rng):
    cls, make_mask = MASKS_OF_NUMBERS[name]
    layer, x = cls(), normal(rng, 2, 3, 4, 5)
    mask = make_mask(rng).astype("float32")

    outputs = TimeDistributed(layer, **MODES[option])(x, mask=mask)

    # A bare layer would warn that the mask ends here.
    x, mask = ops.convert_to_tensor(x), ops.convert_to_tensor(mask)
    expected = [layer.call(x[:, t], mask[:, t]) for t in range(3)]
    assert_close(outputs, ops.stack(expected, axis=1))
    assert mask_of(outputs) is None


class Gated(keras.Layer):
    """Multiplies each sample by its mask, which it needs."""

    def call(self, inputs, mask):
        return inputs * ops.cast(mask, inputs.dtype)[:, None, None]


@each_kind
def test_a_layer_that_needs_a_mask_gets_one_of_steps(option, rng):
    layer, x = Gated(), normal(rng, 2, 3, 4, 5)
    mask = np.array([[True, True, False], [True, False, True]])

    outputs = TimeDistributed(layer, **MODES[option])(x, mask=mask)

    # A bare layer would warn that the mask ends here.
    x, mask = ops.convert_to_tensor(x), ops.convert_to_tensor(mask)
    expected = [layer.call(x[:, t], mask[:, t]) for t in range(3)]
    assert_close(outputs, ops.stack(expected, axis=1))


@pytest.mark.filterwarnings("ignore:[\\s\\S]*lambda.* not support masking")
def test_it_sees_them_next_to_a_lambda_too(rng):
    x = normal(rng, 2, 2, 4)
    model = keras.Sequential([OwnNorm(), layers.Lambda(lambda x: 2 * x)])

    outputs = as_numpy(TimeDistributed(model)(x, mask=SENTENCES))

    expected = 2 * (x - x[SENTENCES].mean(axis=0))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


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


def test_a_mask_counts_next_to_an_initial_state(rng):
    lstm = layers.LSTM(4)
    x, state = normal(rng, 2, 2, 3, 4), [normal(rng, 2, 2, 4) for _ in "hc"]
    td = TimeDistributed(lstm)

    actual = td(with_mask(x, WORDS), initial_state=state)

    expected = td(x, initial_state=state, mask=WORDS)
    assert_close(actual, expected)
    assert np.abs(as_numpy(actual - td(x, initial_state=state))).max() > 1e-3


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


def test_batch_normalization_leaves_padded_steps_out(rng):
    x = normal(rng, 2, 2, 4, 4, 3)
    padded = np.where(SENTENCES[..., None, None, None], x, 9)
    bare = layers.BatchNormalization()
    td = TimeDistributed(layers.BatchNormalization())

    td(padded, mask=SENTENCES, training=True)
    bare(x[SENTENCES], training=True)

    assert_close(td.layer.moving_mean.value, bare.moving_mean.value)
    assert_close(td.layer.moving_variance.value, bare.moving_variance.value)


OUTGOING = {
    "the layer makes one": (
        lambda: layers.Embedding(9, 4, mask_zero=True),
        IDS,
        None,
        WORDS,
    ),
    "the layer passes one on": (
        lambda: layers.Dense(4),
        np.ones((2, 2, 3, 4), "float32"),
        WORDS,
        WORDS,
    ),
    "the layer passes a mask of steps on": (
        lambda: layers.Dense(4),
        np.ones((2, 2, 3, 4), "float32"),
        SENTENCES,
        SENTENCES,
    ),
    "the layer consumes one": (
        lambda: layers.LSTM(4),
        np.ones((2, 2, 3, 4), "float32"),
        WORDS,
        SENTENCES,
    ),
    "the layer knows no masks": (
        lambda: layers.Conv1D(4, 2),
        np.ones((2, 2, 3, 4), "float32"),
        WORDS,
        SENTENCES,
    ),
    "a model passes one on": (
        lambda: keras.Sequential([layers.Dense(4), layers.Dense(3)]),
        np.ones((2, 2, 3, 4), "float32"),
        WORDS,
        WORDS,
    ),
    "a model consumes one": (
        lambda: keras.Sequential([layers.Dense(4), layers.LSTM(3)]),
        np.ones((2, 2, 3, 4), "float32"),
        WORDS,
        SENTENCES,
    ),
    "a model makes one": (
        lambda: keras.Sequential([layers.Embedding(9, 4, mask_zero=True)]),
        IDS,
        None,
        WORDS,
    ),
    "a CNN knows no masks": (
        lambda: keras.Sequential([layers.Conv2D(4, 3), layers.Flatten()]),
        np.ones((2, 2, 6, 6, 3), "float32"),
        SENTENCES,
        SENTENCES,
    ),
    "there is none": (
        lambda: layers.Dense(4),
        np.ones((2, 2, 3, 4), "float32"),
        None,
        None,
    ),
}


@pytest.mark.parametrize("name", OUTGOING)
def test_the_mask_that_leaves(name):
    make, x, mask, expected = OUTGOING[name]
    td = TimeDistributed(make())

    outputs = td(x, mask=mask)

    if expected is None:
        assert mask_of(outputs) is None
    else:
        assert_equal(mask_of(outputs), expected)


@pytest.mark.parametrize("name", OUTGOING)
def test_the_mask_that_leaves_a_compiled_layer(name):
    make, x, mask, expected = OUTGOING[name]
    td = TimeDistributed(make())

    class MaskOfOutput(keras.Layer):
        supports_masking = True

        def call(self, inputs, mask=None):
            shape = ops.shape(inputs)[:2]
            if mask is None:
                return ops.full(shape, -1.0)
            return ops.cast(ops.reshape(mask, (*shape, -1)), "float32")

    x_in = keras.Input(x.shape[1:], dtype=str(x.dtype))
    mask_in = keras.Input((None,) * (2 if mask is WORDS else 1), dtype="bool")
    if mask is None:
        model = keras.Model(x_in, MaskOfOutput()(td(x_in)))
        found = model.predict_on_batch(x)
    else:
        model = keras.Model(
            [x_in, mask_in], MaskOfOutput()(td(x_in, mask=mask_in))
        )
        found = model.predict_on_batch([x, mask])

    if expected is None:
        expected = np.full((2, 2), -1.0)
    assert_equal(found, expected.reshape(found.shape))


def test_several_outputs_have_their_masks():
    lstm = layers.LSTM(4, return_sequences=True, return_state=True)

    sequence, h, c = TimeDistributed(lstm)(
        np.ones((2, 2, 3, 4), "float32"), mask=WORDS
    )

    assert_equal(mask_of(h), SENTENCES)
    assert_equal(mask_of(c), SENTENCES)
    assert mask_of(sequence).shape in {(2, 2), (2, 2, 3)}


def test_a_mask_that_does_not_fit_leaves_as_one_of_steps():
    attention = layers.MultiHeadAttention(2, 4)
    x = np.ones((2, 3, 5, 4), "float32")
    options = {"use_causal_mask": True, "return_attention_scores": True}

    _, scores = TimeDistributed(attention)(x, x, **options)

    # Keras has one causal mask for all samples and heads; older Keras none.
    bare = mask_of(attention(x[:, 0], x[:, 0], **options)[1])
    if bare is None:
        assert mask_of(scores) is None
    else:
        assert_equal(mask_of(scores), np.ones((2, 3), bool))


@pytest.mark.filterwarnings("ignore:.*does not support masking")
def test_no_mask_leaves_when_masking_is_not_supported():
    td = TimeDistributed(layers.Dense(4))
    td.supports_masking = False

    outputs = td(np.ones((2, 2, 3, 4), "float32"), mask=WORDS)

    assert mask_of(outputs) is None


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_masks_of_any_dtype(dtype, rng):
    x, lstm = normal(rng, 2, 2, 3, 4), TimeDistributed(layers.LSTM(4))

    outputs = lstm(x, mask=WORDS.astype(dtype))

    assert_close(outputs, lstm(x, mask=WORDS))
    assert_equal(mask_of(outputs).astype(bool), SENTENCES)


def test_a_mask_of_an_input_that_serves_every_step():
    recorder = Recorder()
    mask = np.array([[True], [False]])

    outputs = TimeDistributed(recorder)(
        [np.ones((2, 3, 4), "float32"), np.ones((2, 1, 4), "float32")],
        mask=[None, mask],
    )

    expected = np.repeat(mask, 3, axis=1)
    assert_equal(recorder.masks[0][1], expected.reshape(6))
    assert_equal(mask_of(outputs), expected)


def test_compute_mask_is_what_leaves():
    embedding = TimeDistributed(layers.Embedding(9, 4, mask_zero=True))
    dense, lstm = (
        TimeDistributed(layers.Dense(4)),
        TimeDistributed(layers.LSTM(4)),
    )
    x, words = ops.ones((2, 2, 3, 4)), ops.convert_to_tensor(WORDS)

    found = embedding.compute_mask(ops.convert_to_tensor(IDS))
    assert_equal(found, WORDS)
    assert_equal(dense.compute_mask(x, words), WORDS)
    assert_equal(lstm.compute_mask(x, words), SENTENCES)
    assert dense.compute_mask(x) is None


def test_compute_mask_serves_a_functional_model(tmp_path):
    ids = keras.Input((None, None), dtype="int32")
    x = TimeDistributed(layers.Embedding(9, 4))(ids)

    mask = TimeDistributed(layers.LSTM(4)).compute_mask(x, ids != 0)

    model = keras.Model(ids, mask)
    assert_equal(model(IDS), SENTENCES)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_equal(loaded(IDS), SENTENCES)


class Doubled(TimeDistributed):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


def test_a_subclass_may_override_call():
    ids = keras.Input((None, None), dtype="int32")
    x = Doubled(layers.Embedding(9, 4, mask_zero=True))(ids)
    x = Doubled(layers.Dense(4))(x)
    x = Doubled(layers.LSTM(5))(x)
    model = keras.Model(ids, layers.LSTM(3)(x))

    bare = model.predict_on_batch(IDS)
    more = model.predict_on_batch(padded(IDS))

    np.testing.assert_allclose(more, bare, atol=1e-6)


def test_a_subclass_may_override_compute_mask():
    class Unmasked(TimeDistributed):
        def compute_mask(self, inputs, mask=None):
            return None

    x = np.ones((2, 2, 3, 4), "float32")
    td = Unmasked(layers.Dense(4))

    assert mask_of(td(x, mask=WORDS)) is None
    assert mask_of(td(keras.Input((2, 3, 4)), mask=keras.Input((2, 3)))) is None


def test_a_masked_loss_ignores_padded_steps():
    model = keras.Sequential(
        [layers.Masking(), TimeDistributed(layers.Dense(1))]
    )
    model.compile("sgd", "mse")
    x, y = np.ones((2, 2, 3), "float32"), np.zeros((2, 2, 1), "float32")
    x[~SENTENCES], y[~SENTENCES] = 0, 99

    loss = model.evaluate(x, y, verbose=0)

    prediction = float(as_numpy(model(x))[0, 0, 0])
    np.testing.assert_allclose(loss, prediction**2, rtol=1e-5)


def test_users_are_not_told_that_masks_are_destroyed():
    frames = np.ones((2, 2, 6, 6, 3), "float32")
    cnn = keras.Sequential([layers.Conv2D(4, 3), layers.Flatten()])

    # Warnings are errors here.
    outputs = TimeDistributed(cnn)(frames, mask=SENTENCES)

    assert_equal(mask_of(outputs), SENTENCES)


class Loses(keras.Layer):
    """Holds a layer that loses the mask that another one makes."""

    def __init__(self):
        super().__init__()
        self.embedding = layers.Embedding(9, 4, mask_zero=True)
        self.unmasked = layers.Flatten()
        self.unmasked.supports_masking = False

    def call(self, inputs):
        return self.unmasked(self.embedding(inputs))


def test_users_are_told_of_masks_that_are_lost_inside():
    with pytest.warns(UserWarning, match="flatten.* input with a mask"):
        TimeDistributed(Loses())(IDS)

"""The masks of outputs, on values and on symbolic tensors."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras import tree

from backends import LIMITS
from cases import each_case
from keras_td import TimeDistributed
from limits import no_worse_than_plain
from masked import IDS
from masked import SENTENCES
from masked import WORDS
from masked import Recorder
from masked import assert_equal
from masked import masked
from masked import padded
from reference import as_numpy
from reference import assert_close
from reference import mask_of
from reference import normal

# Their masks are not on symbolic tensors: they come with the values.
MAKE_MASKS = ("Embedding, masked", "Masking", "Sequential encoder of sentences")


@each_case
@no_worse_than_plain
def test_symbolic_masks_have_the_shapes_of_eager_masks(case, rng):
    copies = LIMITS["masks as they came"]
    if copies.holds() and "Attention" in case.name:
        # So the outputs carry copies of the rank that the layer sees.
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


def test_symbols_have_no_mask_where_the_layer_inside_makes_some():
    inner = keras.Sequential([layers.Masking(), layers.Dense(2)])

    outputs = TimeDistributed(inner)(layers.Masking()(keras.Input((3, 5))))

    assert mask_of(outputs) is None


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

"""A layer never sees a masked step: outputs at valid steps are those of a call
on these alone, and zeros elsewhere."""

import functools

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import layers
from keras import ops
from keras import tree

from backends import needs
from case import BACKEND
from case import BATCH
from case import DTYPES
from case import TIME
from case import leaves
from case import with_leaves
from cases import BY_NAME
from cases import CASES
from cases import each
from cases import each_in_turn
from cases import one_in
from custom import Adds
from custom import Rows
from keras_td import TimeDistributed
from limits import no_worse_than_plain
from masked import IDS
from masked import SENTENCES
from masked import WORDS
from masked import masked
from modes import SEVERAL_CALLS
from modes import each_kind
from modes import options_named
from modes import param
from reference import as_numpy
from reference import assert_close
from reference import gradients
from reference import mask_of
from reference import normal

SEPARATE = [c for c in CASES if c.mixes_samples != "always"]
MASKS = {
    "none valid": np.zeros((BATCH, TIME), bool),
    "one valid": np.array([[False, True, False], [False, False, False]]),
    "some valid": np.array([[True, False, True], [False, False, True]]),
    "all valid": np.ones((BATCH, TIME), bool),
}
SOME = MASKS["some valid"]
OPTIONS = {"one call": {}, **SEVERAL_CALLS}
each_option = options_named(OPTIONS)
# PyTorch warns about the slice of one step, by hand too.
of_searchsorted = pytest.mark.filterwarnings(
    "ignore:[\\s\\S]*searchsorted:UserWarning"
)


def spoiled(case, arguments, mask):
    """Puts harmful values, NaN or numbers out of range, at masked steps."""
    if case.values == "text":
        return arguments
    arrays = [x.copy() for x in leaves(arguments)]
    for x in arrays:
        x[~mask] = 10**6 if case.values == "ids" else np.nan
    return with_leaves(arguments, arrays)


def zeros_at_masked(outputs, mask):
    def at_masked(y):
        y = as_numpy(y)
        valid = mask.reshape(*mask.shape, *(1,) * (y.ndim - 2))
        zero = b"" if y.dtype.kind in "SO" else np.zeros((), y.dtype)
        return np.where(valid, y, zero)

    return tree.map_structure(at_masked, outputs)


def model_with_mask(case, td, arguments, *lead):
    """A functional model of the arguments and of a mask of their steps."""
    lead = lead or case.lead
    inputs = [
        keras.Input(
            (*lead[1:], *x.shape[len(lead) :]), lead[0], DTYPES[case.values]
        )
        for x in leaves(arguments)
    ]
    args, kwargs = with_leaves(arguments, inputs)
    mask = keras.Input(lead[1:], lead[0], "bool")
    if case.has_time:
        kwargs["mask"] = tree.map_structure(lambda _: mask, args[0])
    outputs = td(*args, **kwargs)
    return keras.Model([*inputs, mask], tree.flatten(outputs))


@of_searchsorted
@each(SEPARATE)
@no_worse_than_plain
def test_no_step_is_valid_and_all_are_zeros(case, rng):
    assert_as_alone(case, MASKS["none valid"], rng)


@of_searchsorted
@each_in_turn("steps", [pytest.param(None), pytest.param(2)], SEPARATE)
@no_worse_than_plain
def test_valid_steps_are_as_alone_and_others_zeros(case, steps, rng):
    mask = MASKS["some valid" if steps else "one valid"]

    assert_as_alone(case, mask, rng, steps)


def assert_as_alone(case, mask, rng, steps=None):
    layer = case.make()
    args, kwargs = case.arrays(rng)
    expected = case.oracle(layer, *args, training=False, **kwargs)
    td = case.wrap(layer, skip_masked=True, steps_per_call=steps)

    args, kwargs = spoiled(case, (args, kwargs), mask)
    args = masked(case, args, lambda _: mask)
    actual = td(*args, training=False, **kwargs)

    actual = tree.map_structure(as_numpy, actual)
    assert_close(actual, zeros_at_masked(expected, mask))


# A model takes long to compile.
@of_searchsorted
@each(one_in(2, SEPARATE))
@no_worse_than_plain
def test_a_compiled_model_predicts_the_same(case, rng):
    args, kwargs = case.arrays(rng)
    layer = case.make()
    expected = case.oracle(layer, *args, training=False, **kwargs)
    td = case.wrap(layer, skip_masked=True)
    model = model_with_mask(case, td, (args, kwargs))

    for mask in MASKS.values():
        mask = mask.reshape(case.lead)
        arrays = leaves(spoiled(case, (args, kwargs), mask))
        actual = model.predict_on_batch([*arrays, mask])
        expected_of_mask = tree.flatten(zeros_at_masked(expected, mask))
        assert_close(tree.flatten(actual), expected_of_mask)


@needs("training")
@each(one_in(2, [c for c in SEPARATE if c.differentiable]))
@no_worse_than_plain
def test_the_gradients_are_those_of_valid_steps(case, rng):
    training = not (case.random or case.mixes_samples)
    layer = case.make()
    td = case.wrap(layer, skip_masked=True)
    arrays = case.arrays(rng)
    outputs = case.oracle(layer, *arrays[0], training=training, **arrays[1])
    weights = tree.map_structure(
        lambda y: rng.normal(size=y.shape).astype("float32"), outputs
    )
    of_valid = tree.map_structure(
        ops.convert_to_tensor, zeros_at_masked(weights, SOME)
    )
    weights = tree.map_structure(ops.convert_to_tensor, weights)

    def gradients_of(fn, arrays, weights):
        is_float = case.values in ("normal", "image")
        inputs = [keras.Variable(x) for x in leaves(arrays)] if is_float else []

        def loss():
            tensors = [ops.convert_to_tensor(v) for v in inputs]
            args, kwargs = with_leaves(arrays, tensors or leaves(arrays))
            outputs = fn(args, training=training, **kwargs)
            products = tree.map_structure(
                lambda y, w: ops.sum(y * w), outputs, weights
            )
            return sum(tree.flatten(products))

        return gradients(loss, [*layer.trainable_variables, *inputs])

    def skipping(args, **kwargs):
        return td(*masked(case, args, lambda _: SOME), **kwargs)

    def looping(args, **kwargs):
        return case.oracle(layer, *args, **kwargs)

    actual = gradients_of(skipping, spoiled(case, arrays, SOME), weights)
    expected = gradients_of(looping, arrays, of_valid)
    assert_close(actual, expected)
    assert any(np.any(g) for g in expected)


SEVERAL = [
    BY_NAME[name]
    for name in (
        "Dense, regularized",
        "LSTM, from states",
        "MultiHeadAttention",
        "functional model of dicts",
        "LSTM, with states",
        "Embedding, masked",
    )
]


@needs("training")
@each_in_turn(
    "option,how",
    [
        param("one call", "compiled"),
        param("1 step", "compiled"),
        param("1 step", "unknown sizes"),
        param("2 steps, remat", "eager"),
        param("2 steps, remat", "unknown sizes"),
    ],
    SEVERAL * 2,
)
def test_fit_does_what_it_does_on_valid_steps(case, option, how, rng):
    arguments = case.arrays(rng)
    lead = (None, None) if how == "unknown sizes" else ()

    def fit(arguments, **options):
        model = model_with_mask(case, case.wrapped(**options), arguments, *lead)
        *_, mask = model.inputs
        # Outputs of functions, unlike those of layers, have no mask for the
        # loss.
        axes = [tuple(range(2, len(y.shape))) for y in model.outputs]
        outputs = [
            ops.where(ops.expand_dims(mask, of_y), y, 0.0)
            for y, of_y in zip(model.outputs, axes, strict=True)
        ]
        model = keras.Model(model.inputs, outputs)
        x = [*leaves(arguments), SOME]
        zeros = [np.zeros(y.shape) for y in tree.flatten(model(x))]
        model.compile(
            keras.optimizers.SGD(0.1),
            ["mse"] * len(zeros),
            run_eagerly=how == "eager",
        )
        losses = [
            tree.flatten(model.train_on_batch(x, zeros))[0] for _ in range(2)
        ]
        return [np.array(losses), *model.get_weights()]

    actual = fit(
        spoiled(case, arguments, SOME), skip_masked=True, **OPTIONS[option]
    )
    assert_close(actual, fit(arguments, **OPTIONS[option]))


def test_xla_changes_no_number(on_tensorflow, rng):
    import tensorflow as tf

    x = normal(rng, BATCH, TIME, 4, 3)
    td = TimeDistributed(layers.LSTM(3), skip_masked=True)
    inputs, mask = keras.Input((TIME, 4, 3)), keras.Input((TIME,), dtype="bool")
    model = keras.Model([inputs, mask], td(inputs, mask=mask))
    expected = td(x, mask=SOME)

    assert_close(tf.function(td, jit_compile=True)(x, mask=SOME), expected)
    # XLA would find no gradients of an LSTM.
    with pytest.warns(UserWarning, match="jit_compile=True"):
        model.compile("sgd", "mse", jit_compile=True)
    actual = model.predict_on_batch([x, SOME])
    assert_close(actual, as_numpy(expected))


@each_option
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_traced_function_may_know_its_mask(mask, option, on_tensorflow, rng):
    import tensorflow as tf

    x, dense = normal(rng, BATCH, TIME, 4), layers.Dense(3)
    td = TimeDistributed(dense, skip_masked=True, **OPTIONS[option])

    actual = tf.function(lambda x: td(x, mask=mask))(x)

    assert_close(as_numpy(actual), as_numpy(dense(x)) * mask[..., None])


def norm_after_dense():
    return keras.Sequential([layers.Dense(4), layers.BatchNormalization()])


def regularized():
    return layers.Dense(4, "tanh", activity_regularizer="l2")


def adding_a_loss():
    return keras.Sequential([layers.Dense(4), Adds(lambda x: [ops.mean(x)])])


STATEFUL = {
    "BatchNormalization": layers.BatchNormalization,
    "BatchNormalization behind a layer": norm_after_dense,
}
LOSSES = {
    "activity regularizer": regularized,
    "add_loss": adding_a_loss,
}


class Unit(keras.Layer):
    """Scales vectors to length 1, which has no gradient at zeros."""

    def call(self, inputs):
        return inputs / ops.norm(inputs, axis=-1, keepdims=True)


def unit_after_norm():
    return keras.Sequential([norm_after_dense(), Unit()])


def adding_a_sum(axis=None):
    adds = Adds(lambda x: [ops.sum(ops.square(x), axis=axis)])
    return keras.Sequential([layers.Dense(4), adds])


class MovingMean(keras.Layer):
    def build(self, input_shape):
        self.mean, self.calls = (
            self.add_weight(shape=(), initializer="zeros", trainable=False)
            for _ in "12"
        )

    def call(self, inputs):
        self.mean.assign(0.9 * self.mean + 0.1 * ops.mean(inputs))
        self.calls.assign_add(1.0)
        return inputs - self.mean


def moving_mean():
    return keras.Sequential([layers.Dense(4), MovingMean()])


# For these, several calls differ from one.
COUNTING = {
    **STATEFUL,
    **LOSSES,
    "a sum": adding_a_sum,
    "a loss of each sample": functools.partial(adding_a_sum, -1),
    "a moving mean": moving_mean,
    "SpectralNormalization": lambda: layers.SpectralNormalization(
        layers.Dense(4)
    ),
}


def trained(make, x, mask, compiled, **options):
    """The loss of a training step, and the weights after it."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(x.shape[1:])
    if mask is None:
        model = keras.Model(inputs, make()(inputs))
    else:
        td = TimeDistributed(make(), **options)
        given = keras.Input(mask.shape[1:], dtype="bool")
        model = keras.Model([inputs, given], td(inputs, mask=given))
        x = [x, mask]
    model.compile(
        keras.optimizers.SGD(0.1),
        lambda y_true, y_pred: 0.0 * ops.mean(y_pred, axis=-1),
        run_eagerly=not compiled,
    )
    loss = model.train_on_batch(x, np.zeros(model(x).shape))
    return [np.array(loss), *model.get_weights()]


@needs("training")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", COUNTING.values(), ids=COUNTING)
def test_without_padding_training_is_as_without_the_option(make, compiled, rng):
    x, mask = normal(rng, BATCH, TIME, 5), MASKS["all valid"]

    actual = trained(make, x, mask, compiled, skip_masked=True)

    assert_close(actual, trained(make, x, mask, compiled))


@needs("training")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)
def test_statistics_are_those_of_valid_steps(make, compiled, rng):
    x = normal(rng, BATCH, TIME, 5)
    bad = np.where(SOME[..., None], x, np.nan)

    actual = trained(make, bad, SOME, compiled, skip_masked=True)

    assert_close(actual, trained(make, x[SOME], None, compiled))


@needs("training")
@pytest.mark.parametrize("steps", [None, 1, 2])
@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_losses_are_those_of_valid_steps(make, steps, rng):
    x = normal(rng, BATCH, TIME, 5)
    bad = np.where(SOME[..., None], x, np.nan)
    options = {"skip_masked": True, "steps_per_call": steps}

    actual = trained(make, bad, SOME, False, **options)

    assert_close(actual, trained(make, x[SOME], None, False))


@needs("training")
@pytest.mark.parametrize("compiled", [False, True])
@each_option
@pytest.mark.parametrize(
    "make",
    [*STATEFUL.values(), *LOSSES.values(), moving_mean, unit_after_norm],
)
def test_a_batch_without_a_valid_step_changes_nothing(make, option, compiled):
    bad = np.full((BATCH, TIME, 5), np.nan, "float32")
    options = {"skip_masked": True, **OPTIONS[option]}
    mask = np.zeros((BATCH, TIME), bool)
    keras.utils.set_random_seed(0)
    untrained = TimeDistributed(make())
    untrained.build((BATCH, TIME, 5))

    loss, *weights = trained(make, bad, mask, compiled, **options)

    assert loss == 0
    assert_close(weights, untrained.get_weights())


@each_option
@pytest.mark.parametrize("make", [regularized, lambda: layers.LSTM(3)])
def test_without_a_mask_the_option_changes_nothing(make, option, rng):
    layer, x = make(), normal(rng, BATCH, TIME, *[4] * 2)

    actual = TimeDistributed(layer, skip_masked=True, **OPTIONS[option])
    expected = TimeDistributed(layer, **OPTIONS[option])

    assert_close(actual(x, training=True), expected(x, training=True))
    losses = [td.losses[-1:] for td in (actual, expected)]
    assert_close(*losses)


@pytest.mark.parametrize(
    ("steps", "rows"), [(None, [7]), (1, [3, 3, 1]), (2, [3, 4]), (9, [7])]
)
def test_calls_are_on_valid_steps_alone(steps, rows):
    mask = np.arange(5) < np.array([[4], [1], [2]])
    counter = Rows()
    td = TimeDistributed(counter, skip_masked=True, steps_per_call=steps)

    td(np.ones((3, 5, 2), "float32"), mask=mask)

    assert counter.rows == rows


def documents(rng, *lengths):
    """Documents of sentences of word vectors, and which words are valid."""
    words = rng.integers(0, lengths[2] + 1, lengths[:2])
    words[0] = 0
    mask = np.arange(lengths[2]) < words[..., None]
    return normal(rng, *lengths, 3), mask


class Mean(keras.Layer):
    """The mean of a sentence, which must never be masked as a whole."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True
        self.rows = []

    def call(self, inputs, mask=None):
        self.rows.append(inputs.shape[0])
        mask = ops.cast(mask, "float32")[..., None]
        return ops.sum(inputs * mask, axis=1) / ops.sum(mask, axis=1)

    def compute_mask(self, inputs, mask=None):
        return None


@each_option
def test_a_mask_of_words_tells_which_sentences_are_valid(option, rng):
    x, words = documents(rng, 3, 4, 5)
    mean = Mean()

    td = TimeDistributed(mean, skip_masked=True, **OPTIONS[option])
    actual = td(x, mask=words)

    sentences = words.any(-1)
    expected = np.zeros((3, 4, 3), "float32")
    for place in zip(*np.nonzero(sentences), strict=True):
        expected[place] = x[place][words[place]].mean(0)
    assert_close(as_numpy(actual), expected)
    np.testing.assert_array_equal(mask_of(actual), sentences)
    assert sum(mean.rows) == sentences.sum()


@each_option
def test_each_level_of_nested_wrappers_skips(option, rng):
    x, words = documents(rng, 3, 4, 5)
    counter, gru = Rows(), layers.GRU(2)
    of_words = TimeDistributed(counter, skip_masked=True)
    of_sentences = TimeDistributed(
        keras.Sequential([of_words, gru]), skip_masked=True, **OPTIONS[option]
    )

    actual = of_sentences(x, mask=words)

    sentences = words.any(-1)
    expected = np.zeros((3, 4, 2), "float32")
    for place in zip(*np.nonzero(sentences), strict=True):
        word = ops.convert_to_tensor(x[place][words[place]][None] * 2)
        expected[place] = as_numpy(gru(word))[0]
    assert_close(as_numpy(actual), expected)
    # JAX traces what it recomputes, where no shape may depend on data.
    if BACKEND != "jax" or "remat" not in option:
        assert sum(counter.rows) == words.sum()


@needs("training")
@each_kind
def test_nested_wrappers_train_on_documents(option, rng):
    x, words = documents(rng, 3, 4, 5)
    bad = np.where(words[..., None], x, np.nan)

    def fit(x, **options):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((None, None, 3))
        mask = keras.Input((None, None), dtype="bool")
        of_words = TimeDistributed(layers.Dense(4, "tanh"), **options)
        encoder = keras.Sequential([of_words, layers.GRU(2)])
        of_sentences = TimeDistributed(encoder, **options)
        sentences = of_sentences(inputs, mask=mask)
        outputs = layers.GRU(2)(sentences)
        model = keras.Model([inputs, mask], outputs)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        losses = [
            model.train_on_batch([x, words], np.zeros((3, 2))) for _ in range(2)
        ]
        return [np.array(losses), *model.get_weights()]

    actual = fit(bad, skip_masked=True, **OPTIONS[option])
    assert_close(actual, fit(x))


@each_option
def test_one_step_or_sample_serves_all(option, rng):
    x, of_time = normal(rng, 2, 3, 4), normal(rng, 1, 3, 4)
    of_batch = normal(rng, 2, 1, 4)
    td = TimeDistributed(layers.Add(), skip_masked=True, **OPTIONS[option])

    actual = td([x, of_time, of_batch], mask=[SOME, SOME[1:], None])

    valid = SOME | SOME[1:]
    expected = np.where(valid[..., None], x + of_time + of_batch, 0)
    assert_close(as_numpy(actual), expected)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(layers.Embedding, 9, 4, mask_zero=True),
        lambda: keras.Sequential(
            [layers.Embedding(9, 4, mask_zero=True), layers.LSTM(3)]
        ),
        functools.partial(layers.Dense, 3),
    ],
)
def test_the_masks_that_leave_are_those_without_the_option(make):
    layer = make()
    for mask in (SENTENCES, WORDS):
        expected = TimeDistributed(layer)(IDS, mask=mask)
        actual = TimeDistributed(layer, skip_masked=True)(IDS, mask=mask)
        np.testing.assert_array_equal(mask_of(actual), mask_of(expected))


def test_a_layer_is_not_called_where_no_step_is_valid():
    counter = Rows()
    td = TimeDistributed(counter, skip_masked=True)

    actual = td(np.ones((2, 3, 4), "float32"), mask=MASKS["none valid"])

    assert counter.rows == []
    assert_close(as_numpy(actual), np.zeros((2, 3, 4), "float32"))


@needs("training")
@pytest.mark.parametrize("mask", [SOME, MASKS["none valid"]])
def test_samples_of_mixed_precision_keep_their_dtype(mask, rng):
    x = ops.cast(normal(rng, BATCH, TIME, 5), "bfloat16")
    td = TimeDistributed(
        layers.Dense(3, dtype="mixed_bfloat16"), skip_masked=True
    )

    actual = td(x, mask=mask)

    assert keras.backend.standardize_dtype(actual.dtype) == "bfloat16"
    assert not as_numpy(ops.cast(actual, "float32"))[~mask].any()


def test_a_model_is_saved_with_the_option(tmp_path, rng):
    x = normal(rng, BATCH, TIME, 5)
    inputs = keras.Input((None, 5))
    masked = layers.Masking()(inputs)
    td = TimeDistributed(layers.Dense(3), skip_masked=True, steps_per_call=2)
    model = keras.Model(inputs, td(masked))
    model.save(tmp_path / "model.keras")

    loaded = keras.saving.load_model(tmp_path / "model.keras")

    assert loaded.layers[-1].skip_masked
    x = np.where(SOME[..., None], x, 0)
    assert_close(loaded.predict_on_batch(x), model.predict_on_batch(x))


def test_a_stateful_layer_is_refused_by_name():
    gru = layers.GRU(3, stateful=True, name="diary")
    td = TimeDistributed(keras.Sequential([gru]), skip_masked=True)

    with pytest.raises(ValueError, match="diary"):
        td(np.ones((2, 3, 4, 5), "float32"))


def test_shared_randomness_is_refused():
    with pytest.raises(ValueError, match="share_randomness"):
        TimeDistributed(
            layers.Dropout(0.5), skip_masked=True, share_randomness=True
        )


lengths = st.lists(st.integers(0, 4), min_size=1, max_size=4)


@settings(max_examples=20)
@given(lengths, st.integers(0, 5), st.booleans())
def test_any_mask_gives_what_the_oracle_gives(lengths, steps, left):
    rng = np.random.default_rng(0)
    mask = np.arange(4) < np.array(lengths)[:, None]
    mask = mask[:, ::-1] if left else mask
    x = normal(rng, len(lengths), 4, 3)
    dense = layers.Dense(2)
    td = TimeDistributed(dense, skip_masked=True, steps_per_call=steps or None)

    actual = td(np.where(mask[..., None], x, np.nan), mask=mask)

    expected = as_numpy(dense(x)) * mask[..., None]
    assert_close(as_numpy(actual), expected)

"""The wrapper neither loses nor changes a dtype."""

import contextlib
import functools

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras import tree

from backends import needs
from cases import CASES
from cases import each
from cases import each_in_turn
from keras_td import TimeDistributed
from limits import no_worse_than_plain
from modes import MODES
from modes import TIME
from modes import each_mode
from reference import as_numpy
from reference import assert_close
from reference import dtype
from reference import loop


@needs("float64")
@pytest.mark.usefixtures("float64")
def test_a_float64_layer_loses_no_precision(rng):
    x = rng.normal(size=(2, 3, 5))
    layer = layers.Dense(4, dtype="float64")

    outputs = TimeDistributed(layer)(x)

    assert dtype(outputs) == "float64"
    np.testing.assert_allclose(
        as_numpy(outputs), as_numpy(loop(layer, x)), rtol=1e-14
    )


@pytest.mark.parametrize(
    "policy", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"]
)
def test_the_policy_is_that_of_the_layer(policy, rng):
    layer = layers.Dense(4, dtype=policy)
    td = TimeDistributed(layer)
    x = rng.normal(size=(2, 3, 5)).astype("float32")

    outputs = td(x)

    assert td.dtype_policy == layer.dtype_policy
    assert dtype(outputs) == layer.compute_dtype
    assert td(keras.Input((3, 5))).dtype == layer.compute_dtype
    assert td.weights[0].dtype == layer.variable_dtype


def in_float32(x):
    return ops.cast(x, "float32")


@each([c for c in CASES if c.values in ("normal", "image")])
@no_worse_than_plain
def test_mixed_precision_is_that_of_the_plain_layer(case, rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        args, kwargs = case.arrays(rng)
        actual = case.wrapped()(*args, training=False, **kwargs)
        args, kwargs = case.folded(args, kwargs)
        expected = case.make()(*args, training=False, **kwargs)
    finally:
        keras.config.set_dtype_policy("float32")

    dtypes = [[dtype(y) for y in tree.flatten(n)] for n in (actual, expected)]
    assert dtypes[0] == dtypes[1]
    as_float32 = functools.partial(tree.map_structure, in_float32)
    assert_close(as_float32(actual), case.unfolded(as_float32(expected)))


@contextlib.contextmanager
def policy(name):
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy("float32")


POLICIES = ["mixed_float16", "mixed_bfloat16"]
each_policy = pytest.mark.parametrize("name", POLICIES)


class Inside(keras.Layer):
    """Has a layer of another dtype inside, like the last one of a model."""

    def __init__(self, layer, options):
        super().__init__()
        self.layer = layer
        self.options = options

    def build(self, input_shape):
        self.built = True

    def call(self, inputs, *args, **kwargs):
        return self.layer(inputs, *args, **kwargs, **self.options)


# Mixed precision is for training.
@needs("training")
@each_in_turn(
    "name",
    list(map(pytest.param, POLICIES)),
    [
        c
        for c in CASES
        if c.values in ("normal", "image") and c.mixes_samples != "always"
    ],
)
@no_worse_than_plain
def test_a_layer_of_float32_gives_the_same_in_several_calls(case, name, rng):
    args, kwargs = case.arrays(rng)
    tensors = {n: x for n, x in kwargs.items() if n not in case.options}

    def outputs_of(option):
        layer = case.make()
        with policy(name):
            td = TimeDistributed(Inside(layer, case.options), **MODES[option])
            return td(*args, training=False, **tensors)

    expected = outputs_of("one call")
    # JAX takes long to compile what it may recompute.
    for option in ("1 step", "shared randomness"):
        assert_close(outputs_of(option), expected)


class Counter(keras.Layer):
    """Counts its calls in a variable, as optimizers and metrics do."""

    def build(self, input_shape):
        self.count = self.add_weight(
            shape=(), initializer="zeros", trainable=False
        )

    def call(self, inputs):
        self.count.assign(self.count + 1)
        return inputs


@needs("training")
@each_policy
@each_mode
def test_a_layer_of_float32_in_mixed_precision_loses_no_digit(
    option, name, rng
):
    x = rng.normal(size=(2, TIME, 5)).astype("float32")
    with policy(name):
        precise = layers.Dense(3, dtype="float32")
        model = keras.Sequential([layers.Rescaling(1.0), precise])
        td = TimeDistributed(model, **MODES[option])
        td.build(x.shape)
        kernel = rng.normal(size=(5, 3)) * 1e5
        precise.set_weights([kernel, np.zeros(3)])
        outputs = td(x)
        weights = precise.get_weights()[0]
        expected = TimeDistributed(model)(x)

    assert dtype(outputs) == "float32"
    np.testing.assert_array_equal(weights, kernel.astype("float32"))
    assert_close(outputs, expected)


@needs("training")
@each_policy
@each_mode
def test_state_of_float32_in_mixed_precision_loses_no_digit(option, name, rng):
    x = rng.normal(size=(4, TIME, 3)).astype("float32") + 3
    with policy(name):
        norm = layers.BatchNormalization(momentum=0.5)
        counter = Counter(dtype="float32")
        model = keras.Sequential([layers.Rescaling(1.0), norm, counter])
        td = TimeDistributed(model, **MODES[option])
        td.build(x.shape)
        counter.count.assign(4096)
        mean = rng.normal(size=3).astype("float32")
        norm.moving_mean.assign(mean)
        td(x, training=False)

    steps = {"steps_per_call": TIME, **MODES[option]}["steps_per_call"]
    calls = TIME if "shared" in option else -(-TIME // steps)
    assert as_numpy(counter.count) == 4096 + calls
    np.testing.assert_array_equal(as_numpy(norm.moving_mean), mean)


@needs("training")
@each_mode
def test_training_in_mixed_precision_updates_weights_of_float32(option, rng):
    x = rng.normal(size=(4, TIME, 3)).astype("float32")
    with policy("mixed_bfloat16"):
        td = TimeDistributed(layers.Dense(2), **MODES[option])
        model = keras.Sequential([keras.Input((TIME, 3)), td])
        model.compile(keras.optimizers.SGD(1e-4), "mse")
        before = model.get_weights()[0]
        model.fit(x, np.ones((4, TIME, 2)), verbose=0)
        after = model.get_weights()[0]

    # In 16 bits, such a small step would be none, or a large one.
    change = np.abs(after - before)
    assert (change > 0).all()
    assert change.max() < 1e-3


def test_a_policy_that_is_given_is_kept():
    td = TimeDistributed(layers.Dense(4, dtype="float32"), dtype="float16")

    assert td.compute_dtype == "float16"
    assert td.layer.compute_dtype == "float32"


def test_a_global_policy_reaches_wrapper_and_layer():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        td = TimeDistributed(layers.Dense(4))
    finally:
        keras.config.set_dtype_policy("float32")

    assert dtype(td(np.ones((2, 3, 5)))) == "bfloat16"


@pytest.mark.parametrize("dtype_in", ["int32", "int8", "uint8", "bool"])
def test_integers_arrive_untouched(dtype_in):
    seen = []

    class Look(keras.Layer):
        def call(self, inputs):
            seen.append(dtype(inputs))
            return inputs

    TimeDistributed(Look())(np.ones((2, 3, 5), dtype_in))

    assert seen == [dtype_in]


def test_a_layer_without_autocast_gets_its_floats_untouched():
    seen = []

    class Look(keras.Layer):
        def call(self, inputs):
            seen.append(dtype(inputs))
            return inputs

    x = ops.ones((2, 3, 5), "float16")
    TimeDistributed(Look(autocast=False))(x)
    TimeDistributed(Look())(x)

    assert seen == ["float16", "float32"]


def test_embedding_of_ids_of_shape_batch_time():
    embedding = layers.Embedding(9, 4)
    ids = np.array([[1, 2, 3], [4, 5, 6]], "int32")

    assert_close(TimeDistributed(embedding)(ids), loop(embedding, ids))


def test_text_vectorization_of_shape_batch_time(on_tensorflow):
    texts = np.array([["a b", "c"], ["b", "a a a"]])
    vectorize = layers.TextVectorization(
        output_sequence_length=3, vocabulary=["a", "b", "c"]
    )

    outputs = TimeDistributed(vectorize)(texts)

    expected = [[[2, 3, 0], [4, 0, 0]], [[3, 0, 0], [2, 2, 2]]]
    np.testing.assert_array_equal(outputs, expected)
    assert outputs.dtype == "int64"


def test_string_lookup_in_a_model(on_tensorflow):
    lookup = layers.StringLookup(vocabulary=["a", "b"])
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="string"),
            TimeDistributed(lookup),
            layers.Embedding(4, 2),
        ]
    )
    strings = ops.convert_to_tensor([["a", "b", "?"]])

    assert model(strings).shape == (1, 3, 2)
    np.testing.assert_array_equal(TimeDistributed(lookup)(strings), [[1, 2, 0]])


def test_integer_lookup_and_hashing(on_tensorflow):
    ids = np.array([[[10, 20], [30, 5]]], "int32")
    for layer in (
        layers.IntegerLookup(vocabulary=[10, 20, 30]),
        layers.Hashing(num_bins=3),
    ):
        assert_close(TimeDistributed(layer)(ids), loop(layer, ids))


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.CategoryEncoding(num_tokens=40),
        lambda: layers.Discretization(bin_boundaries=[15.0, 25.0]),
    ],
    ids=["CategoryEncoding", "Discretization"],
)
def test_preprocessing_layers(make):
    layer, ids = make(), np.array([[[10, 20], [30, 5]]], "int32")

    assert_close(TimeDistributed(layer)(ids), loop(layer, ids))

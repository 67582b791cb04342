"""What users of `TimeDistributed` ask for, and which class delivers it.

Each scenario is one promise, checked against a loop over the time steps that
calls the layer by hand, or against NumPy. It works, gives a wrong answer, or
raises.

    KERAS_BACKEND=jax python benchmarks/scenarios.py
    KERAS_BACKEND=jax python benchmarks/scenarios.py --details --json jax.json
    python benchmarks/scenarios.py --merge tensorflow.json jax.json torch.json
"""

import argparse
import contextlib
import copy
import functools
import io
import json
import logging
import os
import pathlib
import sys
import tempfile
import warnings

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers
from keras import ops
from keras import tree

import keras_td

CLASSES = {
    "stock": layers.TimeDistributed,
    "keras_td": keras_td.TimeDistributed,
}
BACKENDS = {"tensorflow": "TF", "jax": "JAX", "torch": "PyTorch"}
SCENARIOS = {}


def scenario(sentence, only=tuple(BACKENDS), reason=None):
    """Adds a function of the class under test to the table.

    Where it cannot exist on a backend, `only` has the others and `reason` says
    why.
    """

    def add(check):
        SCENARIOS[sentence] = check, only, reason
        return check

    return add


# --- The oracle and other help ------------------------------------------------


def normal(*shape):
    values = np.random.default_rng(sum(shape)).normal(size=shape)
    return values.astype("float32")


def integers(high, *shape):
    return np.random.default_rng(0).integers(1, high, shape).astype("int32")


def numpy(nest):
    return tree.map_structure(ops.convert_to_numpy, nest)


def by_hand(layer, *inputs, **kwargs):
    """Calls the layer for one time step after the other."""

    def call(t):
        step = tree.map_structure(lambda x: x[:, t], inputs)
        return numpy(layer(*step, **kwargs))

    steps = map(call, range(tree.flatten(inputs)[0].shape[1]))
    return tree.map_structure(lambda *s: np.stack(s, axis=1), *steps)


def assert_equal(received, expected, rtol=1e-4, atol=1e-5):
    received, expected = numpy(received), numpy(expected)
    same = tree.lists_to_tuples(received), tree.lists_to_tuples(expected)
    assert len(tree.flatten(same[0])) == len(tree.flatten(same[1]))
    for a, b in zip(tree.flatten(same[0]), tree.flatten(same[1]), strict=True):
        assert a.shape == b.shape, f"shape {a.shape}, expected {b.shape}"
        assert a.dtype == b.dtype, f"dtype {a.dtype}, expected {b.dtype}"
        np.testing.assert_allclose(a, b, rtol, atol)


def model_of(layer, *shape, dtype="float32"):
    inputs = keras.Input(shape, dtype=dtype)
    return keras.Model(inputs, layer(inputs))


def predict(model, x):
    return model.predict(x, verbose=0)


def check(layer, wrapped, x):
    """Called, and as a model, the layer gives what the loop gives."""
    called = layer(x)
    expected = by_hand(wrapped, x)
    assert_equal(called, expected)
    inputs = tree.map_structure(
        lambda a: keras.Input(a.shape[1:], dtype=a.dtype.name), x
    )
    model = keras.Model(inputs, layer(inputs))
    assert_equal(predict(model, x), expected)


def cnn():
    return keras.Sequential(
        [
            layers.Conv2D(4, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )


def padded(x, lengths):
    """Zeros after the length of each sample, and the mask that says so."""
    mask = np.arange(x.shape[1]) < np.asarray(lengths)[:, None]
    return x * mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), mask


def register(cls):
    return keras.saving.register_keras_serializable("scenarios")(cls)


@register
class Scale(keras.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, x):
        return x * self.scale

    def compute_output_shape(self, shape):
        return shape


@register
class Twice(keras.Layer):
    """Says nothing of its output shape."""

    def call(self, x):
        return ops.concatenate([x, 2 * x], axis=-1)


@register
class Block(keras.Layer):
    """Made of layers, with no `build` and no `training` of its own."""

    def __init__(self, *inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = list(inner)

    def call(self, x):
        return functools.reduce(lambda x, layer: layer(x), self.inner, x)

    def compute_output_shape(self, shape):
        return shape


@register
class Weighted(keras.Layer):
    """Takes a second tensor."""

    def call(self, x, weights):
        return x * weights

    def compute_output_shape(self, x_shape, weights_shape):
        return x_shape


@register
class Times(keras.Layer):
    """Takes an option that is not a tensor."""

    def call(self, x, factor=1.0):
        return x * factor

    def compute_output_shape(self, shape):
        return shape


@register
class Penalty(keras.Layer):
    def call(self, x):
        self.add_loss(ops.mean(ops.square(x)))
        return x

    def compute_output_shape(self, shape):
        return shape


@register
class Counter(keras.Layer):
    """Counts how often it is called, which is traced on most backends."""

    calls = 0

    def call(self, x):
        self.calls += 1
        return x

    def compute_output_shape(self, shape):
        return shape


# --- Which layers -------------------------------------------------------------


@scenario("A Dense head answers at each step")
def _(TimeDistributed):
    dense = layers.Dense(3, activation="softmax")
    check(TimeDistributed(dense), dense, normal(2, 5, 4))


@scenario("A CNN over the frames of a video")
def _(TimeDistributed):
    conv = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")
    check(TimeDistributed(conv), conv, normal(2, 4, 8, 8, 3))


@scenario("An unbuilt Sequential encodes each frame")
def _(TimeDistributed):
    encoder = cnn()
    check(TimeDistributed(encoder), encoder, normal(2, 4, 8, 8, 3))


@scenario("A functional model encodes each frame")
def _(TimeDistributed):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(3, 3, padding="same")(image)
    x = layers.Flatten()(layers.Add()([x, image]))
    encoder = keras.Model(image, layers.Dense(4)(x))
    check(TimeDistributed(encoder), encoder, normal(2, 4, 8, 8, 3))


@scenario("An LSTM sums up the words of each sentence")
def _(TimeDistributed):
    lstm = layers.LSTM(4)
    check(TimeDistributed(lstm), lstm, normal(2, 3, 5, 4))


@scenario("A Bidirectional GRU reads the words of each sentence")
def _(TimeDistributed):
    gru = layers.Bidirectional(layers.GRU(3, return_sequences=True))
    check(TimeDistributed(gru), gru, normal(2, 3, 5, 4))


@scenario("A TimeDistributed in a TimeDistributed")
def _(TimeDistributed):
    dense = layers.Dense(3)
    x = normal(2, 3, 4, 5)
    model = model_of(TimeDistributed(TimeDistributed(dense)), 3, 4, 5)
    kernel, bias = dense.get_weights()
    assert_equal(predict(model, x), x @ kernel + bias)


@scenario("A layer of one's own with weights")
def _(TimeDistributed):
    scale = Scale()
    check(TimeDistributed(scale), scale, normal(2, 3, 4))


@scenario("A layer made of layers, without a `build` of its own")
def _(TimeDistributed):
    block = Block(layers.Dense(4, activation="tanh"), layers.Dense(4))
    x = normal(2, 3, 4)
    model = model_of(TimeDistributed(block), 3, 4)
    assert_equal(predict(model, x), by_hand(block, x))
    assert len(model.trainable_variables) == 4


@scenario("A layer without `compute_output_shape`")
def _(TimeDistributed):
    twice = Twice()
    check(TimeDistributed(twice), twice, normal(2, 3, 4))


@scenario("uint8 frames through Rescaling")
def _(TimeDistributed):
    rescaling = layers.Rescaling(1 / 255)
    x = integers(255, 2, 3, 4, 4, 3).astype("uint8")
    check(TimeDistributed(rescaling), rescaling, x)


@scenario("A Normalization that was adapted")
def _(TimeDistributed):
    normalization = layers.Normalization()
    x = 3 + 2 * normal(2, 5, 4)
    normalization.adapt(x.reshape(-1, 4))
    layer = TimeDistributed(normalization)
    y = predict(model_of(layer, 5, 4), x)
    expected = (x - x.mean((0, 1))) / x.std((0, 1))
    np.testing.assert_allclose(y, expected, 1e-3, 1e-4)


@scenario("A Lambda makes one number of each step")
def _(TimeDistributed):
    mean = layers.Lambda(lambda x: ops.mean(x, axis=-1), output_shape=())
    check(TimeDistributed(mean), mean, normal(2, 3, 4))


@scenario("A model that ends in an argmax gives integers")
def _(TimeDistributed):
    inputs = keras.Input((5, 4))
    argmax = keras.Model(inputs, ops.argmax(inputs, axis=-1))
    model = model_of(TimeDistributed(argmax), 3, 5, 4)
    x = normal(2, 3, 5, 4)
    assert "int" in keras.backend.standardize_dtype(model.output.dtype)
    assert_equal(predict(model, x), by_hand(argmax, x))


@scenario("A backbone with BatchNormalization, in inference")
def _(TimeDistributed):
    backbone = keras.Sequential([layers.Conv2D(2, 3), Scale()])
    backbone.add(layers.BatchNormalization())
    model = model_of(TimeDistributed(backbone), 3, 6, 6, 1)
    backbone.set_weights([1 + normal(*w.shape) ** 2 for w in backbone.weights])
    x = normal(2, 3, 6, 6, 1)
    assert_equal(predict(model, x), by_hand(backbone, x, training=False))


# --- What goes in and what comes out ------------------------------------------


@scenario("(batch, time) ids into an Embedding")
def _(TimeDistributed):
    embedding = layers.Embedding(10, 4)
    check(TimeDistributed(embedding), embedding, integers(10, 2, 5))


STRINGS = "Only TensorFlow has tensors of strings."


@scenario("Strings into StringLookup", ["tensorflow"], STRINGS)
def _(TimeDistributed):
    lookup = layers.StringLookup(vocabulary=["a", "b", "c"])
    words = ops.convert_to_tensor([["a", "c"], ["b", "x"], ["c", "c"]])
    model = model_of(TimeDistributed(lookup), 2, dtype="string")
    assert_equal(model(words), np.array([[1, 3], [2, 0], [3, 3]]))


@scenario("Sentences into TextVectorization", ["tensorflow"], STRINGS)
def _(TimeDistributed):
    vectorize = layers.TextVectorization(
        vocabulary=["good", "bad"], output_sequence_length=3
    )
    texts = ops.convert_to_tensor([["Good, good!", "bad"], ["", "so bad"]])
    expected = [[[2, 2, 0], [3, 0, 0]], [[0, 0, 0], [1, 3, 0]]]
    model = model_of(TimeDistributed(vectorize), 2, dtype="string")
    assert_equal(model(texts), np.array(expected))


@scenario("A dict of inputs")
def _(TimeDistributed):
    inputs = {"left": keras.Input((4,)), "right": keras.Input((3,))}
    left = layers.Dense(2)(inputs["left"])
    two = keras.Model(inputs, left + layers.Dense(2)(inputs["right"]))
    x = {"left": normal(2, 5, 4), "right": normal(2, 5, 3)}
    check(TimeDistributed(two), two, x)


@scenario("An image and some numbers at each step, as a list")
def _(TimeDistributed):
    inputs = [keras.Input((6, 6, 1)), keras.Input((3,))]
    both = layers.Concatenate()([layers.Flatten()(inputs[0]), inputs[1]])
    two = keras.Model(inputs, layers.Dense(2)(both))
    check(TimeDistributed(two), two, [normal(2, 4, 6, 6, 1), normal(2, 4, 3)])


@scenario("Attention with a value at each step")
def _(TimeDistributed):
    attention = layers.Attention()
    x = [normal(2, 3, 4, 5), normal(2, 3, 6, 5)]
    check(TimeDistributed(attention), attention, x)


@scenario("MultiHeadAttention over the patches of each frame")
def _(TimeDistributed):
    attention = layers.MultiHeadAttention(2, 3)
    query, value = normal(2, 3, 4, 6), normal(2, 3, 5, 6)
    received = TimeDistributed(attention)(query, value)
    assert_equal(received, by_hand(attention, query, value))


@scenario("A GRU with an initial state at each step")
def _(TimeDistributed):
    gru = layers.GRU(4)
    x, state = normal(2, 3, 5, 4), normal(2, 3, 4)
    received = TimeDistributed(gru)(x, initial_state=state)
    expected = [gru(x[:, t], initial_state=state[:, t]) for t in range(3)]
    assert_equal(received, np.stack(numpy(expected), axis=1))


@scenario("A second tensor for the layer's `call`, in a model")
def _(TimeDistributed):
    inputs = keras.Input((3, 4)), keras.Input((3, 1))
    outputs = TimeDistributed(Weighted())(inputs[0], weights=inputs[1])
    x, weights = normal(2, 3, 4), normal(2, 3, 1)
    model = keras.Model(inputs, outputs)
    assert_equal(predict(model, (x, weights)), x * weights)


@scenario("An option of the layer's `call` that is not a tensor")
def _(TimeDistributed):
    x = normal(2, 3, 4)
    assert_equal(TimeDistributed(Times())(x, factor=3.0), 3 * x)


@scenario("A per-user vector next to each item (time of 1)")
def _(TimeDistributed):
    score = layers.Dot(axes=-1)
    user, items = normal(2, 1, 4), normal(2, 5, 4)
    expected = by_hand(score, [np.repeat(user, 5, axis=1), items])
    assert_equal(TimeDistributed(score)([user, items]), expected)


@scenario("The outputs of `return_state`")
def _(TimeDistributed):
    lstm = layers.LSTM(4, return_state=True)
    check(TimeDistributed(lstm), lstm, normal(2, 3, 5, 4))


@scenario("A model with a dict of outputs")
def _(TimeDistributed):
    inputs = keras.Input((4,))
    outputs = {"a": layers.Dense(2)(inputs), "b": layers.Dense(1)(inputs)}
    two = keras.Model(inputs, outputs)
    check(TimeDistributed(two), two, normal(2, 3, 4))


# --- Shapes -------------------------------------------------------------------


@scenario("Sizes that are known stay known")
def _(TimeDistributed):
    inputs = keras.Input((10, 8, 8, 3), batch_size=32)
    assert TimeDistributed(cnn())(inputs).shape == (32, 10, 3)
    inputs = keras.Input((10, 8, 8, 3))
    assert TimeDistributed(cnn())(inputs).shape == (None, 10, 3)


@scenario("`compute_output_shape` answers before any call")
def _(TimeDistributed):
    layer = TimeDistributed(layers.Conv2D(5, 3))
    shape = layer.compute_output_shape((None, 10, 8, 8, 3))
    assert tuple(shape) == (None, 10, 6, 6, 5)


@scenario("`build` with a shape creates the weights")
def _(TimeDistributed):
    layer = TimeDistributed(layers.Dense(3))
    layer.build((None, 10, 4))
    assert [w.shape for w in layer.weights] == [(4, 3), (3,)]


@scenario("Frames of unknown size")
def _(TimeDistributed):
    encoder = cnn()
    model = model_of(TimeDistributed(encoder), 3, None, None, 3)
    for size in 6, 8:
        x = normal(2, 3, size, size + 1, 3)
        assert_equal(predict(model, x), by_hand(encoder, x))


@scenario("Clips of unknown length")
def _(TimeDistributed):
    encoder = cnn()
    model = model_of(TimeDistributed(encoder), None, 8, 8, 3)
    assert model.output_shape == (None, None, 3)
    for time in 3, 5:
        x = normal(2, time, 8, 8, 3)
        assert_equal(predict(model, x), by_hand(encoder, x))


@scenario("Texts of unknown length, read by an LSTM")
def _(TimeDistributed):
    lstm = layers.LSTM(4)
    model = model_of(TimeDistributed(lstm), None, None, 4)
    for time, words in (3, 5), (5, 2):
        x = normal(2, time, words, 4)
        assert_equal(predict(model, x), by_hand(lstm, x))


@scenario("Training on clips of unknown length, with Dropout")
def _(TimeDistributed):
    dense = keras.Sequential([layers.Dense(8), layers.Dropout(0.5)])
    model = model_of(TimeDistributed(dense), None, 4)
    model.compile("sgd", "mse")
    for time in 3, 5:
        loss = model.train_on_batch(normal(2, time, 4), normal(2, time, 8))
        assert np.isfinite(loss)


@scenario("A batch of 0")
def _(TimeDistributed):
    dense = layers.Dense(3)
    received = TimeDistributed(dense)(np.zeros((0, 4, 5), "float32"))
    assert numpy(received).shape == (0, 4, 3)


@scenario("A time of 0")
def _(TimeDistributed):
    dense = layers.Dense(3)
    received = TimeDistributed(dense)(np.zeros((2, 0, 5), "float32"))
    assert numpy(received).shape == (2, 0, 3)


@scenario("128 steps do not take 128 calls of the layer")
def _(TimeDistributed):
    counter = Counter()
    model = model_of(TimeDistributed(counter), 128, 4)
    predict(model, normal(2, 128, 4))
    assert counter.calls < 10, f"{counter.calls} calls"


# --- Masks --------------------------------------------------------------------


@scenario("Padded steps change nothing in the LSTM that follows")
def _(TimeDistributed):
    inputs = keras.Input((None, 4))
    x = layers.Masking()(inputs)
    x = TimeDistributed(layers.Dense(3))(x)
    model = keras.Model(inputs, layers.LSTM(2)(x))
    x, _ = padded(normal(2, 6, 4), [4, 4])
    assert_equal(model(x), model(x[:, :4]))


@scenario("The loss leaves padded steps out")
def _(TimeDistributed):
    dense = layers.Dense(3)
    inputs = keras.Input((5, 4))
    outputs = TimeDistributed(dense)(layers.Masking()(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    x, mask = padded(normal(2, 5, 4), [2, 4])
    y = normal(2, 5, 3)
    expected = np.mean((by_hand(dense, x) - y)[mask] ** 2)
    received = model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(received, expected, rtol=1e-4)


@scenario("The mask of the words reaches the LSTM of each sentence")
def _(TimeDistributed):
    lstm = layers.LSTM(3)
    x = normal(2, 3, 5, 4)
    mask = np.arange(5) < np.array([[1, 5, 3], [2, 4, 5]])[..., None]
    received = numpy(TimeDistributed(lstm)(x, mask=mask))
    for b, t in np.ndindex(2, 3):
        words = x[b : b + 1, t, mask[b, t]]
        np.testing.assert_allclose(
            received[b, t], numpy(lstm(words))[0], 1e-4, 1e-5
        )


@scenario("Padded words and sentences change nothing")
def _(TimeDistributed):
    inputs = keras.Input((None, None), dtype="int32")
    x = layers.Embedding(10, 4, mask_zero=True)(inputs)
    x = TimeDistributed(layers.LSTM(3))(x)
    model = keras.Model(inputs, layers.LSTM(2)(x))
    text = integers(10, 2, 3, 4)
    more = np.pad(text, ((0, 0), (0, 2), (0, 3)))
    assert_equal(model(more), model(text))


@scenario("Labels of sentences: the loss leaves padded sentences out")
def _(TimeDistributed):
    inputs = keras.Input((None, None), dtype="int32")
    x = layers.Embedding(10, 4, mask_zero=True)(inputs)
    x = TimeDistributed(layers.LSTM(3))(x)
    model = keras.Model(inputs, x)
    model.compile("sgd", "mse")
    text, labels = integers(10, 2, 3, 4), normal(2, 3, 3)
    expected = np.mean((predict(model, text) - labels) ** 2)
    more = np.pad(text, ((0, 0), (0, 2), (0, 3)))
    labels = np.pad(labels, ((0, 0), (0, 2), (0, 0)), constant_values=9)
    received = model.evaluate(more, labels, verbose=0)
    np.testing.assert_allclose(received, expected, rtol=1e-4)


@scenario("An Embedding inside makes a mask, the next layer sees it")
def _(TimeDistributed):
    inputs = keras.Input((3, None), dtype="int32")
    x = TimeDistributed(layers.Embedding(10, 4, mask_zero=True))(inputs)
    model = keras.Model(inputs, TimeDistributed(layers.LSTM(3))(x))
    text = integers(10, 2, 3, 4)
    more = np.pad(text, ((0, 0), (0, 0), (0, 3)))
    assert_equal(model(more), model(text))


def check_step_mask(TimeDistributed, wrapped, x):
    """Valid steps are as by hand."""
    x, mask = padded(x, [x.shape[1], 2])
    inputs = keras.Input(x.shape[1:])
    steps = keras.Input(mask.shape[1:], dtype="bool")
    outputs = TimeDistributed(wrapped)(inputs, mask=steps)
    model = keras.Model([inputs, steps], outputs)
    received = predict(model, [x, mask])
    assert_equal(received[mask], by_hand(wrapped, x)[mask])


@scenario("A (batch, time) mask with an LSTM inside")
def _(TimeDistributed):
    check_step_mask(TimeDistributed, layers.LSTM(3), normal(2, 4, 5, 3))


@scenario("A (batch, time) mask with a Bidirectional inside")
def _(TimeDistributed):
    inner = layers.Bidirectional(layers.LSTM(3))
    check_step_mask(TimeDistributed, inner, normal(2, 4, 5, 3))


@scenario("A (batch, time) mask with a ConvLSTM inside")
def _(TimeDistributed):
    inner = layers.ConvLSTM2D(2, 3)
    check_step_mask(TimeDistributed, inner, normal(2, 4, 3, 5, 5, 2))


def check_batch_norm(TimeDistributed, *shape):
    """What padded steps hold reaches neither outputs nor statistics."""
    x, mask = padded(normal(*shape), [4, 2])
    outcomes = []
    for padding in 0.0, 9.0:
        norm = layers.BatchNormalization(axis=-1)
        filled = np.where(mask.reshape(2, 4, *[1] * (x.ndim - 2)), x, padding)
        filled = filled.astype("float32")
        outputs = TimeDistributed(norm)(filled, mask=mask, training=True)
        statistics = [norm.moving_mean, norm.moving_variance]
        outcomes.append([numpy(outputs)[mask], *numpy(statistics)])
    assert_equal(outcomes[0], outcomes[1])


@scenario("BatchNormalization of vectors leaves padded steps out")
def _(TimeDistributed):
    check_batch_norm(TimeDistributed, 2, 4, 3)


@scenario("BatchNormalization of frames leaves padded frames out")
def _(TimeDistributed):
    check_batch_norm(TimeDistributed, 2, 4, 5, 5, 3)


@scenario("Each of two inputs has its own mask")
def _(TimeDistributed):
    attention = layers.Attention()
    query, value = normal(2, 3, 4, 5), normal(2, 3, 6, 5)
    masks = [np.ones((2, 3, 4), bool), np.ones((2, 3, 6), bool)]
    masks[1][..., 4:] = False
    received = TimeDistributed(attention)([query, value], mask=masks)
    assert_equal(received, by_hand(attention, [query, value[:, :, :4]]))


@scenario("A mask shorter than the input raises a clear error")
def _(TimeDistributed):
    layer = TimeDistributed(layers.Dense(3))
    message = ""
    try:
        layer(normal(2, 5, 4), mask=np.ones((2, 4), bool))
    except ValueError as error:
        message = str(error)
    assert "mask" in message
    assert "2, 4" in message


# --- Training -----------------------------------------------------------------


@scenario("A CNN and an LSTM learn: the loss falls")
def _(TimeDistributed):
    model = keras.Sequential([keras.Input((4, 8, 8, 3))])
    model.add(TimeDistributed(cnn()))
    model.add(layers.LSTM(8))
    model.add(layers.Dense(1))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x, y = normal(8, 4, 8, 8, 3), normal(8, 1)
    history = model.fit(x, y, epochs=15, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]


@scenario("One SGD step moves the weights as a loop by hand would")
def _(TimeDistributed):
    x, y = normal(2, 3, 4), normal(2, 3, 5)
    dense, other = layers.Dense(5), layers.Dense(5)
    model = model_of(TimeDistributed(dense), 3, 4)
    inputs = keras.Input((3, 4))
    steps = [other(inputs[:, t]) for t in range(3)]
    loop = keras.Model(inputs, ops.stack(steps, axis=1))
    loop.set_weights(model.get_weights())
    for m in model, loop:
        m.compile(keras.optimizers.SGD(0.1), "mse")
        m.train_on_batch(x, y)
    assert_equal(dense.get_weights(), other.get_weights())


@scenario("A frozen layer stays frozen")
def _(TimeDistributed):
    dense = layers.Dense(4)
    dense.trainable = False
    model = model_of(TimeDistributed(dense), 3, 4)
    model = keras.Sequential([model, layers.Dense(1)])
    model.compile("sgd", "mse")
    before = dense.get_weights()
    model.fit(normal(2, 3, 4), normal(2, 3, 1), verbose=0)
    assert_equal(dense.get_weights(), before)
    assert len(model.trainable_variables) == 2


@scenario("A weight regularizer counts once")
def _(TimeDistributed):
    dense = layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1))
    model = model_of(TimeDistributed(dense), 5, 4)
    model(normal(2, 5, 4))
    expected = 0.1 * np.sum(numpy(dense.kernel) ** 2)
    np.testing.assert_allclose(float(sum(model.losses)), expected, rtol=1e-4)


@scenario("An inner activity regularizer counts")
def _(TimeDistributed):
    for time in 1, 3:
        dense = layers.Dense(3, activity_regularizer=keras.regularizers.L2(0.1))
        layer = TimeDistributed(dense)
        y = numpy(layer(normal(2, time, 4)))
        loss = float(sum(layer.losses))
        assert loss > 0, "no loss"
        if time == 1:
            np.testing.assert_allclose(loss, 0.1 * np.sum(y**2) / 2, rtol=1e-4)


@scenario("`add_loss` of an inner layer counts")
def _(TimeDistributed):
    for time in 1, 3:
        layer = TimeDistributed(Penalty())
        x = normal(2, time, 4)
        layer(x)
        loss = float(sum(layer.losses))
        assert loss > 0, "no loss"
        if time == 1:
            np.testing.assert_allclose(loss, np.mean(x**2), rtol=1e-4)


@scenario("`add_loss` of an inner layer trains, lengths unknown")
def _(TimeDistributed):
    inner = keras.Sequential([layers.Dense(3), Penalty()])
    model = model_of(TimeDistributed(inner), None, 4)
    model.compile("sgd", loss=None)
    assert model.train_on_batch(normal(2, 3, 4)) > 0


@scenario("BatchNormalization updates once for each batch, as in Keras 2")
def _(TimeDistributed):
    norm = layers.BatchNormalization(momentum=0.9)
    model = model_of(TimeDistributed(norm), 5, 3)
    model.compile("sgd", "mse")
    x = 2 + normal(4, 5, 3)
    model.train_on_batch(x, x)
    expected = 0.1 * x.mean((0, 1))
    assert_equal(norm.moving_mean, expected.astype("float32"))


# --- Randomness ---------------------------------------------------------------


@scenario("Dropout draws anew for each step")
def _(TimeDistributed):
    layer = TimeDistributed(layers.Dropout(0.5))
    y = numpy(layer(np.ones((2, 4, 64), "float32"), training=True))
    assert set(np.unique(y)) == {0.0, 2.0}
    steps = {y[:, t].tobytes() for t in range(4)}
    assert len(steps) == 4


@scenario("Dropout draws anew for each step, lengths unknown")
def _(TimeDistributed):
    model = model_of(TimeDistributed(layers.Dropout(0.5)), None, 64)
    training = keras.Sequential([keras.Input((None, 64)), model])
    x = np.ones((2, 4, 64), "float32")
    y = numpy(training(x, training=True))
    assert set(np.unique(y)) == {0.0, 2.0}
    assert len({y[:, t].tobytes() for t in range(4)}) == 4


@scenario("Dropout is off in inference")
def _(TimeDistributed):
    x = normal(2, 4, 8)
    model = model_of(TimeDistributed(layers.Dropout(0.5)), 4, 8)
    assert_equal(predict(model, x), x)


@scenario("`training=True` reaches every sublayer")
def _(TimeDistributed):
    inner = keras.Sequential([layers.Dense(8), Block(layers.Dropout(0.5))])
    model = model_of(TimeDistributed(inner), 4, 8)
    x = normal(2, 4, 8)
    assert np.mean(numpy(model(x, training=True)) == 0) > 0.2
    assert np.mean(numpy(model(x, training=False)) == 0) == 0


# --- Number types -------------------------------------------------------------


@scenario("The global policy is mixed_float16")
def _(TimeDistributed):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        dense = layers.Dense(3)
        x = normal(2, 3, 4)
        received = TimeDistributed(dense)(x)
        assert_equal(received, by_hand(dense, x), 1e-2, 1e-3)
        assert numpy(received).dtype == "float16"
    finally:
        keras.config.set_dtype_policy(policy)


@scenario("Only the wrapped layer is mixed_float16")
def _(TimeDistributed):
    dense = layers.Dense(3, dtype="mixed_float16")
    x = normal(2, 3, 4)
    received = TimeDistributed(dense)(x)
    assert_equal(received, by_hand(dense, x), 1e-2, 1e-3)


X64 = "JAX computes in float64 only where `jax_enable_x64` is set."


@scenario("A float64 layer keeps its precision", ["tensorflow", "torch"], X64)
def _(TimeDistributed):
    dense = layers.Dense(3, dtype="float64")
    x = 1 + normal(2, 3, 4).astype("float64") / 3
    kernel = normal(4, 3).astype("float64") / 3
    layer = TimeDistributed(dense)
    layer.build(x.shape)
    dense.set_weights([kernel, np.zeros(3)])
    received = numpy(layer(ops.convert_to_tensor(x, "float64")))
    expected = by_hand(dense, ops.convert_to_tensor(x, "float64"))
    assert_equal(received, expected, 1e-12, 1e-12)


@scenario("`quantize('int8')` of a model")
def _(TimeDistributed):
    dense = layers.Dense(8)
    model = model_of(TimeDistributed(dense), 3, 16)
    x = normal(2, 3, 16)
    before = predict(model, x)
    model.quantize("int8")
    assert keras.backend.standardize_dtype(dense._kernel.dtype) == "int8"
    assert_equal(predict(model, x), by_hand(dense, x))
    assert_equal(predict(model, x), before, atol=0.05)


@scenario("`enable_lora` of the wrapped layer")
def _(TimeDistributed):
    dense = layers.Dense(8)
    model = model_of(TimeDistributed(dense), 3, 4)
    dense.enable_lora(2)
    assert len(model.trainable_variables) == 3
    dense.lora_kernel_b.assign(normal(2, 8))
    x = normal(2, 3, 4)
    assert_equal(predict(model, x), by_hand(dense, x))


# --- Weights, saving and configs ----------------------------------------------


@scenario("The weights are counted once")
def _(TimeDistributed):
    model = model_of(TimeDistributed(layers.Dense(3)), 10, 4)
    assert model.count_params() == 4 * 3 + 3


@scenario("Weights come from a layer trained alone")
def _(TimeDistributed):
    alone = layers.Dense(3)
    x = normal(2, 5, 4)
    expected = by_hand(alone, x)
    layer = TimeDistributed(layers.Dense(3))
    layer.build((None, 5, 4))
    layer.set_weights(alone.get_weights())
    assert_equal(layer(x), expected)


@scenario("A model is saved and loaded")
def _(TimeDistributed):
    model = keras.Sequential([keras.Input((3, 8, 8, 3))])
    model.add(TimeDistributed(cnn()))
    model.add(TimeDistributed(Scale()))
    x = normal(2, 3, 8, 8, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.keras")
        model.save(path)
        assert_equal(predict(keras.models.load_model(path), x), model(x))


@scenario("Weights load from the file of a stock model")
def _(TimeDistributed):
    models = [
        model_of(cls(cnn()), 3, 8, 8, 3)
        for cls in (layers.TimeDistributed, TimeDistributed)
    ]
    x = normal(2, 3, 8, 8, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.weights.h5")
        models[0].save_weights(path)
        models[1].load_weights(path)
    assert_equal(models[1](x), models[0](x))


@scenario("`clone_model`")
def _(TimeDistributed):
    model = model_of(TimeDistributed(cnn()), 3, 8, 8, 3)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    x = normal(2, 3, 8, 8, 3)
    assert_equal(clone(x), model(x))


@scenario("A model goes through JSON and back")
def _(TimeDistributed):
    model = model_of(TimeDistributed(layers.LSTM(3)), 3, 5, 4)
    again = keras.models.model_from_json(model.to_json())
    again.set_weights(model.get_weights())
    x = normal(2, 3, 5, 4)
    assert_equal(again(x), model(x))


@scenario("`from_config` leaves the config alone")
def _(TimeDistributed):
    config = TimeDistributed(layers.Dense(3), name="td").get_config()
    before = copy.deepcopy(config)
    assert TimeDistributed.from_config(config).layer.units == 3
    assert config == before


# --- The table ----------------------------------------------------------------


def outcome(check, cls):
    """The outcome of a scenario, and the first line of what went wrong."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            check(cls)
    except AssertionError as error:
        return "wrong", first_line(error)
    except Exception as error:
        return "raises", f"{type(error).__name__}: {first_line(error)}"
    return "works", ""


def first_line(error):
    lines = [line.strip() for line in str(error).splitlines()]
    return next(filter(None, lines), "an assertion failed")


@contextlib.contextmanager
def quiet():
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def run(backend, part):
    """Outcomes `{sentence: {class: [outcome, message]}}`.

    Of all scenarios whose sentence has the part in it.
    """
    chosen = {s: SCENARIOS[s] for s in SCENARIOS if part in s}
    results = {}
    for i, (sentence, (check, only, reason)) in enumerate(chosen.items(), 1):
        print(f"[{i}/{len(chosen)}] {sentence}", file=sys.stderr)
        results[sentence] = {
            name: ["n/a", reason]
            if backend not in only
            else outcome(check, cls)
            for name, cls in CLASSES.items()
        }
    return results


def table(columns):
    """A Markdown table of `{title: {sentence: [outcome, message]}}`."""
    sentences = list(next(iter(columns.values())))
    rows = [["scenario", *columns], ["---"] + [":-:"] * len(columns)]
    notes = []
    for sentence in sentences:
        results = [column[sentence] for column in columns.values()]
        for result, message in results:
            if result == "n/a" and message not in notes:
                notes.append(message)
        rows.append([sentence, *(cell(result) for result, _ in results)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, *(f"\nn/a: {note}" for note in notes)])


def cell(result):
    return "✓" if result == "works" else result


def count(column):
    results = [result for result, _ in column.values() if result != "n/a"]
    parts = [f"{results.count('works')} of {len(results)} work"]
    for result, verb in ("wrong", "wrong"), ("raises", "raise"):
        if result in results:
            parts.append(f"{results.count(result)} {verb}")
    return ", ".join(parts)


def print_all(columns, details):
    print(table(columns))
    print(
        "\n✓: the right answer. wrong: another answer. raises: an exception.\n"
    )
    for title, column in columns.items():
        print(f"- {title}: {count(column)}")
    if details:
        for title, column in columns.items():
            print(f"\n{title}:\n")
            for sentence, (result, message) in column.items():
                if result in ("wrong", "raises"):
                    print(f"- {sentence}: {result}. {message}")


def main():
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("--only", default="", metavar="PART", help="sentences with PART only")
    add("--details", action="store_true", help="print what went wrong")
    add("--json", type=pathlib.Path, help="also write the outcomes here")
    add("--merge", nargs="+", type=pathlib.Path, help="print these outcomes")
    args = parser.parse_args()
    if args.merge:
        runs = [json.loads(path.read_text()) for path in args.merge]
        runs.sort(key=lambda run: list(BACKENDS).index(run["backend"]))
        columns = {
            f"{name} {BACKENDS[run['backend']]}": {
                sentence: result[name]
                for sentence, result in run["results"].items()
            }
            for name in CLASSES
            for run in runs
        }
    else:
        backend = keras.backend.backend()
        results = run(backend, args.only)
        columns = {
            name: {
                sentence: result[name] for sentence, result in results.items()
            }
            for name in CLASSES
        }
        if args.json:
            report = {"backend": backend, "results": results}
            args.json.write_text(json.dumps(report, indent=1))
    print_all(columns, args.details)
    failed = any(
        result in ("wrong", "raises")
        for title, column in columns.items()
        if title.startswith("keras_td")
        for result, _ in column.values()
    )
    sys.exit(failed)


if __name__ == "__main__":
    main()

"""Inputs, outputs, and their shapes."""

import keras
import numpy as np
from keras import layers
from keras import ops

from oracle import assert_equal
from oracle import by_hand
from oracle import check
from oracle import cnn
from oracle import integers
from oracle import model_of
from oracle import normal
from oracle import numpy
from oracle import predict
from own_layers import Counter
from own_layers import Times
from own_layers import Weighted
from scenario import scenario


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

"""A loop over the time steps, and data for it."""

import keras
import numpy as np
from keras import layers
from keras import ops
from keras import tree


def normal(*shape):
    values = np.random.default_rng(sum(shape)).normal(size=shape)
    return values.astype("float32")


def integers(high, *shape):
    return np.random.default_rng(0).integers(1, high, shape).astype("int32")


def numpy(nest):
    return tree.map_structure(ops.convert_to_numpy, nest)


def by_hand(layer, *inputs, **kwargs):
    """Calls the layer on one time step after another."""

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
    """The layer equals the loop, both called and in a model."""
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
    """Puts zeros after the length of each sample, and returns the mask too."""
    mask = np.arange(x.shape[1]) < np.asarray(lengths)[:, None]
    return x * mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), mask

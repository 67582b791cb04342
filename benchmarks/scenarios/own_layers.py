"""Custom layers."""

import functools

import keras
from keras import ops


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
    """Does not define its output shape."""

    def call(self, x):
        return ops.concatenate([x, 2 * x], axis=-1)


@register
class Block(keras.Layer):
    """Made of layers, without its own `build` or `training`."""

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
    """Counts its calls, which are traces on most backends."""

    calls = 0

    def call(self, x):
        self.calls += 1
        return x

    def compute_output_shape(self, shape):
        return shape

"""The wrapped layer is built as Keras builds the bare one."""

import keras
import numpy as np
import pytest
from keras import layers

from backends import needs
from keras_td import TimeDistributed
from modes import SEVERAL_CALLS
from modes import TIME
from modes import each_option
from modes import options_named
from reference import as_numpy
from reference import assert_close
from reference import normal


def sequential():
    return keras.Sequential(
        [layers.Dense(3), layers.BatchNormalization(), layers.Dropout(0.5)]
    )


class Holder(keras.Layer):
    def __init__(self):
        super().__init__()
        self.inner = sequential()

    def call(self, inputs, training=None):
        return self.inner(inputs, training=training)


class Builder(Holder):
    def build(self, input_shape):
        self.inner.build(input_shape)


class Model(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = sequential()

    def call(self, inputs, training=None):
        return self.inner(inputs, training=training)


class Outer(keras.Model):
    """Tells what it wraps of `training`, as public code does."""

    def __init__(self, **options):
        super().__init__()
        self.td = TimeDistributed(sequential(), **options)

    def call(self, inputs, training=None):
        return self.td(inputs, training=training)


BUILT_LATE = {
    "Sequential": lambda **o: TimeDistributed(sequential(), **o),
    "layer": lambda **o: TimeDistributed(Holder(), **o),
    "layer that builds": lambda **o: TimeDistributed(Builder(), **o),
    "model": lambda **o: TimeDistributed(Model(), **o),
    "in itself": lambda **o: TimeDistributed(
        TimeDistributed(sequential(), **o), **o
    ),
    "in a model": Outer,
}
EACH_KIND = {"one call": {}, **SEVERAL_CALLS}


@needs("training")
@pytest.mark.parametrize("make", BUILT_LATE.values(), ids=BUILT_LATE)
@options_named(["one call", "1 step", "2 steps, remat"])
def test_the_first_call_does_not_decide_whether_later_ones_train(
    option, make, rng
):
    model, x = make(**EACH_KIND[option]), normal(rng, 2, 3, 4, 5)
    model(x, training=True)
    weights = model.get_weights()

    first, second = model(x), model(x)

    assert_close(first, second)
    for after, before in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(after, before)


def test_the_shapes_of_all_arguments_build_the_layer(rng):
    built = []

    class Two(keras.Layer):
        def build(self, query_shape, value_shape, key_shape=None):
            built.append((query_shape, value_shape, key_shape))

        def call(self, query, value, key=None):
            return query + value

    x, y = normal(rng, 2, 3, 4), normal(rng, 2, 1, 4)

    TimeDistributed(Two())(x, value=y)

    assert built == [((6, 4), (6, 4), None)]


@pytest.mark.parametrize("built", [False, True])
@each_option
def test_a_layer_inside_keeps_what_it_makes_in_its_build(option, built, rng):
    class Scales(keras.Layer):
        """Leaves it to its call to build what is inside, as many do."""

        def __init__(self):
            super().__init__()
            # It makes tensors of its weights once.
            self.normalization = layers.Normalization()

        def build(self, input_shape):
            self.scale = self.add_weight(shape=(), initializer="ones")

        def call(self, inputs):
            return self.normalization(inputs) * self.scale

    td = TimeDistributed(Scales(), **SEVERAL_CALLS[option])
    x = normal(rng, 2, TIME, 3)
    if built:
        td.build(x.shape)

    for _ in range(2):
        np.testing.assert_allclose(as_numpy(td(x)), x, rtol=1e-5)

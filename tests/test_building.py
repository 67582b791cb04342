"""The wrapped layer is built as Keras builds the bare one."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from backends import needs
from keras_td import TimeDistributed
from modes import MODES
from modes import SEVERAL_CALLS
from modes import TIME
from modes import each_kind
from modes import each_option
from reference import as_numpy
from reference import assert_close
from reference import loop
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
    """Passes `training` on to what it wraps, as public code does."""

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


@needs("training")
@pytest.mark.parametrize("make", BUILT_LATE.values(), ids=BUILT_LATE)
@each_kind
def test_the_first_call_does_not_decide_whether_later_ones_train(
    option, make, rng
):
    model, x = make(**MODES[option]), normal(rng, 2, 3, 4, 5)
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
        """Builds what is inside in its call, as many layers do."""

        def __init__(self):
            super().__init__()
            # It makes tensors from its weights only once.
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


# So does the bare layer.
bare_warns = pytest.mark.filterwarnings(
    "ignore:[\\s\\S]*it looks like it has unbuilt state:UserWarning"
)


@keras.saving.register_keras_serializable(package="tests")
class Up(keras.Layer):
    """A decoder block with a skip connection, which can be twice as wide."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, inputs, skip=None, double=False):
        x = ops.concatenate([inputs, inputs], -1) if double else inputs
        return self.dense(x if skip is None else ops.concatenate([x, skip], -1))


@bare_warns
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("double", [False, True])
@each_kind
def test_a_layer_is_built_for_its_call_and_not_for_a_shape(
    option, double, depth, rng, tmp_path
):
    lead = (2, TIME, 3)[: depth + 1]
    x, skip = normal(rng, *lead, 5), normal(rng, *lead, 2)

    def wrapped():
        td = TimeDistributed(Up(), **MODES[option])
        return td if depth == 1 else TimeDistributed(td)

    td = wrapped()
    td.build(x.shape)
    eager = td(x, skip=skip, double=double)
    a, b = keras.Input(x.shape[1:]), keras.Input(skip.shape[1:])
    model = keras.Model([a, b], wrapped()(a, skip=b, double=double))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")

    assert eager.shape == (*lead, 4)
    assert_close(loaded([x, skip]), model([x, skip]))


class Skips(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = keras.Sequential([layers.Dense(4), layers.Dropout(0.5)])

    def call(self, inputs, skip):
        return self.inner(ops.concatenate([inputs, skip], -1))


@needs("training")
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("fails", [False, True])
@each_kind
def test_a_mistake_in_the_first_call_is_forgotten(option, fails, depth, rng):
    lead = (2, TIME, 3)[: depth + 1]
    x, skip = normal(rng, *lead, 5), normal(rng, *lead, 2)
    td = TimeDistributed(Skips(), **MODES[option])
    td = td if depth == 1 else TimeDistributed(td)
    if fails:
        with pytest.raises(Exception, match="skip"):
            td(x)

    td(x, skip=skip, training=True)

    assert_close(td(x, skip=skip), td(x, skip=skip))


@bare_warns
@needs("training")
@each_option
def test_a_layer_inside_may_be_for_training_alone(option, rng):
    class Auxiliary(keras.Model):
        def __init__(self):
            super().__init__()
            self.main, self.auxiliary = layers.Dense(3), layers.Dense(3)

        def call(self, inputs, training=None):
            outputs = self.main(inputs)
            return outputs + self.auxiliary(inputs) if training else outputs

    model, x = Auxiliary(), normal(rng, 2, TIME, 5)
    td = TimeDistributed(model, **SEVERAL_CALLS[option])

    td(x)
    for _ in range(2):
        assert_close(td(x, training=True), loop(model, x, training=True))


@each_kind
def test_a_layer_may_change_its_inputs_before_its_call(option, rng):
    class Doubles(keras.Layer):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(4)

        def __call__(self, inputs, **kwargs):
            return super().__call__(ops.concatenate([inputs] * 2, -1), **kwargs)

        def build(self, input_shape):
            self.dense.build(input_shape)

        def call(self, inputs):
            return self.dense(inputs)

    layer, x = Doubles(), normal(rng, 2, TIME, 5)

    outputs = TimeDistributed(layer, **MODES[option])(x)

    assert_close(outputs, loop(layer, x))


def test_the_layer_may_be_replaced_before_it_is_called(rng):
    td = TimeDistributed(layers.LSTM(3))
    td.layer = layers.Dense(2)
    x, mask = normal(rng, 2, 3, 4, 5), np.ones((2, 3, 4), bool)

    assert td(x, mask=mask).shape == (2, 3, 4, 2)

"""Every step sees the same layer, in one call."""

import functools

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras import tree

from backends import needs
from case import leaves
from case import one_or_all
from case import with_leaves
from cases import CASES
from cases import each
from cases import each_case
from keras_td import TimeDistributed
from limits import no_worse_than_plain
from reference import assert_close
from reference import gradients

each_separate = each([c for c in CASES if c.mixes_samples != "always"])
each_training = pytest.mark.parametrize("training", [False, True])


@each_separate
@no_worse_than_plain
def test_equals_a_loop_over_the_steps(case, rng):
    layer = case.make()
    args, kwargs = case.arrays(rng)

    actual = case.wrap(layer)(*args, training=False, **kwargs)

    assert_close(actual, case.oracle(layer, *args, training=False, **kwargs))


@each_training
@each_case
@no_worse_than_plain
def test_equals_one_call_on_the_steps_as_samples(case, training, rng):
    args, kwargs = case.arrays(rng)
    folded_args, folded_kwargs = case.folded(args, kwargs)

    # Layers that draw random numbers have the same seed in both calls.
    actual = case.wrapped()(*args, training=training, **kwargs)
    plain = case.make()(*folded_args, training=training, **folded_kwargs)

    assert_close(actual, case.unfolded(plain))


@needs("training")
@each([c for c in CASES if c.differentiable and c.mixes_samples != "always"])
@no_worse_than_plain
def test_has_the_gradients_of_a_loop(case, rng):
    training = not (case.random or case.mixes_samples)
    layer = case.make()
    td = case.wrap(layer)
    arrays = case.arrays(rng)
    weights = tree.map_structure(
        lambda y: ops.convert_to_tensor(rng.normal(size=y.shape), "float32"),
        td(*arrays[0], **arrays[1], training=training),
    )
    is_float = case.values in ("normal", "image")
    inputs = [keras.Variable(x) for x in leaves(arrays)] if is_float else []
    variables = layer.trainable_variables + inputs

    def loss_of(fn):
        def loss():
            tensors = [ops.convert_to_tensor(v) for v in inputs]
            args, kwargs = with_leaves(arrays, tensors or leaves(arrays))
            outputs = fn(*args, training=training, **kwargs)
            products = tree.map_structure(
                lambda y, w: ops.sum(y * w), outputs, weights
            )
            return sum(tree.flatten(products))

        return loss

    actual = gradients(loss_of(td), variables)
    expected = gradients(
        loss_of(functools.partial(case.oracle, layer)), variables
    )

    assert_close(actual, expected)
    assert any(np.any(g) for g in expected)


@each_case
@no_worse_than_plain
def test_compiled_equals_eager(case, rng):
    args, kwargs = case.arrays(rng)
    model = case.model_of(case.wrapped(), (args, kwargs))

    expected = case.wrapped()(*args, training=False, **kwargs)
    actual = model.predict_on_batch(one_or_all(leaves((args, kwargs))))
    actual = [ops.convert_to_tensor(y) for y in tree.flatten(actual)]
    assert_close(actual, tree.flatten(expected))


class Counter(keras.Layer):
    calls = 0

    def call(self, inputs):
        self.calls += 1
        return inputs * 2

    def compute_output_shape(self, input_shape):
        return input_shape


@pytest.mark.parametrize("time", [1, 3, 100])
def test_an_eager_call_calls_the_layer_once(time):
    counter = Counter()

    TimeDistributed(counter)(np.ones((2, time, 5), "float32"))

    assert counter.calls == 1


@pytest.mark.parametrize("time", [1, 3, 100])
def test_a_compiled_call_traces_the_layer_as_often_as_the_plain_layer(time):
    def traces(layer, counter, shape):
        model = keras.Sequential([keras.Input(shape[1:]), layer])
        built = counter.calls
        model.predict_on_batch(np.ones(shape, "float32"))
        return built, counter.calls

    plain, counter = Counter(), Counter()

    assert traces(TimeDistributed(counter), counter, (2, time, 5)) == traces(
        plain, plain, (2, 5)
    )


def test_folding_copies_nothing():
    seen = []

    class Keep(keras.Layer):
        def call(self, inputs):
            seen.append(inputs)
            return inputs

    x = ops.ones((2, 3, 5))
    td = TimeDistributed(Keep())
    td(x)

    match keras.backend.backend():
        case "tensorflow":
            buffers = [np.asarray(memoryview(t)) for t in (x, seen[0])]
            assert np.shares_memory(*buffers)
        case "torch":
            assert seen[0].data_ptr() == x.data_ptr()
        case "jax":
            import jax

            program = jax.jit(lambda x: td(x) + 1).lower(x).compile().as_text()
            assert "add(" in program
            assert "copy" not in program
            assert "transpose" not in program


def test_a_nested_wrapper_equals_one_over_the_product(rng):
    x = rng.normal(size=(2, 3, 4, 5)).astype("float32")
    dense = layers.Dense(6)

    nested = TimeDistributed(TimeDistributed(dense))(x)
    flat = TimeDistributed(dense)(x.reshape(2, 12, 5))

    assert_close(nested, ops.reshape(flat, (2, 3, 4, 6)))

"""With `remat`, the backward pass recomputes each call, with equal results."""

import gc
import random

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from backends import needs
from keras_td import TimeDistributed
from reference import as_numpy
from reference import assert_close
from reference import gradients
from reference import loop
from reference import normal

pytestmark = [needs("training"), needs("remat")]
each_number_of_steps = pytest.mark.parametrize("steps", [None, 1, 2])


class Calls(keras.Layer):
    """Counts how often Python calls it."""

    calls = 0

    def call(self, inputs):
        self.calls += 1
        return ops.sin(inputs)


@pytest.mark.parametrize("remat", [False, True])
def test_a_call_is_computed_again_in_the_backward_pass(remat):
    if keras.backend.backend() == "jax":
        pytest.skip(reason="JAX calls no Python in its backward pass")
    layer, x = Calls(), keras.Variable(np.ones((2, 5, 3)))
    td = TimeDistributed(layer, steps_per_call=1, remat=remat)
    td.build(x.shape)
    layer.calls = 0

    gradients(lambda: ops.sum(td(x)), [x])

    assert layer.calls == (10 if remat else 5)


class DoesMoreLater(layers.Dense):
    """Assigns and adds a loss in all calls but the first, or only in that."""

    def __init__(self, later):
        super().__init__(2)
        self.later = later
        self.calls = 0

    def build(self, input_shape):
        super().build(input_shape)
        self.seen = self.add_weight(
            shape=(), initializer="zeros", trainable=False
        )

    def call(self, inputs):
        self.calls += 1
        if (self.calls > 1) == self.later:
            self.seen.assign_add(1)
            self.add_loss(ops.mean(inputs))
        return super().call(inputs)


@each_number_of_steps
@pytest.mark.parametrize("later", [True, False])
def test_a_call_may_do_other_things_when_it_is_computed_again(
    later, steps, rng
):
    if keras.backend.backend() == "jax":
        pytest.skip(reason="JAX calls no Python in its backward pass")
    x = normal(rng, 2, 3, 4)
    layer = DoesMoreLater(later)
    td = TimeDistributed(layer, steps_per_call=steps, remat=True)
    td.build(x.shape)
    weights = layer.trainable_variables

    for _ in range(3):
        layer.calls = 0
        actual = gradients(lambda: ops.sum(ops.square(td(x))), weights)

    expected = gradients(lambda: ops.sum(ops.square(layer(x))), weights)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b)


@each_number_of_steps
@pytest.mark.parametrize("seed", [None, 3])
def test_the_same_numbers_are_drawn_again(steps, seed):
    x = keras.Variable(np.ones((2, 5, 40), "float32"))
    dropout = layers.Dropout(0.5, seed=seed)
    td = TimeDistributed(dropout, steps_per_call=steps, remat=True)
    td.build(x.shape)
    drawn = keras.Variable(np.zeros((2, 5, 40), "float32"), trainable=False)

    def loss():
        outputs = td(x, training=True)
        drawn.assign(ops.stop_gradient(outputs))
        return ops.sum(outputs)

    if keras.backend.backend() == "jax":
        # On JAX, gradients come from a function without side effects.
        with keras.StatelessScope():
            expected = as_numpy(td(x, training=True))
        [gradient] = gradients(loss, [x])
    else:
        [gradient] = gradients(loss, [x])
        expected = as_numpy(drawn)

    assert set(np.unique(gradient)) == {0, 2}
    np.testing.assert_array_equal(gradient, expected)


class Scale(keras.Layer):
    """Chooses a factor as Keras's augmentations do, with Python's `random`."""

    def call(self, inputs):
        return inputs * ops.full_like(inputs, random.randrange(2, 1000))


@each_number_of_steps
@pytest.mark.parametrize("share_randomness", [False, True])
def test_the_same_choices_are_made_again(steps, share_randomness):
    if keras.backend.backend() == "jax":
        pytest.skip(reason="JAX calls no Python in its backward pass")
    x = keras.Variable(np.ones((2, 5, 3), "float32"))
    td = TimeDistributed(
        Scale(),
        steps_per_call=steps,
        remat=True,
        share_randomness=share_randomness,
    )
    td.build(x.shape)
    factors, states = keras.Variable(np.zeros((2, 5, 3), "float32")), []

    def loss():
        outputs = td(x)
        factors.assign(ops.stop_gradient(outputs))
        random.random()
        states.append(random.getstate())
        return ops.sum(outputs)

    [gradient] = gradients(loss, [x])

    np.testing.assert_array_equal(gradient, as_numpy(factors))
    assert random.getstate() == states[-1], "drawn by the backward pass"


class Recomputes(keras.Layer):
    """Recomputes its own activations."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3, activation="tanh")

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs):
        return keras.remat(lambda x: self.dense(x))(inputs)


def recomputed_dense():
    with keras.RematScope(mode="full"):
        return layers.Dense(3, activation="tanh")


# On TensorFlow, Keras layers made in a scope do not compile, even unwrapped.
RECOMPUTED = {
    "a layer that recomputes": (Recomputes, True),
    "one in a model": (
        lambda: keras.Sequential([Recomputes(), layers.Dense(3)]),
        True,
    ),
    "one in a wrapper": (
        lambda: keras.Sequential(
            [
                layers.Reshape((1, 3)),
                TimeDistributed(Recomputes(), remat=True),
                layers.Flatten(),
            ]
        ),
        True,
    ),
    "a layer of a scope": (recomputed_dense, False),
    "one of a scope in a model": (
        lambda: keras.Sequential([layers.Dense(3), recomputed_dense()]),
        False,
    ),
}


def weights_after_training(make, run_eagerly, **options):
    keras.utils.set_random_seed(0)
    td = TimeDistributed(make(), **options)
    model = keras.Sequential([keras.Input((5, 3)), td])
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=run_eagerly)
    before = model.get_weights()
    x = np.linspace(-1, 1, 30, dtype="float32").reshape(2, 5, 3)
    model.fit(x, 2 * x, epochs=2, verbose=0)
    return before, model.get_weights()


@each_number_of_steps
@pytest.mark.parametrize("run_eagerly", [True, False])
@pytest.mark.parametrize("name", RECOMPUTED)
def test_a_layer_that_is_computed_again_by_itself_trains(
    name, run_eagerly, steps
):
    make, compiles = RECOMPUTED[name]
    if not (compiles or run_eagerly) and keras.backend.backend() != "torch":
        pytest.skip(reason="Keras does not compile layers of a RematScope")
    options = {"steps_per_call": steps, "remat": True}
    before, expected = weights_after_training(make, True)

    try:
        _, actual = weights_after_training(make, run_eagerly, **options)
    except ValueError:
        # TensorFlow rejects recomputation in a loop.
        assert keras.backend.backend() == "tensorflow"
        assert steps
        assert not run_eagerly
        return

    for weights, old in zip(actual, before, strict=True):
        assert (weights != old).any()
    assert_close(actual, expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"steps_per_call": 2}, {"steps_per_call": 2, "remat": True}],
    ids=["one call", "several calls", "remat"],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.Dense(3),
        lambda: keras.Sequential([layers.Dense(3), layers.Dense(3)]),
    ],
    ids=["layer", "model"],
)
def test_a_wrapper_of_a_scope_may_be_called_at_once(make, options, rng):
    with keras.RematScope(mode="full"):
        td = TimeDistributed(make(), **options)
    x = normal(rng, 2, 5, 3)

    first, second = td(x), td(x)

    assert_close(first, second)
    assert_close(first, loop(td.layer, x))


@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("nest", [False, True])
def test_nothing_is_kept_without_a_backward_pass(nest, steps):
    if keras.backend.backend() != "torch":
        pytest.skip(reason="only PyTorch keeps activations as Python objects")
    import torch

    class Nest(keras.Layer):
        """Returns no nest, as Keras keeps nested outputs that can be masked."""

        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1000)

        def call(self, inputs):
            return self.dense(inputs["x"]) + inputs["y"][0]

    layer = Nest() if nest else layers.Dense(1000)
    td = TimeDistributed(layer, steps_per_call=steps, remat=True)
    x = np.ones((2, 5, 3), "float32")
    x = {"x": x, "y": [x[..., :1]]} if nest else x
    td(x)

    def kept():
        shapes = [
            tuple(o.shape) for o in gc.get_objects() if type(o) is torch.Tensor
        ]
        return sum(s[-1:] == (1000,) and len(s) > 1 for s in shapes)

    gc.collect()
    before = kept()
    gc.disable()
    try:
        for _ in range(5):
            td(x)
        after = kept()
    finally:
        gc.enable()

    assert after == before


@each_number_of_steps
@pytest.mark.parametrize("share_randomness", [False, True])
def test_no_tracer_is_kept(steps, share_randomness, rng):
    if keras.backend.backend() != "jax":
        pytest.skip(reason="only JAX has tracers")
    import jax

    td = TimeDistributed(
        keras.Sequential([layers.Dense(3), layers.BatchNormalization()]),
        steps_per_call=steps,
        remat=True,
        share_randomness=share_randomness,
    )
    td.build((2, 21, 3))
    weights = [v.value for v in td.trainable_variables]
    others = [v.value for v in td.non_trainable_variables]

    def loss(weights, x):
        y, _ = td.stateless_call(weights, others, x, training=True)
        return ops.sum(ops.sin(y))

    with jax.checking_leaks():
        found = jax.jit(jax.grad(loss))(weights, normal(rng, 2, 21, 3))

    assert all(np.isfinite(as_numpy(g)).all() for g in found)


def test_outputs_may_be_complex(rng):
    class Spectrum(keras.Layer):
        def call(self, inputs):
            real, imaginary = ops.fft((inputs, ops.zeros_like(inputs)))
            i = ops.convert_to_tensor(1j, "complex64")
            return ops.cast(real, "complex64") + i * ops.cast(
                imaginary, "complex64"
            )

    x = keras.Variable(normal(rng, 2, 5, 4))

    def found(**options):
        td = TimeDistributed(Spectrum(), **options)
        td.build(x.shape)
        return td(x), gradients(lambda: ops.sum(ops.abs(td(x))), [x])

    assert_close(found(steps_per_call=1, remat=True), found())


@each_number_of_steps
@pytest.mark.parametrize("run_eagerly", [True, False])
def test_state_changes_once(steps, run_eagerly, rng):
    x = normal(rng, 6, 5, 3) * 3 + 1

    def fit(remat):
        norm = layers.BatchNormalization(momentum=0.5)
        td = TimeDistributed(norm, steps_per_call=steps, remat=remat)
        model = keras.Sequential([keras.Input((5, 3)), td])
        model.compile("sgd", "mse", run_eagerly=run_eagerly)
        model.fit(x, x, batch_size=6, epochs=2, verbose=0)
        return model.get_weights()

    assert_close(fit(remat=True), fit(remat=False))


@each_number_of_steps
def test_seeds_advance_alike(steps):
    x = np.ones((2, 5, 40), "float32")

    def draw(remat):
        dropout = layers.Dropout(0.5, seed=3)
        td = TimeDistributed(dropout, steps_per_call=steps, remat=remat)
        return [td(x, training=True) for _ in "123"]

    assert_close(draw(remat=True), draw(remat=False))


def test_fit_takes_wrappers_in_wrappers(rng):
    x = normal(rng, 2, 21, 3, 4)
    inner = TimeDistributed(layers.Dense(4), steps_per_call=2)
    td = TimeDistributed(inner, steps_per_call=1, remat=True)
    model = keras.Sequential([td])
    model.compile("sgd", "mse")

    loss = model.train_on_batch(x, x)

    assert np.isfinite(loss)


def test_wrappers_may_nest(rng):
    x = keras.Variable(normal(rng, 2, 3, 4, 5))
    dense = layers.Dense(4, activation="tanh")
    dense.build((None, 5))

    def found(td):
        td.build(x.shape)
        return gradients(lambda: ops.sum(td(x)), [dense.kernel, x])

    inner = TimeDistributed(dense, steps_per_call=2, remat=True)
    actual = found(TimeDistributed(inner, steps_per_call=2, remat=True))

    assert_close(actual, found(TimeDistributed(TimeDistributed(dense))))


class Passes(keras.Layer):
    """Returns its inputs; integers among them have no gradients."""

    def call(self, inputs, *others):
        return inputs, *others


@needs("remat")
@pytest.mark.parametrize("steps", [None, 1])
@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32"]
)
def test_integers_of_any_size_leave_as_they_are(dtype, steps):
    extremes = [0, 1]
    if dtype != "bool":
        limits = np.iinfo(dtype)
        extremes = [limits.min, limits.max, 1, limits.max // 3]
    integers = np.array([extremes] * 2).astype(dtype)
    x = np.ones(integers.shape, "float32")
    td = TimeDistributed(Passes(), remat=True, steps_per_call=steps)

    actual = td(x, integers, training=True)

    assert_close(actual, TimeDistributed(Passes())(x, integers))

"""Transforms that compile, map or differentiate functions take the layer."""

import functools

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_td import TimeDistributed
from modes import MODES
from modes import param
from reference import assert_close
from reference import normal

BACKEND = keras.backend.backend()
TIME = 12
MASK = np.arange(TIME) < np.array([3, TIME, 5, 1])[:, None]
OPTIONS = {
    **MODES,
    "skip masked": {"skip_masked": True},
    "skip masked, 5 steps": {"skip_masked": True, "steps_per_call": 5},
}


def total(f):
    return lambda x: ops.sum(ops.square(f(x)))


def of_jax():
    import jax

    return {
        "jit": jax.jit,
        "grad": lambda f: jax.grad(total(f)),
        "jit of grad": lambda f: jax.jit(jax.grad(total(f))),
        "grad of checkpoint": lambda f: jax.grad(total(jax.checkpoint(f))),
        "grad of grad": lambda f: jax.grad(total(jax.grad(total(f)))),
        "jvp": lambda f: lambda x: jax.jvp(f, (x,), (x,)),
        "vmap": lambda f: lambda x: jax.vmap(f)(ops.stack([x, 2 * x])),
        "vmap of grad": lambda f: (
            lambda x: jax.vmap(jax.grad(total(f)))(ops.stack([x, 2 * x]))
        ),
    }


def of_tensorflow():
    import tensorflow as tf

    compiled = functools.partial(tf.function, jit_compile=True)

    def tape(f):
        def gradients(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = total(f)(x)
            return tape.gradient(y, x)

        return gradients

    def jvp(f):
        def forward(x):
            with tf.autodiff.ForwardAccumulator(x, x) as accumulator:
                y = f(x)
            return accumulator.jvp(y)

        return forward

    return {
        "function": tf.function,
        "XLA": compiled,
        "tape": tape,
        "tape of function": lambda f: tape(tf.function(f)),
        "function of tape": lambda f: tf.function(tape(f)),
        "XLA of tape": lambda f: compiled(tape(f)),
        "tape of tape": lambda f: tape(tape(f)),
        "forward accumulator": jvp,
        "vectorized_map": lambda f: (
            lambda x: tf.vectorized_map(f, tf.stack([x, 2 * x]))
        ),
    }


def of_torch():
    import torch
    from torch import func

    return {
        "compile": lambda f: torch.compile(f, backend="eager"),
        "grad": lambda f: func.grad(total(f)),
        "grad of grad": lambda f: func.grad(total(func.grad(total(f)))),
        "jvp": lambda f: lambda x: func.jvp(f, (x,), (x,)),
        "vmap": lambda f: lambda x: func.vmap(f)(ops.stack([x, 2 * x])),
    }


OF_BACKEND = {"jax": of_jax, "tensorflow": of_tensorflow, "torch": of_torch}
TRANSFORMS = OF_BACKEND.get(BACKEND, dict)()
# What a backend recomputes does not have all kinds of gradients.
WITHOUT_REMAT = {
    "tensorflow": ["tape of tape", "forward accumulator"],
    "torch": ["grad", "grad of grad"],
}.get(BACKEND, [])


def over_steps(layer, masked):
    """Calls a layer on each step: the loop that all else is compared with."""

    def call(x):
        y = ops.stack([layer(x[:, t]) for t in range(TIME)], axis=1)
        return ops.where(MASK[..., None], y, 0.0) if masked else y

    return call


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("option", list(map(param, OPTIONS)))
@pytest.mark.parametrize(
    "transform",
    [
        # PyTorch compiles for seconds.
        pytest.param(name, marks=[pytest.mark.slow] * (name == "compile"))
        for name in TRANSFORMS
    ],
)
def test_a_transformed_call_gives_what_a_loop_gives(transform, option, rng):
    options = OPTIONS[option]
    if "remat" in options and transform in WITHOUT_REMAT:
        pytest.skip(reason=f"{BACKEND} has none through recomputed calls")
    masked = "skip_masked" in options
    layer = layers.Dense(3, "tanh")
    td = TimeDistributed(layer, **options)
    x = ops.convert_to_tensor(normal(rng, 4, TIME, 5))
    td(x)
    mask = {"mask": MASK} if masked else {}

    actual = TRANSFORMS[transform](lambda x: td(x, **mask))(x)

    expected = TRANSFORMS[transform](over_steps(layer, masked))(x)
    assert_close(actual, expected)


# PyTorch warns of cached functions.
@pytest.mark.filterwarnings("ignore:Dynamo detected:UserWarning")
def test_pytorch_compiles_one_graph_for_all_lengths(rng):
    if BACKEND != "torch":
        pytest.skip(reason="The compiler is PyTorch's")
    from torch import compile as compile_
    from torch._dynamo.testing import CompileCounter

    td = TimeDistributed(layers.Dense(3, "tanh"))
    td.build((4, TIME, 5))
    counter = CompileCounter()
    # It is an error if the graph breaks.
    compiled = compile_(td, backend=counter, fullgraph=True)

    for time in [12, 7, 9, 5, 11]:
        x = ops.convert_to_tensor(normal(rng, 4, time, 5))
        assert_close(compiled(x), td(x))

    # At the second length, the length becomes dynamic.
    assert counter.frame_count == 2


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("option", ["one call", "3 steps", "skip masked"])
def test_gradients_of_an_embedding_stay_sparse(option, compiled, rng):
    if BACKEND != "tensorflow":
        pytest.skip(reason="Keras has sparse gradients only on TensorFlow")
    import tensorflow as tf

    td = TimeDistributed(layers.Embedding(9, 3), **OPTIONS[option])
    td.build((4, TIME, 6))
    mask = {"mask": MASK} if "skip_masked" in OPTIONS[option] else {}

    def gradients(x):
        with tf.GradientTape() as tape:
            y = ops.sum(ops.square(td(x, **mask)))
        return tape.gradient(y, td.trainable_variables)

    ids = tf.constant(rng.integers(0, 9, (4, TIME, 6)), "int32")
    [actual] = (tf.function(gradients) if compiled else gradients)(ids)

    assert isinstance(actual, tf.IndexedSlices)

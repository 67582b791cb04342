"""What a backend cannot do, each shown without `TimeDistributed`.

A test that needs one of these names it with `needs`, and is skipped where Keras
itself fails. `test_backends.py` shows that the plain functions fail on exactly
the backends that are listed.
"""

import dataclasses
import subprocess
import sys
from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

INFERENCE_ONLY = ("numpy", "openvino")
ALL = (*INFERENCE_ONLY, "tensorflow", "jax", "torch")
# On the others, compilers take most of the time, so some tests try less there.
QUICK = keras.backend.backend() in ("torch", "numpy")
KERAS = tuple(map(int, keras.__version__.split(".")[:2]))


@dataclasses.dataclass
class Limit:
    reason: str
    backends: tuple[str, ...]
    plain: Callable[[], None]
    error: type | tuple[type, ...]

    def holds(self):
        return keras.backend.backend() in self.backends


def ones(*shape):
    return np.ones(shape, "float32")


def model_of(*plain_layers):
    model = keras.Sequential([keras.Input((5,)), *plain_layers])
    model.compile("sgd", "mse")
    return model


def train():
    model_of(layers.Dense(4)).train_on_batch(ones(2, 5), ones(2, 4))


def evaluate_with_a_loss_of_a_layer():
    dense = layers.Dense(4, activity_regularizer="l2")
    model_of(dense).evaluate(ones(2, 5), ones(2, 4), verbose=0)


def hook():
    layers.Dense(4).register_forward_hook(print)


def remat():
    keras.remat(ops.sin)


def multiply_in_float64():
    outputs = layers.Dense(4, dtype="float64")(np.ones((2, 5)))
    assert keras.backend.standardize_dtype(outputs.dtype) == "float64"


def draw_anew():
    dropout = layers.Dropout(0.5, seed=3)
    first, second = (
        ops.convert_to_numpy(dropout(ones(2, 40), training=True)) for _ in "12"
    )
    assert (first != second).any()


def pass_a_mask_on():
    sequence, mask = ops.ones((2, 3, 4)), ops.ones((2, 3), "bool")
    passed_on = layers.Attention().compute_mask([sequence] * 2, [mask, None])
    assert passed_on is mask


def slice_to_any_size():
    class First(keras.Layer):
        def call(self, inputs, size):
            return inputs[:, :size]

    inputs, size = (
        keras.Input((5,)),
        keras.Input((), batch_size=1, dtype="int32"),
    )
    model = keras.Model([inputs, size], First()(inputs, size[0]))
    model.predict_on_batch([ones(2, 5), np.array([3])])


class TwoOutputs(keras.Layer):
    state_size = 1

    def call(self, inputs, states):
        return (inputs, inputs[:, :1]), states


def loop_over_two_outputs():
    rnn = layers.RNN(TwoOutputs(), return_sequences=True)
    _, (first, _), _ = rnn.inner_loop(
        ops.ones((2, 3, 4)), [ops.ones((2, 1))], None
    )
    assert tuple(first.shape) == (2, 3, 4)


def broadcast_nothing():
    # It may kill the process.
    code = (
        "import numpy as np; from keras import ops;"
        "ops.convert_to_numpy(ops.broadcast_to(np.ones((0, 1)), (0, 2)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


LIMITS = {
    "training": Limit(
        "Keras does not train on it", INFERENCE_ONLY, train, NotImplementedError
    ),
    "losses of layers": Limit(
        "Keras cannot evaluate a model whose layers add losses on it",
        INFERENCE_ONLY,
        evaluate_with_a_loss_of_a_layer,
        (AttributeError, RuntimeError),
    ),
    "hooks": Limit(
        "its layers have no hooks",
        tuple(backend for backend in ALL if backend != "torch"),
        hook,
        AttributeError,
    ),
    "remat": Limit(
        "Keras has no `remat` before 3.9",
        ALL if KERAS < (3, 9) else (),
        remat,
        AttributeError,
    ),
    "float64": Limit(
        "Keras multiplies float64 matrices in float32 on it",
        INFERENCE_ONLY if KERAS < (3, 16) else (*INFERENCE_ONLY, "torch"),
        multiply_in_float64,
        AssertionError,
    ),
    "fresh dropout": Limit(
        "Keras's Dropout draws the same numbers in its first two calls on it",
        ("openvino",),
        draw_anew,
        AssertionError,
    ),
    "masks as they came": Limit(
        "Keras's attention layers pass on copies of masks on it",
        ("numpy",),
        pass_a_mask_on,
        AssertionError,
    ),
    "loops of nests": Limit(
        "Keras's RNN expects a single output of a cell on it",
        ("numpy",),
        loop_over_two_outputs,
        ValueError,
    ),
    "any size": Limit(
        "a size is never a tensor on it, and no slice can end at a tensor",
        ("jax",),
        slice_to_any_size,
        IndexError,
    ),
    "empty broadcast": Limit(
        "broadcasting a tensor without elements kills the process on it",
        ("openvino",),
        broadcast_nothing,
        subprocess.CalledProcessError,
    ),
}


def needs(name):
    limit = LIMITS[name]
    return pytest.mark.skipif(
        limit.holds(), reason=f"{keras.backend.backend()}: {limit.reason}"
    )


with_and_without_remat = pytest.mark.parametrize(
    "remat", [False, pytest.param(True, marks=needs("remat"))]
)

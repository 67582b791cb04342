"""The oracle: a layer called by hand on one time step after another."""

import keras
import numpy as np
from keras import ops
from keras import tree


def loop(layer, *args, **kwargs):
    """Stacks what `layer` returns for each time step of its arguments."""
    arrays = [x for x in tree.flatten((args, kwargs)) if hasattr(x, "shape")]
    time = max(x.shape[1] for x in arrays)
    steps = []
    for t in range(time):

        def at_step(x, t=t):
            if not hasattr(x, "shape"):
                return x
            return x[:, t if x.shape[1] == time else 0]

        step_args, step_kwargs = tree.map_structure(at_step, (args, kwargs))
        steps.append(layer(*step_args, **step_kwargs))
    return tree.map_structure(lambda *ys: ops.stack(ys, axis=1), *steps)


def assert_close(actual, expected):
    """Asserts equal nests, shapes and dtypes, and values equal to 1e-5."""
    tree.assert_same_structure(actual, expected)
    pairs = zip(tree.flatten(actual), tree.flatten(expected), strict=True)
    for a, e in pairs:
        assert dtype(a) == dtype(e)
        a, e = as_numpy(a), as_numpy(e)
        assert a.shape == e.shape
        if e.dtype.kind not in "biuf":
            np.testing.assert_array_equal(a, e)
            continue
        # Small values may be sums of large ones, with the errors of these.
        scale = max(
            1,
            np.abs(e, where=np.isfinite(e), out=np.zeros(e.shape, e.dtype)).max(
                initial=0
            ),
        )
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * scale)


def normal(rng, *shape):
    return rng.normal(size=shape).astype("float32")


def as_numpy(x):
    return x if isinstance(x, np.ndarray) else ops.convert_to_numpy(x)


def dtype(x):
    return keras.backend.standardize_dtype(x.dtype)


class MaskReader(keras.Layer):
    """Returns the mask of an array that takes no attributes."""

    supports_masking = True

    def call(self, inputs, mask=None):
        return mask

    def compute_mask(self, inputs, mask=None):
        return None


class MaskSetter(keras.Layer):
    """Gives its input a mask."""

    supports_masking = True

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def call(self, inputs):
        return inputs

    def compute_mask(self, inputs, mask=None):
        return self.mask


def with_mask(x, mask):
    return MaskSetter(ops.convert_to_tensor(mask))(ops.convert_to_tensor(x))


def mask_of(x):
    symbolic = keras.backend.is_keras_tensor(x)
    mask = getattr(x, "_keras_mask", None) if symbolic else MaskReader()(x)
    return None if mask is None else as_numpy(mask)


def gradients(loss, variables):
    """The gradients of the scalar `loss()` with respect to Keras variables."""
    values = [v.value for v in variables]
    match keras.backend.backend():
        case "jax":
            import jax

            def stateless(values):
                mapping = zip(variables, values, strict=True)
                with keras.StatelessScope(state_mapping=list(mapping)):
                    return loss()

            found = jax.jit(jax.grad(stateless))(values)
        case "tensorflow":
            import tensorflow as tf

            with tf.GradientTape() as tape:
                result = loss()
            zero = tf.UnconnectedGradients.ZERO
            found = tape.gradient(result, values, unconnected_gradients=zero)
        case "torch":
            import torch

            found = torch.autograd.grad(
                loss(), values, allow_unused=True, materialize_grads=True
            )
    return [as_numpy(ops.convert_to_tensor(g)) for g in found]

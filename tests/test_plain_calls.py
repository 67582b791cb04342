"""The fast path of a call does everything that other calls do."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from backends import needs
from keras_td import TimeDistributed
from reference import as_numpy
from reference import assert_close
from reference import dtype
from reference import loop
from reference import normal


class Untouched(keras.Layer):
    """Returns its inputs, in the dtype in which it gets them."""

    def __init__(self):
        super().__init__(autocast=False)

    def call(self, inputs):
        return inputs


LAYERS = {
    "Dense": lambda: layers.Dense(4),
    "Dense, mixed": lambda: layers.Dense(4, dtype="mixed_bfloat16"),
    "Dense, uncast": lambda: layers.Dense(4, autocast=False),
    "Dense, regularized": lambda: layers.Dense(4, activity_regularizer="l2"),
    "Dropout": lambda: layers.Dropout(0.5),
    "own": Untouched,
}
WRAPPERS = {
    "default": {},
    "cast": {"autocast": True},
    "mixed": {"dtype": "mixed_bfloat16"},
    "bfloat16, cast": {"dtype": "bfloat16", "autocast": True},
    "regularized": {"activity_regularizer": "l2"},
    "frozen": {"trainable": False},
    "1 step": {"steps_per_call": 1},
    "without masks": {"supports_masking": False},
}


def in_float32(x):
    return as_numpy(ops.cast(x, "float32"))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_each_call_is_like_the_first(wrapper, layer, rng):
    td = TimeDistributed(LAYERS[layer](), **WRAPPERS[wrapper])
    x = ops.convert_to_tensor(normal(rng, 2, 3, 5))

    first = td(x)
    first_losses = list(map(in_float32, td.losses))
    td(0 * x)
    losses_of_zeros = list(map(in_float32, td.losses))
    second = td(x)
    losses = list(map(in_float32, td.losses))

    assert dtype(second) == dtype(first)
    assert_close(second, first)
    np.testing.assert_allclose(losses, first_losses, rtol=1e-6)
    assert not any(losses_of_zeros)


@pytest.fixture
def built():
    td = TimeDistributed(layers.Dense(4))
    td(np.ones((2, 3, 5), "float32"))
    return td


def test_losses_of_an_earlier_call_are_forgotten():
    td = TimeDistributed(layers.Dense(4), activity_regularizer="l2")
    x = ops.ones((2, 3, 5))
    td(x)
    td.activity_regularizer = None

    td(x)

    assert not td.losses


class MasksZeros(layers.Dense):
    """Finds out itself which of its outputs are valid."""

    def compute_mask(self, inputs, mask=None):
        return ops.any(ops.not_equal(inputs, 0), axis=-1)


@pytest.mark.parametrize("where", ["class", "layer", "wrapper"])
def test_a_mask_that_is_made_leaves(where, rng):
    td = TimeDistributed(MasksZeros(4) if where == "class" else layers.Dense(4))
    if where == "layer":
        td.layer.compute_mask = MasksZeros(4).compute_mask
    if where == "wrapper":
        td.compute_mask = MasksZeros(4).compute_mask
    x = normal(rng, 2, 3, 5)
    x[:, 2] = 0
    x = ops.convert_to_tensor(x)
    td(x)

    outputs = td(x)

    pooled = as_numpy(layers.GlobalAveragePooling1D()(outputs))
    assert_close(pooled, as_numpy(outputs)[:, :2].mean(axis=1))


def test_a_spec_of_inputs_is_checked(built):
    built.input_spec = keras.InputSpec(shape=(None, 3, 5))

    built(ops.ones((2, 3, 5)))
    with pytest.raises(ValueError, match="incompatible with the layer"):
        built(ops.ones((2, 4, 5)))


@pytest.mark.parametrize("shape", [(), (5,)])
def test_what_has_no_time_is_refused(built, shape):
    with pytest.raises(ValueError, match="at least two axes"):
        built(ops.ones(shape))


@pytest.mark.parametrize("how", ["attached", "given"])
def test_a_mask_leaves(built, how, rng):
    x = normal(rng, 2, 3, 5)
    mask = np.array([[True, False, True], [True, True, False]])
    x[~mask] = 0
    x = ops.convert_to_tensor(x)

    if how == "given":
        outputs = built(x, mask=mask)
    else:
        outputs = built(layers.Masking()(x))

    pooled = as_numpy(layers.GlobalAveragePooling1D()(outputs))
    y = as_numpy(loop(built.layer, x))
    assert_close(pooled, np.stack([y[i, mask[i]].mean(axis=0) for i in (0, 1)]))


def test_arrays_become_tensors(built, rng):
    x = normal(rng, 2, 3, 5)

    outputs = built(x)

    assert ops.is_tensor(outputs)
    assert_close(outputs, loop(built.layer, x))


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_trains_as_what_is_around_it(training):
    class Around(keras.Layer):
        def __init__(self):
            super().__init__()
            self.inner = TimeDistributed(layers.Dropout(0.5))

        def call(self, inputs, training=None):
            return self.inner(inputs)

    around, x = Around(), ops.ones((4, 8, 16))
    around(x)

    assert (as_numpy(around(x, training=training)) == 0).any() == training


def test_masks_of_a_subclass_leave(rng):
    class FirstStep(TimeDistributed):
        def compute_mask(self, inputs, mask=None):
            first = ops.arange(inputs.shape[1]) < 1
            return ops.broadcast_to(first, inputs.shape[:2])

    td = FirstStep(layers.Dense(4))
    x = ops.convert_to_tensor(normal(rng, 2, 3, 5))
    td(x)

    outputs = td(x)

    pooled = as_numpy(layers.GlobalAveragePooling1D()(outputs))
    assert_close(pooled, as_numpy(outputs)[:, 0])


def test_a_layer_that_returns_other_samples_is_refused():
    td = TimeDistributed(layers.Lambda(lambda x: x[:-1]))
    x = ops.ones((2, 3, 5))

    for _ in range(2):
        with pytest.raises(ValueError, match=r"batch \* time"):
            td(x)


@needs("hooks")
def test_hooks_are_called(built):
    calls = []
    built.register_forward_hook(lambda *args: calls.append(args))

    built(ops.ones((2, 3, 5)))

    assert len(calls) == 1

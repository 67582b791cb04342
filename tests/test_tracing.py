"""What traces a model for any batch and any time takes the layer as well."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_td import TimeDistributed
from modes import MODES
from modes import each_mode
from modes import options_named
from reference import as_numpy
from reference import assert_close
from reference import normal

SIZES = [(2, 3), (5, 4), (1, 12), (3, 1), (1, 1)]


def cnn():
    return keras.Sequential(
        [
            layers.Conv1D(3, 2),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.GlobalAveragePooling1D(),
        ]
    )


def frames(option):
    """Frames, without a mask."""
    inputs = keras.Input((None, 4, 5))
    td = TimeDistributed(cnn(), **MODES[option])
    return keras.Model(inputs, td(inputs)), lambda rng, b, t: [
        normal(rng, b, t, 4, 5)
    ]


def masked_frames(option):
    """Frames, with a mask that is an input of the model."""
    inputs, mask = keras.Input((None, 5)), keras.Input((None,), dtype="bool")
    x = TimeDistributed(layers.Dense(3), **MODES[option])(inputs, mask=mask)
    outputs = layers.GlobalAveragePooling1D()(x)
    return keras.Model([inputs, mask], outputs), lambda rng, b, t: [
        normal(rng, b, t, 5),
        np.arange(t) < rng.integers(1, t + 1, (b, 1)),
    ]


def words(option):
    """Sentences of words, with masks that the model makes."""
    inputs = keras.Input((None, 4), dtype="int32")
    embedding = layers.Embedding(9, 3, mask_zero=True)
    x = TimeDistributed(embedding, **MODES[option])(inputs)
    x = TimeDistributed(layers.Dense(3), **MODES[option])(x)
    x = TimeDistributed(layers.GlobalAveragePooling1D(), **MODES[option])(x)
    return keras.Model(inputs, x), lambda rng, b, t: [
        np.where(np.arange(4) < rng.integers(0, 5, (b, t, 1)), 3, 0).astype(
            "int32"
        )
    ]


def user_and_items(option):
    """Items, and a user for all of them."""
    items, user = keras.Input((None, 5)), keras.Input((1, 3))
    td = TimeDistributed(layers.Concatenate(), **MODES[option])
    return keras.Model([items, user], td([items, user])), lambda rng, b, t: [
        normal(rng, b, t, 5),
        normal(rng, b, 1, 3),
    ]


each_model = pytest.mark.parametrize(
    "build", [frames, masked_frames, words, user_and_items]
)


def one_or_all(arrays):
    return arrays[0] if len(arrays) == 1 else arrays


@each_mode
@each_model
def test_pytorch_exports_it_for_any_batch_and_time(build, option, rng):
    torch = pytest.importorskip("torch", reason="The export is PyTorch's")
    if keras.backend.backend() != "torch":
        pytest.skip(reason="The export is PyTorch's")
    model, draw = build(option)

    def tensors(b, t):
        return one_or_all([torch.tensor(x) for x in draw(rng, b, t)])

    def dynamic(x):
        b, t = torch.export.Dim("b", max=64), torch.export.Dim("t", max=64)
        return {0: b, 1: t} if x.shape[1] > 1 else {0: b}

    example = tensors(2, 3)
    sizes = keras.tree.map_structure(dynamic, example)
    program = torch.export.export(
        model, (example,), dynamic_shapes=((sizes,),), strict=False
    ).module()

    for b, t in SIZES:
        x = tensors(b, t)
        with torch.no_grad():
            assert_close(program(x), model(x))


@each_mode
@each_model
def test_jax_exports_it_for_any_batch_and_time(build, option, rng):
    jax = pytest.importorskip("jax", reason="The export is JAX's")
    if keras.backend.backend() != "jax":
        pytest.skip(reason="The export is JAX's")
    export = pytest.importorskip("jax.export", reason="Older JAX has none")
    model, draw = build(option)
    weights = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]

    def predict(x):
        return model.stateless_call(weights, others, x, training=False)[0]

    b, t = export.symbolic_shape("b, t")

    def symbol(x):
        lead = (b, t) if x.shape[1] > 1 else (b, 1)
        return jax.ShapeDtypeStruct((*lead, *x.shape[2:]), x.dtype)

    example = one_or_all(draw(rng, 2, 3))
    symbols = keras.tree.map_structure(symbol, example)
    program = export.export(jax.jit(predict))(symbols)

    for b, t in SIZES:
        x = one_or_all(draw(rng, b, t))
        np.testing.assert_allclose(program.call(x), predict(x), atol=1e-6)


@options_named(["1 step", "3 steps", "shared randomness"])
def test_training_for_any_time_is_refused_where_it_cannot_be(option):
    jax = pytest.importorskip("jax", reason="The export is JAX's")
    if keras.backend.backend() != "jax":
        pytest.skip(reason="The export is JAX's")
    export = pytest.importorskip("jax.export", reason="Older JAX has none")
    td = TimeDistributed(layers.Dense(3), **MODES[option])
    td.build((2, 3, 5))
    weights = [v.value for v in td.trainable_variables]

    def train(x):
        return td.stateless_call(weights, [], x, training=True)[0]

    shape = export.symbolic_shape("b, t, 5")
    with pytest.raises(ValueError, match="cannot train in a program"):
        export.export(jax.jit(train))(jax.ShapeDtypeStruct(shape, "float32"))


@each_mode
@pytest.mark.parametrize("time", [3, 20])
@pytest.mark.parametrize("make", [lambda: layers.Dense(3), cnn])
def test_pytorch_maps_it_over_batches(make, time, option, rng):
    torch = pytest.importorskip("torch", reason="The transform is PyTorch's")
    if keras.backend.backend() != "torch":
        pytest.skip(reason="The transform is PyTorch's")
    td = TimeDistributed(make(), **MODES[option])
    x = torch.tensor(normal(rng, 4, 2, time, 4, 5))
    expected = ops.stack([td(batch) for batch in x])

    actual = torch.func.vmap(td)(x)

    np.testing.assert_allclose(as_numpy(actual), as_numpy(expected), atol=1e-5)


# PyTorch does not recompute there.
@options_named(["1 step", "3 steps", "more than all"])
def test_pytorch_takes_gradients_of_a_function_of_its_weights(option, rng):
    torch = pytest.importorskip("torch", reason="The transform is PyTorch's")
    if keras.backend.backend() != "torch":
        pytest.skip(reason="The transform is PyTorch's")
    td = TimeDistributed(layers.Dense(3), **MODES[option])
    x = torch.tensor(normal(rng, 2, 12, 5))
    td(x)
    weights = [v.value.detach() for v in td.trainable_variables]

    def loss(weights, x):
        return ops.sum(ops.square(td.stateless_call(weights, [], x)[0]))

    actual = torch.func.grad(loss)(weights, x)

    ops.sum(ops.square(td(x))).backward()
    expected = [v.value.grad for v in td.trainable_variables]
    assert_close(list(actual), expected)

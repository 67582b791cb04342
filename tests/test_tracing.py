"""The layer can be traced for any batch and any time."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import exporting
from case import one_or_all
from exported import MODELS
from keras_td import TimeDistributed
from modes import MODES
from modes import each_mode
from modes import names_and_options
from modes import options_named
from reference import as_numpy
from reference import assert_close
from reference import normal

SKIPPED = {"skip masked": {"skip_masked": True}}


def cnn():
    return keras.Sequential(
        [
            layers.Conv1D(3, 2),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.GlobalAveragePooling1D(),
        ]
    )


OPTIONS = {**MODES, **SKIPPED}
NAMES = ["CNN", "mask as an input", "hierarchical masks", "user and items"]
each_option = options_named(OPTIONS)
each_model = pytest.mark.parametrize("name", NAMES)


def assert_exported(export, name, option, rng):
    """Asserts that an exported model equals the model for any sizes."""
    example = MODELS[name]
    model = example.with_options(**OPTIONS[option])

    program = export(model, None, example)

    for batch, time in exporting.SIZES:
        arrays = example.draw(rng, batch, time)
        expected = model(one_or_all(arrays))
        assert_close(as_numpy(program(arrays)), as_numpy(expected))


@each_option
@each_model
def test_pytorch_exports_it_for_any_batch_and_time(name, option, rng):
    if keras.backend.backend() != "torch":
        pytest.skip(reason="The export is PyTorch's")
    assert_exported(exporting.torch_export, name, option, rng)


# PyTorch warns of its own functions.
@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")
@each_option
@pytest.mark.parametrize("name", ["CNN", "mask as an input"])
def test_what_pytorch_exports_for_fixed_sizes_can_be_lowered(name, option, rng):
    torch = pytest.importorskip("torch", reason="The export is PyTorch's")
    if keras.backend.backend() != "torch":
        pytest.skip(reason="The export is PyTorch's")
    example = MODELS[name]
    model = example.with_options(**OPTIONS[option])
    x = exporting.tensors(example.draw(rng, 2, 5))

    program = torch.export.export(model, (x,), strict=False)
    # As LiteRT does. PyTorch cannot where a call has assigned to a variable.
    program = program.run_decompositions().module()

    assert_close(as_numpy(program(x).detach()), as_numpy(model(x)))


# PyTorch warns of each number that it records, and of the trace itself.
@pytest.mark.filterwarnings("ignore")
@each_option
@each_model
def test_pytorch_traces_it_for_any_batch_and_time(name, option, rng):
    if keras.backend.backend() != "torch":
        pytest.skip(reason="The trace is PyTorch's")
    assert_exported(exporting.torch_trace, name, option, rng)


@names_and_options(NAMES, OPTIONS)
def test_jax_exports_it_for_any_batch_and_time(name, option, rng):
    if keras.backend.backend() != "jax":
        pytest.skip(reason="The export is JAX's")
    pytest.importorskip("jax.export", reason="Older JAX has none")
    assert_exported(exporting.jax_export, name, option, rng)


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

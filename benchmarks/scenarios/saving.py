"""Dtypes, weights, files and configs."""

import copy
import pathlib
import tempfile

import keras
import numpy as np
from keras import layers
from keras import ops

from oracle import assert_equal
from oracle import by_hand
from oracle import cnn
from oracle import model_of
from oracle import normal
from oracle import numpy
from oracle import predict
from own_layers import Scale
from scenario import scenario


@scenario("The global policy is mixed_float16")
def _(TimeDistributed):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        dense = layers.Dense(3)
        x = normal(2, 3, 4)
        received = TimeDistributed(dense)(x)
        assert_equal(received, by_hand(dense, x), 1e-2, 1e-3)
        assert numpy(received).dtype == "float16"
    finally:
        keras.config.set_dtype_policy(policy)


@scenario("Only the wrapped layer is mixed_float16")
def _(TimeDistributed):
    dense = layers.Dense(3, dtype="mixed_float16")
    x = normal(2, 3, 4)
    received = TimeDistributed(dense)(x)
    assert_equal(received, by_hand(dense, x), 1e-2, 1e-3)


X64 = "JAX computes in float64 only if `jax_enable_x64` is set."


@scenario("A float64 layer keeps its precision", ["tensorflow", "torch"], X64)
def _(TimeDistributed):
    dense = layers.Dense(3, dtype="float64")
    x = 1 + normal(2, 3, 4).astype("float64") / 3
    kernel = normal(4, 3).astype("float64") / 3
    layer = TimeDistributed(dense)
    layer.build(x.shape)
    dense.set_weights([kernel, np.zeros(3)])
    received = numpy(layer(ops.convert_to_tensor(x, "float64")))
    expected = by_hand(dense, ops.convert_to_tensor(x, "float64"))
    assert_equal(received, expected, 1e-12, 1e-12)


@scenario("`quantize('int8')` of a model")
def _(TimeDistributed):
    dense = layers.Dense(8)
    model = model_of(TimeDistributed(dense), 3, 16)
    x = normal(2, 3, 16)
    before = predict(model, x)
    model.quantize("int8")
    assert keras.backend.standardize_dtype(dense._kernel.dtype) == "int8"
    assert_equal(predict(model, x), by_hand(dense, x))
    assert_equal(predict(model, x), before, atol=0.05)


@scenario("`enable_lora` of the wrapped layer")
def _(TimeDistributed):
    dense = layers.Dense(8)
    model = model_of(TimeDistributed(dense), 3, 4)
    dense.enable_lora(2)
    assert len(model.trainable_variables) == 3
    dense.lora_kernel_b.assign(normal(2, 8))
    x = normal(2, 3, 4)
    assert_equal(predict(model, x), by_hand(dense, x))


@scenario("The weights are counted once")
def _(TimeDistributed):
    model = model_of(TimeDistributed(layers.Dense(3)), 10, 4)
    assert model.count_params() == 4 * 3 + 3


@scenario("Weights come from a layer trained alone")
def _(TimeDistributed):
    alone = layers.Dense(3)
    x = normal(2, 5, 4)
    expected = by_hand(alone, x)
    layer = TimeDistributed(layers.Dense(3))
    layer.build((None, 5, 4))
    layer.set_weights(alone.get_weights())
    assert_equal(layer(x), expected)


@scenario("A model is saved and loaded")
def _(TimeDistributed):
    model = keras.Sequential([keras.Input((3, 8, 8, 3))])
    model.add(TimeDistributed(cnn()))
    model.add(TimeDistributed(Scale()))
    x = normal(2, 3, 8, 8, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.keras")
        model.save(path)
        assert_equal(predict(keras.models.load_model(path), x), model(x))


@scenario("Weights load from the file of a stock model")
def _(TimeDistributed):
    models = [
        model_of(cls(cnn()), 3, 8, 8, 3)
        for cls in (layers.TimeDistributed, TimeDistributed)
    ]
    x = normal(2, 3, 8, 8, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.weights.h5")
        models[0].save_weights(path)
        models[1].load_weights(path)
    assert_equal(models[1](x), models[0](x))


@scenario("`clone_model`")
def _(TimeDistributed):
    model = model_of(TimeDistributed(cnn()), 3, 8, 8, 3)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    x = normal(2, 3, 8, 8, 3)
    assert_equal(clone(x), model(x))


@scenario("A model goes through JSON and back")
def _(TimeDistributed):
    model = model_of(TimeDistributed(layers.LSTM(3)), 3, 5, 4)
    again = keras.models.model_from_json(model.to_json())
    again.set_weights(model.get_weights())
    x = normal(2, 3, 5, 4)
    assert_equal(again(x), model(x))


@scenario("`from_config` leaves the config alone")
def _(TimeDistributed):
    config = TimeDistributed(layers.Dense(3), name="td").get_config()
    before = copy.deepcopy(config)
    assert TimeDistributed.from_config(config).layer.units == 3
    assert config == before

"""Everything that Keras documents for `keras.layers.TimeDistributed`."""

import importlib.metadata
import runpy

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_td
from keras_td import TimeDistributed
from reference import assert_close


def test_is_a_wrapper_a_layer_and_an_operation():
    td = TimeDistributed(layers.Dense(2))

    assert isinstance(td, keras.layers.Wrapper)
    assert isinstance(td, keras.Layer)
    assert isinstance(td, keras.Operation)


def test_symbolic_call():
    td = TimeDistributed(layers.Dense(2))
    td.build((None, 3, 4))

    outputs = td.symbolic_call(keras.KerasTensor((None, 3, 4)))

    assert outputs.shape == (None, 3, 2)


def test_input_and_output_are_those_of_the_first_symbolic_call():
    td = TimeDistributed(layers.Dense(2))
    first, second = keras.Input((3, 4)), keras.Input((5, 4))
    outputs = td(first)
    td(second)

    assert td.input is first
    assert td.output is outputs


def test_get_config_and_from_config(rng):
    td = TimeDistributed(layers.Dense(2, name="head"), name="steps")

    config = td.get_config()
    copy = TimeDistributed.from_config(config)

    assert copy.get_config() == config
    assert copy.name == "steps"
    assert copy.layer.name == "head"


@pytest.mark.parametrize("layer", [None, "dense", 3, layers.Dense, ops.relu])
def test_anything_but_a_layer_raises(layer):
    with pytest.raises(ValueError, match="Please initialize `TimeDistributed`"):
        TimeDistributed(layer)


def test_documented_example():
    inputs = keras.Input((10, 128, 128, 3))
    outputs = TimeDistributed(layers.Conv2D(64, (3, 3)))(inputs)
    assert outputs.shape == (None, 10, 126, 126, 64)


def test_documented_example_with_a_batch_size():
    inputs = keras.Input((10, 128, 128, 3), batch_size=32)
    outputs = TimeDistributed(layers.Conv2D(64, (3, 3)))(inputs)
    assert outputs.shape == (32, 10, 126, 126, 64)


def test_the_same_weights_at_every_step(rng):
    td = TimeDistributed(layers.Dense(2))
    step = rng.normal(size=(2, 1, 4)).astype("float32")

    outputs = td(np.repeat(step, 3, axis=1))

    assert len(td.weights) == 2
    assert_close(outputs[:, 0], outputs[:, 1])
    assert_close(outputs[:, 0], outputs[:, 2])


class Recorder(keras.Layer):
    def __init__(self):
        super().__init__()
        self.training = self.mask = "never called"

    def call(self, inputs, training=None, mask=None):
        self.training, self.mask = training, mask
        return inputs


@pytest.mark.parametrize("training", [True, False])
def test_training_is_passed_on(training):
    recorder = Recorder()

    TimeDistributed(recorder)(np.ones((2, 3, 4)), training=training)

    assert recorder.training is training


def test_mask_is_passed_on():
    recorder, mask = Recorder(), np.array([[True, False], [False, True]])

    TimeDistributed(recorder)(np.ones((2, 2, 4)), mask=mask)

    assert_close(recorder.mask, ops.convert_to_tensor(mask.reshape(4)))


def test_training_and_mask_are_for_layers_that_take_them():
    class Plain(keras.Layer):
        def call(self, inputs):
            return inputs

    x = np.ones((2, 3, 4), "float32")
    td = TimeDistributed(Plain())

    assert_close(td(x, training=True, mask=np.ones((2, 3), bool)), ops.array(x))


def test_public_names():
    assert keras_td.__all__ == ["TimeDistributed", "replacing", "upgrade"]
    assert keras_td.__version__


def test_a_copy_of_the_folder_works_without_an_installation(monkeypatch):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)

    found = runpy.run_path(keras_td.__file__)

    assert found["TimeDistributed"] is keras_td.TimeDistributed
    assert found["__version__"] == "unknown"

"""An exported model gives what the model gives, for any batch and time."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_td import TimeDistributed
from modes import MODES
from reference import as_numpy
from reference import assert_close
from reference import normal

pytest.importorskip("tf2onnx", reason="`nox -s exports` installs it")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore")
OPTIONS = {**MODES, "skip masked": {"skip_masked": True}}


def dense(options):
    inputs = keras.Input((None, 5))
    return keras.Model(
        inputs, TimeDistributed(layers.Dense(3), **options)(inputs)
    )


def cnn(options):
    inputs = keras.Input((None, 4, 5))
    inner = keras.Sequential(
        [
            layers.Conv1D(3, 2),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling1D(),
        ]
    )
    return keras.Model(inputs, TimeDistributed(inner, **options)(inputs))


def recurrent(options):
    inputs = keras.Input((None, 4, 5))
    x = TimeDistributed(layers.LSTM(3), **options)(inputs)
    return keras.Model(inputs, layers.GRU(2)(x))


def words(options):
    inputs = keras.Input((None, 4), dtype="int32")
    embedding = layers.Embedding(9, 3, mask_zero=True)
    x = TimeDistributed(embedding, **options)(inputs)
    x = TimeDistributed(layers.LSTM(3), **options)(x)
    return keras.Model(inputs, layers.LSTM(2)(x))


def drawn(model, rng, batch, time):
    _, _, *inner = model.input.shape
    if model.input.dtype == "float32":
        return normal(rng, batch, time, *inner)
    ids = rng.integers(1, 9, (batch, time, *inner))
    lengths = rng.integers(0, 5, (batch, time, 1))
    return np.where(np.arange(4) < lengths, ids, 0).astype("int32")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("make", [dense, cnn, recurrent, words])
def test_onnx_gives_what_the_model_gives(make, option, rng, tmp_path):
    model = make(OPTIONS[option])
    model(drawn(model, rng, 2, 3))

    model.export(tmp_path / "model.onnx", format="onnx", verbose=False)

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    [name] = [x.name for x in session.get_inputs()]
    for batch, time in [(2, 3), (5, 4), (1, 12), (3, 1), (4, 7)]:
        x = drawn(model, rng, batch, time)
        [y] = session.run(None, {name: x})
        assert_close(y, as_numpy(model(x)))

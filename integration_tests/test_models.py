import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from keras_td import TimeDistributed

LOAD_AND_PREDICT = """
import sys
import keras
import keras_td
import numpy as np

saved, inputs, outputs = sys.argv[1:]
model = keras.saving.load_model(saved)
np.save(outputs, model.predict(np.load(inputs), verbose=0))
"""


def text_model():
    documents = keras.Input((None, None), dtype="int32")
    x = TimeDistributed(layers.Embedding(20, 8, mask_zero=True))(documents)
    x = TimeDistributed(layers.LSTM(8))(x)
    x = layers.LSTM(8)(x)
    return keras.Model(documents, layers.Dense(1, activation="sigmoid")(x))


def documents():
    x = np.random.default_rng(0).integers(1, 20, size=(32, 4, 6))
    y = x[:, 0, 0] > 9
    x[:, 0, :3] = np.where(y, 3, 7)[:, None]
    x[:, :, 4:] = 0
    x[::2, 3] = 0
    return x.astype("int32"), y.astype("float32")


def video_model():
    frames = keras.Input((5, 8, 8, 1))
    cnn = keras.Sequential(
        [layers.Conv2D(4, 3, activation="relu"), layers.GlobalMaxPooling2D()]
    )
    x = TimeDistributed(cnn)(frames)
    x = layers.GRU(8)(x)
    return keras.Model(frames, layers.Dense(1, activation="sigmoid")(x))


def videos():
    x = np.random.default_rng(0).normal(size=(32, 5, 8, 8, 1))
    y = np.arange(32) % 2
    x[y == 1, 3] += 2
    return x.astype("float32"), y.astype("float32")


def train(model, x, y):
    model.compile(keras.optimizers.Adam(0.03), "binary_crossentropy")
    history = model.fit(x, y, epochs=20, verbose=0).history
    return [float(loss) for loss in history["loss"]]


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


@pytest.fixture(params=["text", "video"])
def task(request):
    if request.param == "text":
        return text_model(), *documents()
    return video_model(), *videos()


def test_training_lowers_the_loss(task):
    loss = train(*task)
    assert loss[-1] < loss[0] / 2


def test_a_saved_model_predicts_the_same_in_a_fresh_process(task, tmp_path):
    model, x, y = task
    train(model, x, y)
    saved, inputs, outputs = (
        tmp_path / name for name in ("model.keras", "x.npy", "y.npy")
    )
    model.save(saved)
    np.save(inputs, x)
    subprocess.run(
        [sys.executable, "-c", LOAD_AND_PREDICT, saved, inputs, outputs],
        check=True,
    )
    np.testing.assert_allclose(
        np.load(outputs), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )


def test_padding_leaves_the_predictions_of_a_text_model_alone():
    model, (x, _) = text_model(), documents()
    padded = np.pad(x, ((0, 0), (0, 3), (0, 2)))
    np.testing.assert_allclose(
        model.predict(padded, verbose=0),
        model.predict(x, verbose=0),
        rtol=1e-5,
        atol=1e-6,
    )

"""Exports a reader of digits, and runs it without Keras.

`TimeDistributed` applies a small CNN to each frame of a clip, and the largest
score of each digit over time says whether the clip shows it. Trained on clips
of 6 frames, the model is exported for any number of clips and of frames, in the
format of its backend: a TensorFlow SavedModel, a `jax.export` program or a
`torch.export` program. Another process loads it and gets the same numbers. It
imports neither this package nor Keras (TensorFlow itself may import Keras).

    pip install keras_td jax flatbuffers scikit-learn
    python export.py

Set `KERAS_BACKEND` to "torch" or "tensorflow" to run it on another backend.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's chatter

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

import keras_td

# The program of another process, around what depends on the format.
START = "import sys; import numpy as np; path, *clips, result = sys.argv[1:]"
LOAD = {
    "tensorflow": """
import tensorflow as tf
loaded = tf.saved_model.load(path)
run = loaded.serve
""",
    "jax": """
from jax import export
run = export.deserialize(bytearray(open(path, "rb").read())).call
""",
    "torch": """
import torch
program = torch.export.load(path).module()
run = lambda frames: program(torch.tensor(frames)).detach()
""",
}
RUN = """
assert "keras_td" not in sys.modules
np.savez(result, *[np.asarray(run(np.load(clip))) for clip in clips])
"""


def make_clips(rng, count, time):
    """Frames `(count, time, 8, 8, 1)`, and the digits that each clip shows."""
    images, labels = load_digits(return_X_y=True)
    picked = rng.integers(len(images), size=(count, time))
    frames = images[picked].reshape(count, time, 8, 8, 1) / 16
    shown = np.eye(10)[labels[picked]].max(axis=1)
    return frames.astype("float32"), shown.astype("float32")


def make_model():
    cnn = keras.Sequential(
        [
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    frames = keras.Input((None, 8, 8, 1))  # any number of frames
    scores = keras_td.TimeDistributed(cnn)(frames)
    shown = keras.ops.sigmoid(keras.ops.max(scores, axis=1))
    return keras.Model(frames, shown)


def export(model, folder):
    """Exports a model for any number of clips and frames; returns the path."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        path = folder / "model"
        model.export(path, format="tf_saved_model", verbose=False)
    elif backend == "torch":
        path = folder / "model.pt2"
        shapes = shapes_of_torch()
        model.export(path, format="torch", verbose=False, dynamic_shapes=shapes)
    else:
        path = folder / "model.jax"
        path.write_bytes(program_of_jax(model).serialize())
    return path


def shapes_of_torch():
    from torch.export import Dim

    return [{0: Dim("clips"), 1: Dim("time")}]


def program_of_jax(model):
    import jax
    from jax import export

    def predict(frames):
        outputs, _ = model.stateless_call(
            [v.value for v in model.trainable_variables],
            [v.value for v in model.non_trainable_variables],
            frames,
            training=False,
        )
        return outputs

    sizes = export.symbolic_shape("clips, time, 8, 8, 1")
    frames = jax.ShapeDtypeStruct(sizes, "float32")
    return export.export(jax.jit(predict))(frames)


def run_elsewhere(path, batches, folder):
    """Runs an exported model in a process of its own."""
    files = [folder / f"{i}.npy" for i in range(len(batches))]
    for file, frames in zip(files, batches, strict=True):
        np.save(file, frames)
    result = folder / "result.npz"
    script = START + LOAD[keras.backend.backend()] + RUN
    command = [sys.executable, "-c", script, path, *files, result]
    subprocess.run(list(map(str, command)), check=True)
    return list(np.load(result).values())


def main():
    """Trains, exports, and compares what both read."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = make_model()
    model.compile("adam", "binary_crossentropy", metrics=["binary_accuracy"])
    model.fit(*make_clips(rng, 3000, time=6), epochs=5, verbose=2)

    batches = [
        make_clips(rng, *sizes)[0] for sizes in [(1, 1), (4, 3), (9, 20)]
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        path = export(model, folder)
        elsewhere = run_elsewhere(path, batches, folder)
    for frames, found in zip(batches, elsewhere, strict=True):
        expected = model.predict(frames, verbose=0)
        error = np.abs(found - expected).max()
        clips, time = frames.shape[:2]
        print(f"Clips: {clips}. Frames: {time}. The same to {error:.0e}.")
        assert error < 1e-5


if __name__ == "__main__":
    main()

"""Writes `keras_2.h5`, a model of Keras 2, and what it predicts.

    python tests/files/keras_2.py

It needs tf_keras, which is Keras 2.
"""

import json
import pathlib

import h5py
import numpy as np

# Keras 2 came to write them with its last releases.
NEW = "module", "registered_name", "build_config"


def model():
    from tf_keras import Input
    from tf_keras import Model
    from tf_keras import Sequential
    from tf_keras import layers

    clip, frame = Input((3, 6, 6, 2)), Input((4, 4, 3))
    conv = layers.Conv2D(3, 3, input_shape=(6, 6, 2))
    cnn = Sequential([conv, layers.BatchNormalization()])
    head = Model(frame, layers.Dense(2)(layers.Flatten()(frame)))
    x = layers.TimeDistributed(cnn)(clip)
    x = layers.TimeDistributed(head)(x)
    return Model(clip, layers.TimeDistributed(layers.Dense(4))(x))


def inputs():
    return np.random.default_rng(0).normal(size=(2, 3, 6, 6, 2))


def write(folder):
    keras_2 = model()
    keras_2.save(folder / "keras_2.h5")
    np.save(folder / "keras_2.npy", keras_2.predict(inputs(), verbose=0))


def in_old_form(config):
    if isinstance(config, list):
        return [in_old_form(x) for x in config]
    if not isinstance(config, dict):
        return config
    return {k: in_old_form(v) for k, v in config.items() if k not in NEW}


def make_old(path):
    """Makes a file what it was before the last releases of Keras 2."""
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        file.attrs["model_config"] = json.dumps(in_old_form(config))


if __name__ == "__main__":
    here = pathlib.Path(__file__).parent
    write(here)
    make_old(here / "keras_2.h5")

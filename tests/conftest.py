import os

import keras
import numpy as np
import pytest


def pytest_configure():
    asked, loaded = os.environ.get("KERAS_BACKEND"), keras.backend.backend()
    if asked != loaded:
        raise pytest.UsageError(
            "Choose the backend of the tests with the environment variable "
            f"KERAS_BACKEND. Received: KERAS_BACKEND={asked}, and Keras loaded "
            f"{loaded}."
        )


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def on_tensorflow():
    if keras.backend.backend() != "tensorflow":
        pytest.skip(reason="Keras builds this layer on TensorFlow")

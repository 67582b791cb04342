import os

import keras
import numpy as np
import pytest


def pytest_configure(config):
    asked, loaded = os.environ.get("KERAS_BACKEND"), keras.backend.backend()
    if asked != loaded:
        raise pytest.UsageError(
            "Choose the backend of the tests with the environment variable "
            f"KERAS_BACKEND. Received: KERAS_BACKEND={asked}, and Keras loaded "
            f"{loaded}."
        )
    if loaded == "numpy":
        # Keras infers shapes by calling layers on uninitialized memory.
        warning = "ignore:.* encountered in:RuntimeWarning"
        config.addinivalue_line("filterwarnings", warning)


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


@pytest.fixture
def float64():
    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield

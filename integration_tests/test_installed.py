import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys
import sysconfig

import keras

import keras_td

BACKENDS = {"tensorflow", "jax", "torch"}


def test_the_package_comes_from_the_wheel():
    package = pathlib.Path(keras_td.__file__).parent
    assert package == pathlib.Path(sysconfig.get_path("purelib"), "keras_td")
    assert keras_td.__version__ == importlib.metadata.version("keras_td")


def test_keras_is_the_only_dependency():
    required = importlib.metadata.requires("keras_td")
    (keras_alone,) = [name for name in required if "extra ==" not in name]
    assert keras_alone.startswith("keras>=")


def test_every_backend_is_an_extra():
    extras = importlib.metadata.metadata("keras_td").get_all("Provides-Extra")
    assert set(extras) == BACKENDS


def test_the_backend_asked_for_is_the_only_one_there():
    (there,) = filter(importlib.util.find_spec, BACKENDS)
    assert there == os.environ["KERAS_BACKEND"] == keras.backend.backend()


def test_importing_the_package_imports_no_other_backend():
    modules = subprocess.run(
        [sys.executable, "-c", "import sys, keras_td; print(*sys.modules)"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.split()
    assert BACKENDS & set(modules) == {keras.backend.backend()}

import contextlib
import datetime
import functools
import importlib
import json
import os
import pathlib
import platform
from importlib import metadata

import keras
import numpy as np
import pytest
from hypothesis import settings
from keras import layers

from backends import INFERENCE_ONLY
from backends import KERAS
from backends import QUICK
from cases import ALL_CASES
from cases import EXCLUDED
from cases import has
from stock_models import MODELS

# The same examples on every machine, however slow it is.
examples = 100 if QUICK else 30
settings.register_profile(
    "fixed", deadline=None, derandomize=True, max_examples=examples
)
settings.load_profile("fixed")

WARNINGS_OF_KERAS_3_16 = [
    # Each RNN warns, as it does not pass masks on.
    r"Layer '.*' \(of type (LSTM|ConvLSTM2D|Bidirectional)\) was passed an "
    "input with a mask",
    # `quantize` does not count the layer that a wrapper holds.
    r"`model.quantize\(\)`.* 1 layer\(s\) were skipped",
]

# What `nox -s exports` installs, where it is available.
EXPORT_TOOLS = (
    "jax2onnx",
    "litert-torch",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "tf2onnx",
)


def pytest_addoption(parser):
    parser.addoption("--report", help="file to write outcomes for table.py to")


def pytest_configure(config):
    asked, loaded = os.environ.get("KERAS_BACKEND"), keras.backend.backend()
    if asked != loaded:
        raise pytest.UsageError(
            "Choose the backend of the tests with the environment variable "
            f"KERAS_BACKEND. Received: KERAS_BACKEND={asked}, but Keras loaded "
            f"{loaded}."
        )
    if loaded == "numpy":
        # Keras infers shapes by calling layers on uninitialized memory.
        warning = "ignore:.* encountered in:RuntimeWarning"
        config.addinivalue_line("filterwarnings", warning)
    if loaded in INFERENCE_ONLY:
        # Keras warns of `remat` where there is no backward pass.
        warning = "ignore:Rematerialization"
        config.addinivalue_line("filterwarnings", warning)
    if loaded == "openvino":
        predict_in_float32()
    if KERAS >= (3, 16):
        for warning in WARNINGS_OF_KERAS_3_16:
            config.addinivalue_line("filterwarnings", f"ignore:{warning}")
    path = config.getoption("report")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Report(path))


def predict_in_float32():
    """Keeps Keras's OpenVINO models from bfloat16, on CPUs that have it."""
    import openvino

    openvino.compile_model = functools.partial(
        openvino.compile_model, config={"INFERENCE_PRECISION_HINT": "f32"}
    )


def pytest_collection_modifyitems(items):
    for item in items:
        # These are sent with the reports, also by the processes of xdist.
        params = item.callspec.params if hasattr(item, "callspec") else {}
        for kind in {"case", "model"} & params.keys():
            item.user_properties.append((kind, params[kind].name))
        if getattr(item.obj, "is_hypothesis_test", False):
            item.user_properties.append(("property", True))


def not_here():
    return {
        case.name: f"Keras needs {' and '.join(case.only)} for it"
        if case.only
        else f"Keras {keras.__version__} does not have it"
        for case in ALL_CASES
        if not has(case)
    }


def versions_of_tools():
    found = {}
    for name in EXPORT_TOOLS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class Report:
    """Writes the outcome of each check of each case, model and cell.

    A test of a cell records its row and column, and its check.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.outcomes = {"case": [], "model": [], "cell": []}
        self.properties = set()
        self.tests, self.failed = 0, []

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return
        self.tests += 1
        if report.failed:
            self.failed.append(report.nodeid)
        known = dict(report.user_properties)
        check = report.nodeid.split("::")[-1].split("[")[0]
        check = check.removeprefix("test_").replace("_", " ")
        check = known.get("check", check)
        if "property" in known:
            self.properties.add(check)
        reason = getattr(report, "wasxfail", "")
        if report.skipped and not reason:
            reason = report.longrepr[2].removeprefix("Skipped: ")
        outcome = "limit" if reason else report.outcome
        for kind in self.outcomes.keys() & known.keys():
            found = known[kind], check, outcome, reason
            self.outcomes[kind].append(found)

    def pytest_sessionfinish(self):
        backend = keras.backend.backend()
        known = {getattr(layers, c.class_name, None) for c in ALL_CASES}
        found = {
            "backend": backend,
            "names": {
                "case": [case.name for case in ALL_CASES],
                "model": [model.name for model in MODELS],
            },
            "classes": len(known - {None}),
            "excluded": EXCLUDED,
            "not_here": {"case": not_here()},
            "versions": {
                "Python": platform.python_version(),
                "Keras": keras.__version__,
                backend: importlib.import_module(backend).__version__,
                **versions_of_tools(),
            },
            "date": f"{datetime.date.today()}",
            "tests": self.tests,
            "failed": self.failed,
            "properties": sorted(self.properties),
            "outcomes": self.outcomes,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(found, indent=1))


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def on_tensorflow():
    if keras.backend.backend() != "tensorflow":
        pytest.skip(reason="Keras implements this layer in TensorFlow")


@pytest.fixture
def float64():
    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)

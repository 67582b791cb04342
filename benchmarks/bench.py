"""Compares the cost of `keras_td` with that of its alternatives.

A layer is applied to every time step by `keras_td`, by the layers of Keras 3
and Keras 2, and by hand; the floor is the bare layer on as many samples without
a time axis. For each layer and number of steps they take turns in one process.
Memory is measured in a separate process for each, which needs Linux, and on
TensorFlow without oneDNN. Every sample goes to a file in `benchmarks/results`,
from which `report.py` draws. An interrupted run continues where it stopped.

    KERAS_BACKEND=jax python benchmarks/bench.py
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import time

import isolated

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
BACKEND = os.environ["KERAS_BACKEND"]

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results"
BATCH = 2
STEPS = 8, 32, 128, 1024
MODELS = "Dense", "CNN", "CNN, normalized", "LSTM", "MobileNetV2"
OWN, STOCK, KERAS_2 = "keras_td", "keras.layers", "tf_keras"
HAND, BARE = "by hand", "bare layer"
# The least that a layer around another costs, and one that folds.
IDENTITY, RESHAPING = "identity wrapper", "reshaping wrapper"
EVERYONE = OWN, STOCK, KERAS_2, HAND, BARE, IDENTITY, RESHAPING
PACKAGES = (
    "keras_td",
    "keras",
    "jax",
    "torch",
    "tensorflow",
    "tensorflow-cpu",
    "tf_keras",
)
# Contenders that take more seconds to build and to train a few times are left
# out, and reported as such.
LIMITS = {STOCK: 60}
# In each round, all run once; few rounds begin after so many seconds.
STARTS, ROUNDS, SECONDS = 5, 30, 10
MEMORY_ROUNDS = 3


def make(name, keras):
    """A layer, of Keras 3 or 2, and the shape of a time step."""
    layers, image = keras.layers, (32, 32, 3)
    if name == "Dense":
        return layers.Dense(64), (64,)
    if name == "LSTM":
        return layers.LSTM(32), (16, 32)
    if name == "MobileNetV2":
        net = keras.applications.MobileNetV2(
            image, alpha=0.35, weights=None, include_top=False, pooling="avg"
        )
        return net, image
    between = layers.ReLU if name == "CNN" else layers.BatchNormalization
    cnn = [
        layers.Conv2D(16, 3, padding="same", activation="relu"),
        between(),
        layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
        between(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(10),
    ]
    return keras.Sequential(cnn), image


def contenders(name):
    """The contenders for a model on this backend."""
    absent = set()
    if BACKEND != "tensorflow":
        absent.add(KERAS_2)
    if name != "Dense":
        absent |= {IDENTITY, RESHAPING}
    return [who for who in EVERYONE if who not in absent]


def keras_of(who):
    if who == KERAS_2:
        import tf_keras

        return tf_keras
    import keras

    return keras


def wrap(who, layer):
    """The layer that a model calls."""
    import keras

    import keras_td

    class Identity(keras.layers.Wrapper):
        def call(self, inputs):
            return self.layer(inputs)

    class Reshaping(keras.layers.Wrapper):
        def call(self, inputs):
            _, steps, *inner = inputs.shape
            outputs = self.layer(keras.ops.reshape(inputs, (-1, *inner)))
            return keras.ops.reshape(outputs, (-1, steps, outputs.shape[-1]))

    if who == BARE:
        return layer
    if who == OWN:
        return keras_td.TimeDistributed(layer)
    if who == IDENTITY:
        return Identity(layer)
    if who == RESHAPING:
        return Reshaping(layer)
    return keras_of(who).layers.TimeDistributed(layer)


def by_hand(layer, shape, steps):
    """What an expert writes, as a model."""
    import keras
    from keras import ops

    inputs = keras.Input((steps, *shape))
    outputs = layer(ops.reshape(inputs, (-1, *shape)))
    outputs = ops.reshape(outputs, (-1, steps, *outputs.shape[1:]))
    return keras.Model(inputs, outputs)


@functools.cache
def array(shape):
    """Random numbers, always the same for a shape.

    Equal samples would have subnormal gradients behind `BatchNormalization`,
    with which a CPU may compute several times more slowly.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.standard_normal(shape, "float32")


@functools.cache
def tensor(shape):
    from keras import ops

    return ops.convert_to_tensor(array(shape))


class Contender:
    """A model that applies a layer to every time step."""

    def __init__(self, who, name, steps):
        keras = keras_of(who)
        layer, shape = make(name, keras)
        lead = (BATCH, steps)
        if who in (BARE, IDENTITY):
            lead = (BATCH * steps,)
        if who == HAND:
            self.model = self.layer = by_hand(layer, shape, steps)
        else:
            self.layer = wrap(who, layer)
            inputs = keras.Input((*lead[1:], *shape))
            self.model = keras.Sequential([inputs, self.layer])
        self.model.compile("sgd", "mse")
        outputs = self.model.output_shape[len(lead) :]
        self.x, self.y = (*lead, *shape), (*lead, *outputs)

    def train(self):
        self.model.train_on_batch(array(self.x), array(self.y))

    def predict(self):
        self.model.predict_on_batch(array(self.x))

    def call(self):
        from keras import ops

        # Reading values waits for them.
        ops.convert_to_numpy(self.layer(tensor(self.x))[:1])


class TensorFlowContender(Contender):
    """Trains on a data set, as Keras 2 makes one from a single batch.

    All train steps do, as each kind of input is compiled separately.
    """

    @functools.cached_property
    def data(self):
        import tensorflow as tf

        return tf.data.Dataset.from_tensors((array(self.x), array(self.y)))

    @functools.cached_property
    def batches(self):
        return iter(self.data.repeat())

    def train(self):
        if self.model.train_function is None:
            self.model.fit(self.data, shuffle=False, verbose=0)
        else:
            self.model.train_function(self.batches)["loss"].numpy()


class Keras2Contender(TensorFlowContender):
    def predict(self):
        self.model.make_predict_function()(self.batches).numpy()


def enter(who, name, steps):
    cls = Contender
    if BACKEND == "tensorflow":
        cls = Keras2Contender if who == KERAS_2 else TensorFlowContender
    return cls(who, name, steps)


# Methods of a contender.
OFTEN = {"train step": "train", "predict step": "predict", "eager call": "call"}
PARTS = ("building", "first train step", *OFTEN)


def warm_up(name):
    """Triggers what a backend does only once per process."""
    contender = enter(BARE, name, 1)
    for method in OFTEN.values():
        getattr(contender, method)()


def memory(who, name, steps):
    """The megabytes of a train step, measured several times."""
    warm_up(name)
    contender = enter(who, name, steps)
    contender.train()
    # Makes what steps share, such as the iterator on TensorFlow.
    contender.train()
    peak = isolated.peak_memory if device() == "CPU" else peak_of_device
    return [peak(contender.train) for _ in range(MEMORY_ROUNDS)]


def peak_of_device(do):
    """The megabytes of an accelerator's memory that `do()` needs."""
    if BACKEND == "torch":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        do()
        peak = torch.cuda.max_memory_allocated()
    elif BACKEND == "jax":
        import jax

        # JAX has the peak of the process, which has done the same before.
        stats = jax.local_devices()[0].memory_stats
        before = stats()["bytes_in_use"]
        do()
        peak = stats()["peak_bytes_in_use"]
    else:
        import tensorflow as tf

        tf.config.experimental.reset_memory_stats("GPU:0")
        stats = tf.config.experimental.get_memory_info
        before = stats("GPU:0")["current"]
        do()
        peak = stats("GPU:0")["peak"]
    return (peak - before) / 1e6


def times(those, name, steps):
    """The seconds of all parts: `{part: {who: [seconds, ...]}}`."""
    warm_up(name)
    built: dict = {who: [] for who in those}
    entrants = {}

    def build(who):
        built[who].append(enter(who, name, steps))

    def start(who):
        entrants[who] = built[who].pop()
        entrants[who].train()

    found = {}
    builds = [functools.partial(build, who) for who in those]
    found["building"] = isolated.interleave(builds, STARTS, SECONDS)
    starts = [functools.partial(start, who) for who in those]
    rounds = len(found["building"])
    found["first train step"] = isolated.interleave(starts, rounds, SECONDS)
    for part, method in OFTEN.items():
        again = [getattr(entrants[who], method) for who in those]
        for function in again:
            function()
        found[part] = isolated.interleave(again, ROUNDS, SECONDS)
    return {
        part: dict(zip(those, zip(*rounds, strict=True), strict=True))
        for part, rounds in found.items()
    }


def device():
    """The accelerator that this process computes on, or the CPU."""
    if BACKEND == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    elif BACKEND == "jax":
        import jax

        if jax.default_backend() != "cpu":
            return jax.devices()[0].device_kind
    else:
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_device_details(gpu)["device_name"]
    return "CPU"


def measure(what, *arguments):
    functions = {"memory": memory, "times": times, "device": device}
    return functions[what](*arguments)


def measure_cell(name, steps, missing, advance):
    """Every sample of a layer and a number of steps.

    Args:
        missing: Dict `{who: reason}` of contenders that are not measured.
        advance: What to call after each measurement.

    Returns:
        Dict `{part: {who: [sample, ...]}}`, and the new dict of the missing.
    """
    found, missing = {}, dict(missing)
    for who in contenders(name):
        if who not in missing:
            try:
                found[who] = isolated.measure_in_process(
                    "memory",
                    who,
                    name,
                    steps,
                    env=isolated.FREE_AT_ONCE,
                    timeout=LIMITS.get(who),
                )
            except isolated.Missing as error:
                missing[who] = str(error)
        advance()
    try:
        seconds = isolated.measure_in_process("times", list(found), name, steps)
    except isolated.Missing as error:
        seconds = {part: {} for part in PARTS}
        missing |= dict.fromkeys(found, str(error))
    advance()
    return {**seconds, "memory": found}, missing


def versions():
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def code():
    """A hash of the code that is measured, and of the code that measures."""
    files = sorted(HERE.parent.glob("keras_td/*.py"))
    files += [HERE / "isolated.py", HERE / "bench.py"]
    texts = [path.read_bytes() for path in files]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:12]


def processor():
    """The name of the processor, if the system has it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(": ")[1] for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def about(where):
    return {
        "backend": BACKEND,
        "device": where,
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "Python": platform.python_version(),
        "versions": versions(),
        "code": code(),
    }


def resume(path, run):
    """The cells of an interrupted run like this one."""
    before = json.loads(path.read_text()) if path.exists() else {}
    return before["cells"] if run.items() <= before.items() else []


def missing_before(cells, name):
    """Contenders missing for a layer, which will be for more steps too."""
    return {
        who: reason
        for cell in cells
        if cell["layer"] == name
        for who, reason in cell["missing"].items()
    }


def main():
    import keras

    where = isolated.measure_in_process("device")
    run = about(where)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{BACKEND}-{where.replace(' ', '-')}.json"
    unfinished, written = path.with_suffix(".part"), path.with_suffix(".new")
    cells = resume(unfinished, run)
    measurements = sum(len(contenders(n)) + 1 for n in MODELS for _ in STEPS)
    print(f"Keras on {BACKEND}, {where}: {measurements} measurements.")
    bar = keras.utils.Progbar(measurements, unit_name="measurement")
    done = {(cell["layer"], cell["steps"]) for cell in cells}
    for name, steps in itertools.product(MODELS, STEPS):
        if (name, steps) in done:
            bar.add(len(contenders(name)) + 1)
            continue
        missing = missing_before(cells, name)
        samples, missing = measure_cell(
            name, steps, missing, lambda: bar.add(1)
        )
        cell = {"layer": name, "steps": steps}
        cells.append({**cell, "samples": samples, "missing": missing})
        date = time.strftime("%Y-%m-%d")
        found = json.dumps({**run, "date": date, "cells": cells})
        # Replaced in one go, as the run may be interrupted.
        written.write_text(found)
        written.replace(unfinished)
    unfinished.replace(path)
    print(f"Every sample is in {path}.")


if __name__ == "__main__":
    isolated.run(__doc__, measure, main)

"""What `keras_td` gains and costs, against what else one may write.

A layer is applied to every time step by `keras_td`, by the layers of Keras 3
and Keras 2, and by hand; the floor is the bare layer on as many samples without
a time. What is done once is measured in a process for each; what is done often
in one process, in which they take turns. Every sample goes to a file in
`benchmarks/results`, from which `report.py` draws.

    KERAS_BACKEND=jax python benchmarks/bench.py
"""

import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import time

import apart

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
BACKEND = os.environ["KERAS_BACKEND"]

RESULTS = pathlib.Path(__file__).parent / "results"
BATCH = 2
STEPS = 8, 32, 128, 1024
MODELS = "Dense", "CNN", "CNN, normalized", "LSTM", "MobileNetV2"
OWN, STOCK, KERAS_2 = "keras_td", "keras.layers", "tf_keras"
HAND, BARE, IDENTITY = "by hand", "bare layer", "identity wrapper"
ONCE = "building", "first train step", "memory"
PROCESSES = 3
# Who takes longer to be measured once is reported as such.
LIMIT = 90
# Rounds of all, in each of which they run once.
ROUNDS, SECONDS = 50, 10


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
    """Who takes part, with a model, on this backend."""
    keras_2 = [KERAS_2] if BACKEND == "tensorflow" else []
    identity = [IDENTITY] if name == "Dense" else []
    return [OWN, STOCK, *keras_2, HAND, BARE, *identity]


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

    if who == BARE:
        return layer
    if who == OWN:
        return keras_td.TimeDistributed(layer)
    if who == IDENTITY:
        return Identity(layer)
    return keras_of(who).layers.TimeDistributed(layer)


def by_hand(layer, shape, steps):
    """What an expert writes, as a model."""
    import keras
    from keras import ops

    inputs = keras.Input((steps, *shape))
    outputs = layer(ops.reshape(inputs, (-1, *shape)))
    outputs = ops.reshape(outputs, (-1, steps, *outputs.shape[1:]))
    return keras.Model(inputs, outputs)


class Contender:
    """A model that applies a layer to every time step, and its data."""

    def __init__(self, who, name, steps):
        import numpy as np
        from keras import ops

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
        self.x = np.ones((*lead, *shape), "float32")
        self.y = np.ones((*lead, *outputs), "float32")
        self.tensor = ops.convert_to_tensor(self.x)

    def train(self):
        self.model.train_on_batch(self.x, self.y)

    def predict(self):
        self.model.predict_on_batch(self.x)

    def call(self):
        from keras import ops

        # To read numbers is to wait for them.
        ops.convert_to_numpy(self.layer(self.tensor)[:1])


OFTEN = {
    "train step": Contender.train,
    "predict step": Contender.predict,
    "eager call": Contender.call,
}


def alone(who, name, steps):
    """What is done once: `{part: seconds, or megabytes}`."""
    # What a backend does once in a process is not to be measured.
    Contender(BARE, "Dense", 1).train()
    start = time.perf_counter()
    contender = Contender(who, name, steps)
    built = time.perf_counter()
    contender.train()
    trained = time.perf_counter()
    memory = apart.peak_memory(contender.train)
    return dict(
        zip(ONCE, (built - start, trained - built, memory), strict=True)
    )


def in_turns(those, name, steps):
    """What is done often: `{part: {who: [seconds, ...]}}`."""
    entrants = {who: Contender(who, name, steps) for who in those}
    found = {}
    for part, do in OFTEN.items():
        functions = [functools.partial(do, c) for c in entrants.values()]
        apart.take_turns(functions, 1, SECONDS)
        rounds = apart.take_turns(functions, ROUNDS, SECONDS)
        found[part] = dict(zip(those, zip(*rounds, strict=True), strict=True))
    return found


def device():
    """The accelerator that this process computes on, or the processor."""
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
    return {"alone": alone, "in turns": in_turns, "device": device}[what](
        *arguments
    )


def measure_all(advance):
    """Every sample: `{name: {steps: {part: {who: [...], or None}}}}`.

    It is `None` where a contender takes too long, and with more steps too.
    """
    found = {}
    for name in MODELS:
        entrants = contenders(name)
        for steps in STEPS:
            cell = {part: dict.fromkeys(contenders(name)) for part in ONCE}
            for who in contenders(name):
                for _ in range(PROCESSES if who in entrants else 0):
                    run = apart.measure_apart(
                        "alone", who, name, steps, timeout=LIMIT
                    )
                    if run is None:
                        entrants.remove(who)
                        break
                    for part in ONCE:
                        cell[part][who] = [*(cell[part][who] or ()), run[part]]
                advance()
            rounds = apart.measure_apart("in turns", entrants, name, steps)
            for part in OFTEN:
                cell[part] = {w: rounds[part].get(w) for w in contenders(name)}
            advance()
            found.setdefault(name, {})[steps] = cell
    return found


def versions():
    names = {
        "keras",
        "tensorflow",
        "tensorflow-cpu",
        "tf_keras",
        "jax",
        "torch",
    }
    return {
        found.name: found.version
        for found in importlib.metadata.distributions()
        if found.name in names
    }


def main():
    import keras

    cells = len(STEPS) * sum(len(contenders(name)) + 1 for name in MODELS)
    bar = keras.utils.Progbar(cells, unit_name="measurement")
    where = apart.measure_apart("device")
    print(f"Keras on {BACKEND}, {where}: {cells} measurements.")
    found = {
        "backend": BACKEND,
        "device": where,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "Python": platform.python_version(),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
        "samples": measure_all(lambda: bar.add(1)),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{BACKEND}-{where.replace(' ', '-')}.json"
    path.write_text(json.dumps(found, indent=1))
    print(f"Every sample is in {path}.")


if __name__ == "__main__":
    apart.run(__doc__, measure, main)

"""Trains models on many devices, in the ways that each backend has."""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import functools
import multiprocessing
import re
import tempfile
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from case import one_or_all
from exported import MODELS as EXPORTED
from exported import OPTIONS
from exported import draw_words

DEVICES = 4
PROCESSES = 2
SAMPLES, TIME, STEPS, RATE = 8, 12, 3, 0.1
# As an option: time folded by hand, without this layer.
BY_HAND = "by hand"


def draw_words_of_half(rng, batch, time):
    """Draws words for half of the devices, and padding for the others."""
    [words] = draw_words(rng, batch, time)
    words[batch // 2 :] = 0
    return [words]


MODELS = {
    **EXPORTED,
    "padding on half of the devices": dataclasses.replace(
        EXPORTED["hierarchical masks"], draw=draw_words_of_half
    ),
}
# An application takes minutes.
del MODELS["MobileNetV2"]


def split_cpu():
    """Splits the CPU into several devices, before anything runs on it."""
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_num_cpu_devices", DEVICES)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        [cpu] = tf.config.list_physical_devices("CPU")
        device = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [device] * 2)


def build(name, option):
    keras.utils.set_random_seed(0)
    if option == BY_HAND:
        return MODELS[name].by_hand()
    return MODELS[name].with_options(**OPTIONS[option])


@functools.cache
def draw(name):
    """Draws the inputs of a model and its targets."""
    rng = np.random.default_rng(0)
    inputs = MODELS[name].draw(rng, SAMPLES, TIME)
    targets = build(name, "one call")(one_or_all(inputs)).shape
    return inputs, rng.normal(size=targets).astype("float32")


@functools.cache
def fit(name, option, scope=contextlib.nullcontext):
    """Trains a model in a scope, and returns its weights."""
    inputs, targets = draw(name)
    with scope():
        model = build(name, option)
        model.compile(keras.optimizers.SGD(RATE), "mse")
        model.fit(
            one_or_all(inputs),
            targets,
            batch_size=SAMPLES,
            epochs=STEPS,
            shuffle=False,
            verbose=0,
        )
        return model.get_weights()


# Operations in XLA programs.
MOVES = r" (all-gather|all-to-all|collective-permute)(-start)?\("
# For models of `exported.MODELS`: units and features are sharded.
LAYOUTS = {
    "embeddings": (None, "model"),
    "(dense|lstm|gru).*kernel": (None, "model"),
    "(query|key|value).*kernel": (None, "model", None),
    "attention_output.*kernel": ("model", None, None),
    "conv2d.*kernel": (None, None, None, "model"),
}


@contextlib.contextmanager
def distribution(make):
    keras.distribution.set_distribution(make())
    try:
        yield
    finally:
        keras.distribution.set_distribution(None)


def data_parallel():
    return distribution(keras.distribution.DataParallel)


def model_parallel():
    return distribution(_model_parallel)


def _model_parallel():
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"))
    layouts = keras.distribution.LayoutMap(mesh)
    layouts.update(LAYOUTS)
    return keras.distribution.ModelParallel(
        layout_map=layouts, batch_dim_name="batch"
    )


@functools.cache
def count_moves(name, option, scope):
    """Counts the operations of a training step that move activations.

    Those that sum gradients or statistics do not count.
    """
    import jax

    inputs, _ = draw(name)
    with scope():
        model = build(name, option)
        weights = [v.value for v in model.trainable_variables]
        others = [v.value for v in model.non_trainable_variables]
        layout = keras.distribution.distribution().get_data_layout
        inputs = [
            jax.device_put(x, layout(x.shape).backend_layout) for x in inputs
        ]

        def loss(weights, others, x):
            y, others = model.stateless_call(weights, others, x, training=True)
            return ops.mean(ops.square(y)), others

        step = jax.jit(jax.grad(loss, has_aux=True))
        lowered = step.lower(weights, others, one_or_all(inputs))
        program = lowered.compile().as_text()
    return len(re.findall(MOVES, program))


def predict(name, option, axes):
    """Predicts on JAX, with these axes of the inputs sharded over devices."""
    import jax
    from jax.sharding import Mesh
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec

    inputs, _ = draw(name)
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    shared = NamedSharding(mesh, PartitionSpec(*axes))
    # A step that is used at all others is on each device.
    whole = NamedSharding(mesh, PartitionSpec())
    inputs = [
        jax.device_put(x, shared if x.shape[1] == TIME else whole)
        for x in inputs
    ]
    model = build(name, option)
    weights = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    call = jax.jit(functools.partial(model.stateless_call, training=False))
    outputs, _ = call(weights, others, one_or_all(inputs))
    return outputs


@contextlib.contextmanager
def mirrored():
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        # TensorFlow's collective operations sometimes fail on CPUs, also for
        # models of Keras alone.
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )
    with strategy.scope():
        yield


def fit_in_processes(name, option, wrap):
    """Trains a model in some processes, and returns the first one's weights."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            _pool().submit(_rank, rank, f"{folder}/store", name, option, wrap)
            for rank in range(PROCESSES)
        ]
        weights, *_ = [task.result() for task in tasks]
        return weights


@functools.cache
def _pool():
    return concurrent.futures.ProcessPoolExecutor(
        PROCESSES, multiprocessing.get_context("spawn")
    )


def _rank(rank, store, name, option, wrap):
    from torch import distributed

    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=PROCESSES,
        timeout=datetime.timedelta(minutes=1),
    )
    # Everything that uses the group must be gone before the group is.
    weights = _fit_rank(rank, name, option, wrap)
    distributed.destroy_process_group()
    return weights


def _fit_rank(rank, name, option, wrap):
    import torch

    inputs, targets = keras.tree.map_structure(
        lambda x: torch.tensor(x).chunk(PROCESSES)[rank], draw(name)
    )
    model = build(name, option)
    parallel = wrap(model)
    optimizer = torch.optim.SGD(parallel.parameters(), RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        y = parallel(one_or_all(inputs), training=True)
        torch.nn.functional.mse_loss(y, targets).backward()
        optimizer.step()
    return model.get_weights()


def replicated(model):
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model)


def sharded(model):
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model)


@dataclasses.dataclass(frozen=True)
class Engine:
    """A way to train a model on many devices.

    Args:
        backend: The backend that has it.
        train: Function that takes the name of a model and an option, trains the
            model for some steps, and returns its weights.
    """

    backend: str
    train: Callable


ENGINES = {
    "DataParallel": Engine("jax", functools.partial(fit, scope=data_parallel)),
    "ModelParallel": Engine(
        "jax", functools.partial(fit, scope=model_parallel)
    ),
    "MirroredStrategy": Engine(
        "tensorflow", functools.partial(fit, scope=mirrored)
    ),
    "DistributedDataParallel": Engine(
        "torch", functools.partial(fit_in_processes, wrap=replicated)
    ),
    "fully_shard": Engine(
        "torch", functools.partial(fit_in_processes, wrap=sharded)
    ),
}


@dataclasses.dataclass(frozen=True)
class Limit:
    """What does not train as on one device, even with time folded by hand.

    Args:
        engine: The engine.
        reason: Why it does not.
        message: What the error says.
        models: The names of the models.
    """

    engine: str
    reason: str
    message: str = "Not equal to tolerance"
    models: tuple[str, ...] = tuple(MODELS)


OF_EACH_DEVICE = (
    "BatchNormalization and Dropout only see the samples of their own device"
)
LIMITS = [
    Limit("MirroredStrategy", OF_EACH_DEVICE, models=("CNN",)),
    Limit(
        "MirroredStrategy",
        "Keras sums the inputs of the devices, and booleans cannot be summed",
        "attr 'T' of bool is not in the list of allowed values",
        ("mask as an input",),
    ),
    Limit("DistributedDataParallel", OF_EACH_DEVICE, models=("CNN",)),
    Limit(
        "fully_shard",
        "Keras's variables keep the parameters that PyTorch replaces, so "
        "nothing trains",
    ),
]

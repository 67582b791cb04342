"""Trains one model on one, two and four devices, with the same result.

`TimeDistributed` trains with what each backend has for many devices. Each
device gets some clips of a batch, with all their frames: by Keras's
`DataParallel` on JAX, by a `MirroredStrategy` on TensorFlow, and by
`DistributedDataParallel` on PyTorch, with a process for each device.

    pip install keras_td jax
    python train_on_many_devices.py

Set `KERAS_BACKEND` to "torch" or "tensorflow" to run it on another backend. The
devices are parts of one CPU here, or processes on it: they show that numbers
stay the same, not how much faster several GPUs would be.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's chatter

import keras
import numpy as np
from keras import layers

import keras_td

DEVICES = 1, 2, 4
BATCH, TIME, SIZE = 32, 16, 16
STEPS, EPOCHS, RATE = 20, 4, 0.02


def make_model():
    keras.utils.set_random_seed(0)
    cnn = keras.Sequential(
        [
            layers.Conv2D(16, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
        ]
    )
    frames = keras.Input((TIME, SIZE, SIZE, 3))
    features = keras_td.TimeDistributed(cnn)(frames)
    return keras.Model(frames, layers.Dense(1)(layers.GRU(16)(features)))


def make_clips():
    """Clips, and how much brighter the last frame is than the first."""
    rng = np.random.default_rng(0)
    count = STEPS * BATCH
    start, end = rng.random((2, count))
    light = np.linspace(start, end, TIME, axis=1)[..., None, None, None]
    noise = rng.normal(size=(count, TIME, SIZE, SIZE, 3), scale=0.1)
    change = (end - start)[:, None]
    return (light + noise).astype("float32"), change.astype("float32")


def repeat(run_epoch):
    """The losses of epochs, and the seconds of a step in the last."""
    losses = []
    for _ in range(EPOCHS):
        start = time.perf_counter()
        losses.append(run_epoch())
    return losses, (time.perf_counter() - start) / STEPS


def fit(model):
    clips, change = make_clips()

    def run_epoch():
        history = model.fit(
            clips, change, batch_size=BATCH, shuffle=False, verbose=0
        )
        return history.history["loss"][0]

    return repeat(run_epoch)


def train_on_jax(devices, rank, folder):
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    model = make_model()
    model.compile(keras.optimizers.SGD(RATE), "mse")
    return model, *fit(model)


def train_on_tensorflow(devices, rank, folder):
    import tensorflow as tf

    [cpu] = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration()] * devices
    tf.config.set_logical_device_configuration(cpu, parts)
    strategy = tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(devices)],
        # TensorFlow's collective operations are for GPUs.
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )
    with strategy.scope():
        model = make_model()
        model.compile(keras.optimizers.SGD(RATE), "mse")
    return model, *fit(model)


def train_on_torch(devices, rank, folder):
    import torch
    from torch import distributed

    # The cores are for all processes.
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", store, rank=rank, world_size=devices)
    model = make_model()
    losses, seconds = fit_of_torch(model, devices, rank)
    distributed.destroy_process_group()
    return model, losses, seconds


def fit_of_torch(model, devices, rank):
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), RATE)
    # Every process takes some clips of each batch.
    clips, change = (
        torch.tensor(x).reshape(STEPS, devices, -1, *x.shape[1:])[:, rank]
        for x in make_clips()
    )

    def run_epoch():
        mean = torch.zeros(())
        for x, y in zip(clips, change, strict=True):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(parallel(x, training=True), y)
            loss.backward()
            optimizer.step()
            mean += loss.detach() / STEPS / devices
        distributed.all_reduce(mean)
        return mean.item()

    return repeat(run_epoch)


TRAIN = {
    "jax": train_on_jax,
    "tensorflow": train_on_tensorflow,
    "torch": train_on_torch,
}


def train(devices, rank, folder):
    """Trains in this process, and saves what the first of them has learned."""
    train_on_devices = TRAIN[keras.backend.backend()]
    model, losses, seconds = train_on_devices(devices, rank, folder)
    if rank == 0:
        np.savez(folder / "weights.npz", *model.get_weights())
        found = {"losses": losses, "seconds": seconds}
        (folder / "found.json").write_text(json.dumps(found))


def train_on(devices):
    """Trains in new processes, as parts of the CPU are made only once."""
    ranks = devices if keras.backend.backend() == "torch" else 1
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, __file__, str(devices)]
        processes = [
            subprocess.Popen([*command, str(rank), name])
            for rank in range(ranks)
        ]
        if any([process.wait() for process in processes]):
            sys.exit(f"Training on {devices} devices failed.")
        folder = pathlib.Path(name)
        weights = list(np.load(folder / "weights.npz").values())
        return weights, json.loads((folder / "found.json").read_text())


def main():
    """Trains on more and more devices, and compares with one."""
    alone = None
    for devices in DEVICES:
        weights, found = train_on(devices)
        alone = alone or weights
        error = max(
            np.abs(a - b).max() for a, b in zip(weights, alone, strict=True)
        )
        first, *_, last = found["losses"]
        print(
            f"Devices: {devices}. Loss: {first:.4f} to {last:.4f}. Weights: as "
            f"on one to {error:.0e}. A step: {1000 * found['seconds']:.0f} ms."
        )
        assert error < 1e-5


if __name__ == "__main__":
    if len(sys.argv) > 1:
        devices, rank, name = sys.argv[1:]
        train(int(devices), int(rank), pathlib.Path(name))
    else:
        main()

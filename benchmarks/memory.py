"""The memory that a training step on a long clip needs.

Trains a small CNN on a clip of 256 frames of 112x112: on all at once; with
`steps_per_call=8`; with `remat=True` too; and on 8 frames alone. Each runs in
its own process, and counts the peak memory of the whole process in the second
step, above that before the step, which includes the clip.

    KERAS_BACKEND=jax python benchmarks/memory.py
"""

import os
import statistics

import isolated

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SIZE, FEATURES = 112, 10
RUNS = {
    "256 frames at once": (256, {}),
    "steps_per_call=8": (256, {"steps_per_call": 8}),
    "steps_per_call=8, remat": (256, {"steps_per_call": 8, "remat": True}),
    "8 frames alone": (8, {}),
}
PROCESSES = 2


def measure(frames, options):
    """The megabytes of a step, in this process."""
    import keras
    from keras import layers

    import keras_td

    cnn = keras.Sequential(
        [
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(FEATURES),
        ]
    )
    model = keras.Sequential(
        [
            keras.Input((frames, SIZE, SIZE, 3), batch_size=1),
            keras_td.TimeDistributed(cnn, **options),
        ]
    )
    model.compile("sgd", "mse", jit_compile="auto")
    x = keras.ops.ones((1, frames, SIZE, SIZE, 3))
    y = keras.ops.ones((1, frames, FEATURES))
    model.train_on_batch(x, y)
    return isolated.peak_memory(lambda: model.train_on_batch(x, y))


def main():
    backend = os.environ["KERAS_BACKEND"]
    found = {
        name: [
            isolated.measure_in_process(*run, env=isolated.FREE_AT_ONCE)
            for _ in range(PROCESSES)
        ]
        for name, run in RUNS.items()
    }
    alone = statistics.median(found["8 frames alone"])
    print(
        f"Megabytes on {backend}: median of {PROCESSES} (lowest to highest).\n"
    )
    print("| training step | memory | against 8 frames alone |")
    print("| --- | --: | --: |")
    for name, megabytes in found.items():
        low, middle, high = (
            f(megabytes) for f in (min, statistics.median, max)
        )
        print(
            f"| {name} | {middle:,.0f} ({low:,.0f} to {high:,.0f}) "
            f"| {middle / alone:.2f} |"
        )


if __name__ == "__main__":
    isolated.run(__doc__, measure, main)

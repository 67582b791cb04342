"""Compile time does not grow with time: 10 against 1,000 time steps.

Times the symbolic call and the first train step of a Dense layer at each time
step, each in its own process, and prints the medians. "plain" is the bare Dense
layer on as many rows: what the backend itself takes for larger arrays.

    KERAS_BACKEND=jax python benchmarks/compile_time.py
"""

import os
import statistics
import sys
import time

import isolated

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

BATCH, FEATURES, UNITS = 2, 32, 64
# Stock takes minutes for 1,000 steps on JAX, so it gets 100.
STEPS = {"keras_td": (10, 1000), "plain": (10, 1000), "stock": (10, 100)}
REPETITIONS = {"keras_td": 5, "plain": 5, "stock": 3}
PARTS = "symbolic call", "first train step"


def measure(name, steps):
    """Seconds of each part, in this process."""
    import keras
    import numpy as np

    import keras_td

    layers = {
        "stock": keras.layers.TimeDistributed,
        "keras_td": keras_td.TimeDistributed,
    }

    def timed(wrap, *shape, batch=BATCH):
        x = np.ones((batch, *shape, FEATURES), "float32")
        y = np.ones((batch, *shape, UNITS), "float32")
        start = time.perf_counter()
        inputs = keras.Input((*shape, FEATURES))
        model = keras.Model(inputs, wrap(keras.layers.Dense(UNITS))(inputs))
        called = time.perf_counter()
        model.compile("sgd", "mse", jit_compile="auto")
        model.train_on_batch(x, y)
        return called - start, time.perf_counter() - called

    # What the backend does once per process must not be measured.
    timed(lambda dense: dense)
    if name == "plain":
        return timed(lambda dense: dense, batch=BATCH * steps)
    return timed(layers[name], steps)


def measure_all():
    """Lists of seconds: `{(name, steps): [[call, train step], ...]}`."""
    runs = {(name, n): [] for name in STEPS for n in STEPS[name]}
    total = sum(REPETITIONS[name] for name, _ in runs)
    for repetition in range(max(REPETITIONS.values())):
        for (name, steps), seconds in runs.items():
            if repetition < REPETITIONS[name]:
                seconds.append(isolated.measure_in_process(name, steps))
                done = sum(map(len, runs.values()))
                print(
                    f"[{done}/{total}] {name}, {steps} steps: "
                    f"{sum(seconds[-1]):.2f} s",
                    file=sys.stderr,
                )
    return runs


def cell(seconds):
    low, middle, high = (
        1000 * f(seconds) for f in (min, statistics.median, max)
    )
    return f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"


def main():
    backend = os.environ["KERAS_BACKEND"]
    runs = measure_all()
    print(f"Milliseconds on {backend}: median (lowest to highest).\n")
    print("| layer | part | 10 steps | more steps | ratio |")
    print("| --- | --- | --: | --: | --: |")
    for name, (few, many) in STEPS.items():
        for i, part in enumerate(PARTS):
            few_s = [seconds[i] for seconds in runs[name, few]]
            many_s = [seconds[i] for seconds in runs[name, many]]
            ratio = statistics.median(many_s) / statistics.median(few_s)
            print(
                f"| {name} | {part} | {cell(few_s)} "
                f"| {many:,} steps: {cell(many_s)} | {ratio:.2f} |"
            )
    print(
        f"\nDense({UNITS}) on {FEATURES} features, batch of {BATCH}; "
        f"{REPETITIONS['keras_td']} processes each, {REPETITIONS['stock']} for "
        "stock, which is capped at 100 steps: on JAX, 1,000 take it minutes."
    )


if __name__ == "__main__":
    isolated.run(__doc__, measure, main)

"""What `skip_masked=True` saves, against the share of masked time steps.

A layer is applied to documents that are padded to the length of the longest:
with the option, without it, and bare on only the valid steps, which is the
ideal. For each layer and share of padding the three take turns in one process;
memory is that of a train step, in a separate process for each. Every sample
goes to a file in `benchmarks/results`, from which `report.py` draws.

    KERAS_BACKEND=jax python benchmarks/padding.py
"""

import json
import statistics
import time

import bench
import isolated

BATCH, TIME = 16, 32
SHARES = 0, 50, 75, 90
LAYERS = "LSTM", "CNN", "MobileNetV2"
SKIPPING, PLAIN, IDEAL = (
    "skip_masked=True",
    "skip_masked=False",
    "only valid steps (ideal)",
)
WHO = SKIPPING, PLAIN, IDEAL
PARTS = {"train step": "train", "predict step": "predict"}
# In each round, all run once; few rounds begin after so many seconds.
ROUNDS, SECONDS, MEMORY_ROUNDS = 15, 30, 3


def make(name, keras):
    """A layer, and the shape of a time step."""
    if name == "LSTM":
        return keras.layers.LSTM(128), (20, 128)
    return bench.make(name, keras)


def mask_of(share):
    """Which steps of a batch of documents are valid, `(batch, time)`."""
    import numpy as np

    rng = np.random.default_rng(0)
    mean = TIME * (100 - share) / 100
    # Lengths are from 1 to almost twice the mean, or all the same.
    longest = min(2 * mean - 1, TIME)
    lengths = rng.uniform(2 * mean - longest, longest, (BATCH, 1)).round()
    return np.arange(TIME) < lengths


class Contender:
    """A model that applies a layer to the steps of padded documents."""

    def __init__(self, who, name, share):
        import keras

        import keras_td

        layer, shape = make(name, keras)
        mask = mask_of(share)
        if who == IDEAL:
            inputs = keras.Input(shape)
            self.x = bench.array((int(mask.sum()), *shape))
            self.model = keras.Model(inputs, layer(inputs))
            lead = self.x.shape[:1]
        else:
            inputs = keras.Input((TIME, *shape))
            given = keras.Input((TIME,), dtype="bool")
            td = keras_td.TimeDistributed(layer, skip_masked=who == SKIPPING)
            self.x = [bench.array((BATCH, TIME, *shape)), mask]
            lead = mask.shape
            self.model = keras.Model([inputs, given], td(inputs, mask=given))
        self.model.compile("sgd", "mse")
        outputs = self.model.output_shape[len(lead) :]
        self.y = bench.array((*lead, *outputs))

    def train(self):
        self.model.train_on_batch(self.x, self.y)

    def predict(self):
        self.model.predict_on_batch(self.x)


def memory(who, name, share):
    """The megabytes of a train step, measured several times."""
    contender = Contender(who, name, share)
    contender.train()
    contender.train()
    return [isolated.peak_memory(contender.train) for _ in range(MEMORY_ROUNDS)]


def times(name, share):
    """The seconds of all parts: `{part: {who: [seconds, ...]}}`."""
    Contender(IDEAL, name, share).train()
    contenders = [Contender(who, name, share) for who in WHO]
    starts = [contender.train for contender in contenders]
    found = {"first train step": isolated.interleave(starts, 1, SECONDS)}
    for part, method in PARTS.items():
        functions = [getattr(c, method) for c in contenders]
        for function in functions:
            function()
        found[part] = isolated.interleave(functions, ROUNDS, SECONDS)
    return {
        part: dict(zip(WHO, zip(*rounds, strict=True), strict=True))
        for part, rounds in found.items()
    }


def valid_share(share):
    """The share of steps that are valid, to be stored with the samples."""
    return float(mask_of(share).mean())


def measure(what, *arguments):
    functions = {
        "memory": memory,
        "times": times,
        "device": bench.device,
        "valid share": valid_share,
    }
    return functions[what](*arguments)


def measure_cell(name, share):
    cell = {
        "layer": name,
        "share": share,
        "valid": isolated.measure_in_process("valid share", share),
    }
    samples = isolated.measure_in_process("times", name, share)
    samples["memory"] = {
        who: isolated.measure_in_process(
            "memory", who, name, share, env=isolated.FREE_AT_ONCE
        )
        for who in WHO
    }
    return {**cell, "samples": samples}


def row(cell):
    samples = cell["samples"]

    def median(part, who):
        return statistics.median(samples[part][who])

    found = []
    for part in PARTS:
        own = median(part, SKIPPING)
        found += [
            f"{median(part, PLAIN) / own:.2f}",
            f"{own / median(part, IDEAL):.2f}",
        ]
    first = "first train step"
    found.append(f"{median(first, SKIPPING) / median(first, PLAIN):.2f}")
    found.append(" / ".join(f"{median('memory', who):.0f}" for who in WHO))
    share = f"{100 - 100 * cell['valid']:.0f}%"
    return f"| {cell['layer']} | {share} | {' | '.join(found)} |"


HEAD = (
    "| layer | padding | train step: times as fast | of the ideal's time "
    "| predict step: times as fast | of the ideal's time "
    "| first train step: of the time without "
    "| memory, MB: with / without / ideal |\n"
    "| --- | --: | --: | --: | --: | --: | --: | --: |"
)


def table(cells):
    return "\n".join([HEAD, *map(row, cells)])


def main():
    where = isolated.measure_in_process("device")
    bench.RESULTS.mkdir(exist_ok=True)
    path = (
        bench.RESULTS
        / f"padding-{bench.BACKEND}-{where.replace(' ', '-')}.json"
    )
    print(f"Keras on {bench.BACKEND}, {where}:\n\n{HEAD}", flush=True)
    cells = []
    for name in LAYERS:
        for share in SHARES:
            cells.append(measure_cell(name, share))
            print(row(cells[-1]), flush=True)
    date = time.strftime("%Y-%m-%d")
    run = {**bench.about(where), "date": date, "cells": cells}
    path.write_text(json.dumps(run))


if __name__ == "__main__":
    isolated.run(__doc__, measure, main)

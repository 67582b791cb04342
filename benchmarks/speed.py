"""The cost of calls in order, against Keras's own layer, which does the same.

Times an eager call, the first train step (which compiles, if the backend does)
and the steps after it: with `steps_per_call=1`, which gives the numbers of
`keras.layers.TimeDistributed`, and with that layer. Each row is measured in its
own process, in which the two take turns.

    KERAS_BACKEND=jax python benchmarks/speed.py
"""

import statistics

import bench
import isolated

BATCH = 4
STEPS = 8, 32, 128
LAYERS = "Dense", "CNN, normalized", "LSTM"
PARTS = "eager call", "train step", "first train step"
# In each round, both run once.
ROUNDS, SECONDS = 50, 20


def measure(name, steps):
    """Seconds of each part, for stock and for this layer, in this process."""
    import keras

    import keras_td

    def contender(wrap):
        layer, shape = bench.make(name, keras)
        td = wrap(layer)
        model = keras.Sequential([keras.Input((steps, *shape)), td])
        model.compile("sgd", "mse", jit_compile="auto")
        x = bench.array((BATCH, steps, *shape))
        y = bench.array((BATCH, *model.output_shape[1:]))
        x_there = keras.ops.convert_to_tensor(x)

        def wait_for(outputs):
            return keras.ops.convert_to_numpy(outputs[..., 0])

        return {
            "first train step": lambda: model.train_on_batch(x, y),
            "train step": lambda: model.train_on_batch(x, y),
            "eager call": lambda: wait_for(td(x_there)),
        }

    contenders = [
        contender(keras.layers.TimeDistributed),
        contender(
            lambda layer: keras_td.TimeDistributed(layer, steps_per_call=1)
        ),
    ]

    def take_turns(part, rounds):
        functions = [parts[part] for parts in contenders]
        return isolated.interleave(functions, rounds, SECONDS)

    found = {"first train step": take_turns("first train step", 1)}
    for part in "train step", "eager call":
        take_turns(part, 1)
        found[part] = take_turns(part, ROUNDS)
    return found


def cell(rounds):
    stock, own = (
        statistics.median(seconds) * 1000
        for seconds in zip(*rounds, strict=True)
    )
    ratio = statistics.median(b / a for a, b in rounds)
    return f"{stock:,.1f} | {own:,.1f} | **{ratio:.2f}**"


def main():
    print(
        f"Milliseconds on {bench.BACKEND}: Keras's, this layer's "
        "with `steps_per_call=1`, and the ratio.\n"
    )
    print("| layer | steps | " + " | | | ".join(PARTS) + " | | |")
    print("| --- | --: |" + " --: |" * 3 * len(PARTS))
    for name in LAYERS:
        for steps in STEPS:
            found = isolated.measure_in_process(name, steps)
            cells = " | ".join(cell(found[part]) for part in PARTS)
            print(f"| {name} | {steps} | {cells} |", flush=True)


if __name__ == "__main__":
    isolated.run(__doc__, measure, main)

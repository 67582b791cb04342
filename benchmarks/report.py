"""Draws the samples of `bench.py`, and puts their ratios into Markdown tables.

python benchmarks/report.py
"""

import json
import statistics

import matplotlib.pyplot as plt
from matplotlib import ticker

import bench
import padding

TOP = bench.RESULTS.parent.parent
ALL = bench.RESULTS / "ratios.md"
# Between marks, the README has a summary, and pages have tables.
README = TOP / "README.md"
PERFORMANCE = TOP / "docs" / "performance.md"
PADDING = TOP / "docs" / "padding.md"
START, END = "<!-- ratios -->", "<!-- end of ratios -->"
NAMES = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
FIRST, TRAIN = "first train step", "train step"
CHARTED = "Dense", "CNN, normalized", "LSTM"
# The rows of each chart, of layers and of what they do.
CHARTS = {
    "steps.png": [("CNN, normalized", FIRST), ("CNN, normalized", TRAIN)],
    "first_step.png": [(name, FIRST) for name in CHARTED],
    "train_step.png": [(name, TRAIN) for name in CHARTED],
}
# For a light and for a dark page.
GRAY = "#868e96"
# In the order of drawing.
COLORS = {
    bench.BARE: GRAY,
    bench.HAND: "#228be6",
    bench.KERAS_2: "#ae3ec9",
    bench.STOCK: "#e8590c",
    bench.OWN: "#2f9e44",
}
PADDING_COLORS = {
    padding.IDEAL: GRAY,
    padding.PLAIN: "#e8590c",
    padding.SKIPPING: "#2f9e44",
}
PADDING_CHART = "padding.png"
STYLE = {
    "text.color": GRAY,
    "axes.labelcolor": GRAY,
    "axes.edgecolor": GRAY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "font.size": 9,
}


def ratio(samples, other):
    """How many times as long as another `keras_td` takes, turn by turn.

    Returns:
        The median, and half the range of the middle half.
    """
    ratios = turn_by_turn(samples, bench.OWN, other)
    low, median, high = statistics.quantiles(ratios, method="inclusive")
    digits = 2 if median > 0.1 else 3
    return f"{median:.{digits}f} ± {(high - low) / 2:.{digits}f}"


def turn_by_turn(samples, who, other):
    """How many times as long as another one takes, in each round."""
    pairs = zip(samples[who], samples[other], strict=True)
    return [own / its for own, its in pairs]


def row(cell, other):
    samples, missing = cell["samples"], cell["missing"]
    memory, pair = samples["memory"], (bench.OWN, other)
    if missing.keys() & set(pair):
        # Who takes too long takes it in the first train step.
        why = " / ".join(missing.get(who, "-") for who in pair)
        found = [why if part == FIRST else "-" for part in bench.PARTS]
    else:
        found = [ratio(samples[part], other) for part in bench.PARTS]
    megabytes = (
        f"{statistics.median(memory[who]):.0f}" if who in memory else "-"
        for who in pair
    )
    found.append(" / ".join(megabytes))
    return [cell["layer"], str(cell["steps"]), other, *found]


def table(run, wanted=lambda steps, other: True):
    """The ratios of a run, for those numbers of steps, to those others."""
    heads = ["layer", "steps", "against", *bench.PARTS, "memory, MB"]
    align = ["---", "--:", "---", *["--:"] * (len(bench.PARTS) + 1)]
    rows = [
        row(cell, other)
        for cell in run["cells"]
        for other in others(cell)
        if wanted(cell["steps"], other)
    ]
    return f"{title(run)}:\n\n{markdown([heads, align, *rows])}"


def markdown(rows):
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def others(cell):
    """Who took part, or should have, beside `keras_td`."""
    taken = cell["samples"]["memory"].keys() | cell["missing"]
    return [who for who in bench.EVERYONE[1:] if who in taken]


def is_shown(steps, other):
    return steps == 128 and other not in (bench.HAND, bench.KERAS_2)


def summary(runs):
    """How many times as fast as Keras's own layer `keras_td` is."""
    heads = [NAMES[run["backend"]] + device_of(run) for run in runs]
    by_layer = [
        {c["layer"]: c for c in run["cells"] if c["steps"] == 128}
        for run in runs
    ]
    rows = [["layer", *heads], ["---", *["--:"] * len(heads)]]
    for name in bench.MODELS:
        rows.append([name, *(gain(cells[name]) for cells in by_layer)])
    return markdown(rows)


def gain(cell):
    if bench.STOCK in cell["missing"]:
        return f"stock takes {cell['missing'][bench.STOCK]}"
    found = []
    for part in FIRST, TRAIN:
        times = statistics.median(
            turn_by_turn(cell["samples"][part], bench.STOCK, bench.OWN)
        )
        found.append(f"{times:.0f}x" if times > 9.5 else f"{times:#.2g}x")
    return " / ".join(found)


def device_of(run):
    return "" if run["device"] == "CPU" else f", {run['device']}"


def title(run):
    versions = [f"{name} {found}" for name, found in run["versions"].items()]
    where = f"{NAMES[run['backend']]} on {run['device']}"
    about = [
        f"{where} with {run['cores']} cores of {run['processor']}",
        f"Python {run['Python']}",
        *versions,
        run["date"],
    ]
    return ", ".join(about)


def draw(axes, cells, part):
    """Medians against the number of steps, a line for each contender."""
    for who, color in COLORS.items():
        points = [
            (cell["steps"], statistics.median(cell["samples"][part][who]))
            for cell in cells
            if who in cell["samples"][part]
        ]
        if points:
            # What others reach lies on the floor, not under it.
            width = (
                {"lw": 6, "alpha": 0.4} if who == bench.BARE else {"lw": 1.5}
            )
            axes.plot(*zip(*points, strict=True), c=color, label=who, **width)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    steps = [cell["steps"] for cell in cells]
    axes.set_xticks(steps, steps)
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high < 100 * low else (1,)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


def save(figure, colors, path):
    """Saves a figure, with a legend of those in it, the last drawn first."""
    lines = [line for axes in figure.axes for line in axes.lines]
    named = {line.get_label(): line for line in lines}
    order = [who for who in reversed(colors) if who in named]
    figure.legend(
        map(named.get, order),
        order,
        loc="outside upper center",
        ncols=len(order),
        frameon=False,
    )
    figure.savefig(path, dpi=150, transparent=True)
    plt.close(figure)


def chart(runs, rows, path):
    shape = len(rows), len(runs)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            *shape,
            figsize=(3 * shape[1], 2.2 * shape[0]),
            sharex=True,
            sharey="row",
            squeeze=False,
            layout="constrained",
        )
        for column, run in zip(grid.T, runs, strict=True):
            for axes, (name, part) in zip(column, rows, strict=True):
                cells = [c for c in run["cells"] if c["layer"] == name]
                draw(axes, cells, part)
                where = f"{name}, {NAMES[run['backend']]}{device_of(run)}"
                axes.set_title(where, fontsize=9)
            column[-1].set_xlabel("time steps (log)")
        for axes, (_, part) in zip(grid[:, 0], rows, strict=True):
            axes.set_ylabel(f"{part}, s (log)")
        save(figure, COLORS, path)


def draw_padding(axes, cells, part):
    """Medians against the share of padding, a line for each contender."""
    for who, color in PADDING_COLORS.items():
        shares = [100 - 100 * cell["valid"] for cell in cells]
        medians = [
            statistics.median(cell["samples"][part][who]) for cell in cells
        ]
        # What others reach lies on the ideal, not under it.
        band = {"lw": 8, "alpha": 0.35, "solid_capstyle": "round"}
        width = band if who == padding.IDEAL else {"lw": 1.5, "marker": "."}
        axes.plot(shares, medians, c=color, label=who, **width)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter("{x:g}%")


def padding_chart(runs, path):
    parts = list(padding.PARTS)
    shape = len(padding.LAYERS) * len(parts), len(runs)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            *shape,
            figsize=(3 * shape[1], 1.9 * shape[0]),
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        rows = [(n, part) for part in parts for n in padding.LAYERS]
        for column, run in zip(grid.T, runs, strict=True):
            for axes, (name, part) in zip(column, rows, strict=True):
                cells = [c for c in run["cells"] if c["layer"] == name]
                draw_padding(axes, cells, part)
                where = f"{name}, {NAMES[run['backend']]}"
                axes.set_title(where, fontsize=9)
            column[-1].set_xlabel("padding")
        for axes, (_, part) in zip(grid[:, 0], rows, strict=True):
            axes.set_ylabel(f"{part}, s")
        save(figure, PADDING_COLORS, path)


def put_between_marks(path, text):
    before, rest = path.read_text().split(START)
    _, after = rest.split(END)
    path.write_text(f"{before}{START}\n{text}\n\n{END}{after}")


def load(pattern):
    paths = sorted(bench.RESULTS.glob(pattern))
    return [json.loads(path.read_text()) for path in paths]


def main():
    padded = load("padding-*.json")
    if padded:
        padding_chart(padded, bench.RESULTS / PADDING_CHART)
        tables = [
            f"{title(run)}:\n\n{padding.table(run['cells'])}" for run in padded
        ]
        put_between_marks(PADDING, "\n\n".join(tables))
    runs = load("[!p]*.json")
    for name, rows in CHARTS.items():
        chart(runs, rows, bench.RESULTS / name)
    ratios = "\n\n".join(table(run) for run in runs)
    ALL.write_text(f"# All ratios\n\n{ratios}\n")
    print(ratios)
    put_between_marks(README, summary(runs))
    shown = "\n\n".join(table(run, is_shown) for run in runs)
    put_between_marks(PERFORMANCE, shown)


if __name__ == "__main__":
    main()

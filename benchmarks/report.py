"""Draws the samples of `bench.py`, and puts their ratios into the README.

python benchmarks/report.py
"""

import json
import pathlib
import statistics

import matplotlib.pyplot as plt

RESULTS = pathlib.Path(__file__).parent / "results"
README = RESULTS.parent.parent / "README.md"
START, END = "<!-- ratios -->\n", "\n<!-- end of ratios -->"
PARTS = "first train step", "train step", "predict step", "eager call"
OTHERS = "bare layer", "keras.layers"
# Of these many steps the README tells.
TOLD = "128"
CHARTED = "Dense", "CNN, normalized", "LSTM"
CHARTS = {"first train step": "first_step.png", "train step": "train_step.png"}
# For a light and for a dark page.
GRAY = "#868e96"
COLORS = {
    "keras_td": "#2f9e44",
    "keras.layers": "#e8590c",
    "tf_keras": "#ae3ec9",
    "by hand": "#228be6",
    "bare layer": GRAY,
}
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
    """How many times as long as another `keras_td` takes: the median.

    Those that took turns are compared turn by turn.
    """
    if not samples[other]:
        return "-"
    pairs = zip(samples["keras_td"], samples[other], strict=True)
    return f"{statistics.median(own / its for own, its in pairs):.2f}"


def table(run, wanted):
    """The ratios of a run, for the numbers of steps that are wanted."""
    heads = [f"{part} / {other}" for other in OTHERS for part in PARTS]
    rows = [["layer", "steps", *heads], ["---"] + ["--:"] * (len(heads) + 1)]
    for name, cells in run["samples"].items():
        for steps in filter(wanted.__contains__, cells):
            ratios = [
                ratio(cells[steps][part], other)
                for other in OTHERS
                for part in PARTS
            ]
            rows.append([name, steps, *ratios])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    versions = [
        f"{name} {version}" for name, version in run["versions"].items()
    ]
    where = f"{run['device']} with {run['cores']} cores, Python {run['Python']}"
    title = f"{run['backend']} on {where}, {', '.join(versions)}, {run['date']}"
    return "\n".join([f"{title}:", "", *lines])


def draw(axes, cells, part):
    """Medians against the number of steps, a line for each contender."""
    for who, color in COLORS.items():
        points = [
            (int(steps), statistics.median(cell[part][who]))
            for steps, cell in cells.items()
            if cell[part].get(who)
        ]
        if points:
            axes.plot(
                *zip(*points, strict=True), "o-", ms=3, c=color, label=who
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(list(map(int, cells)), list(cells))
    axes.minorticks_off()


def chart(runs, part, path):
    shape = len(CHARTED), len(runs)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            *shape,
            figsize=(3 * shape[1], 2.2 * shape[0]),
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        for column, run in zip(grid.T, runs, strict=True):
            for axes, name in zip(column, CHARTED, strict=True):
                draw(axes, run["samples"][name], part)
                axes.set_title(f"{name}, {run['backend']}", fontsize=9)
            column[-1].set_xlabel("time steps")
        for axes in grid[:, 0]:
            axes.set_ylabel(f"{part}, seconds")
        lines = [line for axes in grid.flat for line in axes.lines]
        named = {line.get_label(): line for line in lines}
        figure.legend(
            named.values(),
            named.keys(),
            loc="outside upper center",
            ncols=len(named),
            frameon=False,
        )
        figure.savefig(path, dpi=150, transparent=True)
        plt.close(figure)


def main():
    runs = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("*.json"))]
    for run in runs:
        print(table(run, run["samples"]["Dense"].keys()), end="\n\n")
    for part, name in CHARTS.items():
        chart(runs, part, RESULTS / name)
    before, _, rest = README.read_text().partition(START)
    _, _, after = rest.partition(END)
    told = "\n\n".join(table(run, {TOLD}) for run in runs)
    README.write_text(f"{before}{START}{told}{END}{after}")


if __name__ == "__main__":
    main()

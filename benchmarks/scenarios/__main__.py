"""What users of `TimeDistributed` ask for, and which class delivers it.

Each scenario is one promise, checked against a loop over the time steps that
calls the layer by hand, or against NumPy. It works, gives a wrong answer, or
raises.

    KERAS_BACKEND=jax python benchmarks/scenarios
    KERAS_BACKEND=jax python benchmarks/scenarios --details --json jax.json
    python benchmarks/scenarios --merge tensorflow.json jax.json torch.json
"""

import argparse
import contextlib
import importlib
import io
import json
import logging
import os
import pathlib
import sys
import warnings

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

from scenario import BACKENDS
from scenario import CLASSES
from scenario import SCENARIOS

for module in ("wrapping", "inputs", "masks", "training", "saving"):
    importlib.import_module(module)


def outcome(check, cls):
    """The outcome of a scenario, and the first line of what went wrong."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            check(cls)
    except AssertionError as error:
        return "wrong", first_line(error)
    except Exception as error:
        return "raises", f"{type(error).__name__}: {first_line(error)}"
    return "works", ""


def first_line(error):
    lines = [line.strip() for line in str(error).splitlines()]
    return next(filter(None, lines), "an assertion failed")


@contextlib.contextmanager
def quiet():
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def run(backend, part):
    """Outcomes `{sentence: {class: [outcome, message]}}`.

    They are of all scenarios whose sentence contains `part`.
    """
    chosen = {s: SCENARIOS[s] for s in SCENARIOS if part in s}
    results = {}
    for i, (sentence, (check, only, reason)) in enumerate(chosen.items(), 1):
        print(f"[{i}/{len(chosen)}] {sentence}", file=sys.stderr)
        results[sentence] = {
            name: ["n/a", reason]
            if backend not in only
            else outcome(check, cls)
            for name, cls in CLASSES.items()
        }
    return results


def table(columns):
    """A Markdown table of `{title: {sentence: [outcome, message]}}`."""
    sentences = list(next(iter(columns.values())))
    rows = [["scenario", *columns], ["---"] + [":-:"] * len(columns)]
    notes = []
    for sentence in sentences:
        results = [column[sentence] for column in columns.values()]
        for result, message in results:
            if result == "n/a" and message not in notes:
                notes.append(message)
        rows.append([sentence, *(cell(result) for result, _ in results)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, *(f"\nn/a: {note}" for note in notes)])


def cell(result):
    return "✓" if result == "works" else result


def count(column):
    results = [result for result, _ in column.values() if result != "n/a"]
    parts = [f"{results.count('works')} of {len(results)} work"]
    for result, verb in ("wrong", "wrong"), ("raises", "raise"):
        if result in results:
            parts.append(f"{results.count(result)} {verb}")
    return ", ".join(parts)


def print_all(columns, details):
    print(table(columns))
    print(
        "\n✓: the right answer. wrong: another answer. raises: an exception.\n"
    )
    for title, column in columns.items():
        print(f"- {title}: {count(column)}")
    if details:
        for title, column in columns.items():
            print(f"\n{title}:\n")
            for sentence, (result, message) in column.items():
                if result in ("wrong", "raises"):
                    print(f"- {sentence}: {result}. {message}")


def main():
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("--only", default="", metavar="PART", help="only sentences with PART")
    add("--details", action="store_true", help="print what went wrong")
    add("--json", type=pathlib.Path, help="also write the outcomes here")
    add("--merge", nargs="+", type=pathlib.Path, help="print these outcomes")
    args = parser.parse_args()
    if args.merge:
        runs = [json.loads(path.read_text()) for path in args.merge]
        runs.sort(key=lambda run: list(BACKENDS).index(run["backend"]))
        columns = {
            f"{name} {BACKENDS[run['backend']]}": {
                sentence: result[name]
                for sentence, result in run["results"].items()
            }
            for name in CLASSES
            for run in runs
        }
    else:
        backend = keras.backend.backend()
        results = run(backend, args.only)
        columns = {
            name: {
                sentence: result[name] for sentence, result in results.items()
            }
            for name in CLASSES
        }
        if args.json:
            report = {"backend": backend, "results": results}
            args.json.write_text(json.dumps(report, indent=1))
    print_all(columns, args.details)
    failed = any(
        result in ("wrong", "raises")
        for title, column in columns.items()
        if title.startswith("keras_td")
        for result, _ in column.values()
    )
    sys.exit(failed)


if __name__ == "__main__":
    main()

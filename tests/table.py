"""Prints which layers work on which backends, and which models upgrade.

    python tests/table.py FOLDER [SESSION...]
    python tests/table.py REPORT

The folder has the reports: files that `pytest --report` wrote, named after
their sessions, such as `tests(jax).json`, and `mutation.json`. It is an error
if one of the named sessions has no report. A single report must be one of
cells, such as that of `exports(jax)`, and these make the table.
"""

import collections
import json
import pathlib
import sys

# The sessions whose reports make the table, and those that are only counted.
COLUMNS = "tests", "inference", "slow"
COUNTED = "newest", "minimums", "nightly"
NOT_RUN = "not run"
# The check without which none of the others counts.
FIRST = {
    "case": "equals one call on the steps as samples",
    "model": "no stock layer is left and the model is what it was",
    "cell": "one call",
}
# This begins the reason of each check that fails for the bare layer too.
ALIKE = "The bare layer fails too. "


class Notes:
    """Numbers reasons in the order in which they come up."""

    def __init__(self):
        self.numbers = {}

    def number(self, note):
        return self.numbers.setdefault(note, len(self.numbers) + 1)

    def print(self):
        for note, number in self.numbers.items():
            print(f"[{number}] {note}")


def by_name(reports, kind):
    """Maps each case or model, and backend, to the outcomes of its checks."""
    found = collections.defaultdict(list)
    for report in reports:
        backend = report["backend"]
        for name, reason in report["not_here"].get(kind, {}).items():
            found[name, backend].append(["all checks", "limit", reason])
        for name, *outcome in report["outcomes"][kind]:
            found[name, backend].append(outcome)
    return found


def cell(outcomes, first, notes, excluded="excluded"):
    if not outcomes:
        return NOT_RUN
    if any(outcome == "failed" for _, outcome, _ in outcomes):
        return "FAILED"
    checks = collections.defaultdict(set)
    for check, outcome, reason in outcomes:
        if outcome == "limit":
            checks[reason.removeprefix(ALIKE)].add(check)
    limits = {
        notes.number(f"{reason} ({', '.join(sorted(checks[reason]))})")
        for reason in checks
    }
    called = any(found[:2] == [first, "passed"] for found in outcomes)
    word = "ok" if called else excluded
    return " ".join([word, *(f"[{n}]" for n in sorted(limits))])


def print_table(reports, kind, excluded):
    backends = list(dict.fromkeys(report["backend"] for report in reports))
    names = list(dict.fromkeys(n for r in reports for n in r["names"][kind]))
    found, notes = by_name(reports, kind), Notes()
    rows = [
        [n, *(cell(found[n, b], FIRST[kind], notes) for b in backends)]
        for n in names
    ]
    for name, reason in excluded.items():
        number = notes.number(f"{reason} (all checks)")
        rows.append([name, *(f"excluded [{number}]" for _ in backends)])

    print_rows([kind, *backends], rows)
    print("\nok: each check passes, except those in the notes, which name what")
    print("Keras cannot do on that backend even without this layer:\n")
    notes.print()


def print_rows(header, rows):
    for row in [header, ["-" * 5] * len(header), *rows]:
        print(f"| {' | '.join(row)} |")


def print_cells(report):
    found, notes = collections.defaultdict(list), Notes()
    for (row, column), *outcome in report["outcomes"]["cell"]:
        found[row, column].append(outcome)
    names = list(dict.fromkeys(row for row, _ in found))
    columns = list(dict.fromkeys(column for _, column in found))
    rows = [
        [n, *(cell(found[n, c], FIRST["cell"], notes, "no") for c in columns)]
        for n in names
    ]
    print(f"{versions_of(report)}:\n")
    print_rows([report["backend"], *columns], rows)
    print("\nok: with each option, except those that a note names.")
    print("no: not even with time folded by hand, without this layer.\n")
    notes.print()
    sys.exit(bool(report["failed"]))


def versions_of(report):
    return ", ".join(f"{k} {v}" for k, v in report["versions"].items())


def print_counts(reports, mutation):
    first = next(iter(reports.values()))
    checks = {c for r in reports.values() for _, c, *_ in r["outcomes"]["case"]}
    properties = {name for r in reports.values() for name in r["properties"]}
    names = first["names"]["case"]
    print(f"\nKeras's layers: {first['classes']} and {len(first['excluded'])}")
    print(f"  excluded; {len(names)} cases with the composite ones")
    print(f"Checks of cases: {len(checks)}")
    print(f"Properties (hypothesis): {len(properties)}")
    print("Cases that are not run take long: `nox -s slow` runs them.")
    for session, report in reports.items():
        cases = report["outcomes"]["case"]
        outcomes = collections.Counter(outcome for _, _, outcome, _ in cases)
        print(
            f"{session} on {report['date']}, {versions_of(report)}: "
            f"{report['tests']} "
            f"tests, {len(report['failed'])} failed; of the checks of cases "
            f"{outcomes['passed']} passed, {outcomes['limit']} are limits"
        )
        for test in report["failed"]:
            print(f"  FAILED {test}")
    if mutation:
        killed, total = mutation["killed"], mutation["mutants"]
        print(
            f"Mutants: {killed} of {total} killed, {killed / total:.1%}; "
            f"{mutation['explained']} others change nothing"
        )
    else:
        print("Mutants: `nox -s mutation` has not run")


def main():
    folder = pathlib.Path(sys.argv[1])
    if folder.is_file():
        return print_cells(json.loads(folder.read_text()))
    reports = {
        path.stem: json.loads(path.read_text())
        for session in [*COLUMNS, *COUNTED]
        for path in sorted(folder.glob(f"{session}(*).json"))
    }
    columns = [r for name, r in reports.items() if name.startswith(COLUMNS)]
    if not columns:
        sys.exit("There is no report yet: run nox first.")
    mutation = folder / "mutation.json"
    print("Layers, against a loop over the time steps:\n")
    print_table(columns, "case", columns[0]["excluded"])
    print("\nModels with Keras's own layer, after `upgrade`:\n")
    print_table(columns, "model", {})
    print_counts(
        reports, mutation.exists() and json.loads(mutation.read_text())
    )
    missing = [name for name in sys.argv[2:] if name not in reports]
    if missing:
        print(f"Not run, so not in the table: {', '.join(missing)}")
    failed = any(report["failed"] for report in reports.values())
    sys.exit(bool(missing) or failed)


if __name__ == "__main__":
    main()

import json
import pathlib
import re
import subprocess
import sys

USES = pathlib.Path(__file__).with_name("typed_uses.py")


def run(*command):
    ran = subprocess.run(
        [sys.executable, "-m", *command, USES.name],
        cwd=USES.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    # 1: it has found errors.
    assert ran.returncode == 1, ran.stdout
    return ran.stdout


def lines_marked_for(checker):
    return {
        number
        for number, line in enumerate(USES.read_text().splitlines(), start=1)
        if re.search(rf"  # error: .*\b{checker}\b", line)
    }


def test_mypy_finds_the_wrong_uses_and_no_others():
    # Keras has no types. Users do not have the config of this project.
    options = ("--disable-error-code=import-untyped", "--config-file=")
    reports = run("mypy", "--strict", "--output=json", *options).splitlines()

    found = [json.loads(report) for report in reports]

    errors = {
        e["line"]: e["message"] for e in found if e["severity"] == "error"
    }
    assert errors.keys() == lines_marked_for("mypy"), errors


def test_pyright_finds_the_wrong_uses_and_no_others():
    python = f"--pythonpath={sys.executable}"
    report = json.loads(run("pyright", "--outputjson", python))

    errors = {
        found["range"]["start"]["line"] + 1: found["message"]
        for found in report["generalDiagnostics"]
        if found["severity"] == "error"
    }
    assert errors.keys() == lines_marked_for("pyright"), errors

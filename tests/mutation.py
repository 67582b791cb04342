"""Plants small faults in keras_td, one at a time, and counts those found.

    python tests/mutation.py REPORT [MODULE...]

The faults go into `keras_td` in the current folder: run it in a copy.
"""

import json
import pathlib
import subprocess
import sys

CONFIG = """
[cosmic-ray]
module-path = {modules}
timeout = 900.0
excluded-modules = []
test-command = "{tests}"
distributor.name = "local"
"""
# What is quick comes first: one test that fails is enough.
QUICK = ["folding", "arguments", "errors", "empty", "properties", "masks"]
TESTS = [*(f"tests/test_{name}.py" for name in QUICK), "tests"]


def run(*args):
    command = ["cosmic-ray", *args]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return result.stdout.decode()


def survivor(mutation):
    return {
        "module": mutation["module_path"],
        "line": mutation["start_pos"][0],
        "fault": mutation["operator_name"].removeprefix("core/"),
        "occurrence": mutation["occurrence"],
    }


def main():
    report, *modules = sys.argv[1:]
    pytest = f"{sys.executable} -m pytest -x -q -p no:cacheprovider"
    config = CONFIG.format(
        modules=modules or ["keras_td"], tests=" ".join([pytest, *TESTS])
    )
    pathlib.Path("mutation.toml").write_text(config)
    run("init", "--force", "mutation.toml", "mutation.sqlite")
    run("baseline", "mutation.toml")
    run("exec", "mutation.toml", "mutation.sqlite")

    lines = run("dump", "mutation.sqlite").splitlines()
    results = [json.loads(line) for line in lines]
    survivors = [
        survivor(work["mutations"][0])
        for work, result in results
        if result["test_outcome"] == "survived"
    ]
    found = {
        "mutants": len(results),
        "killed": len(results) - len(survivors),
        "survivors": survivors,
    }
    pathlib.Path(report).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(report).write_text(json.dumps(found, indent=1))
    print(f"{found['killed']} of {found['mutants']} killed. Survivors:")
    for x in survivors:
        print(f"{x['module']}:{x['line']} {x['fault']} {x['occurrence']}")


if __name__ == "__main__":
    main()

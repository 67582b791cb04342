"""Runs each measurement of a benchmark in a process of its own."""

import argparse
import json
import os
import subprocess
import sys


def measure_apart(*arguments, env=()):
    """What `measure` of the running script returns, in another process."""
    command = [sys.executable, sys.argv[0], "--measure", json.dumps(arguments)]
    process = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **dict(env)},
    )
    return json.loads(process.stdout.splitlines()[-1])


def run(description, measure, main):
    """Runs `main`, or `measure` where `measure_apart` asks for it."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args().measure
    if arguments:
        print(json.dumps(measure(*arguments)))
    else:
        main()

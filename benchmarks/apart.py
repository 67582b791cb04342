"""Measures in processes of their own, in turns, in seconds and megabytes."""

import argparse
import ctypes
import gc
import json
import os
import pathlib
import subprocess
import sys
import time


def measure_apart(*arguments, env=(), timeout=None):
    """What `measure` of the running script returns, in another process.

    It is `None` where that takes longer than `timeout` seconds.
    """
    command = [sys.executable, sys.argv[0], "--measure", json.dumps(arguments)]
    try:
        process = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=timeout,
            env={**os.environ, **dict(env)},
        )
    except subprocess.TimeoutExpired:
        return None
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


def take_turns(functions, rounds, seconds):
    """The seconds of each function, in each round of all of them.

    No round begins after so many `seconds`.
    """
    found: list = []
    deadline = time.perf_counter() + seconds
    while len(found) < rounds and time.perf_counter() < deadline:
        found.append([])
        for function in functions:
            start = time.perf_counter()
            function()
            found[-1].append(time.perf_counter() - start)
    return found


def peak_memory(do):
    """The megabytes that this process needs for `do()`, above what it has."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    do()
    return _status("VmHWM") - before


def _status(name):
    """A line of this process's status, in MB."""
    status = pathlib.Path("/proc/self/status").read_text()
    [kilobytes] = [
        line.split()[1] for line in status.splitlines() if name in line
    ]
    return int(kilobytes) / 1e3

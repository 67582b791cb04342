"""Measures seconds and megabytes, interleaved and in separate processes."""

import argparse
import ctypes
import gc
import json
import os
import pathlib
import random
import subprocess
import sys
import time

# Freed memory goes back to the system, so that only memory in use counts.
FREE_AT_ONCE = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}


class Missing(RuntimeError):
    """Why there is no measurement."""


def measure_in_process(*arguments, env=(), timeout=None):
    """What `measure` of the running script returns, in another process.

    Raises:
        Missing: if that takes longer than `timeout` seconds, or fails.
    """
    command = [sys.executable, sys.argv[0], "--measure", json.dumps(arguments)]
    try:
        process = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **dict(env)},
        )
    except subprocess.TimeoutExpired as error:
        raise Missing(f"> {timeout} s") from error
    if process.returncode:
        print(process.stderr, file=sys.stderr)
        raise Missing(f"failed with {process.returncode}")
    return json.loads(process.stdout.splitlines()[-1])


def run(description, measure, main):
    """Runs `main`, or `measure` if `measure_in_process` asks for it."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args().measure
    if arguments:
        print(json.dumps(measure(*arguments)))
    else:
        main()


def interleave(functions, rounds, seconds):
    """The seconds of each function, in each round of all of them.

    Each round has its own order, as a function that runs after a large one
    finds the caches cold. After the third, no round begins after so many
    `seconds`.
    """
    found: list = []
    chance = random.Random(0)
    deadline = time.perf_counter() + seconds
    gc.collect()
    gc.freeze()
    gc.disable()
    while len(found) < rounds and (
        len(found) < 3 or time.perf_counter() < deadline
    ):
        turn = [0.0] * len(functions)
        for i in chance.sample(range(len(functions)), len(functions)):
            gc.collect()  # what others left behind
            start = time.perf_counter()
            _call(functions[i])
            turn[i] = round(time.perf_counter() - start, 7)
        found.append(turn)
    gc.enable()
    gc.unfreeze()
    return found


def _call(function):
    return function()


# CPython's stack grows in chunks, and calls across a boundary are slow. Such a
# large frame starts a chunk with as much room after it, so none is crossed.
_call.__code__ = _call.__code__.replace(co_stacksize=2**16)


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

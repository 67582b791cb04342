"""The ways in which the wrapped layer may be called."""

import itertools

import pytest

from backends import QUICK
from backends import needs

TIME = 11
# Recomputation is only for gradients.
REMAT = [needs("remat"), needs("training")]
SEVERAL_CALLS = {
    "1 step": {"steps_per_call": 1},
    # 2 steps, and then 3 calls.
    "3 steps": {"steps_per_call": 3},
    "more than all": {"steps_per_call": 99},
    "remat": {"remat": True},
    "2 steps, remat": {"steps_per_call": 2, "remat": True},
}
MODES = {
    "one call": {},
    **SEVERAL_CALLS,
    "shared randomness": {"share_randomness": True},
}


def options_named(names):
    return pytest.mark.parametrize("option", [param(name) for name in names])


def names_and_options(names, options):
    """Each name with each option on quick backends, elsewhere in turn."""
    both = itertools.product(names, options)
    if not QUICK:
        size = max(len(names), len(options))
        cycles = itertools.cycle(names), itertools.cycle(options)
        both = itertools.islice(zip(*cycles, strict=False), size)
    return pytest.mark.parametrize(
        ("option", "name"),
        [param(o, n) for n, o in both],
    )


def param(option, *values, marks=()):
    of_remat = REMAT if "remat" in option else []
    return pytest.param(option, *values, marks=[*of_remat, *marks])


each_option = options_named(SEVERAL_CALLS)
# One of each kind.
KINDS = ["one call", "1 step", "2 steps, remat"]
each_kind = options_named(KINDS)
each_mode = options_named(MODES)

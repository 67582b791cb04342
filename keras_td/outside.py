"""Finds the layers and optimizers that the code of functions uses."""

import dis
import functools
import inspect

import keras

from keras_td import layer_kinds


def used(functions, by=None):
    """Finds the layers and optimizers that functions use from outside.

    Args:
        functions: Iterable of functions, and of objects that may hold some.
        by: The object whose functions they are. What it holds does not count.

    Yields:
        Each layer and each optimizer once.
    """
    waiting, seen = list(functions), [by]
    while waiting:
        x = waiting.pop()
        if any(x is y for y in seen):
            continue
        seen.append(x)
        if isinstance(x, (keras.Layer, keras.optimizers.Optimizer)):
            yield x
        elif inspect.ismethod(x):
            waiting += [x.__self__, x.__func__]
        elif inspect.isfunction(x):
            waiting += _used_by(x)
        elif isinstance(x, functools.partial):
            waiting += [x.func, *x.args, *x.keywords.values()]
        elif isinstance(x, dict):
            waiting += x.values()
        elif isinstance(x, (list, tuple, set)):
            waiting += x


def _used_by(function):
    """The objects that the code of a function names, and their attributes."""
    if layer_kinds.is_from(function, "keras"):
        return []
    defaults = *(function.__defaults__ or ()), function.__kwdefaults__ or {}
    known, names = inspect.getclosurevars(function), set()
    found = [*defaults, *known.nonlocals.values()]
    for code in _codes(function.__code__):
        names.update(code.co_names)
        # The names of attributes are not variables.
        used = {
            x.argval
            for x in dis.get_instructions(code)
            if x.opname == "LOAD_GLOBAL"
        }
        found += [known.globals[name] for name in used & known.globals.keys()]
    of_objects = [vars(x) for x in found if hasattr(x, "__dict__")]
    return found + [
        attributes[name]
        for attributes in of_objects
        for name in names & attributes.keys()
    ]


def _codes(code):
    """The code of a function, and of the functions in it."""
    yield code
    for inner in filter(inspect.iscode, code.co_consts):
        yield from _codes(inner)

"""Builds this layer where third-party code asks for Keras's own."""

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from typing import Unpack

import keras

from keras_td.options import Options
from keras_td.time_distributed import TimeDistributed

_STOCK = keras.layers.TimeDistributed
# The options of the innermost `replacing`. Each thread has its own.
_options: contextvars.ContextVar = contextvars.ContextVar(
    "options", default=None
)
_lock = threading.Lock()
_open = 0


@contextlib.contextmanager
def replacing(**options: Unpack[Options]) -> Iterator[None]:
    """Builds this layer wherever code asks for `keras.layers.TimeDistributed`.

    For models built by library functions, whose imports you cannot change.

    Example:

    >>> with keras_td.replacing():
    ...     layer = keras.layers.TimeDistributed(keras.layers.Dense(4))
    >>> type(layer).__module__
    'keras_td.time_distributed'

    Layers of exactly that class are replaced, whatever name the code imports it
    by; subclasses are not. Only layers that the same thread makes inside the
    context are affected. `keras.saving.load_model` replaces layers in it too,
    also from Keras 2 `.h5` files.

    Args:
        **options: The options of each of these layers, such as
            `steps_per_call=1`.
    """
    check(options)
    token = _options.set(options)
    _count(1)
    try:
        # Keras 2 files identify layers by class name.
        by_name = {"TimeDistributed": _Replacement}
        with keras.saving.custom_object_scope(by_name):
            yield
    finally:
        _count(-1)
        _options.reset(token)


def check(options):
    """Raises the errors of the layer for wrong options, before it is built."""
    # Explicit names keep Keras from counting these layers in its default names.
    identity = keras.layers.Identity(name="identity")
    TimeDistributed(identity, **{"name": "checked", **options})


def options_here():
    """The options of the `replacing` open in this thread, or `None`."""
    return _options.get()


def _count(change):
    """Leaves Keras's class unpatched while no thread is replacing it."""
    global _open
    with _lock:
        _open += change
        if _open == 0:
            del _STOCK.__new__
        elif _open == change:
            _STOCK.__new__ = staticmethod(_new)


def _new(cls, *args, **kwargs):
    if cls is _STOCK and _options.get() is not None:
        cls = _Replacement
    return super(_STOCK, cls).__new__(cls, *args, **kwargs)


class _Replacement(TimeDistributed):
    """A `TimeDistributed` with the options of the `replacing` around it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, **_options.get()})
        self.__class__ = TimeDistributed


# Keras names layers after their class.
_Replacement.__name__ = TimeDistributed.__name__

"""This layer built where the code of others asks for Keras's own."""

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

    For models that come out of functions of other people, whose imports are not
    yours to change.

    Example:

    >>> with keras_td.replacing():
    ...     layer = keras.layers.TimeDistributed(keras.layers.Dense(4))
    >>> type(layer).__module__
    'keras_td.time_distributed'

    Layers of exactly that class are replaced, whatever name the code has
    imported it by; subclasses are not. It holds for the thread that enters it,
    and for nothing that is made before or after. In it,
    `keras.saving.load_model` replaces too, `.h5` files of Keras 2 included.

    Args:
        **options: The options of each layer that is built so, such as
            `steps_per_call=1`.
    """
    check(options)
    token = _options.set(options)
    _count(1)
    try:
        # Files of Keras 2 tell layers by the names of their classes.
        by_name = {"TimeDistributed": _Replacement}
        with keras.saving.custom_object_scope(by_name):
            yield
    finally:
        _count(-1)
        _options.reset(token)


def check(options):
    """Raises what the layer says of wrong options, before it is built."""
    # With names, Keras does not count them.
    identity = keras.layers.Identity(name="identity")
    TimeDistributed(identity, **{"name": "checked", **options})


def options_here():
    """The options of the `replacing` that is open in this thread, or `None`."""
    return _options.get()


def _count(change):
    """Keeps Keras's class as it is while no thread is replacing it."""
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

"""The scopes that Keras opens around a call, and how to leave them."""

import contextvars
import functools
from typing import Any
from typing import NamedTuple

import keras

from keras_td import internals
from keras_td import threads

# Whether the body of a loop is being traced.
in_loop: contextvars.ContextVar = contextvars.ContextVar(
    "in_loop", default=False
)


class _WithoutAutocast(keras.Layer):
    """Calls a function in which variables have their own dtype.

    In the call of a mixed-precision layer they do not, and on PyTorch lose what
    is assigned; in the call of a layer without `autocast` inside it, they do.
    """

    def __init__(self):
        super().__init__(autocast=False, dtype="float32")
        self.built = True

    def call(self, function):
        return function()


_without_autocast = _WithoutAutocast()


def without_autocast(function, *args):
    """Calls a function in which variables have their own dtype."""
    return _without_autocast(function=lambda: function(*args))


def is_inferring_shapes():
    """Whether Keras only infers the shapes and dtypes of a call."""
    with keras.SymbolicScope() as scope:
        return scope.original_scope is not None


def is_on_cpu():
    """Whether all devices are CPUs."""
    return all("cpu" in name for name in keras.distribution.list_devices())


def uncompiled(layer):
    """Runs methods that layers compile themselves (`tf.function`) uncompiled.

    A compiled method has the values of variables that it was traced with, and
    would keep those of one scope in the next.
    """
    found: list[_Method] = []
    for inner in internals.layers_of(layer):
        own = _compiled(vars(inner))
        of_class = _compiled_of_class(inner.__class__)
        found += [_Method(inner, name, own[name], True) for name in own]
        methods = [_Method(inner, n, of_class[n], False) for n in of_class]
        found += [
            method
            for method in methods
            if method in threads.patched.threads
            or method.name not in vars(inner)
        ]
    return threads.patched(*found)


def _compiled(methods):
    return {
        n: m for n, m in methods.items() if hasattr(type(m), "python_function")
    }


@functools.lru_cache
def _compiled_of_class(cls):
    methods: dict = {}
    for base in reversed(cls.__mro__):
        methods.update(vars(base))
    return _compiled(methods)


class _Method(NamedTuple):
    """A compiled method of a layer, its own or that of its class."""

    layer: keras.Layer
    name: str
    compiled: Any
    own: bool

    def patch(self):
        bound = () if self.own else (self.layer,)
        function = functools.partial(self.compiled.python_function, *bound)
        setattr(self.layer, self.name, function)

    def restore(self):
        if self.own:
            setattr(self.layer, self.name, self.compiled)
        else:
            delattr(self.layer, self.name)

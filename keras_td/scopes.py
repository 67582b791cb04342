"""What Keras does around a call, and how to leave it."""

import keras


class _Uncast(keras.Layer):
    """Calls a function in which variables have the dtype of their own.

    In the call of a layer of mixed precision they have not, and on PyTorch keep
    nothing that is assigned; in that of one without `autocast` inside they do.
    """

    def __init__(self):
        super().__init__(autocast=False, dtype="float32")
        self.built = True

    def call(self, function):
        return function()


_uncast = _Uncast()


def uncast(function, *args):
    """Calls a function in which variables have the dtype of their own."""
    return _uncast(function=lambda: function(*args))


def only_shapes_count():
    """Whether Keras only infers the shapes and dtypes of a call."""
    with keras.SymbolicScope() as scope:
        return scope.original_scope is not None


def is_recomputed(layer):
    """Whether it was made in a `keras.RematScope`, which has Keras trace it."""
    return bool(getattr(layer, "_remat_mode", None))

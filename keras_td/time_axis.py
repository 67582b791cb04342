"""Cuts tensors `(batch, time, ...)` along time, and joins them again."""

import keras
from keras import ops

from keras_td import folding
from keras_td import trees
from keras_td.folding import sizes


def first_steps(x, steps):
    if folding.is_size(x.shape[1], 1):
        return x
    if keras.backend.is_keras_tensor(x):
        return with_time(x, steps)
    return x[:, :steps]


def with_time(x, time):
    """Gives `x` the shape that it has with `time` steps."""
    first = x if keras.backend.is_keras_tensor(x) else x[:, :1]
    return folding.broadcast_to(first, (sizes(x)[0], time, *sizes(x)[2:]))


def pad(x, like, steps):
    """Puts copies of the first step of `like`, or zeros, before `x`."""
    inner = [(0, 0)] * (len(x.shape) - 2)
    like = ops.pad(like, [(0, 0), (0, 1), *inner])
    return ops.concatenate([with_time(like, steps), x], axis=1)


def cut(tensors, start, stop):
    """Some of the steps of a list of tensors."""
    return [x[:, start:stop] for x in tensors]


def join(nests):
    """Concatenates nests of tensors along time."""
    if len(nests) == 1:
        return nests[0]
    return trees.map_tensors(lambda *ys: ops.concatenate(ys, axis=1), *nests)


def split(x, iterations, steps):
    """Splits the time of `x` into iterations, the new first axis."""
    batch, _, *inner = sizes(x)
    # (batch, time, ...) -> (batch, iterations, steps, ...)
    x = ops.reshape(x, (batch, iterations, steps, *inner))
    # (batch, iterations, steps, ...) -> (iterations, batch, steps, ...)
    return ops.swapaxes(x, 0, 1)


def merge(x):
    """Merges the steps of all iterations into one time axis."""
    iterations, batch, steps, *inner = sizes(x)[1:]
    # (1, iterations, batch, steps, ...) -> (batch, iterations, steps, ...)
    x = ops.swapaxes(x[0], 0, 1)
    # (batch, iterations, steps, ...) -> (batch, time, ...)
    return ops.reshape(x, (batch, iterations * steps, *inner))

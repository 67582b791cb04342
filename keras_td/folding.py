"""Fold the time axis of tensors into their batch axis, and unfold it again.

Every function takes backend tensors and symbolic `KerasTensor`s alike. A size
is an integer where it is known; where it is not, it is `None` on a symbolic
tensor and a scalar tensor in a compiled function.
"""

import functools
from collections.abc import Callable

import keras
from keras import ops
from keras import tree

_STEPS: dict[str, Callable] = {}


def model_step(fn):
    """Makes `fn`, called on symbolic tensors, a step of a functional model.

    Keras writes the masks of symbolic tensors into the graph of a model, so
    there must be a way from them back to the inputs of the model.
    """

    def call(*tensors):
        if any(map(keras.backend.is_keras_tensor, tensors)):
            return ModelStep(fn.__name__)(*tensors)
        return fn(*tensors)

    _STEPS[fn.__name__] = fn
    return call


@keras.saving.register_keras_serializable(package="keras_td")
class ModelStep(keras.Operation):
    """A function of this module, as a step of a functional model."""

    def __init__(self, function, name=None):
        super().__init__(name=name)
        self.function = function

    def call(self, *tensors):
        return _STEPS[self.function](*tensors)

    def compute_output_spec(self, *tensors):
        return self.call(*tensors)


def is_tensor(x):
    return hasattr(x, "shape")


def flatten(nest):
    # Most nests are one tensor, and trees are slow on some backends.
    return [nest] if nest is None or is_tensor(nest) else tree.flatten(nest)


def tensors(nest):
    return list(filter(is_tensor, flatten(nest)))


def map_tensors(fn, nest, *nests):
    """Maps `fn` over the tensors of `nest`; its other leaves stay."""
    if is_tensor(nest):
        return fn(nest, *nests)
    if nest is None:
        return None
    return tree.map_structure(
        lambda x, *xs: fn(x, *xs) if is_tensor(x) else x, nest, *nests
    )


def sizes(x):
    """The sizes of all axes of `x`."""
    static = tuple(x.shape)
    return static if all(map(_is_known, static)) else tuple(ops.shape(x))


def differ(a, b):
    """Whether two sizes are known to differ."""
    return _is_known(a) and _is_known(b) and a != b


def common_time(tensors):
    """The number of time steps that tensors `(batch, time, ...)` share.

    Args:
        tensors: Dict of names and tensors. A time of 1 agrees with any other.

    Returns:
        The size of the time axis.

    Raises:
        ValueError: if there is no tensor, if one has fewer than two axes, or
            if two differ in batch or time.
    """
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    for name, shape in shapes.items():
        if len(shape) < 2:
            raise ValueError(
                "`TimeDistributed` expects every tensor to have shape "
                "`(batch, time, ...)`, which is at least two axes. Received: "
                f"`{name}` with shape {shape}."
                + ("" if shape else " Pass a number as a Python number.")
            )
    if not shapes:
        raise ValueError(
            "`TimeDistributed` expects at least one tensor of shape "
            "`(batch, time, ...)`. Received none."
        )
    batches, times = zip(*(sizes(x)[:2] for x in tensors.values()), strict=True)
    times = [time for time in times if not _is(time, 1)] or [1]
    for axis, found in ("batch", batches), ("time", times):
        if len(set(filter(_is_known, found))) > 1:
            received = ", ".join(f"`{n}` with {s}" for n, s in shapes.items())
            raise ValueError(
                f"`TimeDistributed` expects tensors of the same {axis} (a time "
                f"of 1 serves every step). Received shapes: {received}."
            )
    for time in times:
        if _is_known(time):
            return time
    return functools.reduce(_other_than_one, times)


def align(x, time):
    """Repeats a tensor whose time is 1 at each of `time` steps."""
    batch, own_time, *inner = sizes(x)
    if own_time is time or _is(own_time, time):
        return x
    # (batch, 1, ...) -> (batch, time, ...)
    return _broadcast_to(x, (batch, time, *inner))


@model_step
def fold(x):
    batch, time, *inner = sizes(x)
    # (batch, time, ...) -> (batch * time, ...)
    return _reshape(x, (_product(batch, time), *inner))


@model_step
def unfold(x, like):
    """Unfolds the batch axis of `x` into the batch and the time of `like`."""
    batch, time = sizes(like)[:2]
    steps, shape = _product(batch, time), tuple(x.shape)
    if not shape or differ(shape[0], steps):
        raise ValueError(
            "The layer wrapped by `TimeDistributed` gets each time step as a "
            "sample of its batch and must return tensors of shape "
            f"`(batch * time, ...)`. Expected: ({steps}, ...). Received: an "
            f"output of shape {shape}."
        )
    # (batch * time, ...) -> (batch, time, ...)
    return _reshape(x, (batch, time, *sizes(x)[1:]))


def first_steps(x, steps):
    if not keras.backend.is_keras_tensor(x):
        return x[:, :steps]
    time = x.shape[1]
    return with_time(x, steps if time is None else min(steps, time))


def with_time(x, time):
    """Gives `x` the shape that it has with so many time steps."""
    first = x if keras.backend.is_keras_tensor(x) else x[:, :1]
    return _broadcast_to(first, (sizes(x)[0], time, *sizes(x)[2:]))


def pad_time(x, like, steps):
    """Puts copies of the first step of `like`, or zeros, before `x`."""
    inner = [(0, 0)] * (len(x.shape) - 2)
    first = ops.pad(like, [(0, 0), (0, 1), *inner])[:, :1]
    # (batch, 1, ...) -> (batch, steps, ...)
    padding = _broadcast_to(first, (sizes(x)[0], steps, *sizes(x)[2:]))
    return ops.concatenate([padding, x], axis=1)


def split_turns(x, turns, steps):
    """Cuts the time of `x` into turns, which come first."""
    batch, _, *inner = sizes(x)
    # (batch, time, ...) -> (batch, turns, steps, ...)
    x = ops.reshape(x, (batch, turns, steps, *inner))
    # (batch, turns, steps, ...) -> (turns, batch, steps, ...)
    return ops.moveaxis(x, 1, 0)


def merge_turns(x):
    batch, turns, steps, *inner = sizes(x)
    # (batch, turns, steps, ...) -> (batch, time, ...)
    return ops.reshape(x, (batch, turns * steps, *inner))


def expand(x, rank):
    """Gives `x` trailing axes of size 1."""
    return _reshape(x, (*sizes(x), *(1,) * (rank - len(x.shape))))


def spread(x, like, rank, channels_axis):
    """Repeats `x` along the axes of `like` that it lacks, up to `rank`."""
    shape = list(sizes(like))
    del shape[channels_axis]
    return _broadcast_to(expand(x, rank), shape[:rank])


def repeat_row(x, like):
    """Repeats the one row of `x` for each row of `like`."""
    if not _is(x.shape[0], 1):
        return x
    return _broadcast_to(x, (sizes(like)[0], *sizes(x)[1:]))


def _reshape(x, shape):
    if keras.backend.is_keras_tensor(x):
        return keras.KerasTensor(shape, x.dtype, sparse=x.sparse)
    return ops.reshape(x, shape)


def _broadcast_to(x, shape):
    if keras.backend.is_keras_tensor(x):
        return keras.KerasTensor(shape, x.dtype)
    return ops.broadcast_to(x, shape)


def _is_known(size):
    return isinstance(size, int)


def _is(size, value):
    return _is_known(size) and _is_known(value) and size == value


def _product(batch, time):
    return None if batch is None or time is None else batch * time


def _other_than_one(a, b):
    # A size that is unknown until run time may turn out to be 1.
    return ops.where(ops.equal(a, 1), b, a) if ops.is_tensor(a) else a

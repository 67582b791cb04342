"""Fold the time axis of tensors into their batch axis, and unfold it again.

Every function takes backend tensors and symbolic `KerasTensor`s. A known size
is an integer; an unknown size is `None` on a symbolic tensor, and a scalar
tensor in a compiled function.
"""

import functools
import itertools

import keras
from keras import ops


def sizes(x):
    """The sizes of all axes of `x`."""
    static = tuple(x.shape)
    return static if all(map(_is_known, static)) else tuple(ops.shape(x))


def is_size(size, value):
    """Whether a size is known to be `value`."""
    return _is_known(size) and _is_known(value) and size == value


def differ(a, b):
    """Whether two sizes are known to differ."""
    return _is_known(a) and _is_known(b) and a != b


def agree(a, b):
    """Whether two sizes are the same, as far as is known."""
    return _is_known(a) == _is_known(b) and not differ(a, b)


def same_steps(x, y):
    """Whether two tensors are known to have the same batch and time."""
    return all(map(is_size, x.shape[:2], y.shape[:2]))


def has_size(size):
    """Whether a size is a number, or becomes one at run time.

    It is neither in a program exported for any size. In a PyTorch trace
    (`torch.jit.trace`), it is a tensor with a value.
    """
    return _is_known(size) or (ops.is_tensor(size) and not has_values(size))


def has_values(x):
    """Whether a tensor has concrete values: nothing is compiled or traced.

    In a PyTorch trace, the sizes of tensors are tensors.
    """
    if not all(map(_is_known, x.shape)):
        return False
    try:
        ops.convert_to_numpy(x[(slice(0),) * len(x.shape)])
    except Exception:
        return False
    return True


def common_sizes(tensors):
    """The batch and the time that tensors `(batch, time, ...)` share.

    Args:
        tensors: Dict of names and tensors. A batch or a time of 1 matches any
            other.

    Returns:
        Tuple of the sizes of both axes.

    Raises:
        ValueError: if there is no tensor, if one has fewer than two axes, or
            if two differ in batch or time.
    """
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    _check_ranks(shapes)
    batches, times = zip(*(sizes(x)[:2] for x in tensors.values()), strict=True)
    batches, times = _except_ones(batches), _except_ones(times)
    for what, found in ("batch size", batches), ("number of steps", times):
        if any(itertools.starmap(differ, itertools.combinations(found, 2))):
            received = ", ".join(f"`{n}` with {s}" for n, s in shapes.items())
            raise ValueError(
                f"`TimeDistributed` expects tensors of the same {what} (1 "
                f"matches any other). Received shapes: {received}."
            )
    batch = next(filter(_is_known, batches), batches[0])
    time = next(filter(_is_known, times), None)
    if time is None:
        time = functools.reduce(_unless_one, times)
    return batch, time


def _check_ranks(shapes):
    for name, shape in shapes.items():
        if len(shape) < 2:
            raise ValueError(
                "`TimeDistributed` expects every tensor to have shape "
                "`(batch, time, ...)`, which is at least two axes. Received: "
                f"`{name}` with shape {shape}."
                + ("" if shape else " Pass a scalar as a Python number.")
            )
    if not shapes:
        raise ValueError(
            "`TimeDistributed` expects at least one tensor of shape "
            "`(batch, time, ...)`. Received none."
        )


def align(x, batch, time):
    """Broadcasts a tensor of one time step, or of one sample, to all of them.

    A time that is unknown until run time may turn out to be 1. A batch may not,
    so that no tensor is copied for it.
    """
    own_batch, own_time, *inner = sizes(x)
    same_batch = not is_size(own_batch, 1) or is_size(batch, 1)
    if same_batch and (own_time is time or is_size(own_time, time)):
        return x
    # (1, 1, ...) -> (batch, time, ...)
    return broadcast_to(x, (own_batch if same_batch else batch, time, *inner))


def with_same_batch(tensors):
    """Broadcasts tensors with a batch of 1 to the batch of the others."""
    batch, *_ = _except_ones([sizes(x)[0] for x in tensors])
    return [align(x, batch, sizes(x)[1]) for x in tensors]


def fold(x):
    batch, time, *inner = sizes(x)
    # (batch, time, ...) -> (batch * time, ...)
    return _reshape(x, (_product(batch, time), *inner))


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


def expand(x, rank):
    """Gives `x` trailing axes of size 1."""
    return _reshape(x, (*sizes(x), *(1,) * (rank - len(x.shape))))


def zeros_except_at(steps, x):
    """Sets steps of `x` to zero where `steps`, of booleans, is False."""
    return ops.where(expand(steps, len(x.shape)), x, ops.zeros_like(x))


def repeat_along(rows, x):
    """Repeats a mask of rows along the second axis of `x`."""
    # (batch,) -> (batch, steps)
    return broadcast_to(expand(rows, 2), sizes(x)[:2])


def repeat_row(x, like):
    """Repeats the one row of `x` for each row of `like`."""
    if not is_size(x.shape[0], 1):
        return x
    return broadcast_to(x, (sizes(like)[0], *sizes(x)[1:]))


def broadcast_to(x, shape):
    if keras.backend.is_keras_tensor(x):
        return keras.KerasTensor(shape, x.dtype)
    return ops.broadcast_to(x, shape)


def _reshape(x, shape):
    if keras.backend.is_keras_tensor(x):
        return keras.KerasTensor(shape, x.dtype, sparse=x.sparse)
    return ops.reshape(x, shape)


def _except_ones(sizes):
    return [size for size in sizes if not is_size(size, 1)] or [1]


def _is_known(size):
    return isinstance(size, int)


def _product(batch, time):
    return None if batch is None or time is None else batch * time


def _unless_one(a, b):
    if not ops.is_tensor(a):
        return a
    # A size that is unknown until run time may turn out to be 1, or 0. If a
    # condition chose one of the two, OpenVINO would fix it to its value in the
    # PyTorch trace.
    return ops.maximum(a, b) * ops.minimum(ops.minimum(a, b), 1)

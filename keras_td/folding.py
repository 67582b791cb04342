"""Fold the time axis of tensors into their batch axis, and unfold it again.

Every function takes backend tensors and symbolic `KerasTensor`s alike. A size
is an integer where it is known; where it is not, it is `None` on a symbolic
tensor and a scalar tensor in a compiled function.
"""

import functools

import keras
from keras import ops
from keras import tree

_OPERATIONS = {}


def operation(fn):
    """Makes `fn` an operation: symbolic results know what they come from.

    Keras writes the masks of symbolic tensors into the graph of a functional
    model, so they need a way back to the inputs of the model.
    """

    @functools.wraps(fn)
    def call(*args):
        symbolic = any(map(keras.backend.is_keras_tensor, tree.flatten(args)))
        return _Operation(fn.__name__)(*args) if symbolic else fn(*args)

    _OPERATIONS[fn.__name__] = fn
    return call


@keras.saving.register_keras_serializable(package="keras_td")
class _Operation(keras.Operation):
    def __init__(self, function, name=None):
        super().__init__(name=name)
        self.function = function

    def call(self, *args):
        return _OPERATIONS[self.function](*args)

    def compute_output_spec(self, *args):
        return self.call(*args)


def is_tensor(x):
    return hasattr(x, "shape")


def map_tensors(fn, *nests):
    """Maps `fn` over the tensors of the first nest; other leaves stay."""
    return tree.map_structure(
        lambda x, *others: fn(x, *others) if is_tensor(x) else x, *nests
    )


def sizes(x):
    """The sizes of all axes of `x`."""
    static = tuple(x.shape)
    return static if all(map(_is_known, static)) else tuple(ops.shape(x))


def check(tensors):
    """Checks that tensors are `(batch, time, ...)` and agree on both.

    Args:
        tensors: Dict of names and tensors. A time of 1 agrees with any other.

    Raises:
        ValueError: if there is no tensor, if one has fewer than two axes, or
            if two differ in batch or time.
    """
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    if not shapes:
        raise ValueError(
            "`TimeDistributed` expects at least one tensor of shape "
            "`(batch, time, ...)` in its arguments. Received none."
        )
    for name, shape in shapes.items():
        if len(shape) < 2:
            raise ValueError(
                "`TimeDistributed` expects every tensor to have shape "
                "`(batch, time, ...)`, which is at least two axes. Received: "
                f"`{name}` with shape {shape}."
            )
    batches = {shape[0] for shape in shapes.values() if _is_known(shape[0])}
    times = {shape[1] for shape in shapes.values() if _is_known(shape[1])}
    for axis, found in ("batch", batches), ("time", times - {1}):
        if len(found) > 1:
            received = ", ".join(f"`{n}` with {s}" for n, s in shapes.items())
            raise ValueError(
                f"`TimeDistributed` expects tensors of the same {axis} (a time "
                f"of 1 serves every step). Received shapes: {received}."
            )


def align(x, tensors):
    """Repeats a tensor whose time is 1 at each time step of `tensors`."""
    times = [x.shape[1] for x in tensors]
    if len(times) == 1 or (all(map(_is_known, times)) and len({*times}) == 1):
        return x
    return _repeat(x, tensors)


@operation
def _repeat(x, tensors):
    batch, _, *inner = sizes(x)
    # (batch, 1, ...) -> (batch, time, ...)
    return _broadcast_to(x, (batch, _common_time(tensors), *inner))


@operation
def fold(x):
    batch, time, *inner = sizes(x)
    # (batch, time, ...) -> (batch * time, ...)
    return _reshape(x, (_product(batch, time), *inner))


@operation
def unfold(x, like):
    batch, time = sizes(like)[:2]
    steps, received = _product(batch, time), tuple(x.shape)
    if not received or _both_known_and_differ(received[0], steps):
        raise ValueError(
            "The layer wrapped by `TimeDistributed` gets each time step as a "
            "sample of its batch and must return tensors of shape "
            f"`(batch * time, ...)`. Expected: ({steps}, ...). Received: an "
            f"output of shape {received}."
        )
    # (batch * time, ...) -> (batch, time, ...)
    return _reshape(x, (batch, time, *sizes(x)[1:]))


@operation
def spread(x, like, rank):
    """Repeats `x` along the axes of `like` that it lacks, up to `rank`."""
    lacking = (1,) * (rank - len(x.shape))
    x = _reshape(x, (*sizes(x), *lacking))
    return _broadcast_to(x, sizes(like)[:rank])


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


def _both_known_and_differ(a, b):
    return _is_known(a) and _is_known(b) and a != b


def _product(batch, time):
    return None if batch is None or time is None else batch * time


def _common_time(tensors):
    times = [sizes(x)[1] for x in tensors]
    times = [t for t in times if not (_is_known(t) and t == 1)]
    known = [t for t in times if _is_known(t)]
    return known[0] if known else functools.reduce(_other_than_one, times)


def _other_than_one(a, b):
    # A time that is unknown until run time may turn out to be 1.
    return ops.where(ops.equal(a, 1), b, a) if ops.is_tensor(a) else a

"""Recomputes a call in the backward pass, with `keras.remat`."""

import contextlib
import functools

import keras
from keras import ops

from keras_td import internals
from keras_td import layer_kinds
from keras_td import randomness
from keras_td import scopes
from keras_td import trees


def values_for(layer, values):
    """The values of a layer's variables, as a recomputed call takes them."""
    if _may_use_remat(layer):
        return values
    # TensorFlow variables that are not converted to tensors get gradients
    # twice.
    return list(map(_as_tensor, values))


def _may_use_remat(layer):
    """Whether a layer inside may use `keras.remat` by itself."""
    return layer_kinds.has_code_of_users(layer) or any(
        map(internals.is_recomputed, internals.layers_of(layer))
    )


def recompute(call):
    """`keras.remat` for a `StatelessCall`, or another function of any nests.

    What Keras recomputes takes and returns only floats: for anything else,
    TensorFlow asks for gradients that do not exist.
    """

    def call_recomputed(*nests):
        recomputed = _Recomputed(call, list(nests))
        found = keras.remat(recomputed.on_floats)(*recomputed.floats)
        return recomputed.results(found)

    return call_recomputed


class _Recomputed:
    """A call on nests, as a function of the floats in them.

    Keras may trace it anywhere, so the structure of the results is kept here.
    """

    def __init__(self, call, nests):
        self.call = call
        self.nests = nests
        flat = trees.flatten(nests)
        if scopes.in_loop.get():
            # In a loop, TensorFlow finds no gradients of variables. Elsewhere
            # it does, and finds no others for an inner layer that is recomputed
            # on its own.
            flat = list(map(_as_tensor, flat))
        self.are_floats = [
            _has_gradients(x) and not _is_variable(x) for x in flat
        ]
        self.floats, self.others = trees.split(flat, self.are_floats)
        self.draws = randomness.Draws()
        self.structure = None

    def on_floats(self, *floats):
        flat = trees.merge(floats, self.others, self.are_floats)
        token, fixed, values, *nests = trees.pack(self.nests, flat)
        again = self.structure is not None
        with self.draws.replayed(), _unfiltered_tracebacks(again):
            results = self.call(
                token, fixed, _order_gradients(token, values), *nests
            )
        if again:
            results = _as_before(results, self.structure)
        # Tensors here would be kept alive by the function that makes them.
        self.structure = trees.symbols(results)
        return list(map(_to_floats, trees.tensors(results)))

    def results(self, floats):
        pairs = zip(floats, trees.tensors(self.structure), strict=True)
        return trees.pack_tensors(
            self.structure, [_from_floats(x, like) for x, like in pairs]
        )


def _as_before(results, structure):
    """Puts the results of a call in the structure of those of an earlier one.

    A layer that counts its calls may update other variables and add other
    losses. Those have no gradients, as they go nowhere.
    """
    found = dict(trees.flatten_with_path(results))
    leaves = []
    for path, like in trees.flatten_with_path(structure):
        x = found.get(path)
        if trees.is_tensor(like) and x is None:
            x = ops.zeros(like.shape, like.dtype)
        leaves.append(x if trees.is_tensor(like) else like)
    return trees.pack(structure, leaves)


def _order_gradients(token, values):
    """Makes the gradient of a token wait for those of the variables.

    TensorFlow recomputes a call once the gradient of its first result is
    available. So the backward pass goes call by call too.
    """
    if token is None:
        return values
    return [
        ops.convert_to_tensor(v + ops.cast(token, v.dtype))
        if _has_gradients(v) and not _is_variable(v)
        else v
        for v in values
    ]


@contextlib.contextmanager
def _unfiltered_tracebacks(again):
    """Lets an error pass unchanged where a call is recomputed.

    PyTorch ends a recomputation with an exception. Keras would turn it into
    another one, which keeps all tensors of the call until garbage collection.
    """
    filtered = again and keras.config.is_traceback_filtering_enabled()
    if filtered:
        keras.config.disable_traceback_filtering()
    try:
        yield
    finally:
        if filtered:
            keras.config.enable_traceback_filtering()


def _to_floats(x):
    """Converts a tensor to floats, with 16 bits of an integer in each."""
    if not trees.has_dtype(x, "int", "bool"):
        return x
    digits, x = [], x if _bytes(x.dtype) > 2 else ops.cast(x, "int32")
    for _ in range(max(_bytes(x.dtype) // 2, 1) - 1):
        digits.append(x % 2**16)
        x = x // 2**16
    return ops.stack([ops.cast(d, "float32") for d in (*digits, x)])


def _from_floats(x, like):
    if not trees.has_dtype(like, "int", "bool"):
        return x
    dtype = trees.dtype(like)
    whole = dtype if _bytes(dtype) > 2 else "int32"
    digits = [ops.cast(d, whole) for d in ops.unstack(x)]
    number = functools.reduce(lambda a, b: a * 2**16 + b, digits[::-1])
    return ops.cast(number, dtype)


def _bytes(dtype):
    dtype = keras.backend.standardize_dtype(dtype)
    return 1 if dtype == "bool" else int(dtype.lstrip("uint")) // 8


def _is_variable(x):
    """Whether `x` is a TensorFlow variable, and not a slice of one."""
    return hasattr(x, "assign_add")


def _as_tensor(x):
    return ops.reshape(x, x.shape) if _is_variable(x) else x


def _has_gradients(x):
    return trees.has_dtype(x, "float", "complex")

"""Which masks the wrapped layer sees, and which masks leave.

Keras lets a mask ride on its tensor, as the attribute `_keras_mask`. Masks are
kept here in nests like those of their tensors, `None` where there is no mask.
"""

import contextlib
import functools
import warnings

import keras
from keras import ops
from keras import tree

from keras_td import folding


def get_masks(tensors):
    """The masks that ride on a nest of tensors."""
    return tree.map_structure(
        lambda x: _get_mask(x) if folding.is_tensor(x) else None, tensors
    )


def set_masks(tensors, masks):
    """Lets the masks ride on their tensors."""
    for x, mask in zip(tree.flatten(tensors), tree.flatten(masks), strict=True):
        if mask is not None:
            _set_mask(x, mask)


def any_mask(masks):
    return any(mask is not None for mask in tree.flatten(masks))


def incoming(arguments, mask):
    """The masks of `(inputs, args, kwargs)`.

    Args:
        arguments: Tuple `(inputs, args, kwargs)` of nests of tensors
            `(batch, time, ...)`.
        mask: `None`, or the mask to use for `inputs` in place of those that
            ride on them.

    Raises:
        ValueError: if `mask` has not the structure of `inputs`, or if a mask
            does not begin with the batch and time of its tensor.
    """
    masks = get_masks(arguments)
    if mask is not None:
        masks = (_in_structure_of(arguments[0], mask), *masks[1:])
    for x, m in zip(tree.flatten(arguments), tree.flatten(masks), strict=True):
        if m is not None:
            _check(m, x)
    return masks


def fit(masks, tensors, layer):
    """Gives folded masks the rank that `layer` needs.

    A recurrent layer masks whole steps of its own. Any other layer may mask
    single positions, so it gets one value for every position but the last axis,
    as `BatchNormalization` demands.
    """
    recurrent = isinstance(
        layer, (keras.layers.RNN, keras.layers.Bidirectional)
    )

    def fit_one(mask, x):
        rank = 2 if recurrent else len(x.shape) - 1
        if len(mask.shape) < rank:
            return folding.spread(mask, x, rank)
        return _reduce(mask, rank) if recurrent else mask

    return folding.map_tensors(fit_one, masks, tensors)


def restore(masks, given, originals):
    """Undoes `fit` for the masks that passed through a layer untouched."""
    pairs = list(zip(tree.flatten(given), tree.flatten(originals), strict=True))

    def restore_one(mask):
        return next((o for g, o in pairs if g is mask), mask)

    return folding.map_tensors(restore_one, masks)


def step_mask(masks):
    """Which steps hold anything valid, `(batch, time)`.

    Where several inputs have masks, a step is valid if it is in any of them.
    """
    masks = [
        _reduce(mask, 2) for mask in tree.flatten(masks) if mask is not None
    ]
    return functools.reduce(ops.logical_or, masks) if masks else None


@contextlib.contextmanager
def passed_on(masks, layer):
    """Silences the warning of a layer that it destroys the mask it is given.

    The wrapper passes the mask on, so what Keras warns of does not happen.
    """
    if layer.supports_masking or not any_mask(masks):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* was passed an input with a mask")
        yield


def _get_mask(x):
    if hasattr(x, "_keras_mask"):
        return x._keras_mask
    return None if hasattr(x, "__dict__") else _read_mask(x)


def _set_mask(x, mask):
    try:
        x._keras_mask = mask
    except AttributeError:
        _write_mask(x, mask=mask)


class _MaskReader(keras.Layer):
    """Returns the mask of its input.

    Arrays that take no attributes (JAX's tracers, NumPy's arrays) have their
    masks in a table of Keras's own, which only the call of a layer reaches.
    """

    def __init__(self):
        super().__init__(autocast=False)
        self.supports_masking = True

    def call(self, inputs, mask=None):
        return mask

    def compute_mask(self, inputs, previous_mask):
        return None


class _MaskWriter(keras.Layer):
    """Lets a mask ride on its input. See `_MaskReader`."""

    def __init__(self):
        super().__init__(autocast=False)
        self.supports_masking = True

    def call(self, inputs, mask=None):
        return inputs


_read_mask = _MaskReader()
_write_mask = _MaskWriter()


def _in_structure_of(inputs, mask):
    tuples = tree.lists_to_tuples(inputs), tree.lists_to_tuples(mask)
    try:
        tree.assert_same_structure(*tuples)
    except (TypeError, ValueError):
        raise ValueError(
            "The `mask` passed to the `TimeDistributed` layer must have the "
            "structure of `inputs`: one mask, or `None`, for each input. "
            f"Expected: {_describe(inputs)}. Received: {_describe(mask)}."
        ) from None
    matched = tree.map_structure(lambda x, m: m, *tuples)
    return tree.pack_sequence_as(inputs, tree.flatten(matched))


def _check(mask, x):
    found, expected = tuple(mask.shape), tuple(x.shape)
    differs = any(
        isinstance(m, int) and isinstance(d, int) and m != d
        for m, d in zip(found[:2], expected[:2], strict=False)
    )
    if len(found) < 2 or differs:
        raise ValueError(
            "The `mask` passed to the `TimeDistributed` layer has a shape "
            f"{found} that is incompatible with the input shape {expected}. "
            "A mask must begin with the batch and time of its input: "
            f"({expected[0]}, {expected[1]}, ...)."
        )


def _in_structure_of(inputs, mask):
    tuples = tree.lists_to_tuples(inputs), tree.lists_to_tuples(mask)
    try:
        tree.assert_same_structure(*tuples)
    except (TypeError, ValueError):
        raise ValueError(
            "The `mask` passed to the `TimeDistributed` layer must have the "
            "structure of `inputs`: one mask, or `None`, for each input. "
            f"Expected: {_describe(inputs)}. Received: {_describe(mask)}."
        ) from None
    matched = tree.map_structure(lambda x, m: m, *tuples)
    return tree.pack_sequence_as(inputs, tree.flatten(matched))


def _check(mask, x):
    found, expected = tuple(mask.shape), tuple(x.shape)
    differs = any(
        isinstance(m, int) and isinstance(d, int) and m != d
        for m, d in zip(found[:2], expected[:2], strict=False)
    )
    if len(found) < 2 or differs:
        raise ValueError(
            "The `mask` passed to the `TimeDistributed` layer has a shape "
            f"{found} that is incompatible with the input shape {expected}. "
            "A mask must begin with the batch and time of its input: "
            f"({expected[0]}, {expected[1]}, ...)."
        )


def _spread(mask, shape):
    # (batch * time,) -> (batch * time, ...)
    inner = (1,) * (len(shape) - len(mask.shape))
    mask = folding.reshape(mask, (*folding.sizes(mask), *inner))
    return folding.broadcast_to(mask, shape)


def _reduce(mask, rank):
    inner = tuple(range(rank, len(mask.shape)))
    return ops.any(mask, axis=inner) if inner else mask


def _describe(nest):
    return folding.map_tensors(lambda x: f"shape {tuple(x.shape)}", nest)

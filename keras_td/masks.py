"""The masks attached to tensors, as Keras attaches them.

Masks are in nests like those of their tensors, with `None` where there is no
mask.
"""

import collections
import contextlib
import re
import threading
import warnings
from typing import Any

import keras
from keras import tree

from keras_td import folding
from keras_td import internals
from keras_td import trees


def get_masks(tensors):
    """The masks attached to a nest of tensors."""
    if trees.is_tensor(tensors):
        return _get_mask(tensors)
    return tree.map_structure(
        lambda x: _get_mask(x) if trees.is_tensor(x) else None, tensors
    )


def set_masks(tensors, masks):
    """Attaches masks to their tensors."""

    def set_one(x, mask):
        if mask is not None and trees.is_tensor(x):
            _set_mask(x, mask)

    tree.map_structure(set_one, tensors, masks)


def any_mask(masks):
    return any(mask is not None for mask in trees.flatten(masks))


def any_of(masks):
    """Whether there is any mask in a dict of nests of masks."""
    return any(map(any_mask, masks.values()))


def given(tensors, mask):
    """The masks of a nest of tensors, as a user passes them.

    Raises:
        ValueError: if `mask` does not have the structure of `tensors`.
    """
    if trees.is_tensor(tensors) and trees.is_tensor(mask):
        return mask
    paths = [path for path, _ in trees.flatten_with_path(tensors)]
    masks = dict(trees.flatten_with_path(mask))
    if set(paths) != set(masks):
        raise ValueError(
            "The `mask` passed to the `TimeDistributed` layer must have the "
            "structure of `inputs`: one mask, or `None`, for each input. "
            f"Expected: {_describe(tensors)}. Received: {_describe(mask)}."
        )
    return trees.pack(tensors, [masks[path] for path in paths])


def check(masks, tensors):
    """Checks that masks begin with the batch and time of their tensors.

    Raises:
        ValueError: if one does not.
    """
    trees.map_tensors(_check, masks, tensors)


def without_warning(masks, layer):
    """Silences a layer's warning of a mask that it only seems to destroy."""
    if layer.supports_masking or not any_of(masks):
        return contextlib.nullcontext()
    return _silence.of_layer(layer)


class _Silence:
    """Silences the warning of a layer that it destroys the mask it is given.

    The wrapper passes the mask on, so what Keras warns of does not happen.
    `warnings.catch_warnings` is shared by all threads, and would undo what
    another thread has changed. Here the last thread to leave removes one
    filter.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.threads: collections.Counter = collections.Counter()
        self.changed = collections.defaultdict(list)

    @contextlib.contextmanager
    def of_layer(self, layer):
        name = re.escape(f"Layer '{layer.name}' ")
        message = re.compile(f"{name}.* input with a mask")
        added = ("ignore", message, UserWarning, None, 0)
        with self.lock:
            # `warnings.filterwarnings` would make Python repeat warnings that
            # it shows only once.
            filters: Any = warnings.filters
            if added in filters:
                filters.remove(added)
            filters.insert(0, added)
            self.changed[name].append(filters)
            self.threads[name] += 1
        try:
            yield
        finally:
            with self.lock:
                self.threads[name] -= 1
                if not self.threads[name]:
                    for filters in (*self.changed.pop(name), warnings.filters):
                        if added in filters:
                            filters.remove(added)


_silence = _Silence()


def _get_mask(x):
    mask = internals.mask_of(x)
    return mask if mask is not None or hasattr(x, "__dict__") else _read_mask(x)


def _set_mask(x, mask):
    try:
        internals.set_mask(x, mask)
    except AttributeError:
        _write_mask([x, mask])


class _MaskWriter(keras.Layer):
    """Attaches the second of its inputs, a mask, to the first.

    Keras keeps the masks of arrays that take no attributes (JAX tracers, NumPy
    arrays) in a table that only the call of a layer can access.
    """

    def __init__(self):
        super().__init__(autocast=False)
        self.supports_masking = True

    def call(self, inputs):
        return inputs[0]

    def compute_mask(self, inputs, previous_mask):
        return inputs[1]


class _MaskReader(_MaskWriter):
    """Returns the mask of its input."""

    def call(self, inputs, mask=None):
        return mask

    def compute_mask(self, inputs, previous_mask):
        return None


_read_mask = _MaskReader()
_write_mask = _MaskWriter()


def _check(mask, x):
    found, expected = tuple(mask.shape), tuple(x.shape)
    pairs = zip(found, expected[:2], strict=False)
    if len(found) < 2 or any(
        folding.differ(a, b) and not folding.is_size(a, 1) for a, b in pairs
    ):
        raise ValueError(
            "The `mask` passed to the `TimeDistributed` layer has a shape "
            f"{found} that is incompatible with the input shape {expected}. "
            "A mask must begin with the batch and time of its input: "
            f"({expected[0]}, {expected[1]}, ...)."
        )


def _describe(nest):
    return trees.map_tensors(lambda x: f"shape {tuple(x.shape)}", nest)

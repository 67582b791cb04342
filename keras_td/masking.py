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

# They line a mask up with the last axes; a ConvLSTM not on each backend.
_BROADCASTING = (
    keras.layers.Softmax,
    keras.layers.ConvLSTM1D,
    keras.layers.ConvLSTM2D,
    keras.layers.ConvLSTM3D,
)
# They hold a `Softmax` once they are built.
_ATTENTION = (
    keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention,
)
# They give masks only to what comes with one.
_PASSING_ON = (
    keras.Layer.compute_mask,
    keras.layers.RNN.compute_mask,
    keras.layers.Bidirectional.compute_mask,
)


def get_masks(tensors):
    """The masks that ride on a nest of tensors."""
    if folding.is_tensor(tensors):
        return _get_mask(tensors)
    return tree.map_structure(
        lambda x: _get_mask(x) if folding.is_tensor(x) else None, tensors
    )


def set_masks(tensors, masks):
    """Lets the masks ride on their tensors."""
    pairs = zip(folding.flatten(tensors), folding.flatten(masks), strict=True)
    for x, mask in pairs:
        if mask is not None and folding.is_tensor(x):
            _set_mask(x, mask)


def any_mask(masks):
    return any(mask is not None for mask in folding.flatten(masks))


def makes_masks(layer):
    """Whether a layer may give a mask to what comes without one."""
    return type(layer).compute_mask not in _PASSING_ON


def incoming(tensors, mask=None):
    """The masks of a nest of tensors `(batch, time, ...)`.

    Args:
        tensors: Nest of tensors.
        mask: `None`, or what to use in place of the masks that ride on the
            tensors.

    Raises:
        ValueError: if `mask` does not have the structure of `tensors`, or if a
            mask does not begin with the batch and time of its tensor.
    """
    if mask is None:
        masks = get_masks(tensors)
    else:
        masks = _in_structure_of(tensors, mask)
    folding.map_tensors(_check, masks, tensors)
    return masks


def fit(masks, tensors, layer):
    """Gives folded masks the rank that `layer` needs.

    A recurrent layer masks whole steps of its own. Any other layer may mask
    single positions, so it gets one value for every position but the last axis,
    as `BatchNormalization` demands. A layer that holds one that would misread
    the mask gets it as it is, and none of whole samples, which changes nothing
    at a valid one.
    """
    if not any_mask(masks):
        return masks
    layer = getattr(layer, "forward_layer", layer)  # of a `Bidirectional`
    recurrent = isinstance(layer, keras.layers.RNN)
    inner = layer._flatten_layers(include_self=False)
    misread = isinstance(layer, _ATTENTION) or any(
        isinstance(x, (*_BROADCASTING, *_ATTENTION)) for x in inner
    )

    def fit_one(mask, x):
        if misread:
            return mask if len(mask.shape) > 1 else None
        rank = 2 if recurrent else len(x.shape) - 1
        if len(mask.shape) < rank:
            mask = folding.spread(mask, x, rank, _channels_axis(layer))
        if recurrent:
            mask = _reduce(mask, 2)
        if isinstance(layer, _BROADCASTING):
            mask = folding.expand(mask, len(x.shape))
        return mask

    return folding.map_tensors(fit_one, masks, tensors)


def _channels_axis(layer):
    data_format = getattr(layer, "data_format", None)
    return 1 if data_format == "channels_first" else -1


def outgoing(outputs, fitted, originals):
    """The masks on the folded outputs of a layer.

    Those that the layer passed on untouched leave as they came, without the
    rank that `fit` gave them. A mask of one row, as of causal attention scores,
    serves all samples.
    """
    masks = restore(get_masks(outputs), fitted, originals)
    return folding.map_tensors(folding.repeat_row, masks, outputs)


def restore(masks, fitted, originals):
    """Undoes `fit` for the masks that a layer passed on untouched."""
    if not any_mask(masks):
        return masks
    pairs = zip(tree.flatten(fitted), tree.flatten(originals), strict=True)
    original = {id(after): before for after, before in pairs}
    return folding.map_tensors(
        lambda m: original.get(id(_unconverted(m)), m), masks
    )


def _unconverted(mask):
    # Unlike others, a symbolic tensor becomes a new one in the hands of
    # `ops.convert_to_tensor`, which Keras's attention layers call.
    history = getattr(mask, "_keras_history", None)
    operation = getattr(history, "operation", None)
    if operation and operation.name.startswith("convert_to_tensor"):
        return operation.input
    return mask


def step_mask(masks):
    """Which steps hold anything valid, `(batch, time)`.

    Where several inputs have masks, a step is valid if it is in any of them.
    """
    found = [_reduce(m, 2) for m in folding.flatten(masks) if m is not None]
    return functools.reduce(ops.logical_or, found) if found else None


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


def connect(tensors):
    """Connects the masks of symbolic tensors to the graph of their tensors.

    Keras writes a symbolic mask into the graph of a functional model, as an
    argument of the layer that takes it, and so needs to know its origin.
    """
    for x in folding.flatten(tensors):
        mask = _get_mask(x)
        if mask is not None:
            _set_mask(x, MaskOf(tuple(mask.shape))(x))


@keras.saving.register_keras_serializable(package="keras_td")
class MaskOf(keras.Operation):
    """The mask that rides on a tensor, as a step of a functional model."""

    def __init__(self, shape, name=None):
        super().__init__(name=name)
        self.shape = shape

    def call(self, x):
        return _get_mask(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(self.shape, dtype="bool")


def _get_mask(x):
    if hasattr(x, "_keras_mask"):
        return x._keras_mask
    return None if hasattr(x, "__dict__") else _read_mask(x)


def _set_mask(x, mask):
    try:
        x._keras_mask = mask
    except AttributeError:
        _write_mask([x, mask])


class _MaskWriter(keras.Layer):
    """Lets the second of its inputs, a mask, ride on the first.

    Arrays that take no attributes (JAX's tracers, NumPy's arrays) have their
    masks in a table of Keras's own, which only the call of a layer reaches.
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


def _reduce(mask, rank):
    # Of several axes at a time, older Keras loses count on PyTorch.
    for _ in mask.shape[rank:]:
        mask = ops.any(mask, axis=-1)
    return mask


def _in_structure_of(tensors, mask):
    if folding.is_tensor(tensors) and folding.is_tensor(mask):
        return mask
    tuples = tree.lists_to_tuples(tensors), tree.lists_to_tuples(mask)
    try:
        # Unlike the whole structure, paths are alike where a mask is `None`.
        tree.assert_same_paths(*tuples)
    except ValueError:
        raise ValueError(
            "The `mask` passed to the `TimeDistributed` layer must have the "
            "structure of `inputs`: one mask, or `None`, for each input. "
            f"Expected: {_describe(tensors)}. Received: {_describe(mask)}."
        ) from None
    masks = tree.map_structure(lambda x, m: m, *tuples)
    return tree.pack_sequence_as(tensors, tree.flatten(masks))


def _check(mask, x):
    found, expected = tuple(mask.shape), tuple(x.shape)
    if len(found) < 2 or any(map(folding.differ, found, expected[:2])):
        raise ValueError(
            "The `mask` passed to the `TimeDistributed` layer has a shape "
            f"{found} that is incompatible with the input shape {expected}. "
            "A mask must begin with the batch and time of its input: "
            f"({expected[0]}, {expected[1]}, ...)."
        )


def _describe(nest):
    return folding.map_tensors(lambda x: f"shape {tuple(x.shape)}", nest)

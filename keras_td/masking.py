"""Which masks the wrapped layer sees, and which its outputs carry."""

import functools

import keras
from keras import ops
from keras import tree

from keras_td import folding
from keras_td import internals
from keras_td import layer_kinds
from keras_td import masks as masks_of
from keras_td import trees


def for_layer(masks, tensors, layer, valid):
    """The folded masks that the wrapped layer sees.

    A mask of whole steps says nothing about the inside of a step. So a layer
    only gets it if it cannot be called without a mask, or if it is a custom
    layer and a step is a vector. A padded step is shown as valid throughout: no
    layer can average over nothing, and cuDNN rejects empty sequences.

    Args:
        masks: Nest of masks `(batch * time, ...)`.
        tensors: Nest of their tensors.
        layer: The wrapped layer.
        valid: Which rows are not padding, or `None`.
    """
    if not masks_of.any_mask(masks):
        return masks
    see = functools.partial(_for_layer, layer, valid)
    return trees.map_tensors(see, masks, tensors)


def _for_layer(layer, valid, mask, x):
    if len(mask.shape) == 1 and layer_kinds.keeps_state(layer):
        # A padded step keeps the state of the step before.
        mask = folding.repeat_along(mask, x) if len(x.shape) > 2 else mask
    if len(mask.shape) == 1:
        of_vectors = len(x.shape) <= 2 and layer_kinds.is_custom_reader(layer)
        needed = "mask" in layer_kinds.required_options(layer)
        return mask if of_vectors or needed else None
    if layer_kinds.is_recurrent(layer):
        mask = _reduce(mask, 2)
    if valid is not None:
        padding = folding.expand(ops.logical_not(valid), len(mask.shape))
        if trees.has_dtype(mask, "bool"):
            mask = ops.logical_or(mask, padding)
        else:
            mask = ops.where(padding, ops.ones_like(mask), mask)
    if layer_kinds.broadcasts_masks(layer):
        mask = folding.expand(mask, len(x.shape))
    return mask


def are_of_padding(masks, layer):
    """Whether all masks of a nest mark padding.

    A custom layer may use a mask that is neither boolean nor of whole steps as
    weights, or add it to its scores.
    """
    return not layer_kinds.has_custom_reader(layer) or all(
        mask is None or len(mask.shape) == 2 or trees.has_dtype(mask, "bool")
        for mask in trees.flatten(masks)
    )


def has_inner_axes(masks):
    """Whether any folded mask says something about the inside of a step."""
    found = (m for nest in masks.values() for m in trees.flatten(nest))
    return any(m is not None and len(m.shape) > 1 for m in found)


class Original:
    """A mask `(batch, time, ...)` that a layer passed on unchanged."""

    def __init__(self, mask):
        self.mask = mask


def output_masks(outputs, seen, originals):
    """The masks on the folded outputs of a layer.

    Returns:
        Nest of masks `(batch * time, ...)`. Masks that the layer passed on
        unchanged are replaced by the `Original` ones.
    """
    masks = restore_originals(masks_of.get_masks(outputs), seen, originals)

    def of_rows(mask, y):
        rows = mask.shape[0], y.shape[0]
        if folding.differ(*rows) and not folding.is_size(rows[0], 1):
            return None
        # A mask of one row, as of causal attention scores, is for all samples.
        return folding.repeat_row(mask, y)

    return trees.map_tensors(of_rows, masks, outputs)


def restore_originals(masks, seen, originals):
    """Replaces masks that were passed on unchanged with the original ones."""
    if not masks_of.any_mask(masks):
        return masks
    pairs = _pairs(seen, originals)
    original = {id(after): Original(before) for after, before in pairs}
    return trees.map_tensors(
        lambda m: original.get(id(_unconverted(m)), m), masks
    )


def restore_uncut(masks, cut, originals):
    """Replaces cut masks with the masks that they were cut from."""
    original = {id(after): before for after, before in _pairs(cut, originals)}

    def restore_one(mask):
        if not isinstance(mask, Original):
            return mask
        return Original(original.get(id(mask.mask), mask.mask))

    return tree.map_structure(restore_one, masks)


def as_tensors(masks):
    return tree.map_structure(
        lambda m: m.mask if isinstance(m, Original) else m, masks
    )


def _pairs(a, b):
    for name in a:
        yield from zip(
            trees.flatten(a[name]), trees.flatten(b[name]), strict=True
        )


def _unconverted(mask):
    # Keras's attention layers call `ops.convert_to_tensor`, which returns a new
    # tensor for a symbolic one, unlike for others.
    operation = internals.operation_of(mask)
    if operation and operation.name.startswith("convert_to_tensor"):
        return operation.input
    return mask


def reduce_to_fit(mask, shape):
    """Makes a mask fit an output: one of its leading axes, not of the last.

    Some public attention and pooling layers pass a mask of words on to a vector
    for each sentence. It is reduced to a mask of sentences.
    """
    rank, inner = len(mask.shape), zip(mask.shape[2:], shape[2:], strict=False)
    if rank == 2 or (
        rank < len(shape) and all(folding.agree(*s) for s in inner)
    ):
        return mask
    return step_mask(mask)


def step_mask(masks):
    """Which steps hold anything valid, `(batch, time)`.

    If several inputs have masks, a step is valid if it is in any of them. Keras
    writes the masks of symbolic tensors into the graph of a model, and orders
    layers and weights by depth. This mask depends only on the incoming ones, so
    it makes no layer deeper.
    """
    found = [m for m in trees.flatten(masks) if m is not None]
    if not found:
        return None
    if len(found) == 1 and len(found[0].shape) == 2:
        return found[0]
    if any(map(keras.backend.is_keras_tensor, found)):
        return StepMask()(*found)
    return _step_mask(*found)


def _step_mask(*masks):
    return functools.reduce(ops.logical_or, [_reduce(m, 2) for m in masks])


@keras.saving.register_keras_serializable(package="keras_td")
class StepMask(keras.Operation):
    """Which steps hold anything valid, as an operation of a model's graph."""

    def call(self, *masks):
        return _step_mask(*masks)

    def compute_output_spec(self, *masks):
        sizes = folding.common_sizes(dict(enumerate(masks)))
        return keras.KerasTensor(sizes, dtype="bool")


def _reduce(mask, rank):
    # On PyTorch, older Keras miscounts several axes that are reduced at once.
    for _ in mask.shape[rank:]:
        mask = ops.any(mask, axis=-1)
    return mask

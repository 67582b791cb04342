"""One call of the wrapped layer, on time steps folded into its batch."""

import functools

from keras import ops

from keras_td import errors
from keras_td import folding
from keras_td import layer_kinds
from keras_td import masking
from keras_td import masks as masks_of
from keras_td import padding
from keras_td import trees


def call_folded(layer, options, arguments):
    """Calls a layer once on `Arguments`, with time folded into the batch.

    Returns:
        Tuple of the outputs and the masks that the layer gives them.
    """
    arguments = arguments.align()
    valid = _valid_steps(layer, arguments)
    folded = arguments.fold()
    hides = valid is not None and _hides_padding(layer, folded)
    seen = masks_for_layer(
        layer, folded, folding.fold(valid) if hides else None
    )
    options = {
        **layer_kinds.required_options(layer),
        **options,
        **_pass_masks(layer, folded, seen),
    }
    args, kwargs = folded.args_and_kwargs()
    samples = _valid_samples(valid, arguments.valid)
    with (
        padding.left_out_of_statistics(layer, samples),
        masks_of.without_warning(seen, layer),
        errors.told_of_fixed_batch(layer, folded.first),
    ):
        outputs = layer(*args, **kwargs, **options)
    output_masks = masking.output_masks(outputs, seen, arguments.masks)
    results = unfold((outputs, output_masks), arguments.first)
    if hides:
        zeros_except_at = functools.partial(folding.zeros_except_at, valid)
        results = tuple(trees.map_tensors(zeros_except_at, n) for n in results)
    return results


def call_plainly(layer, inputs, training):
    """Calls a layer once on a tensor without a mask.

    Returns:
        Tuple of the outputs and the masks that the layer gives them.
    """
    options = {} if training is None else {"training": training}
    outputs = layer(folding.fold(inputs), **options)
    return unfold((outputs, masking.output_masks(outputs, {}, {})), inputs)


def unfold(nests, like):
    """Unfolds what a layer returns for folded tensors."""
    of_time = functools.partial(folding.unfold, like=like)
    return tuple(trees.map_tensors(of_time, nest) for nest in nests)


def masks_for_layer(layer, folded, valid=None):
    """The masks that a layer sees.

    Args:
        layer: The layer.
        folded: The folded `Arguments`.
        valid: Which rows are not padding, or `None`.
    """
    inputs = folded.tensors["inputs"]
    return {
        name: masking.for_layer(
            nest, folded.tensors.get(name, inputs), layer, valid
        )
        for name, nest in folded.masks.items()
    }


def _valid_steps(layer, arguments):
    """The steps that are not padding, `(batch, time)`, if it matters."""
    if arguments.without_padding or arguments.is_symbolic:
        return None
    if not masks_of.any_of(arguments.masks):
        return None
    if not (layer_kinds.reads_masks(layer) or padding.mixes_samples(layer)):
        return None
    nests = arguments.tensors.values(), arguments.all_masks().values()
    tensors, masks = ([x for n in of for x in trees.flatten(n)] for of in nests)
    # A tensor without a mask is valid throughout.
    pairs = zip(tensors, masks, strict=True)
    if any(trees.is_tensor(x) and mask is None for x, mask in pairs):
        return None
    if not masking.are_of_padding(masks, layer):
        return None
    return arguments.align_mask(masking.step_mask(masks))


def _hides_padding(layer, folded):
    """Whether padding is hidden from a layer that would read its masks."""
    return (
        masking.has_inner_axes(folded.masks)
        and layer_kinds.reads_masks(layer)
        and not layer_kinds.keeps_state(layer)
    )


def _valid_samples(valid, outer):
    """Which samples are not padding, in this call and in an outer one."""
    if valid is None or outer is None:
        valid = outer if valid is None else valid
    else:
        valid = ops.logical_and(valid, outer)
    return None if valid is None else folding.fold(valid)


def _pass_masks(layer, folded, seen):
    """Attaches masks to arguments; returns those to pass by name."""
    if not masks_of.any_of(seen):
        return {}
    for name, nest in folded.tensors.items():
        masks_of.set_masks(nest, seen[name])
    mask = seen.get("mask", seen["inputs"])
    if not masks_of.any_mask(mask):
        return {}
    if layer_kinds.has_mask_argument(layer):
        return {"mask": mask}
    masks_of.set_masks(folded.tensors["inputs"], mask)
    return {}


def propagate_masks(layer, arguments, outputs, output_masks):
    """Attaches the `propagated_masks` to the outputs."""
    if masks_of.any_of(arguments.masks) or masks_of.any_mask(output_masks):
        leaving = propagated_masks(layer, arguments, outputs, output_masks)
        masks_of.set_masks(outputs, leaving)


def propagated_masks(layer, arguments, outputs, output_masks):
    """The masks of the outputs: the layer's where they fit, or step masks.

    Keras writes the masks of symbolic tensors into the graph of a model, and
    orders layers and weights by their depth in it. So symbolic outputs only get
    masks derived from incoming ones: those that the layer makes would make
    other layers deeper. They are attached to the outputs of each run instead,
    like masks made inside a model.
    """
    symbolic, flat = arguments.is_symbolic, trees.flatten(outputs)
    if symbolic and layer_kinds.makes_masks_inside(layer):
        return trees.pack(outputs, [None] * len(flat))
    masks = list(arguments.masks.values())
    incoming = [mask for nest in masks for mask in trees.flatten(nest)]
    found = trees.flatten(output_masks) + [None] * len(flat)
    found = found[: len(flat)]
    of_steps = None
    if any(m is None for m in found) and masking.are_of_padding(
        incoming, layer
    ):
        of_steps = arguments.step_mask()

    def leave(y, mask):
        if mask is None:
            return of_steps
        made = not isinstance(mask, masking.Original)
        if not made:
            mask = mask.mask
            made = not any(mask is m for m in incoming)
        if (symbolic and made) or not masking.are_of_padding(mask, layer):
            return None
        return mask if y is None else masking.reduce_to_fit(mask, y.shape)

    return trees.pack(outputs, list(map(leave, flat, found)))

"""Infers output shapes and masks without a call on tensors."""

import functools

from keras_td import calling
from keras_td import layer_kinds
from keras_td import masking
from keras_td import masks as masks_of
from keras_td import trees
from keras_td.arguments import gather
from keras_td.arguments import symbols_of_shapes


def output_shapes(layer, dtype, input_shape, args, kwargs):
    """The shapes of the outputs for given shapes of the arguments."""
    symbols = functools.partial(symbols_of_shapes, dtype=dtype)
    arguments = gather(
        symbols(input_shape),
        tuple(map(symbols, args)),
        {name: symbols(shape) for name, shape in kwargs.items()},
    ).align()
    args, kwargs = arguments.fold().args_and_kwargs()
    try:
        shapes = layer.compute_output_shape(
            *map(trees.shapes, args),
            **{name: trees.shapes(kwargs[name]) for name in kwargs},
        )
        outputs = symbols_of_shapes(shapes)
    except NotImplementedError:
        named = {n.removesuffix("_shape"): x for n, x in kwargs.items()}
        outputs = layer(*args, **named)
    [outputs] = calling.unfold([outputs], arguments.first)
    return trees.shapes(outputs)


def masks(layer, inputs, mask, compute_output_shape):
    """The masks of the outputs.

    Args:
        layer: The layer.
        inputs: Nest of tensors `(batch, time, ...)`.
        mask: Nest of their masks, or `None`.
        compute_output_shape: Function that infers the shapes of the outputs, if
            it can.
    """
    if not masks_of.any_mask(mask) and not layer_kinds.makes_masks(layer):
        return None
    arguments = gather(inputs, mask=mask)
    aligned, output_masks = arguments.align(), None
    if layer.supports_masking:
        folded = aligned.fold()
        seen = calling.masks_for_layer(layer, folded)
        output_masks = layer.compute_mask(
            folded.tensors["inputs"], seen.get("mask", seen["inputs"])
        )
        output_masks = masking.restore_originals(
            output_masks, seen, aligned.masks
        )
    [output_masks] = calling.unfold([output_masks], aligned.first)
    try:
        outputs = symbols_of_shapes(compute_output_shape(trees.shapes(inputs)))
    except Exception:
        # Keras cannot infer them from the inputs alone.
        outputs = trees.map_tensors(lambda _: None, output_masks)
    return calling.propagated_masks(layer, arguments, outputs, output_masks)

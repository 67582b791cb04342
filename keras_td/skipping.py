"""Leaves masked steps out: a layer is called only on the valid ones.

Padding-free transformers do the same with tokens (`unpad_input` and `pad_input`
of FlashAttention, NVIDIA's Effective Transformer, ByteTransformer).
"""

import dataclasses
import functools

import keras
from keras import ops

from keras_td import errors
from keras_td import folding
from keras_td import layer_kinds
from keras_td import masking
from keras_td import packing
from keras_td import padding
from keras_td import scopes
from keras_td import stepping
from keras_td import trees


def call_steps(call, layer, arguments, options):
    """Like `stepping.call_steps`, but only on valid steps if asked to.

    The outputs of masked steps are then zeros.
    """
    arguments = padding.with_outer_validity(arguments)
    if not options.skip_masked:
        return stepping.call_steps(call, layer, arguments, options)
    valid = _valid_steps(layer, arguments)
    known = None if valid is None else _values_of(valid)
    if valid is None or (known is not None and known.all()):
        options = options._replace(skip_masked=False)
        arguments = dataclasses.replace(
            arguments, without_padding=valid is not None
        )
        return stepping.call_steps(call, layer, arguments, options)
    arguments = dataclasses.replace(arguments.align(), valid=valid)
    if not (
        options.training
        or known is not None
        or folding.has_size(packing.count(valid))
    ):
        # A program exported for any number of steps calls the layer on all.
        call = functools.partial(_call_on_all, call)
        return stepping.call_steps(
            call, layer, arguments, options._replace(skip_masked=False)
        )
    if known is not None and not known.any():
        return _zeros(call, layer, arguments), []
    packed, options = _pack(layer, arguments, options, known is not None)
    try:
        return _call_packed(call, layer, arguments, packed, options)
    except stepping.CountsCallsError:
        options = options._replace(parts=None, all_at_once=True)
        return _call_packed(call, layer, arguments, None, options)


def _call_packed(call, layer, arguments, packed, options):
    if options.skip_masked:
        call = functools.partial(_call_on_valid, call)
    if packed is None:
        return stepping.call_steps(call, layer, arguments, options)
    inside = packed.pack(arguments)
    results, losses = stepping.call_steps(call, layer, inside, options)
    return packed.unpack(results, inside, arguments), losses


def _valid_steps(layer, arguments):
    """The steps to call a layer on, `(batch, time)`, or `None` for all."""
    errors.check_keeps_no_state(layer)
    if arguments.is_symbolic or scopes.is_inferring_shapes():
        return None
    masks = trees.flatten(arguments.all_masks()["inputs"])
    valid = arguments.step_mask()
    if valid is None or not masking.are_of_padding(masks, layer):
        return None
    valid = ops.cast(valid, "bool")
    if arguments.valid is not None:
        valid = ops.logical_and(valid, arguments.valid)
    return valid


def _values_of(valid):
    """`valid` as an array, or `None` if it is known only at run time."""
    return ops.convert_to_numpy(valid) if folding.has_values(valid) else None


def _pack(layer, arguments, options, is_known):
    """How steps are packed for the calls, and the options of these.

    `None` leaves steps in place, and each call finds its valid ones.
    """
    valid, steps = arguments.valid, options.steps
    if is_known and steps is None:
        return packing.only_valid(valid), options._replace(skip_masked=False)
    if is_known and folding.has_values(arguments.first):
        packed, parts = packing.valid_in_a_row(valid, steps)
        options = options._replace(steps=None, parts=parts, skip_masked=False)
        return packed, options
    if steps is not None:
        return packing.valid_first(valid), options
    if not packing.is_static(valid):
        return None, options
    of_known_size = all(isinstance(size, int) for size in valid.shape)
    if not of_known_size or _trains_all_at_once(layer, options):
        return None, options._replace(all_at_once=True)
    packed, parts = packing.in_parts(valid)
    return packed, options._replace(parts=parts)


def _trains_all_at_once(layer, options):
    """Whether training makes one call, with valid steps for masked ones."""
    return options.training is not False and (
        padding.mixes_samples(layer)
        or (layer_kinds.has_convolutions(layer) and scopes.is_on_cpu())
    )


def _call_on_valid(call, arguments):
    """Calls a layer only on the valid steps of `Arguments`."""
    if arguments.is_symbolic:
        return call(arguments)
    if scopes.in_loop.get():
        # In gradients of a TensorFlow loop, XLA assumes that the batch of each
        # iteration has the size of the last one.
        packed = packing.in_place(arguments.valid)
    else:
        # On OpenVINO, Keras's `cond` also makes calls that are not needed, in
        # which pooling fails on an empty batch.
        packed = packing.only_valid(arguments.valid, at_least_one=True)
    inside = packed.pack(arguments)
    return packed.unpack(call(inside), inside, arguments)


def _call_on_all(call, arguments):
    zeros_at_masked = functools.partial(
        folding.zeros_except_at, arguments.valid
    )
    results = call(arguments)
    return tuple(trees.map_tensors(zeros_at_masked, n) for n in results)


def _zeros(call, layer, arguments):
    """The outputs and their masks if no step is valid."""
    # The gradients of everything that the layer uses are zeros, too.
    used = [*trees.tensors(arguments.nests), *layer.trainable_variables]
    zero = sum(map(_zero_of, filter(_is_float, used)))
    outputs, masks = _like_results(call, layer, arguments)
    sizes = folding.sizes(arguments.valid)

    def zeros(y):
        zeros = ops.zeros((*sizes, *y.shape[2:]), trees.dtype(y))
        return zeros + ops.cast(zero, y.dtype) if _is_float(y) else zeros

    return trees.map_tensors(zeros, outputs), trees.map_tensors(zeros, masks)


def _like_results(call, layer, arguments):
    """Tensors with the shapes of the results of a call, and their masks."""
    if layer_kinds.has_code_of_users(layer):
        # It may record its calls, or fail on zeros.
        try:
            return _results_on(arguments, call, trees.symbol)
        except Exception:
            pass
    # Symbolic calls of some Keras layers have other results.
    return _results_on(arguments, call, _first_step_of_zeros)


def _results_on(arguments, call, like):
    step = arguments.map(like)
    with keras.StatelessScope():
        outputs, masks = call(step)
    return outputs, masking.restore_uncut(masks, step.masks, arguments.masks)


def _first_step_of_zeros(x):
    x = ops.zeros_like(x[:, :1])
    return ops.logical_not(x) if trees.has_dtype(x, "bool") else x


def _zero_of(x):
    x = ops.cast(x, "float32")
    return ops.sum(ops.where(ops.zeros_like(x, dtype="bool"), x, 0))


def _is_float(x):
    return trees.has_dtype(x, "float")

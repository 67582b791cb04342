"""What changes in the numbers of a model that is upgraded."""

import keras

from keras_td import internals
from keras_td import layer_kinds

_BATCHES = (
    "In training, BatchNormalization inside normalizes with the statistics of "
    "all steps of a batch, and updates its own once. `steps_per_call=1` keeps "
    "Keras's numbers."
)
_STATES = (
    "Each step has a recurrent state of its own, which passes from each batch "
    "to the next. `steps_per_call=1` keeps Keras's numbers."
)
_MASKS = (
    "A mask now leaves it, and reaches the layers after it. "
    "`supports_masking = False` on this layer keeps Keras's numbers."
)
_POLICIES = (
    "The layer inside computes in its own dtype policy, quantization included. "
    "To keep Keras's numbers, give it that of the wrapper."
)
_LOSSES = (
    "A loss that the layer inside adds counts once, for all steps; with "
    "Keras's, it counts once for each step."
)


def differences(stock, td):
    """The sentences to tell of a layer of Keras's and of what replaces it."""
    layer, inside = td.layer, list(internals.layers_of(td.layer))
    in_order = td.steps_per_call == 1 or td.share_randomness
    normalizes = any(
        isinstance(x, keras.layers.BatchNormalization) for x in inside
    )
    applies = {
        _BATCHES: normalizes and not in_order,
        _STATES: layer_kinds.keeps_state(layer) and not in_order,
        _MASKS: layer_kinds.makes_masks_inside(td)
        or (_gives_masks(td) and not _gives_masks(stock)),
        _POLICIES: any(x.dtype_policy != stock.dtype_policy for x in inside),
        _LOSSES: any(x.activity_regularizer is not None for x in inside),
    }
    return [sentence for sentence, does in applies.items() if does]


def _gives_masks(td):
    """Whether a mask leaves a layer, in the models that call it."""
    masks = map(internals.mask_of, internals.outputs_of(td))
    return any(mask is not None for mask in masks)

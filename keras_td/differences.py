"""What changes numerically in an upgraded model."""

import keras

from keras_td import internals
from keras_td import layer_kinds

_BATCHES = (
    "In training, a BatchNormalization inside normalizes with the statistics "
    "of all steps of a batch, and updates its moving statistics once per "
    "batch. `steps_per_call=1` keeps Keras's numbers."
)
_STATES = (
    "Each step has its own recurrent state, which is carried from batch to "
    "batch. `steps_per_call=1` keeps Keras's numbers."
)
_MASKS = (
    "The layer passes a mask on to the layers after it. "
    "`supports_masking = False` on this layer keeps Keras's numbers."
)
_POLICIES = (
    "The wrapped layer uses its own dtype policy, including quantization. To "
    "keep Keras's numbers, give it the policy of the wrapper."
)
_LOSSES = (
    "A loss that the wrapped layer adds counts once, for all steps; in Keras, "
    "it counts once for each step."
)


def differences(stock, td):
    """Sentences on how a layer differs from the Keras layer it replaces."""
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
    """Whether a layer's outputs have a mask, in the models that call it."""
    masks = map(internals.mask_of, internals.outputs_of(td))
    return any(mask is not None for mask in masks)

"""What a layer does with masks, samples and state, as its class tells it."""

import functools
import inspect
from typing import Any

import keras

from keras_td import internals

# They line a mask up with the last axes; a ConvLSTM not on each backend.
_BROADCASTING_MASKS = (
    keras.layers.Softmax,
    keras.layers.ConvLSTM1D,
    keras.layers.ConvLSTM2D,
    keras.layers.ConvLSTM3D,
)
_CONVOLUTIONS = (
    *(getattr(keras.layers, f"Conv{n}D") for n in (1, 2, 3)),
    *(getattr(keras.layers, f"Conv{n}DTranspose") for n in (1, 2, 3)),
    *(getattr(keras.layers, f"DepthwiseConv{n}D") for n in (1, 2)),
    *(getattr(keras.layers, f"SeparableConv{n}D") for n in (1, 2)),
)
# They give masks only to what comes with one.
_PASSING_MASKS_ON = (
    keras.Layer.compute_mask,
    keras.layers.RNN.compute_mask,
    keras.layers.Bidirectional.compute_mask,
)


def is_from(fn, *packages):
    """Whether a function is of one of these packages, by their names."""
    return (fn.__module__ or "").split(".")[0] in packages


def has_code_of_users(layer):
    """Whether a layer inside has a call that is not Keras's."""
    return any(
        not is_from(type(inner).call, "keras", "keras_td")
        for inner in internals.layers_of(layer)
    )


def is_recurrent(layer):
    return isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional))


def broadcasts_masks(layer):
    """Whether a layer takes a mask for one of the last axes of its inputs."""
    if isinstance(layer, keras.layers.Bidirectional):
        layer = layer.forward_layer
    return isinstance(layer, _BROADCASTING_MASKS)


def has_convolutions(layer):
    """Whether a layer is, or holds, a convolution."""
    inner_layers = internals.layers_of(layer)
    return any(isinstance(inner, _CONVOLUTIONS) for inner in inner_layers)


def keeps_state(layer):
    """Whether a layer, or one inside, passes a state on to its next call."""
    return any(map(is_stateful, internals.layers_of(layer)))


def is_stateful(layer):
    return bool(getattr(layer, "stateful", False))


def reads_masks(layer):
    """Whether a layer, or one inside, does more with a mask than pass it on."""
    return bool(_mask_readers(layer))


def is_custom_reader(layer):
    """Whether only layers of a user's own read masks in a layer."""
    readers = _mask_readers(layer)
    return bool(readers) and all(map(_is_custom, readers))


def has_custom_reader(layer):
    """Whether a layer of a user's own, this or one inside, reads masks."""
    return any(map(_is_custom, _mask_readers(layer)))


def makes_masks(layer):
    """Whether a layer may give a mask to what comes without one."""
    return type(layer).compute_mask not in _PASSING_MASKS_ON


def makes_masks_inside(layer):
    """Whether a layer inside of another may give a mask to what has none."""

    def makes(inner):
        if isinstance(inner, keras.layers.Embedding):
            return inner.mask_zero
        if isinstance(inner, keras.layers.Lambda):
            return inner.mask is not None
        own = not is_from(type(inner).compute_mask, "keras", "keras_td")
        is_masking = isinstance(inner, keras.layers.Masking)
        return is_masking or (makes_masks(inner) and own)

    return any(map(makes, internals.layers_of(layer, include_self=False)))


def _is_custom(layer):
    if isinstance(layer, keras.layers.Lambda):
        return True
    return not is_from(type(layer).call, "keras")


def _mask_readers(layer):
    return list(filter(_reads_masks_itself, internals.layers_of(layer)))


def _reads_masks_itself(layer):
    if isinstance(layer, keras.layers.Lambda):
        return "mask" in inspect.signature(layer.function).parameters
    cls: Any = type(layer)
    return _class_reads_masks(cls)


@functools.lru_cache
def _class_reads_masks(cls):
    # These hand a mask on, or find it out in another way.
    models = issubclass(cls, keras.Model) and is_from(cls.call, "keras")
    if models or issubclass(cls, keras.layers.BatchNormalization):
        return False
    if any(base.__name__ == "TimeDistributed" for base in cls.__mro__):
        return False
    names = inspect.signature(cls.call).parameters
    return any(n == "mask" or n.endswith("_mask") for n in names)


def has_mask_argument(layer):
    """Whether the call of a layer takes its mask by name."""
    return _class_has_mask_argument(layer.__class__)


@functools.lru_cache
def _class_has_mask_argument(cls):
    return "mask" in inspect.signature(cls.call).parameters


def required_options(layer):
    """What a layer cannot be called without, of what Keras passes to layers."""
    if isinstance(layer, keras.layers.Lambda):
        return dict.fromkeys(_required_by(layer.function))
    return dict.fromkeys(_required_by(layer.__class__.call))


@functools.lru_cache
def _required_by(call):
    parameters = inspect.signature(call).parameters
    return [
        name
        for name in ("training", "mask")
        if name in parameters
        and parameters[name].default is inspect.Parameter.empty
    ]


def unquantized(policy):
    """The dtype policy of a wrapper of a layer.

    The wrapper holds no weights to quantize, and Keras would ask it for a
    quantized call.
    """
    if policy.quantization_mode is None:
        return policy
    # "int8_from_mixed_bfloat16" -> "mixed_bfloat16"
    return policy.name.split("_from_")[1]

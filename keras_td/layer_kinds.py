"""What a layer does with masks, samples and state, according to its class."""

import functools
import inspect
from typing import Any

import keras

from keras_td import internals

# They align a mask with the last axes; a ConvLSTM not on every backend.
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
# They give masks only to outputs of inputs that have one.
_PASSING_MASKS_ON = (
    keras.Layer.compute_mask,
    keras.layers.RNN.compute_mask,
    keras.layers.Bidirectional.compute_mask,
)


def is_from(fn, *packages):
    """Whether a function is from one of these packages, given by name."""
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
    """Whether a layer takes a mask to be one of the last axes of its inputs."""
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
    """Whether a layer has layers that read masks, and all are custom layers."""
    readers = _mask_readers(layer)
    return bool(readers) and all(map(_is_custom, readers))


def has_custom_reader(layer):
    """Whether a custom layer, this one or one inside, reads masks."""
    return any(map(_is_custom, _mask_readers(layer)))


def makes_masks(layer):
    """Whether a layer may make a mask for inputs without one."""
    return type(layer).compute_mask not in _PASSING_MASKS_ON


def makes_masks_inside(layer):
    """Whether a layer inside another may make a mask for inputs without one."""

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
    # These pass a mask on, or get it in another way.
    models = issubclass(cls, keras.Model) and is_from(cls.call, "keras")
    if models or issubclass(cls, keras.layers.BatchNormalization):
        return False
    if any(base.__name__ == "TimeDistributed" for base in cls.__mro__):
        return False
    names = inspect.signature(cls.call).parameters
    return any(n == "mask" or n.endswith("_mask") for n in names)


def has_mask_argument(layer):
    """Whether the `call` of a layer has a `mask` argument."""
    return _class_has_mask_argument(layer.__class__)


@functools.lru_cache
def _class_has_mask_argument(cls):
    return "mask" in inspect.signature(cls.call).parameters


def required_options(layer):
    """Which of `training` and `mask` a layer cannot be called without."""
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
    """The dtype policy of a wrapper, for that of its layer.

    The wrapper has no weights to quantize, but Keras would ask it for a
    quantized call.
    """
    if policy.quantization_mode is None:
        return policy
    # "int8_from_mixed_bfloat16" -> "mixed_bfloat16"
    return policy.name.split("_from_")[1]

"""Leaves padded samples out of the statistics of a batch.

`BatchNormalization` mixes the samples of a batch, so it has to know which of
them are padding, wherever it is in the wrapped layer: even after a convolution,
which passes no mask on.
"""

import contextlib
import dataclasses
import inspect
import threading
from typing import Any

import keras
from keras import ops

from keras_td import folding
from keras_td import internals
from keras_td import threads
from keras_td.scopes import is_inferring_shapes
from keras_td.scopes import without_autocast


class _Known(threading.local):
    """Which samples of the current batch are valid, `(batch * time,)`."""

    valid: Any = None


_known = _Known()


def mixes_samples(layer):
    """Whether the outputs for a sample depend on other samples in training."""
    return bool(_normalizations(layer))


def left_out_of_statistics(layer, valid):
    """Makes each `BatchNormalization` in a layer leave padded samples out.

    Args:
        layer: The wrapped layer.
        valid: Which samples are not padding, of shape `(batch * time,)`, or
            `None` if that is unknown.
    """
    if valid is None and _known.valid is None:
        return contextlib.nullcontext()
    for normalization in _normalizations(layer):
        if not _is_patched(normalization):
            normalization.call = _CallWithoutPadding(normalization)
    return _valid_samples_are(valid)


@contextlib.contextmanager
def _valid_samples_are(valid):
    outer, _known.valid = _known.valid, valid
    try:
        with threads.patched(*_REMAT):
            yield
    finally:
        _known.valid = outer


def with_outer_validity(arguments):
    """Adds to `Arguments` which steps are valid in an outer call."""
    if _known.valid is None or is_inferring_shapes():
        return arguments
    like = arguments.first
    valid = _of_samples(_known.valid, like)
    if valid is None:
        return arguments
    # (batch,) -> (batch, time)
    valid = folding.align(valid[:, None], *folding.sizes(like)[:2])
    return dataclasses.replace(arguments, valid=valid)


def _normalizations(layer):
    """The normalizations inside that can be told which samples are valid."""
    return [
        inner
        for inner in internals.layers_of(layer)
        if isinstance(inner, keras.layers.BatchNormalization)
        # A layer that Keras itself recomputes is told nothing then.
        and not internals.is_recomputed(inner)
        # Inspecting a signature is slow.
        and (
            _is_patched(inner)
            or "mask" in inspect.signature(inner.call).parameters
        )
    ]


def _is_patched(normalization):
    return isinstance(vars(normalization).get("call"), _CallWithoutPadding)


class _CallWithoutPadding:
    """The call of a `BatchNormalization` that knows which samples are valid.

    Keras attaches masks to tensors, but most layers lose them. So this replaces
    the layer's `call`, and only changes what it does inside
    `left_out_of_statistics`.
    """

    def __init__(self, normalization):
        self.normalization = normalization
        self.call = normalization.call
        self.__signature__ = inspect.signature(self.call)

    def __call__(self, *args, **kwargs):
        if _known.valid is None or is_inferring_shapes():
            return self.call(*args, **kwargs)
        bound = self.__signature__.bind(*args, **kwargs)
        given = bound.arguments
        inputs, mask = next(iter(given.values())), given.pop("mask", None)
        if not (given.get("training") and self.normalization.trainable):
            return self.call(*bound.args, **bound.kwargs)
        valid = _of_samples(_known.valid, inputs)
        if valid is None:
            given["mask"] = mask
            return self.call(*bound.args, **bound.kwargs)
        rank = len(inputs.shape) - 1
        rows = folding.expand(valid, rank)
        # A mask that does not fit was passed on by mistake.
        if mask is None or len(mask.shape) > rank:
            mask = rows
        else:
            mask = ops.logical_and(folding.expand(mask, rank), rows)
        given["mask"] = mask
        state = self.normalization.non_trainable_variables
        before = without_autocast(lambda: [ops.copy(v.value) for v in state])
        outputs = self.call(*bound.args, **bound.kwargs)
        # Padding alone has no statistics.
        without_autocast(_restore_unless, ops.any(mask), state, before)
        return outputs


def _restore_unless(some, state, before):
    for variable, value in zip(state, before, strict=True):
        variable.assign(ops.where(some, variable.value, value))


class _Remat(threads.Function):
    """`keras.remat` for a function that knows which samples are valid."""

    def __call__(self, function):
        valid = _known.valid
        if valid is None:
            return self.function(function)

        def knowing(*args, **kwargs):
            with _valid_samples_are(valid):
                return function(*args, **kwargs)

        return self.function(knowing)


_REMAT = [_Remat(keras, "remat")] if hasattr(keras, "remat") else []


def _of_samples(valid, x):
    """Which samples of `x` are valid, or `None` if it holds other samples."""
    samples, rows = folding.sizes(x)[0], folding.sizes(valid)[0]
    if samples is rows or folding.is_size(samples, rows):
        return valid
    in_graph = [hasattr(tensor, "graph") for tensor in (valid, x)]
    if folding.differ(samples, rows) or in_graph == [False, True]:
        # A function that TensorFlow traces on its own would keep `valid`.
        return None
    # With sizes unknown until run time, they may be the same samples or others.
    place = ops.arange(samples) % rows
    others = ops.not_equal(samples, rows)
    return ops.logical_or(ops.take(valid, place, axis=0), others)

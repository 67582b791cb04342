"""Padded samples left out of the statistics of a batch.

`BatchNormalization` mixes the samples of a batch, so it has to know which of
them are padding, wherever in the wrapped layer it is: behind a convolution too,
which passes no mask on.
"""

import contextlib
import threading
from typing import Any

import keras
from keras import ops

from keras_td import folding


class _Known(threading.local):
    """Which samples of the batch at hand are valid, `(batch * time,)`."""

    valid: Any = None


_known = _Known()


def mixes_samples(layer):
    """Whether what a layer makes of a sample depends on others in training."""
    return bool(_normalizations(layer))


def left_out(layer, steps, like):
    """Lets each `BatchNormalization` in a layer leave padded samples out.

    Args:
        layer: The wrapped layer.
        steps: Which steps are no padding, `(batch, time)`, or `None` if nothing
            is known of that.
        like: A tensor `(batch, time, ...)` of the call.
    """
    outer = _of_outer_call(like)
    if steps is None and outer is None:
        return contextlib.nullcontext()
    if steps is None or outer is None:
        valid = outer if steps is None else steps
    else:
        valid = ops.logical_and(steps, outer)
    for normalization in _normalizations(layer):
        if not isinstance(vars(normalization).get("call"), _CallOnValid):
            normalization.call = _CallOnValid(normalization)
    return _valid_is(folding.fold(valid))


@contextlib.contextmanager
def _valid_is(valid):
    outer, _known.valid = _known.valid, valid
    try:
        yield
    finally:
        _known.valid = outer


def _of_outer_call(like):
    """Which steps of a call inside of another are valid for the outer one."""
    if _known.valid is None or _is_symbolic():
        return None
    valid = _of_samples(_known.valid, like)
    if valid is None:
        return None
    # (batch,) -> (batch, time)
    return folding.align(valid[:, None], *folding.sizes(like)[:2])


def _normalizations(layer):
    return [
        inner
        for inner in layer._flatten_layers()
        if isinstance(inner, keras.layers.BatchNormalization)
    ]


class _CallOnValid:
    """The call of a `BatchNormalization` that knows which samples are valid.

    Keras has masks ride on tensors, and most layers lose them. So this takes
    the place of `call` on the layer at hand, which it leaves as it is outside
    of `left_out`.
    """

    def __init__(self, normalization):
        self.normalization = normalization
        self.call = normalization.call

    def __call__(self, inputs, training=None, mask=None):
        known = _known.valid is not None and not _is_symbolic()
        trains = training and self.normalization.trainable
        if known and not trains:
            return self.call(inputs, training=training)
        valid = _of_samples(_known.valid, inputs) if known else None
        if valid is None:
            return self.call(inputs, training=training, mask=mask)
        rank = len(inputs.shape) - 1
        rows = folding.expand(valid, rank)
        # One that does not fit was passed on by mistake.
        if mask is None or len(mask.shape) > rank:
            mask = rows
        else:
            mask = ops.logical_and(folding.expand(mask, rank), rows)
        state = self.normalization.non_trainable_variables
        before = [ops.copy(v) for v in state]
        outputs = self.call(inputs, training=training, mask=mask)
        # Of padding alone there are no statistics.
        some = ops.any(mask)
        for variable, value in zip(state, before, strict=True):
            variable.assign(ops.where(some, variable.value, value))
        return outputs


def _is_symbolic():
    with keras.SymbolicScope() as scope:
        return scope.original_scope is not None


def _of_samples(valid, x):
    """Repeats `valid` where each sample has become several of `x`."""
    samples, rows = folding.sizes(x)[0], folding.sizes(valid)[0]
    if samples is rows or folding.is_size(samples, rows):
        return valid
    if isinstance(samples, int) and isinstance(rows, int) and samples % rows:
        return None
    # (rows,) -> (rows, samples / rows) -> (samples,)
    valid = ops.broadcast_to(valid[:, None], (rows, samples // rows))
    return ops.reshape(valid, (samples,))

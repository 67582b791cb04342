"""A call of a layer as a pure function of tensors.

The layer's variables are read and written in a scope, so the call can run in a
compiled loop, and again in the backward pass.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_td import losses
from keras_td import time_axis
from keras_td import trees
from keras_td.scopes import uncompiled
from keras_td.variables import Scope


@dataclasses.dataclass(frozen=True)
class Carry:
    """What passes from each call to the next.

    Args:
        values: The values of the layer's variables.
        losses: The sums of the losses that calls have added.
        token: A zero that is available once all calls so far are done, or
            `None` if their order does not matter.
    """

    values: list
    losses: dict
    token: Any


@dataclasses.dataclass(frozen=True)
class StatelessCall:
    """Calls a layer, with the values of its variables as an argument.

    Args:
        fn: Function that calls the layer on a list of tensors used at every
            step, and a list of tensors `(batch, steps, ...)`.
        layer: The layer.
        variables: Its variables.
        shared_seeds: Makes a context in which each call draws the same numbers.
        all_steps: Whether there is only one call, on all steps.
        count_steps: Counts the steps that a call sees, from its tensors. `None`
            counts all.
    """

    fn: Callable
    layer: keras.Layer
    variables: list
    shared_seeds: Callable = contextlib.nullcontext
    all_steps: bool = False
    count_steps: Callable | None = None

    def __call__(self, token, fixed, values, moving, sizes):
        """Calls the layer on `sizes` steps, one part after the other.

        Returns:
            Tuple of the token, and a tuple of the outputs, the new value of
            each variable (`None` if unchanged), and the sums of the losses that
            were added.
        """
        parts, start = [], 0
        sums: dict = {}
        with (
            Scope(self.layer, self.variables, values) as scope,
            uncompiled(self.layer),
        ):
            before = self._values(scope)
            for size in sizes:
                stop = start + size
                part = [
                    order_after(token, x)
                    for x in time_axis.cut(moving, start, stop)
                ]
                outputs, added = self._call_once(scope, fixed, part, size)
                parts.append(outputs)
                sums = losses.add(sums, added)
                token, start = token_after(token, outputs), stop
            after = self._values(scope)
        updates = [
            None if new is old else new
            for old, new in zip(before, after, strict=True)
        ]
        return token, (time_axis.join(parts), updates, sums)

    def _call_once(self, scope, fixed, moving, size):
        before = self._values(scope)
        with self.shared_seeds():
            outputs = self.fn(fixed, moving)
        scope.check()
        scope.stop_gradients(self.variables, before)
        added = losses.take(scope, self.layer)
        if self.count_steps:
            size = self.count_steps(fixed, moving)
        return outputs, losses.weighted(added, None if self.all_steps else size)

    def _values(self, scope):
        return [scope.get_current_value(v) for v in self.variables]


def run(call, fixed, carry, moving, groups):
    """Makes each group of calls, on `sizes` steps, one after the other.

    Returns:
        Tuple of the outputs and the new `Carry`.
    """
    parts, start = [], 0
    for sizes in groups:
        stop = start + sum(sizes)
        part = time_axis.cut(moving, start, stop)
        token, results = call(carry.token, fixed, carry.values, part, sizes)
        outputs, updates, added = results
        values = [
            old if new is None else new
            for old, new in zip(carry.values, updates, strict=True)
        ]
        carry = Carry(values, losses.add(carry.losses, added), token)
        parts.append(outputs)
        start = stop
    return time_axis.join(parts), carry


def order_after(token, x):
    """Makes `x` wait for a token, as compilers keep no other order."""
    if token is None or trees.dtype(x) in ("bool", "string"):
        return x
    return x + ops.cast(ops.stop_gradient(token), x.dtype)


def token_after(token, nest):
    """Makes a token wait for the tensors of a nest."""
    if token is None:
        return None
    for x in trees.tensors(nest):
        first = ops.reshape(x, (-1,))[:1]
        zeros = ops.where(ops.equal(first, first), 0.0, 0.0)
        token = token + ops.sum(zeros)
    return token

"""Calls in a compiled loop, so that a graph holds few copies of the layer."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_td import folding
from keras_td import internals
from keras_td import scopes
from keras_td import stateless
from keras_td import time_axis
from keras_td import trees
from keras_td.stateless import Carry


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop with one or more calls of a layer in each iteration.

    Args:
        call: The `StatelessCall`.
        recompute: Wraps a function so that the backward pass recomputes it.
            `None` recomputes nothing.
        fixed: List of tensors used at every step.
        changed: Which variables a call changes.
    """

    call: Callable
    recompute: Callable | None
    fixed: list
    changed: list

    def run(self, carry, moving, iterations, sizes):
        """Makes calls on `sizes` steps in each iteration.

        Returns:
            Tuple of the outputs and the new `Carry`.
        """
        sequences, inputs_of = _sequences(moving, iterations, sum(sizes))
        changing, constant = trees.split(carry.values, self.changed)
        body = _Body(self, constant, sorted(carry.losses), inputs_of, sizes)
        states = body.states_of(carry, changing, ops.zeros((), "int32"))
        _, outputs, states = internals.loop_over_time(body, sequences, states)
        # (1, iterations, batch, steps, ...) -> (batch, time, ...)
        outputs = map(time_axis.merge, outputs)
        outputs = trees.pack_tensors(body.structure, outputs)
        return outputs, body.carry_of(states)


class _Body:
    """The body of a loop, as a Keras RNN cell.

    The structure of its outputs is known once it is traced.
    """

    state_size = ()

    def __init__(self, loop, constant, losses, inputs_of, sizes):
        self.loop = loop
        self.constant = constant
        self.losses = losses
        self.inputs_of = inputs_of
        self.sizes = sizes
        self.structure: Any = None
        self.run: Callable = self._run
        if loop.recompute:
            self.run = loop.recompute(self._run)

    def __call__(self, inputs, states):
        return self.call(inputs, states)

    def call(self, inputs, states):
        index, tokens, changing, sums = states
        outside = scopes.in_loop.set(True)
        try:
            token, (outputs, changing, sums) = self.run(
                *tokens or [None],
                self.loop.fixed,
                self.constant,
                [inputs, index],
                [changing, sums],
            )
        finally:
            scopes.in_loop.reset(outside)
        # Keras's loop on PyTorch fixes the size of the first axis of outputs.
        outputs = tuple(y[None] for y in outputs)
        return outputs, [index + 1, _as_list(token), changing, sums]

    def _run(self, token, fixed, constant, step, states):
        changing, sums = states
        values = trees.merge(changing, constant, self.loop.changed)
        carry = Carry(values, dict(zip(self.losses, sums, strict=True)), token)
        moving = self.inputs_of(*step)
        outputs, carry = stateless.run(
            self.loop.call, fixed, carry, moving, [self.sizes]
        )
        self.structure = trees.symbols(outputs)
        if sorted(carry.losses) != self.losses:
            raise ValueError(
                "In a compiled function, a layer that is called on a few steps "
                "at a time (`steps_per_call`, `share_randomness`) must add the "
                "same losses in each call. Received: a later call that adds "
                "other losses than the first."
            )
        changing, others = trees.split(carry.values, self.loop.changed)
        if any(a is not b for a, b in zip(constant, others, strict=True)):
            raise ValueError(
                "In a compiled function, a layer that is called on a few steps "
                "at a time (`steps_per_call`, `share_randomness`) must assign "
                "to the same variables in each call. Received: a variable that "
                "a later call assigns to but the first does not."
            )
        sums = [carry.losses[key] for key in self.losses]
        return carry.token, (tuple(trees.tensors(outputs)), changing, sums)

    def states_of(self, carry, changing, index):
        sums = [carry.losses[key] for key in self.losses]
        return [index, _as_list(carry.token), changing, sums]

    def carry_of(self, states):
        _, tokens, changing, sums = states
        values = trees.merge(changing, self.constant, self.loop.changed)
        [token] = tokens or [None]
        return Carry(values, dict(zip(self.losses, sums, strict=True)), token)


def _as_list(token):
    return [] if token is None else [token]


def _sequences(tensors, iterations, steps):
    """Packs tensors `(batch, time, ...)` for the loop.

    Returns:
        Tuple of the tensor `(1, iterations, batch, features)` that the loop
        iterates over, and the function that returns an iteration's tensors.
    """
    floats = [trees.has_dtype(x, "float") for x in tensors]
    tensors = folding.with_same_batch(tensors)
    stacked = [time_axis.split(x, iterations, steps) for x in tensors]
    read, indexed = trees.split(stacked, floats)
    specs = [(folding.sizes(x)[1:], x.dtype) for x in read]
    # The batch stays a separate axis, which may be sharded across devices.
    batch = folding.sizes(stacked[0])[1] if stacked else 1
    read = [
        ops.reshape(x, (1, iterations, batch, math.prod(inner)))
        for x, ((_, *inner), _) in zip(read, specs, strict=True)
    ]
    # The loop transposes again. With nothing in between, as for a single
    # tensor, tf2onnx takes the two transpositions to be inverses.
    nothing = ops.zeros(
        (1, iterations, batch, 1), read[0].dtype if read else None
    )
    sequences = ops.concatenate([*read, nothing], axis=-1)

    def inputs_of(inputs, index):
        read, start = [], 0
        for shape, dtype in specs:
            end = start + math.prod(shape[1:])
            x = ops.cast(inputs[0, :, start:end], dtype)
            read.append(ops.reshape(x, shape))
            start = end
        at_index = [ops.take(x, index, axis=0) for x in indexed]
        return trees.merge(read, at_index, floats)

    return sequences, inputs_of

"""Splits the time steps into chunks, with one call of a layer for each."""

import dataclasses
from collections.abc import Callable

from keras import ops
from keras import tree

from keras_td import folding
from keras_td import looping
from keras_td import losses
from keras_td import stateless
from keras_td import time_axis
from keras_td import trees
from keras_td.conditional import ConditionalCall
from keras_td.stateless import Carry
from keras_td.stateless import StatelessCall

# Iterations of a compiled loop cost run time, calls in its body compile time.
CALLS_PER_ITERATION = 2
# Up to this many calls need no loop.
FEW_CALLS = 8


@dataclasses.dataclass(frozen=True)
class Chunks:
    """All time steps, of which each call sees a chunk.

    Args:
        call: The `StatelessCall`.
        fixed: List of tensors used at every step.
        moving: List of tensors `(batch, time, ...)`.
        steps: How many steps each call sees, except the first, which sees the
            remainder. `None` means all.
        recompute: Wraps a function so that the backward pass recomputes it.
            `None` recomputes nothing.
        at_hand: Whether the tensors have concrete values, and nothing is
            compiled.
        parts: How many steps each call sees, if `steps` is `None`. `None` means
            one call.
    """

    call: StatelessCall | ConditionalCall
    fixed: list
    moving: list
    steps: int | None
    recompute: Callable | None
    at_hand: bool
    parts: list[int] | None = None

    @property
    def _one_by_one(self):
        """Whether each call is recomputed, or skipped, on its own."""
        return self.recompute or isinstance(self.call, ConditionalCall)

    def run(self, carry, time):
        """Calls the layer on all chunks.

        Returns:
            Tuple of the outputs and the new `Carry`.
        """
        if self.steps is None:
            groups = [[size] for size in self.parts or [time]]
            return self._run(carry, self.moving, groups)
        if isinstance(time, int):
            return self._in_known_time(carry, time)
        return self._in_unknown_time(carry, time)

    def _in_known_time(self, carry, time):
        """Makes calls in order, most of them in a loop if many and compiled."""
        sizes, iterations, of_iteration = self._sizes(time)
        if not sizes:
            # The values of this call are unused, so the compiler drops it.
            first = time_axis.cut(self.moving, 0, self.steps)
            _, probed = self._run(carry, first, [[self.steps]])
            zeros = losses.zeros_like(probed.losses)
            start = dataclasses.replace(carry, losses=zeros)
            loop = self._loop(carry, probed)
            return loop.run(start, self.moving, iterations, of_iteration)
        groups = [[size] for size in sizes] if self._one_by_one else [sizes]
        split = sum(sizes)
        first = time_axis.cut(self.moving, 0, split)
        outputs, once = self._run(carry, first, groups)
        if not iterations:
            return outputs, once
        rest = time_axis.cut(self.moving, split, time)
        later, last = self._loop(carry, once).run(
            once, rest, iterations, of_iteration
        )
        return time_axis.join([outputs, later]), last

    def _sizes(self, time):
        """How many steps each call sees.

        Returns:
            Tuple of the sizes of the calls before the loop, the number of its
            iterations, and the sizes of the calls in one iteration.
        """
        steps = self.steps
        calls = max(-(-time // steps), 1)
        sizes = [time - (calls - 1) * steps] + [steps] * (calls - 1)
        of_iteration = [steps] * (
            1 if self._one_by_one else CALLS_PER_ITERATION
        )
        if self.at_hand or calls <= (1 if self._one_by_one else FEW_CALLS):
            return sizes, 0, of_iteration
        iterations = time // steps // len(of_iteration)
        return (
            sizes[: calls - iterations * len(of_iteration)],
            iterations,
            of_iteration,
        )

    def _in_unknown_time(self, carry, time):
        """Makes calls on a number of steps that is known only at run time."""
        steps = self.steps
        moving = [
            folding.align(x, folding.sizes(x)[0], time) for x in self.moving
        ]
        calls = ops.maximum(-(-time // steps), 1)
        split = time - (calls - 1) * steps
        first = time_axis.cut(moving, 0, split)
        outputs, once = self._run(carry, first, [[split]])
        # A loop iterates at least once. Where one call is enough, an unused
        # iteration runs on copies of a step, as gradients of other values might
        # be NaN.
        iterations = ops.maximum(calls - 1, 1)
        copies = (iterations - calls + 1) * steps
        rest = [time_axis.pad(x[:, split:time], x, copies) for x in moving]
        later, last = self._loop(carry, once).run(
            once, rest, iterations, [steps]
        )
        later = trees.map_tensors(lambda y: y[:, copies:], later)
        return time_axis.join([outputs, later]), _where(calls > 1, last, once)

    def _run(self, carry, moving, groups):
        call = self.recompute(self.call) if self.recompute else self.call
        return stateless.run(call, self.fixed, carry, moving, groups)

    def _loop(self, before, after):
        """A loop of calls that change the variables that a first one did."""
        changed = [
            a is not b for a, b in zip(before.values, after.values, strict=True)
        ]
        return looping.Loop(self.call, self.recompute, self.fixed, changed)


def _where(condition, carry, other):
    """Selects a `Carry` by a condition that is known only at run time."""
    parts = tree.map_structure(
        lambda a, b: a if a is b else ops.where(condition, a, b),
        (carry.values, carry.losses, carry.token),
        (other.values, other.losses, other.token),
    )
    return Carry(*parts)

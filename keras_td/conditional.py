"""A call that is only made if it has a valid step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_td import folding
from keras_td import trees
from keras_td.stateless import StatelessCall


def has_gradients_in_xla():
    """Whether XLA can compute gradients of all layers in a conditional call.

    On TensorFlow, it cannot for a loop, such as an LSTM's. There, steps can be
    left out without XLA, too.
    """
    return keras.backend.backend() != "tensorflow"


@dataclasses.dataclass(frozen=True)
class ConditionalCall:
    """A `StatelessCall` that changes nothing if no step is valid.

    Args:
        call: The `StatelessCall`.
        valid: Function of the call's tensors that returns which steps are
            valid, `(batch, steps)`.
    """

    call: StatelessCall
    valid: Callable

    def __call__(self, token, fixed, values, moving, sizes):
        valid = self.valid(fixed, moving)
        branches = _Branches(
            self.call, (token, fixed, values, moving, sizes), valid
        )
        found = ops.cond(ops.any(valid), branches.call, branches.skip)
        return trees.pack_tensors(branches.structure, found)


@dataclasses.dataclass(frozen=True)
class SelectiveCall(ConditionalCall):
    """A call that is always made, and undone if no step is valid.

    In a conditional call, XLA on CPU takes ten times as long to compute
    gradients of convolutions.
    """

    def __call__(self, token, fixed, values, moving, sizes):
        some = ops.any(self.valid(fixed, moving))

        def if_some(new, old):
            return ops.where(some, new, old)

        fixed, moving = (
            [if_some(x, ops.zeros_like(x)) for x in xs]
            for xs in (fixed, moving)
        )
        # Gradients of a call on zeros may be NaN.
        used = [if_some(v, ops.stop_gradient(v)) for v in values]
        token, (outputs, updates, sums) = self.call(
            token, fixed, used, moving, sizes
        )
        updates = [
            None if new is None else if_some(new, old)
            for old, new in zip(values, updates, strict=True)
        ]
        sums = trees.map_tensors(lambda x: if_some(x, ops.zeros_like(x)), sums)
        return token, (outputs, updates, sums)


class _Branches:
    """What is done if there is a valid step, and if there is none."""

    def __init__(self, stateless_call, arguments, valid):
        self.stateless_call = stateless_call
        self.arguments = arguments
        self.valid = valid
        self.structure: Any = None

    def call(self):
        results = self.stateless_call(*self.arguments)
        # Tensors of this branch cannot be used outside it.
        self.structure = trees.symbols(results)
        return trees.tensors(results)

    def skip(self):
        token, _, values, *_ = self.arguments
        _, (outputs, updates, sums) = self._like_results()
        updates = [
            None if new is None else old
            for old, new in zip(values, updates, strict=True)
        ]
        zeros = trees.map_tensors(ops.zeros_like, (outputs, sums))
        return trees.tensors((token, (zeros[0], updates, zeros[1])))

    def _like_results(self):
        """Tensors with the shapes of the results."""
        if self.structure is None:
            # TensorFlow traces only one branch if it knows the condition.
            self.structure = trees.symbols(self.stateless_call(*self.arguments))
        token, (outputs, updates, sums) = self.structure
        sizes = folding.sizes(self.valid)
        shapes = [y.shape[2:] for y in trees.tensors(outputs)]
        shapes += [loss.shape for loss in trees.tensors(sums)]
        if any(None in shape for shape in shapes):
            # The sizes of the outputs depend on those of the inputs.
            return self.stateless_call(*self.arguments)
        outputs = trees.map_tensors(
            lambda y: ops.zeros((*sizes, *y.shape[2:]), y.dtype), outputs
        )
        sums = trees.map_tensors(lambda x: ops.zeros(x.shape, x.dtype), sums)
        return token, (outputs, updates, sums)

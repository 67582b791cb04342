"""Several calls of a layer in order, each on a few time steps."""

import contextlib
import dataclasses
import functools
import itertools

from keras import ops
from keras import tree

from keras_td import folding
from keras_td import looping
from keras_td import losses
from keras_td import masking
from keras_td import randomness
from keras_td import remat
from keras_td import trees
from keras_td import variables
from keras_td.stateless import Carry
from keras_td.stateless import StatelessCall
from keras_td.stateless import run

# Of a compiled loop, a turn takes time and a call in it compilation.
CALLS_PER_TURN = 2
# So few calls need no loop.
FEW_CALLS = 8


@dataclasses.dataclass(frozen=True)
class Options:
    """How a layer is called.

    Args:
        steps: How many time steps a call sees, but the first, which sees what
            remains. `None` is all.
        remat: Whether the backward pass computes each call again.
        share_randomness: Whether every call draws the same random numbers.
        training: Whether the layer trains.
    """

    steps: int | None
    remat: bool
    share_randomness: bool
    training: bool | None


def call_in_order(call, layer, arguments, options):
    """Calls a layer on all time steps, on a few of them at a time.

    Args:
        call: Function that calls `layer` on `Arguments`, and returns outputs
            and their masks.
        layer: The layer, built. Its state passes from each call to the next.
        arguments: The `Arguments` of all time steps. A tensor whose time is 1
            is used in every call.
        options: The `Options` of the calls.

    Returns:
        Tuple of the outputs and their masks, and of the losses that the calls
        added, averaged over the steps.
    """
    apart = contextlib.nullcontext
    if options.share_randomness:
        apart = randomness.kept_apart
    while True:
        try:
            with apart():
                return _call_in_order(call, layer, arguments, options)
        except variables.CallAgainError:
            continue


def _call_in_order(call, layer, arguments, options):
    time = arguments.time
    nests = arguments.map(functools.partial(_known, time=time)).nests
    flat = [x for nest in nests for x in trees.tensors(nest)]
    moves = [not folding.is_size(x.shape[1], 1) for x in flat]
    moving, fixed = trees.split(flat, moves)
    counts = [len(trees.tensors(nest)) for nest in nests]

    def call_on_lists(fixed, moving):
        flat = iter(trees.merge(moving, fixed, moves))
        parts = [list(itertools.islice(flat, count)) for count in counts]
        part = arguments.with_nests(list(map(trees.pack_tensors, nests, parts)))
        outputs, output_masks = call(part)
        return outputs, masking.as_tensors(output_masks)

    used = variables.used_by(layer)
    values = variables.values_of(used, layer)
    given = remat.values_for(layer, values) if options.remat else values
    stateless_call = StatelessCall(
        call_on_lists,
        layer,
        used,
        _shared_seeds(used, given, options),
        options.steps is None,
    )
    # Where nothing is compiled, calls are in order; where all activations are
    # kept, it does not matter, and TensorFlow does some side by side.
    at_hand = folding.has_values(flat[0])
    keeps_all = options.training is True and bool(layer.trainable_variables)
    in_any_order = not options.remat and (at_hand or keeps_all)
    carry = Carry(given, {}, None if in_any_order else ops.zeros(()))
    calls = _Calls(stateless_call, fixed, moving, options, at_hand)
    outputs, carry = calls.run(carry, time)
    variables.assign(used, layer, given, carry.values)
    return outputs, losses.means(carry.losses)


def infer(call, arguments, steps):
    """What calls on all steps return, told from the first one's shapes."""
    first = arguments.first_steps(steps)
    outputs, output_masks = call(first)
    if steps is None:
        return outputs, output_masks
    of_all = functools.partial(folding.with_time, time=arguments.time)
    output_masks = masking.originals_of(
        output_masks, first.masks, arguments.masks
    )
    return tuple(trees.map_tensors(of_all, n) for n in (outputs, output_masks))


def _shared_seeds(used, values, options):
    if options.share_randomness:
        return randomness.shared_seeds(used, values)
    return contextlib.nullcontext


def _known(x, time):
    """Repeats a step where it is not known before the run that there is one."""
    x = ops.convert_to_tensor(x)
    if isinstance(x.shape[1], int) or not isinstance(time, int):
        return x
    return folding.align(x, folding.sizes(x)[0], time)


@dataclasses.dataclass(frozen=True)
class _Calls:
    """The calls that all time steps take."""

    call: StatelessCall
    fixed: list
    moving: list
    options: Options
    at_hand: bool

    def run(self, carry, time):
        if self.options.steps is None:
            return self._run(carry, self.moving, [[time]])
        if isinstance(time, int):
            return self._in_known_time(carry, time)
        return self._in_unknown_time(carry, time)

    def _in_known_time(self, carry, time):
        """Calls in a row, most of them in a loop if many and compiled."""
        steps, one_by_one = self.options.steps, self.options.remat
        calls = max(-(-time // steps), 1)
        sizes = [time - (calls - 1) * steps] + [steps] * (calls - 1)
        of_turn = [steps] * (1 if one_by_one else CALLS_PER_TURN)
        turns = time // steps // len(of_turn)
        if self.at_hand or calls <= (1 if one_by_one else FEW_CALLS):
            turns = 0
        sizes = sizes[: calls - turns * len(of_turn)]
        if not sizes:
            # Of a call that nobody uses, a compiled program holds nothing.
            first = folding.cut(self.moving, 0, steps)
            _, probed = self._run(carry, first, [[steps]])
            zeros = losses.zeros_like(probed.losses)
            start = dataclasses.replace(carry, losses=zeros)
            loop = self._loop(carry, probed)
            return loop.run(start, self.moving, turns, of_turn)
        groups = [[size] for size in sizes] if one_by_one else [sizes]
        split = sum(sizes)
        first = folding.cut(self.moving, 0, split)
        outputs, once = self._run(carry, first, groups)
        if not turns:
            return outputs, once
        rest = folding.cut(self.moving, split, time)
        later, last = self._loop(carry, once).run(once, rest, turns, of_turn)
        return folding.join([outputs, later]), last

    def _in_unknown_time(self, carry, time):
        """Calls on a number of time steps that only the run tells."""
        steps = self.options.steps
        moving = [
            folding.align(x, folding.sizes(x)[0], time) for x in self.moving
        ]
        calls = ops.maximum(-(-time // steps), 1)
        split = time - (calls - 1) * steps
        first = folding.cut(moving, 0, split)
        outputs, once = self._run(carry, first, [[split]])
        # A loop has to turn: where one call is enough, it turns once for
        # nothing, on copies of a step, as gradients of other values might be no
        # numbers.
        turns = ops.maximum(calls - 1, 1)
        copies = (turns - calls + 1) * steps
        rest = [folding.pad_time(x[:, split:time], x, copies) for x in moving]
        later, last = self._loop(carry, once).run(once, rest, turns, [steps])
        later = trees.map_tensors(lambda y: y[:, copies:], later)
        return folding.join([outputs, later]), _where(calls > 1, last, once)

    def _run(self, carry, moving, groups):
        call = self._recompute(self.call)
        return run(call, self.fixed, carry, moving, groups)

    def _loop(self, before, after):
        """A loop of calls that change what a first one has changed."""
        changed = [
            a is not b for a, b in zip(before.values, after.values, strict=True)
        ]
        return looping.Loop(self.call, self._recompute, self.fixed, changed)

    @property
    def _recompute(self):
        return remat.recompute if self.options.remat else lambda call: call


def _where(condition, carry, other):
    """One `Carry` or the other, by a condition that only the run tells."""
    parts = tree.map_structure(
        lambda a, b: a if a is b else ops.where(condition, a, b),
        (carry.values, carry.losses, carry.token),
        (other.values, other.losses, other.token),
    )
    return Carry(*parts)

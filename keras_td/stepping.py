"""Several calls of a layer in order, each on a few time steps."""

import contextlib
import functools
import itertools

import keras
from keras import ops

from keras_td import building
from keras_td import errors
from keras_td import folding
from keras_td import losses
from keras_td import masking
from keras_td import randomness
from keras_td import remat
from keras_td import scopes
from keras_td import time_axis
from keras_td import trees
from keras_td import variables
from keras_td.chunking import Chunks
from keras_td.conditional import ConditionalCall
from keras_td.conditional import SelectiveCall
from keras_td.stateless import Carry
from keras_td.stateless import StatelessCall


class CountsCallsError(Exception):
    """A layer adds losses or changes state in each of its calls."""


def call_steps(call, layer, arguments, options):
    """Calls a layer on all time steps, in as many calls as the options ask for.

    Args:
        call: Function that calls `layer` on `Arguments`, and returns outputs
            and their masks.
        layer: The layer. Its state passes from each call to the next.
        arguments: The `Arguments` of all time steps. A tensor whose time is 1
            is used in every call.
        options: The `CallOptions` of the calls.

    Returns:
        Tuple of the outputs and their masks, and the losses of several calls,
        averaged over the steps.

    Raises:
        CountsCallsError: if calls on parts of the steps differ from one call.
    """
    steps, training = options.steps, options.training
    several = steps or options.parts or options.skip_masked
    if not (several or options.remat):
        return call(arguments), []
    if scopes.is_inferring_shapes() or arguments.is_symbolic:
        return _infer(call, arguments, steps), []
    if not folding.has_size(arguments.time):
        # A program for any number of steps cannot know the number of calls.
        if not training:
            return call(arguments), []
        if steps:
            raise errors.no_training_in_any_time(arguments.time)
    first = arguments.first_steps(steps)
    building.build_inner_layers(layer, call, first, training)
    return _call_in_order(call, layer, arguments, options)


def _infer(call, arguments, steps):
    """Infers what calls on all steps return from the shapes of the first."""
    first = arguments.first_steps(steps)
    outputs, output_masks = call(first)
    if steps is None:
        return outputs, output_masks
    of_all = functools.partial(time_axis.with_time, time=arguments.time)
    output_masks = masking.restore_uncut(
        output_masks, first.masks, arguments.masks
    )
    return tuple(trees.map_tensors(of_all, n) for n in (outputs, output_masks))


def _call_in_order(call, layer, arguments, options):
    apart = contextlib.nullcontext
    if options.share_randomness:
        apart = randomness.drawing_per_thread
    call = _CallOnLists(call, arguments)
    while True:
        try:
            with apart():
                return _attempt(call, layer, arguments.time, options)
        except variables.CallAgainError:
            continue


class _CallOnLists:
    """A call of a layer as a function of two lists of tensors.

    `fixed` are those used at every step, and `moving` the others.
    """

    def __init__(self, call, arguments):
        self.call = call
        known = functools.partial(_known, time=arguments.time)
        self.arguments = arguments.map(known)
        nests = list(map(trees.tensors, self.arguments.nests))
        self.counts = list(map(len, nests))
        flat = list(itertools.chain(*nests))
        self.moves = [not folding.is_size(x.shape[1], 1) for x in flat]
        self.moving, self.fixed = trees.split(flat, self.moves)

    def __call__(self, fixed, moving):
        flat = iter(trees.merge(moving, fixed, self.moves))
        tensors = [list(itertools.islice(flat, n)) for n in self.counts]
        nests = map(trees.pack_tensors, self.arguments.nests, tensors)
        outputs, masks = self.call(self.arguments.with_nests(list(nests)))
        return outputs, masking.as_tensors(masks)

    def valid(self, fixed, moving):
        """Which steps are valid, `(batch, steps)`."""
        *_, valid = trees.merge(moving, fixed, self.moves)
        return valid

    def count_valid(self, fixed, moving):
        return ops.sum(ops.cast(self.valid(fixed, moving), "int32"))


def _known(x, time):
    """Gives `x` a known time, if its own time is unknown until run time."""
    x = ops.convert_to_tensor(x)
    if isinstance(x.shape[1], int) or not isinstance(time, int):
        return x
    return folding.align(x, folding.sizes(x)[0], time)


def _attempt(call, layer, time, options):
    used = variables.used_by(layer)
    values = variables.values_of(used, layer)
    given = remat.values_for(layer, values) if options.remat else values
    at_hand = folding.has_values([*call.moving, *call.fixed][0])
    chunks = Chunks(
        _stateless_call(call, layer, used, given, options),
        call.fixed,
        call.moving,
        options.steps,
        remat.recompute if options.remat and not options.in_parts else None,
        at_hand,
        options.parts,
    )
    # Eager calls run in order. Where all activations are kept, order does not
    # matter, and TensorFlow runs some calls in parallel.
    keeps_all = options.training is True and bool(layer.trainable_variables)
    in_any_order = not options.remat and (at_hand or keeps_all)
    carry = Carry(given, {}, None if in_any_order else ops.zeros(()))
    outputs, carry = chunks.run(carry, time)
    variables.assign(used, layer, given, carry.values)
    return outputs, losses.means(carry.losses)


def _stateless_call(call, layer, used, values, options):
    shared_seeds = contextlib.nullcontext
    if options.share_randomness:
        shared_seeds = randomness.shared_seeds(used, values)
    stateless_call = StatelessCall(
        call,
        layer,
        used,
        shared_seeds,
        options.steps is None and (options.in_parts or options.parts is None),
        call.count_valid if options.skip_masked else None,
    )
    if not options.skip_masked:
        return stateless_call
    cls = SelectiveCall if options.all_at_once else ConditionalCall
    if options.in_parts:
        stateless_call = _call_on_part(stateless_call, options)
    return cls(stateless_call, call.valid)


def _call_on_part(call, options):
    """Makes a call on a part, where all parts together must equal one call.

    The backward pass recomputes the largest part, or with `remat` all parts:
    JAX keeps the activations of a skipped part too, as zeros.
    """
    recomputed = remat.recompute(call) if hasattr(keras, "remat") else call
    least = 1 if options.remat else max(options.parts)

    def call_part(token, fixed, values, moving, sizes):
        made = recomputed if sum(sizes) >= least else call
        token, results = made(token, fixed, values, moving, sizes)
        _, updates, losses_of_part = results
        if losses_of_part or randomness.others_change(call.variables, updates):
            raise CountsCallsError
        return token, results

    return call_part

"""Several calls of a layer in order, each on a few time steps.

A call is made a function of tensors alone: the layer's variables are read and
written in a `StatelessScope`. So it can run in a compiled loop, and once more
in the backward pass.
"""

import collections
import contextlib
import contextvars
import functools
import itertools
import math
import operator
import weakref
from collections.abc import Callable

import keras
from keras import ops
from keras import tree

from keras_td import folding
from keras_td import masking
from keras_td import randomness
from keras_td.scopes import is_recomputed
from keras_td.scopes import uncast
from keras_td.scopes import uncompiled

# Of a compiled loop, a turn takes time and a call in it compilation.
CALLS_PER_TURN = 2
# So few calls need no loop.
FEW_CALLS = 8


def call_in_order(
    fn,
    layer,
    nests,
    time,
    steps,
    training=None,
    remat=False,
    share_randomness=False,
):
    """Calls a layer on all time steps, on a few of them at a time.

    Args:
        fn: Function that calls `layer` on a list of nests of tensors
            `(batch, steps, ...)`, and returns such a nest.
        layer: The layer, built. Its state passes from each call to the next.
        nests: List of nests of tensors `(batch, time, ...)`. A tensor whose
            time is 1 is used in every call.
        time: The number of time steps.
        steps: How many of them a call sees, but the first, which sees what
            remains.
        training: Whether the layer trains.
        remat: Whether the backward pass computes each call again.
        share_randomness: Whether every call draws the same random numbers.

    Returns:
        Tuple of the nest of tensors `(batch, time, ...)`, and of the losses
        that the calls added, averaged over the steps.
    """
    arguments = fn, layer, nests, time, steps, training, remat, share_randomness
    apart = (
        randomness.kept_apart if share_randomness else contextlib.nullcontext
    )
    while True:
        try:
            with apart():
                return _call_in_order(*arguments)
        except _UntrackedError as error:
            _remember(layer, error)


def _call_in_order(
    fn,
    layer,
    nests,
    time,
    steps,
    training,
    remat,
    share_randomness,
):
    nests = [folding.map_tensors(lambda x: _known(x, time), n) for n in nests]
    flat = [x for nest in nests for x in folding.tensors(nest)]
    moves = [not folding.is_size(x.shape[1], 1) for x in flat]
    moving, fixed = _split(flat, moves)
    counts = [len(folding.tensors(nest)) for nest in nests]

    def on_lists(fixed, moving):
        flat = iter(_merge(moving, fixed, moves))
        parts = [list(itertools.islice(flat, count)) for count in counts]
        return fn(list(map(folding.pack_tensors, nests, parts)))

    variables = _variables(layer)
    shared = _may_share_values(variables, layer)
    values = uncast(_values, variables, shared)
    if remat and not _may_recompute(layer):
        # TensorFlow's variables, if no tensors are made of them, get gradients
        # twice.
        values = list(map(_as_tensor, values))
    drawing: Callable = contextlib.nullcontext
    if share_randomness:
        drawing = _drawing_alike(variables, values)
    weigh = steps is not None
    call = _stateless(on_lists, layer, variables, drawing, weigh)
    again = _remat if remat else lambda call: call
    run = functools.partial(_run, again(call), fixed)
    loop = functools.partial(_loop, call, again, fixed, values)

    at_hand = folding.has_values(flat[0])
    # Where nothing is compiled, calls are in order; where all activations are
    # kept, it does not matter, and TensorFlow does some side by side.
    keeps_all = training is True and bool(layer.trainable_variables)
    done = ops.zeros(()) if remat or not (at_hand or keeps_all) else None
    start: tuple = values, {}, done
    if steps is None:
        outputs, state = run(start, moving, [[time]])
    elif not isinstance(time, int):
        outputs, state = _in_unknown_time(run, loop, start, moving, time, steps)
    else:
        outputs, state = _in_known_time(
            run, loop, start, moving, time, steps, remat, at_hand
        )
    # What no call changes is the same tensor all along.
    changed = [a is not b for a, b in zip(values, state[0], strict=True)]
    if any(map(operator.and_, changed, shared)):
        # Gradients would be those of what is assigned to it below.
        _assigns_weights.add(layer)
        raise _UntrackedError([])
    if any(changed):
        updates, _ = _split(zip(variables, state[0], strict=True), changed)
        uncast(_assign, updates)
    return outputs, _means(state[1])


def _known(x, time):
    """Repeats a step where it is not known before the run that there is one."""
    if isinstance(x.shape[1], int) or not isinstance(time, int):
        return x
    return folding.align(x, folding.sizes(x)[0], time)


def _in_known_time(run, loop, start, moving, time, steps, one_by_one, at_hand):
    """Calls, where they are many and compiled, in a loop if they fit in it."""
    calls = max(-(-time // steps), 1)
    sizes = [time - (calls - 1) * steps] + [steps] * (calls - 1)
    of_turn = [steps] * (1 if one_by_one else CALLS_PER_TURN)
    turns = time // steps // len(of_turn)
    if at_hand or calls <= (1 if one_by_one else FEW_CALLS):
        turns = 0
    sizes = sizes[: calls - turns * len(of_turn)]
    if not sizes:
        # Of a call that nobody uses, a compiled program holds nothing.
        _, probed = run(start, _cut(moving, 0, steps), [[steps]])
        zeros = {
            key: tuple(map(ops.zeros_like, both))
            for key, both in probed[1].items()
        }
        state = start[0], zeros, start[2]
        return loop(probed, state, moving, turns, of_turn)
    groups = [[size] for size in sizes] if one_by_one else [sizes]
    split = sum(sizes)
    outputs, state = run(start, _cut(moving, 0, split), groups)
    if turns:
        rest = _cut(moving, split, time)
        later, state = loop(state, state, rest, turns, of_turn)
        outputs = _concatenate([outputs, later])
    return outputs, state


def _in_unknown_time(run, loop, start, moving, time, steps):
    """Calls on a number of time steps that only the run tells."""
    moving = [folding.align(x, folding.sizes(x)[0], time) for x in moving]
    calls = ops.maximum(-(-time // steps), 1)
    split = time - (calls - 1) * steps
    outputs, once = run(start, _cut(moving, 0, split), [[split]])
    # A loop has to turn: where one call is enough, it turns once for nothing,
    # on copies of a step, as gradients of other values might be no numbers.
    turns = ops.maximum(calls - 1, 1)
    copies = (turns - calls + 1) * steps
    rest = [folding.pad_time(x[:, split:time], x, copies) for x in moving]
    later, state = loop(once, once, rest, turns, [steps])
    later = folding.map_tensors(lambda y: y[:, copies:], later)
    state = tree.map_structure(
        lambda a, b: a if a is b else ops.where(calls > 1, b, a), once, state
    )
    return _concatenate([outputs, later]), state


def _stateless(fn, layer, variables, drawing, weigh):
    """Makes the values of variables an argument, and their updates a result.

    Returns:
        Function that calls `fn` on `sizes` steps of tensors, one part after the
        other. It returns a zero that is there once all is done, and a tuple of
        what `fn` returns, of the new value of each variable or `None` where it
        stays, and of the losses that were added, as `_add` sums them.
    """

    def call(done, fixed, values, moving, sizes):
        parts, start = [], 0
        losses: dict = {}
        with _Scope(layer, variables, values) as scope, uncompiled(layer):
            before = after = [scope.get_current_value(v) for v in variables]
            for size in sizes:
                stop = start + size
                part = [_after(done, x) for x in _cut(moving, start, stop)]
                with drawing():
                    parts.append(fn(fixed, part))
                if scope.untracked:
                    raise _UntrackedError(scope.untracked.values())
                after = [
                    _pass_on(v, old, scope)
                    for v, old in zip(variables, after, strict=True)
                ]
                added = _take_losses(scope, layer)
                losses = _add(losses, _weighted(added, size if weigh else None))
                done, start = _once_there(done, parts[-1]), stop
        updates = [
            None if new is old else new
            for old, new in zip(before, after, strict=True)
        ]
        return done, (_concatenate(parts), updates, losses)

    return call


class _Scope(keras.StatelessScope):
    """Notes which variables are used that it was given no value of."""

    def __init__(self, layer, variables, values):
        super().__init__(collect_losses=True)
        self.layer = layer
        self.untracked = {}
        # Keras would cast them, in the call of a layer of mixed precision.
        for variable, value in zip(variables, values, strict=True):
            self.state_mapping[id(variable)] = value

    def add_update(self, update):
        variable, value = update
        self._note(variable)
        if not self._is_in_one_of_keras():
            # Assigned outside of a scope, it would have no gradients but those
            # of the variable.
            value = ops.stop_gradient(value)
            if variable.trainable:
                old = self.get_current_value(variable)
                value = value + (old - ops.stop_gradient(old))
        super().add_update((variable, value))

    def _is_in_one_of_keras(self):
        """Whether variables have their values of a scope without this one."""
        outer = self.original_scope
        while isinstance(outer, _Scope):
            outer = outer.original_scope
        return outer is not None

    def get_current_value(self, variable):
        value = super().get_current_value(variable)
        if value is not None:
            return value
        self._note(variable)
        outer = self.original_scope
        return outer.get_current_value(variable) if outer else None

    def _note(self, variable):
        if id(variable) in self.state_mapping:
            return
        if not (_is_new(variable) and self.layer in _makes_anew):
            self.untracked[id(variable)] = variable


class _UntrackedError(Exception):
    """The layer uses variables that Keras does not know it to have.

    Such are the states of recurrent layers, metrics, the variables of layers
    that a `Lambda` calls, and the seed that all draw from who have none.
    """

    def __init__(self, variables):
        super().__init__()
        self.variables = list(variables)
        self.made_anew = any(map(_is_new, self.variables))


def _is_new(variable):
    """Whether a call has just made it, as it is not initialized in a scope."""
    return variable._value is None


# Of each layer, the variables that it was found to use.
_untracked: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
# Layers that made variables in a call. If they make others in the next, these
# are no state; if not, they are known by then.
_makes_anew: weakref.WeakSet = weakref.WeakSet()


def _remember(layer, found):
    _untracked.setdefault(layer, []).extend(map(weakref.ref, found.variables))
    if found.made_anew:
        _makes_anew.add(layer)


def _variables(layer):
    """All variables that a layer uses, as far as is known."""
    found = [reference() for reference in _untracked.get(layer, ())]
    # Older Keras has variables of TensorFlow too, in a `TFSMLayer`.
    found += [v for v in layer.variables if isinstance(v, keras.Variable)]
    return list({id(v): v for v in found if v is not None}.values())


def _may_share_values(variables, layer):
    """Which variables no call is known to assign to: those that are trained."""
    if layer in _assigns_weights:
        return [False] * len(variables)
    weights = {
        id(v)
        for inner in layer._flatten_layers()
        for v in inner._trainable_variables
    }
    return [v.trainable or id(v) in weights for v in variables]


def _values(variables, shared):
    # PyTorch changes a variable in place while its old value has gradients.
    return [
        v.value if is_shared else ops.copy(v.value)
        for v, is_shared in zip(variables, shared, strict=True)
    ]


def _assign(updates):
    for variable, value in updates:
        variable.assign(value)


def _pass_on(variable, old, scope):
    """Passes a variable to the next call, but no gradients through its state.

    A variable of TensorFlow or PyTorch would not either.
    """
    new = scope.get_current_value(variable)
    if new is old or variable.trainable:
        return new
    new = ops.stop_gradient(new)
    scope.add_update((variable, new))
    return new


def _take_losses(scope, layer):
    """Takes the losses that the layer has added out of the scope.

    Returns:
        Dict of the losses. The layer inside that adds one and the place of it
        among those that it adds tell which it is.
    """
    losses, scope.losses = scope.losses, []
    places: collections.Counter = collections.Counter()
    taken = {}
    inner_layers = layer._flatten_layers() if losses else []
    # Keras knows a loss by its id, which another gets when this one is gone.
    owners = {
        key: number
        for number, inner in enumerate(inner_layers)
        for key in _forget(inner._loss_ids, losses)
    }
    for loss in losses:
        owner = owners.get(id(loss), -1)
        taken[owner, places[owner], _dtype(loss)] = loss
        places[owner] += 1
    return taken


def _forget(ids, losses):
    found = ids & set(map(id, losses))
    ids -= found
    return found


def _weighted(losses, size):
    """What each loss adds to its mean over the calls: a sum and a weight.

    In 16 bits, neither has room for many steps.
    """
    weighted = {}
    for key, loss in losses.items():
        if size is not None and len(loss.shape):
            raise ValueError(
                "Where the layer is called on some steps at a time "
                "(`steps_per_call`, `share_randomness`), the losses that it "
                "adds must be scalars, of which the mean over the steps is "
                "taken. Reduce them with `keras.ops.mean`. Received: a loss of "
                f"shape {tuple(loss.shape)}."
            )
        wide = _dtype(loss) if _dtype(loss) == "float64" else "float32"
        weight = ops.cast(1 if size is None else size, wide)
        weighted[key] = ops.cast(loss, wide) * weight, weight
    return weighted


def _add(totals, losses):
    """Sums losses, and their weights, of calls that need not add the same."""
    both = dict(totals)
    for key, (loss, weight) in losses.items():
        total, sum_of_weights = both.get(key, (0, 0))
        both[key] = total + loss, sum_of_weights + weight
    return both


def _means(totals):
    """The mean of each loss over the steps of the calls that add it."""
    return [
        ops.cast(total / ops.maximum(weight, 1), dtype)
        for (_, _, dtype), (total, weight) in totals.items()
    ]


def _dtype(x):
    return keras.backend.standardize_dtype(x.dtype)


def _drawing_alike(variables, values):
    """Lets every call draw the random numbers of the first."""
    draws = randomness.Draws()
    seeds = [
        (variable, value)
        for variable, value in zip(variables, values, strict=True)
        if variable.name == "seed_generator_state"
    ]

    @contextlib.contextmanager
    def drawing():
        for variable, seed in seeds:
            variable.assign(seed)
        with draws.from_the_start(), randomness.from_seeds():
            yield

    return drawing


def _run(call, fixed, state, tensors, groups):
    """Does each group of calls, on `sizes` steps, one after the other."""
    (values, totals, done), parts, start = state, [], 0
    for sizes in groups:
        stop = start + sum(sizes)
        part = _cut(tensors, start, stop)
        done, results = call(done, fixed, values, part, sizes)
        outputs, updates, losses = results
        values = [
            old if new is None else new
            for old, new in zip(values, updates, strict=True)
        ]
        totals = _add(totals, losses)
        parts.append(outputs)
        start = stop
    return _concatenate(parts), (values, totals, done)


def _loop(call, again, fixed, start, probed, state, tensors, turns, sizes):
    """Does `_run` in each turn of a loop, on `sizes` steps."""
    values, totals, done = state
    # Calls change the variables that a first one has changed.
    changed = [a is not b for a, b in zip(probed[0], start, strict=True)]
    sequences, part_of_turn = _sequences(tensors, turns, sum(sizes))
    carried, constant = _split(values, changed)
    keys, structure = sorted(totals), None

    def as_list(done):
        return [] if done is None else [done]

    @again
    def run_turn(done, fixed, constant, inputs, index, carried, sums):
        nonlocal structure
        totals = dict(zip(keys, sums, strict=True))
        state = _merge(carried, constant, changed), totals, done
        part = part_of_turn(inputs, index)
        outputs, state = _run(call, fixed, state, part, [sizes])
        structure = _without_tensors(outputs)
        values, totals, done = state
        if sorted(totals) != keys:
            raise ValueError(
                "In a compiled function, a layer that is called on some steps "
                "at a time (`steps_per_call`, `share_randomness`) must add the "
                "same losses in each call. Received: one in a later call that "
                "the first has not."
            )
        carried, _ = _split(values, changed)
        sums = [totals[key] for key in keys]
        return done, (tuple(folding.tensors(outputs)), carried, sums)

    def turn(inputs, states):
        index, zeros, carried, sums = states
        outside = _in_loop.set(True)
        try:
            done, (outputs, carried, sums) = run_turn(
                *zeros or [None], fixed, constant, inputs, index, carried, sums
            )
        finally:
            _in_loop.reset(outside)
        # Keras's loop on PyTorch fixes the size of the first axis of outputs.
        outputs = tuple(y[None] for y in outputs)
        return outputs, [index + 1, as_list(done), carried, sums]

    sums = [totals[key] for key in keys]
    states = [ops.zeros((), "int32"), as_list(done), carried, sums]
    _, outputs, states = _Loop(turn).inner_loop(sequences, states, None)
    _, zeros, carried, sums = states
    [done] = zeros or [None]
    # (1, turns, batch, steps, ...) -> (batch, time, ...)
    outputs = folding.pack_tensors(structure, map(folding.merge_turns, outputs))
    totals = dict(zip(keys, sums, strict=True))
    return outputs, (_merge(carried, constant, changed), totals, done)


class _Loop(keras.layers.RNN):
    """Keras's loop over time, around any function.

    `keras.ops.scan` would do, could XLA find its gradients on TensorFlow.
    """

    def __init__(self, turn):
        super().__init__(_Turn(turn), return_sequences=True, name="loop")


class _Turn:
    state_size = ()

    def __init__(self, call):
        self.call = call

    def __call__(self, inputs, states):
        return self.call(inputs, states)


def _sequences(tensors, turns, steps):
    """What the loop reads of tensors `(batch, time, ...)`.

    Returns:
        Tuple of the tensor `(1, turns, features)` that the loop goes through,
        and of the function that gives the tensors of a turn.
    """
    stacked = [folding.split_turns(x, turns, steps) for x in tensors]
    floats = [_is_a(x, "float") for x in tensors]
    read, indexed = _split(stacked, floats)
    specs = [(folding.sizes(x)[1:], x.dtype) for x in read]
    read = [ops.reshape(x, (1, turns, -1)) for x in read]
    sequences = ops.concatenate(read or [ops.zeros((1, turns, 1))], axis=-1)

    def part_of_turn(inputs, index):
        read, start = [], 0
        for shape, dtype in specs:
            end = start + math.prod(shape)
            x = ops.cast(inputs[0, start:end], dtype)
            read.append(ops.reshape(x, shape))
            start = end
        at_index = [ops.take(x, index, axis=0) for x in indexed]
        return _merge(read, at_index, floats)

    return sequences, part_of_turn


def _after(done, x):
    """Lets `x` wait for `done`, a zero, as compilers keep to no other order."""
    if done is None or _dtype(x) in ("bool", "string"):
        return x
    return x + ops.cast(ops.stop_gradient(done), x.dtype)


def _once_there(done, nest):
    """Lets `done` wait for the tensors of a nest."""
    if done is None:
        return None
    for x in folding.tensors(nest):
        first = ops.reshape(x, (-1,))[:1]
        zeros = ops.where(ops.equal(first, first), 0.0, 0.0)
        done = done + ops.sum(zeros)
    return done


# Whether a turn of a loop is at hand.
_in_loop: contextvars.ContextVar = contextvars.ContextVar(
    "in_loop", default=False
)
# Layers that assign to what they train.
_assigns_weights: weakref.WeakSet = weakref.WeakSet()


def _may_recompute(layer):
    """Whether a layer inside may use `keras.remat` by itself."""
    return any(
        is_recomputed(inner)
        or not masking.is_from(type(inner).call, "keras", "keras_td")
        for inner in layer._flatten_layers()
    )


def _remat(call):
    """`keras.remat` for a function of any nests.

    Only floats go in and come out of it: for all else that does, TensorFlow
    asks for gradients that are not there.
    """

    def call_remat(done, fixed, values, *nests):
        nests = [fixed, values, *nests]
        flat = folding.flatten(nests)
        if _in_loop.get():
            # There, TensorFlow finds no gradients of variables. Elsewhere it
            # does, and finds no others for a layer inside that is computed
            # again by itself.
            flat = list(map(_as_tensor, flat))
        differentiable = [
            _has_gradients(x) and not _is_variable(x) for x in flat
        ]
        given, others = _split(flat, differentiable)
        draws, structure = randomness.Draws(), None

        def on_floats(done, *given):
            nonlocal structure
            flat = _merge(given, others, differentiable)
            fixed, values, *nests_again = folding.pack(nests, flat)
            first = structure is None
            with draws.from_the_start(), _passing_errors(not first):
                done, results = call(
                    done, fixed, _tie(values, done), *nests_again
                )
            # Tensors here would be kept by the function that makes them.
            structure = _without_tensors(results)
            return [done, *map(_to_floats, folding.tensors(results))]

        done, *found = keras.remat(on_floats)(done, *given)
        pairs = zip(found, folding.tensors(structure), strict=True)
        return done, folding.pack_tensors(
            structure, [_from_floats(x, like) for x, like in pairs]
        )

    return call_remat


def _tie(values, done):
    """Lets the gradient of `done` wait for those of the variables.

    TensorFlow computes a call again once the gradient of its first result is
    there. So the backward pass goes call by call too.
    """
    return [
        v + ops.cast(done, v.dtype)
        if _has_gradients(v) and not _is_variable(v)
        else v
        for v in values
    ]


@contextlib.contextmanager
def _passing_errors(again):
    """Lets an error pass as it is where a call is computed again.

    PyTorch ends a recomputation with an exception. Keras would make another of
    it, which keeps all tensors of the call until Python collects its garbage.
    """
    filtered = again and keras.config.is_traceback_filtering_enabled()
    if filtered:
        keras.config.disable_traceback_filtering()
    try:
        yield
    finally:
        if filtered:
            keras.config.enable_traceback_filtering()


def _without_tensors(nest):
    """The structure of a nest, with the dtypes of its tensors alone."""
    return folding.map_tensors(lambda x: keras.KerasTensor((), _dtype(x)), nest)


def _to_floats(x):
    """Makes floats of a tensor, 16 bits of an integer in each."""
    if not _is_a(x, "int", "bool"):
        return x
    digits, x = [], x if _bytes(x.dtype) > 2 else ops.cast(x, "int32")
    for _ in range(max(_bytes(x.dtype) // 2, 1) - 1):
        digits.append(x % 2**16)
        x = x // 2**16
    return ops.stack([ops.cast(d, "float32") for d in (*digits, x)])


def _from_floats(x, like):
    if not _is_a(like, "int", "bool"):
        return x
    dtype = _dtype(like)
    whole = dtype if _bytes(dtype) > 2 else "int32"
    digits = [ops.cast(d, whole) for d in ops.unstack(x)]
    number = functools.reduce(lambda a, b: a * 2**16 + b, digits[::-1])
    return ops.cast(number, dtype)


def _bytes(dtype):
    dtype = keras.backend.standardize_dtype(dtype)
    return 1 if dtype == "bool" else int(dtype.lstrip("uint")) // 8


def _split(items, flags):
    pairs = list(zip(items, flags, strict=True))
    return [x for x, f in pairs if f], [x for x, f in pairs if not f]


def _merge(chosen, others, flags):
    chosen, others = iter(chosen), iter(others)
    return [next(chosen if f else others) for f in flags]


def _cut(tensors, start, stop):
    return [x[:, start:stop] for x in tensors]


def _concatenate(nests):
    if len(nests) == 1:
        return nests[0]
    return folding.map_tensors(
        lambda *ys: ops.concatenate(ys, axis=1), nests[0], *nests[1:]
    )


def _is_variable(x):
    """Whether `x` is a variable of TensorFlow, and not a slice of one."""
    return hasattr(x, "assign_add")


def _as_tensor(x):
    return ops.reshape(x, x.shape) if _is_variable(x) else x


def _has_gradients(x):
    return _is_a(x, "float", "complex")


def _is_a(x, *kinds):
    """Whether the name of a tensor's dtype has one of `kinds` in it."""
    dtype = getattr(x, "dtype", None)
    name = "" if dtype is None else keras.backend.standardize_dtype(dtype)
    return any(kind in name for kind in kinds)

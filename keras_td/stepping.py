"""Several calls of a layer in order, each on a few time steps.

A call is made a function of tensors alone: the layer's variables are read and
written in a `StatelessScope`. So it can run in a compiled loop, and once more
in the backward pass.
"""

import contextlib
import functools
import math
import random
import warnings
from collections.abc import Callable

import keras
from keras import ops
from keras import tree

from keras_td import folding

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
            `(batch, steps, ...)`, given the number of these steps too, and
            returns such a nest.
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
    state = random.getstate()
    try:
        return _call_in_order(*arguments)
    except _UntrackedError as error:
        random.setstate(state)
        return _call_in_order(*arguments, variables=error.variables)


def _call_in_order(
    fn,
    layer,
    nests,
    time,
    steps,
    training,
    remat,
    share_randomness,
    variables=None,
):
    flat = [x for nest in nests for x in folding.tensors(nest)]
    moves = [x.shape[1] != 1 for x in flat]
    moving, fixed = _split(flat, moves)

    def on_lists(fixed, moving, size):
        flat = iter(_merge(moving, fixed, moves))
        return fn([_pack(nest, flat) for nest in nests], size)

    strict = variables is None
    if strict:
        # Older Keras has variables of TensorFlow too, in a `TFSMLayer`.
        variables = [
            v for v in layer.variables if isinstance(v, keras.Variable)
        ]
    # PyTorch changes a variable in place while its old value has gradients.
    values = [
        ops.convert_to_tensor(v) if v.trainable else ops.copy(v)
        for v in variables
    ]
    drawing: Callable = contextlib.nullcontext
    if share_randomness:
        drawing = _drawing_alike(layer, variables, values)
    call = _stateless(on_lists, layer, variables, drawing, strict)
    again = _remat if remat else lambda call: call
    run = functools.partial(_run, again(call), fixed)
    loop = functools.partial(_loop, call, again, fixed, values)

    at_hand = _has_values(flat[0])
    # Where nothing is compiled, calls are in order; where all activations are
    # kept, it does not matter, and TensorFlow does some side by side.
    keeps_all = training is True and bool(layer.trainable_variables)
    done = ops.zeros(()) if remat or not (at_hand or keeps_all) else None
    start: tuple = values, [], done
    if steps is None:
        outputs, state = run(start, moving, [[time]])
    elif not isinstance(time, int):
        outputs, state = _in_unknown_time(run, loop, start, moving, time, steps)
    else:
        outputs, state = _in_known_time(
            run, loop, start, moving, time, steps, remat, at_hand
        )
    for variable, old, new in zip(variables, values, state[0], strict=True):
        # What no call changes is the same tensor all along.
        if new is not old:
            variable.assign(new)
    return outputs, [total / _as_float(time, total) for total in state[1]]


def _as_float(time, like):
    return ops.cast(ops.maximum(time, 1), like.dtype)


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
        state = start[0], list(map(ops.zeros_like, probed[1])), start[2]
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
    moving = [folding.align(x, time) for x in moving]
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


def _stateless(fn, layer, variables, drawing, strict):
    """Makes the values of variables an argument, and their updates a result.

    Returns:
        Function that calls `fn` on `sizes` steps of tensors, one part after the
        other. It returns a zero that is there once all is done, and a tuple of
        what `fn` returns, of the new value of each variable or `None` where it
        stays, and of the losses that were added, times the steps.
    """

    def call(done, fixed, values, moving, sizes):
        parts, start = [], 0
        losses: list = []
        with _Scope(zip(variables, values, strict=True)) as scope:
            before = after = [scope.get_current_value(v) for v in variables]
            for size in sizes:
                stop = start + size
                part = [_after(done, x) for x in _cut(moving, start, stop)]
                with drawing():
                    parts.append(fn(fixed, part, size))
                if scope.untracked and strict:
                    raise _UntrackedError(
                        [*variables, *scope.untracked.values()]
                    )
                after = [
                    _pass_on(v, old, scope)
                    for v, old in zip(variables, after, strict=True)
                ]
                added = _take_losses(scope, layer)
                weighted = [x * ops.cast(size, x.dtype) for x in added]
                losses = _add(losses, weighted)
                done, start = _once_there(done, parts[-1]), stop
        updates = [
            None if new is old else new
            for old, new in zip(before, after, strict=True)
        ]
        return done, (_concatenate(parts), updates, losses)

    return call


class _Scope(keras.StatelessScope):
    """Notes which variables are used that it was given no value of."""

    def __init__(self, mapping):
        super().__init__(mapping, collect_losses=True)
        self.untracked = {}

    def add_update(self, update):
        variable, _ = update
        if id(variable) not in self.state_mapping:
            self.untracked[id(variable)] = variable
        super().add_update(update)

    def get_current_value(self, variable):
        value = super().get_current_value(variable)
        if value is not None:
            return value
        self.untracked[id(variable)] = variable
        outer = self.original_scope
        return outer.get_current_value(variable) if outer else None


class _UntrackedError(Exception):
    """The layer uses variables that Keras does not know it to have.

    Such are the states of recurrent layers, metrics, the variables of layers
    that a `Lambda` calls, and the seed that all draw from who have none.

    Args:
        variables: All that it uses, those that Keras knows among them.
    """

    def __init__(self, variables):
        super().__init__(variables)
        self.variables = variables


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
    """Takes the losses that the layer has added out of the scope."""
    losses, scope.losses = scope.losses, []
    # Keras knows a loss by its id, which another gets when this one is gone.
    ids = set(map(id, losses))
    for inner in layer._flatten_layers() if ids else ():
        inner._loss_ids.difference_update(ids)
    return losses


def _add(totals, losses):
    return list(map(ops.add, totals, losses)) if totals else losses


def _drawing_alike(layer, variables, values):
    """Lets every call draw the random numbers of the first."""
    # Some of Keras's augmentations choose operations with Python's `random`.
    python_state = random.getstate()
    seeds = [
        (variable, value)
        for variable, value in zip(variables, values, strict=True)
        if variable.name == "seed_generator_state"
    ]
    # Keras has a quicker dropout on PyTorch, for a generator that was given no
    # seed: it would draw from PyTorch's state, and not from this one.
    unseeded = [
        generator
        for inner in layer._flatten_layers()
        for generator in inner._seed_generators
        if generator._initial_seed is None
    ]

    @contextlib.contextmanager
    def drawing():
        random.setstate(python_state)
        for variable, seed in seeds:
            variable.assign(seed)
        for generator in unseeded:
            generator._initial_seed = 0
        try:
            yield
        finally:
            for generator in unseeded:
                generator._initial_seed = None

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
    structure = None

    def as_list(done):
        return [] if done is None else [done]

    @again
    def run_turn(done, fixed, constant, inputs, index, carried, totals):
        nonlocal structure
        state = _merge(carried, constant, changed), totals, done
        part = part_of_turn(inputs, index)
        structure, state = _run(call, fixed, state, part, [sizes])
        values, totals, done = state
        carried, _ = _split(values, changed)
        return done, (tuple(folding.tensors(structure)), carried, totals)

    def turn(inputs, states):
        index, zeros, carried, totals = states
        done, (outputs, carried, totals) = run_turn(
            *zeros or [None], fixed, constant, inputs, index, carried, totals
        )
        return outputs, [index + 1, as_list(done), carried, totals]

    states = [ops.zeros((), "int32"), as_list(done), carried, totals]
    _, outputs, states = _Loop(turn).inner_loop(sequences, states, None)
    _, zeros, carried, totals = states
    [done] = zeros or [None]
    # (batch, turns, steps, ...) -> (batch, time, ...)
    outputs = _pack(structure, map(folding.merge_turns, outputs))
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
    dtype = keras.backend.standardize_dtype(x.dtype)
    if done is None or dtype in ("bool", "string"):
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


def _remat(call):
    """`keras.remat` for a function of any nests.

    Only floats go in and come out of it: for all else that does, TensorFlow
    asks for gradients that are not there.
    """

    def call_remat(done, fixed, values, *nests):
        nests = [fixed, values, *nests]
        flat = tree.flatten(nests)
        differentiable = [_has_gradients(x) for x in flat]
        given, others = _split(flat, differentiable)
        # TensorFlow's variables, if no tensors are made of them, get gradients
        # twice.
        given = [ops.reshape(x, folding.sizes(x)) for x in given]
        structure = None
        python_state = random.getstate()

        def on_floats(done, *given):
            nonlocal structure
            flat = _merge(given, others, differentiable)
            fixed, values, *nests_again = tree.pack_sequence_as(nests, flat)
            first = structure is None
            with contextlib.nullcontext() if first else _again(python_state):
                done, structure = call(
                    done, fixed, _tie(values, done), *nests_again
                )
            return [done, *map(_to_floats, folding.tensors(structure))]

        with warnings.catch_warnings():
            # Backends that have no backward pass say so.
            warnings.filterwarnings("ignore", "Rematerialization")
            remat = keras.remat(on_floats)
        done, *found = remat(done, *given)
        found = iter(found)
        return done, folding.map_tensors(
            lambda x: _from_floats(next(found), x), structure
        )

    return call_remat


def _tie(values, done):
    """Lets the gradient of `done` wait for those of the variables.

    TensorFlow computes a call again once the gradient of its first result is
    there. So the backward pass goes call by call too.
    """
    return [
        v + ops.cast(done, v.dtype) if _has_gradients(v) else v for v in values
    ]


@contextlib.contextmanager
def _again(python_state):
    """Computes a call once more, with the choices of Python's `random`.

    PyTorch ends a recomputation with an exception, which is to pass as it is:
    Keras would make another of it, which keeps all tensors of the call until
    Python collects its garbage.
    """
    state = random.getstate()
    filtered = keras.config.is_traceback_filtering_enabled()
    random.setstate(python_state)
    keras.config.disable_traceback_filtering()
    try:
        yield
    finally:
        random.setstate(state)
        if filtered:
            keras.config.enable_traceback_filtering()


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
    dtype = keras.backend.standardize_dtype(like.dtype)
    whole = dtype if _bytes(dtype) > 2 else "int32"
    digits = [ops.cast(d, whole) for d in ops.unstack(x)]
    number = functools.reduce(lambda a, b: a * 2**16 + b, digits[::-1])
    return ops.cast(number, dtype)


def _bytes(dtype):
    dtype = keras.backend.standardize_dtype(dtype)
    return 1 if dtype == "bool" else int(dtype.lstrip("uint")) // 8


def _has_values(x):
    """Whether a tensor is at hand, outside of any compiled function."""
    try:
        ops.convert_to_numpy(x[:0, :0])
    except Exception:
        return False
    return True


def _pack(nest, tensors):
    """Puts the next tensors in place of those of `nest`."""
    tensors = iter(tensors)
    return folding.map_tensors(lambda _: next(tensors), nest)


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


def _has_gradients(x):
    return _is_a(x, "float", "complex")


def _is_a(x, *kinds):
    """Whether the name of a tensor's dtype has one of `kinds` in it."""
    dtype = getattr(x, "dtype", None)
    name = "" if dtype is None else keras.backend.standardize_dtype(dtype)
    return any(kind in name for kind in kinds)

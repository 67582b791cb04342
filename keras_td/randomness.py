"""Makes several calls of a layer draw the same random numbers.

Keras's draws come from seeds, which are variables. Two kinds do not: those of
Python's `random`, with which a layer may choose what to do, and on PyTorch
those of a dropout without a seed. Their states are global to the process: other
threads draw from them meanwhile, so they are left unchanged.
"""

import contextlib
import functools
import random
import threading

import keras

from keras_td import internals
from keras_td import threads


class Draws:
    """What a call draws from Python's `random`, for other calls to repeat."""

    def __init__(self):
        self.seed = None

    @contextlib.contextmanager
    def replayed(self):
        """Makes this thread draw these numbers, from the first on."""
        outer = _thread.source
        with drawing_per_thread():
            _thread.source = _Source(self, outer)
            try:
                yield
            finally:
                _thread.source = outer


def drawing_per_thread():
    """Keeps the draws of threads apart, for longer than one of `Draws` does."""
    return threads.patched(_FUNCTIONS)


@contextlib.contextmanager
def seeded():
    """Makes this thread draw only from Keras's seeds.

    On PyTorch, Keras has a faster dropout for a generator without a given seed:
    it would draw from PyTorch's state.
    """
    outer, _thread.seeded = _thread.seeded, True
    try:
        with threads.patched(_INITIAL_SEED):
            yield
    finally:
        _thread.seeded = outer


def shared_seeds(variables, values):
    """Makes a context in which each call draws the numbers of the first.

    Args:
        variables: The variables of a layer, among them the states of seeds.
        values: Their values before the first call.
    """
    draws = Draws()
    seeds = [
        (variable, value)
        for variable, value in zip(variables, values, strict=True)
        if is_seed(variable)
    ]

    @contextlib.contextmanager
    def sharing():
        for variable, seed in seeds:
            # A variable that is assigned to counts as changed.
            if variable.value is not seed:
                variable.assign(seed)
        with draws.replayed(), seeded():
            yield

    return sharing


def others_change(variables, updates):
    """Whether a call updates variables that are not seeds."""
    return any(
        update is not None and not is_seed(variable)
        for variable, update in zip(variables, updates, strict=True)
    )


def is_seed(variable):
    return variable.name == "seed_generator_state"


class _Thread(threading.local):
    source: "_Source | None" = None
    seeded = False


_thread = _Thread()


class _Source:
    """Python's random number generator for one thread."""

    def __init__(self, draws, outer):
        self.draws = draws
        self.outer = outer

    @functools.cached_property
    def generator(self):
        if self.draws.seed is None:
            _thread.source = self.outer
            self.draws.seed = random.getrandbits(64)
            _thread.source = self
        return random.Random(self.draws.seed)


class _InitialSeed:
    """The seed that a generator was given, or any seed if it was given none.

    It replaces the attribute of all generators, as Keras has some that no layer
    tracks.
    """

    def __get__(self, generator, cls):
        seed = vars(generator)[internals.INITIAL_SEED]
        return 0 if seed is None and _thread.seeded else seed

    def __set__(self, generator, seed):
        vars(generator)[internals.INITIAL_SEED] = seed

    def patch(self):
        setattr(keras.random.SeedGenerator, internals.INITIAL_SEED, self)

    def restore(self):
        delattr(keras.random.SeedGenerator, internals.INITIAL_SEED)


_INITIAL_SEED = _InitialSeed()


class _Functions(tuple):
    """Functions of modules that draw for the thread that calls them."""

    def patch(self):
        for function in self:
            function.patch()

    def restore(self):
        for function in self:
            function.restore()


class _Function(threads.Function):
    """A function that draws for the thread that calls it."""

    def __call__(self, *args, **kwargs):
        if _thread.source is None:
            return self.function(*args, **kwargs)
        return getattr(_thread.source.generator, self.name)(*args, **kwargs)


class _Dropout(_Function):
    """`keras.random.dropout`, which draws from Keras's seed on PyTorch too.

    There, it only does so if it is given a `noise_shape`.
    """

    def __call__(self, inputs, rate, noise_shape=None, seed=None):
        if _thread.source and noise_shape is None:
            noise_shape = (None,) * len(inputs.shape)
        return self.function(inputs, rate, noise_shape, seed)


# The functions of `random` are methods of one generator, and call these two.
_GENERATOR = random._inst
_FUNCTIONS = _Functions(
    (
        _Dropout(keras.random, "dropout"),
        _Function(_GENERATOR, "random"),
        _Function(_GENERATOR, "getrandbits"),
        *(
            _Function(random, name)
            for name in random.__all__
            if getattr(getattr(random, name), "__self__", None) is _GENERATOR
        ),
    )
)

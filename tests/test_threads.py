"""State of the process, not of the layer, is read but left unchanged."""

import contextlib
import random
import threading
import warnings
from concurrent import futures
from random import choice
from random import uniform

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from backends import needs
from keras_td import TimeDistributed
from modes import MODES
from modes import options_named
from reference import as_numpy
from reference import assert_close
from reference import normal

SHARED = {"share_randomness": True}
EACH_OPTION = [
    {},
    {"steps_per_call": 2},
    {"remat": True},
    SHARED,
    {"skip_masked": True},
]
each_that_draws_again = options_named(
    ["shared randomness", "remat", "2 steps, remat"]
)


class Chooses(keras.Layer):
    """Chooses a factor as Keras's augmentations do, with Python's `random`."""

    def call(self, inputs):
        return inputs * random.randrange(1, 10**6)


class Drops(keras.Layer):
    """Draws from Keras's global seed, as it has no seed."""

    def call(self, inputs):
        return keras.random.dropout(inputs, 0.5)


class Beside:
    """A thread that does something over and over."""

    def __init__(self, work):
        self.results, self.done = [], threading.Event()
        self.thread = threading.Thread(target=self.run, args=(work,))

    def run(self, work):
        while not self.done.wait(1e-5):
            self.results.append(work())

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.done.set()
        self.thread.join()


def assert_same_in_all_steps(values):
    np.testing.assert_array_equal(values, np.repeat(values[:, :1], 5, axis=1))


@needs("fresh dropout")
def test_a_dropout_without_a_seed_is_shared():
    td = TimeDistributed(Drops(), **SHARED)
    x = np.ones((4, 5, 40), "float32")

    first, second = as_numpy(td(x)), as_numpy(td(x))

    assert_same_in_all_steps(first)
    assert_same_in_all_steps(second)
    assert (first != second).any()
    np.testing.assert_allclose((first == 0).mean(), 0.5, atol=0.2)
    assert set(np.unique(first)) == {0, 2}


@needs("fresh dropout")
def test_a_dropout_that_keras_does_not_track_is_shared():
    drop = layers.Dropout(0.5)
    td = TimeDistributed(
        layers.Lambda(lambda x: drop(x, training=True)), **SHARED
    )
    x = np.ones((4, 5, 40), "float32")

    first, second = as_numpy(td(x)), as_numpy(td(x))

    assert_same_in_all_steps(first)
    assert_same_in_all_steps(second)
    assert (first != second).any()


def test_choices_of_python_are_shared_and_made_anew():
    td = TimeDistributed(Chooses(), **SHARED)
    x = np.ones((2, 5, 3), "float32")

    first, second = as_numpy(td(x)), as_numpy(td(x))

    assert_same_in_all_steps(first)
    assert (first != second).all()


def test_functions_that_a_layer_imported_are_shared_too():
    class Jitters(keras.Layer):
        def call(self, inputs):
            return inputs * uniform(1, 2) * choice(range(1, 10**6))

    td = TimeDistributed(Jitters(), **SHARED)

    assert_same_in_all_steps(as_numpy(td(np.ones((2, 5, 3), "float32"))))


def test_another_thread_draws_what_it_would_without_the_call():
    class Beside(keras.Layer):
        def call(self, inputs):
            thread = threading.Thread(target=draw)
            thread.start()
            thread.join()
            return inputs

    def draw():
        keras.utils.set_random_seed(1)
        drawn.append(
            [
                as_numpy(layers.Dropout(0.5)(x, training=True)),
                as_numpy(keras.random.dropout(x, 0.5)),
                random.random(),
            ]
        )

    drawn, x = [], ops.ones((4, 40))
    draw()

    TimeDistributed(Beside(), **SHARED)(np.ones((2, 1, 3), "float32"))

    alone, beside = drawn[0], drawn[-1]
    for a, b in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_dropout_of_whole_rows_stays_one():
    class DropsRows(keras.Layer):
        def call(self, inputs):
            return keras.random.dropout(inputs, 0.5, noise_shape=(None, 1))

    td = TimeDistributed(DropsRows(), **SHARED)

    values = as_numpy(td(np.ones((40, 5, 3), "float32")))

    assert_same_in_all_steps(values)
    np.testing.assert_array_equal(values, np.repeat(values[..., :1], 3, axis=2))
    assert set(np.unique(values)) == {0, 2}


def test_the_seed_of_python_decides_the_choices():
    td = TimeDistributed(Chooses(), **SHARED)
    x = np.ones((2, 5, 3), "float32")

    td.build(x.shape)
    drawn = []
    for _ in range(2):
        random.seed(3)
        drawn.append(as_numpy(td(x)))

    np.testing.assert_array_equal(*drawn)


@each_that_draws_again
def test_another_thread_draws_no_number_twice(option):
    td = TimeDistributed(Chooses(), **MODES[option])
    x = np.ones((2, 40, 3), "float32")
    td(x)

    with Beside(random.random) as other:
        for _ in range(10):
            td(x)

    assert len(set(other.results)) == len(other.results)


@each_that_draws_again
def test_a_layer_that_does_not_choose_leaves_the_state_of_python(option):
    td = TimeDistributed(layers.Dropout(0.5), **MODES[option])
    x = np.ones((2, 5, 3), "float32")
    td(x, training=True)
    before, function = random.getstate(), random.choice

    td(x, training=True)

    assert random.getstate() == before
    assert random.choice is function


def test_functions_are_put_back_after_an_error():
    class Fails(keras.Layer):
        def call(self, inputs):
            raise RuntimeError("no")

    function, dropout = random.choice, keras.random.dropout
    td = TimeDistributed(Fails(), **SHARED)

    with pytest.raises(RuntimeError):
        td(np.ones((2, 5, 3), "float32"))

    assert random.choice is function
    assert keras.random.dropout is dropout


@needs("fresh dropout")
def test_threads_may_share_a_layer():
    dropout = layers.Dropout(0.5)
    x = np.ones((4, 5, 40), "float32")
    td = TimeDistributed(dropout, **SHARED)
    td(x, training=True)

    def draw():
        return as_numpy(td(x, training=True))

    with Beside(draw) as one, Beside(draw) as two:
        for _ in range(20):
            assert_same_in_all_steps(draw())

    for values in one.results + two.results:
        assert_same_in_all_steps(values)
    assert dropout.seed_generator.get_config()["seed"] is None


@needs("fresh dropout")
@each_that_draws_again
def test_no_draw_beside_a_call_is_drawn_again_after_it(option):
    class Waits(keras.Layer):
        def call(self, inputs):
            if threading.current_thread() is not threading.main_thread():
                entered.set()
                leave.wait(timeout=30)
            return inputs

    entered, leave = threading.Event(), threading.Event()
    model = keras.Sequential([layers.Dropout(0.5, seed=3), Waits()])
    td = TimeDistributed(model, **MODES[option])
    x = np.ones((2, 2, 40), "float32")

    def draw():
        return as_numpy(td(x, training=True)).tobytes()

    draw()
    thread = threading.Thread(target=draw)
    thread.start()
    entered.wait(timeout=30)
    beside = [draw() for _ in range(3)]
    leave.set()
    thread.join()
    after = [draw() for _ in range(3)]

    assert len({*beside, *after}) == 6


@pytest.mark.skipif(
    keras.backend.backend() == "openvino",
    reason="Keras keeps an OpenVINO request, which is for one thread",
)
@pytest.mark.parametrize("options", EACH_OPTION, ids=str)
def test_eight_threads_predict_with_one_model(options, rng):
    encoder = keras.Sequential([layers.Dense(6), layers.LSTM(3)])
    inputs = keras.Input((None, 4, 5))
    sentences = TimeDistributed(encoder, **options)(layers.Masking()(inputs))
    model = keras.Model(inputs, layers.GRU(2)(sentences))
    batches = [normal(rng, 3, 7, 4, 5) for _ in range(8)]
    for i, x in enumerate(batches):
        x[:, i:] = 0

    def predict(x):
        if keras.backend.backend() == "jax":
            # With `predict`, Keras gives a thread's weights away to another.
            return as_numpy(model(x, training=False))
        return as_numpy(model.predict_on_batch(x))

    alone = [predict(x) for x in batches]
    with futures.ThreadPoolExecutor(8) as threads:
        beside = list(threads.map(predict, batches))

    for actual, expected in zip(beside, alone, strict=True):
        assert_close(actual, expected)


def test_python_remembers_of_what_it_has_warned():
    warn = "import warnings\ndef warn(): warnings.warn('once')"
    module: dict = {"__name__": "module"}
    exec(warn, module)
    td = TimeDistributed(layers.Flatten())
    x, mask = np.ones((2, 3, 4, 5), "float32"), np.ones((2, 3, 4), bool)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            td(x, mask=mask)
            module["warn"]()

    assert [str(w.message) for w in caught].count("once") == 1


def test_threads_leave_the_filters_of_warnings():
    encoder = keras.Sequential([layers.Dense(4), layers.LSTM(3)])
    td = TimeDistributed(encoder)
    x, mask = np.ones((2, 3, 4, 5), "float32"), np.ones((2, 3, 4), bool)
    td(x, mask=mask)
    filters, before = warnings.filters, list(warnings.filters)

    with Beside(lambda: td(x, mask=mask)), Beside(lambda: td(x, mask=mask)):
        for _ in range(20):
            # Warnings are errors here.
            td(x, mask=mask)

    assert warnings.filters is filters
    assert warnings.filters == before


def test_a_filter_does_not_outlive_a_context_that_another_thread_opened():
    entered, leave = threading.Event(), threading.Event()

    class Waits(keras.Model):
        def __init__(self):
            super().__init__()
            self.lstm = layers.LSTM(3)

        def call(self, inputs):
            entered.set()
            leave.wait(timeout=30)
            return self.lstm(inputs)

    td = TimeDistributed(Waits())
    mask = ops.ones((2, 3, 4), "bool")
    before = list(warnings.filters)
    thread = threading.Thread(
        target=lambda: td(np.ones((2, 3, 4, 5), "float32"), mask=mask)
    )

    thread.start()
    entered.wait(timeout=30)
    with warnings.catch_warnings():
        leave.set()
        thread.join()

    assert warnings.filters == before


@pytest.mark.parametrize("fails", [False, True])
def test_a_call_leaves_the_filters_of_warnings_as_they_were(fails):
    class Layer(keras.Layer):
        def call(self, inputs):
            filters.append(len(warnings.filters))
            if fails:
                raise ArithmeticError
            return inputs

    filters, before = [], list(warnings.filters)
    inner, x = TimeDistributed(Layer()), np.ones((2, 3, 4, 5, 6), "float32")

    td = TimeDistributed(inner)
    with contextlib.suppress(ArithmeticError):
        td(x, mask=np.ones((2, 3, 4, 5), bool))

    assert max(filters) > len(before)
    assert warnings.filters == before

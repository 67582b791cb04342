"""Calls in a loop, and on a time known only at run time, equal one call.

Eager backends never need either. They are made to use them here, so that each
step can be inspected.
"""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from backends import needs
from cases import BY_NAME
from keras_td import TimeDistributed
from keras_td import folding
from keras_td import stepping
from modes import REMAT
from reference import as_numpy
from reference import assert_close
from reference import gradients
from reference import normal

pytestmark = needs("loops of nests")
NAMES = (
    "Embedding, masked",
    "functional model of dicts",
    "custom nested outputs",
    "custom argmax",
)
each_case = pytest.mark.parametrize("name", NAMES)
each_number = pytest.mark.parametrize(
    ("steps", "time"), [(1, 25), (2, 1), (3, 2), (3, 25), (22, 25)]
)
with_and_without_remat = pytest.mark.parametrize(
    "remat", [False, pytest.param(True, marks=REMAT)]
)


@pytest.fixture(
    params=["known time", pytest.param("unknown time", marks=needs("any size"))]
)
def as_compiled(request, monkeypatch):
    """Makes calls as in a compiled function."""
    attempt = stepping._attempt

    def attempt_as_compiled(call, layer, time, options):
        if request.param == "unknown time":
            time = ops.convert_to_tensor(time)
        with monkeypatch.context() as patch:
            patch.setattr(folding, "has_values", lambda x: False)
            return attempt(call, layer, time, options)

    monkeypatch.setattr(stepping, "_attempt", attempt_as_compiled)


@each_number
@with_and_without_remat
@each_case
def test_a_loop_of_calls_equals_one_call(
    name, remat, steps, time, as_compiled, rng
):
    case = BY_NAME[name]
    args, kwargs = case.arrays(rng, 2, time)
    td = case.wrapped(steps_per_call=steps, remat=remat)

    actual = td(*args, training=False, **kwargs)

    assert_close(actual, case.wrapped()(*args, training=False, **kwargs))


@each_number
def test_one_sample_serves_all(steps, time, as_compiled, rng):
    x, of_batch = normal(rng, 2, time, 3), normal(rng, 1, time, 3)
    td = TimeDistributed(keras.layers.Add(), steps_per_call=steps)

    assert_close(as_numpy(td([x, of_batch])), x + of_batch)


@needs("empty broadcast")
def test_a_clip_without_frames_gives_none(as_compiled):
    td = TimeDistributed(keras.layers.Dense(4), steps_per_call=2)

    assert tuple(td(ops.ones((2, 0, 3))).shape) == (2, 0, 4)


class Root(keras.Layer):
    """The square root of inputs times a weight, which has no slope at 0."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1],))

    def call(self, inputs):
        return ops.sqrt(inputs * self.kernel)


@needs("training")
@pytest.mark.parametrize("time", [1, 2])
def test_gradients_of_a_single_call_are_numbers(time, as_compiled):
    root, x = Root(), ops.ones((2, time, 3))
    root.build((2, 3))
    root.kernel.assign(np.ones(3))
    td = TimeDistributed(root, steps_per_call=2)

    actual = gradients(lambda: ops.sum(td(x, training=True)), [root.kernel])

    assert_close(actual, [np.full(3, time, "float32")])


class Diary(keras.Layer):
    """Adds a loss, and records what it has seen in a weight."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1],))
        state = {"shape": (), "initializer": "zeros", "trainable": False}
        self.calls = self.add_weight(**state)
        self.total = self.add_weight(**state)

    def call(self, inputs):
        self.calls.assign_add(1.0)
        self.total.assign(self.total * 0.5 + ops.mean(inputs))
        self.add_loss(ops.mean(inputs * self.kernel) ** 2)
        return inputs * self.kernel * self.calls + self.total


@needs("training")
@each_number
@with_and_without_remat
def test_state_losses_and_gradients_are_those_of_calls_in_order(
    remat, steps, time, as_compiled, rng
):
    x = normal(rng, 2, time, 3)
    diary = Diary()
    diary.build((2, 3))
    diary.kernel.assign(normal(rng, 3))
    td = TimeDistributed(diary, steps_per_call=steps, remat=remat)
    td.build(x.shape)

    def by_hand():
        calls, total, outputs, losses = 0.0, 0.0, [], []
        first = time - (max(-(-time // steps), 1) - 1) * steps
        edges = [0, *range(first, time + 1, steps)]
        for start, stop in itertools.pairwise(edges):
            part = x[:, start:stop]
            calls, total = calls + 1, total * 0.5 + part.mean()
            scaled = ops.convert_to_tensor(part) * diary.kernel
            outputs.append(scaled * calls + total)
            losses.append(ops.mean(scaled) ** 2 * (stop - start) / time)
        return ops.concatenate(outputs, axis=1), losses, calls, total

    def loss_of(outputs, losses):
        return ops.sum(ops.sin(outputs)) + sum(losses)

    def through_td():
        values = [v.value for v in td.non_trainable_variables]
        outputs, _, losses = td.stateless_call(
            [diary.kernel.value], values, x, training=True, return_losses=True
        )
        return loss_of(outputs, losses)

    outputs, losses, calls, total = by_hand()
    expected = gradients(lambda: loss_of(*by_hand()[:2]), [diary.kernel])

    assert_close(gradients(through_td, [diary.kernel]), expected)

    actual = td(x, training=True)

    assert_close(actual, outputs)
    assert_close(td.losses, [sum(losses)])
    assert_close(as_numpy(diary.calls), np.float32(calls))
    assert_close(as_numpy(diary.total), np.float32(total))

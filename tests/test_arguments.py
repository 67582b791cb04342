"""Nests, further arguments and inputs that are used at every step."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras import tree

from cases import CASES
from custom import TwoInputs
from keras_td import TimeDistributed
from modes import MODES
from modes import TIME
from modes import each_kind
from modes import each_mode
from reference import as_numpy
from reference import assert_close
from reference import loop
from reference import mask_of
from reference import normal


class AddAll(keras.Layer):
    def call(self, inputs):
        return sum(tree.flatten(inputs))


@pytest.mark.parametrize(
    "nest",
    [
        lambda x: [x, x],
        lambda x: (x, x),
        lambda x: {"a": x, "b": x},
        lambda x: {"a": [x, (x, {"c": x})], "b": x},
        lambda x: [x],
    ],
    ids=["list", "tuple", "dict", "deep", "list of one"],
)
def test_inputs_may_be_any_nest(nest, rng):
    inputs = nest(normal(rng, 2, 3, 5))

    assert_close(TimeDistributed(AddAll())(inputs), loop(AddAll(), inputs))

    symbols = tree.map_structure(lambda x: keras.Input(x.shape[1:]), inputs)
    outputs = TimeDistributed(AddAll())(symbols)
    model = keras.Model(tree.flatten(symbols), outputs)
    assert_close(model(tree.flatten(inputs)), loop(AddAll(), inputs))


def test_the_layer_sees_the_nest_it_is_given():
    seen = []

    class Look(keras.Layer):
        def call(self, inputs):
            seen.append(inputs)
            return inputs["b"]

    x = np.ones((2, 3, 4))
    TimeDistributed(Look())({"b": x, "a": [x, (x,)]})

    assert set(seen[0]) == {"a", "b"}
    assert isinstance(seen[0]["a"], list)
    assert isinstance(seen[0]["a"][1], tuple)


def test_attention_with_a_value_and_a_flag(rng):
    attention = layers.MultiHeadAttention(2, 4)
    query, value = normal(rng, 2, 3, 5, 4), normal(rng, 2, 3, 6, 4)

    actual = TimeDistributed(attention)(query, value, use_causal_mask=True)

    expected = loop(attention, query, value, use_causal_mask=True)
    assert_close(actual, expected)


def test_attention_with_a_mask_per_step(rng):
    attention = layers.MultiHeadAttention(2, 4)
    query, mask = normal(rng, 2, 3, 5, 4), rng.random((2, 3, 5, 5)) > 0.3
    td = TimeDistributed(attention)

    actual, scores = td(
        query,
        value=query,
        attention_mask=mask,
        return_attention_scores=True,
    )

    expected = loop(
        attention,
        query,
        value=query,
        attention_mask=mask,
        return_attention_scores=True,
    )
    assert_close((actual, scores), expected)


def test_a_functional_model_keeps_all_arguments(rng, tmp_path):
    query, value = keras.Input((3, 5, 4)), keras.Input((3, 6, 4))
    attention = TimeDistributed(layers.MultiHeadAttention(2, 4))
    outputs = attention(query, value=value, use_causal_mask=True)
    model = keras.Model([query, value], outputs)
    arrays = normal(rng, 2, 3, 5, 4), normal(rng, 2, 3, 6, 4)
    expected = attention(arrays[0], value=arrays[1], use_causal_mask=True)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")

    assert_close(model(arrays), expected)
    assert_close(loaded(arrays), expected)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert_close(clone(arrays), expected)


@pytest.mark.parametrize("where", ["inputs", "initial_state"])
def test_a_time_of_1_serves_every_step(where, rng):
    lstm = layers.LSTM(4)
    x, h, c = normal(rng, 2, 3, 5, 4), *normal(rng, 2, 2, 3, 4)
    if where == "inputs":
        x = x[:, :1]
    else:
        h, c = h[:, :1], c[:, :1]

    actual = TimeDistributed(lstm)(x, initial_state=[h, c])

    assert_close(actual, loop(lstm, x, initial_state=[h, c]))


def test_broadcast_equals_repetition(rng):
    td = TimeDistributed(TwoInputs())
    items, user = normal(rng, 2, 3, 5), normal(rng, 2, 1, 4)

    assert_close(td(items, user), td(items, np.repeat(user, 3, axis=1)))


@pytest.mark.parametrize("item_time", [None, 3])
@pytest.mark.parametrize("user_time", [None, 1])
def test_broadcast_with_unknown_time(item_time, user_time, rng):
    items, user = keras.Input((item_time, 5)), keras.Input((user_time, 4))
    td = TimeDistributed(TwoInputs())
    model = keras.Model([items, user], td(items, user))
    assert model.output_shape == (None, item_time, 4)

    for batch in 2, 1:
        arrays = normal(rng, batch, 3, 5), normal(rng, batch, 1, 4)
        actual = ops.convert_to_tensor(model.predict_on_batch(arrays))
        assert_close(actual, loop(td.layer, *arrays))


@pytest.mark.parametrize("steps", [None, 2])
def test_a_batch_of_1_serves_every_sample(steps, rng):
    attention = layers.MultiHeadAttention(2, 4)
    x, mask = normal(rng, 2, 3, 5, 4), np.tri(5, dtype=bool)[None, None]
    td = TimeDistributed(attention, steps_per_call=steps)

    actual = td(x, x, attention_mask=mask)

    repeated = np.broadcast_to(mask, (2, 3, 5, 5))
    assert_close(actual, loop(attention, x, x, attention_mask=repeated))


def test_a_batch_of_1_serves_the_samples_of_a_model(rng):
    items, user = keras.Input((3, 5)), keras.Input((1, 4), batch_size=1)
    td = TimeDistributed(TwoInputs())
    outputs = td(items, user)
    assert outputs.shape == (None, 3, 4)

    x, y = normal(rng, 2, 3, 5), normal(rng, 1, 1, 4)

    assert_close(td(x, y), td(x, np.broadcast_to(y, (2, 3, 4))))


@pytest.mark.parametrize("steps", [None, 1, 2, 5])
@pytest.mark.parametrize("time", [3, 20])
@pytest.mark.parametrize("other", ["as long", "of one step"])
def test_an_unknown_time_next_to_a_known_one(steps, time, other, rng):
    a, b = keras.Input((time, 5)), keras.Input((None, 4))
    layer = TwoInputs()
    td = TimeDistributed(layer, steps_per_call=steps)
    model = keras.Model([a, b], td(a, b))
    assert model.output_shape == (None, time, 4)
    of_b = time if other == "as long" else 1
    x, y = normal(rng, 2, time, 5), normal(rng, 2, of_b, 4)

    actual = model.predict_on_batch([x, y])

    assert_close(ops.convert_to_tensor(actual), loop(layer, x, y))


@pytest.mark.parametrize("steps", [None, 2])
def test_a_constant_next_to_an_input_of_unknown_time(steps, rng):
    inputs, constant = keras.Input((None, 5)), normal(rng, 1, 1, 4)
    layer = TwoInputs()
    td = TimeDistributed(layer, steps_per_call=steps)
    model = keras.Model(inputs, td(inputs, constant))
    x = normal(rng, 2, 3, 5)

    actual = model.predict_on_batch(x)

    repeated = np.broadcast_to(constant, (2, 3, 4))
    assert_close(ops.convert_to_tensor(actual), loop(layer, x, repeated))


@pytest.mark.parametrize("steps", [None, 2])
def test_tensors_and_other_values_by_name_may_go_together(steps, rng):
    layer = TwoInputs()
    x, y = normal(rng, 2, 3, 5), normal(rng, 2, 3, 4)
    td = TimeDistributed(layer, steps_per_call=steps)

    outputs = td(x, b=y, scale=2.0)

    assert_close(outputs, loop(layer, x, b=y, scale=2.0))
    inputs = keras.Input((3, 5)), keras.Input((3, 4))
    model = keras.Model(inputs, td(inputs[0], b=inputs[1], scale=2.0))
    assert_close(model([x, y]), outputs)


def test_broadcast_of_nothing_is_nothing(rng):
    outputs = TimeDistributed(TwoInputs())(
        normal(rng, 2, 0, 5), normal(rng, 2, 1, 4)
    )

    assert tuple(outputs.shape) == (2, 0, 4)


def test_all_times_may_be_1(rng):
    layer = TwoInputs()
    arrays = normal(rng, 2, 1, 5), normal(rng, 2, 1, 4)

    assert_close(TimeDistributed(layer)(*arrays), loop(layer, *arrays))


def test_arguments_that_are_not_tensors_pass_unchanged():
    seen = {}

    class Look(keras.Layer):
        def call(self, inputs, **options):
            seen.update(options)
            return inputs

    options = {"mode": "fast", "sizes": [1, 2], "flag": None, "fn": len}
    TimeDistributed(Look())(np.ones((2, 3, 4)), **options)

    assert seen == options


class NeedsTraining(keras.Layer):
    """Cannot be called without `training`."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4)

    def call(self, inputs, training):
        return self.dense(inputs) * (2 if training else 1)


@each_mode
@pytest.mark.parametrize("how", ["called", "in a model", "in a wrapper"])
def test_a_layer_may_need_training(how, option, rng):
    layer, x = NeedsTraining(), normal(rng, 2, TIME, 3)
    td = TimeDistributed(layer, **MODES[option])
    if how == "in a wrapper":
        td, x = TimeDistributed(td), x[:, None]
    if how == "in a model":
        td = keras.Sequential([keras.Input(x.shape[1:]), td])

    assert_close(td(x), layer.dense(x))
    assert_close(td(x, training=True), 2 * layer.dense(x))


@each_mode
@pytest.mark.parametrize("training", [np.bool_(True), np.array(True), 1])
def test_training_may_be_of_numpy(training, option, rng):
    x = normal(rng, 2, TIME, 3)
    layer = TimeDistributed(NeedsTraining(), **MODES[option])

    assert_close(layer(x, training=training), layer(x, training=True))


def test_training_may_be_a_tensor(rng):
    x, training = normal(rng, 2, TIME, 3), ops.convert_to_tensor(True)
    layer = TimeDistributed(NeedsTraining(), steps_per_call=2)

    assert_close(layer(x, training=training), layer(x, training=True))


@each_kind
def test_training_and_mask_by_position_are_those_of_keras(option, rng):
    x, mask = normal(rng, 2, 3, 4), np.array([[True, False, True]] * 2)
    td = TimeDistributed(layers.Dense(4), **MODES[option])

    outputs = td(x, None, mask)

    assert_close(outputs, td.layer(x))
    np.testing.assert_array_equal(as_numpy(mask_of(outputs)), mask)


def test_the_call_does_not_change_its_arguments(rng):
    x, h = normal(rng, 2, 3, 5, 4), normal(rng, 2, 3, 4)
    state = [h, h]
    kwargs = {"initial_state": state, "training": False}

    TimeDistributed(layers.LSTM(4))(x, **kwargs)

    assert set(kwargs) == {"initial_state", "training"}
    assert len(state) == 2
    assert state[0] is h


def test_the_table_of_cases_has_no_twins():
    assert len({case.name for case in CASES}) == len(CASES)

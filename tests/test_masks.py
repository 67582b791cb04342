"""Masks come in, reach the layer and leave."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras import tree

from case import leaves
from case import with_leaves
from cases import CASES
from cases import each
from keras_td import TimeDistributed
from limits import no_worse_than_plain
from masked import SENTENCES
from masked import SHOWN
from masked import WORDS
from masked import Recorder
from masked import assert_equal
from masked import masked
from modes import MODES
from modes import each_kind
from reference import as_numpy
from reference import assert_close
from reference import mask_of
from reference import normal
from reference import with_mask


@each([c for c in CASES if c.mixes_samples != "always"])
@no_worse_than_plain
def test_a_masked_tail_changes_nothing_before_it(case, rng):
    args, kwargs = case.arrays(rng)
    axis = len(case.lead) - 1
    valid = case.lead[axis] - 1

    def cut(x):
        return x[:, :valid] if case.has_time else x[:valid]

    head = map(cut, leaves((args, kwargs)))
    head_args, head_kwargs = with_leaves((args, kwargs), head)
    td = case.wrapped()

    expected = td(*head_args, training=False, **head_kwargs)
    args = masked(
        case,
        tree.map_structure(ops.convert_to_tensor, args),
        lambda shape: ops.convert_to_tensor(np.indices(shape)[axis] < valid),
    )
    actual = td(*args, training=False, **kwargs)

    assert_close(tree.map_structure(cut, actual), expected)


def test_the_layer_sees_the_mask_of_the_slice():
    recorder = Recorder()

    TimeDistributed(recorder)(np.ones((2, 2, 3, 4), "float32"), mask=WORDS)

    assert_equal(recorder.masks[0], SHOWN)


def test_a_mask_attached_to_the_inputs_reaches_the_layer():
    recorder = Recorder()

    TimeDistributed(recorder)(
        with_mask(np.ones((2, 2, 3, 4), "float32"), WORDS)
    )

    assert_equal(recorder.masks[0], SHOWN)


def test_a_mask_that_is_given_goes_before_one_that_is_attached():
    recorder = Recorder()
    x = with_mask(np.ones((2, 2, 3, 4), "float32"), ~WORDS)

    outputs = TimeDistributed(recorder)(x, mask=WORDS)

    assert_equal(recorder.masks[0], SHOWN)
    assert_equal(mask_of(outputs), SENTENCES)


@pytest.mark.parametrize("as_nest", [list, tuple], ids=["list", "tuple"])
def test_each_input_has_its_own_mask(as_nest):
    recorder = Recorder()
    x = np.ones((2, 2, 3, 4), "float32")

    outputs = TimeDistributed(recorder)(
        as_nest([x, x, x]), mask=as_nest([WORDS, None, ~SENTENCES])
    )

    # A mask of whole steps says nothing about the inside of a step. A step that
    # is valid in any input is valid.
    first, second, third = recorder.masks[0]
    assert_equal(first, WORDS.reshape(4, 3))
    assert second is None
    assert third is None
    assert_equal(mask_of(outputs), SENTENCES | ~SENTENCES)


def test_masks_are_attached_to_nested_inputs():
    recorder = Recorder()
    x = np.ones((2, 2, 3, 4), "float32")

    TimeDistributed(recorder)({"a": with_mask(x, WORDS), "b": ops.ones((2, 2))})

    # An input without a mask is valid, and so is each step.
    mask = recorder.masks[0]
    assert_equal(mask["a"], WORDS.reshape(4, 3))
    assert mask["b"] is None


def test_the_mask_of_a_further_argument_reaches_the_layer(rng):
    attention = layers.MultiHeadAttention(2, 4)
    td = TimeDistributed(attention)
    query, value = normal(rng, 2, 2, 3, 4), normal(rng, 2, 2, 3, 4)
    longer = np.pad(value, ((0, 0), (0, 0), (0, 2), (0, 0)), constant_values=9)
    mask = np.arange(5) < np.full((2, 2, 1), 3)

    bare = td(query, ops.convert_to_tensor(value))

    assert_close(td(query, with_mask(longer, mask)), bare)


class MaskOfValue(keras.Layer):
    """Returns the mask of `value`, if Keras passes one."""

    def call(self, inputs, value, value_mask=None):
        return ops.cast(inputs, bool) if value_mask is None else value_mask


def test_a_mask_that_is_given_is_that_of_the_inputs_alone():
    query, value = np.ones((2, 2)), with_mask(np.ones((2, 2)), SENTENCES)
    td = TimeDistributed(MaskOfValue())

    assert_equal(td(query, value=value, mask=~SENTENCES), SENTENCES)
    assert_equal(td(query, value=query, mask=SENTENCES), query)


class Holds(keras.Layer):
    """Keeps a mask for itself, as layers with a layer inside may."""

    def __init__(self):
        super().__init__()
        self.inside = Recorder()

    def call(self, inputs, mask=None):
        return self.inside(inputs)


@pytest.mark.parametrize("steps", [None, 1])
def test_a_mask_that_is_given_is_not_seen_by_layers_inside(steps):
    x = np.ones((2, 2, 3, 4), "float32")
    layer = Holds()
    td = TimeDistributed(layer, steps_per_call=steps)

    # As by hand: a mask that is given is only for the layer, while an attached
    # one is passed on.
    td(x, mask=WORDS)
    given = layer.inside.masks[-1]
    td(with_mask(x, WORDS))
    attached = layer.inside.masks[-1]

    assert given is None
    assert_equal(attached, SHOWN if steps is None else SHOWN[1::2])


class OwnNorm(keras.Layer):
    """Takes means over the valid samples of a batch."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True

    def call(self, inputs, mask=None):
        if mask is None:
            return inputs
        weights = ops.cast(mask, inputs.dtype)[:, None]
        mean = ops.sum(inputs * weights, axis=0) / ops.sum(weights)
        return inputs - mean


def test_a_layer_of_a_users_own_sees_which_vectors_are_valid(rng):
    x = normal(rng, 2, 2, 4)

    outputs = as_numpy(TimeDistributed(OwnNorm())(x, mask=SENTENCES))

    expected = x - x[SENTENCES].mean(axis=0)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


def test_a_stateful_layer_of_a_users_own_sees_them_as_they_are(rng):
    layer, x = OwnNorm(), normal(rng, 2, 2, 4)
    layer.stateful = True

    outputs = as_numpy(TimeDistributed(layer)(x, mask=SENTENCES))

    expected = x - x[SENTENCES].mean(axis=0)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


def test_a_lambda_sees_them(rng):
    x = normal(rng, 2, 2, 4)
    scale = layers.Lambda(
        lambda x, mask=None: (
            x if mask is None else ops.where(mask[:, None], x, 7)
        )
    )
    scale.supports_masking = True

    outputs = as_numpy(TimeDistributed(scale)(x, mask=SENTENCES))

    expected = np.where(SENTENCES[..., None], x, 7)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


class Weighted(keras.Layer):
    """Multiplies by its mask, as partial convolutions do."""

    def call(self, inputs, mask=None):
        if mask is None:
            return inputs
        return inputs * ops.cast(mask, inputs.dtype)[..., None]


class Biased(keras.Layer):
    """Attention to everything except where its mask, of numbers, is 1."""

    def call(self, inputs, mask=None):
        scores = ops.matmul(inputs, ops.swapaxes(inputs, 1, 2))
        if mask is not None:
            scores -= 1e9 * mask
        return ops.matmul(ops.softmax(scores), inputs)


MASKS_OF_NUMBERS = {
    "weights": (Weighted, lambda rng: rng.uniform(0.1, 0.9, (2, 3, 4))),
    "zeros and ones": (Weighted, lambda rng: rng.integers(0, 2, (2, 3, 4))),
    "zeros": (Weighted, lambda rng: np.zeros((2, 3, 4), "int32")),
    "of scores": (Biased, lambda rng: rng.integers(0, 2, (2, 3, 1, 4))),
    "none of scores": (Biased, lambda rng: np.zeros((2, 3, 1, 4))),
}


@each_kind
@pytest.mark.parametrize("inside", ["itself", "a model", "a wrapper"])
@pytest.mark.parametrize("name", MASKS_OF_NUMBERS)
def test_a_mask_of_numbers_is_the_layers_own(name, inside, option, rng):
    cls, make_mask = MASKS_OF_NUMBERS[name]
    layer, x = cls(), normal(rng, 2, 3, 4, 5)
    layer.supports_masking = True
    mask = make_mask(rng).astype("float32")
    if inside == "a model":
        outer = keras.Sequential([layer])
    else:
        outer = TimeDistributed(layer) if inside == "a wrapper" else layer
    td = TimeDistributed(outer, **MODES[option])

    if inside == "a wrapper":
        outputs = td(x[:, None], mask=mask[:, None])[:, 0]
    else:
        outputs = td(x, mask=mask)

    # A bare layer would warn that the mask ends here.
    x, mask = ops.convert_to_tensor(x), ops.convert_to_tensor(mask)
    expected = [layer.call(x[:, t], mask[:, t]) for t in range(3)]
    assert_close(outputs, ops.stack(expected, axis=1))
    assert mask_of(outputs) is None


class Gated(keras.Layer):
    """Multiplies each sample by its mask, which it needs."""

    def call(self, inputs, mask):
        return inputs * ops.cast(mask, inputs.dtype)[:, None, None]


def needs_mask(layer):
    return layers.Lambda(lambda inputs, mask: layer.call(inputs, mask))


@each_kind
@pytest.mark.parametrize("wrap", [lambda layer: layer, needs_mask])
def test_a_layer_that_needs_a_mask_gets_one_of_steps(wrap, option, rng):
    layer, x = Gated(), normal(rng, 2, 3, 4, 5)
    mask = np.array([[True, True, False], [True, False, True]])

    outputs = TimeDistributed(wrap(layer), **MODES[option])(x, mask=mask)

    # A bare layer would warn that the mask ends here.
    x, mask = ops.convert_to_tensor(x), ops.convert_to_tensor(mask)
    expected = [layer.call(x[:, t], mask[:, t]) for t in range(3)]
    assert_close(outputs, ops.stack(expected, axis=1))


@pytest.mark.filterwarnings("ignore:[\\s\\S]*lambda.* not support masking")
def test_it_sees_them_next_to_a_lambda_too(rng):
    x = normal(rng, 2, 2, 4)
    model = keras.Sequential([OwnNorm(), layers.Lambda(lambda x: 2 * x)])

    outputs = as_numpy(TimeDistributed(model)(x, mask=SENTENCES))

    expected = 2 * (x - x[SENTENCES].mean(axis=0))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_a_mask_counts_next_to_an_initial_state(rng):
    lstm = layers.LSTM(4)
    x, state = normal(rng, 2, 2, 3, 4), [normal(rng, 2, 2, 4) for _ in "hc"]
    td = TimeDistributed(lstm)

    actual = td(with_mask(x, WORDS), initial_state=state)

    expected = td(x, initial_state=state, mask=WORDS)
    assert_close(actual, expected)
    assert np.abs(as_numpy(actual - td(x, initial_state=state))).max() > 1e-3


def test_batch_normalization_leaves_padded_steps_out(rng):
    x = normal(rng, 2, 2, 4, 4, 3)
    padded = np.where(SENTENCES[..., None, None, None], x, 9)
    bare = layers.BatchNormalization()
    td = TimeDistributed(layers.BatchNormalization())

    td(padded, mask=SENTENCES, training=True)
    bare(x[SENTENCES], training=True)

    assert_close(td.layer.moving_mean.value, bare.moving_mean.value)
    assert_close(td.layer.moving_variance.value, bare.moving_variance.value)

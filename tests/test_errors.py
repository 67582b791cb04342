"""Mistakes raise errors in the user's terms, before the wrapped layer runs."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_td import TimeDistributed


class Untouched(keras.Layer):
    def call(self, inputs, *args, mask=None, **kwargs):
        raise AssertionError("the wrapped layer ran")


def ones(*shape):
    return np.ones(shape, "float32")


def masks(*shape):
    return np.ones(shape, bool)


MISTAKES = {
    "a rank of 1": ([ones(2)], {}, r"`inputs`.*\(2,\)"),
    "a rank of 0": ([ones()], {}, r"`inputs`.*\(\)"),
    "a rank of 1 in a nest": (
        [{"a": ones(2, 3), "b": ones(2)}],
        {},
        r"`inputs\['b'\]`.*\(2,\)",
    ),
    "a rank of 1 in a further argument": (
        [ones(2, 3, 4), ones(2)],
        {},
        r"`\*args\[0\]`.*\(2,\)",
    ),
    "a rank of 1 in an argument by name": (
        [ones(2, 3, 4)],
        {"value": [ones(2)]},
        r"`value\[0\]`.*\(2,\)",
    ),
    "a number in a tensor": (
        [ones(2, 3, 4)],
        {"scale": np.float32(2)},
        r"`scale`.*\(\).*Python number",
    ),
    "times that differ": (
        [[ones(2, 3, 4), ones(2, 5, 4)]],
        {},
        r"number of steps.*inputs\[0\].*\(2, 3, 4\).*inputs\[1\].*\(2, 5, 4\)",
    ),
    "times that differ between arguments": (
        [ones(2, 3, 4)],
        {"value": ones(2, 5, 4)},
        r"same number of steps.*`inputs`.*\(2, 3, 4\).*`value`.*\(2, 5, 4\)",
    ),
    "batches that differ": (
        [[ones(2, 3, 4), ones(4, 3, 4)]],
        {},
        r"same batch size.*\(2, 3, 4\).*\(4, 3, 4\)",
    ),
    "a mask of another time": (
        [ones(2, 3, 4)],
        {"mask": masks(2, 4)},
        r"The `mask` passed to the `TimeDistributed` layer has a shape "
        r"\(2, 4\).*\(2, 3, 4\).*: \(2, 3, \.\.\.\)",
    ),
    "a mask of another batch": (
        [ones(2, 3, 4)],
        {"mask": masks(3, 3)},
        r"The `mask` passed to the `TimeDistributed` layer has a shape "
        r"\(3, 3\).*\(2, 3, 4\)",
    ),
    "a mask without time": (
        [ones(2, 3, 4)],
        {"mask": masks(2)},
        r"The `mask` passed to the `TimeDistributed` layer has a shape \(2,\)",
    ),
    "one mask for two inputs": (
        [[ones(2, 3, 4), ones(2, 3, 4)]],
        {"mask": masks(2, 3)},
        "(?s)The `mask` passed to .* structure of `inputs`",
    ),
    "two masks for one input": (
        [ones(2, 3, 4)],
        {"mask": [masks(2, 3), masks(2, 3)]},
        "(?s)The `mask` passed to .* structure of `inputs`",
    ),
    "a mask under another name": (
        [{"a": ones(2, 3, 4)}],
        {"mask": {"b": masks(2, 3)}},
        "(?s)The `mask` passed to .* structure of `inputs`",
    ),
    "tensors and other values in one argument": (
        [ones(2, 3, 4)],
        {"state": [ones(2, 3), 7]},
        "`state`.*separate arguments",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_raises_before_the_layer_runs(mistake):
    args, kwargs, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        TimeDistributed(Untouched())(*args, **kwargs)


@pytest.mark.parametrize("mistake", [m for m in MISTAKES if "other v" not in m])
def test_a_mistake_raises_in_a_symbolic_call(mistake):
    args, kwargs, message = MISTAKES[mistake]

    def symbol(x):
        return keras.KerasTensor(x.shape, str(x.dtype))

    args, kwargs = keras.tree.map_structure(symbol, (args, kwargs))
    with pytest.raises(ValueError, match=message):
        TimeDistributed(Untouched())(*args, **kwargs)


def test_an_input_shape_of_rank_1_raises():
    td = TimeDistributed(layers.Dense(4))
    with pytest.raises(ValueError, match=r"at least two axes.*\(None,\)"):
        td.build((None,))
    with pytest.raises(ValueError, match=r"at least two axes.*\(None,\)"):
        td.compute_output_shape((None,))


@pytest.mark.parametrize("shape", [(), (7,), (1, 4)])
def test_an_output_without_a_batch_axis_raises(shape):
    class Odd(keras.Layer):
        def call(self, inputs):
            return keras.ops.zeros(shape)

    with pytest.raises(ValueError, match=r"must return tensors.*\(6, ...\)"):
        TimeDistributed(Odd())(ones(2, 3, 4))


def test_a_value_at_the_place_of_a_tensor_raises_as_in_keras():
    with pytest.raises(ValueError, match="should be passed as a keyword"):
        TimeDistributed(Untouched())(ones(2, 3, 4), "causal")


def stateful_model():
    inputs = keras.Input(batch_shape=(2, 4, 3))
    return keras.Model(inputs, layers.GRU(2, stateful=True)(inputs))


OF_FIXED_BATCH = r"fixed to a batch of {}.*`steps_per_call=1`.*on {} samples"


def test_a_model_of_a_fixed_batch_is_told_what_to_do():
    x = ones(2, 3, 4, 3)
    with pytest.raises(ValueError, match=OF_FIXED_BATCH.format(2, 6)):
        TimeDistributed(stateful_model())(x)

    td = TimeDistributed(stateful_model(), steps_per_call=1)

    assert tuple(td(x).shape) == (2, 3, 2)


def test_a_stateful_layer_whose_steps_do_not_divide_time_is_told_so():
    td = TimeDistributed(layers.GRU(2, stateful=True), steps_per_call=2)

    with pytest.raises(ValueError, match=OF_FIXED_BATCH.format(4, 2)):
        td(ones(2, 3, 4, 3))
    assert tuple(td(ones(2, 4, 4, 3)).shape) == (2, 4, 2)


def test_an_error_of_the_layer_itself_is_not_taken_for_another():
    class Fails(keras.Layer):
        fails = True

        def call(self, inputs):
            if self.fails:
                raise ValueError("its own mistake")
            return inputs

    with pytest.raises(ValueError, match="its own mistake"):
        TimeDistributed(Fails())(ones(2, 3, 4))

    fails = Fails()
    fails.fails = False
    inner = keras.Sequential([layers.GRU(2, stateful=True), fails])
    td = TimeDistributed(inner)
    td(ones(2, 3, 4, 3))
    fails.fails = True
    with pytest.raises(ValueError, match="its own mistake"):
        td(ones(2, 3, 4, 3))


def test_sparse_tensors_are_told_what_to_do():
    sparse = pytest.importorskip(
        "tensorflow", reason="The tensor is TensorFlow's"
    ).sparse
    x = sparse.from_dense(ones(2, 3, 4))

    with pytest.raises(ValueError, match=r"Convert it to a dense tensor.*`inp"):
        TimeDistributed(Untouched())(x)


def test_ragged_tensors_are_told_what_to_do():
    ragged = pytest.importorskip(
        "tensorflow", reason="The tensor is TensorFlow's"
    ).ragged
    x = ragged.constant([[[1.0]], [[1.0], [2.0]]])

    with pytest.raises(ValueError, match=r"Pad it.* a mask.*`inputs`"):
        TimeDistributed(Untouched())(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.InputLayer((3,)),
        lambda: type("Constant", (keras.Layer,), {"call": lambda self: 1})(),
    ],
    ids=["InputLayer", "own"],
)
def test_a_layer_that_takes_no_inputs_is_told_to_be_left_out(make):
    with pytest.raises(ValueError, match=r"takes no inputs\. Leave it out"):
        TimeDistributed(make())


def test_errors_show_the_arguments_of_a_user_alone():
    td = TimeDistributed(layers.Flatten())
    td(ones(2, 3, 4))
    with pytest.raises(ValueError, match="at least two axes") as error:
        td(ones(2))

    _, *shown = [
        line.strip(" \N{BULLET}")
        for line in str(error.value).splitlines()
        if line.lstrip().startswith("\N{BULLET}")
    ]
    assert shown == ["args=()", "training=None", "mask=None", "kwargs={}"]


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"mask": None}, {"training": None}, {"mode": "fast"}, {"mode": len}],
    ids=str,
)
def test_an_error_of_the_layer_is_its_own(kwargs):
    class Refuses(keras.Layer):
        def call(self, inputs, mode=None, mask=None, training=None):
            raise NotImplementedError("not yet")

    with pytest.raises(NotImplementedError, match="not yet"):
        TimeDistributed(Refuses())(ones(2, 3, 4), **kwargs)

"""A symbolic call infers what an eager call returns."""

import contextlib
import itertools

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras import tree

from backends import needs
from case import BATCH
from case import TIME
from case import leaves
from case import with_leaves
from cases import BY_NAME
from cases import CASES
from cases import each
from cases import each_case
from keras_td import TimeDistributed
from limits import no_worse_than_plain
from reference import dtype
from reference import mask_of

LEADS = list(itertools.product([None, BATCH], [None, TIME]))


class Spec:
    """A shape and a dtype, as one leaf of a nest."""

    def __init__(self, shape, dtype):
        self.spec = tuple(shape), dtype

    def __eq__(self, other):
        return self.spec == other.spec

    def __repr__(self):
        return f"{self.spec}"


def specs(tensors, lead=(), drop=None):
    """The specs of a nest, with its first axes replaced by `lead`."""
    drop = len(lead) if drop is None else drop
    return tree.map_structure(
        lambda x: Spec((*lead, *x.shape[drop:]), dtype(x)), tensors
    )


def leads_of(case):
    """What may be known of batch and time."""
    if not case.has_time:
        return [(None,), case.lead]
    return LEADS[-1:] if case.static_batch else LEADS


def shapes_of(nest):
    return tree.map_structure(lambda x: tuple(x.shape), nest)


@each_case
@no_worse_than_plain
def test_a_symbolic_call_agrees_with_an_eager_call(case, rng):
    args, kwargs = case.arrays(rng)
    eager = case.wrapped()(*args, training=False, **kwargs)

    for lead in leads_of(case):
        symbols, symbol_kwargs = case.symbols(*lead)
        symbolic = case.wrapped()(*symbols, **symbol_kwargs)
        assert specs(symbolic) == specs(eager, lead)

        spec = case.wrapped().compute_output_spec(*symbols, **symbol_kwargs)
        assert specs(spec) == specs(eager, lead)


@each([c for c in CASES if not c.options])
@no_worse_than_plain
def test_compute_output_shape_agrees_with_an_eager_call(case, rng):
    args, kwargs = case.arrays(rng)
    eager = case.wrapped()(*args, training=False, **kwargs)

    for lead in leads_of(case):
        symbols, kwargs = case.symbols(*lead)
        inferred = case.wrapped().compute_output_shape(
            *map(shapes_of, symbols),
            **{f"{name}_shape": shapes_of(kwargs[name]) for name in kwargs},
        )
        expected = tree.map_structure(
            lambda y, lead=lead: (*lead, *y.shape[len(lead) :]), eager
        )
        assert tree.lists_to_tuples(inferred) == tree.lists_to_tuples(expected)


def symbols_of_unknown_inner_axes(case, *lead):
    """Symbolic tensors of a case, of which only the last axis is known."""
    symbols = case.symbols(*lead)

    def hide(x):
        inner = x.shape[len(lead) :]
        unknown = (None,) * (len(inner) - 1)
        return keras.KerasTensor((*lead, *unknown, *inner[-1:]), x.dtype)

    return with_leaves(symbols, map(hide, leaves(symbols)))


def is_spatial(case):
    return any(len(s) > 1 for s in case.step_shapes)


# Keras warns of it before it raises.
@pytest.mark.filterwarnings("ignore:[\\s\\S]*unbuilt state:UserWarning")
@each([c for c in CASES if is_spatial(c) and not c.static_batch])
def test_unknown_inner_axes_stay_as_unknown_as_in_the_layer(case):
    args, kwargs = symbols_of_unknown_inner_axes(case.plain, None)
    try:
        plain = case.make()(*args, **kwargs)
    except Exception as error:
        # What the bare layer does not allow, the wrapper does not allow either.
        plain, outcome = None, pytest.raises(type(error))
    else:
        outcome = contextlib.nullcontext()

    for lead in LEADS:
        args, kwargs = symbols_of_unknown_inner_axes(case, *lead)
        with outcome:
            outputs = case.wrapped()(*args, **kwargs)
            assert specs(outputs) == specs(plain, lead, drop=1)


def test_unknown_sizes_run_at_any_size(rng):
    model = keras.Sequential(
        [
            keras.Input((None, None, None, 3)),
            TimeDistributed(layers.Conv2D(4, 3)),
            TimeDistributed(layers.GlobalMaxPooling2D()),
            layers.LSTM(2),
        ]
    )

    for shape in (2, 3, 8, 9, 3), (1, 5, 6, 6, 3):
        x = rng.normal(size=shape).astype("float32")
        assert model.predict_on_batch(x).shape == (shape[0], 2)


def test_integer_outputs_have_integer_dtypes():
    argmax = BY_NAME["custom argmax"].make()

    outputs = TimeDistributed(argmax)(keras.Input((3, 5)))

    assert "int" in outputs.dtype


def test_an_unbuilt_layer_may_be_asked_for_many_shapes():
    td = TimeDistributed(layers.Dense(4))

    assert td.compute_output_shape((None, 10, 8)) == (None, 10, 4)
    assert td.compute_output_shape((2, None, 16)) == (2, None, 4)
    assert not td.built


def test_a_shape_may_be_that_of_a_tensor():
    shape = ops.ones((2, 3, 5)).shape
    td = TimeDistributed(layers.Dense(4))

    assert td.compute_output_shape(shape) == (2, 3, 4)
    td.build(shape)
    assert td.weights[0].shape == (5, 4)


def test_sizes_may_be_integers_of_numpy():
    three = np.int64(3)
    td = TimeDistributed(layers.Dense(4))

    assert td.compute_output_shape((None, three, three)) == (None, 3, 4)
    td.build((None, three, three))
    assert td.weights[0].shape == (3, 4)


@pytest.mark.parametrize(
    "name",
    [
        "Dense",
        "LSTM",
        "Sequential CNN",
        "custom without either",
        "custom with a build of nothing",
    ],
)
def test_build_creates_the_weights(name):
    case = BY_NAME[name]
    td = TimeDistributed(case.make())

    td.build((None, None, *case.inputs))

    by_hand = case.make()
    by_hand(keras.KerasTensor((None, *case.inputs)))
    shapes = [w.shape for w in td.weights]
    assert shapes == [w.shape for w in by_hand.weights]
    assert td.built


@pytest.mark.parametrize("name", ["custom two inputs", "MultiHeadAttention"])
def test_a_layer_is_built_from_all_of_its_inputs(name):
    case = BY_NAME[name]
    td = TimeDistributed(case.make())

    symbols, kwargs = case.symbols()
    td(*symbols, **kwargs)

    by_hand = case.make()
    by_hand(*(keras.KerasTensor((None, *s)) for s in (case.inputs, *case.args)))
    shapes = [w.shape for w in td.weights]
    assert shapes == [w.shape for w in by_hand.weights]


def test_what_needs_two_inputs_is_not_built_from_one():
    case = BY_NAME["custom two inputs"]
    td = TimeDistributed(case.make())

    td.build((None, None, *case.inputs))

    assert not td.layer.built


def test_after_a_failed_call_it_can_still_be_built():
    td = TimeDistributed(layers.Dense(4))
    with pytest.raises(ValueError, match="at least two axes"):
        td(np.ones(3))

    td.build((None, None, 3))

    assert td.layer.built


class Encoder(keras.Layer):
    def __init__(self):
        super().__init__()
        self.steps = TimeDistributed(layers.LSTM(4))

    def build(self, input_shape):
        self.steps.build(input_shape)

    def call(self, inputs):
        return self.steps(inputs)


def test_a_custom_layer_may_build_the_wrapper():
    model = keras.Sequential([keras.Input((3, 5, 2)), Encoder()])

    assert len(model.trainable_weights) == 3
    assert model.output_shape == (None, 3, 4)


@needs("training")
def test_a_custom_layer_that_builds_the_wrapper_trains(rng):
    model = keras.Sequential([keras.Input((3, 5, 2)), Encoder()])
    x = rng.normal(size=(2, 3, 5, 2)).astype("float32")
    model.compile("sgd", "mse")
    model.train_on_batch(x, np.zeros((2, 3, 4), "float32"))


def test_symbolic_masks_agree_with_eager_masks():
    ids = np.array([[[1, 2, 0], [0, 0, 0]]])
    embedding = layers.Embedding(9, 4, mask_zero=True)
    symbolic = embedding(keras.KerasTensor((1, 2, 3), "int32"))
    eager = embedding(ids)

    for layer in (
        layers.Dense(4),
        layers.LSTM(4),
        layers.Flatten(),
        layers.GRU(4, return_sequences=True),
        layers.Bidirectional(layers.LSTM(4)),
    ):
        td = TimeDistributed(layer)
        y, z = td(symbolic), td(eager)
        assert y._keras_mask.shape == mask_of(z).shape
        assert y._keras_mask.dtype == "bool"

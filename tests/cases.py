"""The table of wrapped layers that the promises are tested on."""

import dataclasses
from collections.abc import Callable

import keras
import pytest
from keras import layers
from keras import ops
from keras import tree

from keras_td import TimeDistributed

BATCH, TIME = 2, 3


@dataclasses.dataclass
class Case:
    """A layer and what a time step of its arguments looks like.

    Shapes are those of one step without its batch axis: `(5,)` stands for an
    argument of shape `(batch, time, 5)`.
    """

    name: str
    make: Callable[[], keras.Layer]
    inputs: object
    args: tuple = ()
    kwargs: dict = dataclasses.field(default_factory=dict)
    options: dict = dataclasses.field(default_factory=dict)
    integer: bool = False
    differentiable: bool = True
    # Axes that a user may leave unknown besides batch and time.
    unknown_inner: object = None

    def arguments(self, make):
        """Maps `make` over the shapes: `(args, kwargs)` of a call."""
        args = [
            tree.map_shape_structure(make, s) for s in (self.inputs, *self.args)
        ]
        kwargs = {
            name: tree.map_shape_structure(make, s)
            for name, s in self.kwargs.items()
        }
        return args, {**kwargs, **self.options}

    def arrays(self, rng, batch=BATCH, time=TIME):
        def make(shape):
            shape = (batch, time, *shape)
            if self.integer:
                return rng.integers(1, 9, shape).astype("int32")
            return rng.normal(size=shape).astype("float32")

        return self.arguments(make)

    def symbols(self, batch=None, time=None):
        dtype = "int32" if self.integer else "float32"
        return self.arguments(
            lambda s: keras.KerasTensor((batch, time, *s), dtype)
        )


def leaves(nest):
    return [x for x in tree.flatten(nest) if hasattr(x, "shape")]


def with_leaves(nest, tensors):
    """Puts tensors in the place of the arrays of a nest."""
    rest = iter(tensors)
    return tree.map_structure(
        lambda x: next(rest) if hasattr(x, "shape") else x, nest
    )


def model_of(td, arguments):
    """A functional model that calls `td` on inputs like `arguments`."""
    inputs = [
        keras.Input(x.shape[1:], dtype=str(x.dtype)) for x in leaves(arguments)
    ]
    args, kwargs = with_leaves(arguments, inputs)
    return keras.Model(inputs, td(*args, **kwargs))


class NoBuild(keras.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, inputs):
        return self.dense(inputs)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 4)


class NoShape(keras.Layer):
    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 4))

    def call(self, inputs):
        return ops.matmul(inputs, self.kernel)


class Neither(keras.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, inputs):
        return self.dense(inputs)


class ArgMax(keras.Layer):
    def call(self, inputs):
        return ops.argmax(inputs, axis=-1)


class Moments(keras.Layer):
    def call(self, inputs):
        mean = ops.mean(inputs, axis=-1)
        return {"mean": mean, "rest": (inputs - mean[:, None], [mean * 2])}


class TwoInputs(keras.Layer):
    def build(self, a_shape, b_shape):
        self.a_kernel = self.add_weight(shape=(a_shape[-1], 4))
        self.b_kernel = self.add_weight(shape=(b_shape[-1], 4))

    def call(self, a, b, scale=1.0):
        a = ops.matmul(a, self.a_kernel)
        return (a + ops.matmul(b, self.b_kernel)) * scale


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(4, 3, activation="relu")
        self.pool = layers.GlobalAveragePooling2D()

    def call(self, inputs):
        return self.pool(self.conv(inputs))


def dense_stack():
    return keras.Sequential([layers.Dense(6, "relu"), layers.Dense(4)])


def cnn():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )


def two_branches():
    image = keras.Input((8, 8, 3), name="image")
    vector = keras.Input((5,), name="vector")
    x = layers.GlobalMaxPooling2D()(layers.Conv2D(4, 3)(image))
    x = layers.Concatenate()([x, vector])
    outputs = {"label": layers.Dense(3)(x), "score": layers.Dense(1)(x)}
    return keras.Model({"image": image, "vector": vector}, outputs)


SEQUENCE = (5, 4)

CASES = [
    Case("Dense", lambda: layers.Dense(4), (5,)),
    Case("Dense on images", lambda: layers.Dense(4), (6, 6, 3)),
    Case("Activation on (batch, time)", lambda: layers.Activation("tanh"), ()),
    Case("Identity", layers.Identity, (5,)),
    Case("Flatten", layers.Flatten, (3, 4)),
    Case("Reshape", lambda: layers.Reshape((2, -1)), (6,)),
    Case("Rescaling", lambda: layers.Rescaling(1 / 255), (6, 6, 3)),
    Case("LayerNormalization", layers.LayerNormalization, (5,)),
    Case("BatchNormalization", layers.BatchNormalization, (6, 6, 3)),
    Case("Dropout", lambda: layers.Dropout(0.5), (5,)),
    Case(
        "Conv1D", lambda: layers.Conv1D(4, 3), (8, 3), unknown_inner=(None, 3)
    ),
    Case(
        "Conv2D",
        lambda: layers.Conv2D(4, 3),
        (8, 8, 3),
        unknown_inner=(None, None, 3),
    ),
    Case("Conv2DTranspose", lambda: layers.Conv2DTranspose(4, 3), (6, 6, 3)),
    Case("MaxPooling2D", layers.MaxPooling2D, (8, 8, 3)),
    Case("GlobalAveragePooling2D", layers.GlobalAveragePooling2D, (6, 6, 3)),
    Case("GlobalAveragePooling1D", layers.GlobalAveragePooling1D, SEQUENCE),
    Case(
        "Embedding",
        lambda: layers.Embedding(9, 4),
        (5,),
        integer=True,
        unknown_inner=(None,),
    ),
    Case(
        "Embedding of (batch, time)",
        lambda: layers.Embedding(9, 4),
        (),
        integer=True,
    ),
    Case("LSTM", lambda: layers.LSTM(4), SEQUENCE, unknown_inner=(None, 4)),
    Case("GRU", lambda: layers.GRU(4, return_sequences=True), SEQUENCE),
    Case(
        "LSTM with states",
        lambda: layers.LSTM(4, return_sequences=True, return_state=True),
        SEQUENCE,
    ),
    Case(
        "LSTM from states",
        lambda: layers.LSTM(4),
        SEQUENCE,
        kwargs={"initial_state": [(4,), (4,)]},
    ),
    Case(
        "Bidirectional", lambda: layers.Bidirectional(layers.GRU(4)), SEQUENCE
    ),
    Case("ConvLSTM2D", lambda: layers.ConvLSTM2D(2, 3), (2, 6, 6, 3)),
    Case(
        "MultiHeadAttention",
        lambda: layers.MultiHeadAttention(2, 4),
        SEQUENCE,
        args=((6, 3),),
    ),
    Case(
        "MultiHeadAttention by name",
        lambda: layers.MultiHeadAttention(2, 4),
        SEQUENCE,
        kwargs={"value": (5, 3)},
        options={"use_causal_mask": True, "return_attention_scores": True},
    ),
    Case("Attention", layers.Attention, [(5, 4), (6, 4)]),
    Case("Concatenate", layers.Concatenate, [(5,), (3,)]),
    Case("Add", layers.Add, ((5,), (5,))),
    Case("Sequential", dense_stack, (5,)),
    Case("CNN", cnn, (8, 8, 3)),
    Case(
        "functional model of dicts",
        two_branches,
        {"image": (8, 8, 3), "vector": (5,)},
    ),
    Case("subclassed model", Subclassed, (8, 8, 3)),
    Case("TimeDistributed", lambda: TimeDistributed(dense_stack()), SEQUENCE),
    Case("custom, no build", NoBuild, (5,)),
    Case("custom, no compute_output_shape", NoShape, (5,)),
    Case("custom, neither", Neither, (5,)),
    Case("custom, argmax", ArgMax, (5,), differentiable=False),
    Case("custom, nested outputs", Moments, (5,)),
    Case("custom, two inputs", TwoInputs, (5,), args=((3,),)),
    Case(
        "custom, two inputs by name",
        TwoInputs,
        (5,),
        kwargs={"b": (3,)},
        options={"scale": 2.0},
    ),
]

BY_NAME = {case.name: case for case in CASES}


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


each_case = each(CASES)

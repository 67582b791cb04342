"""Models with Keras's own `TimeDistributed`, in every place it can be."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import layers
from keras import ops
from keras.layers import TimeDistributed as Stock

import custom


@dataclasses.dataclass(frozen=True)
class StockModel:
    """How to make a model, and which checks do not apply to it.

    Args:
        make: Makes the model.
        shape: Shape of its input, if the model has no `Input`s.
        cannot: Dict of checks that are not made, and why.
    """

    name: str
    make: Callable[[], Any]
    shape: tuple[int, ...] | None = None
    cannot: dict[str, str] = dataclasses.field(default_factory=dict)


def sequential(*inner, shape=(3, 4), **kwargs):
    return keras.Sequential([keras.Input(shape), *inner], **kwargs)


def functional(call, *shapes, **kwargs):
    inputs = [keras.Input(shape, **kwargs) for shape in shapes or [(3, 4)]]
    return keras.Model(inputs[0] if len(inputs) == 1 else inputs, call(*inputs))


def compiled(model, **kwargs):
    model.compile(**{"optimizer": "adam", "loss": "mse", **kwargs})
    return model


class HasHeld:
    """Has what it is given in its config."""

    def get_config(self):
        held = keras.saving.serialize_keras_object(self.held)
        return {**super().get_config(), "held": held}

    @classmethod
    def from_config(cls, config):
        held = keras.saving.deserialize_keras_object(config["held"])
        return cls(**{**config, "held": held})


@keras.saving.register_keras_serializable(package="tests")
class Holder(HasHeld, keras.Layer):
    """A layer that is given layers, and has them in its config."""

    def __init__(self, held, **kwargs):
        super().__init__(**kwargs)
        self.held = held

    def call(self, inputs):
        for layer in self.held:
            inputs = layer(inputs)
        return inputs


@keras.saving.register_keras_serializable(package="tests")
class Backwards(Holder):
    """A recurrent layer that holds layers, for `Bidirectional`."""

    return_sequences, return_state, stateful = True, False, False

    def __init__(self, held, go_backwards=False, **kwargs):
        super().__init__(held, **kwargs)
        self.go_backwards = go_backwards

    def call(self, inputs, initial_state=None):
        if self.go_backwards:
            inputs = ops.flip(inputs, axis=1)
        return super().call(inputs)

    def get_config(self):
        return {**super().get_config(), "go_backwards": self.go_backwards}


@keras.saving.register_keras_serializable(package="tests")
class HeldModel(HasHeld, keras.Model):
    """A subclassed model that is given a layer."""

    def __init__(self, held, **kwargs):
        super().__init__(**kwargs)
        self.held = held
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(self.held(inputs))


@keras.saving.register_keras_serializable(package="tests")
class Builder(keras.Layer):
    """A layer whose own code builds what it holds."""

    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.held = [Stock(layers.Dense(units)), Stock(layers.Dense(units))]

    def call(self, inputs):
        return self.held[1](self.held[0](inputs))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="tests")
class OwnTrainStep(keras.Model):
    """A functional model with its own method."""

    def half(self, x):
        return self(x) / 2


def triple(x):
    return x * 3


def submodels():
    inner = functional(Stock(layers.Dense(5)))
    middle = functional(lambda x: layers.ReLU()(inner(x)))
    outer = sequential(middle, Stock(layers.Dense(3)))
    return functional(lambda x: layers.Dense(2)(outer(x)))


def shared():
    encode = Stock(layers.Dense(3))
    return functional(
        lambda a, b: layers.Subtract()([encode(a), encode(b)]), (3, 4), (3, 4)
    )


def shared_with_a_submodel():
    encode = Stock(layers.Dense(4))
    inner = sequential(encode)
    return functional(lambda x: layers.Add()([encode(x), inner(x)]))


def news():
    """One encoder of titles, for articles that were read and for candidates."""
    encoder = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, name="dense")], name="encoder"
    )

    def score(read, candidates):
        user = layers.GlobalAveragePooling1D()(Stock(encoder)(read))
        return layers.Dot(axes=(2, 1))([Stock(encoder)(candidates), user])

    return functional(score, (3, 4), (2, 4))


def named():
    a, b = keras.Input((3, 4), name="a"), keras.Input((3, 2), name="b")
    joined = layers.Concatenate()([Stock(layers.Dense(3))(a), b])
    outputs = {
        "steps": Stock(layers.Dense(2), name="steps")(joined),
        "whole": layers.Dense(1, name="whole")(layers.Flatten()(joined)),
    }
    model = keras.Model({"a": a, "b": b}, outputs)
    loss = {"steps": "mse", "whole": "mae"}
    return compiled(model, loss=loss, loss_weights={"steps": 2, "whole": 0.5})


def operations():
    return functional(
        lambda x: ops.relu(Stock(layers.Dense(4))(x * 2)) + x[:, :1]
    )


def masked_branches():
    """A model in whose graph Keras has written masks."""

    def call(x):
        x = layers.Masking()(x)
        x = Stock(layers.Dense(3))(x)
        both = layers.Concatenate()([x, layers.Dense(2)(x)])
        return layers.LSTM(3)(both)

    # Keras 3.7 needs a known batch.
    return functional(call, (3, 4), batch_size=2)


def given_mask():
    def call(x):
        mask = ops.any(ops.greater(x, 0.5), axis=-1)
        return layers.LSTM(3)(Stock(layers.Dense(3))(x), mask=mask)

    return functional(call)


def cut():
    x = keras.Input((3, 4))
    middle = layers.Dense(4)(x)
    return keras.Model(middle, Stock(layers.Dense(2))(middle))


def mixed_precision():
    policy = keras.DTypePolicy("mixed_bfloat16")
    dense = layers.Dense(3, dtype=policy)
    return sequential(Stock(dense, dtype=policy), layers.LSTM(2, dtype=policy))


def int8():
    model = sequential(Stock(layers.Dense(3)), layers.Dense(2))
    model.quantize("int8")
    return model


def lora():
    model = sequential(Stock(layers.Dense(3)), layers.Dense(2))
    model.layers[0].layer.enable_lora(2)
    return compiled(model)


def frozen():
    model = sequential(
        Stock(sequential(layers.Dense(3), layers.Dense(3), shape=(4,))),
        Stock(layers.Dense(2)),
        layers.Dense(2),
    )
    model.layers[0].layer.layers[0].trainable = False
    model.layers[1].trainable = False
    return compiled(model)


def own_loss(y, y_pred):
    return ops.mean(ops.abs(y - y_pred), axis=-1)


def own_compile():
    model = sequential(Stock(layers.Dense(3)), layers.Dense(2))
    optimizer = keras.optimizers.SGD(
        keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5), momentum=0.9
    )
    return compiled(model, optimizer=optimizer, loss=own_loss, metrics=["mae"])


def application():
    cnn = keras.applications.MobileNetV2(
        (32, 32, 3), 0.35, weights=None, include_top=False, pooling="avg"
    )
    return sequential(Stock(cnn), layers.GRU(2), shape=(2, 32, 32, 3))


# Why a check is not made: Keras fails with its own layer too.
SCALE = "Keras calls it without its scale."
SHARED = "A file of Keras has its weights under one of the two names."

STATEFUL = (
    {"train": "Keras assigns to its state before it computes gradients."}
    if keras.backend.backend() == "torch"
    else {}
)

MODELS = [
    StockModel("layer in a model", lambda: sequential(Stock(layers.Dense(3)))),
    StockModel("functional in functional", submodels),
    StockModel(
        "Sequential in Sequential",
        lambda: sequential(
            keras.Sequential([Stock(layers.Dense(3)), Stock(layers.Dense(2))])
        ),
    ),
    StockModel(
        "TimeDistributed in TimeDistributed",
        lambda: sequential(Stock(Stock(layers.Dense(3))), shape=(2, 3, 4)),
    ),
    StockModel(
        "model with one in TimeDistributed",
        lambda: sequential(
            Stock(sequential(Stock(layers.Dense(3)), layers.LSTM(2))),
            shape=(2, 3, 4),
        ),
    ),
    StockModel(
        "in a list of a layer",
        lambda: sequential(
            Holder([Stock(layers.Dense(3)), Stock(layers.Dense(2))])
        ),
    ),
    StockModel(
        "in an attribute of a subclassed model",
        lambda: HeldModel(Stock(layers.Dense(3))),
        shape=(2, 3, 4),
    ),
    StockModel(
        "Bidirectional around",
        lambda: keras.Sequential(
            [layers.Bidirectional(Backwards([Stock(layers.Dense(3))]))]
        ),
        shape=(2, 3, 4),
    ),
    StockModel(
        "Bidirectional inside",
        lambda: sequential(
            Stock(layers.Bidirectional(layers.LSTM(2))), shape=(2, 3, 4)
        ),
    ),
    StockModel(
        "stacked cells inside",
        lambda: sequential(
            Stock(layers.RNN([layers.GRUCell(2), layers.LSTMCell(3)])),
            shape=(2, 3, 4),
        ),
    ),
    StockModel("called twice", shared),
    StockModel(
        "shared with a submodel",
        shared_with_a_submodel,
        cannot={
            "load": "A config of Keras counts its call in the submodel, too."
        },
    ),
    StockModel("one encoder under two", news, cannot={"load": SHARED}),
    StockModel("names of inputs and outputs", named),
    StockModel("operations", operations),
    StockModel("masks in the graph", masked_branches),
    StockModel("a mask of the author's", given_mask),
    StockModel("cut from a model", cut),
    StockModel(
        "a class of model",
        lambda: OwnTrainStep(
            x := keras.Input((3, 4)), Stock(layers.Dense(2))(x)
        ),
    ),
    StockModel(
        "built by data",
        lambda: keras.Sequential([Stock(layers.Dense(3)), layers.Dense(2)]),
        shape=(2, 3, 4),
    ),
    StockModel("mixed precision", mixed_precision),
    StockModel("int8", int8, cannot={"predict": SCALE, "train": SCALE}),
    StockModel("LoRA", lora),
    StockModel("frozen", frozen),
    StockModel("Adam", lambda: compiled(sequential(Stock(layers.Dense(3))))),
    StockModel("a loss and a schedule", own_compile),
    StockModel(
        "regularizers",
        lambda: sequential(Stock(layers.Dense(3, kernel_regularizer="l2"))),
    ),
    StockModel(
        "BatchNormalization",
        lambda: sequential(
            Stock(
                keras.Sequential([layers.Dense(3), layers.BatchNormalization()])
            )
        ),
    ),
    StockModel(
        "Dropout",
        lambda: sequential(Stock(layers.Dense(3)), layers.Dropout(0.5, seed=1)),
    ),
    StockModel(
        "Embedding",
        lambda: functional(
            lambda x: Stock(layers.LSTM(2))(Stock(layers.Embedding(9, 2))(x)),
            (2, 3),
            dtype="int32",
        ),
    ),
    StockModel(
        "convolutions",
        lambda: sequential(
            Stock(layers.Conv2D(2, 3)),
            Stock(layers.GlobalMaxPooling2D()),
            shape=(2, 6, 6, 3),
        ),
    ),
    StockModel(
        "a layer of a class that nobody registered",
        lambda: sequential(Stock(custom.Full())),
    ),
    StockModel(
        "a function that nobody registered",
        lambda: sequential(Stock(layers.Dense(3, activation=triple))),
    ),
    StockModel(
        "lambdas",
        lambda: sequential(
            layers.Lambda(lambda x: ops.flip(x, axis=1)),
            Stock(layers.Dense(3)),
            Stock(layers.Lambda(lambda x: ops.sum(x, axis=-1, keepdims=True))),
        ),
        cannot={"load": "A file of Keras has no names that a lambda uses."},
    ),
    StockModel(
        "a stateful RNN",
        lambda: keras.Sequential(
            [
                keras.Input(batch_shape=(2, 3, 4)),
                Stock(layers.Dense(3)),
                layers.LSTM(2, stateful=True),
            ]
        ),
        cannot={"load": "A file of Keras has no states of RNNs.", **STATEFUL},
    ),
    StockModel(
        "an application", application, cannot={"train": "It takes minutes."}
    ),
]

BY_NAME = {model.name: model for model in MODELS}

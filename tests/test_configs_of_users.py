"""A model is upgraded whatever the configs of its classes hold, or lack."""

import copy
import functools
import random

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras.layers import TimeDistributed as Stock
from keras.saving import deserialize_keras_object as made
from keras.saving import serialize_keras_object as serialized

import keras_td
from backends import needs
from keras_td import TimeDistributed
from reference import as_numpy
from reference import assert_close
from reference import normal
from stock_models import compiled
from stock_models import functional
from stock_models import sequential
from test_copies import Nameless
from test_copies import assert_same

pytestmark = pytest.mark.filterwarnings(
    "ignore:`build\\(\\)` was called on layer"
)


class Held(keras.Layer):
    """A layer that calls another, and has it in its config in some way."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)

    def compute_output_shape(self, shape):
        return self.inner.compute_output_shape(shape)


class HeldGraph(Held):
    def get_config(self):
        return {**super().get_config(), "inner": self.inner.get_config()}

    @classmethod
    def from_config(cls, config):
        inner = keras.Model.from_config(config["inner"])
        return cls(**{**config, "inner": inner})


def test_the_config_of_a_model_in_that_of_a_layer():
    def of(distribute):
        def encode(words):
            x = distribute(layers.Embedding(9, 4, mask_zero=True))(words)
            x = distribute(layers.GlobalAveragePooling1D())(x)
            x = layers.Concatenate()([layers.Dense(2)(x), x])
            return layers.LSTM(3)(x)

        encoder = functional(encode, (3, 4), batch_size=2, dtype="int32")
        inputs = keras.Input((3, 4), 2, dtype="int32")
        return keras.Sequential([inputs, HeldGraph(encoder)])

    old, by_hand = of(Stock), of(TimeDistributed)
    by_hand.set_weights(old.get_weights())
    words = np.array([[[1, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]]] * 2)

    assert_close(keras_td.upgrade(old)(words), by_hand(words))


def test_a_model_in_a_config_and_elsewhere_is_refused():
    shared = Stock(layers.Dense(4))
    model = sequential(shared, HeldGraph(functional(shared)))

    with pytest.raises(ValueError, match="called in the config of a model"):
        keras_td.upgrade(model)


class KeepsConfig(Held):
    """Keeps the config that it is given, and returns it in its own."""

    def __init__(self, inner, **kwargs):
        # Keras changes the configs that it reads.
        super().__init__(made(copy.deepcopy(inner)), **kwargs)
        self.inner_config = inner

    def get_config(self):
        return {**super().get_config(), "inner": self.inner_config}


@pytest.mark.parametrize(
    "inner", [lambda: layers.Dense(4), lambda: Stock(layers.Dense(4))]
)
def test_a_config_that_is_kept_can_be_saved(inner, rng, tmp_path):
    model = sequential(KeepsConfig(serialized(inner())), Stock(layers.Dense(2)))
    x = normal(rng, 2, 3, 4)

    new = assert_same(model, x)

    new.save(tmp_path / "new.keras")
    loaded = keras.saving.load_model(
        tmp_path / "new.keras", custom_objects={"KeepsConfig": KeepsConfig}
    )
    assert_close(loaded(x), model(x))


class Changed(KeepsConfig):
    """Makes another layer from the config, with the same name and shapes."""

    def __init__(self, inner, **kwargs):
        config = {**inner["config"], "dilation_rate": 2}
        super().__init__({**inner, "config": config}, **kwargs)
        self.inner_config = inner


def test_a_config_that_the_code_changes(rng):
    conv = layers.Conv1D(4, 2, padding="same", name="conv")

    new = assert_same(
        sequential(Changed(serialized(conv)), Stock(layers.Dense(2))),
        normal(rng, 2, 3, 4),
    )

    assert new.layers[0].inner.dilation_rate == (2,)


class Twice(keras.Layer):
    """Wraps the function that it is given, under the name of its argument."""

    def __init__(self, fn, raw=False, **kwargs):
        super().__init__(**kwargs)
        self.given, self.raw = fn, raw
        self.fn = lambda x: fn(x) * 2

    def call(self, x):
        return self.fn(x)

    def get_config(self):
        fn = self.given if self.raw else serialized(self.given)
        return {**super().get_config(), "fn": fn, "raw": self.raw}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "fn": made(config["fn"])})


def own(x):
    return ops.tanh(x) + x


@pytest.mark.parametrize("fn", [own, keras.activations.gelu])
@pytest.mark.parametrize("raw", [False, True])
def test_functions_that_code_wraps(fn, raw, rng):
    model = sequential(Twice(fn, raw), Stock(layers.Dense(2)))

    assert_same(model, normal(rng, 2, 3, 4))


class Builder:
    """Has a layer that functions use."""

    def __init__(self):
        self.td = Stock(layers.Dense(4), name="td")
        self.scale = 2.0


BUILDER = Builder()


def helper(x):
    return BUILDER.td(x)


def use_of(fn):
    return lambda x: fn(x)


USES = {
    "an attribute": lambda td: lambda x: BUILDER.td(x),
    "another function": lambda td: lambda x: helper(x),
    "a list": lambda td: lambda x, found=(td,): found[0](x),
    "a default": lambda td: lambda x, td=td: td(x),
    "a function in it": lambda td: lambda x: (lambda y: td(y))(x),
    "a method": lambda td: td.call,
    "a partial": lambda td: use_of(functools.partial(td.call)),
}


@pytest.mark.parametrize("use", USES)
def test_functions_that_use_a_stock_layer_from_outside(use, rng):
    BUILDER.td = Stock(layers.Dense(4), name="td")
    BUILDER.td.build((2, 3, 4))
    model = sequential(layers.Lambda(USES[use](BUILDER.td)))

    with pytest.raises(ValueError, match="uses the layer `td` from outside"):
        keras_td.upgrade(model)


def test_operations_that_call_a_stock_layer():
    td = Stock(layers.Dense(4), name="td")
    model = functional(lambda x: ops.map(td, x), (2, 3, 4))

    with pytest.raises(ValueError, match="uses the layer `td` from outside"):
        keras_td.upgrade(model)


def test_a_function_that_has_only_a_name_in_common(rng):
    def scaled(x):
        return x * BUILDER.scale

    model = sequential(layers.Lambda(scaled), Stock(layers.Dense(2)))

    assert_same(model, normal(rng, 2, 3, 4))


class Gate(keras.Operation):
    """An operation whose arguments no config can hold."""

    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def call(self, x):
        return self.fn(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def test_operations_of_functions(rng):
    def call(x):
        x = Gate(lambda y: y * 2)(Stock(layers.Dense(4))(x))
        return Gate(lambda y: y + 1)(x)

    model = functional(call)

    assert_same(model, normal(rng, 2, 3, 4))

    assert all(len(y._inbound_nodes) == 1 for y in model.operations)


class ScaledSequential(keras.Sequential):
    def __init__(self, layers=None, scale=1.0, **kwargs):
        super().__init__(layers, **kwargs)
        self.scale = scale

    def call(self, x, training=None, mask=None):
        return super().call(x, training=training, mask=mask) * self.scale

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


class ScaledModel(keras.Model):
    def __init__(self, *args, scale=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = scale

    def call(self, x, training=None, mask=None):
        return super().call(x, training=training, mask=mask) * self.scale


class OfTensors(ScaledModel):
    def __init__(self, inputs, outputs, scale=1.0, **kwargs):
        super().__init__(inputs, outputs, scale=scale, **kwargs)


@pytest.mark.parametrize("cls", [ScaledSequential, ScaledModel, OfTensors])
def test_arguments_of_classes_of_models(cls, rng):
    x = keras.Input((3, 4))
    td = Stock(layers.Dense(3))
    arguments = [[x, td]] if cls is ScaledSequential else [x, td(x)]

    assert_same(cls(*arguments, scale=3.0), normal(rng, 2, 3, 4))


def test_what_is_set_on_a_model_since(rng):
    model = functional(lambda x: layers.LSTM(2)(Stock(layers.Dense(3))(x)))
    td = model.layers[1]
    model.features = keras.Model(model.input, td.output)
    model.whole = keras.Model(model.input, model.output)
    model.parts = [td, layers.Dense(2)]
    model.temperature = keras.Variable(2.0)
    model.note, model.tokenizer = "words", Builder()
    x = normal(rng, 2, 3, 4)

    new = assert_same(model, x)

    assert new.features.layers[1] is new.whole.layers[1] is new.parts[0]
    assert type(new.parts[0]) is TimeDistributed
    assert new.temperature is not model.temperature
    assert float(as_numpy(new.temperature)) == 2
    assert new.note == "words"
    assert new.tokenizer is model.tokenizer
    assert_close(new.features(x), model.features(x))


def test_what_is_set_since_is_in_its_order():
    model = functional(Stock(layers.Dense(3)))
    for name in "zebra", "lion", "ape", "gnu", "bear":
        part = sequential(layers.Dense(2), shape=(4,), name=name)
        setattr(model, name, [part] if name == "ape" else part)

    new = keras_td.upgrade(model)

    assert [x.name for x in new._layers] == [x.name for x in model._layers]
    assert [v.path for v in new.weights] == [v.path for v in model.weights]


def test_dtype_policies_that_are_in_no_config(rng):
    inner = [Nameless(4, dtype="mixed_bfloat16"), Nameless(4, dtype="float16")]

    new = keras_td.upgrade(sequential(*inner, Stock(layers.Dense(2))))

    for layer, old in zip(new.layers, inner, strict=False):
        assert layer.dtype_policy.name == old.dtype_policy.name
        assert layer.weights[0].dtype == old.weights[0].dtype


@pytest.mark.filterwarnings("ignore:Layer 'dense.*does not support masking")
def test_masks_that_a_layer_is_told_to_keep(rng):
    dense = layers.Dense(3)
    dense.supports_masking = False
    model = sequential(
        layers.Masking(), Stock(layers.Dense(4)), dense, layers.LSTM(2)
    )

    assert not keras_td.upgrade(model).layers[2].supports_masking


@needs("training")
def test_regularizers_and_constraints_set_since(rng):
    model = compiled(sequential(Stock(layers.Dense(4)), layers.Dense(2)))
    first, second = model.layers[0].layer, model.layers[1]
    # A regularizer of a built layer has no effect, but those of variables do.
    first.kernel_regularizer = keras.regularizers.L2(0.5)
    second.kernel.regularizer = keras.regularizers.L2(0.5)
    second.bias.constraint = keras.constraints.NonNeg()
    x, y = normal(rng, 2, 3, 4), normal(rng, 2, 3, 2)

    new = keras_td.upgrade(model, steps_per_call=1)

    losses = [m.train_on_batch(x, y) for m in (new, model)]
    assert_close(*map(np.asarray, losses))
    assert_close(new.get_weights(), model.get_weights())


def test_a_variable_tied_since_is_refused():
    a, b = layers.Dense(4, name="a"), layers.Dense(4, name="b")
    model = sequential(a, b, Stock(layers.Dense(2)), name="model")
    b._tracker.unlock()
    b._untrack_variable(b.kernel)
    b._kernel = a.kernel
    b._tracker.lock()

    with pytest.raises(ValueError, match="`model/b` has no equal copy: it"):
        keras_td.upgrade(model)


class Threshold(keras.metrics.Mean):
    """Has no `get_config` of its own."""

    def __init__(self, threshold=0.0, **kwargs):
        super().__init__(**kwargs)
        self.threshold = threshold

    def update_state(self, y, y_pred, sample_weight=None):
        super().update_state(ops.cast(y_pred > self.threshold, "float32"))


@needs("training")
def test_arguments_of_metrics_that_are_in_no_config(rng):
    model = compiled(sequential(Stock(layers.Dense(2))))
    model.compile("sgd", "mse", metrics=[Threshold(-100.0, name="above")])
    x, y = normal(rng, 2, 3, 4), normal(rng, 2, 3, 2)

    new = keras_td.upgrade(model)

    results = new.evaluate(x, y, verbose=0, return_dict=True)
    assert results["above"] == 1


def test_losses_that_use_the_model_are_told():
    model = sequential(Stock(layers.Dense(2)), name="model")
    dense = model.layers[0].layer
    model.compile("sgd", lambda y, y_pred: ops.sum(dense.kernel) + y_pred)

    with pytest.warns(UserWarning, match=r"has to be compiled again.*`dense"):
        assert not keras_td.upgrade(model).compiled


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"),
    reason="Keras has it since 3.15",
)
def test_optimizers_in_a_function_are_told():
    adam, sgd = keras.optimizers.Adam(), keras.optimizers.SGD()
    model = sequential(Stock(layers.Dense(2)), layers.Dense(2))
    model.compile(
        keras.optimizers.MultiOptimizer(
            lambda v: adam if "time" in v.path else sgd
        ),
        "mse",
    )

    with pytest.warns(UserWarning, match="has to be compiled again"):
        assert not keras_td.upgrade(model).compiled


def graph(seed, distribute):
    """A model of two inputs, with branches, some of them masked."""
    rng = random.Random(seed)
    words = keras.Input((5,), 2, dtype="int32", name="words")
    numbers = keras.Input((5,), 2, dtype="int32", name="numbers")
    pool = [
        layers.Embedding(9, 4, mask_zero=rng.random() < 0.6)(x)
        for x in (words, numbers)
    ]
    for _ in range(rng.randint(4, 8)):
        x, other = rng.choice(pool), rng.choice(pool)
        make = rng.choice(
            [
                lambda: layers.Dense(4)(x),  # noqa: B023
                lambda: distribute(layers.Dense(4))(x),  # noqa: B023
                lambda: layers.GRU(4, return_sequences=True)(x),  # noqa: B023
                lambda: layers.Dropout(0.1)(x),  # noqa: B023
                lambda: layers.Add()([x, other]),  # noqa: B023
                lambda: x * 2,  # noqa: B023
            ]
        )
        pool.append(make())
    outputs = layers.GRU(3)(layers.Concatenate()(pool))
    return keras.Model([words, numbers], outputs)


@pytest.mark.parametrize("seed", range(12))
def test_an_upgraded_graph_is_that_of_a_model_built_so(seed, rng, tmp_path):
    models = []
    for distribute in Stock, TimeDistributed:
        keras.backend.clear_session()
        models.append(graph(seed, distribute))
    old, by_hand = models
    by_hand.set_weights(old.get_weights())

    new = keras_td.upgrade(old)

    names = [[x.name for x in m.layers] for m in (new, by_hand)]
    assert names[0] == names[1]
    words = [rng.integers(0, 3, (2, 5)) for _ in range(2)]
    assert_close(new(words), by_hand(words))
    # Weights files load in both directions.
    old.save_weights(tmp_path / "old.weights.h5")
    new.load_weights(tmp_path / "old.weights.h5")
    assert_close(new(words), by_hand(words))

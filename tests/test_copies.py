"""A model that is upgraded keeps everything that its author has given it."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras.layers import TimeDistributed as Stock

import custom
import keras_td
from backends import needs
from keras_td import TimeDistributed
from reference import as_numpy
from reference import assert_close
from reference import normal
from stock_models import Holder
from stock_models import compiled
from stock_models import functional
from stock_models import sequential

pytestmark = pytest.mark.filterwarnings(
    "ignore:`build\\(\\)` was called on layer"
)


def assert_same(model, *inputs):
    """Asserts that a model is upgraded, and predicts the same."""
    new = keras_td.upgrade(model)
    inputs = inputs[0] if len(inputs) == 1 else list(inputs)
    assert_close(new(inputs, training=False), model(inputs, training=False))
    return new


class Nameless(custom.Full):
    """Has a config without a name."""

    def get_config(self):
        return {"units": self.units}


def test_layers_whose_configs_have_no_names(rng):
    inner = [Nameless(4) for _ in range(12)]
    model = sequential(*inner, Stock(layers.Dense(4)))

    new = assert_same(model, normal(rng, 2, 3, 4))

    assert [x.name for x in new.layers] == [x.name for x in model.layers]
    assert_same(
        sequential(Stock(Nameless()), Holder(inner)), normal(rng, 2, 3, 4)
    )


def test_layers_of_one_config_that_are_called_in_turns_are_refused():
    a, b = Nameless(4), Nameless(4)

    with pytest.raises(ValueError, match=r"holds .*, but its copy"):
        keras_td.upgrade(sequential(Stock(layers.Dense(4)), Holder([a, b, a])))


class Many(keras.Layer):
    """Has layers of one shape, with new default names in each copy."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = [layers.Dense(4) for _ in range(12)]

    def call(self, x):
        for layer in self.inner:
            x = layer(x)
        return x


def test_layers_that_code_names_anew(rng):
    model = keras.Sequential([Many(), Stock(layers.Dense(4))])
    x = normal(rng, 2, 3, 4)
    model(x)

    assert_same(model, x)


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_frozen_in_a_shared_layer(whole):
    encoder = sequential(layers.Dense(3), layers.Dense(3), shape=(4,))
    (encoder if whole else encoder.layers[0]).trainable = False
    model = functional(
        lambda a, b: [Stock(encoder)(a), Stock(encoder)(b)], (3, 4), (2, 4)
    )

    new = keras_td.upgrade(model)

    flags = [[v.trainable for v in m.weights] for m in (model, new)]
    assert flags[0] == flags[1] == [False, False, not whole, not whole]


def test_what_a_layer_has_adapted_to(rng):
    normalization = layers.Normalization()
    normalization.adapt(normal(rng, 9, 4) + 5)

    assert_same(sequential(Stock(normalization)), normal(rng, 2, 3, 4))


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="Only TensorFlow has tensors of strings",
)
def test_the_table_of_a_lookup():
    lookup = layers.StringLookup()
    lookup.adapt(np.array([["a", "b", "b"]]))
    x = keras.Input((3, 2), dtype="string")
    y = layers.Embedding(4, 3)(Stock(lookup, dtype="string")(x))

    assert_same(keras.Model(x, y), ops.convert_to_tensor([[["a", "b"]] * 3]))


class Scaled(keras.Layer):
    """Takes a mask that Keras does not pass."""

    supports_masking = True

    def call(self, x, padding_mask=None):
        return x if padding_mask is None else x * padding_mask[..., None]

    def compute_output_shape(self, shape, *args):
        return shape


def own_name_of_mask(words, scores):
    x = layers.Embedding(9, 4, mask_zero=True)(words)
    return Stock(layers.Dense(2))(
        Scaled()(x, padding_mask=ops.not_equal(words, 0))
    )


def masks_of_some(words, scores):
    x = layers.Embedding(9, 4, mask_zero=True)(words)
    mask = ops.not_equal(words, 0)
    x = layers.Attention()([x, x], mask=[mask, None])
    return Stock(layers.Dense(2))(x)


def a_mask_next_to_another(words, scores):
    x = layers.Embedding(9, 4, mask_zero=True)(words)
    x = layers.MultiHeadAttention(1, 2)(
        x, x, attention_mask=ops.not_equal(scores, 0), use_causal_mask=True
    )
    return Stock(layers.Dense(2))(x)


def a_constant_mask(words, scores):
    x = layers.Embedding(9, 4)(words)
    mask = np.tri(3, dtype="bool")[None]
    x = layers.MultiHeadAttention(1, 2)(x, x, attention_mask=mask)
    return Stock(layers.Dense(2))(x)


@pytest.mark.parametrize(
    "call",
    [own_name_of_mask, masks_of_some, a_mask_next_to_another, a_constant_mask],
)
def test_masks_of_the_author(call, rng):
    words = keras.Input((3,), dtype="int32")
    scores = keras.Input((3, 3), dtype="int32")
    model = keras.Model([words, scores], call(words, scores))
    array = np.array([[1, 2, 0], [3, 0, 0]], "int32")

    assert_same(model, array, np.eye(3, dtype="int32")[[[0, 1, 2], [1, 1, 1]]])


def relu(x):
    return x * 7


def closure(factor, function):
    return lambda x: function(x) * factor[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Stock(layers.Dense(3, activation=relu)),
        lambda: Stock(layers.Dense(3, activation=closure([2.0], relu))),
        lambda: Stock(layers.Lambda(closure([2.0], relu))),
        lambda: Stock(layers.LSTM(3, activation=relu)),
    ],
)
def test_functions_of_the_author(make, rng):
    model = sequential(make(), Stock(layers.Dense(2)), shape=(2, 3, 4))

    assert_same(model, normal(rng, 2, 2, 3, 4) / 9)


@pytest.mark.parametrize("mask", [lambda x, mask: x[..., 0] > 0, None])
def test_the_mask_of_a_lambda(mask, rng):
    model = sequential(
        layers.Lambda(relu, mask=mask), Stock(layers.Dense(2)), layers.LSTM(2)
    )

    assert_same(model, normal(rng, 2, 3, 4))


def test_a_function_that_calls_a_stock_layer_is_refused():
    td = Stock(layers.Dense(3), name="td")

    with pytest.raises(ValueError, match="uses the layer `td` from outside"):
        keras_td.upgrade(sequential(layers.Lambda(lambda x: td(x))))


class Settings:
    pass


class WithSettings(keras.Layer):
    """Has a config that no file can hold."""

    def __init__(self, settings, inner, **kwargs):
        super().__init__(**kwargs)
        self.settings = settings
        self.inner = inner

    def call(self, x):
        return self.inner(x)

    def compute_output_shape(self, shape):
        return self.inner.compute_output_shape(shape)

    def get_config(self):
        kept = {"settings": self.settings, "inner": self.inner}
        return {**super().get_config(), **kept}


def test_configs_that_no_file_can_hold(rng):
    settings = Settings()
    model = sequential(WithSettings(settings, Stock(layers.Dense(3))))

    new = assert_same(model, normal(rng, 2, 3, 4))

    assert new.layers[0].settings is settings
    assert type(new.layers[0].inner) is TimeDistributed


def test_options_reach_what_code_builds(rng):
    model = sequential(Coded(), Stock(layers.Dense(3)))

    with keras_td.replacing(steps_per_call=3, skip_masked=True):
        new = keras_td.upgrade(model, steps_per_call=2)

    for td in new.layers[0].td, new.layers[1]:
        assert td.steps_per_call == 2
        assert td.skip_masked


class Coded(keras.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.td = Stock(layers.Dense(3))

    def call(self, x):
        return self.td(x)


def test_wrong_options_are_told_whatever_the_model():
    with pytest.raises(ValueError, match="steps_per_call=0"):
        keras_td.upgrade(sequential(layers.Dense(3)), steps_per_call=0)


class Halving(keras.optimizers.schedules.LearningRateSchedule):
    """Is not registered."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, step):
        return self.rate / (ops.cast(step, "float32") + 1)

    def get_config(self):
        return {"rate": self.rate}


def own_metric(y, y_pred):
    return ops.mean(y_pred, axis=-1)


@needs("training")
@pytest.mark.parametrize(
    "arguments",
    [
        lambda: {"optimizer": keras.optimizers.SGD(Halving(0.1))},
        lambda: {"optimizer": keras.optimizers.Adam(lambda: 0.1)},
        lambda: {"metrics": [keras.metrics.MeanMetricWrapper(own_metric)]},
        lambda: {"loss": own_metric, "metrics": [own_metric]},
        lambda: {"optimizer": keras.optimizers.SGD(use_ema=True)},
    ],
)
def test_what_it_is_compiled_with(arguments, rng):
    model = compiled(sequential(Stock(layers.Dense(3))), **arguments())
    x, y = normal(rng, 2, 3, 4), normal(rng, 2, 3, 3)
    model.train_on_batch(x, y)

    new = keras_td.upgrade(model, steps_per_call=1)

    model.reset_metrics()
    assert_close(*[np.asarray(m.train_on_batch(x, y)) for m in (new, model)])
    assert_close(new.get_weights(), model.get_weights())


@needs("training")
def test_the_state_of_an_optimizer_whose_layers_were_frozen_since(rng):
    """Two weights have one path."""

    def part():
        dense = layers.Dense(4, name="dense")
        return sequential(dense, shape=(4,), name="part")

    a, b = part(), part()
    model = compiled(functional(lambda x: [Stock(a)(x), Stock(b)(x)]))
    x = normal(rng, 2, 3, 4)
    model.train_on_batch(x, [x, x])
    a.trainable = False

    new = keras_td.upgrade(model)

    assert_close(
        [as_numpy(v) for v in new.optimizer.variables],
        [as_numpy(v) for v in model.optimizer.variables],
    )


class OwnCompile(keras.Model):
    def compile(self, rate):
        super().compile()
        self.rate = rate


def test_what_cannot_be_compiled_again_is_told():
    inputs = keras.Input((3, 4))
    model = OwnCompile(inputs, Stock(layers.Dense(2))(inputs), name="own")
    model.compile(rate=0.1)

    with pytest.warns(UserWarning, match=r"`own`.* has to be compiled again"):
        new = keras_td.upgrade(model)

    assert not new.compiled


@needs("training")
@pytest.mark.parametrize("auto_scale_loss", [False, True])
def test_the_scale_of_losses(auto_scale_loss, rng):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = sequential(Stock(layers.Dense(3)))
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile("sgd", "mse", auto_scale_loss=auto_scale_loss)
    model.train_on_batch(normal(rng, 2, 3, 4), normal(rng, 2, 3, 3))

    new = keras_td.upgrade(model)

    assert new.dtype_policy == model.dtype_policy
    assert type(new.optimizer) is type(model.optimizer)
    assert_close(
        [as_numpy(v) for v in new.optimizer.variables],
        [as_numpy(v) for v in model.optimizer.variables],
    )


class Nested(keras.Layer):
    """Holds a layer next to one that holds another with its name and config."""

    def __init__(self, block, proj, **kwargs):
        super().__init__(**kwargs)
        self.block = block
        self.proj = proj

    def call(self, x):
        return self.proj(self.block(x))

    def compute_output_shape(self, shape):
        return self.proj.compute_output_shape(shape)

    def get_config(self):
        kept = {"block": self.block, "proj": self.proj}
        return {
            **super().get_config(),
            **{
                k: keras.saving.serialize_keras_object(v)
                for k, v in kept.items()
            },
        }

    @classmethod
    def from_config(cls, config):
        for name in "block", "proj":
            # As public code does, it reads the entry too.
            assert config[name]["class_name"] in ("Sequential", "Dense")
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def test_layers_of_one_name_in_and_next_to_another(rng):
    block = sequential(layers.Dense(4, name="proj"), shape=(3, 4))
    nested = Nested(block, layers.Dense(4, name="proj"))

    new = assert_same(
        sequential(nested, Stock(layers.Dense(2))), normal(rng, 2, 3, 4)
    )

    assert new.layers[0].proj is not new.layers[0].block.layers[0]


class InAnotherOrder(keras.Layer):
    """Makes layers in another order than its config has them."""

    def __init__(self, query=None, key=None, **kwargs):
        super().__init__(**kwargs)
        make = keras.saving.deserialize_keras_object
        self.key = make(key) if key else Nameless()
        self.query = make(query) if query else Nameless()

    def call(self, x):
        return self.query(x) - 2 * self.key(x)

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        kept = {"query": self.query, "key": self.key}
        return {
            k: keras.saving.serialize_keras_object(v) for k, v in kept.items()
        }


def test_layers_without_names_in_another_order(rng):
    model = sequential(InAnotherOrder(), Stock(layers.Dense(2)))

    assert_same(model, normal(rng, 2, 3, 4))


class WithMethods(custom.Full):
    """Has arguments with the names of methods."""

    def __init__(self, normalize=False, quantize=None, **kwargs):
        super().__init__(**kwargs)
        self.arguments = normalize, quantize

    def _normalize(self, x):
        return x

    def get_config(self):
        kept = dict(zip(("normalize", "quantize"), self.arguments, strict=True))
        return {**super().get_config(), **kept}


def test_arguments_of_the_names_of_methods(rng):
    model = sequential(WithMethods(), Stock(layers.Dense(2)))

    new = assert_same(model, normal(rng, 2, 3, 4))

    assert new.layers[0].arguments == (False, None)


class BuiltFromConfig(keras.Layer):
    """Has a state that only its build config holds."""

    scale = 1.0

    def call(self, x):
        return x * self.scale

    def get_build_config(self):
        return {"scale": self.scale}

    def build_from_config(self, config):
        self.scale = config["scale"]


def test_what_a_layer_is_built_from(rng):
    layer = BuiltFromConfig()
    layer.scale = 3.0

    assert_same(sequential(layer, Stock(layers.Dense(2))), normal(rng, 2, 3, 4))


def test_the_scale_of_lora(rng):
    dense = layers.Dense(3)
    model = sequential(dense, Stock(layers.Dense(2)))
    dense.enable_lora(
        2, **({"lora_alpha": 8} if hasattr(dense, "lora_alpha") else {})
    )
    for v in model.weights:
        v.assign(normal(rng, *v.shape))

    assert_same(model, normal(rng, 2, 3, 4))


def test_a_graph_deeper_than_the_stack_of_python(rng, tmp_path):
    def call(x):
        for _ in range(300):
            x = x + 0.0
        return layers.LSTM(2)(Stock(layers.Dense(2))(layers.Masking()(x)))

    functional(call, (3, 4), batch_size=2).save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")

    assert_same(model, normal(rng, 2, 3, 4))


class OwnOptimizer(keras.Model):
    """Has an optimizer next to that of `compile`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.own = keras.optimizers.SGD(0.1, momentum=0.9)


@needs("training")
def test_the_state_of_an_optimizer_of_its_own(rng):
    inputs = keras.Input((3, 4))
    model = OwnOptimizer(inputs, Stock(layers.Dense(2))(inputs))
    model.own.build(model.trainable_variables)
    model.own.iterations.assign(7)

    assert int(as_numpy(keras_td.upgrade(model).own.iterations)) == 7


class Lazy(keras.Layer):
    def build(self, shape):
        self.td = Stock(layers.Dense(3))
        self.td.build(shape)

    def call(self, x):
        return self.td(x)


def test_options_reach_what_is_built_late(rng):
    class Reader(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.lazy = Lazy()

        def call(self, x):
            return self.lazy(x)

    model = Reader()
    model(normal(rng, 2, 3, 4))

    with keras_td.replacing():
        new = keras_td.upgrade(model, steps_per_call=2)

    assert new.lazy.td.steps_per_call == 2


class Kept:
    def __init__(self, layer):
        self.layer = layer


def test_a_layer_that_no_config_tells_is_refused():
    class Hides(WithSettings):
        def __init__(self, settings, inner, **kwargs):
            super().__init__(settings, inner, **kwargs)
            self.hidden = settings.layer

    model = sequential(Hides(Kept(layers.Dense(4)), Stock(layers.Dense(3))))

    with pytest.raises(ValueError, match="is its own copy"):
        keras_td.upgrade(model)


class WithTemperature(keras.Model):
    def __init__(self, *args, temperature=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.temperature = temperature

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}

    @classmethod
    def from_config(cls, config):
        temperature = config.pop("temperature")
        model = super().from_config(config)
        model.temperature = temperature
        return model


def test_functional_models_that_make_themselves_are_refused():
    inputs = keras.Input((3, 4))
    outputs = Stock(layers.Dense(2))(inputs)
    model = WithTemperature(inputs, outputs, temperature=2.0)

    with pytest.raises(ValueError, match="its own `from_config`"):
        keras_td.upgrade(model)

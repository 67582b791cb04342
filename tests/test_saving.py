"""Models are saved and loaded, and weights go to and from stock Keras."""

import copy
import json
import pickle

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras import tree

import keras_td
from case import leaves
from case import one_or_all
from cases import BY_NAME
from cases import each
from cases import each_case
from custom import CUSTOM
from custom import TwoInputs
from custom import dense_stack
from keras_td import TimeDistributed
from limits import no_worse_than_plain
from reference import as_numpy
from reference import assert_close
from reference import normal

# Keras warns about every layer without `build` that it loads.
no_build_warning = pytest.mark.filterwarnings(
    "ignore:`build\\(\\)` was called on layer"
)


def model_and_arrays(case, rng):
    arguments = case.arrays(rng)
    model = case.model_of(case.wrapped(), arguments)
    return model, one_or_all(leaves(arguments))


def predictions(model, arrays):
    return tree.flatten(model(arrays, training=False))


@no_build_warning
@each_case
@no_worse_than_plain
def test_a_saved_model_loads(case, rng, tmp_path):
    model, arrays = model_and_arrays(case, rng)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(
        tmp_path / "model.keras", custom_objects=CUSTOM, safe_mode=False
    )

    assert_close(predictions(loaded, arrays), predictions(model, arrays))


@each_case
@no_worse_than_plain
def test_a_config_makes_the_same_layer(case):
    layer = case.wrapped()
    config = layer.get_config()
    kept = copy.deepcopy(config)

    with keras.saving.custom_object_scope(CUSTOM):
        again = type(layer).from_config(config)

    assert again.get_config() == kept
    assert type(again) is type(layer)
    if case.has_time:
        assert config == kept
        assert type(again.layer) is type(layer.layer)


@each_case
@no_worse_than_plain
def test_a_stock_config_loads(case):
    stock = keras.layers.TimeDistributed(case.make())
    config = stock.get_config()
    kept = copy.deepcopy(config)
    # Here the plain layer is the one in stock Keras's wrapper.
    cls = TimeDistributed if case.has_time else type(stock)

    with keras.saving.custom_object_scope(CUSTOM):
        td = cls.from_config(config)

    assert config == kept or cls is not TimeDistributed
    assert td.name == stock.name
    assert type(td.layer) is type(stock.layer)


class Holder(keras.Model):
    """Stores the weights of a layer, whether or not it can be called."""

    def __init__(self, layer):
        super().__init__()
        self.held = layer
        self.built = True


@pytest.mark.parametrize("to_stock", [True, False], ids=["to", "from"])
@each_case
@no_worse_than_plain
def test_weights_go_both_ways_with_stock(case, to_stock, rng, tmp_path):
    wrappers = [keras.layers.TimeDistributed(case.make()), case.wrapped()]
    # Stock cannot be called on each case, so the layer inside is built alone.
    args, kwargs = case.plain.symbols(*case.plain.lead)
    for wrapper in wrappers:
        getattr(wrapper, "layer", wrapper)(*args, **kwargs)
        wrapper.built = True
    target, source = wrappers if to_stock else wrappers[::-1]
    drawn = [rng.normal(size=w.shape) for w in source.weights]
    source.set_weights(drawn)

    Holder(source).save_weights(tmp_path / "model.weights.h5")
    Holder(target).load_weights(tmp_path / "model.weights.h5")

    assert_close(target.get_weights(), source.get_weights())


@each([BY_NAME[name] for name in ("Dense", "LSTM", "MultiHeadAttention")])
def test_a_pickled_model_loads(case, rng):
    model, arrays = model_and_arrays(case, rng)

    loaded = pickle.loads(pickle.dumps(model))

    assert_close(predictions(loaded, arrays), predictions(model, arrays))


def text_model(wrapper):
    return keras.Sequential(
        [
            keras.Input((3, 5), dtype="int32"),
            wrapper(layers.Embedding(9, 4)),
            wrapper(layers.Bidirectional(layers.LSTM(3))),
            wrapper(dense_stack()),
        ]
    )


@pytest.mark.parametrize("to_stock", [True, False], ids=["to", "from"])
def test_weight_files_go_both_ways_with_stock(to_stock, rng, tmp_path):
    wrappers = [keras.layers.TimeDistributed, TimeDistributed]
    target, source = wrappers if to_stock else reversed(wrappers)
    source, target = text_model(source), text_model(target)
    ids = rng.integers(0, 9, (2, 3, 5)).astype("int32")
    assert np.abs(as_numpy(source(ids)) - as_numpy(target(ids))).max() > 1e-3

    source.save_weights(tmp_path / "model.weights.h5")
    target.load_weights(tmp_path / "model.weights.h5")

    assert_close(target(ids), source(ids))


def test_a_stock_model_becomes_one_of_this_layer(rng):
    stock = text_model(keras.layers.TimeDistributed)
    ids = rng.integers(0, 9, (2, 3, 5)).astype("int32")

    def convert(layer):
        cls = type(layer)
        if cls is keras.layers.TimeDistributed:
            cls = TimeDistributed
        return cls.from_config(layer.get_config())

    model = keras.models.clone_model(stock, clone_function=convert)
    model.set_weights(stock.get_weights())

    assert all(type(layer) is TimeDistributed for layer in model.layers)
    assert_close(model(ids), stock(ids))


def test_the_layer_is_registered_under_its_own_name():
    name = keras.saving.get_registered_name(TimeDistributed)
    assert name == "keras_td>TimeDistributed"


@no_build_warning
@each_case
@no_worse_than_plain
def test_upgrade_copies_each_layer(case, rng):
    model, arrays = model_and_arrays(case, rng)

    copy = keras_td.upgrade(model)

    assert_close(predictions(copy, arrays), predictions(model, arrays))


def test_from_config_finds_custom_objects():
    td = TimeDistributed(TwoInputs())

    again = TimeDistributed.from_config(
        td.get_config(), custom_objects={"TwoInputs": TwoInputs}
    )

    assert type(again.layer) is TwoInputs


def test_a_subclassed_model_saves_its_wrapper(rng, tmp_path):
    @keras.saving.register_keras_serializable(package="test_saving")
    class Tagger(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.encode = TimeDistributed(layers.LSTM(4))
            self.attend = TimeDistributed(layers.MultiHeadAttention(1, 2))
            self.tag = TimeDistributed(layers.Dense(2))

        def call(self, inputs):
            x = self.attend(inputs, value=inputs, use_causal_mask=True)
            return self.tag(self.encode(x))

    model, x = Tagger(), normal(rng, 2, 3, 5, 4)
    expected = model(x)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")

    assert_close(loaded(x), expected)


@no_build_warning
def test_a_wrapper_inside_a_custom_layer_is_restored(rng, tmp_path):
    @keras.saving.register_keras_serializable(package="test_saving")
    class Encoder(keras.Layer):
        def __init__(self, steps, **kwargs):
            super().__init__(**kwargs)
            self.steps = steps

        def call(self, inputs):
            return self.steps(inputs)

        def get_config(self):
            steps = keras.saving.serialize_keras_object(self.steps)
            return {**super().get_config(), "steps": steps}

        @classmethod
        def from_config(cls, config):
            steps = keras.saving.deserialize_keras_object(config.pop("steps"))
            return cls(steps, **config)

    model = keras.Sequential(
        [
            keras.Input((3, 5)),
            Encoder(TimeDistributed(layers.Dense(4))),
            Encoder(TimeDistributed(BY_NAME["custom without either"].make())),
        ]
    )
    x = normal(rng, 2, 3, 5)
    model.save(tmp_path / "model.keras")

    loaded = keras.models.load_model(
        tmp_path / "model.keras", custom_objects=CUSTOM
    )

    assert_close(loaded(x), model(x))


def test_a_masked_model_saves_its_masks(rng, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((None, None), dtype="int32"),
            TimeDistributed(layers.Embedding(9, 4, mask_zero=True)),
            TimeDistributed(layers.LSTM(5)),
            layers.LSTM(3),
        ]
    )
    ids = rng.integers(1, 9, (2, 3, 5)).astype("int32")
    model.save(tmp_path / "model.keras")

    loaded = keras.models.load_model(tmp_path / "model.keras")

    padded = np.pad(ids, ((0, 0), (0, 2), (0, 3)))
    assert_close(loaded(padded), model(ids))


@pytest.mark.parametrize("how", ["config", "clone", "file"])
def test_masks_that_must_not_leave_stay_inside(how, tmp_path):
    td = TimeDistributed(layers.Dense(3))
    td.supports_masking = False
    model = keras.Sequential([keras.Input((4, 2)), td])

    match how:
        case "config":
            again = TimeDistributed.from_config(td.get_config())
        case "clone":
            again = keras.models.clone_model(model).layers[-1]
        case "file":
            model.save(tmp_path / "model.keras")
            again = keras.models.load_model(tmp_path / "model.keras").layers[-1]

    assert again.supports_masking is False
    assert TimeDistributed(layers.Dense(3)).supports_masking is True
    # Keras's own layer has no such argument.
    config = TimeDistributed(layers.Dense(3)).get_config()
    assert "supports_masking" not in config


def test_a_wrapper_that_does_not_train_stays_one(tmp_path):
    td = TimeDistributed(layers.Dense(3), trainable=False)
    model = keras.Sequential([keras.Input((4, 2)), td])
    model.save(tmp_path / "model.keras")

    loaded = keras.models.load_model(tmp_path / "model.keras")

    for wrapper in td, loaded.layers[-1]:
        assert wrapper.trainable_weights == []
        assert not wrapper.layer.trainable
        wrapper.trainable = True
        assert len(wrapper.trainable_weights) == 2


def test_saved_classes_have_names_that_outlive_their_modules():
    ids = keras.Input((None, None), dtype="int32")
    embedding = TimeDistributed(layers.Embedding(9, 4, mask_zero=True))
    sentences = TimeDistributed(layers.LSTM(5))(embedding(ids), mask=ids != 0)
    model = keras.Model(ids, layers.LSTM(3)(sentences))
    found = {}

    def collect(entry):
        if str(entry.get("module")).startswith("keras_td"):
            found[entry["class_name"]] = entry["registered_name"]
        return entry

    json.loads(model.to_json(), object_hook=collect)

    assert {"TimeDistributed", "StepMask"} == found.keys()
    assert found == {name: f"keras_td>{name}" for name in found}


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have")
def test_a_quantized_model_loads(rng, tmp_path):
    model = keras.Sequential(
        [keras.Input((3, 32)), TimeDistributed(layers.Dense(16))]
    )
    model.quantize("int8")
    x = normal(rng, 2, 3, 32)
    model.save(tmp_path / "model.keras")

    loaded = keras.models.load_model(tmp_path / "model.keras")

    assert_close(loaded(x), model(x))


def test_a_lambda_is_refused_in_safe_mode(tmp_path):
    model = keras.Sequential(
        [keras.Input((3, 5)), TimeDistributed(layers.Lambda(lambda x: x * 2))]
    )
    model.save(tmp_path / "model.keras")

    with pytest.raises(ValueError, match="Lambda"):
        keras.models.load_model(tmp_path / "model.keras")

    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
    assert_close(loaded(ops.ones((2, 3, 5))), model(ops.ones((2, 3, 5))))


def test_the_policy_survives(tmp_path):
    dense = layers.Dense(2, dtype="mixed_bfloat16")
    model = keras.Sequential([keras.Input((3, 5)), TimeDistributed(dense)])
    model.save(tmp_path / "model.keras")

    loaded = keras.models.load_model(tmp_path / "model.keras")

    assert loaded.layers[0].dtype_policy.name == "mixed_bfloat16"
    assert loaded.layers[0].layer.dtype_policy.name == "mixed_bfloat16"

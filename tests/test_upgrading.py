"""Existing models are upgraded in one line, and stay the same models."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras import tree
from keras.layers import TimeDistributed as Stock

import custom
import keras_td
import stock_models
from backends import needs
from keras_td import TimeDistributed
from reference import as_numpy
from reference import assert_close
from reference import normal
from stock_models import BY_NAME
from stock_models import MODELS
from stock_models import Builder
from stock_models import Holder
from stock_models import compiled
from stock_models import functional
from stock_models import sequential

each_model = pytest.mark.parametrize(
    "model", [pytest.param(m, id=m.name) for m in MODELS]
)
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{warning}")
    for warning in (
        r"`build\(\)` was called on layer",
        "Layer InputLayer does not have a `quantize` method",
        # The optimizer has trained nothing yet.
        "Skipping variable loading for optimizer",
        r"[\s\S]*A total of 1 objects could not be loaded",
    )
]


def layers_of(model):
    return list(model._flatten_layers())


def stock_layers(model):
    return [layer for layer in layers_of(model) if type(layer) is Stock]


def inputs_of(model, shape, rng):
    if shape:
        return normal(rng, *shape)

    def array(x):
        shape = x.shape[0] or 2, *x.shape[1:]
        if "int" in x.dtype:
            return rng.integers(0, 9, shape).astype(x.dtype)
        return normal(rng, *shape)

    if isinstance(model, keras.Sequential):
        return array(model.inputs[0])
    return tree.map_structure(array, model.input)


def skip_if(model, what):
    if what in model.cannot:
        pytest.skip(reason=model.cannot[what])


def made(model, rng):
    """A model of the table, built, with random weights; and its inputs."""
    found = model.make()
    inputs = inputs_of(found, model.shape, rng)
    found(inputs)
    for v in found.weights:
        if "float" in v.dtype and v.trainable:
            v.assign(normal(rng, *v.shape) / 2)
    return found, inputs


@each_model
def test_no_stock_layer_is_left_and_the_model_is_what_it_was(model, rng):
    old, _ = made(model, rng)
    inbound = [len(layer._inbound_nodes) for layer in layers_of(old)]
    weights = old.get_weights()

    new = keras_td.upgrade(old)

    assert not stock_layers(new)
    assert len(stock_layers(old)) == len(
        [x for x in layers_of(new) if type(x) is TimeDistributed]
    )
    assert type(new) is type(old)
    assert len(new.weights) == len(old.weights)
    assert_close(old.get_weights(), weights)
    assert inbound == [len(layer._inbound_nodes) for layer in layers_of(old)]


@each_model
def test_an_upgraded_model_predicts_the_same(model, rng):
    skip_if(model, "predict")
    old, inputs = made(model, rng)

    new = keras_td.upgrade(old)

    assert_close(new(inputs, training=False), old(inputs, training=False))


@needs("training")
@each_model
def test_training_goes_on_as_it_would_have(model, rng):
    skip_if(model, "train")
    old, inputs = made(model, rng)
    if not old.compiled:
        compiled(old, optimizer=keras.optimizers.Adam(0.1))
    targets = tree.map_structure(
        lambda y: normal(rng, *y.shape), old(inputs, training=False)
    )
    # Its optimizer has slots then.
    old.train_on_batch(inputs, targets)

    new = keras_td.upgrade(old, steps_per_call=1)
    old.reset_metrics()
    losses = [m.train_on_batch(inputs, targets) for m in (old, new)]

    assert_close(*map(np.asarray, losses))
    assert_close(new.get_weights(), old.get_weights())
    assert_close(new(inputs, training=False), old(inputs, training=False))


@each_model
def test_an_upgraded_model_is_saved_and_loaded(model, rng, tmp_path):
    skip_if(model, "load")
    old, inputs = made(model, rng)
    new = keras_td.upgrade(old)

    new.save(tmp_path / "new.keras")
    scope = {
        "Full": custom.Full,
        "triple": stock_models.triple,
        "own_loss": stock_models.own_loss,
    }
    loaded = keras.saving.load_model(
        tmp_path / "new.keras", custom_objects=scope, safe_mode=False
    )

    assert not stock_layers(loaded)
    assert_close(loaded(inputs, training=False), new(inputs, training=False))


@needs("training")
def test_training_one_model_changes_nothing_in_the_other(rng):
    old, inputs = made(BY_NAME["Adam"], rng)
    targets = normal(rng, *old(inputs).shape)
    new = keras_td.upgrade(old)
    states = [v.value for v in new.variables + new.optimizer.variables]
    states = [as_numpy(x).copy() for x in states]

    old.train_on_batch(inputs, targets)

    after = [v.value for v in new.variables + new.optimizer.variables]
    assert_close([as_numpy(x) for x in after], states)


def masked(distribute):
    """Two branches of words and sentences, whose masks are combined."""

    def call(words):
        words = distribute(layers.Embedding(9, 4, mask_zero=True))(words)
        sentences = distribute(layers.LSTM(3))(words)
        both = layers.Concatenate()([sentences, layers.Dense(2)(sentences)])
        return layers.LSTM(3)(both)

    return functional(call, (3, 4), dtype="int32")


@pytest.mark.parametrize("loaded", [False, True])
def test_masks_are_those_of_a_model_that_is_built_so(loaded, rng, tmp_path):
    old, new = masked(Stock), masked(TimeDistributed)
    new.set_weights(old.get_weights())
    if loaded:
        old.save(tmp_path / "old.keras")
        old = keras.saving.load_model(tmp_path / "old.keras")
    words = np.array([[[1, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]]])

    upgraded = keras_td.upgrade(old)

    assert_close(upgraded(words), new(words))
    assert not np.allclose(as_numpy(upgraded(words)), as_numpy(old(words)))


def test_what_is_shared_stays_shared():
    for make in (
        stock_models.shared,
        stock_models.shared_with_a_submodel,
        stock_models.news,
    ):
        old = make()
        assert len(keras_td.upgrade(old).weights) == len(old.weights)


def test_options_go_to_each_layer():
    old = BY_NAME["model with one in TimeDistributed"].make()

    new = keras_td.upgrade(old, steps_per_call=2, skip_masked=True)

    found = [x for x in layers_of(new) if type(x) is TimeDistributed]
    assert [(x.steps_per_call, x.skip_masked) for x in found] == [(2, True)] * 2


def test_layers_that_code_builds_are_told_by_their_paths():
    model = sequential(Builder(name="builder"), name="model")
    model.layers[0].held[0].name = "first"

    with pytest.raises(ValueError, match="`model/builder/first`") as error:
        keras_td.upgrade(model)

    assert "keras_td.replacing()" in str(error.value)


def test_layers_that_code_builds_are_replaced_on_request(rng):
    model = sequential(Builder())
    x = normal(rng, 2, 3, 4)

    with keras_td.replacing(steps_per_call=2):
        new = keras_td.upgrade(model)

    assert [y.steps_per_call for y in new.layers[0].held] == [2, 2]
    assert_close(new(x), model(x))


def test_subclasses_are_not_converted():
    class Own(Stock):
        pass

    with pytest.raises(ValueError, match="subclass"):
        keras_td.upgrade(sequential(Own(layers.Dense(3))))


def test_what_has_no_config_is_no_half_of_a_model():
    class NoConfig(keras.Layer):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def call(self, x):
            return self.inner(x)

    model = keras.Sequential(
        [NoConfig(Stock(layers.Dense(3), name="td"))], name="model"
    )

    with pytest.raises(ValueError, match=r"`model/no_config\w*/td`"):
        keras_td.upgrade(model)


def test_only_models_and_layers_are_upgraded():
    with pytest.raises(ValueError, match=r"model='old.keras'"):
        keras_td.upgrade("old.keras")


def test_an_upgraded_model_can_be_upgraded():
    new = keras_td.upgrade(BY_NAME["Adam"].make(), steps_per_call=2)

    again = keras_td.upgrade(new)

    assert again.layers[0].steps_per_call == 2


def test_stock_reads_the_config_of_a_layer_without_options():
    td = TimeDistributed(layers.Dense(3), name="td")

    stock = Stock.from_config(td.get_config())

    assert type(stock) is Stock
    assert stock.name == "td"
    assert stock.layer.units == 3


def test_it_finds_custom_objects():
    class Halves(keras.initializers.Initializer):
        def __call__(self, shape, dtype=None):
            return ops.full(shape, 0.5, dtype)

    model = sequential(Stock(layers.Dense(3, kernel_initializer=Halves())))

    with keras.saving.custom_object_scope({"Halves": Halves}):
        new = keras_td.upgrade(model)

    assert type(new.layers[0].layer.kernel_initializer) is Halves


def test_classes_of_one_name_are_told_apart(rng):
    def scale(factor):
        class Scale(keras.Layer):
            def call(self, x):
                return x * factor

            def compute_output_shape(self, shape):
                return shape

        return Scale()

    model = sequential(Stock(scale(2.0)), Holder([scale(3.0)]))
    x = normal(rng, 2, 3, 4)

    assert_close(keras_td.upgrade(model)(x), model(x))

"""The options are checked, and saved."""

import keras
import numpy as np
import pytest
from keras import layers

from backends import needs
from keras_td import TimeDistributed
from reference import assert_close
from reference import normal


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2", [2]])
def test_a_number_of_steps_is_a_positive_integer(value):
    with pytest.raises(ValueError, match="`steps_per_call` must be a positive"):
        TimeDistributed(layers.Dense(2), steps_per_call=value)


@pytest.mark.parametrize("name", ["remat", "share_randomness"])
@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_switches_are_on_or_off(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be True or False"):
        TimeDistributed(layers.Dense(2), **{name: value})


def test_remat_asks_for_a_newer_keras(monkeypatch):
    monkeypatch.delattr(keras, "remat", raising=False)

    with pytest.raises(ValueError, match=r"needs Keras 3\.9 or later"):
        TimeDistributed(layers.Dense(2), remat=True)


@needs("remat")
def test_a_saved_model_keeps_its_options(rng, tmp_path):
    td = TimeDistributed(
        layers.Dense(3),
        steps_per_call=np.int64(2),
        remat=True,
        share_randomness=True,
    )
    model = keras.Sequential([keras.Input((5, 4)), td])
    model.save(tmp_path / "model.keras")

    loaded = keras.models.load_model(tmp_path / "model.keras")

    config = loaded.layers[-1].get_config()
    assert config["steps_per_call"] == 2
    assert config["remat"] is config["share_randomness"] is True
    x = normal(rng, 2, 5, 4)
    assert_close(loaded(x), model(x))


def test_a_config_of_stock_has_the_defaults():
    stock = layers.TimeDistributed(layers.Dense(3))

    td = TimeDistributed.from_config(stock.get_config())

    assert td.steps_per_call is None
    assert td.remat is td.share_randomness is False

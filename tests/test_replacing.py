"""Third-party code builds this layer inside `replacing`."""

import threading

import keras
import pytest
from keras import layers
from keras.layers import TimeDistributed as Stock

import keras_td
from keras_td import TimeDistributed


def test_code_that_builds_stock_layers_builds_these():
    with keras_td.replacing(steps_per_call=2):
        by_name = layers.TimeDistributed(layers.Dense(3), name="a")
        imported = Stock(layers.Dense(3))
        own = TimeDistributed(layers.Dense(3))

    assert type(by_name) is type(imported) is type(own) is TimeDistributed
    assert by_name.name == "a"
    assert imported.name.startswith("time_distributed")
    assert by_name.steps_per_call == imported.steps_per_call == 2
    # Code that asks for this layer gives its own options.
    assert own.steps_per_call is None


def test_outside_of_it_keras_is_as_it_was():
    before = dict(vars(Stock))

    with keras_td.replacing():
        pass
    with pytest.raises(ZeroDivisionError), keras_td.replacing():
        1 / 0  # noqa: B018

    assert dict(vars(Stock)) == before
    assert type(Stock(layers.Dense(3))) is Stock


def test_the_options_are_those_of_the_innermost():
    with keras_td.replacing(steps_per_call=2):
        with keras_td.replacing():
            inner = Stock(layers.Dense(3))
        outer = Stock(layers.Dense(3))

    assert inner.steps_per_call is None
    assert outer.steps_per_call == 2


def test_subclasses_stay_what_they_are():
    class Own(Stock):
        pass

    with keras_td.replacing():
        assert type(Own(layers.Dense(3))) is Own


def test_a_thread_replaces_for_itself():
    opened, built = threading.Event(), threading.Event()
    found = []

    def replace():
        with keras_td.replacing():
            opened.set()
            built.wait()
            found.append(type(Stock(layers.Dense(3))))

    thread = threading.Thread(target=replace)
    thread.start()
    opened.wait()
    found.append(type(Stock(layers.Dense(3))))
    built.set()
    thread.join()

    assert found == [Stock, TimeDistributed]
    assert "__new__" not in vars(Stock)


def test_wrong_options_are_told_at_once():
    wrong = keras_td.replacing(steps_per_call=0)
    with pytest.raises(ValueError, match="steps_per_call=0"), wrong:
        pass

    assert "__new__" not in vars(Stock)


def test_a_saved_model_loads_with_these_layers(tmp_path):
    model = keras.Sequential([keras.Input((3, 4)), Stock(layers.Dense(3))])
    model.save(tmp_path / "model.keras")

    with keras_td.replacing(skip_masked=True):
        loaded = keras.saving.load_model(tmp_path / "model.keras")

    assert type(loaded.layers[0]) is TimeDistributed
    assert loaded.layers[0].skip_masked

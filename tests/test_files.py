"""Files of Keras 2 and of Keras 3.7 are upgraded, by code and by command."""

import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from keras import tree
from keras.layers import TimeDistributed as Stock

import keras_td
from backends import needs
from files import keras_2
from keras_td import TimeDistributed
from keras_td.__main__ import main
from reference import as_numpy
from reference import assert_close
from reference import normal
from stock_models import Builder
from stock_models import compiled
from stock_models import sequential

# Keras and tf_keras warn about models of Keras 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Do not pass an `input_shape`"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5"),
]

FILES = pathlib.Path(__file__).parent / "files"


def load(name):
    return keras.saving.load_model(FILES / name)


def outputs(model):
    """The outputs of a model for the inputs of the files."""
    inputs = tree.map_structure(lambda _: keras_2.inputs(), model.input)
    return as_numpy(model(inputs))


def all_replaced(model):
    found = [x for x in model._flatten_layers() if isinstance(x, Stock)]
    return {type(x) for x in found} == {TimeDistributed}


def test_a_file_of_keras_3_7_is_upgraded():
    old = load("keras_3_7.keras")

    new = keras_td.upgrade(old)

    assert all_replaced(new)
    assert_close(outputs(new), outputs(old))
    assert_close(
        [as_numpy(v) for v in new.optimizer.variables],
        [as_numpy(v) for v in old.optimizer.variables],
    )


def test_a_file_of_keras_2_loads():
    expected = np.load(FILES / "keras_2.npy")
    with pytest.raises(TypeError, match="Could not locate class"):
        load("keras_2.h5")

    with keras_td.replacing(steps_per_call=2):
        replaced = load("keras_2.h5")
    scope = {"TimeDistributed": TimeDistributed}
    named = keras.saving.load_model(FILES / "keras_2.h5", custom_objects=scope)

    for model in replaced, named:
        assert all_replaced(model)
        assert_close(outputs(model), expected)
    assert replaced.layers[1].steps_per_call == 2


@pytest.mark.parametrize("old", [False, True])
def test_a_file_that_keras_2_writes_loads(old, tmp_path):
    pytest.importorskip(
        "tf_keras", reason="`nox -s 'tests(tensorflow)'` installs it"
    )
    keras_2.write(tmp_path)
    if old:
        keras_2.make_old(tmp_path / "keras_2.h5")

    with keras_td.replacing():
        model = keras.saving.load_model(tmp_path / "keras_2.h5")

    expected = np.load(tmp_path / "keras_2.npy")
    assert_close(outputs(model), expected)


def test_what_is_of_no_keras_is_told():
    config = TimeDistributed(layers.Dense(3)).get_config()
    config["layer"].update(class_name="Dens", module=None)

    with pytest.raises(TypeError, match="Could not locate class 'Dens'"):
        TimeDistributed.from_config(config)


def command(path, *args):
    """Runs the command on a file, and loads what it has written."""
    new = path.with_name("new.keras")
    main([str(path), str(new), *args])
    return keras.saving.load_model(new)


def test_the_command_upgrades_a_file(rng, tmp_path, capsys):
    model = sequential(Stock(layers.Dense(3), name="td"), name="model")
    model.save(tmp_path / "old.keras")

    new = command(tmp_path / "old.keras", "--steps-per-call", "2")

    x = normal(rng, 2, 3, 4)
    assert_close(new(x), model(x))
    assert new.layers[0].steps_per_call == 2
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "model/td: Dense"
    assert "differ by at most 0.0e+00" in told[2] or "e-0" in told[2]


CHANGES = {
    "BatchNormalization inside": (
        lambda: Stock(layers.BatchNormalization()),
        "`steps_per_call=1` keeps Keras's numbers",
    ),
    "its own recurrent state": (
        lambda: Stock(layers.LSTM(2, stateful=True)),
        "`steps_per_call=1` keeps Keras's numbers",
    ),
    "passes a mask on": (
        lambda: Stock(layers.Masking()),
        "`supports_masking = False`",
    ),
    "its own dtype policy": (
        lambda: Stock(layers.Dense(3, dtype="bfloat16")),
        "the policy of the wrapper",
    ),
    "counts once, for all steps": (
        lambda: Stock(layers.Dense(3, activity_regularizer="l2")),
        "counts once for each step",
    ),
}


@pytest.mark.parametrize("change", [None, *CHANGES])
def test_the_command_tells_what_changes(change, tmp_path, capsys):
    if change:
        make, way_back = CHANGES[change]
    else:
        make, way_back = lambda: Stock(layers.Dense(3)), ""
    inputs = keras.Input(batch_shape=(2, 3, 4, 5))
    keras.Model(inputs, make()(inputs)).save(tmp_path / "old.keras")

    command(tmp_path / "old.keras")

    told = capsys.readouterr().out
    assert [c for c in CHANGES if c in told] == ([change] if change else [])
    assert way_back in told


def test_the_command_exits_with_an_error_where_a_layer_stays(tmp_path):
    sequential(Builder(name="builder")).save(tmp_path / "old.keras")
    command = [sys.executable, "-m", "keras_td"]
    options = ["--import", "stock_models"]

    ran = subprocess.run(
        [*command, "old.keras", "new.keras", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )

    assert ran.returncode == 1
    assert "/builder/" in ran.stderr
    assert not (tmp_path / "new.keras").exists()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["none.keras", "new.keras"], "there is no file none.keras"),
        (["old.keras", "new.h5"], "a .keras file in an existing folder"),
        (["old.keras", "none/new.keras"], "a .keras file in an existing"),
    ],
)
def test_the_command_tells_of_wrong_paths(
    args, told, tmp_path, capsys, monkeypatch
):
    sequential(Stock(layers.Dense(3))).save(tmp_path / "old.keras")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit):
        main(args)

    assert told in capsys.readouterr().err


@keras.saving.register_keras_serializable(package="tests")
class Counter(keras.Layer):
    """Counts its calls, in inference too."""

    def build(self, shape):
        self.calls = self.add_weight(initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1)
        return x


def test_the_command_changes_no_state(tmp_path):
    sequential(Counter(), Stock(layers.Dense(3))).save(tmp_path / "old.keras")

    new = command(tmp_path / "old.keras")

    assert int(as_numpy(new.layers[0].calls)) == 0


@needs("training")
def test_the_command_leaves_out_what_a_model_is_compiled_with(rng, tmp_path):
    model = compiled(sequential(Stock(layers.Dense(3))))
    model.train_on_batch(normal(rng, 2, 3, 4), normal(rng, 2, 3, 3))
    model.save(tmp_path / "old.keras")

    assert command(tmp_path / "old.keras").compiled
    assert not command(tmp_path / "old.keras", "--no-compile").compiled


def test_the_command_upgrades_a_file_of_keras_2(tmp_path, capsys):
    shutil.copy(FILES / "keras_2.h5", tmp_path)

    new = command(tmp_path / "keras_2.h5")

    expected = np.load(FILES / "keras_2.npy")
    assert_close(outputs(new), expected)
    assert "Layers replaced: 3." in capsys.readouterr().out

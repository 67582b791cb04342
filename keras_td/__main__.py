"""Upgrades a model file: `python -m keras_td old.keras new.keras`."""

import argparse
import importlib
import os
import pathlib
import sys

import keras
from keras import ops
from keras import tree

from keras_td import copying
from keras_td import internals
from keras_td.differences import differences
from keras_td.options import OPTIONS
from keras_td.replacement import replacing
from keras_td.time_distributed import TimeDistributed
from keras_td.upgrading import upgrade

SIZE_OF_UNKNOWN_AXES = 8


def parse(args):
    parser = argparse.ArgumentParser(
        "python -m keras_td",
        description="Replace keras.layers.TimeDistributed in a model file with "
        "keras_td.TimeDistributed, and report what changes numerically.",
    )
    parser.add_argument("old", help="the .keras or .h5 model file to read")
    parser.add_argument("new", help="the .keras file to write")
    help_ = "as in keras_td.TimeDistributed"
    parser.add_argument("--steps-per-call", type=int, metavar="K", help=help_)
    for name in OPTIONS[1:]:
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, action="store_true", help=help_)
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module that registers custom classes or functions of the model",
    )
    parser.add_argument(
        "--unsafe",
        action="store_true",
        help="run the Python code of Lambda layers in the file",
    )
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="drop the optimizer, losses and metrics of the model",
    )
    args = parser.parse_args(args)
    new = pathlib.Path(args.new)
    if not os.path.isfile(args.old):
        parser.error(f"there is no file {args.old}")
    if new.suffix != ".keras" or not new.parent.is_dir():
        parser.error(f"{new} must be a .keras file in an existing folder")
    return args


def main(args=None):
    args = parse(args)
    options = {name: getattr(args, name) for name in OPTIONS}
    sys.path.insert(0, os.getcwd())
    for module in args.modules:
        importlib.import_module(module)

    def load():
        return keras.saving.load_model(
            args.old,
            safe_mode=not args.unsafe,
            compile=not args.no_compile,
        )

    try:
        model = load()
    except TypeError:
        # Keras's own layer cannot read what it wraps from a Keras 2 file.
        with replacing(**options):
            model = upgraded = load()
    else:
        upgraded = upgrade(model, **options)
    tell(model, upgraded)
    # Saved first, as predicting changes the state of some layers.
    upgraded.save(args.new)
    if upgraded is not model:
        print(compared(model, upgraded))
    print(f"Saved {args.new}.")


def tell(model, upgraded):
    """Prints what was replaced, and what that changes."""
    found = 0
    for path, stock, td in copying.pairs(model, upgraded):
        is_new = model is upgraded or not isinstance(stock, TimeDistributed)
        if not isinstance(td, TimeDistributed) or not is_new:
            continue
        found += 1
        print(f"{path}: {type(td.layer).__name__}")
        # Keras 2 folds time into the batch, too.
        changes = differences(stock, td) if model is not upgraded else []
        for sentence in changes:
            print(f"    {sentence}")
    print(f"Layers replaced: {found}.")


def compared(model, upgraded):
    """Describes how predictions of two models on random inputs differ."""
    known = keras.Function, keras.Sequential
    if not isinstance(model, known) or not model.built:
        return "Predictions were not compared: the model declares no inputs."
    try:
        inputs = random_inputs(model)
        ys = tree.flatten(model.predict(inputs, verbose=0))
    except Exception as error:
        return f"Predictions were not compared: the old model raises {error}"
    zs = tree.flatten(upgraded.predict(inputs, verbose=0))
    largest = max(
        abs(y.astype("float32") - z.astype("float32")).max(initial=0)
        for y, z in zip(ys, zs, strict=True)
    )
    return f"Predictions on random inputs differ by at most {largest:.1e}."


def random_inputs(model):
    seed = keras.random.SeedGenerator(0)
    tokens = min(
        (
            layer.input_dim
            for layer in internals.layers_of(model)
            if isinstance(layer, keras.layers.Embedding)
        ),
        default=2,
    )

    def random(x):
        batch, *others = x.shape
        shape = batch or 2, *(n or SIZE_OF_UNKNOWN_AXES for n in others)
        if "float" in x.dtype:
            drawn = keras.random.normal(shape, seed=seed)
        else:
            drawn = keras.random.randint(shape, 0, tokens, seed=seed)
        return ops.convert_to_numpy(drawn).astype(x.dtype)

    if isinstance(model, keras.Sequential):
        return random(model.inputs[0])
    return tree.map_structure(random, model.input)


if __name__ == "__main__":
    try:
        main()
    except (ImportError, TypeError, ValueError) as error:
        is_unknown = "Could not locate" in str(error)
        hint = "\nImport custom classes with `--import my_package`."
        sys.exit(f"{error}{hint if is_unknown else ''}")

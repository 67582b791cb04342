"""Upgrades models from Keras's own layer to this one."""

import contextlib
import warnings
from typing import Any
from typing import Unpack

import keras

from keras_td import compiling
from keras_td import copying
from keras_td import replacement
from keras_td.cloning import Cloner
from keras_td.configs import CannotCopyError
from keras_td.configs import is_stock
from keras_td.options import Options
from keras_td.replacement import replacing


def upgrade(model: keras.Layer, **options: Unpack[Options]) -> Any:
    """Replaces each `keras.layers.TimeDistributed` in a model with this layer.

    Returns a copy of `model` with the same weights, compiled in the same way,
    with the state of its optimizer. Every such layer is replaced, at any depth:
    in submodels, in wrappers, in lists and attributes of layers. What is shared
    stays shared. `model` stays as it is, and training one of the two changes
    nothing in the other.

    Example:

    >>> inputs = keras.Input((10, 32, 32, 3))
    >>> frames = keras.layers.TimeDistributed(keras.layers.Flatten())(inputs)
    >>> model = keras.Model(inputs, keras.layers.GRU(8)(frames))
    >>> model = keras_td.upgrade(model, steps_per_call=1)

    Args:
        model: A `keras.Model`, or another layer.
        **options: The options of each new `TimeDistributed`, such as
            `steps_per_call=1` to keep Keras's numbers in training.

    Returns:
        A model of the same class.

    Raises:
        ValueError: if a layer cannot be replaced, because the code of another
            layer builds it or it is of a subclass; or if `model` cannot be
            copied by its config. The message gives the path of the layer.
    """
    if not isinstance(model, keras.Layer):
        raise ValueError(
            "`upgrade` takes a model, or any other layer. Load a file with "
            f"`keras.saving.load_model` first. Received: model={model!r}"
        )
    replacement.check(options)
    # In `replacing`, layers that code builds get the options too.
    outer = replacement.options_here()
    options = {**(outer or {}), **options}
    cloner = Cloner(options)
    scope = contextlib.nullcontext() if outer is None else replacing(**options)
    with scope, warnings.catch_warnings():
        # Functions are reused as they are.
        warnings.filterwarnings("ignore", ".* includes a `lambda`")
        copy = _clone(model, cloner)
        pairs = list(copying.pairs(model, copy))
        _check_replaced(pairs)
        variables = copying.copy_state(pairs)
        compiling.compile_copies(pairs, cloner.clone, variables)
    return copy


def _clone(model, cloner):
    try:
        return cloner.clone(model)
    except CannotCopyError as error:
        raise ValueError(
            "`upgrade` copies a model by its config, as saving does, but "
            f"cannot copy this one: {error} {copying.BUILD_ANEW} Layers to "
            f"replace: {_stock_layers(copying.pairs(model, model))}."
        ) from None


def _check_replaced(pairs):
    left = _stock_layers(pairs)
    if left:
        raise ValueError(
            "`upgrade` copies a model by its config, but these layers are not "
            f"in it: {left}. The code of a class builds them, so it has to "
            "import `TimeDistributed` from keras_td. If you cannot change that "
            "code, call `upgrade` in `with keras_td.replacing():`, and load "
            "files of the model in it as well. A subclass of "
            "`keras.layers.TimeDistributed` has to derive from "
            "`keras_td.TimeDistributed` instead."
        )


def _stock_layers(pairs):
    """The paths of the layers whose copies are Keras's own."""
    found = [
        f"`{path}` ({type(layer).__name__})"
        for path, layer, copied in pairs
        if is_stock(copied)
    ]
    return ", ".join(found)

"""Models of Keras's own layer made into models of this one."""

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
    """Puts this layer in place of each `keras.layers.TimeDistributed`.

    The model that it returns is like `model`, with its weights, and compiled as
    it is, with the state of its optimizer. Every layer of Keras's is replaced,
    at any depth: in submodels, in wrappers, in lists and attributes of layers.
    What is shared stays shared. `model` stays as it is, and training one of the
    two changes nothing in the other.

    Example:

    >>> inputs = keras.Input((10, 32, 32, 3))
    >>> frames = keras.layers.TimeDistributed(keras.layers.Flatten())(inputs)
    >>> model = keras.Model(inputs, keras.layers.GRU(8)(frames))
    >>> model = keras_td.upgrade(model, steps_per_call=1)

    Args:
        model: A `keras.Model`, or another layer.
        **options: The options of each `TimeDistributed` that is put in place,
            such as `steps_per_call=1` for the numbers of Keras in training.

    Returns:
        A model of the same class.

    Raises:
        ValueError: if a layer cannot be replaced, as the code of the layer that
            holds it builds it, or as it is of a subclass; or if `model` cannot
            be copied by its config. The message names the layer by its path.
    """
    if not isinstance(model, keras.Layer):
        raise ValueError(
            "`upgrade` takes a model, or another layer. Load a file with "
            f"`keras.saving.load_model` first. Received: model={model!r}"
        )
    replacement.check(options)
    # In `replacing`, what code builds has the options too.
    outer = replacement.options_here()
    options = {**(outer or {}), **options}
    cloner = Cloner(options)
    scope = contextlib.nullcontext() if outer is None else replacing(**options)
    with scope, warnings.catch_warnings():
        # Functions go along as they are.
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
            "`upgrade` copies a model by its config, as saving it does, and "
            f"cannot: {error} {copying.BUILD_ANEW} Layers to replace: "
            f"{_stock_layers(copying.pairs(model, model))}."
        ) from None


def _check_replaced(pairs):
    left = _stock_layers(pairs)
    if left:
        raise ValueError(
            "`upgrade` copies a model by its config, and these layers are not "
            f"in it: {left}. The code of a class builds them, so it has to "
            "import `TimeDistributed` from keras_td. If it is not yours to "
            "change, call `upgrade` in `with keras_td.replacing():`, and load "
            "files of the model in it as well. A subclass of "
            "`keras.layers.TimeDistributed` has to derive from this class."
        )


def _stock_layers(pairs):
    """The paths of the layers whose copies are Keras's own."""
    found = [
        f"`{path}` ({type(layer).__name__})"
        for path, layer, copied in pairs
        if is_stock(copied)
    ]
    return ", ".join(found)

"""Compiles copies of models, and copies the state of their optimizers."""

import warnings

import keras
from keras import tree

from keras_td import internals
from keras_td import outside
from keras_td.copying import assign


def compile_copies(found, clone, variables):
    """Compiles copies like their models, with the state of their optimizers.

    Args:
        found: List of the `pairs` of a layer and its copy.
        clone: Function that copies an optimizer or a metric.
        variables: Dict of the copy of each variable, by the variable's id.
    """
    for path, a, b in found:
        if isinstance(a, keras.Model) and (a.compiled or _optimizers(a)):
            _compile(path, b, a, clone, variables)


def _compile(path, copy, model, clone, variables):
    try:
        cls = type(model)
        if not model.compiled:
            pass
        elif cls.compile_from_config is not keras.Model.compile_from_config:
            copy.compile_from_config(model.get_compile_config())
        elif cls.compile is not keras.Model.compile:
            raise ValueError("its class has its own `compile`")
        else:
            optimizer = keras.optimizers.LossScaleOptimizer
            scales = isinstance(model.optimizer, optimizer)
            arguments = internals.arguments_of_compile(model)
            _check_functions(arguments, variables)
            arguments = tree.map_structure(_copier(clone), arguments)
            copy.compile(**arguments, auto_scale_loss=scales)
        for name, optimizer in _optimizers(model).items():
            _copy_slots(optimizer, getattr(copy, name), copy, variables)
    except Exception as error:
        warnings.warn(
            f"The model `{path}` is upgraded, but has to be compiled again, as "
            f"its optimizer, losses or metrics cannot be copied: {error}",
            stacklevel=4,
        )
        if model.compiled:
            copy.compiled = False


def _check_functions(arguments, variables):
    """Checks that no loss or metric uses the model that is copied."""
    for x in outside.used(tree.flatten(arguments)):
        if isinstance(x, keras.Layer) and any(
            id(v) in variables for v in x.variables
        ):
            raise ValueError(f"a function uses the layer `{x.name}`")


def _copier(clone):
    """Function that copies objects whose state changes in training."""
    kinds = keras.optimizers.Optimizer, keras.Metric
    return lambda x: clone(x) if isinstance(x, kinds) else x


def _optimizers(model):
    """The optimizers of a model that have a state, by attribute name."""
    found = {**vars(model), "optimizer": getattr(model, "optimizer", None)}
    return {
        name: x
        for name, x in found.items()
        if isinstance(x, keras.optimizers.Optimizer) and x.built
    }


def _copy_slots(optimizer, copied, model, variables):
    known = internals.optimized_variables(optimizer)
    known = [variables[id(v)] for v in known]
    weights = model.trainable_variables
    ids, in_order = [[id(v) for v in found] for found in (known, weights)]
    if ids != in_order and sorted(ids) == sorted(in_order):
        # On JAX, the optimizer gets its weights in the order of the model.
        raise ValueError("its weights are in another order")
    if not copied.built:
        copied.build(known)
    for v, w in zip(optimizer.variables, copied.variables, strict=True):
        assign(w, v)

"""Builds a wrapped layer before it is called, as Keras does.

A model that is built in a call keeps the `training` of that call.
"""

import contextlib
import inspect

import keras

from keras_td import folding


def build(layer, args, kwargs, options):
    """Builds a layer for a call, as far as can be told before it.

    Args:
        layer: The layer, which is not built.
        args: Nests of symbolic tensors, by position.
        kwargs: Nests of symbolic tensors, by name.
        options: The other arguments of the call.
    """
    if type(layer).build is not keras.Layer.build:
        shapes = _shapes_for_build(layer, args, kwargs)
        if shapes is not None:
            layer.build(**shapes)
        return
    if not _inner_layers_are_built(layer):
        # What cannot be traced is built by its call.
        with contextlib.suppress(Exception), keras.name_scope(layer.name):
            keras.Operation.compute_output_spec(
                layer, *args, **kwargs, **options
            )
    if _inner_layers_are_built(layer):
        layer.build(folding.shapes(args[0]))


def _inner_layers_are_built(layer):
    inner = layer._flatten_layers(include_self=False, recursive=False)
    return all(layer.built for layer in inner)


def _shapes_for_build(layer, args, kwargs):
    """The arguments of `build`, or `None` where one is not known."""
    signature = inspect.signature(layer.call)
    try:
        given = signature.bind_partial(*args, **kwargs).arguments
    except TypeError:
        return None
    shapes = {
        f"{name}_shape": folding.shapes(nest)
        for name, nest in given.items()
        if signature.parameters[name].kind in _NAMED
    }
    wanted = {
        name: parameter.default
        for name, parameter in inspect.signature(layer.build).parameters.items()
        if parameter.kind in _NAMED
    }
    if len(wanted) == 1:
        # Whatever its name is, it is the shape of the inputs.
        shapes = dict(zip(wanted, shapes.values(), strict=False))
    found = {name: shapes.get(name, wanted[name]) for name in wanted}
    return None if inspect.Parameter.empty in found.values() else found


_NAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)

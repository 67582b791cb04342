"""Builds a wrapped layer before it is called, as Keras does.

A model that is built in a call keeps the `training` of that call.
"""

import contextlib
import inspect

import keras
from keras import ops

from keras_td import folding
from keras_td import internals
from keras_td import layer_kinds
from keras_td import trees


def is_built(layer):
    """Whether a layer is built, and if it is a wrapper of ours, what is in it.

    Keras takes a wrapper for built once its `build` was called.
    """
    return layer.built and (not _wraps(layer) or is_built(layer.layer))


def _wraps(layer):
    """Whether a layer is a wrapper of ours."""
    return hasattr(layer, "_builds_for")


def build(layer, args, kwargs, options):
    """Builds a layer for a call, as far as can be told before it.

    Args:
        layer: The layer, which is not built.
        args: Nests of symbolic tensors, by position.
        kwargs: Nests of symbolic tensors, by name.
        options: The other arguments of the call.
    """
    if not layer_kinds.is_from(type(layer).__call__, "keras", "keras_td"):
        # It may be called with others.
        return
    if type(layer).build is not keras.Layer.build:
        shapes = _shapes_for_build(layer, args, kwargs)
        if shapes is None:
            return
        knowing = contextlib.nullcontext()
        if _wraps(layer):
            knowing = layer._builds_for(*args, **kwargs, **options)
        with knowing:
            layer.build(**shapes)
        return
    if not _inner_layers_are_built(layer):
        # What cannot be traced is built by its call.
        with contextlib.suppress(Exception), keras.name_scope(layer.name):
            keras.Operation.compute_output_spec(
                layer, *args, **kwargs, **options
            )
    if _inner_layers_are_built(layer):
        layer.build(trees.shapes(args[0]))


def takes_inputs_alone(layer):
    """Whether a layer is built by the shape of its inputs, whatever its call.

    What else there is may change the shapes of what is inside.
    """
    if _wraps(layer):
        return takes_inputs_alone(layer.layer)
    if type(layer).build is not keras.Layer.build:
        return True
    parameters = inspect.signature(layer.call).parameters
    return len(parameters.keys() - {"training", "mask"}) == 1


def build_inner_layers(layer, call, arguments):
    """Builds the layers inside by a call that changes nothing.

    It is a real one where it can be: what a layer keeps of its `build` is of no
    use outside of a trace. (A stateful one builds in no scope.)

    Returns:
        Whether the call was made.
    """
    if all(inner.built for inner in internals.layers_of(layer)):
        return True
    at_hand = folding.has_values(arguments.first)
    if at_hand and not layer_kinds.keeps_state(layer):
        # Layers that change images do so in place, on PyTorch.
        arguments = arguments.first_steps(1).map(ops.copy)
        scope = keras.StatelessScope()
    else:
        arguments, scope = arguments.to_symbols(), contextlib.nullcontext()
    # What cannot be called so has to do without.
    with contextlib.suppress(Exception), scope:
        call(arguments)
        return True
    return False


def _inner_layers_are_built(layer):
    inner = internals.layers_of(layer, include_self=False, recursive=False)
    return all(layer.built for layer in inner)


def _shapes_for_build(layer, args, kwargs):
    """The arguments of `build`, or `None` where one is not known."""
    signature = inspect.signature(layer.call)
    try:
        given = signature.bind_partial(*args, **kwargs).arguments
    except TypeError:
        return None
    shapes = {
        f"{name}_shape": trees.shapes(nest)
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

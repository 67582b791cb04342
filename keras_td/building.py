"""Builds a wrapped layer before it is called, as Keras does.

A model that is built during a call keeps the `training` value of that call.
"""

import contextlib
import contextvars
import functools
import inspect
import weakref

import keras
from keras import ops

from keras_td import folding
from keras_td import internals
from keras_td import layer_kinds
from keras_td import trees
from keras_td.arguments import gather_call

# The arguments that Keras itself passes to layers.
_OF_ALL_CALLS = {"training", "mask"}
# For each layer, the values of `training` that all its inner layers are built
# for.
_built_for: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
# The enclosing calls, by the ids of their wrappers.
_calls: contextvars.ContextVar = contextvars.ContextVar("calls")


@contextlib.contextmanager
def for_call(wrapper, inputs, args, kwargs):
    """Tells `build` of one of our wrappers about the call that it is for."""
    # A failed call, or `build`, may have left the wrapper built but not its
    # layer.
    if not wrapper._overrides("build"):
        wrapper.built = False
    if wrapper._overrides("call"):
        # It may call the layer with other arguments.
        args, kwargs = (), {}
    call = functools.partial(
        gather_call,
        inputs,
        args,
        {name: kwargs[name] for name in kwargs if name not in _OF_ALL_CALLS},
        mask=kwargs.get("mask"),
    )
    # A subclass may build the layer for inputs of another shape.
    shapes = trees.shapes(inputs) if wrapper._overrides("build") else None
    outside = _calls.set({**_calls.get({}), id(wrapper): (call, shapes)})
    try:
        yield
    finally:
        _calls.reset(outside)


def call_of(wrapper, input_shape):
    """Function that gathers the enclosing call's arguments, or `None`."""
    call, shapes = _calls.get({}).get(id(wrapper), (None, None))
    return call if shapes in (None, input_shape) else None


def is_built(layer):
    """Whether a layer is built, including the layer in one of our wrappers.

    Keras considers a wrapper built once its `build` was called.
    """
    return layer.built and (not _wraps(layer) or is_built(layer.layer))


def _wraps(layer):
    """Whether a layer is one of our wrappers."""
    is_wrapper = isinstance(layer, keras.layers.TimeDistributed)
    return is_wrapper and hasattr(layer, "share_randomness")


def build(layer, arguments, others):
    """Builds a layer for a call, as far as possible before that call.

    Args:
        layer: The layer, not yet built.
        arguments: The `Arguments` of the call.
        others: Its other arguments, without `training`: a model built in
            training mode would stay in it.
    """
    if not layer_kinds.is_from(type(layer).__call__, "keras", "keras_td"):
        # It may pass other arguments.
        return
    others = {**layer_kinds.required_options(layer), **others}
    folded = arguments.to_symbols().align().fold()
    args, kwargs = folded.args_and_kwargs()
    if type(layer).build is not keras.Layer.build:
        _build_by_shapes(layer, args, kwargs, others)
        return
    if not _inner_layers_are_built(layer):
        # A layer that cannot be traced is built by its call.
        with contextlib.suppress(Exception), keras.name_scope(layer.name):
            keras.Operation.compute_output_spec(
                layer, *args, **kwargs, **others
            )
    if _inner_layers_are_built(layer):
        layer.build(trees.shapes(args[0]))


def _build_by_shapes(layer, args, kwargs, others):
    shapes = _shapes_for_build(layer, args, kwargs)
    if shapes is None:
        return
    knowing = contextlib.nullcontext()
    if _wraps(layer):
        inputs, *args = args
        knowing = for_call(layer, inputs, args, {**kwargs, **others})
    with knowing:
        layer.build(**shapes)


def is_built_by_inputs(layer):
    """Whether a layer can be built from the shape of its inputs alone.

    Further arguments of a call may change the shapes inside.
    """
    if _wraps(layer):
        return is_built_by_inputs(layer.layer)
    if type(layer).build is not keras.Layer.build:
        return True
    parameters = inspect.signature(layer.call).parameters
    return len(parameters.keys() - _OF_ALL_CALLS) == 1


def build_inner_layers(layer, call, arguments, training):
    """Builds the layers inside by a call without side effects.

    The call is eager where possible: tensors that a layer keeps from a traced
    `build` cannot be used outside that trace. (A stateful layer cannot be built
    in a scope.) Some layers inside may be called only in training.
    """
    built_for = _built_for.setdefault(layer, set())
    if not isinstance(training, bool):  # a tensor may be either
        training = None
    if training in built_for:
        return
    if all(inner.built for inner in internals.layers_of(layer)):
        built_for.add(training)
        return
    at_hand = folding.has_values(arguments.first)
    if at_hand and not layer_kinds.keeps_state(layer):
        # On PyTorch, layers that change images do so in place.
        arguments = arguments.first_steps(1).map(ops.copy)
        scope = keras.StatelessScope()
    else:
        arguments, scope = arguments.to_symbols(), contextlib.nullcontext()
    # A layer that cannot be called like this is built later.
    with contextlib.suppress(Exception), scope:
        call(arguments)
        built_for.add(training)


def _inner_layers_are_built(layer):
    inner = internals.layers_of(layer, include_self=False, recursive=False)
    return all(layer.built for layer in inner)


def _shapes_for_build(layer, args, kwargs):
    """The arguments of `build`, or `None` if one is not known."""
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
        # Whatever its name, it is the shape of the inputs.
        shapes = dict(zip(wanted, shapes.values(), strict=False))
    found = {name: shapes.get(name, wanted[name]) for name in wanted}
    return None if inspect.Parameter.empty in found.values() else found


_NAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)

"""Copies the weights and the settings of a model to a copy of it."""

import functools
import tempfile

import keras
from keras import ops
from keras import tree

from keras_td import internals
from keras_td.options import Options

BUILD_ANEW = (
    "Alternatively, build a new model in `with keras_td.replacing():`, and "
    "copy the weights with `new.set_weights(model.get_weights())`."
)


def pairs(layer, copy):
    """Pairs the layers of a layer and its copy, and builds the copy meanwhile.

    Yields:
        Tuples of a path of names, a layer and its copy: each layer once, before
        the layers in it.

    Raises:
        ValueError: if the two do not hold the same layers.
    """
    copies: dict[int, keras.Layer] = {}

    def visit(path, layer, copy):
        if id(layer) in copies:
            if copies[id(layer)] is not copy:
                _fail(path, "is shared, but its copy is not")
            return
        copies[id(layer)] = copy
        build_config = layer.get_build_config()
        if layer.built and not copy.built and build_config:
            copy.build_from_config(build_config)
            copy.built = True
        yield path, layer, copy
        inner, copied = _inner(layer), _inner(copy)
        kinds = [[type(x).__name__ for x in found] for found in (inner, copied)]
        if sorted(kinds[0]) != sorted(kinds[1]):
            _fail(path, f"holds {kinds[0]}, but its copy holds {kinds[1]}")
        for a, b in zip(inner, _as_named(copied, inner), strict=True):
            yield from visit(f"{path}/{a.name}", a, b)

    yield from visit(layer.name, layer, copy)


def _inner(layer):
    return list(internals.layers_of(layer, include_self=False, recursive=False))


def _as_named(copies, layers):
    """Puts copies of layers in the order of the originals.

    The order in a functional model may change with the masks in its graph.
    Copies with new names keep the order in which code makes them.
    """
    by_name = {copy.name: copy for copy in copies}
    if len(by_name) == len(copies) and set(by_name) == {x.name for x in layers}:
        return [by_name[layer.name] for layer in layers]
    return copies


def _fail(path, difference):
    raise ValueError(
        "`upgrade` copies a model by its config, as saving and loading does, "
        f"but `{path}` has no equal copy: it {difference}. {BUILD_ANEW}"
    )


def copy_state(found):
    """Copies the weights and the settings of layers to their copies.

    Args:
        found: List of the `pairs` of a layer and its copy.

    Returns:
        Dict of the copy of each variable, by the variable's id.

    Raises:
        ValueError: if the two do not hold the same layers and variables.
    """
    _check_one_to_one(found)
    # Setting `trainable` sets it in all inner layers too, so they come later.
    for _, a, b in sorted(found, key=_size, reverse=True):
        b.trainable = a.trainable
    variables: dict = {}
    for path, a, b in found:
        own = _own_variables(a)
        copied = _as_named(_own_variables(b), own)
        shapes = [
            [(tuple(v.shape), v.dtype) for v in vs] for vs in (own, copied)
        ]
        if shapes[0] != shapes[1]:
            _fail(path, f"has variables {shapes[0]}, but its copy {shapes[1]}")
        _copy_by_protocol(a, b)
        for v, w in zip(own, copied, strict=True):
            if variables.setdefault(id(v), w) is not w:
                _fail(path, f"shares `{v.path}`, but its copy does not")
            assign(w, v)
            w.trainable = v.trainable
            w.regularizer, w.constraint = v.regularizer, v.constraint
        _copy_states(a, b)
        copy_settings(a, b)
    return variables


def _check_one_to_one(found):
    originals = {id(a) for _, a, _ in found}
    copies: set = set()
    for path, _, b in found:
        if id(b) in originals:
            _fail(path, "is its own copy")
        if id(b) in copies:
            _fail(path, "has the same copy as another layer")
        copies.add(id(b))


def _size(pair):
    _, layer, _ = pair
    return len(list(internals.layers_of(layer)))


def _own_variables(layer):
    inner = {id(v) for found in _inner(layer) for v in found.variables}
    return [v for v in layer.variables if id(v) not in inner]


def assign(copy, variable):
    # Training on JAX works in place, and frees the old value.
    copy.assign(ops.copy(variable.value))


def _copy_by_protocol(layer, copy):
    """Copies what a layer saves in its own way, such as a lookup table."""
    if type(layer).load_own_variables is not keras.Layer.load_own_variables:
        store: dict = {}
        layer.save_own_variables(store)
        copy.load_own_variables(store)
    if hasattr(layer, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            copy.load_assets(folder)


def _copy_states(layer, copy):
    """Copies the states of a stateful RNN, which are not in its variables."""
    for v, w in zip(_states(layer), _states(copy), strict=False):
        # In a `TimeDistributed`, each step may have its own.
        if tuple(v.shape) == tuple(w.shape):
            assign(w, v)


def copy_settings(layer, copy):
    """Copies numbers, names and flags that are in no config."""
    for name, value in vars(layer).items():
        is_known = name.startswith("_") or name in _names_of_keras()
        is_plain = isinstance(value, (bool, int, float, str))
        if is_plain and not is_known and getattr(copy, name, None) != value:
            setattr(copy, name, value)


@functools.lru_cache
def _names_of_keras():
    """The attributes that Keras itself, or `upgrade`, sets on any layer."""
    model = keras.Model(name="model")
    return {*vars(model), "stop_training", *Options.__annotations__}


def _states(layer):
    states = tree.flatten(getattr(layer, "states", None))
    return [v for v in states if isinstance(v, keras.Variable)]

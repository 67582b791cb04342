"""What the config of an object holds, and what it cannot tell."""

import inspect

import keras

from keras_td import internals
from keras_td import layer_kinds
from keras_td.time_distributed import TimeDistributed

# As the configs of functional models have it, besides their own arguments.
OF_GRAPH = "name", "trainable", "layers", "input_layers", "output_layers"
_SCHEDULE = keras.optimizers.schedules.LearningRateSchedule


class CannotCopyError(Exception):
    """An object has no config, or none that makes another like it."""


class Held:
    """The layers that a layer holds, to be found by their configs."""

    def __init__(self, x):
        # Those that it holds itself come first.
        self._layers: list[list] = [[], []]
        if isinstance(x, keras.Layer):
            for depth in (False, True):
                self._layers[depth] = list(
                    internals.layers_of(x, False, recursive=depth)
                )

    def find(self, entry):
        """The layer that an entry in a config is of, or `None`.

        Of layers of one config, code finds each in its place.
        """
        config = entry.get("config")
        if "class_name" not in entry or not isinstance(config, dict):
            return None
        for layers in self._layers:
            found = [
                x
                for x in layers
                if type(x).__name__ == entry["class_name"]
                and config.get("name") in (x.name, None)
            ]
            if len(found) > 1:
                found = [x for x in found if _is_config_of(config, x)]
            if found:
                return found[0] if len(found) == 1 else None
        return None


def _is_config_of(config, x):
    return repr(serialized(config)) == repr(serialized(config_of(x)))


def is_nested(x):
    return isinstance(x, (list, tuple, dict, keras.Layer))


def serialized(x):
    try:
        return keras.saving.serialize_keras_object(x)
    except TypeError:
        # It is in no file, and may be in a copy.
        return x


def takes_values(x):
    """Whether a copy takes the values of a config as they are."""
    return layer_kinds.is_from(type(x).from_config, "keras")


def builds_in_its_own_way(layer):
    """Whether a layer that is built has to be told how, before any call."""
    builds = type(layer).build_from_config
    return layer.built and not layer_kinds.is_from(builds, "keras")


def config_of(x):
    try:
        return x.get_config()
    except NotImplementedError as error:
        raise CannotCopyError(str(error)) from error
    except TypeError:
        # There are values in a graph, such as variables, that are in no file.
        if isinstance(x, keras.Function) and layer_kinds.is_from(
            type(x).get_config, "keras"
        ):
            return dict.fromkeys(OF_GRAPH)
        raise


def functions_of(x, config):
    """The functions and schedules that are arguments of an object.

    Raises:
        CannotCopyError: if one calls a layer of Keras's own from outside.
    """
    found = {
        key: value
        for key, given in config.items()
        if isinstance(given, (str, dict))
        for value in (_attribute(x, key), _attribute(x, f"_{key}"))
        if inspect.isroutine(value) or isinstance(value, _SCHEDULE)
    }
    for function in filter(inspect.isfunction, found.values()):
        used = inspect.getclosurevars(function)
        for name, y in {**used.globals, **used.nonlocals}.items():
            if isinstance(y, keras.Layer) and _holds_stock(y):
                raise CannotCopyError(
                    f"`{x.name}` calls a function that uses the layer `{name}` "
                    "from outside, of which no model knows. Write a layer that "
                    "holds it."
                )
    return found


def names_in(x, functions):
    """The functions and classes that a config may tell by their names alone."""
    functions = functions.values()
    found = {f.__name__: f for f in functions if hasattr(f, "__name__")}
    if isinstance(x, keras.Layer):
        inner = map(type, internals.layers_of(x, include_self=False))
        found |= {keras.saving.get_registered_name(cls): cls for cls in inner}
    return found


def _attribute(x, name):
    """An attribute that is no method, or `None`."""
    if inspect.isroutine(getattr(type(x), name, None)):
        return None
    try:
        return getattr(x, name, None)
    except Exception:
        # A property may have no value yet.
        return None


def _holds_stock(layer):
    return any(map(is_stock, internals.layers_of(layer)))


def is_stock(layer):
    """Whether a layer is Keras's own, or of a subclass of it."""
    is_either = isinstance(layer, keras.layers.TimeDistributed)
    return is_either and not isinstance(layer, TimeDistributed)

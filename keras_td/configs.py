"""What the config of an object holds, and what it cannot tell."""

import inspect

import keras

from keras_td import internals
from keras_td import layer_kinds
from keras_td import outside
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

    def find_graph(self, config):
        """The functional model that something in a config is the config of."""
        if not set(OF_GRAPH) <= config.keys():
            return None
        held = [x for layers in self._layers for x in layers]
        graphs = [x for x in held if isinstance(x, keras.Function)]
        return next((x for x in graphs if _is_config_of(config, x)), None)

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
            found = [x for x in found if _is_config_of(config, x)]
            if found:
                return found[0] if len(found) == 1 else None
        return None


def _is_config_of(config, x):
    given, own = (_unbuilt(serialized(y)) for y in (config, config_of(x)))
    return repr(given) == repr(own)


def _unbuilt(config):
    """A config without the shapes that layers in it are built for."""
    if isinstance(config, (list, tuple)):
        return [_unbuilt(x) for x in config]
    if not isinstance(config, dict):
        return config
    return {k: _unbuilt(v) for k, v in config.items() if k != "build_config"}


def is_nested(x):
    return isinstance(x, (list, tuple, dict, keras.Layer))


def serialized(x):
    try:
        return keras.saving.serialize_keras_object(x)
    except TypeError:
        # It is in no file, and may be in a copy.
        return x


def is_plain_operation(x):
    """Whether an object is an operation that holds no layer, nor is one."""
    if not isinstance(x, keras.Operation):
        return False
    found = x, *vars(x).values()
    return not any(isinstance(y, (keras.Layer, keras.Function)) for y in found)


def is_graph(x, config):
    """Whether an object is made of symbolic tensors."""
    if not isinstance(x, keras.Function):
        return False
    parameters = inspect.signature(type(x).__init__).parameters
    return "input_layers" in config or {"inputs", "outputs"} <= set(parameters)


def is_made_of_layers(x):
    """Whether an object is a model that Keras itself makes of its layers."""
    kinds = keras.Function, keras.Sequential
    return isinstance(x, kinds) and takes_values(x)


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
    except (NotImplementedError, TypeError) as error:
        # There are values in a graph, such as variables, that are in no file.
        if isinstance(x, keras.Function) and layer_kinds.is_from(
            type(x).get_config, "keras"
        ):
            return dict.fromkeys(OF_GRAPH)
        if isinstance(error, TypeError):
            raise
        raise CannotCopyError(str(error)) from error


def functions_of(x, config):
    """The functions and schedules that are arguments of an object.

    Raises:
        CannotCopyError: if one calls a layer of Keras's own from outside.
    """
    found = {key: _function_of(x, key, given) for key, given in config.items()}
    found = {key: value for key, value in found.items() if value is not None}
    check_functions(found.values(), x)
    return found


def _function_of(x, key, given):
    """The function, or the schedule, that a value in a config tells of."""
    if inspect.isroutine(given):
        return given
    named = [_attribute(x, name) for name in (key, f"_{key}")]
    # A name may be any word.
    others = vars(x).values() if isinstance(given, dict) else ()
    return next((f for f in (*named, *others) if _is_told(f, given)), None)


def _is_told(x, given):
    """Whether a function, or a schedule, is what a value in a config tells."""
    if isinstance(x, _SCHEDULE):
        return repr(serialized(x)) == repr(given)
    if not inspect.isroutine(x):
        return False
    if isinstance(given, str):
        return given in (x.__name__, keras.saving.get_registered_name(x))
    if not isinstance(given, dict):
        return False
    if x.__name__ != "<lambda>":
        return given.get("config") == x.__name__
    # Keras has more than one form for the code of a lambda.
    code, *_ = serialized(x)["config"]["value"]
    return repr(code) in repr(given)


def check_functions(functions, x):
    """Checks that functions of `x` use nothing that has to be another."""
    for y in outside.used(functions, x):
        is_layer = isinstance(y, keras.Layer)
        if not is_layer or any(map(is_stock, internals.layers_of(y))):
            kind = "layer" if is_layer else "optimizer"
            raise CannotCopyError(
                f"A function in `{x.name}` uses the {kind} `{y.name}` from "
                "outside, of which no config tells. A class has to hold it."
            )


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


def is_stock(layer):
    """Whether a layer is Keras's own, or of a subclass of it."""
    is_either = isinstance(layer, keras.layers.TimeDistributed)
    return is_either and not isinstance(layer, TimeDistributed)

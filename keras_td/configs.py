"""What the config of an object holds, and what it leaves out."""

import inspect

import keras

from keras_td import internals
from keras_td import layer_kinds
from keras_td import outside
from keras_td.time_distributed import TimeDistributed

# What configs of functional models hold, besides their own arguments.
OF_GRAPH = "name", "trainable", "layers", "input_layers", "output_layers"
_SCHEDULE = keras.optimizers.schedules.LearningRateSchedule


class CannotCopyError(Exception):
    """An object has no config, or one that cannot make a copy of it."""


class Held:
    """The layers that a layer holds, for look-up by their configs."""

    def __init__(self, x):
        # Direct children come first.
        self._layers: list[list] = [[], []]
        if isinstance(x, keras.Layer):
            for depth in (False, True):
                self._layers[depth] = list(
                    internals.layers_of(x, False, recursive=depth)
                )

    def find_graph(self, config):
        """The functional model that a config describes, or `None`."""
        if not set(OF_GRAPH) <= config.keys():
            return None
        held = [x for layers in self._layers for x in layers]
        graphs = [x for x in held if isinstance(x, keras.Function)]
        return next((x for x in graphs if _is_config_of(config, x)), None)

    def find(self, entry):
        """The layer that an entry in a config describes, or `None`.

        It is also `None` if several layers have this config.
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
    """A config without the build shapes of the layers in it."""
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
        # It cannot be saved, but it can be copied.
        return x


def is_plain_operation(x):
    """Whether an object is an operation that neither is nor holds a layer."""
    if not isinstance(x, keras.Operation):
        return False
    found = x, *vars(x).values()
    return not any(isinstance(y, (keras.Layer, keras.Function)) for y in found)


def is_graph(x, config):
    """Whether an object is made from symbolic tensors."""
    if not isinstance(x, keras.Function):
        return False
    parameters = inspect.signature(type(x).__init__).parameters
    return "input_layers" in config or {"inputs", "outputs"} <= set(parameters)


def is_made_of_layers(x):
    """Whether an object is a model that Keras itself makes from its layers."""
    kinds = keras.Function, keras.Sequential
    return isinstance(x, kinds) and takes_values(x)


def takes_values(x):
    """Whether a copy takes the values of a config as they are."""
    return layer_kinds.is_from(type(x).from_config, "keras")


def builds_in_its_own_way(layer):
    """Whether a built layer has its own `build_from_config`."""
    builds = type(layer).build_from_config
    return layer.built and not layer_kinds.is_from(builds, "keras")


def config_of(x):
    try:
        return x.get_config()
    except (NotImplementedError, TypeError) as error:
        # A graph may hold values, such as variables, that cannot be saved.
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
        CannotCopyError: if one uses a stock `TimeDistributed` or an optimizer
            from outside.
    """
    found = {key: _function_of(x, key, given) for key, given in config.items()}
    found = {key: value for key, value in found.items() if value is not None}
    check_functions(found.values(), x)
    return found


def _function_of(x, key, given):
    """The function, or the schedule, that a value in a config stands for."""
    if inspect.isroutine(given):
        return given
    named = [_attribute(x, name) for name in (key, f"_{key}")]
    # A string may be the name of another function by chance.
    others = vars(x).values() if isinstance(given, dict) else ()
    return next((f for f in (*named, *others) if _is_told(f, given)), None)


def _is_told(x, given):
    """Whether a value in a config stands for this function or schedule."""
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
    # Keras has several formats for the code of a lambda.
    code, *_ = serialized(x)["config"]["value"]
    return repr(code) in repr(given)


def check_functions(functions, x):
    """Checks that functions of `x` use nothing that has to be replaced."""
    for y in outside.used(functions, x):
        is_layer = isinstance(y, keras.Layer)
        if not is_layer or any(map(is_stock, internals.layers_of(y))):
            kind = "layer" if is_layer else "optimizer"
            raise CannotCopyError(
                f"A function in `{x.name}` uses the {kind} `{y.name}` from "
                "outside, which is in no config. Make it an attribute of a "
                "class instead."
            )


def names_in(x, functions):
    """The functions and classes that a config may give only by name."""
    functions = functions.values()
    found = {f.__name__: f for f in functions if hasattr(f, "__name__")}
    if isinstance(x, keras.Layer):
        inner = map(type, internals.layers_of(x, include_self=False))
        found |= {keras.saving.get_registered_name(cls): cls for cls in inner}
    return found


def _attribute(x, name):
    """An attribute that is not a method, or `None`."""
    if inspect.isroutine(getattr(type(x), name, None)):
        return None
    try:
        return getattr(x, name, None)
    except Exception:
        # A property may have no value yet.
        return None


def is_stock(layer):
    """Whether a layer is Keras's `TimeDistributed`, or of a subclass of it."""
    is_either = isinstance(layer, keras.layers.TimeDistributed)
    return is_either and not isinstance(layer, TimeDistributed)

"""What the config of an object holds, and what it cannot tell."""

import collections
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
        self._name = x.name
        self._of_class = collections.defaultdict(list)
        self._found: collections.Counter = collections.Counter()
        if isinstance(x, keras.Layer):
            for layer in internals.layers_of(x, include_self=False):
                self._of_class[type(layer).__name__].append(layer)

    def find(self, entry):
        """The layer that an entry in a config is of, or `None`."""
        config = entry.get("config")
        if "class_name" not in entry or not isinstance(config, dict):
            return None
        known = self._of_class[entry["class_name"]]
        found = [x for x in known if config.get("name") in (x.name, None)]
        if len(found) < 2:
            return found[0] if found else None
        config = repr(serialized(config))
        found = [x for x in found if repr(serialized(config_of(x))) == config]
        if not found:
            return None
        # Those of one config are told apart by their order.
        place = self._found[config]
        self._found[config] += 1
        if place >= len(found) > 1:
            raise CannotCopyError(
                f"`{self._name}` holds layers of one config, some of them "
                "several times. Give them names."
            )
        return found[min(place, len(found) - 1)]


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
        for key in config
        for value in (getattr(x, key, None), getattr(x, f"_{key}", None))
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


def _holds_stock(layer):
    return any(map(is_stock, internals.layers_of(layer)))


def is_stock(layer):
    """Whether a layer is Keras's own, or of a subclass of it."""
    is_either = isinstance(layer, keras.layers.TimeDistributed)
    return is_either and not isinstance(layer, TimeDistributed)

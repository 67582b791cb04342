"""References in configs that replace layers and functions."""

import functools
import inspect

import keras

from keras_td import configs
from keras_td import graphs
from keras_td import internals
from keras_td import layer_kinds
from keras_td.configs import CannotCopyError

_NAME = "keras_td>Reference"


class References:
    """Entries in configs from which Keras makes copies, or the same objects.

    Args:
        clone: Function that copies a layer, or another Keras object.
    """

    def __init__(self, clone):
        self._clone = clone
        # What Keras takes for their classes, by class name.
        self.classes = {}

    def in_config(self, config, functions, x):
        """Replaces layers and functions in a config with references.

        So copies share what the originals share, and use the same functions,
        which no config describes completely.
        """
        replaced = functools.partial(
            self._replaced, configs.Held(x), configs.takes_values(x)
        )
        # Keras may have a function of the same name.
        of_keras = layer_kinds.is_from(type(x).__init__, "keras")
        return {
            key: self.to(functions[key])
            if key in functions and (of_keras or isinstance(value, dict))
            else replaced(value)
            for key, value in config.items()
        }

    def _replaced(self, held, takes_values, entry):
        """A value in a config, with what is held replaced by references."""
        replaced = functools.partial(self._replaced, held, takes_values)
        if isinstance(entry, (list, tuple)):
            # Matrices are long.
            if not any(map(configs.is_nested, entry)):
                return entry
            values = list(map(replaced, entry))
            is_named = hasattr(entry, "_fields")
            return type(entry)(*values) if is_named else type(entry)(values)
        if isinstance(entry, dict):
            layer = held.find(entry)
            if layer is not None:
                return self.to(layer, entry)
            graph = held.find_graph(entry)
            if graph is not None:
                held, entry = configs.Held(graph), graphs.config_of(graph)
                replaced = functools.partial(self._replaced, held, takes_values)
            return {key: replaced(value) for key, value in entry.items()}
        if isinstance(entry, keras.Layer):
            made = self._clone if takes_values else self.to
            return made(entry)
        if inspect.isroutine(entry) and not takes_values:
            return self.to(entry)
        return entry if takes_values else configs.serialized(entry)

    def to(self, x, entry=None):
        """An entry in a config from which Keras makes `x`, or its copy."""
        known = entry or {"class_name": "Reference", "config": {}}
        known = {k: v for k, v in known.items() if k != "build_config"}
        is_called = "inbound_nodes" in known
        name = f"{_NAME}_{id(x)}_{is_called}"
        self.classes[name] = _Reference(self._clone, x, is_called)
        return {**known, "module": __name__, "registered_name": name}

    def forget(self, clone):
        """Removes references from configs that an object has as attributes."""
        if isinstance(clone, keras.Operation):
            for name, value in list(vars(clone).items()):
                plain = self._without_references(value)
                if plain is not value and not name.startswith("_"):
                    setattr(clone, name, plain)

    def _without_references(self, value):
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            plain = [self._without_references(x) for x in value]
            same = all(x is y for x, y in zip(plain, value, strict=True))
            return value if same else type(value)(plain)
        if not isinstance(value, dict):
            return value
        reference = self.classes.get(value.get("registered_name"))
        if reference is not None:
            return configs.serialized(reference.from_config(None))
        plain = {k: self._without_references(x) for k, x in value.items()}
        return value if all(plain[k] is value[k] for k in plain) else plain


class _Reference:
    """What Keras takes for a class; makes one object, whatever the config.

    Args:
        is_called: Whether it is in the config of a graph, which numbers calls.
    """

    def __init__(self, clone, x, is_called):
        self._clone = clone
        self._x = x
        self._is_called = is_called

    def from_config(self, config):
        if not isinstance(self._x, keras.Operation):
            return self._x
        clone = self._clone(self._x)
        if self._is_called and internals.is_called(clone):
            raise CannotCopyError(
                f"`{clone.name}` is called in the config of a model that a "
                "layer holds, and elsewhere. Put the model itself in the "
                "config of the layer, not the result of its `get_config`."
            )
        return clone

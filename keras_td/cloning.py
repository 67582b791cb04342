"""Copies of layers and of other objects of Keras, without their weights."""

import functools

import keras
from keras import tree

from keras_td import configs
from keras_td import graphs
from keras_td import internals
from keras_td import layer_kinds
from keras_td.configs import CannotCopyError
from keras_td.time_distributed import TimeDistributed

_REFERENCE = "keras_td>Reference"


class Cloner:
    """Copies objects, and puts this layer in place of Keras's own.

    Each object has one copy, wherever it occurs.

    Args:
        options: Dict of the options of each layer that is put in place.
    """

    def __init__(self, options):
        self.options = options
        # Of each object, by its id, itself and its copy.
        self._clones = {}
        # What stands in a config by reference, by the name of that.
        self._referenced = {}

    def clone(self, x):
        if id(x) not in self._clones:
            self._clones[id(x)] = x, self._clone(x)
        return self._clones[id(x)][1]

    def _clone(self, x):
        cls, config = type(x), self._config_of(x)
        if isinstance(x, keras.Function) and "input_layers" in config:
            return _like(x, self._clone_graph(x, config))
        if cls is keras.layers.TimeDistributed:
            cls, config = TimeDistributed, self._upgraded(x, config)
        try:
            clone = self._from_config(cls, config, x)
        except (AttributeError, KeyError, TypeError) as error:
            raise CannotCopyError(
                f"The config of `{x.name}` ({cls.__name__}) makes no other: "
                f"{error.__context__ or error}"
            ) from error
        return _like(x, clone)

    def _config_of(self, x):
        if isinstance(x, keras.Sequential) and configs.takes_values(x):
            inner = internals.layers_of(x, False, recursive=False)
            return {"name": x.name, "layers": list(map(self._reference, inner))}
        return configs.config_of(x)

    def _upgraded(self, layer, config):
        if layer.supports_masking is not _supports_masking_by_default():
            config = {**config, "supports_masking": layer.supports_masking}
        return {**config, **self.options}

    def _clone_graph(self, model, config):
        """Calls copies of the layers of a functional model as it calls them."""
        if not configs.takes_values(model):
            raise CannotCopyError(
                f"`{model.name}` is a functional model of a class with its own "
                "`from_config`."
            )
        tensors = {
            id(x): self.clone(internals.operation_of(x)).output
            for x in model.inputs
        }

        def copy(nest):
            return tree.map_structure(lambda x: tensors.get(id(x), x), nest)

        for operation, args, kwargs, outputs in graphs.calls(model):
            results = self.clone(operation)(*copy(args), **copy(kwargs))
            results = tree.flatten(results)
            tensors.update(zip(map(id, outputs), results, strict=True))
        own = {k: v for k, v in config.items() if k not in configs.OF_GRAPH}
        functions = configs.functions_of(model, own)
        own = self._with_references(own, functions, model)
        return type(model)(
            copy(model.input), copy(model.output), name=model.name, **own
        )

    def _from_config(self, cls, config, x):
        # Nobody need have registered the class.
        name = f"keras_td>{cls.__name__}_{id(cls)}"
        functions = configs.functions_of(x, config)
        entry = {
            "module": cls.__module__,
            "class_name": cls.__name__,
            "config": self._with_references(config, functions, x),
            "registered_name": name,
        }
        names = configs.names_in(x, functions)
        # Its code is not that of a file.
        return keras.saving.deserialize_keras_object(
            entry, {**names, name: cls, **self._referenced}, safe_mode=False
        )

    def _with_references(self, config, functions, x):
        """Puts references in place of layers and functions in a config.

        So copies share what the originals share, and functions, of which no
        config tells all, are the same.
        """
        replaced = functools.partial(
            self._replaced, configs.Held(x), configs.takes_values(x)
        )
        # Keras may have a function of the same name.
        of_keras = layer_kinds.is_from(type(x).__init__, "keras")
        return {
            key: self._reference(functions[key])
            if key in functions and (of_keras or isinstance(value, dict))
            else replaced(value)
            for key, value in config.items()
        }

    def _replaced(self, held, takes_values, entry):
        """A value in a config, with references in place of what is held."""
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
                return self._reference(layer, entry)
            return {key: replaced(value) for key, value in entry.items()}
        if isinstance(entry, keras.Layer):
            made = self.clone if takes_values else self._reference
            return made(entry)
        return entry if takes_values else configs.serialized(entry)

    def _reference(self, x, entry=None):
        """An entry in a config that Keras makes `x`, or its copy, of."""
        name = f"{_REFERENCE}_{id(x)}"
        self._referenced[name] = _Reference(self, x)
        known = entry or {"class_name": "Reference", "config": {}}
        return {
            "module": __name__,
            "class_name": known["class_name"],
            "config": known["config"],
            "registered_name": name,
        }


class _Reference:
    """What Keras takes for a class, to make one object of any config."""

    def __init__(self, cloner, x):
        self._cloner = cloner
        self._x = x

    def from_config(self, config):
        if isinstance(self._x, keras.Operation):
            return self._cloner.clone(self._x)
        return self._x


class _Stock(keras.layers.TimeDistributed):
    """Is Keras's own where `replacing` is open, too."""


@functools.lru_cache
def _supports_masking_by_default():
    # It differs between releases. With names, Keras does not count them.
    identity = keras.layers.Identity(name="identity")
    return _Stock(identity, name="stock").supports_masking


def _like(x, clone):
    """Gives a copy what no config tells."""
    if isinstance(x, keras.Operation) and clone.name != x.name:
        clone.name = x.name
    if isinstance(x, keras.Model) and clone.dtype_policy != x.dtype_policy:
        clone.dtype_policy = x.dtype_policy
    if isinstance(x, keras.layers.Lambda):
        clone.mask = x.mask
    if isinstance(x, keras.Layer) and configs.builds_in_its_own_way(x):
        clone.build_from_config(x.get_build_config())
        clone.built = True
    return clone

"""Copies of layers and of other objects of Keras, without their weights."""

import functools
import inspect

import keras
from keras import tree

from keras_td import configs
from keras_td import copying
from keras_td import graphs
from keras_td import internals
from keras_td import layer_kinds
from keras_td.configs import CannotCopyError
from keras_td.time_distributed import TimeDistributed

_REFERENCE = "keras_td>Reference"
# What `compile` sets.
_OF_COMPILE = {"optimizer", "stop_training"}


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
            clone = self._clone(x)
            self._clones[id(x)] = x, clone
            if configs.is_made_of_layers(x):
                self._give_attributes(x, clone)
        return self._clones[id(x)][1]

    def _clone(self, x):
        if configs.is_plain_operation(x):
            configs.check_functions(vars(x).values(), x)
            return internals.uncalled(x)
        cls, config = type(x), self._config_of(x)
        if configs.is_graph(x, config):
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
        self._forget_references(clone)
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
            configs.check_functions([args, kwargs], operation)
            results = self.clone(operation)(*copy(args), **copy(kwargs))
            results = tree.flatten(results)
            tensors.update(zip(map(id, outputs), results, strict=True))
        own = {k: v for k, v in config.items() if k not in configs.OF_GRAPH}
        functions = configs.functions_of(model, own)
        own = self._with_references(own, functions, model)
        return type(model)(
            copy(model.input), copy(model.output), name=model.name, **own
        )

    def _forget_references(self, clone):
        """Gives an object the configs themselves that it keeps for its own."""
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
        reference = self._referenced.get(value.get("registered_name"))
        if reference is not None:
            return configs.serialized(reference.from_config(None))
        plain = {k: self._without_references(x) for k, x in value.items()}
        return value if all(plain[k] is value[k] for k in plain) else plain

    def _give_attributes(self, model, clone):
        """Gives a copy what its author has set on a model that Keras builds."""
        # On PyTorch, layers are among no `vars`.
        for name in set(dir(model)) - set(dir(clone)) - _OF_COMPILE:
            value = getattr(model, name)
            if not name.startswith("_") and not graphs.has_tensors(value):
                value = tree.map_structure(self._attribute, value)
                setattr(clone, name, value)

    def _attribute(self, x):
        if isinstance(x, keras.Variable):
            return keras.Variable(
                x, dtype=x.dtype, trainable=x.trainable, name=x.name
            )
        kinds = keras.Layer, keras.Metric, keras.optimizers.Optimizer
        return self.clone(x) if isinstance(x, kinds) else x

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
            graph = held.find_graph(entry)
            if graph is not None:
                held, entry = configs.Held(graph), graphs.config_of(graph)
                replaced = functools.partial(self._replaced, held, takes_values)
            return {key: replaced(value) for key, value in entry.items()}
        if isinstance(entry, keras.Layer):
            made = self.clone if takes_values else self._reference
            return made(entry)
        if inspect.isroutine(entry) and not takes_values:
            return self._reference(entry)
        return entry if takes_values else configs.serialized(entry)

    def _reference(self, x, entry=None):
        """An entry in a config that Keras makes `x`, or its copy, of."""
        known = entry or {"class_name": "Reference", "config": {}}
        known = {k: v for k, v in known.items() if k != "build_config"}
        is_called = "inbound_nodes" in known
        name = f"{_REFERENCE}_{id(x)}_{is_called}"
        self._referenced[name] = _Reference(self, x, is_called)
        return {**known, "module": __name__, "registered_name": name}


class _Reference:
    """What Keras takes for a class, to make one object of any config.

    Args:
        is_called: Whether it is in the config of a graph, which numbers calls.
    """

    def __init__(self, cloner, x, is_called):
        self._cloner = cloner
        self._x = x
        self._is_called = is_called

    def from_config(self, config):
        if not isinstance(self._x, keras.Operation):
            return self._x
        clone = self._cloner.clone(self._x)
        if self._is_called and internals.is_called(clone):
            raise CannotCopyError(
                f"`{clone.name}` is called in the config of a model that a "
                "layer holds, and elsewhere. Let the layer have the model "
                "itself in its config, not what its `get_config` returns."
            )
        return clone


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
    if isinstance(x, keras.Layer) and clone.dtype_policy != x.dtype_policy:
        clone.dtype_policy = x.dtype_policy
    if isinstance(x, keras.Layer) and not configs.is_stock(x):
        clone.supports_masking = x.supports_masking
    if isinstance(x, keras.layers.Lambda):
        clone.mask = x.mask
    if not isinstance(x, keras.Operation):
        copying.copy_settings(x, clone)
    if isinstance(x, keras.Layer) and configs.builds_in_its_own_way(x):
        clone.build_from_config(x.get_build_config())
        clone.built = True
    return clone

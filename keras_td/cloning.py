"""Copies layers and other Keras objects, without their weights."""

import functools

import keras
from keras import tree

from keras_td import configs
from keras_td import copying
from keras_td import graphs
from keras_td import internals
from keras_td.configs import CannotCopyError
from keras_td.references import References
from keras_td.time_distributed import TimeDistributed

# What `compile` sets.
_OF_COMPILE = {"optimizer", "stop_training"}


class Cloner:
    """Copies objects, and replaces Keras's `TimeDistributed` with this one.

    Each object has one copy, wherever it occurs.

    Args:
        options: Dict of the options of each new `TimeDistributed`.
    """

    def __init__(self, options):
        self.options = options
        # Each object and its copy, by the id of the object.
        self._clones = {}
        self._references = References(self.clone)

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
                f"`{x.name}` ({cls.__name__}) cannot be made from its config: "
                f"{error.__context__ or error}"
            ) from error
        self._references.forget(clone)
        return _like(x, clone)

    def _config_of(self, x):
        if isinstance(x, keras.Sequential) and configs.takes_values(x):
            inner = internals.layers_of(x, False, recursive=False)
            return {
                "name": x.name,
                "layers": list(map(self._references.to, inner)),
            }
        return configs.config_of(x)

    def _upgraded(self, layer, config):
        if layer.supports_masking is not _supports_masking_by_default():
            config = {**config, "supports_masking": layer.supports_masking}
        return {**config, **self.options}

    def _clone_graph(self, model, config):
        """Rebuilds a functional model with copies of its layers."""
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
        own = self._references.in_config(own, functions, model)
        return type(model)(
            copy(model.input), copy(model.output), name=model.name, **own
        )

    def _give_attributes(self, model, clone):
        """Copies the attributes that users set on a model that Keras builds."""
        for name, value in _set_since(model, clone).items():
            if not graphs.has_tensors(value):
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
        # The class need not be registered.
        name = f"keras_td>{cls.__name__}_{id(cls)}"
        functions = configs.functions_of(x, config)
        entry = {
            "module": cls.__module__,
            "class_name": cls.__name__,
            "config": self._references.in_config(config, functions, x),
            "registered_name": name,
        }
        names = configs.names_in(x, functions)
        # Its code does not come from a file.
        return keras.saving.deserialize_keras_object(
            entry,
            {**names, name: cls, **self._references.classes},
            safe_mode=False,
        )


def _set_since(model, clone):
    """The attributes that a copy of a model lacks, in the order of weights."""
    # On PyTorch, layers are not in `vars`.
    since = set(dir(model)) - set(dir(clone)) - _OF_COMPILE
    values = {
        name: getattr(model, name)
        for name in dict.fromkeys([*vars(model), *dir(model)])
        if name in since and not name.startswith("_")
    }
    inner = internals.layers_of(model, False, recursive=False)
    order = {id(layer): number for number, layer in enumerate(inner)}

    def position(name):
        held = tree.flatten(values[name])
        return next((order[id(x)] for x in held if id(x) in order), -1)

    return {name: values[name] for name in sorted(values, key=position)}


class _Stock(keras.layers.TimeDistributed):
    """Keras's own layer, even inside `replacing`."""


@functools.lru_cache
def _supports_masking_by_default():
    # It differs between releases. Explicit names keep Keras from counting these
    # layers in its default names.
    identity = keras.layers.Identity(name="identity")
    return _Stock(identity, name="stock").supports_masking


def _like(x, clone):
    """Copies what is in no config."""
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

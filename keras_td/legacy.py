"""Layers from configs of Keras 3 and, in old files, of Keras 2."""

import copy

import keras

# Without these, Keras reads a config as a Keras 2 config.
_OF_KERAS_3 = "module", "registered_name", "build_config"


def layer_from_config(config, custom_objects=None):
    """Makes a wrapped layer from its config.

    Keras reads Keras 2 configs only in whole models.

    Raises:
        TypeError: if it is a config of neither version.
    """
    try:
        return keras.saving.deserialize_keras_object(
            copy.deepcopy(config), custom_objects
        )
    except TypeError as error:
        whole = {"name": "model", "layers": [_in_old_form(config)]}
        try:
            return keras.Sequential.from_config(whole, custom_objects).layers[0]
        except Exception as of_keras_2:
            is_old = "module" not in config
            raise (TypeError(f"{of_keras_2}") if is_old else error) from None


def _in_old_form(config):
    if isinstance(config, (list, tuple)):
        return [_in_old_form(x) for x in config]
    if not isinstance(config, dict):
        return config
    return {
        key: _in_old_form(value)
        for key, value in config.items()
        if "class_name" not in config or key not in _OF_KERAS_3
    }

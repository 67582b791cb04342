"""Fast paths for calls on a single tensor without a mask.

In eager calls, a small layer takes less time than the work that the general
case needs around it.
"""

import keras
from keras import ops

from keras_td import building
from keras_td import internals
from keras_td import layer_kinds
from keras_td import masks as masks_of
from keras_td import padding
from keras_td import trees
from keras_td.options import CallOptions


def is_prepared(wrapper, inputs, args, kwargs):
    """Whether Keras's `Layer.__call__` of a wrapper would do nothing but call.

    It converts arrays, checks inputs, builds, sets the dtype that variables are
    cast to, passes masks on, adds losses and drops those of the last call. It
    also resolves `training`, but the wrapped layer does so too.
    """
    return (
        not args
        and kwargs.keys() <= {"training", "mask"}
        and kwargs.get("mask") is None
        and _is_bare_tensor(inputs)
        and CallOptions.of(wrapper).are_defaults
        and wrapper.built
        and building.is_built(wrapper.layer)
        and not internals.own_losses(wrapper)
        and "compute_mask" not in vars(wrapper)
        and wrapper.input_spec is None
        and wrapper.activity_regularizer is None
        and not wrapper.autocast
        and wrapper.compute_dtype == wrapper.variable_dtype
        and keras.distribution.distribution() is None
    )


def is_all_there_is(layer, inputs, options):
    """Whether a layer only has to be called once, with nothing else to do.

    A Keras layer that holds no other layers keeps no state between calls.
    """
    return (
        options.are_defaults
        and _is_bare_tensor(inputs)
        and layer_kinds.is_from(layer.call, "keras")
        and not internals.layers_of(layer, include_self=False)
        and not layer_kinds.required_options(layer)
        and not padding.mixes_samples(layer)
    )


def _is_bare_tensor(x):
    """Whether `x` is a dense tensor `(batch, time, ...)` without a mask."""
    return (
        ops.is_tensor(x)
        and trees.is_dense(x)
        and getattr(x.shape, "rank", 2) is not None
        and len(x.shape) > 1
        and masks_of.get_masks(x) is None
    )

"""Checks and errors, in the user's terms."""

import contextlib
import inspect
import numbers

import keras
from keras import ops
from keras import tree

from keras_td import folding
from keras_td import internals
from keras_td import layer_kinds
from keras_td import trees


def check_layer(layer):
    if not isinstance(layer, keras.Layer):
        raise ValueError(
            "Please initialize `TimeDistributed` layer with a "
            f"`keras.layers.Layer` instance. Received: {layer}"
        )
    kinds = [p.kind for p in inspect.signature(layer.call).parameters.values()]
    if not {
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    }.intersection(kinds):
        raise ValueError(
            "`TimeDistributed` applies a layer to each time step of its "
            "inputs, but this layer takes no inputs. Leave it out, and call "
            "`TimeDistributed` on a `keras.Input` if needed. Received: "
            f"layer={layer}"
        )


def check_options(steps_per_call, **switches):
    whole = isinstance(steps_per_call, numbers.Integral)
    if steps_per_call is not None and (
        not whole or isinstance(steps_per_call, bool) or steps_per_call < 1
    ):
        raise ValueError(
            "`steps_per_call` must be a positive integer, or None for one call "
            f"on all time steps. Received: steps_per_call={steps_per_call!r}"
        )
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(
                f"`{name}` must be True or False. Received: {name}={value!r}"
            )
    if switches["skip_masked"] and switches["share_randomness"]:
        raise ValueError(
            "`skip_masked=True` and `share_randomness=True` cannot be "
            "combined: with the first, a call sees valid steps of all samples "
            "in one batch; with the second, all samples of one step. Received "
            "both."
        )
    if switches["remat"] and not hasattr(keras, "remat"):
        raise ValueError(
            "`remat=True` needs Keras 3.9 or later. This is Keras "
            f"{keras.__version__}."
        )


def check_dense(tensors):
    """Checks that tensors, given by name, are dense."""
    for name, x in tensors.items():
        if not trees.is_dense(x):
            instead = (
                "Convert it to a dense tensor"
                if "Sparse" in type(x).__name__
                else "Pad it to a dense tensor, and pass a mask for the padding"
            )
            raise ValueError(
                "`TimeDistributed` takes dense tensors of shape `(batch, time, "
                f"...)`. {instead}. Received: `{name}` of type "
                f"{type(x).__name__} with shape {tuple(x.shape)}."
            )


def check_keeps_no_state(layer):
    for inner in internals.layers_of(layer):
        if layer_kinds.is_stateful(inner):
            raise ValueError(
                "`skip_masked=True` moves time steps between the samples of a "
                "batch, but a stateful layer keeps a state for each sample. "
                f"Received: the stateful layer {inner.name!r}."
            )


def no_training_in_any_time(time):
    return ValueError(
        "`steps_per_call` and `share_randomness` cannot train in a program "
        "that is exported for any number of time steps. Expected: a fixed "
        f"number of time steps. Received: {time}."
    )


def not_traced():
    return NotImplementedError(
        f"On the {keras.backend.backend()} backend, `TimeDistributed` cannot "
        "be traced by TensorFlow, as in `tf.data`. Call it in a "
        "`tf.numpy_function` there: `tf.numpy_function(lambda x: "
        "keras.ops.convert_to_numpy(layer(x, training=True)), [inputs], "
        "layer.compute_dtype)`. Received: inputs without concrete values."
    )


def has_another_graph(nest):
    """Whether a nest has tensors of a graph that is not the backend's."""
    return any(map(_is_of_another_graph, tree.flatten(nest)))


def _is_of_another_graph(x):
    if keras.backend.is_keras_tensor(x) or ops.is_tensor(x):
        return False
    try:
        ops.convert_to_tensor(x)
    except Exception as error:
        return isinstance(error, NotImplementedError)
    return False


@contextlib.contextmanager
def told_of_fixed_batch(layer, x):
    """Explains why a layer fails on another batch size than it is fixed to."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        samples, fixed = x.shape[0], _fixed_batch(layer)
        if fixed is None or not folding.differ(fixed, samples):
            raise
        raise ValueError(
            f"The layer wrapped by `TimeDistributed` is fixed to a batch of "
            f"{fixed}, as a stateful layer is to the first batch that it sees, "
            "but each of its calls has `batch * steps` samples. Pass "
            "`steps_per_call=1`, so that it sees one time step of the batch "
            "at a time, or another number that divides the number of steps. "
            f"Received: a call on {samples} samples."
        ) from error


def _fixed_batch(layer):
    """The batch size that a stateful layer is fixed to, or `None`."""
    for inner in internals.layers_of(layer):
        if layer_kinds.is_stateful(inner):
            for state in trees.tensors(getattr(inner, "states", None)):
                return state.shape[0]
    return None

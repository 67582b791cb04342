"""Private parts of Keras, each with the reason for using it."""

import keras


def layers_of(layer, include_self=True, recursive=True):
    """All layers in a layer.

    `Model.layers` is public, but only for models and their direct layers.
    """
    return layer._flatten_layers(include_self, recursive)


def own_weights(layer):
    """The weights of a layer itself that train unless it is frozen.

    `trainable_variables` is public, but empty if the layer is frozen.
    """
    return layer._trainable_variables


def own_losses(layer):
    """The losses that a layer itself has added.

    `losses` is public, and includes those of the layers inside.
    """
    return layer._losses


def own_metrics(layer):
    """The metrics of a layer itself; `metrics` includes those of others."""
    return list(layer._metrics)


def is_recomputed(layer):
    """Whether a layer was made in a `keras.RematScope`.

    The scope is public, but what it does to a layer is not.
    """
    return bool(getattr(layer, "_remat_mode", None))


def is_made_in_scope(variable):
    """Whether a variable was made in a `StatelessScope` that is still open.

    `value` is public, but returns the value of the scope or the initializer.
    """
    return variable._value is None


def forget_losses(layer, losses):
    """Makes a layer forget losses that it has added; returns their ids.

    Keras tracks losses by id, and Python reuses the id of a loss that is gone.
    """
    found = layer._loss_ids & set(map(id, losses))
    layer._loss_ids -= found
    return found


def mask_of(x):
    """The mask attached to a tensor, if tensors have attributes.

    Keras has no public way to get it outside the call of a layer.
    """
    return getattr(x, "_keras_mask", None)


def set_mask(x, mask):
    """Attaches a mask to a tensor.

    Raises:
        AttributeError: if tensors have no attributes.
    """
    x._keras_mask = mask


def operation_of(x):
    """The operation that a symbolic tensor comes from, or `None`.

    `keras.Function` is public, but only finds the operations of whole models.
    """
    history = getattr(x, "_keras_history", None)
    return getattr(history, "operation", None)


def node_of(x):
    """The call that a symbolic tensor comes from, and which output it is.

    The call is `None` for a tensor that comes from none.
    """
    history = getattr(x, "_keras_history", None)
    if history is None or history.operation is None:
        return None, 0
    nodes = history.operation._inbound_nodes
    return nodes[history.node_index], history.tensor_index


def outputs_of(layer):
    """The symbolic tensors that a layer has returned, in all its calls.

    `output` is public, but raises if there are several calls.
    """
    return [y for node in calls_of(layer) for y in node.output_tensors]


def uncalled(operation):
    """A copy of an operation with the same attributes, but without its calls.

    `get_config` is public, but loses functions and tuples.
    """
    copied = object.__new__(type(operation))
    calls: dict = {"_inbound_nodes": [], "_outbound_nodes": []}
    vars(copied).update({**vars(operation), **calls})
    return copied


def calls_of(operation):
    """The calls of an operation, in order."""
    return list(operation._inbound_nodes)


def is_called(layer):
    """Whether a layer was called on symbolic tensors since it was created."""
    begins_with = isinstance(layer, (keras.Function, keras.layers.InputLayer))
    return len(calls_of(layer)) > begins_with


def nodes_of(model):
    """The calls in a functional model, in order.

    `keras.models.clone_model` is public, but does not pass the tensors of the
    original model to the function that it calls.
    """
    by_depth = model._nodes_by_depth
    return [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
        if not node.is_input
    ]


def arguments_of_compile(model):
    """What a model was compiled with.

    `get_compile_config` is public, but gives functions by name.
    """
    return dict(model._compile_config.config)


def optimized_variables(optimizer):
    """The variables that an optimizer was built for, in order."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return list(inner._trainable_variables)


# The seed that a `keras.random.SeedGenerator` was given, or `None`. Its config
# has it too, but on PyTorch, Keras's dropout reads this attribute.
INITIAL_SEED = "_initial_seed"


def loop_over_time(cell, sequences, states):
    """Keras's loop over time, around any cell.

    `keras.ops.scan` is public, but XLA has no gradients for it on TensorFlow.

    Returns:
        Tuple of the last output, all outputs and the last states.
    """
    rnn = keras.layers.RNN(cell, return_sequences=True, name="loop")
    return rnn.inner_loop(sequences, states, None)

"""The calls of a functional model, as its author made them.

Keras writes the masks attached to tensors into the arguments of calls. They
have to be removed, as replaced layers may return other masks.
"""

import inspect

import keras
from keras import tree

from keras_td import internals


def calls(model):
    """The calls of a functional model, in order.

    Yields:
        Tuples of the operation, its positional and its keyword arguments
        without those that Keras added, and the list of its outputs.
    """
    expressions = _Expressions()
    for node in internals.nodes_of(model):
        args, kwargs = node.arguments.args, node.arguments.kwargs
        added = _added_masks(node, expressions) | _added_training(node)
        kwargs = {k: v for k, v in kwargs.items() if k not in added}
        yield node.operation, args, kwargs, node.output_tensors


def config_of(model):
    """The config of a functional model, without the masks that Keras added.

    Its entries for layers are in the order of `model.operations`.
    """
    config, expressions = model.get_config(), _Expressions()
    own = set(map(id, internals.nodes_of(model)))
    for entry, x in zip(config["layers"], model.operations, strict=True):
        nodes = [node for node in internals.calls_of(x) if id(node) in own]
        for node, call in zip(nodes, entry["inbound_nodes"], strict=True):
            for name in _added_masks(node, expressions):
                del call["kwargs"][name]
    return config


def _added_masks(node, expressions):
    """The names of the arguments that are masks added by Keras."""
    args, kwargs = node.arguments.args, node.arguments.kwargs
    return {
        name
        for name, x in _sources_of_masks(node.operation, args, kwargs)
        if name in kwargs and _are_masks(kwargs[name], x, expressions)
    }


def _added_training(node):
    """The name `training`, if its value is the one that Keras adds.

    Keras does not record the masks of a call with keyword arguments.
    """
    parameters = inspect.signature(node.operation.call).parameters
    value = node.arguments.kwargs.get("training", inspect.Parameter.empty)
    default = getattr(parameters.get("training"), "default", None)
    return {"training"} if value == (default or False) else set()


def _sources_of_masks(operation, args, kwargs):
    """The masks that Keras adds to a call without them.

    Returns:
        List of pairs: the name of a mask, and the argument that it belongs to.
    """
    if not isinstance(operation, keras.Layer):
        return []
    try:
        bound = inspect.signature(operation.call).bind(*args, **kwargs)
    except TypeError:
        return []
    tensors = {k: v for k, v in bound.arguments.items() if has_tensors(v)}
    # Keras looks for tensors before it adds their masks.
    added = {"mask", *(f"{name}_mask" for name in tensors)}
    others = {k: v for k, v in tensors.items() if k not in added}
    if len(others) == 1:
        return [("mask", *others.values())]
    return [(f"{name}_mask", x) for name, x in others.items()]


def has_tensors(nest):
    return any(map(keras.backend.is_keras_tensor, tree.flatten(nest)))


def _are_masks(nest, tensors, expressions):
    """Whether a nest is the masks attached to tensors."""
    masks = [internals.mask_of(x) for x in tree.flatten(tensors)]
    given = tree.flatten(nest)
    return len(given) == len(masks) and all(
        a is b
        or (has_tensors([a, b]) and expressions.of(a) == expressions.of(b))
        for a, b in zip(given, masks, strict=True)
    )


class _Expressions:
    """Numbers symbolic tensors; those of equal value have equal numbers.

    In a loaded model, the masks in its graph are not the tensors attached as
    masks, but come from equal operations.
    """

    def __init__(self):
        self._numbers = {}
        self._of_tensors = {}

    def of(self, x):
        """The number of a tensor, or the `repr` of anything else."""
        if not keras.backend.is_keras_tensor(x):
            return repr(x)
        # A graph may be deeper than Python's stack.
        waiting = [x]
        while waiting:
            y = waiting[-1]
            others = [z for z in _inputs(y) if id(z) not in self._of_tensors]
            if others:
                waiting += others
                continue
            waiting.pop()
            if id(y) not in self._of_tensors:
                number = len(self._numbers)
                number = self._numbers.setdefault(self._expression(y), number)
                self._of_tensors[id(y)] = number
        return self._of_tensors[id(x)]

    def _expression(self, x):
        node, index = internals.node_of(x)
        if _is_end(node):
            return id(node or x), index
        arguments = node.arguments.args, node.arguments.kwargs
        arguments = tree.map_structure(self.of, arguments)
        config = {**node.operation.get_config(), "name": None}
        return type(node.operation), repr(config), repr(arguments), index


def _is_end(node):
    return node is None or isinstance(node.operation, keras.Layer)


def _inputs(x):
    """The inputs of the operation that makes a tensor, if it is not a layer."""
    node, _ = internals.node_of(x)
    return [] if _is_end(node) else node.input_tensors

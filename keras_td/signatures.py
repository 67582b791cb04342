"""Separates tensors from other values in the arguments of a call."""

import inspect
from typing import Any
from typing import TypeVar

from keras_td import trees

_NAMES = "_names_of_last_args"
_Call = TypeVar("_Call", bound=Any)


def to_positional(call, args, kwargs):
    """Separates keyword tensors from other keyword values.

    Keras rejects a `**kwargs` that holds both, so the tensors are passed by
    position, and their names as a value.
    """
    # Inspecting a signature is slow.
    if kwargs.keys() <= {"training", "mask"}:
        return args, kwargs
    parameters = inspect.signature(call).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return args, kwargs
    rest = {n: kwargs[n] for n in kwargs if n not in parameters}
    names = [n for n in rest if is_tensor_argument(n, rest[n])]
    if len(names) in (0, len(rest)):
        return args, kwargs
    tensors = [kwargs.pop(name) for name in names]
    return (*args, *tensors), {**kwargs, _NAMES: names}


def from_positional(args, kwargs):
    """Undoes `to_positional`.

    Returns:
        Tuple of the positional tensors, the keyword tensors, and the options,
        which are all other values.
    """
    options = dict(kwargs)
    names = options.pop(_NAMES, ())
    split = len(args) - len(names)
    tensors = {
        name: options.pop(name)
        for name in list(options)
        if is_tensor_argument(name, options[name])
    }
    named = dict(zip(names, args[split:], strict=True))
    return args[:split], {**tensors, **named}, options


def options_of_keras(args, training, mask, layer, in_subclass):
    """Takes `training` and `mask` out of `args`, where Keras's layer has them.

    Args:
        args: The positional arguments after the inputs.
        training: The keyword argument.
        mask: The keyword argument.
        layer: The wrapped layer.
        in_subclass: Whether the `call` of a subclass passes them on.

    Returns:
        Tuple of the other `args`, `training` and `mask`.
    """
    if args and _are_of_keras(args, layer, in_subclass):
        training, *given = args
        args, mask = (), given[0] if given else mask
    return args, _as_bool(training), mask


def _are_of_keras(args, layer, in_subclass):
    if len(args) not in (1, 2) or trees.is_tensor(args[0]):
        return False
    if in_subclass or isinstance(args[0], bool):
        return True
    names = [
        parameter.name
        for parameter in inspect.signature(layer.call).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    # An LSTM, like other layers, has its mask at that position too.
    return len(args) == 2 and names[2:3] in ([], ["mask"])


def _as_bool(training):
    """Makes a bool of `training`, unless it is a tensor without a value."""
    if training is None or training is True or training is False:
        return training
    try:
        return bool(training)
    except Exception:
        return training


def is_tensor_argument(name, value):
    """Whether an argument is a nest of tensors.

    Raises:
        ValueError: if it holds other values too.
    """
    are_tensors = [
        trees.is_tensor(x) for x in trees.flatten(value) if x is not None
    ]
    if any(are_tensors) and not all(are_tensors):
        raise ValueError(
            f"The argument `{name}` of the `TimeDistributed` layer mixes "
            "tensors and other values. Pass them as separate arguments. "
            f"Received: {value}"
        )
    return any(are_tensors)


def with_defaults_of_rest(call: _Call) -> _Call:
    """Gives `*args` and `**kwargs` defaults, for Keras's error messages.

    They list the defaults of arguments that were not passed, which would be
    `args=<class 'inspect._empty'>` here.
    """
    signature = inspect.signature(call)
    call.__signature__ = signature.replace(
        parameters=[
            _Rest(p.name, p.kind, annotation=p.annotation)
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            else p
            for p in signature.parameters.values()
        ]
    )
    return call


class _Rest(inspect.Parameter):
    """`*args` or `**kwargs`, with a default."""

    @property
    def default(self):
        return () if self.kind is self.VAR_POSITIONAL else {}

"""The tensors of a call and their masks, as one value."""

import dataclasses
import functools
import numbers
from typing import Any

import keras
from keras import tree

from keras_td import errors
from keras_td import folding
from keras_td import masking
from keras_td import masks as masks_of
from keras_td import signatures
from keras_td import time_axis
from keras_td import trees


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The arguments of the wrapped layer, for all time steps.

    Args:
        tensors: Dict of nests of tensors `(batch, time, ...)`, by argument
            name. `*args` are the positional ones after the inputs.
        masks: Dict of nests of the masks attached to them. `mask` is the one
            passed by name.
        time: The number of time steps.
        valid: Which steps are valid, `(batch, time)`, for the call of an outer
            wrapper, or for a call that skips the others. `None` means all.
        without_padding: Whether padded steps were left out, whatever the masks
            say.
    """

    tensors: dict
    masks: dict
    time: Any
    valid: Any = None
    without_padding: bool = False

    @classmethod
    def of_one(cls, x):
        """The arguments of a call on one tensor without a mask."""
        return cls({"inputs": x}, {"inputs": None}, x.shape[1])

    @property
    def first(self):
        nests = self.tensors.values()
        return next(x for nest in nests for x in trees.tensors(nest))

    @property
    def is_symbolic(self):
        return is_symbolic(self.tensors)

    @property
    def nests(self):
        return [*self.tensors.values(), *self.masks.values(), self.valid]

    def with_nests(self, nests):
        """A copy with other `nests`."""
        count = len(self.tensors)
        *masks, valid = nests[count:]
        return dataclasses.replace(
            self,
            tensors=dict(zip(self.tensors, nests[:count], strict=True)),
            masks=dict(zip(self.masks, masks, strict=True)),
            valid=valid,
        )

    def map(self, fn):
        """Maps `fn` over all tensors and masks."""
        return self.with_nests([trees.map_tensors(fn, n) for n in self.nests])

    def align(self):
        """Gives all tensors and masks the same batch and time."""
        first, *others = [x for n in self.nests for x in trees.tensors(n)]
        if all(folding.same_steps(first, x) for x in others):
            return self
        batch, time = folding.common_sizes(named_tensors(self.tensors))
        return self.map(
            functools.partial(folding.align, batch=batch, time=time)
        )

    def fold(self):
        return self.map(folding.fold)

    def first_steps(self, steps):
        """The arguments of a call on the first steps, or on all of them."""
        if steps is None:
            return self
        if isinstance(self.time, int):
            steps = min(steps, self.time)
        return self.map(functools.partial(time_axis.first_steps, steps=steps))

    def to_symbols(self):
        return self.map(trees.symbol)

    def args_and_kwargs(self):
        """The tensors as positional and keyword arguments of a call."""
        kwargs = dict(self.tensors)
        return (kwargs.pop("inputs"), *kwargs.pop("*args", ())), kwargs

    def all_masks(self):
        """The masks of all tensors; a mask passed by name is the inputs'."""
        masks = {name: self.masks[name] for name in self.tensors}
        return {**masks, "inputs": self.masks.get("mask", masks["inputs"])}

    def step_mask(self):
        """Which steps are not padding, `(batch, time)`, or `None`."""
        return self.align_mask(masking.step_mask(self.all_masks()["inputs"]))

    def align_mask(self, mask):
        """Broadcasts a mask to all samples and steps."""
        if mask is None:
            return None
        sizes = folding.common_sizes(named_tensors(self.tensors))
        aligned = folding.align(mask, *sizes)
        # A broadcast symbolic mask would not be in the graph of its model.
        lost = aligned is not mask and self.is_symbolic
        return None if lost else aligned


def gather_call(inputs, args=(), kwargs=None, training=None, mask=None):
    """Gathers the tensors of a call, and its other arguments.

    Returns:
        Tuple of the `Arguments` and a dict of the other arguments.
    """
    args, kwargs, others = signatures.from_positional(args, kwargs or {})
    if training is not None:
        others["training"] = training
    return gather(inputs, args, kwargs, mask), others


def gather(inputs, args=(), kwargs=None, mask=None):
    """Gathers and checks the tensors of a call.

    Raises:
        ValueError: if a tensor or a mask has an unsupported type or shape.
    """
    tensors = {"inputs": inputs, **(kwargs or {})}
    if args:
        tensors["*args"] = args
    masks = {n: masks_of.get_masks(nest) for n, nest in tensors.items()}
    if is_symbolic(tensors):
        # Next to symbolic tensors, the value of an array counts only at run
        # time.
        tensors = {n: trees.symbols(x) for n, x in tensors.items()}
    named = named_tensors(tensors)
    errors.check_dense(named)
    _, time = folding.common_sizes(named)
    if mask is not None:
        given = masks_of.given(inputs, mask)
        attached = trees.flatten(masks["inputs"])
        pairs = zip(trees.flatten(given), attached, strict=True)
        # Keras also passes attached masks as `mask`.
        if any(a is not b for a, b in pairs):
            masks["mask"] = given
    for name, nest in masks.items():
        masks_of.check(nest, tensors.get(name, inputs))
    return Arguments(tensors, masks, time)


def is_symbolic(tensors):
    return any(
        keras.backend.is_keras_tensor(x)
        for nest in tensors.values()
        for x in trees.flatten(nest)
    )


def named_tensors(tensors):
    """Tensors by user-facing name: `value`, `inputs[0]`."""
    named = {}
    for name, nest in tensors.items():
        if trees.is_tensor(nest):
            named[name] = nest
            continue
        for path, x in trees.flatten_with_path(nest):
            if trees.is_tensor(x):
                named[name + "".join(f"[{key!r}]" for key in path)] = x
    return named


def symbols_of_shapes(shape, dtype=None):
    """Symbolic tensors for a nest of shapes."""
    return tree.map_shape_structure(
        lambda s: keras.KerasTensor(s, dtype=dtype),
        tree.map_structure(_as_sizes, shape),
    )


def _as_sizes(x):
    # Keras accepts neither TensorFlow shapes nor NumPy integers as sizes. Sizes
    # in a program exported for any size are unknown.
    if isinstance(x, int):
        return x
    if hasattr(x, "__len__"):
        return tuple(x)
    return int(x) if isinstance(x, numbers.Integral) else None

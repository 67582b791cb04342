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
    """What the wrapped layer is called with, at all time steps.

    Args:
        tensors: Dict of nests of tensors `(batch, time, ...)`, by the names of
            arguments. `*args` are those by position after the inputs.
        masks: Dict of nests of the masks attached to them. `mask` is one that
            was given by name.
        time: The number of time steps.
        valid: Which steps are valid, `(batch, time)`, for a call of another
            wrapper around this one, or for one that skips the others. `None`
            is all.
        without_padding: Whether padded steps were left out, whatever the masks
            say.
    """

    tensors: dict
    masks: dict
    time: Any
    valid: Any = None
    without_padding: bool = False

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
        """Puts other nests in place of `nests`."""
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
        """The tensors as the arguments of a call."""
        kwargs = dict(self.tensors)
        return (kwargs.pop("inputs"), *kwargs.pop("*args", ())), kwargs

    def all_masks(self):
        """The masks of all tensors, of which one may have been given."""
        masks = {name: self.masks[name] for name in self.tensors}
        return {**masks, "inputs": self.masks.get("mask", masks["inputs"])}

    def step_mask(self):
        """Which steps are no padding, `(batch, time)`, or `None`."""
        return self.align_mask(masking.step_mask(self.all_masks()["inputs"]))

    def align_mask(self, mask):
        """A mask of all samples and steps, of one of fewer."""
        if mask is None:
            return None
        sizes = folding.common_sizes(named_tensors(self.tensors))
        aligned = folding.align(mask, *sizes)
        # A symbolic one would have no place in the graph of its model.
        lost = aligned is not mask and self.is_symbolic
        return None if lost else aligned


def gather_call(inputs, args=(), kwargs=None, training=None, mask=None):
    """Gathers the tensors of a call, and its other arguments.

    Returns:
        Tuple of the `Arguments`, and of a dict of the others.
    """
    args, kwargs, others = signatures.from_positional(args, kwargs or {})
    if training is not None:
        others["training"] = training
    return gather(inputs, args, kwargs, mask), others


def gather(inputs, args=(), kwargs=None, mask=None):
    """Gathers and checks the tensors of a call.

    Raises:
        ValueError: if they are none that are wrapped, or masks do not fit.
    """
    tensors = {"inputs": inputs, **(kwargs or {})}
    if args:
        tensors["*args"] = args
    masks = {n: masks_of.get_masks(nest) for n, nest in tensors.items()}
    if is_symbolic(tensors):
        # An array next to symbolic tensors has its value at run time only.
        tensors = {n: trees.symbols(x) for n, x in tensors.items()}
    named = named_tensors(tensors)
    errors.check_dense(named)
    _, time = folding.common_sizes(named)
    if mask is not None:
        given = masks_of.given(inputs, mask)
        attached = trees.flatten(masks["inputs"])
        pairs = zip(trees.flatten(given), attached, strict=True)
        # Keras passes those that are attached.
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
    """Tensors by the names that a user knows: `value`, `inputs[0]`."""
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
    """Symbolic tensors of a nest of shapes."""
    return tree.map_shape_structure(
        lambda s: keras.KerasTensor(s, dtype=dtype),
        tree.map_structure(_as_sizes, shape),
    )


def _as_sizes(x):
    # Neither TensorFlow's shapes nor NumPy's integers are sizes to Keras. Those
    # of a program that is exported for tensors of any size are unknown.
    if isinstance(x, int):
        return x
    if hasattr(x, "__len__"):
        return tuple(x)
    return int(x) if isinstance(x, numbers.Integral) else None

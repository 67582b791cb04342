"""Which masks the wrapped layer sees, and which masks leave.

Keras lets a mask ride on its tensor, as the attribute `_keras_mask`. Masks are
kept here in nests like those of their tensors, `None` where there is no mask.
"""

import collections
import contextlib
import functools
import inspect
import re
import threading
import warnings
from typing import Any

import keras
from keras import ops
from keras import tree

from keras_td import folding

# They line a mask up with the last axes; a ConvLSTM not on each backend.
_BROADCASTING = (
    keras.layers.Softmax,
    keras.layers.ConvLSTM1D,
    keras.layers.ConvLSTM2D,
    keras.layers.ConvLSTM3D,
)
_MAKING = (keras.layers.Masking, keras.layers.Lambda)
_RECURRENT = (keras.layers.RNN, keras.layers.Bidirectional)
# They give masks only to what comes with one.
_PASSING_ON = (
    keras.Layer.compute_mask,
    keras.layers.RNN.compute_mask,
    keras.layers.Bidirectional.compute_mask,
)


def get_masks(tensors):
    """The masks that ride on a nest of tensors."""
    if folding.is_tensor(tensors):
        return _get_mask(tensors)
    return tree.map_structure(
        lambda x: _get_mask(x) if folding.is_tensor(x) else None, tensors
    )


def set_masks(tensors, masks):
    """Lets the masks ride on their tensors."""

    def set_one(x, mask):
        if mask is not None and folding.is_tensor(x):
            _set_mask(x, mask)

    tree.map_structure(set_one, tensors, masks)


def any_mask(masks):
    return any(mask is not None for mask in folding.flatten(masks))


def any_of(masks):
    """Whether there is any in a dict of nests of masks."""
    return any(map(any_mask, masks.values()))


def makes_masks(layer):
    """Whether a layer may give a mask to what comes without one."""
    return type(layer).compute_mask not in _PASSING_ON


def given(tensors, mask):
    """The masks of a nest of tensors, as a user passes them.

    Raises:
        ValueError: if `mask` does not have the structure of `tensors`.
    """
    if folding.is_tensor(tensors) and folding.is_tensor(mask):
        return mask
    paths = [path for path, _ in folding.flatten_with_path(tensors)]
    masks = dict(folding.flatten_with_path(mask))
    if set(paths) != set(masks):
        raise ValueError(
            "The `mask` passed to the `TimeDistributed` layer must have the "
            "structure of `inputs`: one mask, or `None`, for each input. "
            f"Expected: {_describe(tensors)}. Received: {_describe(mask)}."
        )
    return folding.pack(tensors, [masks[path] for path in paths])


def check(masks, tensors):
    """Checks that masks begin with the batch and time of their tensors.

    Raises:
        ValueError: if one does not.
    """
    folding.map_tensors(_check, masks, tensors)


def seen(masks, tensors, layer, valid):
    """The masks that the wrapped layer sees, of folded ones.

    A mask of whole steps tells nothing about the inside of a step, so only
    layers of a user's own get it, if a step is a vector: there it is like any
    mask. A row of a padded step is shown as valid throughout: no layer can
    make a mean, or cuDNN a sequence, of nothing.

    Args:
        masks: Nest of masks `(batch * time, ...)`.
        tensors: Nest of their tensors.
        layer: The wrapped layer.
        valid: Which rows are no padding, or `None`.
    """
    if not any_mask(masks):
        return masks
    readers = list(filter(_takes_masks, _all_layers(layer)))
    own = bool(readers) and all(map(_is_a_users_own, readers))
    one_of = layer.forward_layer if _is_bidirectional(layer) else layer

    def see(mask, x):
        if len(mask.shape) == 1 and keeps_state(layer) and len(x.shape) > 2:
            # The state of a padded step is that of the step before.
            mask = folding.repeat_along(mask, x)
        if len(mask.shape) == 1:
            return mask if own and len(x.shape) <= 2 else None
        if isinstance(one_of, _RECURRENT):
            mask = _reduce(mask, 2)
        if valid is not None:
            mask = ops.logical_or(mask, _beside(ops.logical_not(valid), mask))
        if isinstance(one_of, _BROADCASTING):
            mask = folding.expand(mask, len(x.shape))
        return mask

    return folding.map_tensors(see, masks, tensors)


def keeps_state(layer):
    """Whether a layer, or one inside, passes a state on to its next call."""
    return any(
        getattr(inner, "stateful", False) for inner in _all_layers(layer)
    )


def reads_masks(layer):
    """Whether a layer, or one inside, does more with a mask than pass it on."""
    return any(map(_takes_masks, _all_layers(layer)))


def has_inner_axes(masks):
    """Whether any of folded masks says something about the inside of a step."""
    found = (m for nest in masks.values() for m in folding.flatten(nest))
    return any(m is not None and len(m.shape) > 1 for m in found)


def may_make_masks(layer):
    """Whether a layer inside of another may give a mask to what has none."""

    def makes(inner):
        if isinstance(inner, keras.layers.Embedding):
            return inner.mask_zero
        own = not is_from(type(inner).compute_mask, "keras", "keras_td")
        return isinstance(inner, _MAKING) or (makes_masks(inner) and own)

    return any(map(makes, layer._flatten_layers(include_self=False)))


class Original:
    """A mask `(batch, time, ...)` that a layer passed on as it came."""

    def __init__(self, mask):
        self.mask = mask


def outgoing(outputs, seen, originals):
    """The masks on the folded outputs of a layer.

    Returns:
        Nest of masks `(batch * time, ...)`. In place of one that the layer
        passed on untouched, it has the `Original` one.
    """
    masks = restore(get_masks(outputs), seen, originals)

    def of_rows(mask, y):
        rows = mask.shape[0], y.shape[0]
        if folding.differ(*rows) and not folding.is_size(rows[0], 1):
            return None
        # A mask of one row, as of causal attention scores, serves all samples.
        return folding.repeat_row(mask, y)

    return folding.map_tensors(of_rows, masks, outputs)


def restore(masks, seen, originals):
    """Puts the original masks in place of those passed on untouched."""
    if not any_mask(masks):
        return masks
    pairs = _pairs(seen, originals)
    original = {id(after): Original(before) for after, before in pairs}
    return folding.map_tensors(
        lambda m: original.get(id(_unconverted(m)), m), masks
    )


def originals_of(masks, cut, originals):
    """Puts masks in place of those that were cut out of them."""
    original = {id(after): before for after, before in _pairs(cut, originals)}

    def restore_one(mask):
        if not isinstance(mask, Original):
            return mask
        return Original(original.get(id(mask.mask), mask.mask))

    return tree.map_structure(restore_one, masks)


def as_tensors(masks):
    return tree.map_structure(
        lambda m: m.mask if isinstance(m, Original) else m, masks
    )


def _pairs(a, b):
    for name in a:
        yield from zip(
            folding.flatten(a[name]), folding.flatten(b[name]), strict=True
        )


def _unconverted(mask):
    # Unlike others, a symbolic tensor becomes a new one in the hands of
    # `ops.convert_to_tensor`, which Keras's attention layers call.
    history = getattr(mask, "_keras_history", None)
    operation = getattr(history, "operation", None)
    if operation and operation.name.startswith("convert_to_tensor"):
        return operation.input
    return mask


def fit(mask, shape):
    """A mask that fits an output: one of its leading axes, not of the last.

    Attention and pooling of public code pass on a mask of words to a vector for
    each sentence. Such a mask leaves as one of sentences.
    """
    rank, inner = len(mask.shape), zip(mask.shape[2:], shape[2:], strict=False)
    if rank == 2 or (
        rank < len(shape) and all(folding.agree(*s) for s in inner)
    ):
        return mask
    return step_mask(mask)


def step_mask(masks):
    """Which steps hold anything valid, `(batch, time)`.

    Where several inputs have masks, a step is valid if it is in any of them.
    Keras writes the masks of symbolic tensors into the graph of a model. This
    one depends on the incoming masks alone, so that no layer of the model has
    to be deeper for it: the order of layers and weights is that of their depth.
    """
    found = [m for m in folding.flatten(masks) if m is not None]
    if not found:
        return None
    if len(found) == 1 and len(found[0].shape) == 2:
        return found[0]
    if any(map(keras.backend.is_keras_tensor, found)):
        return StepMask()(*found)
    return _step_mask(*found)


def _step_mask(*masks):
    return functools.reduce(ops.logical_or, [_reduce(m, 2) for m in masks])


@keras.saving.register_keras_serializable(package="keras_td")
class StepMask(keras.Operation):
    """Which steps hold anything valid, as a step of a functional model."""

    def call(self, *masks):
        return _step_mask(*masks)

    def compute_output_spec(self, *masks):
        sizes = folding.common_sizes(dict(enumerate(masks)))
        return keras.KerasTensor(sizes, dtype="bool")


class _Silence:
    """Silences the warning of a layer that it destroys the mask it is given.

    The wrapper passes the mask on, so what Keras warns of does not happen.
    Python's own context for warnings is one for all threads, and puts back what
    another one has changed. Here the last thread to leave takes one filter out.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.threads: collections.Counter = collections.Counter()
        self.changed = collections.defaultdict(list)

    @contextlib.contextmanager
    def about(self, layer):
        name = re.escape(f"Layer '{layer.name}' ")
        with self.lock:
            warnings.filterwarnings("ignore", f"{name}.* input with a mask")
            [added] = warnings.filters[:1]
            self.changed[name].append(warnings.filters)
            self.threads[name] += 1
        try:
            yield
        finally:
            with self.lock:
                self.threads[name] -= 1
                if not self.threads[name]:
                    for filters in (*self.changed.pop(name), warnings.filters):
                        if added in filters:
                            filters.remove(added)


_silence = _Silence()


def passed_on(masks, layer):
    """Lets no layer warn of a mask that it only seems to destroy."""
    if layer.supports_masking or not any_of(masks):
        return contextlib.nullcontext()
    return _silence.about(layer)


def _all_layers(layer):
    return layer._flatten_layers()


def _is_bidirectional(layer):
    return isinstance(layer, keras.layers.Bidirectional)


def _is_a_users_own(layer):
    if isinstance(layer, keras.layers.Lambda):
        return True
    return not is_from(type(layer).call, "keras")


def _takes_masks(layer):
    if isinstance(layer, keras.layers.Lambda):
        return "mask" in inspect.signature(layer.function).parameters
    cls: Any = type(layer)
    return _class_takes_masks(cls)


@functools.lru_cache
def _class_takes_masks(cls):
    # These hand a mask on, or find it out in another way.
    models = issubclass(cls, keras.Model) and is_from(cls.call, "keras")
    if models or issubclass(cls, keras.layers.BatchNormalization):
        return False
    if any(base.__name__ == "TimeDistributed" for base in cls.__mro__):
        return False
    names = inspect.signature(cls.call).parameters
    return any(n == "mask" or n.endswith("_mask") for n in names)


def is_from(fn, *packages):
    """Whether a function is of one of these packages, by their names."""
    return fn.__module__.split(".")[0] in packages


def _beside(rows, mask):
    """Gives a mask of rows the rank of another mask."""
    return folding.expand(rows, len(mask.shape))


def _get_mask(x):
    if hasattr(x, "_keras_mask"):
        return x._keras_mask
    return None if hasattr(x, "__dict__") else _read_mask(x)


def _set_mask(x, mask):
    try:
        x._keras_mask = mask
    except AttributeError:
        _write_mask([x, mask])


class _MaskWriter(keras.Layer):
    """Lets the second of its inputs, a mask, ride on the first.

    Arrays that take no attributes (JAX's tracers, NumPy's arrays) have their
    masks in a table of Keras's own, which only the call of a layer reaches.
    """

    def __init__(self):
        super().__init__(autocast=False)
        self.supports_masking = True

    def call(self, inputs):
        return inputs[0]

    def compute_mask(self, inputs, previous_mask):
        return inputs[1]


class _MaskReader(_MaskWriter):
    """Returns the mask of its input."""

    def call(self, inputs, mask=None):
        return mask

    def compute_mask(self, inputs, previous_mask):
        return None


_read_mask = _MaskReader()
_write_mask = _MaskWriter()


def _reduce(mask, rank):
    # Of several axes at a time, older Keras loses count on PyTorch.
    for _ in mask.shape[rank:]:
        mask = ops.any(mask, axis=-1)
    return mask


def _check(mask, x):
    found, expected = tuple(mask.shape), tuple(x.shape)
    pairs = zip(found, expected[:2], strict=False)
    if len(found) < 2 or any(
        folding.differ(a, b) and not folding.is_size(a, 1) for a, b in pairs
    ):
        raise ValueError(
            "The `mask` passed to the `TimeDistributed` layer has a shape "
            f"{found} that is incompatible with the input shape {expected}. "
            "A mask must begin with the batch and time of its input: "
            f"({expected[0]}, {expected[1]}, ...)."
        )


def _describe(nest):
    return folding.map_tensors(lambda x: f"shape {tuple(x.shape)}", nest)

"""The `TimeDistributed` layer."""

import contextlib
import copy
import functools
import inspect
import numbers
from collections.abc import Callable

import keras
from keras import ops
from keras import tree

from keras_td import building
from keras_td import folding
from keras_td import masking
from keras_td import mistakes
from keras_td import padding
from keras_td import stepping
from keras_td.scopes import only_shapes_count


@keras.saving.register_keras_serializable(package="keras_td")
class TimeDistributed(keras.layers.Wrapper):
    """Applies a layer to every time step of its inputs.

    The time axis is folded into the batch axis, `(batch, time, ...)` to
    `(batch * time, ...)`, the layer is called once (or on a few steps at a
    time, on request), and its outputs are unfolded. So the same weights serve
    every step, and neither the traced graph nor its compile time grows with the
    number of steps.

    Example:

    Apply one convolution to each of the 10 frames of 32 videos.

    >>> inputs = keras.Input(shape=(10, 128, 128, 3), batch_size=32)
    >>> outputs = keras_td.TimeDistributed(keras.layers.Conv2D(64, 3))(inputs)
    >>> outputs.shape
    (32, 10, 126, 126, 64)

    Train on long clips with the memory that 8 frames take.

    >>> layer = keras_td.TimeDistributed(
    ...     keras.layers.Conv2D(64, 3), steps_per_call=8, remat=True
    ... )

    Augment clips as a whole, and not each frame in another way.

    >>> layer = keras_td.TimeDistributed(
    ...     keras.layers.RandomFlip(), share_randomness=True
    ... )

    Args:
        layer: The `keras.Layer` to apply: a layer, a `Sequential`, a functional
            or subclassed `Model`, or another `TimeDistributed`.
        steps_per_call: How many time steps one call of the layer sees. `None`,
            the default, is all of them. With `k`, the layer is called
            `ceil(time / k)` times in order, and its state passes from each call
            to the next: less memory is in use at a time. With 1, layers whose
            samples meet, such as `BatchNormalization` in training, give the
            numbers of `keras.layers.TimeDistributed`. The losses that the layer
            adds must be scalars, and are averaged over the steps of the calls
            that add them.
        remat: Whether the backward pass computes each call again instead of
            keeping its activations, as `keras.remat` does. With
            `steps_per_call`, training takes the memory of a single call.
        share_randomness: Whether all time steps draw the same random numbers:
            one augmentation per clip, one dropout mask per sequence. The
            samples of a batch still differ. The layer is then called on one
            step at a time, whatever `steps_per_call` is.
        **kwargs: The arguments of every layer. `dtype` defaults to the dtype
            policy of `layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, time, ...)`, or a nest (list, tuple or
            dict) of such tensors. A tensor whose time is 1 is used at every
            step, and one whose batch is 1 for every sample.
        *args: Further tensors, or nests of tensors, of shape
            `(batch, time, ...)`. They go to the wrapped layer at the same
            position.
        training: Whether the layer behaves as in training or as in inference.
            Reaches every layer inside.
        mask: Boolean mask of shape `(batch, time)` or `(batch, time, ...)`, in
            the structure of `inputs`. Defaults to the masks that ride on
            `inputs`. The wrapped layer sees the slice's mask, where it says
            something about the inside of a step; a step without anything valid
            is hidden from it, and comes out as zeros where the layer reads
            masks. `BatchNormalization`, wherever it is inside, leaves padded
            steps out of its statistics.
        **kwargs: Further arguments of the wrapped layer by name. Tensors are
            of shape `(batch, time, ...)`; all else passes unchanged.

    Output shape:
        `(batch, time, ...)` for each tensor that the wrapped layer returns. An
        output has the mask that the wrapped layer gives it, if that is one of
        its leading axes, or else the incoming mask reduced to `(batch, time)`:
        a step is valid where anything in it is.

    Raises:
        ValueError: if `layer` is not a layer that takes inputs; if
            `steps_per_call` is neither `None` nor a positive integer; if
            `remat` or `share_randomness` is not a bool; if `remat` is True and
            Keras older than 3.9; if a tensor has fewer than two axes, or is
            sparse or ragged; if tensors differ in batch or time; if `mask` does
            not match `inputs`; if the wrapped layer is stateful and gets
            another batch than before; if it returns a tensor without a batch
            axis; if it adds a loss that is no scalar in several calls.
    """

    def __init__(
        self,
        layer,
        steps_per_call=None,
        remat=False,
        share_randomness=False,
        **kwargs,
    ):
        mistakes.check_layer(layer)
        if kwargs.get("dtype") is None:
            kwargs["dtype"] = _unquantized(layer.dtype_policy)
        mistakes.check_options(
            steps_per_call, remat=remat, share_randomness=share_randomness
        )
        supports_masking = kwargs.pop("supports_masking", True)
        # The wrapped layer casts its inputs, in its own way.
        super().__init__(layer, **{"autocast": False, **kwargs})
        self.supports_masking = supports_masking
        self.steps_per_call = steps_per_call and int(steps_per_call)
        self.remat = remat
        self.share_randomness = share_randomness
        self._layer_takes_mask = "mask" in _parameters(layer.call)
        self._first_call = None
        self._inner_layers_are_built = False
        if not self.trainable:
            layer.trainable = False

    def __call__(self, inputs, *args, **kwargs):
        args, kwargs = _keep_apart(self.call, args, kwargs)
        if self.built:
            return super().__call__(inputs, *args, **kwargs)
        of_layer = type(self).call is TimeDistributed.call
        self._first_call = (
            functools.partial(self._symbols_of_call, inputs, *args, **kwargs)
            if of_layer
            else functools.partial(self._symbols_of_call, inputs)
        )
        try:
            return super().__call__(inputs, *args, **kwargs)
        finally:
            self._first_call = None

    def build(self, input_shape):
        if self.layer.built:
            return
        if self._first_call:
            arguments, options = self._first_call()
        else:
            symbols = _symbols_of_shapes(input_shape, self.compute_dtype)
            arguments, options = self._symbols_of_call(symbols)
        args, kwargs = _args_and_kwargs(_map(folding.fold, arguments))
        building.build(self.layer, args, kwargs, options)

    def _symbols_of_call(
        self, inputs, *args, training=None, mask=None, **kwargs
    ):
        """Symbols of what the layer gets in its first call, and the options."""
        args, kwargs = _put_together(args, kwargs)
        kwargs, options = _tensors_and_options(kwargs)
        arguments, _, time = _gather(inputs, args, kwargs)
        symbols = self._of_one_call(_map(_symbol, arguments), {}, time)[0]
        return _align(symbols, {})[0], options

    def call(self, inputs, *args, training=None, mask=None, **kwargs):
        if type(self).call is not TimeDistributed.call:
            args, training, mask = _as_in_keras(args, training, mask)
        args, kwargs = _put_together(args, kwargs)
        kwargs, options = _tensors_and_options(kwargs)
        if training is not None:
            options["training"] = training
        arguments, masks, time = _gather(inputs, args, kwargs, mask)
        outer = padding.of_outer_call(_first(arguments))
        outputs, output_masks = self._call_steps(
            functools.partial(self._call_layer, options),
            arguments,
            masks if outer is None else {**masks, _OUTER: outer},
            time,
            training,
        )
        any_masks = masking.any_of(masks) or masking.any_mask(output_masks)
        # Where a subclass has its own `compute_mask`, Keras asks that.
        inherited = type(self).compute_mask is TimeDistributed.compute_mask
        if any_masks and self.supports_masking and inherited:
            output_masks = self._leaving(
                outputs, output_masks, arguments, masks
            )
            masking.set_masks(outputs, output_masks)
        return outputs

    def _call_steps(self, call, arguments, masks, time, training):
        """Calls the layer as often as the options ask for."""
        steps = self._steps_of_a_call()
        if not (steps or self.remat):
            return call(arguments, masks)
        if only_shapes_count() or _is_symbolic(arguments):
            return self._of_all_steps(call, arguments, masks, time)
        if not folding.has_size(time):
            # A program for any number of steps cannot tell that of the calls.
            if not training:
                return call(arguments, masks)
            if steps:
                raise ValueError(
                    "`steps_per_call` and `share_randomness` cannot train in a "
                    "program that is exported for any number of time steps. "
                    f"Received: a time of {time}. Expected: a number."
                )
        if not self._inner_layers_are_built:
            self._inner_layers_are_built = True
            self._build_inner_layers(call, arguments, masks, time)

        def call_on_list(nests):
            of_arguments = dict(zip(arguments, nests, strict=False))
            of_masks = dict(zip(masks, nests[len(arguments) :], strict=True))
            outputs, output_masks = call(of_arguments, of_masks)
            return outputs, masking.as_tensors(output_masks)

        (outputs, output_masks), losses = stepping.call_in_order(
            call_on_list,
            self.layer,
            [*arguments.values(), *masks.values()],
            time,
            steps,
            training,
            self.remat,
            self.share_randomness,
        )
        for loss in losses:
            self.add_loss(loss)
        return outputs, output_masks

    def _build_inner_layers(self, call, arguments, masks, time):
        """Builds the layer, and those inside, by a call that changes nothing.

        It is a real one where it can be: what a layer keeps of its `build` is
        of no use outside of a trace. (A stateful one builds in no scope.)
        """
        if all(inner.built for inner in self.layer._flatten_layers()):
            return
        see: Callable = _symbol
        scope: contextlib.AbstractContextManager = contextlib.nullcontext()
        at_hand = folding.has_values(_first(arguments))
        if at_hand and not masking.keeps_state(self.layer):
            see = _copy_of_first_step
            scope = keras.StatelessScope()
        nests = self._of_one_call(arguments, masks, time)
        # What cannot be called so has to do without.
        with contextlib.suppress(Exception), scope:
            call(*(_map(see, n) for n in nests))

    def _of_all_steps(self, call, arguments, masks, time):
        """What calls on all steps return, told from the first one's shapes."""
        of_first = self._of_one_call(arguments, masks, time)
        outputs, output_masks = call(*of_first)
        if not self._steps_of_a_call():
            return outputs, output_masks
        of_all = functools.partial(folding.with_time, time=time)
        output_masks = masking.originals_of(output_masks, of_first[1], masks)
        return _map_both(of_all, (outputs, output_masks))

    def _steps_of_a_call(self):
        return 1 if self.share_randomness else self.steps_per_call

    def _of_one_call(self, arguments, masks, time):
        """The arguments and masks that the first call of the layer sees."""
        steps = self._steps_of_a_call()
        if not steps:
            return arguments, masks
        if isinstance(time, int):
            steps = min(steps, time)
        first = functools.partial(folding.first_steps, steps=steps)
        return _map(first, arguments), _map(first, masks)

    def _call_layer(self, options, arguments, masks):
        """Calls the layer once, on a nest of tensors `(batch, time, ...)`.

        Returns:
            Tuple of the outputs and of the masks that the layer gives them.
        """
        arguments, masks, like = _align(arguments, masks)
        outer = masks.pop(_OUTER, None)
        steps = self._valid_steps(arguments, masks)
        arguments, folded = (
            _map(folding.fold, arguments),
            _map(folding.fold, masks),
        )
        # Padding is hidden from what would read masks of it.
        hides = (
            steps is not None
            and masking.has_inner_axes(folded)
            and masking.reads_masks(self.layer)
            and not masking.keeps_state(self.layer)
        )
        seen = self._seen(
            folded, arguments, folding.fold(steps) if hides else None
        )
        options = {**options, **self._pass_masks(arguments, seen)}
        args, kwargs = _args_and_kwargs(arguments)
        with (
            padding.left_out(self.layer, _fold_both(steps, outer)),
            masking.passed_on(seen, self.layer),
            mistakes.of_fixed_batch(self.layer, arguments),
        ):
            outputs = self.layer(*args, **kwargs, **options)
        output_masks = masking.outgoing(outputs, seen, masks)
        unfold = functools.partial(folding.unfold, like=like)
        outputs, output_masks = _map_both(unfold, (outputs, output_masks))
        if hides:
            outputs, output_masks = _map_both(
                functools.partial(folding.zeros_but_at, steps),
                (outputs, output_masks),
            )
        return outputs, output_masks

    def _valid_steps(self, arguments, masks):
        """The steps that are no padding, `(batch, time)`, if it matters."""
        if not masking.any_of(masks) or _is_symbolic(arguments):
            return None
        if not (
            masking.reads_masks(self.layer) or padding.mixes_samples(self.layer)
        ):
            return None
        # A tensor without a mask is valid throughout.
        riding = {**masks, "inputs": masks.get("mask", masks["inputs"])}
        for name, nest in arguments.items():
            pairs = zip(
                folding.flatten(nest),
                folding.flatten(riding[name]),
                strict=True,
            )
            if any(folding.is_tensor(x) and m is None for x, m in pairs):
                return None
        return _step_mask(arguments, {"inputs": [riding[n] for n in arguments]})

    def _seen(self, masks, arguments, valid):
        """The masks that the layer sees, of folded ones."""
        return {
            name: masking.seen(
                nest,
                arguments.get(name, arguments["inputs"]),
                self.layer,
                valid,
            )
            for name, nest in masks.items()
        }

    def _pass_masks(self, arguments, seen):
        """Lets masks ride on arguments; returns those to pass by name."""
        for name, nest in arguments.items():
            masking.set_masks(nest, seen[name])
        mask = seen.get("mask", seen["inputs"])
        if not masking.any_mask(mask):
            return {}
        if self._layer_takes_mask:
            return {"mask": mask}
        masking.set_masks(arguments["inputs"], mask)
        return {}

    @property
    def metrics(self):
        # As in a model that holds it as a layer, those that a wrapped model was
        # compiled with are not for the model at hand.
        if isinstance(self.layer, keras.Model):
            return list(self._metrics)
        return super().metrics

    def get_config(self):
        config = {
            **super().get_config(),
            "steps_per_call": self.steps_per_call,
            "remat": self.remat,
            "share_randomness": self.share_randomness,
        }
        if not self.supports_masking:
            config["supports_masking"] = False
        return config

    def compute_mask(self, inputs, mask=None):
        if not masking.any_mask(mask) and not masking.makes_masks(self.layer):
            return None
        arguments, masks, _ = _gather(inputs, (), {}, mask)
        aligned_arguments, aligned, like = _align(arguments, masks)
        folded = _map(folding.fold, aligned_arguments)
        output_masks = None
        if self.layer.supports_masking:
            seen = self._seen(_map(folding.fold, aligned), folded, None)
            output_masks = self.layer.compute_mask(
                folded["inputs"], seen.get("mask", seen["inputs"])
            )
            output_masks = masking.restore(output_masks, seen, aligned)
        unfold = functools.partial(folding.unfold, like=like)
        output_masks = folding.map_tensors(unfold, output_masks)
        outputs = self._outputs_like(inputs, output_masks)
        return self._leaving(outputs, output_masks, arguments, masks)

    def _outputs_like(self, inputs, output_masks):
        """Symbols of the outputs, or of no shape where Keras cannot tell it."""
        try:
            shapes = self.compute_output_shape(folding.shapes(inputs))
        except Exception:
            return folding.map_tensors(lambda _: None, output_masks)
        return _symbols_of_shapes(shapes, self.compute_dtype)

    def _leaving(self, outputs, output_masks, arguments, masks):
        """The masks of the outputs: the layer's where they fit, or of steps.

        Keras writes the masks of symbolic tensors into the graph of a model,
        and orders layers and weights by their depth in it. So only masks made
        of incoming ones are there: those that the layer makes would have others
        be deeper. They ride on the outputs of each run, as those that are made
        inside of a model do.
        """
        symbolic = _is_symbolic(arguments)
        flat = folding.flatten(outputs)
        if symbolic and masking.may_make_masks(self.layer):
            return folding.pack(outputs, [None] * len(flat))
        incoming = [m for nest in masks.values() for m in folding.flatten(nest)]
        found = folding.flatten(output_masks) + [None] * len(flat)
        found = found[: len(flat)]
        missing = any(mask is None for mask in found)
        of_steps = _step_mask(arguments, masks) if missing else None

        def leave(y, mask):
            if mask is None:
                return of_steps
            made = not isinstance(mask, masking.Original)
            if not made:
                mask = mask.mask
                made = not any(mask is m for m in incoming)
            if symbolic and made:
                return None
            return mask if y is None else masking.fit(mask, y.shape)

        return folding.pack(outputs, list(map(leave, flat, found)))

    def compute_output_shape(self, input_shape, *args, **kwargs):
        dtype = self.compute_dtype
        inputs = _symbols_of_shapes(input_shape, dtype)
        args = tuple(_symbols_of_shapes(shape, dtype) for shape in args)
        kwargs = {n: _symbols_of_shapes(kwargs[n], dtype) for n in kwargs}
        arguments, _, like = _align(*_gather(inputs, args, kwargs)[:2])
        args, kwargs = _args_and_kwargs(_map(folding.fold, arguments))
        try:
            outputs = _symbols_of_shapes(
                self.layer.compute_output_shape(
                    *map(folding.shapes, args),
                    **{name: folding.shapes(kwargs[name]) for name in kwargs},
                ),
                dtype,
            )
        except NotImplementedError:
            outputs = self.layer(
                *args,
                **{
                    name.removesuffix("_shape"): kwargs[name] for name in kwargs
                },
            )
        unfold = functools.partial(folding.unfold, like=like)
        return folding.shapes(folding.map_tensors(unfold, outputs))

    def compute_output_spec(self, *args, **kwargs):
        return self.call(*args, **kwargs)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        # Deserializing takes entries out of the config it is given.
        td = super().from_config(copy.deepcopy(config), custom_objects)
        if type(td.layer).build is keras.Layer.build:
            # Keras takes it for built, though the layers inside are not.
            td.layer.built = False
        return td


# --- The tensors of a call ----------------------------------------------------


def _keep_apart(call, args, kwargs):
    """Keeps tensors by name apart from other values by name.

    Keras refuses a catch-all that holds both, so there the tensors travel by
    position, and their names as a value.
    """
    # To look at a signature takes long.
    if kwargs.keys() <= {"training", "mask"}:
        return args, kwargs
    parameters = _parameters(call)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return args, kwargs
    rest = {n: kwargs[n] for n in kwargs if n not in parameters}
    names = [n for n in rest if _is_tensor_argument(n, rest[n])]
    if len(names) in (0, len(rest)):
        return args, kwargs
    tensors = [kwargs.pop(name) for name in names]
    return (*args, *tensors), {**kwargs, _NAMES: names}


def _put_together(args, kwargs):
    """Undoes `_keep_apart`."""
    names = kwargs.pop(_NAMES, ())
    split = len(args) - len(names)
    return args[:split], {
        **kwargs,
        **dict(zip(names, args[split:], strict=True)),
    }


def _as_in_keras(args, training, mask):
    """Takes `training` and `mask` by position, as Keras's own layer has them.

    A subclass may pass them on so. All else by position is a tensor.
    """
    if len(args) not in (1, 2) or folding.is_tensor(args[0]):
        return args, training, mask
    return (), args[0], args[1] if len(args) == 2 else mask


def _tensors_and_options(kwargs):
    """Parts the arguments of every step from those that stay as they are."""
    tensors = {n for n in kwargs if _is_tensor_argument(n, kwargs[n])}
    return (
        {n: kwargs[n] for n in kwargs if n in tensors},
        {n: kwargs[n] for n in kwargs if n not in tensors},
    )


_NAMES = "_names_of_last_args"
# The steps that are valid for a call of another wrapper around this one.
_OUTER = "*outer"


def _gather(inputs, args, kwargs, mask=None):
    """Gathers the arguments of a call.

    Returns:
        Tuple of a dict of the arguments, a dict of the masks that ride on them,
        with that which was passed as `mask`, and the number of time steps.
    """
    arguments = {"inputs": inputs, **kwargs}
    if args:
        arguments["*args"] = args
    masks = {name: masking.get_masks(nest) for name, nest in arguments.items()}
    if _is_symbolic(arguments):
        # An array next to symbolic tensors has its value at run time only.
        arguments = _map(_symbol, arguments)
    named = _named_tensors(arguments)
    mistakes.check_dense(named)
    _, time = folding.common_sizes(named)
    if mask is not None:
        given = masking.given(inputs, mask)
        # Keras passes those that ride.
        pairs = zip(
            folding.flatten(given),
            folding.flatten(masks["inputs"]),
            strict=True,
        )
        if any(a is not b for a, b in pairs):
            masks["mask"] = given
    for name, nest in masks.items():
        masking.check(nest, arguments.get(name, inputs))
    return arguments, masks, time


def _align(arguments, masks):
    """Gives all tensors the same batch and time.

    Returns:
        Tuple of the arguments, the masks, and one of the tensors.
    """
    batch, time = folding.common_sizes(_named_tensors(arguments))
    align = functools.partial(folding.align, batch=batch, time=time)
    arguments, masks = _map(align, arguments), _map(align, masks)
    return arguments, masks, _first(arguments)


def _first(arguments):
    return next(x for n in arguments.values() for x in folding.tensors(n))


def _fold_both(steps, outer):
    """Which samples are no padding, in this call and in one around it."""
    if steps is None or outer is None:
        valid = outer if steps is None else steps
    else:
        valid = ops.logical_and(steps, outer)
    return None if valid is None else folding.fold(valid)


def _step_mask(arguments, masks):
    """Which steps of the inputs are no padding, `(batch, time)`, or `None`."""
    mask = masking.step_mask(masks.get("mask", masks["inputs"]))
    if mask is None:
        return None
    sizes = folding.common_sizes(_named_tensors(arguments))
    aligned = folding.align(mask, *sizes)
    # A symbolic one would have no place in the graph of its model.
    return None if aligned is not mask and _is_symbolic(arguments) else aligned


def _map(fn, nests):
    return {n: folding.map_tensors(fn, nest) for n, nest in nests.items()}


def _map_both(fn, nests):
    return tuple(folding.map_tensors(fn, nest) for nest in nests)


def _args_and_kwargs(arguments):
    kwargs = dict(arguments)
    return (kwargs.pop("inputs"), *kwargs.pop("*args", ())), kwargs


def _named_tensors(arguments):
    """Tensors by the names that a user knows: `value`, `inputs[0]`."""
    named = {}
    for name, nest in arguments.items():
        if folding.is_tensor(nest):
            named[name] = nest
            continue
        for path, x in folding.flatten_with_path(nest):
            if folding.is_tensor(x):
                named[name + "".join(f"[{key!r}]" for key in path)] = x
    return named


def _symbol(x):
    if keras.backend.is_keras_tensor(x):
        return x
    # NumPy has strings of several dtypes.
    strings = getattr(x.dtype, "kind", "") in ("U", "S", "O")
    dtype = "string" if strings else keras.backend.standardize_dtype(x.dtype)
    return keras.KerasTensor(x.shape, dtype)


def _copy_of_first_step(x):
    # Layers that change images do so in place, on PyTorch.
    return ops.copy(folding.first_steps(x, 1))


def _symbols_of_shapes(shape, dtype):
    return tree.map_shape_structure(
        lambda s: keras.KerasTensor(s, dtype=dtype),
        tree.map_structure(_as_sizes, shape),
    )


def _is_symbolic(arguments):
    return any(
        keras.backend.is_keras_tensor(x)
        for nest in arguments.values()
        for x in folding.flatten(nest)
    )


def _is_tensor_argument(name, value):
    are_tensors = [
        folding.is_tensor(x) for x in folding.flatten(value) if x is not None
    ]
    if any(are_tensors) and not all(are_tensors):
        raise ValueError(
            f"The argument `{name}` of the `TimeDistributed` layer mixes "
            "tensors and other values. Pass them as separate arguments. "
            f"Received: {value}"
        )
    return any(are_tensors)


def _parameters(fn):
    return inspect.signature(fn).parameters


def _as_sizes(x):
    # Neither TensorFlow's shapes nor NumPy's integers are sizes to Keras. Those
    # of a program that is exported for tensors of any size are unknown.
    if isinstance(x, int):
        return x
    if hasattr(x, "__len__"):
        return tuple(x)
    return int(x) if isinstance(x, numbers.Integral) else None


def _unquantized(policy):
    # "int8_from_mixed_bfloat16" -> "mixed_bfloat16". The wrapper holds no
    # weights to quantize, and Keras would ask it for a quantized call.
    if policy.quantization_mode is None:
        return policy
    return policy.name.split("_from_")[1]

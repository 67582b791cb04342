"""The `TimeDistributed` layer."""

import contextlib
import copy
import functools
import inspect
import numbers

import keras
from keras import tree

from keras_td import folding
from keras_td import masking
from keras_td import stepping


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
            adds are averaged over the steps.
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
            step.
        *args: Further tensors, or nests of tensors, of shape
            `(batch, time, ...)`. They go to the wrapped layer at the same
            position.
        training: Whether the layer behaves as in training or as in inference.
            Reaches every layer inside.
        mask: Boolean mask of shape `(batch, time)` or `(batch, time, ...)`, in
            the structure of `inputs`. Defaults to the masks that ride on
            `inputs`. The wrapped layer sees the slice's mask.
        **kwargs: Further arguments of the wrapped layer by name. Tensors are
            of shape `(batch, time, ...)`; all else passes unchanged.

    Output shape:
        `(batch, time, ...)` for each tensor that the wrapped layer returns. An
        output has the mask that the wrapped layer gives it, or else the
        incoming mask reduced to `(batch, time)`: a step is valid where
        anything in it is.

    Raises:
        ValueError: if `layer` is not a layer; if `steps_per_call` is neither
            `None` nor a positive integer; if `remat` or `share_randomness` is
            not a bool; if `remat` is True and Keras older than 3.9; if a tensor
            has fewer than two axes; if tensors differ in batch or time; if
            `mask` does not match `inputs`; if the wrapped layer returns a
            tensor without a batch axis.
    """

    def __init__(
        self,
        layer,
        steps_per_call=None,
        remat=False,
        share_randomness=False,
        **kwargs,
    ):
        if not isinstance(layer, keras.Layer):
            raise ValueError(
                "Please initialize `TimeDistributed` layer with a "
                f"`keras.layers.Layer` instance. Received: {layer}"
            )
        if kwargs.get("dtype") is None:
            kwargs["dtype"] = _unquantized(layer.dtype_policy)
        _check_options(steps_per_call, remat, share_randomness)
        # The wrapped layer casts its inputs, in its own way.
        super().__init__(layer, **{"autocast": False, **kwargs})
        self.supports_masking = True
        self.steps_per_call = steps_per_call and int(steps_per_call)
        self.remat = remat
        self.share_randomness = share_randomness
        self._layer_takes_mask = "mask" in _parameters(layer.call)
        self._in_call = False

    def __call__(self, inputs, *args, **kwargs):
        # Keras refuses a catch-all that holds both tensors and other values, so
        # the others travel as `_static_kwargs`.
        static = dict(kwargs.pop("_static_kwargs", {}))
        for name in kwargs.keys() - {"training", "mask"}:
            if not _is_tensor_argument(name, kwargs[name]):
                static[name] = kwargs.pop(name)
        if static:
            kwargs["_static_kwargs"] = static
        if self.built:
            return super().__call__(inputs, *args, **kwargs)
        self._in_call = True
        try:
            return super().__call__(inputs, *args, **kwargs)
        finally:
            self._in_call = False

    def build(self, input_shape):
        # In a call, the wrapped layer's own call builds it, from everything
        # that it is given.
        if self._in_call:
            return
        gathered = _gather(self._symbolic(input_shape), (), {})
        arguments, _, _ = _fold(*self._of_one_call(*gathered))
        if type(self.layer).build is not keras.Layer.build:
            if _takes_one(self.layer.build) and not self.layer.built:
                shapes = [_shapes(arguments["inputs"])]
                self.layer.build(*shapes[: len(_parameters(self.layer.build))])
        elif _takes_one(self.layer.call):
            # As in Keras, a layer that cannot be traced waits for its call.
            with contextlib.suppress(Exception):
                self.layer(arguments["inputs"])

    def call(
        self,
        inputs,
        *args,
        training=None,
        mask=None,
        _static_kwargs=None,
        **kwargs,
    ):
        options = dict(_static_kwargs or {})
        if training is not None:
            options["training"] = training
        arguments, masks, time = _gather(inputs, args, kwargs, mask)
        call = functools.partial(self._call_layer, options)
        outputs, output_masks = self._call_steps(
            call, arguments, masks, time, training
        )
        # Where a subclass has its own `compute_mask`, Keras asks that.
        inherited = type(self).compute_mask is TimeDistributed.compute_mask
        if self.supports_masking and inherited:
            step_mask = _step_mask(masks, time)
            masking.set_masks(outputs, _fill(output_masks, step_mask))
        return outputs

    def _call_steps(self, call, arguments, masks, time, training):
        """Calls the layer as often as the options ask for."""
        steps = self._steps_of_a_call()
        if not (steps or self.remat):
            return call(arguments, masks, time)
        if _shapes_will_do(arguments):
            outputs = call(*self._of_one_call(arguments, masks, time))
            if steps:
                restore = functools.partial(folding.with_time, time=time)
                outputs = _map_both(restore, outputs)
            return outputs
        if not self.layer.built:
            # What cannot be traced has to do without.
            with contextlib.suppress(Exception):
                symbols = _symbols(arguments), _symbols(masks)
                call(*self._of_one_call(*symbols, time))

        def call_on_list(nests, time):
            of_arguments = dict(zip(arguments, nests, strict=False))
            of_masks = dict(zip(masks, nests[len(arguments) :], strict=True))
            return call(of_arguments, of_masks, time)

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

    def _steps_of_a_call(self):
        return 1 if self.share_randomness else self.steps_per_call

    def _of_one_call(self, arguments, masks, time):
        """The arguments and masks that the first call of the layer sees."""
        steps = self._steps_of_a_call()
        if not steps:
            return arguments, masks, time
        first = functools.partial(folding.first_steps, steps=steps)
        arguments, masks = _map(first, arguments), _map(first, masks)
        return arguments, masks, folding.common_time(_named_tensors(arguments))

    def _call_layer(self, options, arguments, masks, time):
        """Calls the layer once, on a nest of tensors `(batch, time, ...)`."""
        arguments, masks, unfold = _fold(arguments, masks, time)
        fitted = self._fit(masks, arguments)
        for name, nest in arguments.items():
            masking.set_masks(nest, fitted[name])
        if self._layer_takes_mask and masking.any_mask(fitted["inputs"]):
            options = {**options, "mask": fitted["inputs"]}
        args, kwargs = _args_and_kwargs(arguments)
        with masking.passed_on(fitted, self.layer):
            outputs = self.layer(*args, **kwargs, **options)
        output_masks = masking.outgoing(outputs, fitted, masks)
        return _map_both(unfold, (outputs, output_masks))

    def _fit(self, masks, arguments):
        return {
            name: masking.fit(masks[name], nest, self.layer)
            for name, nest in arguments.items()
        }

    def get_config(self):
        return {
            **super().get_config(),
            "steps_per_call": self.steps_per_call,
            "remat": self.remat,
            "share_randomness": self.share_randomness,
        }

    def compute_mask(self, inputs, mask=None):
        if not masking.any_mask(mask) and not masking.makes_masks(self.layer):
            return None
        arguments, masks, time = _gather(inputs, (), {}, mask)
        step_mask = _step_mask(masks, time)
        arguments, masks, unfold = _fold(arguments, masks, time)
        output_masks = None
        if self.layer.supports_masking:
            fitted = self._fit(masks, arguments)
            output_masks = self.layer.compute_mask(
                arguments["inputs"], fitted["inputs"]
            )
            output_masks = masking.restore(output_masks, fitted, masks)
        return _fill(folding.map_tensors(unfold, output_masks), step_mask)

    def compute_output_shape(self, input_shape, *args, **kwargs):
        inputs = self._symbolic(input_shape)
        args = tuple(map(self._symbolic, args))
        kwargs = {name: self._symbolic(kwargs[name]) for name in kwargs}
        arguments, _, unfold = _fold(*_gather(inputs, args, kwargs))
        args, kwargs = _args_and_kwargs(arguments)
        try:
            outputs = self._symbolic(
                self.layer.compute_output_shape(
                    *map(_shapes, args),
                    **{name: _shapes(kwargs[name]) for name in kwargs},
                )
            )
        except NotImplementedError:
            outputs = self.layer(
                *args,
                **{
                    name.removesuffix("_shape"): kwargs[name] for name in kwargs
                },
            )
        return _shapes(folding.map_tensors(unfold, outputs))

    def compute_output_spec(self, *args, **kwargs):
        outputs = self.call(*args, **kwargs)
        masking.connect(outputs)
        return outputs

    @classmethod
    def from_config(cls, config, custom_objects=None):
        # Deserializing takes entries out of the config it is given.
        td = super().from_config(copy.deepcopy(config), custom_objects)
        if type(td.layer).build is keras.Layer.build:
            # Keras takes it for built, though the layers inside are not.
            td.layer.built = False
        return td

    def _symbolic(self, shape):
        return tree.map_shape_structure(
            lambda s: keras.KerasTensor(s, dtype=self.compute_dtype),
            tree.map_structure(_as_sizes, shape),
        )


def _gather(inputs, args, kwargs, mask=None):
    """Gathers the arguments of a call.

    Returns:
        Tuple of a dict of the arguments, a dict of their masks, and the number
        of time steps.
    """
    arguments = {"inputs": inputs, **kwargs}
    if args:
        arguments["*args"] = args
    time = folding.common_time(_named_tensors(arguments))
    masks = {
        name: masking.incoming(nest, mask if name == "inputs" else None)
        for name, nest in arguments.items()
    }
    return arguments, masks, time


def _fold(arguments, masks, time):
    """Folds arguments and their masks, which are of `time` steps or of one.

    Returns:
        Tuple of the folded arguments, the folded masks, and the function that
        unfolds a tensor.
    """
    align = functools.partial(folding.align, time=time)
    arguments, masks = _map(align, arguments), _map(align, masks)
    like = next(x for n in arguments.values() for x in folding.tensors(n))
    arguments, masks = _map(folding.fold, arguments), _map(folding.fold, masks)
    return arguments, masks, lambda x: folding.unfold(x, like)


def _step_mask(masks, time):
    mask = masking.step_mask(masks["inputs"])
    return None if mask is None else folding.align(mask, time)


def _map(fn, nests):
    return {n: folding.map_tensors(fn, nest) for n, nest in nests.items()}


def _map_both(fn, nests):
    return tuple(folding.map_tensors(fn, nest) for nest in nests)


def _args_and_kwargs(arguments):
    kwargs = dict(arguments)
    return (kwargs.pop("inputs"), *kwargs.pop("*args", ())), kwargs


def _fill(masks, step_mask):
    """Gives the mask of the steps to each output without a mask."""
    return tree.map_structure(lambda m: step_mask if m is None else m, masks)


def _named_tensors(arguments):
    """Tensors by the names that a user knows: `value`, `inputs[0]`."""
    named = {}
    for name, nest in arguments.items():
        if folding.is_tensor(nest):
            named[name] = nest
            continue
        for path, x in tree.flatten_with_path(nest):
            if folding.is_tensor(x):
                named[name + "".join(f"[{key!r}]" for key in path)] = x
    return named


def _symbols(nests):
    return folding.map_tensors(
        lambda x: keras.KerasTensor(
            x.shape, keras.backend.standardize_dtype(x.dtype)
        ),
        nests,
    )


def _shapes_will_do(arguments):
    """Whether Keras only infers shapes and dtypes of a call."""
    with keras.SymbolicScope() as scope:
        if scope.original_scope is not None:
            return True
    return any(map(keras.backend.is_keras_tensor, tree.flatten(arguments)))


def _is_tensor_argument(name, value):
    are_tensors = [
        folding.is_tensor(x) for x in tree.flatten(value) if x is not None
    ]
    if any(are_tensors) and not all(are_tensors):
        raise ValueError(
            f"The argument `{name}` of the `TimeDistributed` layer mixes "
            "tensors and other values. Pass them as separate arguments. "
            f"Received: {value}"
        )
    return any(are_tensors)


def _check_options(steps_per_call, remat, share_randomness):
    whole = isinstance(steps_per_call, numbers.Integral)
    if steps_per_call is not None and (
        not whole or isinstance(steps_per_call, bool) or steps_per_call < 1
    ):
        raise ValueError(
            "`steps_per_call` must be a positive integer, or None for one call "
            f"on all time steps. Received: steps_per_call={steps_per_call!r}"
        )
    options = {"remat": remat, "share_randomness": share_randomness}
    for name, value in options.items():
        if not isinstance(value, bool):
            raise ValueError(
                f"`{name}` must be True or False. Received: {name}={value!r}"
            )
    if remat and not hasattr(keras, "remat"):
        raise ValueError(
            "`remat=True` needs Keras 3.9 or later. This is Keras "
            f"{keras.__version__}."
        )


def _parameters(fn):
    return inspect.signature(fn).parameters


def _takes_one(fn):
    required = [
        p
        for p in _parameters(fn).values()
        if p.default is p.empty
        and p.kind
        in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY, p.KEYWORD_ONLY)
    ]
    return len(required) <= 1


def _shapes(tensors):
    return folding.map_tensors(lambda x: tuple(x.shape), tensors)


def _as_sizes(x):
    # Neither TensorFlow's shapes nor NumPy's integers are sizes to Keras.
    if x is None:
        return None
    return tuple(x) if hasattr(x, "__len__") else int(x)


def _unquantized(policy):
    # "int8_from_mixed_bfloat16" -> "mixed_bfloat16". The wrapper holds no
    # weights to quantize, and Keras would ask it for a quantized call.
    if policy.quantization_mode is None:
        return policy
    return policy.name.split("_from_")[1]

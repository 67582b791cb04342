"""The `TimeDistributed` layer."""

import contextlib
import copy
import functools

import keras

from keras_td import building
from keras_td import calling
from keras_td import folding
from keras_td import internals
from keras_td import layer_kinds
from keras_td import masking
from keras_td import masks as masks_of
from keras_td import mistakes
from keras_td import padding
from keras_td import signatures
from keras_td import stepping
from keras_td import trees
from keras_td.arguments import gather
from keras_td.arguments import symbols_of_shapes
from keras_td.scopes import only_shapes_count


@keras.saving.register_keras_serializable(package="keras_td")
class TimeDistributed(keras.layers.TimeDistributed):
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
        self._first_call = None
        # Layers inside may be called first where the layer trains.
        self._built_for: frozenset = frozenset()
        if not self.trainable:
            layer.trainable = False

    def __call__(self, inputs, *args, **kwargs):
        args, kwargs = signatures.keep_apart(self.call, args, kwargs)
        if building.is_built(self.layer):
            return super().__call__(inputs, *args, **kwargs)
        # A call that failed, or `build`, may have built this without that.
        if type(self).build is TimeDistributed.build:
            self.built = False
        with self._builds_for(inputs, *args, **kwargs):
            return super().__call__(inputs, *args, **kwargs)

    @contextlib.contextmanager
    def _builds_for(self, inputs, *args, **kwargs):
        """Lets `build` know of a call."""
        first_call = functools.partial(self._gather, inputs)
        if type(self).call is TimeDistributed.call:
            first_call = functools.partial(first_call, *args, **kwargs)
        self._first_call = first_call
        try:
            yield
        finally:
            self._first_call = None

    def build(self, input_shape):
        if building.is_built(self.layer):
            return
        if self._first_call:
            arguments, options = self._first_call()
        elif building.takes_inputs_alone(self.layer):
            inputs = symbols_of_shapes(input_shape, self.compute_dtype)
            arguments, options = self._gather(inputs)
        else:
            return
        options.pop("training", None)
        symbols = arguments.to_symbols().first_steps(self._steps_of_a_call)
        args, kwargs = symbols.align().fold().args_and_kwargs()
        building.build(self.layer, args, kwargs, options)

    def call(self, inputs, *args, training=None, mask=None, **kwargs):
        if type(self).call is not TimeDistributed.call:
            args, training, mask = signatures.as_in_keras(args, training, mask)
        arguments, options = self._gather(
            inputs, *args, training=training, mask=mask, **kwargs
        )
        # (batch, time, ...) -> (batch * time, ...), and back
        call = functools.partial(calling.call_folded, self.layer, options)
        outputs, output_masks = self._call_steps(call, arguments, training)
        given = masks_of.any_of(arguments.masks)
        # Where a subclass has its own `compute_mask`, Keras asks that.
        inherited = type(self).compute_mask is TimeDistributed.compute_mask
        if (
            (given or masks_of.any_mask(output_masks))
            and self.supports_masking
            and inherited
        ):
            leaving = calling.masks_leaving(
                self.layer, arguments, outputs, output_masks
            )
            masks_of.set_masks(outputs, leaving)
        return outputs

    def _gather(self, inputs, *args, training=None, mask=None, **kwargs):
        """The `Arguments` of the wrapped layer, and its other arguments."""
        args, kwargs, options = signatures.put_together(args, kwargs)
        if training is not None:
            options["training"] = training
        return gather(inputs, args, kwargs, mask), options

    def _call_steps(self, call, arguments, training):
        """Calls the layer as often as the options ask for."""
        steps = self._steps_of_a_call
        arguments = padding.within_outer_call(arguments)
        if not (steps or self.remat):
            return call(arguments)
        if only_shapes_count() or arguments.is_symbolic:
            return stepping.infer(call, arguments, steps)
        if not folding.has_size(arguments.time):
            # A program for any number of steps cannot tell that of the calls.
            if not training:
                return call(arguments)
            if steps:
                raise mistakes.no_training_in_any_time(arguments.time)
        if training not in self._built_for:
            first = arguments.first_steps(steps)
            if building.build_inner_layers(self.layer, call, first):
                self._built_for |= {training}
        results, losses = stepping.call_in_order(
            call,
            self.layer,
            arguments,
            stepping.Options(
                steps, self.remat, self.share_randomness, training
            ),
        )
        for loss in losses:
            self.add_loss(loss)
        return results

    @property
    def _steps_of_a_call(self):
        return 1 if self.share_randomness else self.steps_per_call

    @property
    def metrics(self):
        # As in a model that holds it as a layer, those that a wrapped model was
        # compiled with are not for the model at hand.
        if isinstance(self.layer, keras.Model):
            return internals.own_metrics(self)
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
        layer = self.layer
        if not masks_of.any_mask(mask) and not layer_kinds.makes_masks(layer):
            return None
        arguments = gather(inputs, mask=mask)
        aligned, output_masks = arguments.align(), None
        if layer.supports_masking:
            folded = aligned.fold()
            seen = calling.masks_seen(layer, folded)
            output_masks = layer.compute_mask(
                folded.tensors["inputs"], seen.get("mask", seen["inputs"])
            )
            output_masks = masking.restore(output_masks, seen, aligned.masks)
        [output_masks] = calling.unfold([output_masks], aligned)
        outputs = self._outputs_like(inputs, output_masks)
        return calling.masks_leaving(layer, arguments, outputs, output_masks)

    def _outputs_like(self, inputs, output_masks):
        """Symbols of the outputs, or of no shape where Keras cannot tell it."""
        try:
            shapes = self.compute_output_shape(trees.shapes(inputs))
        except Exception:
            return trees.map_tensors(lambda _: None, output_masks)
        return symbols_of_shapes(shapes, self.compute_dtype)

    def compute_output_shape(self, input_shape, *args, **kwargs):
        symbols = functools.partial(symbols_of_shapes, dtype=self.compute_dtype)
        arguments = gather(
            symbols(input_shape),
            tuple(map(symbols, args)),
            {name: symbols(shape) for name, shape in kwargs.items()},
        ).align()
        args, kwargs = arguments.fold().args_and_kwargs()
        try:
            shapes = self.layer.compute_output_shape(
                *map(trees.shapes, args),
                **{name: trees.shapes(kwargs[name]) for name in kwargs},
            )
            outputs = symbols(shapes)
        except NotImplementedError:
            named = {n.removesuffix("_shape"): x for n, x in kwargs.items()}
            outputs = self.layer(*args, **named)
        [outputs] = calling.unfold([outputs], arguments)
        return trees.shapes(outputs)

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


def _unquantized(policy):
    # "int8_from_mixed_bfloat16" -> "mixed_bfloat16". The wrapper holds no
    # weights to quantize, and Keras would ask it for a quantized call.
    if policy.quantization_mode is None:
        return policy
    return policy.name.split("_from_")[1]

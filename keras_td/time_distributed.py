"""The `TimeDistributed` layer."""

import functools
from typing import Any
from typing import Self
from typing import Unpack

import keras

from keras_td import building
from keras_td import calling
from keras_td import conditional
from keras_td import errors
from keras_td import inference
from keras_td import internals
from keras_td import layer_kinds
from keras_td import legacy
from keras_td import plain
from keras_td import signatures
from keras_td import skipping
from keras_td.arguments import Arguments
from keras_td.arguments import gather_call
from keras_td.arguments import symbols_of_shapes
from keras_td.options import OPTIONS
from keras_td.options import CallOptions
from keras_td.options import LayerOptions


@keras.saving.register_keras_serializable(package="keras_td")
class TimeDistributed(keras.layers.TimeDistributed):
    """Applies a layer to every time step of its inputs.

    The time axis is folded into the batch axis, `(batch, time, ...)` to
    `(batch * time, ...)`, the layer is called once (or on a few steps at a
    time, on request), and its outputs are unfolded. So every step uses the same
    weights, and neither the traced graph nor its compile time grows with the
    number of steps.

    Example:

    Apply one convolution to each of the 10 frames of 32 videos.

    >>> inputs = keras.Input(shape=(10, 128, 128, 3), batch_size=32)
    >>> outputs = keras_td.TimeDistributed(keras.layers.Conv2D(64, 3))(inputs)
    >>> outputs.shape
    (32, 10, 126, 126, 64)

    Train on long clips with the memory of 8 frames.

    >>> layer = keras_td.TimeDistributed(
    ...     keras.layers.Conv2D(64, 3), steps_per_call=8, remat=True
    ... )

    Args:
        layer: The `keras.Layer` to apply: a layer, a `Sequential`, a functional
            or subclassed `Model`, or another `TimeDistributed`.
        steps_per_call: How many time steps one call of the layer sees. `None`,
            the default, means all. With `k`, the layer is called
            `ceil(time / k)` times in order, and its state is carried from call
            to call: less memory is in use at a time. With 1, layers that mix
            samples, such as `BatchNormalization` in training, behave as in
            `keras.layers.TimeDistributed`. Losses that the layer adds must be
            scalars then, and are averaged over the steps of the calls that add
            them.
        remat: Whether the backward pass recomputes each call instead of keeping
            its activations, as `keras.remat` does. With `steps_per_call`,
            training takes the memory of a single call.
        share_randomness: Whether all time steps draw the same random numbers:
            one augmentation per clip, one dropout mask per sequence. The
            samples of a batch still differ. The layer is then called on one
            step at a time, whatever `steps_per_call` is.
        skip_masked: Whether the layer is called only on valid steps, so that
            padding costs little. A step is valid if anything in its mask is.
            Other steps output zeros, and do not count in the layer's statistics
            and losses. Not for stateful layers, nor with `share_randomness`.
        **kwargs: The arguments of every Keras layer. `dtype` defaults to the
            dtype policy of `layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, time, ...)`, or a nest (list, tuple or
            dict) of such tensors. A tensor whose time is 1 is used at every
            step, and one whose batch is 1 for every sample.
        *args: Further tensors, or nests of tensors, of shape
            `(batch, time, ...)`. They are passed to the wrapped layer at the
            same position.
        training: Whether the layer behaves as in training or as in inference.
            Passed to every layer inside.
        mask: Boolean mask of shape `(batch, time)` or `(batch, time, ...)`, in
            the structure of `inputs`. Defaults to the masks attached to
            `inputs`. The wrapped layer sees the mask of its slice, if that says
            something about the inside of a step. If the layer reads masks, a
            step without anything valid is hidden from it, and comes out as
            zeros. `BatchNormalization`, anywhere inside, leaves padded steps
            out of its statistics. A custom layer gets a numeric mask,
            `(batch, time, ...)`, unchanged.
        **kwargs: Further keyword arguments of the wrapped layer. Tensors have
            shape `(batch, time, ...)`; anything else is passed unchanged.

    Output shape:
        `(batch, time, ...)` for each tensor that the wrapped layer returns. An
        output has the mask that the wrapped layer gives it, if that covers its
        leading axes, or else the incoming mask reduced to `(batch, time)`: a
        step is valid if anything in it is.

    Raises:
        ValueError: if `layer` is not a layer that takes inputs; if
            `steps_per_call` is neither `None` nor a positive integer; if
            `remat`, `share_randomness` or `skip_masked` is not a bool; if
            `remat` is True and Keras is older than 3.9; if `skip_masked` is
            True with `share_randomness`, or for a stateful layer; if a tensor
            has fewer than two axes, or is sparse or ragged; if tensors differ
            in batch or time; if `mask` does not match `inputs`; if the wrapped
            layer is stateful and gets another batch size than before; if it
            returns a tensor without a batch axis; if it adds a loss that is not
            a scalar in several calls.
    """

    def __init__(
        self,
        layer: keras.Layer,
        steps_per_call: int | None = None,
        remat: bool = False,
        share_randomness: bool = False,
        skip_masked: bool = False,
        **kwargs: Unpack[LayerOptions],
    ) -> None:
        errors.check_layer(layer)
        if kwargs.get("dtype") is None:
            kwargs["dtype"] = layer_kinds.unquantized(layer.dtype_policy)
        errors.check_options(
            steps_per_call,
            remat=remat,
            share_randomness=share_randomness,
            skip_masked=skip_masked,
        )
        supports_masking = kwargs.pop("supports_masking", True)
        # The wrapped layer casts its inputs itself.
        super().__init__(layer, **{"autocast": False, **kwargs})
        self.supports_masking = supports_masking
        self.steps_per_call = steps_per_call and int(steps_per_call)
        self.remat = remat
        self.share_randomness = share_randomness
        self.skip_masked = skip_masked
        if skip_masked and not conditional.has_gradients_in_xla():
            self.supports_jit = False
        if not self.trainable:
            layer.trainable = False

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if type(self) is TimeDistributed and plain.is_prepared(
            self, inputs, args, kwargs
        ):
            with keras.name_scope(self.name, caller=self):
                # This is what `Layer.__call__` calls.
                return super(keras.Layer, self).__call__(inputs, **kwargs)
        args, kwargs = signatures.to_positional(self.call, args, kwargs)
        try:
            if building.is_built(self.layer):
                return super().__call__(inputs, *args, **kwargs)
            with building.for_call(self, inputs, args, kwargs):
                return super().__call__(inputs, *args, **kwargs)
        except NotImplementedError as error:
            if errors.has_another_graph((inputs, args, kwargs)):
                raise errors.not_traced() from error
            raise

    def build(self, input_shape: Any) -> None:
        if building.is_built(self.layer):
            return
        call = building.call_of(self, input_shape)
        if call:
            arguments, others = call()
        elif building.is_built_by_inputs(self.layer):
            inputs = symbols_of_shapes(input_shape, self.compute_dtype)
            arguments, others = gather_call(inputs)
        else:
            return
        first = arguments.first_steps(CallOptions.of(self).steps)
        building.build(self.layer, first, others)

    @signatures.with_defaults_of_rest
    def call(
        self,
        inputs: Any,
        *args: Any,
        training: bool | None = None,
        mask: Any = None,
        **kwargs: Any,
    ) -> Any:
        args, training, mask = signatures.options_of_keras(
            args, training, mask, self.layer, self._overrides("call")
        )
        options = CallOptions.of(self, training)
        # (batch, time, ...) -> (batch * time, ...), and back
        if (
            not (args or kwargs)
            and mask is None
            and plain.is_all_there_is(self.layer, inputs, options)
        ):
            arguments, losses = Arguments.of_one(inputs), []
            results = calling.call_plainly(self.layer, inputs, training)
        else:
            arguments, others = gather_call(
                inputs, args, kwargs, training, mask
            )
            call = functools.partial(calling.call_folded, self.layer, others)
            results, losses = skipping.call_steps(
                call, self.layer, arguments, options
            )
        for loss in losses:
            self.add_loss(loss)
        # If a subclass has its own `compute_mask`, Keras calls that.
        if self.supports_masking and not self._overrides("compute_mask"):
            calling.propagate_masks(self.layer, arguments, *results)
        return results[0]

    def _overrides(self, name):
        """Whether a subclass overrides this method."""
        return getattr(type(self), name) is not getattr(TimeDistributed, name)

    @property
    def metrics(self) -> list[keras.Metric]:
        # As in a model that holds another one as a layer, the metrics that the
        # wrapped model was compiled with do not belong to the outer model.
        if isinstance(self.layer, keras.Model):
            return internals.own_metrics(self)
        return super().metrics

    def get_config(self) -> dict[str, Any]:
        # Options that are not set are left out, so that Keras's own layer can
        # read the config too.
        options = {n: getattr(self, n) for n in OPTIONS if getattr(self, n)}
        if not self.supports_masking:
            options["supports_masking"] = False
        return {**super().get_config(), **options}

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return inference.masks(
            self.layer, inputs, mask, self.compute_output_shape
        )

    def compute_output_shape(
        self, input_shape: Any, *args: Any, **kwargs: Any
    ) -> Any:
        return inference.output_shapes(
            self.layer, self.compute_dtype, input_shape, args, kwargs
        )

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        if not self._overrides("call"):
            return self.call(*args, **kwargs)
        if self._overrides("compute_output_shape"):
            return super().compute_output_spec(*args, **kwargs)
        try:
            return self.call(*args, **kwargs)
        except Exception:
            # It may call backend functions, which Keras has to trace.
            return keras.Operation.compute_output_spec(self, *args, **kwargs)

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        custom_objects: dict[str, Any] | None = None,
    ) -> Self:
        config = dict(config)
        layer = legacy.layer_from_config(config.pop("layer"), custom_objects)
        td = cls(layer, **config)
        if type(td.layer).build is keras.Layer.build:
            # Keras marks it as built, though the layers inside are not.
            td.layer.built = False
        return td

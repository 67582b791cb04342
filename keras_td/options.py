"""The options of the layer, and of its calls."""

from typing import Any
from typing import NamedTuple
from typing import TypedDict

import keras


class Options(TypedDict, total=False):
    """The arguments that only this layer has, with their types."""

    steps_per_call: int | None
    remat: bool
    share_randomness: bool
    skip_masked: bool


OPTIONS = tuple(Options.__annotations__)


class LayerOptions(TypedDict, total=False):
    """The arguments of every Keras layer."""

    name: str | None
    dtype: str | dict[str, Any] | keras.DTypePolicy | None
    trainable: bool
    activity_regularizer: Any
    autocast: bool
    supports_masking: bool


class CallOptions(NamedTuple):
    """How the wrapped layer is called.

    Args:
        steps: How many time steps each call sees, except the first, which sees
            the remainder. `None` means all.
        remat: Whether the backward pass recomputes each call.
        share_randomness: Whether every call draws the same random numbers.
        skip_masked: Whether each call finds its valid steps at run time, and is
            made only on these, and only if there are any.
        training: Whether the layer trains.
        all_at_once: Whether a call is made even if none of its steps is valid.
        parts: The numbers of steps that the calls see, if they differ.
    """

    steps: int | None
    remat: bool
    share_randomness: bool
    skip_masked: bool
    training: bool | None
    all_at_once: bool = False
    parts: list[int] | None = None

    @property
    def are_defaults(self):
        """Whether the layer is called once, and nothing else is asked for."""
        return not (self.steps or self.remat or self.skip_masked)

    @property
    def in_parts(self):
        """Whether it is known only at run time which parts have valid steps."""
        return self.skip_masked and self.parts is not None

    @classmethod
    def of(cls, wrapper, training=None):
        """The options of a wrapper."""
        return cls(
            1 if wrapper.share_randomness else wrapper.steps_per_call,
            wrapper.remat,
            wrapper.share_randomness,
            wrapper.skip_masked,
            training,
        )

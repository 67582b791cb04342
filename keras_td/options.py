"""The options of the layer, and of its calls."""

from typing import Any
from typing import NamedTuple
from typing import TypedDict

import keras


class Options(TypedDict, total=False):
    """The arguments of this layer alone, with their types."""

    steps_per_call: int | None
    remat: bool
    share_randomness: bool
    skip_masked: bool


OPTIONS = tuple(Options.__annotations__)


class LayerOptions(TypedDict, total=False):
    """The arguments of every layer of Keras."""

    name: str | None
    dtype: str | dict[str, Any] | keras.DTypePolicy | None
    trainable: bool
    activity_regularizer: Any
    autocast: bool
    supports_masking: bool


class CallOptions(NamedTuple):
    """How the wrapped layer is called.

    Args:
        steps: How many time steps a call sees, but the first, which sees what
            remains. `None` is all.
        remat: Whether the backward pass computes each call again.
        share_randomness: Whether every call draws the same random numbers.
        skip_masked: Whether only the run tells which steps of a call are valid,
            to be called on these alone, and only if there are any.
        training: Whether the layer trains.
        all_at_once: Whether a call is made where no step of it is valid, too.
        parts: The numbers of steps that the calls see, if they are not the
            same.
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
        """Whether the layer is called once, and no more is asked for."""
        return not (self.steps or self.remat or self.skip_masked)

    @property
    def in_parts(self):
        """Whether only the run tells which parts have a valid step."""
        return self.skip_masked and self.parts is not None

    @classmethod
    def of(cls, wrapper, training=None):
        """The options that a wrapper has been given."""
        return cls(
            1 if wrapper.share_randomness else wrapper.steps_per_call,
            wrapper.remat,
            wrapper.share_randomness,
            wrapper.skip_masked,
            training,
        )

"""The options of the layer, and of its calls."""

from typing import Any
from typing import NamedTuple
from typing import TypedDict

import keras


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
        training: Whether the layer trains.
    """

    steps: int | None
    remat: bool
    share_randomness: bool
    training: bool | None

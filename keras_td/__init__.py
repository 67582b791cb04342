"""The `TimeDistributed` layer that Keras users wish Keras had."""

from importlib import metadata

from keras_td.replacement import replacing
from keras_td.time_distributed import TimeDistributed
from keras_td.upgrading import upgrade

__all__ = ["TimeDistributed", "replacing", "upgrade"]

try:
    __version__ = metadata.version("keras_td")
except metadata.PackageNotFoundError:  # a copy of the folder, not installed
    __version__ = "unknown"

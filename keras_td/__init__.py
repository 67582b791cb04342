"""The `TimeDistributed` layer that Keras users wish Keras had."""

from importlib import metadata

from keras_td.time_distributed import TimeDistributed

__all__ = ["TimeDistributed"]

try:
    __version__ = metadata.version("keras_td")
except metadata.PackageNotFoundError:  # a copy of the folder, not installed
    __version__ = "unknown"

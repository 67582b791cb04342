"""The `TimeDistributed` layer that Keras users wish Keras had."""

from importlib.metadata import version

from keras_td.time_distributed import TimeDistributed

__all__ = ["TimeDistributed"]
__version__ = version("keras_td")

"""What processes of a data loader have to import."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from keras_td import TimeDistributed


@dataclasses.dataclass
class Augment:
    """Augments a batch of clips, or a list of clips."""

    layer: keras.Layer
    stack: bool = False

    def __call__(self, clips):
        x = np.stack(clips) if self.stack else clips
        return as_numpy(self.layer(x, training=True))


augment: Callable


def start_worker(_):
    """Gives a process a layer of its own."""
    global augment
    layer = layers.RandomBrightness(0.5, value_range=(0, 1))
    augment = TimeDistributed(layer, share_randomness=True)


def collate(clips):
    return as_numpy(augment(np.stack(clips), training=True))


def as_numpy(x):
    return keras.ops.convert_to_numpy(x)

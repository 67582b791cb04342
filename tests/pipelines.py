"""What the processes of a data loader have to import."""

import dataclasses

import keras
import numpy as np
from keras import layers

from keras_td import TimeDistributed
from reference import as_numpy


@dataclasses.dataclass
class Augment:
    """Augments a batch of clips, or a list of clips."""

    layer: keras.Layer

    def __call__(self, clips):
        return as_numpy(self.layer(np.stack(clips), training=True))


augment: Augment


def start_worker(_):
    """Gives a process its own layer."""
    global augment
    layer = layers.RandomBrightness(0.5, value_range=(0, 1))
    augment = Augment(TimeDistributed(layer, share_randomness=True))


def collate(clips):
    return augment(clips)

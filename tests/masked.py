"""Sentences of words with padding, and what reads their masks."""

import keras
import numpy as np
from keras import tree

from reference import MaskSetter
from reference import as_numpy

IDS = np.array([[[1, 2, 3], [4, 0, 0]], [[5, 6, 0], [0, 0, 0]]], "int32")
WORDS, SENTENCES = IDS != 0, (IDS != 0).any(axis=-1)
# A sentence of padding alone is shown as one without padding.
SHOWN = (WORDS | ~SENTENCES[..., None]).reshape(4, 3)


class Recorder(keras.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.masks = []

    def call(self, inputs, mask=None):
        self.masks.append(mask)
        return tree.flatten(inputs)[0] * 2

    def compute_mask(self, inputs, mask=None):
        return None


def assert_equal(actual, expected):
    np.testing.assert_array_equal(as_numpy(actual), expected)


def masked(case, args, make):
    """Attaches masks of `(batch, time)` to inputs.

    For a bare layer, they are masks of positions.
    """
    rank = 2 if case.has_time else -1
    inputs = tree.map_structure(
        lambda x: MaskSetter(make(x.shape[:rank]))(x), args[0]
    )
    return inputs, *args[1:]


def padded(ids):
    return np.pad(ids, ((0, 0), (0, 2), (0, 3)))

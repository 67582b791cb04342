"""Models to export and to distribute, some with time folded by hand."""

import dataclasses
import functools
import inspect
from collections.abc import Callable

import keras
import numpy as np
from keras import layers
from keras import ops
from keras import tree

from keras_td import TimeDistributed
from reference import normal

OPTIONS = {
    "one call": {},
    "steps_per_call": {"steps_per_call": 2},
    "remat": {"remat": True},
    "share_randomness": {"share_randomness": True},
    "skip_masked": {"skip_masked": True},
}


class Folded(keras.Layer):
    """Folds time into the batch by hand, around a layer."""

    supports_masking = True

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, inputs, *args, mask=None):
        first, *others = tree.flatten(inputs)
        batch, time = ops.shape(first)[:2]
        # Some may have a time of 1.
        others = [
            ops.broadcast_to(x, (batch, time, *x.shape[2:])) for x in others
        ]
        inputs = tree.pack_sequence_as(inputs, [first, *others])
        takes_mask = "mask" in inspect.signature(self.layer.call).parameters
        masks = {"mask": mask} if takes_mask and mask is not None else {}

        def fold(x):
            return ops.reshape(x, (-1, *x.shape[2:]))

        inputs, args, masks = tree.map_structure(fold, (inputs, args, masks))
        y = self.layer(inputs, *args, **masks)
        return ops.reshape(y, (-1, time, *y.shape[1:]))

    def compute_mask(self, inputs, mask=None):
        of_layer = self.layer.compute_mask(inputs, mask)
        if of_layer is None and hasattr(mask, "shape"):
            return ops.any(mask, axis=-1)
        return of_layer


@dataclasses.dataclass(frozen=True)
class Exported:
    """A model and its inputs.

    Args:
        build: Makes the model, given a function that wraps layers.
        draw: Draws the list of its inputs, given a generator, batch and time.
    """

    build: Callable
    draw: Callable

    def with_options(self, **options):
        return self.build(functools.partial(TimeDistributed, **options))

    def by_hand(self):
        return self.build(Folded)


def dense(wrap, time=None):
    inputs = keras.Input((time, 6))
    return keras.Model(inputs, wrap(layers.Dense(4))(inputs))


def cnn(wrap, time=None):
    inputs = keras.Input((time, 8, 8, 3))
    inner = keras.Sequential(
        [
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.GlobalAveragePooling2D(),
        ]
    )
    return keras.Model(inputs, wrap(inner)(inputs))


def recurrent(wrap, time=None):
    inputs = keras.Input((time, 4, 6))
    return keras.Model(inputs, layers.GRU(2)(wrap(layers.LSTM(4))(inputs)))


def words(wrap, time=None):
    inputs = keras.Input((time, 4), dtype="int32")
    x = wrap(layers.Embedding(9, 4, mask_zero=True))(inputs)
    x = wrap(layers.Dense(4))(x)
    x = wrap(layers.GlobalAveragePooling1D())(x)
    return keras.Model(inputs, layers.GlobalAveragePooling1D()(x))


def masked(wrap, time=None):
    inputs, mask = keras.Input((time, 6)), keras.Input((time,), dtype="bool")
    x = wrap(layers.Dense(4))(inputs, mask=mask)
    outputs = layers.GlobalAveragePooling1D()(x, mask=mask)
    return keras.Model([inputs, mask], outputs)


def mobilenet(wrap, time=None):
    inputs = keras.Input((time, 32, 32, 3))
    inner = keras.applications.MobileNetV2(
        (32, 32, 3), 0.35, include_top=False, weights=None, pooling="avg"
    )
    return keras.Model(inputs, wrap(inner)(inputs))


def attention(wrap, time=None):
    inputs = keras.Input((time, 4, 6))
    attend = wrap(layers.MultiHeadAttention(2, 3))
    return keras.Model(inputs, attend(inputs, inputs))


def user_and_items(wrap, time=None):
    items, user = keras.Input((time, 5)), keras.Input((1, 3))
    x = wrap(layers.Concatenate())([items, user])
    return keras.Model([items, user], wrap(layers.Dense(2))(x))


def floats(*shape):
    return lambda rng, batch, time: [normal(rng, batch, time, *shape)]


def draw_words(rng, batch, time):
    lengths = rng.integers(0, 5, (batch, time, 1))
    ids = rng.integers(1, 9, (batch, time, 4))
    return [np.where(np.arange(4) < lengths, ids, 0).astype("int32")]


def draw_masked(rng, batch, time):
    mask = np.arange(time) < rng.integers(1, time + 1, (batch, 1))
    return [normal(rng, batch, time, 6), mask]


def draw_user_and_items(rng, batch, time):
    return [normal(rng, batch, time, 5), normal(rng, batch, 1, 3)]


MODELS = {
    "dense": Exported(dense, floats(6)),
    "CNN": Exported(cnn, floats(8, 8, 3)),
    "LSTM, then GRU": Exported(recurrent, floats(4, 6)),
    "hierarchical masks": Exported(words, draw_words),
    "mask as an input": Exported(masked, draw_masked),
    "MobileNetV2": Exported(mobilenet, floats(32, 32, 3)),
    "attention": Exported(attention, floats(4, 6)),
    "user and items": Exported(user_and_items, draw_user_and_items),
}

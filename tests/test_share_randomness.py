"""With `share_randomness`, all steps draw the same, but samples and batches do
not."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras import tree

from backends import needs
from backends import with_and_without_remat
from case import leaves
from case import one_or_all
from case import with_leaves
from cases import CASES
from cases import each
from cases import each_in_turn
from keras_td import TimeDistributed
from limits import no_worse_than_plain
from reference import as_numpy

pytestmark = needs("fresh dropout")
SAMPLES, TIME = 10, 3
# They mix the samples, or draw once for a whole batch.
ALIKE = (
    "AugMix",
    "CutMix",
    "MixUp",
    "Mosaic",
    "RandAugment",
    "RandomCrop",
    "RandomGaussianBlur",
)
RANDOM = [case for case in CASES if case.random]
each_random = each(RANDOM)
each_that_differs = each([c for c in RANDOM if c.class_name not in ALIKE])


def still(case, rng, samples=SAMPLES):
    """Arguments that are the same at all steps; with 1, at all samples too."""
    lead = (SAMPLES, TIME) if case.has_time else (SAMPLES,)
    arguments = case.arrays(rng, *(samples, 1)[: len(lead)])
    repeated = [
        np.broadcast_to(x, (*lead, *x.shape[len(lead) :])).copy()
        for x in leaves(arguments)
    ]
    return with_leaves(arguments, repeated)


def drawn(layer, arguments):
    """The outputs of a call in training: a row of values for each sample."""
    args, kwargs = arguments
    outputs = tree.flatten(layer(*args, training=True, **kwargs))
    flat = [as_numpy(y).reshape(SAMPLES, -1) for y in outputs]
    return np.concatenate(flat, axis=-1)


def drawn_by_step(case, arguments, **options):
    """For each sample, a row of values for each step."""
    if case.has_time:
        args, kwargs = arguments
        outputs = case.wrapped(**options)(*args, training=True, **kwargs)
        flat = [
            as_numpy(y).reshape(SAMPLES, TIME, -1)
            for y in tree.flatten(outputs)
        ]
        return np.concatenate(flat, axis=-1)
    # A bare layer whose seeds are restored draws what it drew before.
    layer, steps = case.make(), []
    drawn(layer, arguments)
    seeds = [as_numpy(v.value) for v in layer.variables]
    for _ in range(TIME):
        steps.append(drawn(layer, arguments))
        for variable, seed in zip(layer.variables, seeds, strict=True):
            variable.assign(seed)
    return np.stack(steps, axis=1)


def assert_same_in_all_steps(values):
    first = np.broadcast_to(values[:, :1], values.shape)
    scale = max(1, np.abs(first).max())
    np.testing.assert_allclose(values, first, atol=1e-5 * scale)


@each_random
@no_worse_than_plain
def test_all_steps_draw_the_same(case, rng):
    arguments = still(case, rng)

    values = drawn_by_step(case, arguments, share_randomness=True)

    assert_same_in_all_steps(values)
    # A new layer draws the same.
    again = drawn_by_step(case, arguments, share_randomness=True)
    np.testing.assert_array_equal(values, again)


@each_that_differs
def test_by_default_steps_draw_their_own(case, rng):
    values = drawn_by_step(case, still(case, rng))

    assert (values[:, :1] != values).any()


@each_random
@no_worse_than_plain
def test_the_next_batch_draws_anew(case, rng):
    arguments = still(case, rng)
    layer = case.wrapped(share_randomness=True)

    first, *others = (drawn(layer, arguments) for _ in range(4))

    # `RandomCrop` has few places to choose from.
    assert any((first != other).any() for other in others)


@each_that_differs
@no_worse_than_plain
def test_samples_still_differ(case, rng):
    arguments = still(case, rng, samples=1)

    layer = case.wrapped(share_randomness=True)

    # By chance, all samples of a batch may draw the same.
    batches = [drawn(layer, arguments) for _ in range(4)]
    assert any((values[0] != values[1:]).any() for values in batches)


class Spread(keras.Layer):
    """How the steps differ from the first."""

    def compute_mask(self, inputs, mask=None):
        return None

    def call(self, inputs):
        return ops.cast(inputs[:, 1:], "float32") - ops.cast(
            inputs[:, :1], "float32"
        )


# PyTorch's trainer warns of a layer without any.
@pytest.mark.filterwarnings("ignore:The model does not have any trainable")
@needs("training")
@each_in_turn("run_eagerly", [pytest.param(True), pytest.param(False)], RANDOM)
@no_worse_than_plain
def test_all_steps_draw_the_same_in_fit(case, run_eagerly, rng):
    arguments = still(case, rng)
    x = one_or_all(leaves(arguments))

    inputs = [
        keras.Input(a.shape[1:], SAMPLES, a.dtype.name) for a in leaves(x)
    ]
    args, kwargs = with_leaves(arguments, inputs)
    outputs = case.wrapped(share_randomness=True)(*args, **kwargs)
    spread = [Spread()(y) for y in tree.flatten(outputs)]
    model = keras.Model(one_or_all(inputs), spread)
    model.compile("sgd", "mae", run_eagerly=run_eagerly)
    zeros = [np.zeros(y.shape, "float32") for y in spread]

    history = model.fit(x, zeros, batch_size=SAMPLES, verbose=0)

    assert history.history["loss"][0] < 1e-4


@pytest.mark.parametrize("seed", [None, 3])
def test_a_clip_is_flipped_as_a_whole_or_not_at_all(seed, rng):
    clips = rng.uniform(0, 255, (16, 5, 8, 8, 3)).astype("float32")
    flip = layers.RandomFlip("horizontal", seed=seed)
    td = TimeDistributed(flip, share_randomness=True)

    outputs = as_numpy(td(clips, training=True))

    flipped = [
        (clip == before[:, :, ::-1]).all()
        for clip, before in zip(outputs, clips, strict=True)
    ]
    kept = [
        (clip == before).all()
        for clip, before in zip(outputs, clips, strict=True)
    ]
    assert 0 < sum(flipped) < 16
    assert sum(flipped) + sum(kept) == 16


def test_one_dropout_mask_serves_a_sequence():
    td = TimeDistributed(layers.Dropout(0.5), share_randomness=True)
    x = np.ones((8, 5, 40), "float32")

    outputs = as_numpy(td(x, training=True))

    assert_same_in_all_steps(outputs)
    assert len(np.unique(outputs[:, 0], axis=0)) == 8
    np.testing.assert_array_equal(as_numpy(td(x, training=False)), x)


class Noise(keras.Layer):
    """Draws from Keras's global seed, as it has no seed."""

    def call(self, inputs):
        return inputs + keras.random.normal(inputs.shape)


def test_draws_without_a_seed_are_shared_too():
    td = TimeDistributed(Noise(), share_randomness=True)
    x = np.ones((8, 5, 4), "float32")

    first, second = as_numpy(td(x)), as_numpy(td(x))

    assert_same_in_all_steps(first)
    assert (first != second).any()


@needs("training")
@with_and_without_remat
def test_the_next_batch_of_fit_draws_anew(remat):
    class Record(keras.Layer):
        """Keeps the first step of each batch."""

        def build(self, input_shape):
            self.count = self.add_weight(
                shape=(), initializer="zeros", trainable=False, dtype="int32"
            )
            self.kept = self.add_weight(
                shape=(3, input_shape[-1]), initializer="zeros", trainable=False
            )

        def call(self, inputs):
            here = ops.equal(ops.arange(3), self.count)[:, None]
            row = ops.cast(here, "float32") * inputs[0, 0]
            self.kept.assign(self.kept + row)
            self.count.assign(self.count + 1)
            return inputs

    dropout = layers.Dropout(0.5, seed=3)
    td = TimeDistributed(dropout, share_randomness=True, remat=remat)
    record = Record()
    model = keras.Sequential(
        [keras.Input((4, 40)), td, record, layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    x, y = np.ones((6, 4, 40), "float32"), np.ones((6, 4, 1), "float32")

    model.fit(x, y, batch_size=2, shuffle=False, verbose=0)

    assert len(np.unique(as_numpy(record.kept.value), axis=0)) == 3


@with_and_without_remat
def test_other_options_go_with_it(remat):
    dropout = layers.Dropout(0.5)
    td = TimeDistributed(
        dropout, steps_per_call=3, remat=remat, share_randomness=True
    )

    outputs = as_numpy(td(np.ones((2, 5, 40), "float32"), training=True))

    assert_same_in_all_steps(outputs)


def test_the_layer_itself_draws_as_before():
    dropout = layers.Dropout(0.5)
    before = dropout.seed_generator.get_config()
    td = TimeDistributed(dropout, share_randomness=True)

    td(np.ones((2, 5, 40), "float32"), training=True)

    assert dropout.seed_generator.get_config() == before

"""Clips are augmented in data pipelines too, on any backend."""

import pathlib

import keras
import numpy as np
import pytest
from keras import layers

from keras_td import TimeDistributed
from pages import run_blocks
from pipelines import Augment
from pipelines import collate
from pipelines import start_worker
from reference import as_numpy

grain = pytest.importorskip("grain", reason="`nox -s pipelines` installs it")
tf = pytest.importorskip("tensorflow")
data = pytest.importorskip("torch.utils.data")

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "pipelines.md"
CLIPS, TIME, SIZE, BATCH = 8, 5, 6, 4
AUGMENTATIONS = {
    "flip": lambda: layers.RandomFlip("horizontal", seed=3),
    "model": lambda: keras.Sequential(
        [
            layers.RandomRotation(0.2, seed=1),
            layers.RandomBrightness(0.2, value_range=(0, 1), seed=2),
        ]
    ),
    "pipeline": lambda: layers.Pipeline(
        [layers.RandomZoom(0.2, seed=1), layers.RandomContrast(0.5, seed=2)]
    ),
}
each_augmentation = pytest.mark.parametrize("name", AUGMENTATIONS)


def in_graph(augment, clips, **options):
    def call(batch):
        x = tf.numpy_function(Augment(augment), [batch], tf.float32)
        return tf.ensure_shape(x, batch.shape)

    return traced(call, clips, **options)


def traced(function, clips, **options):
    batches = tf.data.Dataset.from_tensor_slices(clips).batch(BATCH)
    return batches.map(function, **options)


def in_loader(augment, clips, **options):
    return data.DataLoader(clips, BATCH, collate_fn=Augment(augment), **options)


def in_grain(augment, clips):
    return grain.MapDataset.source(clips).batch(BATCH).map(Augment(augment))


WAYS = {
    "tf.data": in_graph,
    "tf.data, in parallel": lambda *args: in_graph(*args, num_parallel_calls=4),
    "DataLoader": in_loader,
    "DataLoader, processes": lambda *args: in_loader(
        *args, num_workers=2, multiprocessing_context="spawn"
    ),
    "grain": in_grain,
    "grain, one by one": lambda *args: in_grain(*args).to_iter_dataset(),
}
each_way = pytest.mark.parametrize("way", WAYS)


def still(rng):
    """Clips in which nothing moves."""
    frame = rng.random((CLIPS, 1, SIZE, SIZE, 3), "float32")
    return np.repeat(frame, TIME, axis=1)


def augmentation(name, **options):
    """A layer that is built already, as threads must not build it at once."""
    td = TimeDistributed(AUGMENTATIONS[name](), **options)
    td(np.zeros((1, TIME, SIZE, SIZE, 3), "float32"), training=True)
    return td


def frames_of(batches):
    return np.concatenate([as_numpy(batch) for batch in batches])


def assert_a_clip_is_augmented_as_a_whole(clips, outputs):
    assert outputs.shape == clips.shape
    first = np.repeat(outputs[:, :1], TIME, axis=1)
    np.testing.assert_allclose(outputs, first, atol=1e-5)
    assert np.abs(outputs - clips).max() > 0.01


@each_augmentation
@each_way
def test_a_clip_is_augmented_as_a_whole(way, name, rng):
    clips = still(rng)
    augment = augmentation(name, share_randomness=True)

    outputs = frames_of(WAYS[way](augment, clips))

    assert_a_clip_is_augmented_as_a_whole(clips, outputs)


@each_way
def test_frames_are_augmented_one_by_one(way, rng):
    clips = still(rng)

    outputs = frames_of(WAYS[way](augmentation("flip"), clips))

    assert np.abs(outputs - outputs[:, :1]).max() > 0.01


@each_augmentation
def test_tf_data_traces_the_layer_on_tensorflow_alone(name, rng):
    clips = still(rng)
    augment = augmentation(name, share_randomness=True)

    if keras.backend.backend() == "tensorflow":
        outputs = frames_of(traced(augment, clips))
        assert_a_clip_is_augmented_as_a_whole(clips, outputs)
    else:
        with pytest.raises(NotImplementedError, match=r"tf\.numpy_function"):
            traced(augment, clips)


@each_augmentation
def test_tf_data_traces_what_is_not_built(name, rng):
    td = TimeDistributed(AUGMENTATIONS[name]())

    if keras.backend.backend() == "tensorflow":
        assert frames_of(traced(td, still(rng))).shape[:2] == (CLIPS, TIME)
    else:
        with pytest.raises(NotImplementedError, match=r"tf\.numpy_function"):
            traced(td, still(rng))


@pytest.mark.parametrize("way", ["tf.data", "DataLoader"])
def test_a_model_trains_on_what_a_pipeline_augments(way, rng):
    model = keras.Sequential(
        [
            TimeDistributed(layers.GlobalAveragePooling2D()),
            layers.GRU(4),
            layers.Dense(1),
        ]
    )
    model.compile("adam", "mse")
    augment = augmentation("model", share_randomness=True)
    batches = WAYS[way](augment, still(rng))
    if way == "tf.data":
        batches = batches.map(lambda x: (x, tf.ones((BATCH, 1))))
    else:
        batches = [(x, np.ones((BATCH, 1))) for x in batches]
        batches = data.DataLoader(batches, batch_size=None)

    history = model.fit(batches, epochs=2, shuffle=False, verbose=0)

    assert np.isfinite(history.history["loss"]).all()


def test_a_worker_that_makes_its_layer_draws_its_own_numbers(rng):
    clips = np.full((CLIPS, TIME, SIZE, SIZE, 3), 0.5, "float32")
    loader = data.DataLoader(
        clips,
        BATCH,
        collate_fn=collate,
        num_workers=2,
        multiprocessing_context="spawn",
        worker_init_fn=start_worker,
    )

    epochs = [frames_of(loader) for _ in range(2)]

    drawn = np.concatenate(epochs)[:, 0, 0, 0, 0]
    assert len(np.unique(drawn)) == len(drawn)


def test_the_page_runs():
    names = run_blocks(PAGE)

    for dataset in names["in_order"], names["dataset"]:
        assert frames_of(dataset).shape == (32, 8, 24, 24, 3)

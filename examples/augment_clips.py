"""Augments clips frame by frame, and as a whole.

A camera pans over a photograph. Keras's augmentation layers are made for
images: wrapped in `TimeDistributed`, they rotate, flip and recolor each frame
of a clip differently. With `share_randomness=True`, all frames of a clip are
augmented alike, and each clip differently.

    pip install keras_td jax scikit-learn matplotlib
    python augment_clips.py --picture clips.jpg
"""

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's chatter

import keras
import numpy as np
from keras import layers
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image

import keras_td

CLIPS, TIME, SIZE = 2, 6, 120
# On JAX, it flips one of the clips.
SEED = 11
PAPER, INK = "#faf5e9", "#1d2438"


def pan(image, top, step):
    """A clip `(time, height, width, channels)` of a camera that moves right."""
    starts = 40 + step * np.arange(TIME)
    frames = [image[top : top + SIZE, x : x + SIZE] for x in starts]
    return np.stack(frames).astype("float32") / 255


def make_augmentation():
    rotate = layers.RandomRotation(
        0.08, fill_mode="constant", fill_value=1, seed=SEED
    )
    return keras.Sequential(
        [
            layers.RandomFlip("horizontal", seed=SEED),
            rotate,
            layers.RandomHue(0.3, value_range=(0, 1), seed=SEED),
        ]
    )


def draw(picture, rows):
    """Draws rows of clips, one under the other."""
    height = 1.3 * len(rows) * CLIPS
    fig = Figure(figsize=(8, height), facecolor=PAPER, layout="constrained")
    for part, (title, clips) in zip(
        fig.subfigures(len(rows), 1).flat, rows.items(), strict=True
    ):
        part.set_facecolor(PAPER)
        part.suptitle(title, color=INK, size=11)
        grid = part.subplots(CLIPS, TIME)
        for number, (axes, frames) in enumerate(
            zip(grid, clips, strict=True), start=1
        ):
            axes[0].set_ylabel(f"clip {number}", color=INK)
            for ax, frame in zip(axes, frames, strict=True):
                ax.imshow(frame.clip(0, 1))
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
    fig.savefig(picture, dpi=100)


def main():
    """Augments two clips in both ways and draws them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", default="clips.jpg", help="where to save")
    picture = parser.parse_args().picture
    image = load_sample_image("china.jpg")
    clips = np.stack([pan(image, 100, 30), pan(image, 200, 45)])
    rows = {"The clips": clips}
    titles = {
        False: "By default, each frame is augmented in its own way",
        True: "With share_randomness=True, each clip is augmented as a whole",
    }
    for shared, title in titles.items():
        augment = keras_td.TimeDistributed(
            make_augmentation(), share_randomness=shared
        )
        outputs = augment(clips, training=True)
        rows[title] = keras.ops.convert_to_numpy(outputs)
    draw(picture, rows)
    print(f"The clips are drawn in {picture}.")


if __name__ == "__main__":
    main()

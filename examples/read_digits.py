"""Finds the largest digit in clips of handwritten digits.

A clip shows two to eight digits, one per frame, and ends in blank frames.
`TimeDistributed` applies one small CNN to every frame. The mask of the frames
that show a digit goes in with the call and leaves with the result, so both the
loss of the single digits and the GRU skip the blank frames.

    pip install keras_td jax scikit-learn matplotlib
    python read_digits.py --picture digits.png

Set `KERAS_BACKEND` to "torch" or "tensorflow" to run it on another backend.
"""

import argparse
import os
import time

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's chatter

import keras
import numpy as np
from keras import layers
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patches import Rectangle
from sklearn.datasets import load_digits

import keras_td

TIME = 8
PAPER, INK, FAINT = "#faf5e9", "#1d2438", "#cfc5b0"
RIGHT, WRONG = "#2e7d4f", "#c0392b"


def split_digits(rng):
    """Images `(n, 8, 8, 1)` and labels, to train on and held out."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
    held_out, train = np.split(rng.permutation(len(images)), [360])
    return (images[train], labels[train]), (images[held_out], labels[held_out])


def shift_digits(images, labels):
    """Adds each image one pixel off to the left, right, top and bottom."""
    wide = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])
    offsets = [(1, 1), (1, 0), (1, 2), (0, 1), (2, 1)]
    shifted = [wide[:, y : y + 8, x : x + 8] for y, x in offsets]
    return np.concatenate(shifted), np.tile(labels, len(offsets))


def make_clips(rng, count, images, labels):
    """Frames `(count, time, 8, 8, 1)` and digits `(count, time)`."""
    picked = rng.integers(len(images), size=(count, TIME))
    lengths = rng.integers(2, TIME + 1, size=(count, 1))
    shown = np.arange(TIME) < lengths
    return images[picked] * shown[..., None, None, None], labels[picked] * shown


def make_model():
    """Reads the digit on every frame, and the largest of the clip."""
    cnn = keras.Sequential(
        [
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(10, activation="softmax"),
        ]
    )
    frames = keras.Input((TIME, 8, 8, 1))
    shown = keras.ops.any(frames > 0, axis=(2, 3, 4))
    digits = keras_td.TimeDistributed(cnn)(frames, mask=shown)
    largest = layers.Dense(10, activation="softmax")(layers.GRU(64)(digits))
    return keras.Model(frames, {"digits": digits, "largest": largest})


def train(model, frames, digits, epochs=8, batch_size=32):
    """Teaches the model both; the mask keeps padding out of the loss."""
    steps = epochs * len(frames) // batch_size
    rate = keras.optimizers.schedules.CosineDecay(5e-3, steps)
    loss = "sparse_categorical_crossentropy"
    metrics = {"largest": "accuracy"}
    model.compile(keras.optimizers.Adam(rate), loss=loss, metrics=metrics)
    answers = {"digits": digits, "largest": digits.max(axis=1)}
    model.fit(frames, answers, batch_size=batch_size, epochs=epochs)


def draw_clip(ax, frames, digits, read, largest):
    """Draws one clip: its frames, what the model reads, its answer."""
    ink = LinearSegmentedColormap.from_list("ink", ["white", INK])
    length, truth = frames.any(axis=(1, 2, 3)).sum(), digits.max()
    color, mark = (RIGHT, "✓") if largest == truth else (WRONG, "✗")
    text = {"ha": "center", "va": "center"}
    for t, x in enumerate(1.12 * np.arange(TIME)):
        style = {"ec": FAINT, "lw": 0.5, "hatch": "////"}
        if t < length:
            style = {"ec": color, "lw": 2.5 if read[t] == largest else 0}
            shade = INK if read[t] == digits[t] else WRONG
            ax.imshow(frames[t], ink, vmin=0, vmax=1, extent=(x, x + 1, 0, 1))
            ax.text(x + 0.5, -0.3, read[t], color=shade, size=11, **text)
        ax.add_patch(Rectangle((x, 0), 1, 1, fill=False, **style))
    ax.text(9.5, 0.5, largest, color=color, size=26, **text)
    ax.text(10.2, 0.5, mark, color=color, size=15, **text)
    if largest != truth:
        ax.text(9.85, -0.3, f"it is {truth}", color=WRONG, size=11, **text)
    ax.set(xlim=(-0.1, 10.6), ylim=(-0.55, 1.1), aspect="equal")
    ax.axis("off")


def draw(picture, clips, title):
    """Draws clips in two columns, with a key, and saves the picture."""
    fig = Figure(figsize=(13, 8.6), facecolor=PAPER, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.2, h_pad=0.12)
    fig.suptitle(title, color=INK, size=15)
    for ax, clip in zip(fig.subplots(6, 2).flat, clips, strict=True):
        draw_clip(ax, *clip)
    box = {"fc": "none", "lw": 2.5}
    key = {
        "frames read as the answer": Patch(ec=RIGHT, **box),
        "frames read as a wrong answer": Patch(ec=WRONG, **box),
        "blank frame, masked": Patch(fc="none", ec=FAINT, hatch="////"),
        "misread digit": Line2D([], [], c=WRONG, ls="", marker="$7$", ms=11),
    }
    fig.legend(
        key.values(),
        key,
        loc="outside lower center",
        ncols=len(key),
        frameon=False,
        fontsize=11,
        labelcolor=INK,
    )
    fig.savefig(picture, dpi=120)


def main():
    """Trains on some digits, reads the others and draws some of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", default="digits.png", help="where to save")
    picture = parser.parse_args().picture
    start = time.time()
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    seen, held_out = split_digits(rng)
    model = make_model()
    train(model, *make_clips(rng, 5000, *shift_digits(*seen)))

    frames, digits = make_clips(rng, 1000, *held_out)
    scores = model.predict(frames, verbose=0)
    read, largest = (scores[k].argmax(-1) for k in ("digits", "largest"))
    right = largest == digits.max(axis=1)
    found = f"Largest digit found in {right.mean():.1%} of the held-out clips"
    print(f"{found}, after {time.time() - start:.0f} seconds.")
    wrong = np.flatnonzero(~right)[:3]
    chosen = [*np.flatnonzero(right)[: 12 - len(wrong)], *wrong]
    clips = [(frames[i], digits[i], read[i], largest[i]) for i in chosen]
    draw(picture, clips, found)
    print(f"Twelve of the clips are drawn in {picture}.")


if __name__ == "__main__":
    main()

"""Shows where in each frame of a clip a model sees the digit that it reads.

A digit drifts over frames of noise and fragments of other digits.
`TimeDistributed` applies a small CNN to each frame, a GRU reads the clip, and
Grad-CAM (Selvaraju et al., 2017) finds the places that the answer comes from:
the wrapped CNN is split after its last convolution, and each part is wrapped
again.

    pip install keras_td jax scikit-learn matplotlib
    python explain_clips.py --picture cams.png

Set `KERAS_BACKEND` to "torch" or "tensorflow" to run it on another backend.
"""

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's chatter

import keras
import numpy as np
from keras import layers
from keras import ops
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import keras_td

TIME, SIZE, SHOWN = 6, 32, 4
PAPER, INK = "#faf5e9", "#1d2438"


def make_clips(rng, count):
    """Frames `(count, time, 32, 32, 1)` and the digit that drifts over them."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    picked = rng.integers(len(images), size=count)
    clips = 0.25 * rng.random((count, TIME, SIZE, SIZE))
    for clip, image in zip(clips, images[picked], strict=True):
        start, stop = rng.integers(0, SIZE - 12, size=(2, 2))
        path = np.linspace(start, stop, TIME).round().astype(int)
        for frame, (y, x) in zip(clip, path, strict=True):
            add_fragments(rng, frame, images)
            # Of the 16 pixels of an image twice as large, the middle
            large = np.kron(image, np.ones((2, 2)))[2:14, 2:14]
            place = frame[y : y + 12, x : x + 12]
            place[:] = np.maximum(0.2 * place, large)
    return clips[..., None].astype("float32"), labels[picked]


def add_fragments(rng, frame, images):
    """Puts pieces of four other digits anywhere."""
    for y, x in rng.integers(0, SIZE - 4, size=(4, 2)):
        image = images[rng.integers(len(images))]
        frame[y : y + 4, x : x + 4] = image[2:6, 2:6]


def make_model():
    conv = {"padding": "same", "activation": "relu"}
    cnn = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 1)),
            layers.Conv2D(16, 5, strides=2, **conv),
            layers.Conv2D(32, 3, **conv),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, name="maps", **conv),
            layers.GlobalMaxPooling2D(),
        ]
    )
    clip = keras.Input((TIME, SIZE, SIZE, 1))
    frames = keras_td.TimeDistributed(cnn, name="frames")(clip)
    return keras.Model(clip, layers.Dense(10)(layers.GRU(64)(frames)))


def gradients(function, x):
    """The gradients of a number with respect to what it is computed from."""
    match keras.backend.backend():
        case "jax":
            import jax

            return jax.grad(function)(x)
        case "tensorflow":
            import tensorflow as tf

            with tf.GradientTape() as tape:
                tape.watch(x)
                y = function(x)
            return tape.gradient(y, x)
        case "torch":
            import torch

            x = x.detach().requires_grad_()
            return torch.autograd.grad(function(x), x)[0]


def grad_cam(model, clips, answers):
    """Where answers come from, `(clips, time, height, width)`."""
    td = model.get_layer("frames")
    maps = td.layer.get_layer("maps").output
    before = keras_td.TimeDistributed(keras.Model(td.layer.inputs[0], maps))
    after = keras_td.TimeDistributed(keras.Model(maps, td.layer.outputs[0]))
    rest = keras.Model(td.output, model.output)
    chosen = ops.one_hot(answers, 10)

    def score(found):
        return ops.sum(chosen * rest(after(found)))

    found = before(clips)
    weights = ops.mean(gradients(score, found), axis=(2, 3), keepdims=True)
    heat = ops.relu(ops.sum(weights * found, axis=-1))
    return ops.convert_to_numpy(heat)


def draw(picture, clips, heats, answers):
    """Draws each clip, and what is found in it, one under the other."""
    fig = Figure(
        figsize=(8, 2.7 * SHOWN), facecolor=PAPER, layout="constrained"
    )
    for part, frames, heat, answer in zip(
        fig.subfigures(SHOWN, 1).flat, clips, heats, answers, strict=True
    ):
        part.set_facecolor(PAPER)
        part.suptitle(f"Answer: {answer}", color=INK, size=11)
        plain, seen = part.subplots(2, TIME)
        shape = {"cmap": "gray_r", "extent": (0, SIZE, SIZE, 0)}
        plain[0].set_ylabel("frames", color=INK)
        seen[0].set_ylabel("Grad-CAM", color=INK)
        for t in range(TIME):
            for ax in plain[t], seen[t]:
                ax.imshow(frames[t, ..., 0], vmin=0, vmax=1, **shape)
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
            seen[t].imshow(
                heat[t],
                cmap="autumn_r",
                alpha=np.sqrt(heat[t] / heat.max()) * 0.8,
                extent=shape["extent"],
                interpolation="bilinear",
            )
    fig.savefig(picture, dpi=100)


def main():
    """Trains a reader, and draws what it looks at."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", default="cams.png", help="where to save")
    picture = parser.parse_args().picture
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = make_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    model.fit(*make_clips(rng, 3000), batch_size=16, epochs=6)
    clips, digits = make_clips(rng, 200)
    answers = model.predict(clips, verbose=0).argmax(-1)
    right = answers == digits
    print(f"Reads {right.mean():.0%} of the digits in clips it has not seen.")
    chosen = np.flatnonzero(right)[:SHOWN]
    heats = grad_cam(model, clips[chosen], answers[chosen])
    draw(picture, clips[chosen], heats, answers[chosen])
    print(f"Where it looks is drawn in {picture}.")


if __name__ == "__main__":
    main()

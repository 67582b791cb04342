"""Shows the mask after each layer of a model that reads documents.

Words make sentences, and sentences make documents. `Embedding` makes a mask of
the words. Each `TimeDistributed` passes on the mask that the next layer needs.

    pip install keras_td jax matplotlib
    python show_masks.py --picture masks.png

Set `KERAS_BACKEND` to "torch" or "tensorflow" to run it on another backend.
"""

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's chatter

import keras
import numpy as np
from keras import layers
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import keras_td

DOCUMENTS = [
    ["it rained all day", "we stayed in"],
    ["dogs bark", "cats do not", "birds sing at dawn"],
]
PAPER, INK, FAINT, VALID = "#faf5e9", "#1d2438", "#cfc5b0", "#bfe0c9"


class GetMask(keras.Layer):
    """Returns the mask of its inputs."""

    supports_masking = True

    def call(self, inputs, mask=None):
        return mask


def pad(documents):
    """Words `(documents, sentences, words)`, "" where there is none."""
    texts = [[sentence.split() for sentence in text] for text in documents]
    sentences = max(map(len, texts))
    words = max(len(sentence) for text in texts for sentence in text)
    padded = np.full((len(texts), sentences, words), "", "U8")
    for i, text in enumerate(texts):
        for j, sentence in enumerate(text):
            padded[i, j, : len(sentence)] = sentence
    return padded


def masks_of(words):
    """What each layer passes on as its mask, by the code of the layer."""
    known, ids = np.unique(words, return_inverse=True)  # "" is 0
    ids = ids.reshape(words.shape).astype("int32")
    embed = layers.Embedding(len(known), 8, mask_zero=True)
    read_words, read_sentences = layers.LSTM(8), layers.LSTM(8)
    x = keras_td.TimeDistributed(embed)(ids)
    masks = {"TimeDistributed(Embedding)": GetMask()(x)}
    x = keras_td.TimeDistributed(read_words)(x)
    masks["TimeDistributed(LSTM)"] = GetMask()(x)
    x = read_sentences(x)
    assert GetMask()(x) is None
    return {k: keras.ops.convert_to_numpy(m) for k, m in masks.items()}


def draw_cells(ax, words, mask):
    """Draws words as cells: green where valid, hatched where masked."""
    for (row, column), word in np.ndenumerate(words):
        style = {"fc": "white", "ec": INK, "lw": 0.8}
        if mask is not None:
            style["fc"] = VALID
            if not mask[row, column]:
                style = {"fc": "none", "ec": FAINT, "lw": 0.5, "hatch": "////"}
        ax.add_patch(Rectangle((column, -row), 0.94, 0.84, **style))
        ax.text(
            column + 0.47, 0.42 - row, word, color=INK, ha="center", va="center"
        )
    rows, columns = words.shape
    ax.set(xlim=(-0.05, columns), ylim=(0.95 - rows, 1))
    ax.axis("off")


def draw(picture, words, masks):
    """Draws the documents one under the other, and the layers in columns."""
    of_words, of_sentences = masks.values()
    sentences = np.array([[[" ".join(s)] for s in text] for text in words])
    whole = np.array([[[f"document {i}"]] for i in range(1, 1 + len(words))])
    none = [None] * len(words)
    columns = {
        "inputs\n(batch, sentences, words)": (words, none),
        "mask after TimeDistributed(Embedding)\n(batch, sentences, words)": (
            words,
            of_words,
        ),
        "after TimeDistributed(LSTM)\n(batch, sentences)": (
            sentences,
            of_sentences[..., None],
        ),
        "after LSTM\nno mask": (whole, none),
    }
    fig = Figure(figsize=(14, 3.6), facecolor=PAPER, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    grid = fig.subplots(
        len(words), len(columns), width_ratios=(4, 4, 2.2, 1.3), squeeze=False
    )
    for axes, (title, (cells, valid)) in zip(
        grid.T, columns.items(), strict=True
    ):
        axes[0].set_title(title, color=INK, size=11)
        for ax, of_document, mask in zip(axes, cells, valid, strict=True):
            draw_cells(ax, of_document, mask)
    fig.savefig(picture, dpi=100)


def main():
    """Reads two documents, and draws their masks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", default="masks.png", help="where to save")
    picture = parser.parse_args().picture
    words = pad(DOCUMENTS)
    draw(picture, words, masks_of(words))
    print(f"The masks are drawn in {picture}.")


if __name__ == "__main__":
    main()

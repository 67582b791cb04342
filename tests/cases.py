"""The table of wrapped layers that the tests run on."""

import itertools

import keras
import pytest
from keras import layers

import custom
from backends import QUICK
from case import BACKEND
from case import Case
from keras_td import TimeDistributed

VECTOR = (5,)
SEQUENCE = (5, 4)
IMAGE = (8, 8, 3)
VOLUME = (4, 4, 4, 2)
# Keras implements these in TensorFlow.
TENSORFLOW = {"only": ("tensorflow",)}
WORDS = {"values": "text", "differentiable": False, **TENSORFLOW}
IDS = {"values": "ids", "differentiable": False}
VIDEO = (2, 6, 6, 3)


def image(name, config=None, **fields):
    fields = {"random": True, "differentiable": False, **fields}
    return Case(name, IMAGE, config or {}, values="image", **fields)


LAYERS = [
    # Core
    Case("Dense", VECTOR, {"units": 4}),
    Case("Dense, on images", IMAGE, {"units": 4}),
    Case(
        "Dense, regularized", VECTOR, {"units": 4, "kernel_regularizer": "l2"}
    ),
    Case(
        "EinsumDense",
        SEQUENCE,
        {"equation": "abc,cd->abd", "output_shape": (5, 6)},
    ),
    Case("TernaryDense", VECTOR, {"units": 4}),
    Case("Embedding", VECTOR, {"input_dim": 9, "output_dim": 4}, values="ids"),
    Case(
        "Embedding, of (batch, time)",
        (),
        {"input_dim": 9, "output_dim": 4},
        values="ids",
    ),
    Case(
        "Embedding, masked",
        VECTOR,
        {"input_dim": 9, "output_dim": 4, "mask_zero": True},
        values="ids",
    ),
    Case(
        "ReversibleEmbedding",
        VECTOR,
        {"input_dim": 9, "output_dim": 4},
        values="ids",
    ),
    Case("Identity", VECTOR),
    Case("Lambda", VECTOR, {"function": custom.double}),
    Case("Masking", SEQUENCE),
    # Activations
    Case("Activation", VECTOR, {"activation": "tanh"}),
    Case("Activation, on (batch, time)", (), {"activation": "tanh"}),
    Case("ELU", VECTOR),
    Case("LeakyReLU", VECTOR),
    Case("PReLU", VECTOR),
    Case("ReLU", VECTOR),
    Case("Softmax", VECTOR),
    # Convolutions
    Case("Conv1D", (8, 3), {"filters": 4, "kernel_size": 3}),
    Case("Conv2D", IMAGE, {"filters": 4, "kernel_size": 3}),
    Case("Conv3D", VOLUME, {"filters": 3, "kernel_size": 2}),
    Case("Conv1DTranspose", (8, 3), {"filters": 4, "kernel_size": 3}),
    Case("Conv2DTranspose", IMAGE, {"filters": 4, "kernel_size": 3}),
    Case("Conv3DTranspose", VOLUME, {"filters": 3, "kernel_size": 2}),
    Case("DepthwiseConv1D", (8, 3), {"kernel_size": 3}),
    Case("DepthwiseConv2D", IMAGE, {"kernel_size": 3}),
    Case("SeparableConv1D", (8, 3), {"filters": 4, "kernel_size": 3}),
    Case("SeparableConv2D", IMAGE, {"filters": 4, "kernel_size": 3}),
    # Pooling
    *(
        Case(f"{kind}Pooling{n}D", shape, config)
        for kind, config in (
            ("Max", {"pool_size": 2}),
            ("Average", {"pool_size": 2}),
            ("GlobalMax", {}),
            ("GlobalAverage", {}),
        )
        for n, shape in enumerate(((8, 3), IMAGE, VOLUME), 1)
    ),
    *(
        Case(f"Adaptive{kind}Pooling{n}D", shape, {"output_size": 2})
        for kind in ("Max", "Average")
        for n, shape in enumerate(((8, 3), IMAGE, VOLUME), 1)
    ),
    # Shapes
    Case("Flatten", (3, 4)),
    Case("Flatten, of (batch, time)", ()),
    Case("Reshape", (6,), {"target_shape": (2, -1)}),
    Case("Permute", (3, 4), {"dims": (2, 1)}),
    Case("RepeatVector", VECTOR, {"n": 3}),
    *(
        Case(f"{kind}{n}D", shape)
        for kind in ("Cropping", "UpSampling", "ZeroPadding")
        for n, shape in enumerate(((8, 3), IMAGE, VOLUME), 1)
    ),
    # Merging
    Case("Add", (VECTOR, VECTOR)),
    Case("Average", [VECTOR, VECTOR]),
    Case("Concatenate", [VECTOR, (3,)]),
    Case("Dot", [VECTOR, VECTOR], {"axes": 1}),
    Case("Maximum", [VECTOR, VECTOR, VECTOR]),
    Case("Minimum", [VECTOR, VECTOR]),
    Case("Multiply", [VECTOR, VECTOR]),
    Case("Subtract", [VECTOR, VECTOR]),
    # Normalization
    Case("BatchNormalization", (6, 6, 3), mixes_samples="in training"),
    Case("GroupNormalization", IMAGE, {"groups": 3}),
    Case("LayerNormalization", VECTOR),
    Case("RMSNormalization", VECTOR),
    Case("UnitNormalization", VECTOR),
    # It updates its vectors with each call in training.
    Case(
        "SpectralNormalization",
        VECTOR,
        make_own=lambda: layers.SpectralNormalization(layers.Dense(4)),
        mixes_samples="in training",
    ),
    # Regularization
    Case("ActivityRegularization", VECTOR, {"l2": 0.1}),
    Case("AlphaDropout", VECTOR, {"rate": 0.5}, random=True),
    Case("Dropout", VECTOR, {"rate": 0.5}, random=True),
    Case("GaussianDropout", VECTOR, {"rate": 0.5}, random=True),
    Case("GaussianNoise", VECTOR, {"stddev": 0.5}, random=True),
    Case("SpatialDropout1D", (8, 3), {"rate": 0.5}, random=True),
    Case("SpatialDropout2D", IMAGE, {"rate": 0.5}, random=True),
    Case("SpatialDropout3D", VOLUME, {"rate": 0.5}, random=True),
    # Recurrent layers
    Case("SimpleRNN", SEQUENCE, {"units": 4}),
    Case("LSTM", SEQUENCE, {"units": 4}),
    Case("LSTM, backwards", SEQUENCE, {"units": 4, "go_backwards": True}),
    Case("LSTM, unrolled", SEQUENCE, {"units": 4, "unroll": True}),
    Case(
        "LSTM, of dropout",
        SEQUENCE,
        {"units": 4, "dropout": 0.5, "recurrent_dropout": 0.5},
        random=True,
    ),
    Case(
        "LSTM, with states",
        SEQUENCE,
        {"units": 4, "return_sequences": True, "return_state": True},
    ),
    Case(
        "LSTM, from states",
        SEQUENCE,
        {"units": 4},
        kwargs={"initial_state": [(4,), (4,)]},
    ),
    Case("GRU", SEQUENCE, {"units": 4, "return_sequences": True}),
    Case(
        "GRU, stateful",
        SEQUENCE,
        {"units": 4, "stateful": True},
        mixes_samples="always",
        static_batch=True,
    ),
    Case("RNN", SEQUENCE, make_own=lambda: layers.RNN(layers.GRUCell(4))),
    Case(
        "RNN, of stacked cells",
        SEQUENCE,
        make_own=lambda: layers.RNN(
            [layers.LSTMCell(3), layers.GRUCell(4)], return_state=True
        ),
    ),
    Case("SimpleRNNCell", VECTOR, {"units": 4}, args=((4,),)),
    Case("GRUCell", VECTOR, {"units": 4}, args=((4,),)),
    Case("LSTMCell", VECTOR, {"units": 4}, args=([(4,), (4,)],)),
    Case(
        "StackedRNNCells",
        VECTOR,
        make_own=lambda: layers.StackedRNNCells(
            [layers.LSTMCell(3), layers.GRUCell(4)]
        ),
        args=([[(3,), (3,)], [(4,)]],),
    ),
    Case(
        "Bidirectional",
        SEQUENCE,
        make_own=lambda: layers.Bidirectional(layers.GRU(4)),
    ),
    Case(
        "Bidirectional, with states",
        SEQUENCE,
        make_own=lambda: layers.Bidirectional(
            layers.LSTM(3, return_sequences=True, return_state=True),
            merge_mode="sum",
        ),
    ),
    Case("ConvLSTM1D", (2, 6, 3), {"filters": 2, "kernel_size": 3}),
    Case("ConvLSTM2D", VIDEO, {"filters": 2, "kernel_size": 3}),
    Case("ConvLSTM3D", (2, 4, 4, 4, 1), {"filters": 2, "kernel_size": 3}),
    # Attention
    Case("Attention", [SEQUENCE, (6, 4)]),
    Case(
        "Attention, with a key",
        [SEQUENCE, (6, 3), (6, 4)],
        {"use_scale": True, "score_mode": "concat"},
    ),
    Case(
        "Attention, with scores",
        [SEQUENCE, (6, 4)],
        options={"return_attention_scores": True, "use_causal_mask": True},
    ),
    Case("AdditiveAttention", [SEQUENCE, (6, 4)]),
    Case(
        "MultiHeadAttention",
        SEQUENCE,
        {"num_heads": 2, "key_dim": 4},
        args=((6, 3),),
    ),
    Case(
        "MultiHeadAttention, by name",
        SEQUENCE,
        {"num_heads": 2, "key_dim": 4, "dropout": 0.5},
        kwargs={"value": (5, 3)},
        options={"use_causal_mask": True, "return_attention_scores": True},
        random=True,
    ),
    Case(
        "GroupQueryAttention",
        SEQUENCE,
        {"head_dim": 3, "num_query_heads": 4, "num_key_value_heads": 2},
        args=((6, 4), (6, 4)),
    ),
    # Preprocessing
    Case("CategoryEncoding", VECTOR, {"num_tokens": 9}, **IDS),
    Case(
        "CategoryEncoding, of counts",
        VECTOR,
        {"num_tokens": 9, "output_mode": "count"},
        **IDS,
    ),
    Case(
        "Discretization",
        VECTOR,
        {"bin_boundaries": [-0.5, 0.5]},
        differentiable=False,
    ),
    Case("HashedCrossing", [(), ()], {"num_bins": 5}, **IDS, **TENSORFLOW),
    Case("Hashing", VECTOR, {"num_bins": 5}, **IDS, **TENSORFLOW),
    Case(
        "IntegerLookup", VECTOR, {"vocabulary": [1, 2, 3]}, **IDS, **TENSORFLOW
    ),
    Case("StringLookup", VECTOR, {"vocabulary": ["a", "b"]}, **WORDS),
    Case(
        "TextVectorization",
        (),
        {"vocabulary": ["a", "b"], "output_sequence_length": 3},
        **WORDS,
    ),
    Case(
        "MelSpectrogram",
        (64,),
        {"fft_length": 32, "sequence_stride": 16, "num_mel_bins": 8},
    ),
    Case("STFTSpectrogram", (64, 1), {"frame_length": 32}),
    Case("Normalization", VECTOR, {"mean": [1.0] * 5, "variance": [4.0] * 5}),
    Case("Rescaling", IMAGE, {"scale": 1 / 255}),
    Case("CenterCrop", IMAGE, {"height": 5, "width": 6}),
    Case("Resizing", IMAGE, {"height": 5, "width": 6}),
    # Augmentation
    # It mixes the images of a batch with the same weights.
    image("AugMix", mixes_samples="in training"),
    image("AutoContrast", random=False),
    image(
        "ContrastLimitedAdaptiveHistogramEqualization",
        {"tile_grid_size": (2, 2)},
        random=False,
    ),
    image("CutMix", mixes_samples="in training"),
    # It takes one histogram of the whole batch.
    image("Equalization", random=False, mixes_samples="always"),
    Case(
        "MaxNumBoundingBoxes",
        {"images": IMAGE, "bounding_boxes": {"boxes": (4, 4), "labels": (4,)}},
        {"max_number": 3, "bounding_box_format": "xyxy"},
        differentiable=False,
    ),
    image("Mosaic", mixes_samples="in training"),
    image("MixUp", mixes_samples="in training"),
    Case(
        "Pipeline",
        IMAGE,
        make_own=lambda: layers.Pipeline(
            [layers.Rescaling(1 / 255), layers.CenterCrop(5, 6)]
        ),
    ),
    # It applies the same operations to all images of a batch.
    image("RandAugment", mixes_samples="in training"),
    image("RandomBrightness", {"factor": 0.5}),
    image("RandomColorDegeneration", {"factor": 0.5}),
    image("RandomColorJitter", {"brightness_factor": 0.5}),
    image("RandomContrast", {"factor": 0.5}),
    # It crops a whole batch at one place.
    image("RandomCrop", {"height": 5, "width": 6}, mixes_samples="in training"),
    image("RandomElasticTransform"),
    image("RandomErasing", {"scale": 0.5}),
    image("RandomFlip"),
    # It blurs all images of a batch in the same way.
    image("RandomGaussianBlur", {"sigma": 1.0}, mixes_samples="in training"),
    image("RandomGrayscale"),
    image("RandomHue", {"factor": 0.5}),
    image("RandomInvert", {"factor": 0.5}),
    image("RandomPerspective"),
    image("RandomPosterization", {"factor": 4}),
    image("RandomRotation", {"factor": 0.5}),
    image("RandomSaturation", {"factor": 0.5}),
    image("RandomSharpness", {"factor": 0.5}),
    image("RandomShear", {"x_factor": 0.5, "y_factor": 0.5}),
    image("RandomTranslation", {"height_factor": 0.5, "width_factor": 0.5}),
    image("RandomZoom", {"height_factor": 0.5}),
    image("Solarization", {"addition_factor": 0.5, "threshold_factor": 0.5}),
    # Other frameworks
    Case("JaxLayer", VECTOR, make_own=custom.jax_layer, only=("jax",)),
    Case(
        "TorchModuleWrapper",
        VECTOR,
        make_own=custom.torch_module,
        only=("torch",),
    ),
    Case("TFSMLayer", VECTOR, make_own=custom.tfsm_layer, **TENSORFLOW),
    # Itself
    Case(
        "TimeDistributed",
        (4, 5),
        make_own=lambda: keras.layers.TimeDistributed(layers.Dense(4)),
    ),
]

COMPOSITES = [
    Case("Sequential", VECTOR, make_own=custom.dense_stack),
    Case(
        "Sequential CNN",
        IMAGE,
        make_own=custom.cnn,
        mixes_samples="in training",
    ),
    Case(
        "Sequential encoder of sentences",
        VECTOR,
        make_own=custom.sentence_encoder,
        values="ids",
    ),
    Case(
        "Sequential augmentation",
        IMAGE,
        make_own=custom.augmentation,
        values="image",
        random=True,
        differentiable=False,
    ),
    Case(
        "functional model of dicts",
        {"image": IMAGE, "vector": VECTOR},
        make_own=custom.two_branches,
    ),
    Case(
        "functional model with a shared layer",
        [VECTOR, VECTOR],
        make_own=custom.siamese,
    ),
    Case("subclassed model", IMAGE, make_own=custom.Subclassed),
    Case(
        "TimeDistributed in itself",
        SEQUENCE,
        make_own=lambda: TimeDistributed(custom.dense_stack()),
    ),
    Case("custom with each method", SEQUENCE, make_own=custom.Full),
    Case("custom without build", VECTOR, make_own=custom.NoBuild),
    Case(
        "custom with a build of nothing",
        VECTOR,
        make_own=custom.BuildOfNothing,
    ),
    Case(
        "custom without compute_output_shape", VECTOR, make_own=custom.NoShape
    ),
    Case("custom without either", VECTOR, make_own=custom.Neither),
    Case("custom without compute_mask", SEQUENCE, make_own=custom.NoMask),
    Case(
        "custom without get_config",
        VECTOR,
        make_own=lambda: custom.NoConfig(2.0),
    ),
    Case("custom with compute_output_spec", VECTOR, make_own=custom.OwnSpec),
    Case("custom argmax", VECTOR, make_own=custom.ArgMax, differentiable=False),
    Case("custom nested outputs", VECTOR, make_own=custom.Moments),
    Case("custom two inputs", VECTOR, make_own=custom.TwoInputs, args=((3,),)),
    Case(
        "custom two inputs by name",
        VECTOR,
        make_own=custom.TwoInputs,
        kwargs={"b": (3,)},
        options={"scale": 2.0},
    ),
]


def application(name, **config):
    def make():
        return getattr(keras.applications, name)(
            input_shape=(32, 32, 3), weights=None, classes=4, **config
        )

    return Case(
        name,
        (32, 32, 3),
        make_own=make,
        values="image",
        mixes_samples="in training",
        slow=True,
    )


APPLICATIONS = [
    application("MobileNetV2", alpha=0.35),
    application("MobileNetV3Small", alpha=0.35),
    application("EfficientNetV2B0"),
    application("ConvNeXtTiny"),
    application("ResNet50V2"),
]

# The classes of `keras.layers` that are not cases.
EXCLUDED = {
    "FlaxLayer": "it is a JaxLayer of a Flax module",
    "InputLayer": "it takes no tensor",
    "Layer": "abstract: it has no `call`",
    "Wrapper": "abstract: it has no `call`",
}


def has(case):
    """Whether this Keras has the layer of a case, on this backend."""
    known = case.make_own or hasattr(layers, case.class_name)
    return known and (not case.only or BACKEND in case.only)


ALL_CASES = [*LAYERS, *COMPOSITES, *APPLICATIONS]
CASES = [case for case in ALL_CASES if has(case)]
BY_NAME = {case.name: case for case in CASES}


def each(cases):
    return pytest.mark.parametrize("case", [param(c) for c in cases])


def one_in(number, cases, start=0):
    """One in `number` cases, or all on quick backends."""
    return cases if QUICK else cases[start::number]


def each_in_turn(names, ways, cases):
    """Each case in one of the ways, in turn: a `pytest.param` of `names`."""
    turns = zip(cases, itertools.cycle(ways))
    return pytest.mark.parametrize(
        f"case,{names}",
        [param(c, *way.values, marks=way.marks) for c, way in turns],
    )


def param(case, *values, marks=()):
    names = "-".join([case.name, *map(str, values)])
    slow = [pytest.mark.slow] * case.slow
    return pytest.param(case, *values, id=names, marks=[*marks, *slow])


each_case = each(CASES)

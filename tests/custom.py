"""Custom layers and models for the table of cases."""

import functools
import tempfile

import keras
from keras import layers
from keras import ops


class Full(keras.Layer):
    """A layer with each method of the protocol."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.supports_masking = True

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units))

    def call(self, inputs, training=None, mask=None):
        return ops.matmul(inputs, self.kernel)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def compute_mask(self, inputs, previous_mask):
        return previous_mask

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class NoBuild(keras.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, inputs):
        return self.dense(inputs)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 4)


class BuildOfNothing(keras.Layer):
    def build(self):
        self.scale = self.add_weight(shape=())

    def call(self, inputs):
        return inputs * self.scale


class NoShape(keras.Layer):
    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 4))

    def call(self, inputs):
        return ops.matmul(inputs, self.kernel)


class Neither(keras.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, inputs):
        return self.dense(inputs)


class NoMask(Full):
    compute_mask = keras.Layer.compute_mask


class NoConfig(Full):
    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    get_config = keras.Layer.get_config


class OwnSpec(NoShape):
    def compute_output_spec(self, inputs):
        return keras.KerasTensor((*inputs.shape[:-1], 4), inputs.dtype)


class ArgMax(keras.Layer):
    def call(self, inputs):
        return ops.argmax(inputs, axis=-1)


class Moments(keras.Layer):
    def call(self, inputs):
        mean = ops.mean(inputs, axis=-1)
        return {"mean": mean, "rest": (inputs - mean[:, None], [mean * 2])}


class TwoInputs(keras.Layer):
    def build(self, a_shape, b_shape):
        self.a_kernel = self.add_weight(shape=(a_shape[-1], 4))
        self.b_kernel = self.add_weight(shape=(b_shape[-1], 4))

    def call(self, a, b, scale=1.0):
        a = ops.matmul(a, self.a_kernel)
        return (a + ops.matmul(b, self.b_kernel)) * scale


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(4, 3, activation="relu")
        self.pool = layers.GlobalAveragePooling2D()

    def call(self, inputs):
        return self.pool(self.conv(inputs))


CUSTOM = {
    cls.__name__: cls
    for cls in (
        Full,
        NoBuild,
        BuildOfNothing,
        NoShape,
        Neither,
        NoMask,
        NoConfig,
        OwnSpec,
        ArgMax,
        Moments,
        TwoInputs,
        Subclassed,
    )
}


@keras.saving.register_keras_serializable(package="tests")
def double(x):
    return x * 2


def dense_stack():
    return keras.Sequential([layers.Dense(6, "relu"), layers.Dense(4)])


def cnn():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )


def sentence_encoder():
    return keras.Sequential(
        [layers.Embedding(9, 4, mask_zero=True), layers.LSTM(3)]
    )


def two_branches():
    image = keras.Input((8, 8, 3), name="image")
    vector = keras.Input((5,), name="vector")
    x = layers.GlobalMaxPooling2D()(layers.Conv2D(4, 3)(image))
    x = layers.Concatenate()([x, vector])
    outputs = {"label": layers.Dense(3)(x), "score": layers.Dense(1)(x)}
    return keras.Model({"image": image, "vector": vector}, outputs)


def siamese():
    """A model that calls one layer on both of its inputs."""
    a, b = keras.Input((5,)), keras.Input((5,))
    encode = layers.Dense(4, "relu")
    return keras.Model([a, b], [encode(a), encode(b) - encode(a)])


def augmentation():
    return keras.Sequential(
        [layers.RandomFlip(), layers.RandomTranslation(0.2, 0.2)]
    )


def jax_layer():
    return layers.JaxLayer(_affine, _affine_params)


def _affine(params, inputs):
    return inputs @ params["kernel"]


def _affine_params(rng, inputs):
    import jax

    return {"kernel": jax.random.normal(rng, (inputs.shape[-1], 4))}


def torch_module():
    import torch

    return layers.TorchModuleWrapper(
        torch.nn.Linear(5, 4), output_shape=(None, 4)
    )


def tfsm_layer():
    return layers.TFSMLayer(_saved_model())


@functools.cache
def _saved_model():
    folder = tempfile.mkdtemp()
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4)])
    model.export(folder, verbose=False)
    return folder


class Attention(keras.Layer):
    """As in public code: it ignores its mask, and passes it on by mistake."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True
        self.score = layers.Dense(1)

    def build(self, input_shape):
        self.score.build(input_shape)

    def call(self, inputs):
        weights = ops.softmax(self.score(inputs), axis=1)
        return ops.sum(weights * inputs, axis=1)


class MaskedAttention(Attention):
    def call(self, inputs, mask=None):
        scores = self.score(inputs)
        if mask is not None:
            large = ops.cast(ops.logical_not(mask), "float32") * -1e9
            scores = scores + large[..., None]
        return ops.sum(ops.softmax(scores, axis=1) * inputs, axis=1)


def norm():
    return layers.BatchNormalization(momentum=0.5)


class Rows(keras.Layer):
    """Records how many samples each of its calls has."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def call(self, inputs):
        self.rows.append(inputs.shape[0])
        return inputs * 2

    def compute_output_shape(self, input_shape):
        return input_shape


class Adds(keras.Layer):
    """Adds in each call the losses that a function returns for its inputs."""

    def __init__(self, losses, **kwargs):
        super().__init__(**kwargs)
        self.losses_of_rows = losses

    def call(self, inputs):
        for loss in self.losses_of_rows(inputs):
            self.add_loss(loss)
        return inputs

"""`BatchNormalization` leaves padding out of its statistics."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from backends import needs
from custom import norm
from keras_td import TimeDistributed
from modes import MODES
from modes import each_mode
from reference import as_numpy
from reference import assert_close
from reference import normal


@needs("training")
@each_mode
def test_a_batch_of_padding_alone_changes_no_statistics(option, rng):
    normalization = norm()
    td = TimeDistributed(normalization, **MODES[option])
    td(normal(rng, 2, 4, 5), training=True)
    before = normalization.get_weights()

    td(normal(rng, 2, 4, 5), mask=np.zeros((2, 4), bool), training=True)

    assert_close(normalization.get_weights(), before)


@needs("training")
def test_a_wrapper_inside_of_another_knows_the_padding(rng):
    # (batch, documents, sentences, words)
    x, mask = normal(rng, 2, 3, 4, 5), np.array([[1, 1, 0], [1, 0, 0]], bool)
    of_documents, of_valid = norm(), norm()
    td = TimeDistributed(keras.Sequential([TimeDistributed(of_documents)]))

    for _ in range(2):
        td(x, mask=mask, training=True)
        of_valid(x[mask], training=True)

    assert_close(of_documents.get_weights(), of_valid.get_weights())


def test_outside_of_the_wrapper_a_layer_does_what_it_did(rng):
    x, mask = normal(rng, 4, 3), np.array([True, False, True, True])
    normalization, twin = norm(), norm()
    for layer in normalization, twin:
        layer.build((None, 3))

    TimeDistributed(normalization)(x[None], mask=mask[None], training=False)

    for options in {"training": True}, {"training": True, "mask": mask}, {}:
        assert_close(normalization(x, **options), twin(x, **options))
    assert_close(normalization.get_weights(), twin.get_weights())


class Prototypes(keras.Layer):
    """Normalizes its own table, which has as many rows as some batches."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.norm = rows, layers.BatchNormalization(momentum=0.0)

    def build(self, input_shape):
        self.norm.build((None, input_shape[-1]))
        self.table = self.add_weight(
            shape=(self.rows, input_shape[-1]), initializer="normal"
        )

    def call(self, inputs, training=None):
        table = self.norm(self.table, training=training)
        return ops.matmul(inputs, ops.transpose(table))


@needs("training")
@pytest.mark.parametrize("rows", [7, 12])
@pytest.mark.parametrize("how", ["eager", "fit"])
def test_statistics_of_other_things_than_samples_know_no_padding(
    how, rows, rng
):
    layer, x = Prototypes(rows), normal(rng, 2, 3, 5)
    mask = np.array([[1, 1, 0], [1, 0, 0]], bool)
    td = TimeDistributed(layer)
    if how == "eager":
        td(x, mask=mask, training=True)
        table = as_numpy(layer.table)
    else:
        inputs = keras.Input((None, 5)), keras.Input((None,), dtype="bool")
        model = keras.Model(inputs, td(inputs[0], mask=inputs[1]))
        model.compile("sgd", "mse")
        table = as_numpy(layer.table)
        model.fit([x, mask], np.ones((2, 3, rows)), verbose=0)

    np.testing.assert_allclose(
        as_numpy(layer.norm.moving_mean), table.mean(axis=0), atol=1e-6
    )


class CountingNorm(layers.BatchNormalization):
    """Has a variable that Keras casts in mixed precision."""

    def build(self, input_shape):
        super().build(input_shape)
        self.count = self.add_weight(shape=(), trainable=False)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_state_next_to_statistics_loses_no_digit(policy, rng):
    layer, x = CountingNorm(dtype=policy), normal(rng, 2, 3, 5)
    td = TimeDistributed(layer)
    td(x)
    layer.count.assign(4097)

    td(x, mask=np.array([[1, 1, 0], [1, 0, 0]], bool), training=True)

    assert as_numpy(layer.count) == 4097


class NormWithoutMask(layers.BatchNormalization):
    def call(self, inputs, training=None):
        return super().call(inputs, training=training)


class ConditionalNorm(layers.BatchNormalization):
    def call(self, inputs, condition=None, training=None, mask=None):
        return super().call(inputs, training=training, mask=mask)


@pytest.mark.parametrize("make", [NormWithoutMask, ConditionalNorm])
def test_a_normalization_may_have_arguments_of_its_own(make, rng):
    layer, x = make(), normal(rng, 2, 3, 5)
    mask = np.array([[1, 1, 0], [1, 0, 0]], bool)
    td = TimeDistributed(layer)

    for _ in range(2):
        td(x, mask=mask, training=True)

    mean = x[mask].mean(axis=0) if make is ConditionalNorm else x.mean((0, 1))
    after = as_numpy(layer.moving_mean)
    assert np.sign(after).tolist() == np.sign(mean).tolist()
    if make is ConditionalNorm:
        td(x, condition=x, mask=mask, training=True)
        layer(ops.array(x[0]), ops.array(x[0]), training=True)


class NormOfOnes(layers.Layer):
    """Recomputes its normalization."""

    def __init__(self):
        super().__init__()
        self.norm = norm()

    def build(self, input_shape):
        self.norm.build(input_shape)

    def call(self, inputs, training=None):
        return keras.remat(lambda x: self.norm(x, training=training))(inputs)


@pytest.mark.filterwarnings("ignore:.*time_dist.* does not support masking")
@needs("training")
@needs("remat")
@pytest.mark.parametrize("run_eagerly", [True, False])
@pytest.mark.parametrize(
    "make",
    [lambda: TimeDistributed(norm(), remat=True), NormOfOnes],
    ids=["in a wrapper", "in a layer"],
)
def test_what_is_computed_again_knows_the_padding(make, run_eagerly, rng):
    jax = keras.backend.backend() == "jax"
    if jax and make is NormOfOnes and not run_eagerly:
        pytest.skip(reason="JAX returns no state from what it recomputes")
    x, mask = normal(rng, 2, 3, 4, 5), np.array([[1, 1, 0], [1, 0, 0]], bool)
    y, weights = normal(rng, 2, 3, 4, 5), mask[..., None] * np.ones((2, 3, 4))
    x[~mask] = 9

    def trained(layer):
        inputs = keras.Input((3, 4, 5)), keras.Input((3,), dtype="bool")
        td = TimeDistributed(layer, supports_masking=False)
        model = keras.Model(inputs, td(inputs[0], mask=inputs[1]))
        sgd = keras.optimizers.SGD(1.0)
        model.compile(sgd, "mse", run_eagerly=run_eagerly)
        model.fit([x, mask], y, sample_weight=weights, verbose=0)
        # On some backends, `keras.remat` updates means twice, by hand too.
        return [as_numpy(v) for v in model.trainable_variables]

    assert_close(trained(make()), trained(norm()))

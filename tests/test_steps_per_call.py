"""Several calls in order return what one call returns, and carry the state."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras import tree

from backends import needs
from backends import with_and_without_remat
from case import BACKEND
from case import leaves
from case import one_or_all
from case import with_leaves
from cases import BY_NAME
from cases import CASES
from cases import each
from cases import each_in_turn
from custom import Rows
from keras_td import TimeDistributed
from limits import no_worse_than_plain
from modes import SEVERAL_CALLS as OPTIONS
from modes import TIME
from modes import each_option
from modes import options_named
from modes import param
from reference import as_numpy
from reference import assert_close
from reference import gradients
from reference import mask_of
from reference import normal
from reference import with_mask

MARKS_ON_REQUEST = {
    # PyTorch's compiler takes minutes, and warns of PyTorch's own code.
    "torch": [pytest.mark.slow, pytest.mark.filterwarnings("ignore")],
    "jax": [pytest.mark.skip(reason="JAX compiles everything anyway")],
}
# With several inputs and outputs, masks, integers and dicts.
SOME = [
    BY_NAME[name]
    for name in (
        "Dense",
        "LSTM, from states",
        "MultiHeadAttention",
        "Embedding, masked",
        "functional model of dicts",
        "custom nested outputs",
        "custom argmax",
        "TimeDistributed in itself",
    )
]


# PyTorch warns about the slice of one step, by hand too.
@pytest.mark.filterwarnings("ignore:[\\s\\S]*searchsorted:UserWarning")
@each([c for c in CASES if c.mixes_samples != "always"])
@no_worse_than_plain
def test_calls_on_some_steps_equal_one_call(case, rng):
    args, kwargs = case.arrays(rng)

    # 1 step, and then 2.
    actual = case.wrapped(steps_per_call=2)(*args, training=False, **kwargs)

    expected = case.wrapped()(*args, training=False, **kwargs)
    assert_close(actual, expected)


@pytest.mark.parametrize("time", [TIME, None], ids=["known", "unknown"])
@each_option
@each(SOME)
def test_a_compiled_model_predicts_what_one_call_gives(case, option, time, rng):
    arguments = case.arrays(rng, 2, TIME)
    td = case.wrapped(**OPTIONS[option])
    model = case.model_of(td, arguments, time)

    actual = model.predict_on_batch(one_or_all(leaves(arguments)))

    args, kwargs = arguments
    expected = case.wrapped()(*args, training=False, **kwargs)
    actual = map(ops.convert_to_tensor, tree.flatten(actual))
    assert_close(list(actual), tree.flatten(expected))


@needs("training")
@each_in_turn(
    "option,how",
    [
        param("1 step", "eager"),
        param("1 step", "unknown time"),
        param("3 steps", "compiled"),
        param("3 steps", "on request", marks=MARKS_ON_REQUEST.get(BACKEND, [])),
        param("2 steps, remat", "eager"),
        param("2 steps, remat", "compiled"),
        param("2 steps, remat", "unknown time"),
    ],
    SOME[:5] * 2,
)
def test_fit_does_what_it_does_with_one_call(case, option, how, rng):
    arguments = case.arrays(rng, 2, TIME)
    x = one_or_all(leaves(arguments))
    time = None if how == "unknown time" else TIME

    def fit(**options):
        model = case.model_of(case.wrapped(**options), arguments, time)
        outputs = model(x, training=False)
        y = tree.map_structure(lambda y: np.zeros(y.shape), outputs)
        sgd = keras.optimizers.SGD(0.1)
        jit = True if how == "on request" else "auto"
        model.compile(sgd, "mse", run_eagerly=how == "eager", jit_compile=jit)
        history = model.fit(x, y, batch_size=2, epochs=2, verbose=0)
        return [np.array(history.history["loss"]), *model.get_weights()]

    assert_close(fit(**OPTIONS[option]), fit())


@needs("training")
@each_option
@each(SOME[:3])
def test_the_gradients_are_those_of_one_call(case, option, rng):
    arguments = case.arrays(rng, 2, TIME)
    inputs = [keras.Variable(x) for x in leaves(arguments)]
    layer = case.make()

    def gradients_through(td):
        args, kwargs = arguments
        td(*args, **kwargs)

        def loss():
            tensors = [ops.convert_to_tensor(v) for v in inputs]
            args, kwargs = with_leaves(arguments, tensors)
            return ops.sum(ops.sin(td(*args, training=True, **kwargs)))

        return gradients(loss, [*layer.trainable_variables, *inputs])

    assert_close(
        gradients_through(TimeDistributed(layer, **OPTIONS[option])),
        gradients_through(TimeDistributed(layer)),
    )


class Length(keras.Layer):
    """Divides by the length of a vector, which has no gradient at zero."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        x = inputs * self.scale
        return x / ops.sqrt(ops.sum(x * x, axis=-1, keepdims=True))


@needs("training")
@pytest.mark.parametrize("time", [1, 2, 3, 4])
def test_no_step_is_made_up(time, rng):
    model = keras.Sequential(
        [keras.Input((None, 5)), TimeDistributed(Length(), steps_per_call=3)]
    )
    model.compile("sgd", "mse")
    x = normal(rng, 2, time, 5)

    loss = model.train_on_batch(x, np.zeros_like(x))

    np.testing.assert_allclose(loss, 1 / 5, rtol=1e-5)
    assert np.isfinite(model.get_weights()[0])


@options_named(["3 steps", "2 steps, remat"])
@pytest.mark.parametrize("lead", [(0, 3), (2, 0)])
def test_nothing_in_nothing_out(lead, option):
    td = TimeDistributed(layers.Dense(4), **OPTIONS[option])
    model = keras.Sequential([keras.Input((None, 5)), td])
    x = np.zeros((*lead, 5), "float32")

    assert tuple(td(x).shape) == (*lead, 4)
    assert model(x).shape == (*lead, 4)
    # Keras cannot predict on a batch of 0.
    if lead[0]:
        assert model.predict_on_batch(x).shape == (*lead, 4)


def test_a_tensor_of_one_step_serves_every_call(rng):
    items, user = normal(rng, 2, 5, 4), normal(rng, 2, 1, 3)
    td = TimeDistributed(layers.Concatenate(), steps_per_call=2)

    expected = TimeDistributed(layers.Concatenate())([items, user])
    assert_close(td([items, user]), expected)


class Named(keras.Layer):
    """Returns a number next to a tensor."""

    def call(self, inputs):
        return {"x": inputs, "number": 3}


@each_option
def test_what_is_no_tensor_passes(option):
    x = np.ones((2, TIME, 3), "float32")

    outputs = TimeDistributed(Named(), **OPTIONS[option])(x)

    assert outputs["number"] == 3
    np.testing.assert_array_equal(as_numpy(outputs["x"]), x)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(None, [10]), (1, [2] * 5), (2, [2, 4, 4]), (4, [2, 8]), (5, [10])],
)
def test_a_call_sees_the_steps_asked_for(steps, expected):
    td = TimeDistributed(Rows(), steps_per_call=steps)
    td.build((2, 5, 3))
    td.layer.rows.clear()

    td(np.ones((2, 5, 3), "float32"))

    assert td.layer.rows == expected


@with_and_without_remat
def test_a_compiled_model_holds_a_few_copies_of_the_layer(remat):
    if BACKEND not in ("tensorflow", "jax"):
        pytest.skip(reason="Keras compiles nothing into a loop there")

    def copies(time):
        layer = Rows()
        td = TimeDistributed(layer, steps_per_call=1, remat=remat)
        model = keras.Sequential([keras.Input((time, 3)), td])
        # TensorFlow retraces a function that makes a variable.
        td(np.ones((1, time, 3), "float32"))
        layer.rows.clear()
        model.predict_on_batch(np.ones((1, time, 3), "float32"))
        return len(layer.rows)

    assert copies(16) == copies(1024)


@each_option
def test_padding_changes_nothing(option, rng):
    words = rng.integers(1, 9, (2, 5, 4))
    padded = np.pad(words, ((0, 0), (0, 6), (0, 3)))
    keras.utils.set_random_seed(0)
    document = keras.Sequential(
        [
            keras.Input((None, None), dtype="int32"),
            TimeDistributed(layers.Embedding(9, 4, mask_zero=True)),
            TimeDistributed(layers.LSTM(3), **OPTIONS[option]),
            layers.LSTM(3),
        ]
    )

    expected = document.predict_on_batch(words)

    np.testing.assert_allclose(
        document.predict_on_batch(padded), expected, atol=1e-6
    )


@each_option
def test_the_masks_that_leave_are_those_of_one_call(option, rng):
    x, mask = normal(rng, 2, TIME, 5, 4), rng.random((2, TIME, 5)) < 0.3
    for layer in layers.Dense(3), layers.LSTM(3), layers.Masking():
        one = TimeDistributed(layer)(with_mask(x, mask))

        actual = TimeDistributed(layer, **OPTIONS[option])(with_mask(x, mask))

        np.testing.assert_array_equal(mask_of(actual), mask_of(one))


def test_padded_steps_are_not_in_the_statistics_of_a_call(rng):
    x, mask = normal(rng, 4, 6, 5), np.arange(6) < [[6], [3], [2], [4]]
    td = TimeDistributed(layers.BatchNormalization(), steps_per_call=2)
    # A call on padding alone would have nothing to average.
    bare = layers.BatchNormalization()

    outputs = as_numpy(td(x, mask=mask, training=True))

    for t in 0, 2, 4:
        part, valid = x[:, t : t + 2].reshape(8, 5), mask[:, t : t + 2]
        expected = bare(part, mask=valid.reshape(8), training=True)
        expected = as_numpy(expected).reshape(4, 2, 5)
        np.testing.assert_allclose(
            outputs[:, t : t + 2][valid], expected[valid], atol=1e-5
        )
    assert_close(td.layer.get_weights(), bare.get_weights())


@each_option
def test_a_distributed_model_trains(option, rng):
    tf = pytest.importorskip(
        "tensorflow", reason="The strategy is TensorFlow's"
    )
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    with strategy.scope():
        td = TimeDistributed(layers.Dense(2), **OPTIONS[option])
        model = keras.Sequential([keras.Input((TIME, 3)), td])
        model.compile("sgd", "mse")
    x, y = normal(rng, 4, TIME, 3), normal(rng, 4, TIME, 2)

    loss = model.fit(x, y, verbose=0).history["loss"]

    assert np.isfinite(loss).all()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@each_option
def test_mixed_precision_is_that_of_one_call(option, policy, rng):
    x = normal(rng, 2, TIME, 5)
    dense = layers.Dense(4, dtype=policy)

    actual = TimeDistributed(dense, **OPTIONS[option])(x)

    expected = TimeDistributed(dense)(x)
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(
        as_numpy(ops.cast(actual, "float32")),
        as_numpy(ops.cast(expected, "float32")),
        rtol=1e-2,
        atol=1e-2,
    )


def test_wrappers_may_nest(rng):
    x = normal(rng, 2, 5, 7, 3)
    dense = layers.Dense(4)
    inner = TimeDistributed(dense, steps_per_call=3)

    actual = TimeDistributed(inner, steps_per_call=2)(x)

    assert_close(actual, dense(x))

"""Several calls in order give what one call gives, and pass the state on."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras import tree

from backends import needs
from backends import with_and_without_remat
from cases import BY_NAME
from cases import CASES
from cases import each
from cases import leaves
from cases import one_or_all
from cases import with_leaves
from keras_td import TimeDistributed
from limits import no_worse_than_plain
from modes import SEVERAL_CALLS as OPTIONS
from modes import TIME
from modes import each_option
from modes import options_named
from reference import as_numpy
from reference import assert_close
from reference import gradients
from reference import mask_of
from reference import normal
from reference import with_mask

IS_TORCH = keras.backend.backend() == "torch"
# Of several inputs and outputs, with masks, integers and dicts.
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


# PyTorch says so of the slice of one step, by hand too.
@pytest.mark.filterwarnings("ignore:[\\s\\S]*searchsorted:UserWarning")
@pytest.mark.parametrize("steps", [1, 2])
@each([c for c in CASES if c.mixes_samples != "always"])
@no_worse_than_plain
def test_calls_on_some_steps_equal_one_call(case, steps, rng):
    args, kwargs = case.arrays(rng)

    actual = case.wrapped(steps_per_call=steps)(*args, training=False, **kwargs)

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
@pytest.mark.parametrize(
    "how",
    [
        "eager",
        "compiled",
        "unknown time",
        # PyTorch's compiler takes minutes, and warns of PyTorch's own code.
        pytest.param(
            "on request",
            marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
            if IS_TORCH
            else [],
        ),
    ],
)
@each_option
@each(SOME[:5])
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
    # Keras predicts on no batch of 0.
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


class Sizes(keras.Layer):
    """Notes the batch of each call."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def call(self, inputs):
        self.seen.append(inputs.shape[0])
        return inputs


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(None, [10]), (1, [2] * 5), (2, [2, 4, 4]), (4, [2, 8]), (5, [10])],
)
def test_a_call_sees_the_steps_asked_for(steps, expected):
    td = TimeDistributed(Sizes(), steps_per_call=steps)
    td.build((2, 5, 3))
    td.layer.seen.clear()

    td(np.ones((2, 5, 3), "float32"))

    assert td.layer.seen == expected


@with_and_without_remat
def test_a_compiled_model_holds_a_few_copies_of_the_layer(remat):
    if keras.backend.backend() not in ("tensorflow", "jax"):
        pytest.skip(reason="Keras compiles nothing into a loop there")

    def copies(time):
        layer = Sizes()
        td = TimeDistributed(layer, steps_per_call=1, remat=remat)
        model = keras.Sequential([keras.Input((time, 3)), td])
        # TensorFlow traces anew what makes a variable.
        td(np.ones((1, time, 3), "float32"))
        layer.seen.clear()
        model.predict_on_batch(np.ones((1, time, 3), "float32"))
        return len(layer.seen)

    assert copies(16) == copies(1024)


# --- Masks --------------------------------------------------------------------


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
    # A call on padding alone would leave nothing to take a mean of.
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


# --- State --------------------------------------------------------------------


class Counter(keras.Layer):
    """Adds the number of the call, and counts it."""

    def build(self, input_shape):
        self.count = self.add_weight(
            shape=(), initializer="zeros", trainable=False, dtype="int32"
        )

    def call(self, inputs):
        self.count.assign_add(1)
        return inputs + ops.cast(self.count, inputs.dtype)


@with_and_without_remat
@pytest.mark.parametrize("time", [7, None])
def test_calls_come_in_order(time, remat):
    td = TimeDistributed(Counter(), steps_per_call=2, remat=remat)
    x = np.zeros((1, 7, 1), "float32")
    model = keras.Sequential([keras.Input((time, 1)), td])

    first = as_numpy(td(x)).ravel()
    second = model.predict_on_batch(x).ravel()

    np.testing.assert_array_equal(first, [1, 2, 2, 3, 3, 4, 4])
    # What `predict` changes is not kept on every backend.
    start = second[0] - 1
    np.testing.assert_array_equal(second - start, first)


class CountsAllButTheFirst(Counter):
    calls = 0

    def call(self, inputs):
        self.calls += 1
        return super().call(inputs) if self.calls > 1 else inputs


@needs("training")
@with_and_without_remat
def test_a_compiled_loop_tells_of_state_that_it_would_lose(remat):
    if keras.backend.backend() == "torch":
        pytest.skip(reason="Keras compiles no training on it")
    td = TimeDistributed(CountsAllButTheFirst(), steps_per_call=1, remat=remat)
    model = keras.Sequential([keras.Input((40, 1)), td, layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=False)
    td.layer.calls = -1  # `fit` calls it for its shapes

    with pytest.raises(ValueError, match="assign to the same variables"):
        model.fit(np.zeros((1, 40, 1)), np.zeros((1, 40, 1)), verbose=0)


@needs("training")
@pytest.mark.parametrize("run_eagerly", [True, False])
@with_and_without_remat
def test_fit_keeps_the_state(remat, run_eagerly):
    td = TimeDistributed(Counter(), steps_per_call=2, remat=remat)
    model = keras.Sequential([keras.Input((7, 1)), td, layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=run_eagerly)
    x = np.zeros((4, 7, 1), "float32")

    model.fit(x, x, batch_size=2, epochs=3, verbose=0)

    assert as_numpy(td.layer.count.value) == 6 * 4


def test_a_stateful_rnn_sees_the_steps_in_order(rng):
    x = normal(rng, 2, 3, 5, 4)
    td = TimeDistributed(layers.LSTM(4, stateful=True), steps_per_call=1)

    outputs = as_numpy(td(x)), as_numpy(td(x))

    # Of `(batch, time * steps, features)`, these are the last of each step.
    sequence = np.concatenate([x, x], axis=1).reshape(2, 30, 4)
    bare = layers.LSTM(4, return_sequences=True)
    bare.build(sequence.shape)
    bare.set_weights(td.get_weights())
    expected = as_numpy(bare(sequence))[:, 4::5]
    np.testing.assert_allclose(
        np.concatenate(outputs, axis=1), expected, atol=1e-5
    )


def normalizer(wrapper, **options):
    keras.utils.set_random_seed(0)
    norm = layers.BatchNormalization(momentum=0.5)
    return wrapper(keras.Sequential([layers.Dense(4), norm]), **options)


class Memory(keras.Layer):
    """Remembers half of what it knew, next to the mean of its inputs."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones")
        self.memory = self.add_weight(shape=(), trainable=False)

    def call(self, inputs):
        known = self.memory / 2 + ops.mean(inputs) * self.scale
        self.memory.assign(known)
        return ops.zeros_like(inputs) + known


@needs("training")
@pytest.mark.parametrize("time", [4, 12])
@pytest.mark.parametrize("run_eagerly", [True, False])
@with_and_without_remat
def test_no_gradients_pass_through_the_state(remat, run_eagerly, time):
    memory = Memory()
    td = TimeDistributed(memory, steps_per_call=1, remat=remat)
    model = keras.Sequential([keras.Input((time, 1)), td])
    # Its gradient is that of the sum of the outputs.
    model.compile(
        keras.optimizers.SGD(1.0),
        lambda y, outputs: ops.sum(outputs, axis=(1, 2)),
        run_eagerly=run_eagerly,
    )
    x = np.ones((1, time, 1), "float32")

    model.fit(x, x, verbose=0)

    # Of each step, it is the mean of its inputs.
    assert as_numpy(memory.scale.value) == 1 - time


@needs("training")
@pytest.mark.parametrize("run_eagerly", [True, False])
@each_option
def test_a_layer_may_use_weights_of_another(option, run_eagerly, rng):
    x, y = normal(rng, 4, TIME, 5), normal(rng, 4, TIME, 5)

    def fit(**options):
        keras.utils.set_random_seed(0)
        dense = layers.Dense(3, use_bias=False)
        tied = layers.Lambda(
            lambda x: ops.matmul(x, ops.transpose(dense.kernel)),
            output_shape=(5,),
        )
        inputs = keras.Input((TIME, 5))
        outputs = TimeDistributed(tied, **options)(dense(inputs))
        model = keras.Model(inputs, outputs)
        model.compile("sgd", "mse", run_eagerly=run_eagerly)
        model.fit(x, y, epochs=2, verbose=0)
        return model.get_weights()

    assert_close(fit(**OPTIONS[option]), fit())


@each_option
def test_the_state_of_another_layer_changes_too(option, rng):
    x = normal(rng, 4, TIME, 5)

    def moving_mean(**options):
        norm = layers.BatchNormalization(momentum=0)
        norm.build((None, 5))
        td = TimeDistributed(
            layers.Lambda(lambda x: norm(x, training=True)), **options
        )
        td(x)
        return as_numpy(norm.moving_mean)

    steps = OPTIONS[option].get("steps_per_call", TIME)
    expected = x[:, -steps:].mean((0, 1))
    np.testing.assert_allclose(
        moving_mean(**OPTIONS[option]), expected, atol=1e-5
    )


class Watched(keras.Layer):
    """Keeps the mean of what it has seen, as a metric."""

    def __init__(self):
        super().__init__()
        self.seen = keras.metrics.Mean()

    def call(self, inputs):
        self.seen.update_state(inputs)
        return inputs


@each_option
def test_metrics_of_the_layer_see_all_calls(option):
    td = TimeDistributed(Watched(), **OPTIONS[option])

    td(np.arange(TIME, dtype="float32").reshape(1, TIME, 1))

    assert as_numpy(td.layer.seen.result()) == (TIME - 1) / 2


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


def test_batch_normalization_gives_the_numbers_of_stock(rng):
    x = normal(rng, 4, 5, 3) * 3 + 1
    stock = normalizer(layers.TimeDistributed)
    td = normalizer(TimeDistributed, steps_per_call=1)

    expected = stock(x, training=True)

    assert_close(td(x, training=True), expected)
    assert_close(td.get_weights(), stock.get_weights())


@needs("training")
@pytest.mark.parametrize("run_eagerly", [True, False])
@with_and_without_remat
def test_ten_steps_of_fit_give_the_numbers_of_stock(remat, run_eagerly, rng):
    x, y = normal(rng, 80, 5, 3) * 3 + 1, normal(rng, 80, 5, 4)

    def fit(td):
        model = keras.Sequential([keras.Input((5, 3)), td])
        model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=run_eagerly)
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        return model.get_weights()

    actual = fit(normalizer(TimeDistributed, steps_per_call=1, remat=remat))

    assert_close(actual, fit(normalizer(layers.TimeDistributed)))


@needs("training")
@with_and_without_remat
def test_a_frozen_layer_stays(remat, rng):
    td = normalizer(TimeDistributed, steps_per_call=2, remat=remat)
    model = keras.Sequential([keras.Input((5, 3)), td, layers.Dense(1)])
    td.trainable = False
    before = td.get_weights()
    model.compile("sgd", "mse")

    model.train_on_batch(normal(rng, 4, 5, 3), np.ones((4, 5, 1), "float32"))

    assert_close(td.get_weights(), before)


class Noise(keras.Layer):
    """Draws from the seed that Keras has for those who give it none."""

    def call(self, inputs):
        return inputs + keras.random.normal((5,))


@needs("fresh dropout")
@with_and_without_remat
@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.Dropout(0.5),
        lambda: layers.Dropout(0.5, seed=3),
        lambda: layers.GaussianNoise(1.0, seed=3),
        Noise,
    ],
    ids=["dropout", "seeded dropout", "seeded noise", "noise without a seed"],
)
def test_every_step_and_every_batch_draws_anew(make, remat):
    if make is Noise and remat and keras.backend.backend() == "jax":
        pytest.skip(reason="JAX compiles what it may compute again")
    td = TimeDistributed(make(), steps_per_call=1, remat=remat)
    x = np.ones((1, 20, 5), "float32")
    # `Dropout` draws 5 bits for a step, so that some agree.
    expected = 12 if isinstance(td.layer, layers.Dropout) else 40

    drawn = [as_numpy(td(x, training=True))[0] for _ in "12"]

    distinct = np.unique(np.concatenate(drawn), axis=0)
    assert (drawn[0] != drawn[1]).any()
    assert len(distinct) >= expected


# --- Losses -------------------------------------------------------------------


class MeanSquare(layers.Dense):
    """Adds the mean square of its outputs to the loss."""

    def call(self, inputs):
        outputs = super().call(inputs)
        self.add_loss(ops.mean(ops.square(outputs)))
        return outputs


@each_option
def test_losses_do_not_depend_on_the_number_of_calls(option, rng):
    x = normal(rng, 4, TIME, 5)

    def losses(**options):
        keras.utils.set_random_seed(0)
        dense = MeanSquare(3, kernel_regularizer="l1")
        td = TimeDistributed(dense, **options)
        td(x)
        td(x)
        return td.losses

    actual, expected = losses(**OPTIONS[option]), losses()

    assert len(actual) == len(expected) == 2
    assert_close(sum(actual), sum(expected))


@needs("losses of layers")
@pytest.mark.parametrize("time", [TIME, None], ids=["known", "unknown"])
@each_option
def test_losses_reach_the_loss_of_a_model(option, time, rng):
    x, y = normal(rng, 4, TIME, 5), normal(rng, 4, TIME, 3)

    def loss(**options):
        keras.utils.set_random_seed(0)
        dense = MeanSquare(3, kernel_regularizer="l1")
        td = TimeDistributed(dense, **options)
        model = keras.Sequential([keras.Input((time, 5)), td])
        model.compile("sgd", "mse")
        return model.train_on_batch(x, y), model.evaluate(x, y, verbose=0)

    np.testing.assert_allclose(loss(**OPTIONS[option]), loss(), rtol=1e-5)


def test_stateless_calls_return_each_loss_once(rng):
    x = normal(rng, 4, TIME, 5)

    def numbers_of_losses(**options):
        td = TimeDistributed(MeanSquare(3), **options)
        td.build(x.shape)
        variables = td.trainable_variables, td.non_trainable_variables
        for _ in range(50):
            *_, losses = td.stateless_call(*variables, x, return_losses=True)
            yield len(losses)

    assert {*numbers_of_losses(steps_per_call=3)} == {*numbers_of_losses()}


# --- Arguments and configs ----------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2", [2]])
def test_a_number_of_steps_is_a_positive_integer(value):
    with pytest.raises(ValueError, match="`steps_per_call` must be a positive"):
        TimeDistributed(layers.Dense(2), steps_per_call=value)


@pytest.mark.parametrize("name", ["remat", "share_randomness"])
@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_switches_are_on_or_off(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be True or False"):
        TimeDistributed(layers.Dense(2), **{name: value})


def test_remat_asks_for_a_newer_keras(monkeypatch):
    monkeypatch.delattr(keras, "remat", raising=False)

    with pytest.raises(ValueError, match=r"needs Keras 3\.9 or later"):
        TimeDistributed(layers.Dense(2), remat=True)


@needs("remat")
def test_a_saved_model_keeps_its_options(rng, tmp_path):
    td = TimeDistributed(
        layers.Dense(3),
        steps_per_call=np.int64(2),
        remat=True,
        share_randomness=True,
    )
    model = keras.Sequential([keras.Input((5, 4)), td])
    model.save(tmp_path / "model.keras")

    loaded = keras.models.load_model(tmp_path / "model.keras")

    config = loaded.layers[-1].get_config()
    assert config["steps_per_call"] == 2
    assert config["remat"] is config["share_randomness"] is True
    x = normal(rng, 2, 5, 4)
    assert_close(loaded(x), model(x))


def test_a_config_of_stock_has_the_defaults():
    stock = layers.TimeDistributed(layers.Dense(3))

    td = TimeDistributed.from_config(stock.get_config())

    assert td.steps_per_call is None
    assert td.remat is td.share_randomness is False


# --- dtypes, nesting, subclasses ----------------------------------------------


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

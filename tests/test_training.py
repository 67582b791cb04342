"""In training too, every step sees the same layer."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from keras import tree

from backends import needs
from case import leaves
from case import one_or_all
from case import with_leaves
from cases import BY_NAME
from cases import CASES
from cases import each
from cases import each_case
from keras_td import TimeDistributed
from limits import no_worse_than_plain
from modes import MODES
from modes import TIME
from modes import each_mode
from reference import as_numpy
from reference import assert_close
from reference import normal

SEPARATE = [c for c in CASES if not c.mixes_samples]


@each([c for c in SEPARATE if not c.random])
@no_worse_than_plain
def test_training_equals_a_loop_over_the_steps(case, rng):
    layer = case.make()
    args, kwargs = case.arrays(rng)

    actual = case.wrap(layer)(*args, training=True, **kwargs)

    assert_close(actual, case.oracle(layer, *args, training=True, **kwargs))


def kolmogorov_smirnov(a, b):
    """The p-value that two samples of equal size are from one distribution.

    By the first term of Smirnov's limit, which is an upper bound of it.
    """
    points = np.concatenate([a, b])
    below = [(sample <= points[:, None]).mean(1) for sample in (a, b)]
    distance = np.abs(below[0] - below[1]).max()
    return 2 * np.exp(-len(a) * distance**2)


DRAWS = 128


@needs("training")
@each([c for c in SEPARATE if c.random])
@no_worse_than_plain
def test_each_step_has_the_distribution_of_one_call(case, rng):
    args, kwargs = case.plain.arrays(rng, 1)
    flat = leaves((args, kwargs))

    def projected(outputs):
        values = [as_numpy(y).reshape(DRAWS, -1) for y in tree.flatten(outputs)]
        values = np.concatenate(values, axis=1)
        return values @ np.random.default_rng(0).normal(size=values.shape[1])

    lead = (1, DRAWS) if case.has_time else (DRAWS,)
    steps = [np.broadcast_to(x, (*lead, *x.shape[1:])) for x in flat]
    td_args, td_kwargs = with_leaves((args, kwargs), steps)
    drawn = case.wrapped()(*td_args, training=True, **td_kwargs)
    layer = case.make()
    calls = [layer(*args, training=True, **kwargs) for _ in range(DRAWS)]

    expected = tree.map_structure(lambda *ys: ops.stack(ys), *calls)
    assert kolmogorov_smirnov(projected(drawn), projected(expected)) > 1e-6


def fit(case, arguments, **options):
    """The losses and the weights after one step of `fit`."""
    x = one_or_all(leaves(arguments))
    model = case.model_of(case.wrapped(), arguments)
    outputs = model(x, training=False)
    targets = tree.map_structure(lambda y: np.zeros(y.shape), outputs)
    model.compile(keras.optimizers.SGD(0.1), "mse", **options)
    history = model.fit(
        x, targets, batch_size=case.lead[0], shuffle=False, verbose=0
    )
    return [np.array(history.history["loss"]), *model.get_weights()]


@pytest.fixture
def precise(case, request):
    """Runs deep models in float64.

    Batch statistics of a few samples, layer upon layer, amplify the rounding
    errors by which compiled code differs from eager code.
    """
    if not case.slow:
        yield
        return
    request.getfixturevalue("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


# PyTorch's trainer warns of a layer without any.
@pytest.mark.filterwarnings("ignore:The model does not have any trainable")
@pytest.mark.usefixtures("precise")
@needs("training")
@each_case
@no_worse_than_plain
def test_a_step_of_fit_equals_one_of_the_bare_layer(case, rng):
    arguments = case.arrays(rng)
    # It has the steps as samples, and the same seeds. Compiled code of deep
    # models differs from eager code in the fourth digit on JAX.
    bare = fit(case.plain, case.folded(*arguments), run_eagerly=not case.slow)

    compiled = fit(case, arguments, jit_compile="auto")

    assert_close(compiled, bare)
    assert np.isfinite(compiled[0]).all()


# PyTorch's compiler warns of PyTorch's own code.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@needs("training")
@each([BY_NAME[name] for name in ("Dense", "LSTM", "Sequential CNN")])
@no_worse_than_plain
def test_fit_may_be_compiled_wherever_keras_does_so_on_request(case, rng):
    # PyTorch's compiler takes a minute for what the others compile anyway.
    arguments = case.arrays(rng)

    compiled = fit(case, arguments, jit_compile=True)

    assert_close(compiled, fit(case, arguments, run_eagerly=True))


@needs("training")
@pytest.mark.parametrize("nested", [False, True])
def test_a_wrapped_model_may_have_been_compiled_by_itself(nested, rng):
    inner = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    inner.compile("sgd", "mse", metrics=["mae"])
    td = TimeDistributed(inner)
    if nested:
        td = TimeDistributed(td)
    shape = (2, 3, 5) if nested else (3, 5)
    model = keras.Sequential([keras.Input(shape), td])
    model.compile("sgd", "mse", metrics=["mae"])
    x = normal(rng, 4, *shape)

    history = model.fit(x, x[..., :1], verbose=0).history

    assert set(history) == {"loss", "mae"}


@needs("training")
def test_metrics_of_a_wrapped_layer_are_those_of_the_model(rng):
    if keras.backend.backend() == "jax":
        pytest.skip(reason="Keras cannot train a layer with a metric on JAX")

    class Measures(keras.layers.Dense):
        def __init__(self, units):
            super().__init__(units)
            self.largest = keras.metrics.Mean(name="largest")

        def call(self, inputs):
            outputs = super().call(inputs)
            self.largest.update_state(ops.max(outputs))
            return outputs

    td = TimeDistributed(Measures(1))
    model = keras.Sequential([keras.Input((3, 5)), td])
    model.compile("sgd", "mse")
    x = normal(rng, 4, 3, 5)

    history = model.fit(x, x[..., :1], verbose=0).history

    assert set(history) == {"loss", "largest"}


class Centers(keras.Layer):
    """Updates a running mean, and subtracts it from its inputs at once."""

    def build(self, input_shape):
        self.mean = self.add_weight(
            shape=input_shape[-1:], initializer="zeros", trainable=False
        )

    def call(self, inputs):
        self.mean.assign((self.mean + ops.mean(inputs, axis=0)) / 2)
        return inputs - self.mean


ASSIGNING = {
    "SpectralNormalization": lambda: layers.SpectralNormalization(
        layers.Dense(4)
    ),
    "running mean": Centers,
}


@needs("training")
@pytest.mark.parametrize("make", ASSIGNING.values(), ids=ASSIGNING)
@each_mode
def test_what_a_layer_assigns_to_is_trained_as_it_is_bare(option, make, rng):
    x, y = normal(rng, 4, TIME, 6), normal(rng, 4, TIME, 2)

    def trained(**options):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input(x.shape[1:]),
                layers.Dense(5),
                TimeDistributed(make(), **options),
                layers.Dense(2),
            ]
        )
        before = model.get_weights()
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, y, verbose=0)
        return before, model.get_weights()

    before, after = trained(**MODES[option])

    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    if option in ("more than all", "remat"):
        assert_close(after, trained()[1])

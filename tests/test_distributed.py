"""A model trained on many devices equals one trained on a single device."""

import keras
import pytest

from distributing import BY_HAND
from distributing import ENGINES
from distributing import LIMITS
from distributing import MODELS
from distributing import count_moves
from distributing import data_parallel
from distributing import fit
from distributing import model_parallel
from distributing import predict
from distributing import split_cpu
from exported import OPTIONS
from reference import assert_close
from table import ALIKE

pytestmark = [
    pytest.mark.distributed,
    # The layer that folds by hand does not tell Keras how to build it.
    pytest.mark.filterwarnings("ignore:.*layer 'folded:UserWarning"),
]
BACKEND = keras.backend.backend()
HERE = [name for name, of in ENGINES.items() if of.backend == BACKEND]
LIMITED = {
    (limit.engine, name): limit
    for limit in LIMITS
    if limit.engine in HERE
    for name in limit.models
}


@pytest.fixture(scope="module", autouse=True)
def devices():
    split_cpu()


def assert_trains_as_on_one(engine, name, option):
    expected = fit(name, option)
    actual = ENGINES[engine].train(name, option)
    assert_close(actual, expected)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", HERE)
def test_it_trains_as_on_one_device(engine, name, option, record_property):
    record_property("cell", [name, engine])
    record_property("check", option)
    limit = LIMITED.get((engine, name))
    if limit:
        with pytest.raises(Exception, match=limit.message):
            assert_trains_as_on_one(engine, name, option)
        pytest.xfail(f"{ALIKE}{limit.reason}")

    assert_trains_as_on_one(engine, name, option)


@pytest.mark.parametrize(("engine", "name"), LIMITED)
def test_a_limit_is_that_of_a_model_by_hand(engine, name):
    with pytest.raises(Exception, match=LIMITED[engine, name].message):
        assert_trains_as_on_one(engine, name, BY_HAND)


# Packed steps move from device to device.
@pytest.mark.parametrize("option", [o for o in OPTIONS if o != "skip_masked"])
@pytest.mark.parametrize("name", MODELS)
def test_devices_move_no_more_than_by_hand(name, option):
    if BACKEND != "jax":
        pytest.skip(reason="It reads the XLA program, on JAX")
    by_hand = count_moves(name, BY_HAND, data_parallel)

    assert count_moves(name, option, data_parallel) <= by_hand


@pytest.mark.parametrize("name", MODELS)
def test_devices_that_share_units_move_no_more_than_by_hand(name):
    if BACKEND != "jax":
        pytest.skip(reason="It reads the XLA program, on JAX")
    by_hand = count_moves(name, BY_HAND, model_parallel)

    assert count_moves(name, "one call", model_parallel) <= by_hand


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_devices_may_share_the_time(name, option):
    if BACKEND != "jax":
        pytest.skip(reason="Inputs are sharded like this on JAX")

    actual = predict(name, option, (None, "devices"))

    assert_close(actual, predict(name, option, ()))

"""A batch or a time of 0 gives outputs with that 0."""

import keras
import numpy as np
import pytest
from keras import layers

from cases import BY_NAME
from cases import each
from keras_td import TimeDistributed
from limits import no_worse_than_plain

SOME = ["Dense", "Conv2D", "Embedding", "Flatten", "TimeDistributed in itself"]


@pytest.mark.parametrize("lead", [(0, 3), (2, 0), (0, 0)])
@each([BY_NAME[name] for name in SOME])
@no_worse_than_plain
def test_nothing_in_nothing_out(case, lead, rng):
    lead = lead if case.has_time else (0,)
    ([x], _) = case.arrays(rng, *lead)
    layer = case.wrapped()
    expected = layer.compute_output_shape(x.shape)

    outputs = layer(x)

    assert tuple(outputs.shape) == expected
    assert expected[: len(lead)] == lead


def test_an_inner_axis_of_0():
    outputs = TimeDistributed(layers.Flatten())(np.zeros((2, 3, 0, 4)))

    assert tuple(outputs.shape) == (2, 3, 0)


def test_an_empty_batch_through_a_model():
    model = keras.Sequential(
        [keras.Input((None, 5)), TimeDistributed(layers.Dense(4))]
    )

    assert model(np.zeros((0, 3, 5))).shape == (0, 3, 4)
    assert model(np.zeros((2, 0, 5))).shape == (2, 0, 4)

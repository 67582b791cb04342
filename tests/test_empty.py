"""A batch or a time of 0 gives outputs with that 0."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_td import TimeDistributed

LAYERS = {
    "Dense": (lambda: layers.Dense(4), (5,)),
    "Conv2D": (lambda: layers.Conv2D(4, 3), (8, 8, 3)),
    "Embedding": (lambda: layers.Embedding(9, 4), (5,)),
    "Flatten": (layers.Flatten, (5, 2)),
    "TimeDistributed": (lambda: TimeDistributed(layers.Dense(4)), (5, 2)),
}


@pytest.mark.parametrize(("batch", "time"), [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("name", LAYERS)
def test_nothing_in_nothing_out(name, batch, time):
    make, shape = LAYERS[name]
    td = TimeDistributed(make())
    expected = td.compute_output_shape((batch, time, *shape))

    outputs = td(np.zeros((batch, time, *shape), "float32"))

    assert tuple(outputs.shape) == expected
    assert expected[:2] == (batch, time)


def test_an_inner_axis_of_0():
    outputs = TimeDistributed(layers.Flatten())(np.zeros((2, 3, 0, 4)))

    assert tuple(outputs.shape) == (2, 3, 0)


def test_an_empty_batch_through_a_model():
    model = keras.Sequential(
        [keras.Input((None, 5)), TimeDistributed(layers.Dense(4))]
    )

    assert model(np.zeros((0, 3, 5))).shape == (0, 3, 4)
    assert model(np.zeros((2, 0, 5))).shape == (2, 0, 4)

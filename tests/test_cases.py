"""The table of cases knows every layer that Keras has."""

import keras
import pytest
from keras import layers

from cases import ALL_CASES
from cases import EXCLUDED
from cases import each_case
from limits import no_worse_than_plain


def exported(name):
    cls = getattr(layers, name)
    return isinstance(cls, type) and issubclass(cls, keras.Layer)


def test_each_class_of_keras_is_a_case_or_excluded():
    # A class has several names: `AvgPool1D` is `AveragePooling1D`.
    known = {case.class_name for case in ALL_CASES} | EXCLUDED.keys()
    known_classes = {getattr(layers, name, None) for name in known}

    missing = [
        name
        for name in filter(exported, dir(layers))
        if getattr(layers, name) not in known_classes
    ]

    assert not missing


def test_no_name_is_given_twice():
    names = [case.name for case in ALL_CASES]

    assert len(names) == len(set(names))


@each_case
@no_worse_than_plain
def test_a_case_makes_the_class_of_its_name(case):
    layer = case.make()

    expected = getattr(layers, case.class_name, type(layer))
    assert isinstance(layer, expected)


@pytest.mark.parametrize("name", EXCLUDED)
def test_what_is_excluded_cannot_be_called_on_a_tensor(name):
    with pytest.raises((NotImplementedError, TypeError, ValueError)):
        getattr(layers, name)()(keras.KerasTensor((2, 5)))

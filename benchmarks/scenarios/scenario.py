"""The scenarios, each with its sentence and its check."""

from keras import layers

import keras_td

CLASSES = {
    "stock": layers.TimeDistributed,
    "keras_td": keras_td.TimeDistributed,
}
BACKENDS = {"tensorflow": "TF", "jax": "JAX", "torch": "PyTorch"}
SCENARIOS = {}


def scenario(sentence, only=tuple(BACKENDS), reason=None):
    """Adds a function of the class under test to the table.

    If it cannot exist on a backend, `only` has the others and `reason` says
    why.
    """

    def add(check):
        SCENARIOS[sentence] = check, only, reason
        return check

    return add

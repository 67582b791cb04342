"""Uses of the layer, for type checkers.

`error: a, b` marks a line in which the checkers `a` and `b` find one.
"""

from typing import Any

import keras

import keras_td
from keras_td import TimeDistributed

dense = keras.layers.Dense(3)
inputs = keras.Input((None, 4))

# Correct uses.
version: str = keras_td.__version__
td = TimeDistributed(dense)
td = TimeDistributed(dense, 8, remat=True, share_randomness=False)
td = TimeDistributed(dense, skip_masked=True)
td = TimeDistributed(dense, name="steps", dtype="float16", trainable=False)
td = TimeDistributed(dense, dtype=keras.DTypePolicy("mixed_bfloat16"))
outputs = td(inputs)
outputs = td(inputs, training=True, mask=None)
outputs = td({"a": inputs, "b": [inputs]}, inputs, value=inputs)
td.build((None, 5, 4))
shape = td.compute_output_shape((None, 5, 4))
steps: int | None = td.steps_per_call
remat: bool = td.remat
copy: TimeDistributed = TimeDistributed.from_config(td.get_config())
model: keras.Model = keras_td.upgrade(dense, steps_per_call=8, remat=True)
with keras_td.replacing(skip_masked=True):
    pass


class Frames(TimeDistributed):
    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "frames": 8}


frames: Frames = Frames.from_config(Frames(dense).get_config())

# Wrong uses.
td = TimeDistributed()  # error: mypy, pyright
# Keras's layers are typed only for checkers that read its code.
td = TimeDistributed("dense")  # error: pyright
td = TimeDistributed(dense, steps_per_call="8")  # error: mypy, pyright
td = TimeDistributed(dense, steps_per_call=2.0)  # error: mypy, pyright
td = TimeDistributed(dense, step_per_call=8)  # error: mypy, pyright
td = TimeDistributed(dense, remat="no")  # error: mypy, pyright
td = TimeDistributed(dense, share_randomness=None)  # error: mypy, pyright
td = TimeDistributed(dense, skip_masked=1)  # error: mypy, pyright
td = TimeDistributed(dense, trainable="no")  # error: mypy, pyright
td = TimeDistributed(dense, nmae="steps")  # error: mypy, pyright
model = keras_td.upgrade(dense, step_per_call=8)  # error: mypy, pyright
model = keras_td.upgrade(dense, remat="no")  # error: mypy, pyright
keras_td.replacing(skip_masked=1)  # error: mypy, pyright
outputs = td()  # error: mypy, pyright
number: int = td.steps_per_call  # error: mypy, pyright

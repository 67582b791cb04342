"""Exports models to each format of a backend, and runs them as deployed."""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np

from case import one_or_all
from exported import MODELS
from keras_td import TimeDistributed

SIZES = (2, 3), (5, 4), (1, 12), (3, 1), (1, 1)


def saved_model(model, folder, example):
    import tensorflow as tf

    model.export(folder, verbose=False)
    loaded = tf.saved_model.load(folder)
    return lambda arrays: loaded.serve(one_or_all(arrays)).numpy()


def onnx(model, folder, example):
    import onnxruntime

    path = folder / "model.onnx"
    model.export(path, format="onnx", verbose=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options)
    names = [x.name for x in session.get_inputs()]

    def run(arrays):
        [y] = session.run(None, dict(zip(names, arrays, strict=True)))
        return y

    return run


def openvino(model, folder, example):
    import openvino

    path = f"{folder}/model.xml"
    model.export(path, format="openvino", verbose=False)
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    program = openvino.compile_model(path, "CPU", config)
    return lambda arrays: program(arrays)[0]


def litert(model, folder, example):
    import tensorflow as tf

    path = folder / "model.tflite"
    model.export(path, format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(str(path))
    return functools.partial(interpret, interpreter)


def interpret(interpreter, arrays):
    inputs = interpreter.get_input_details()
    inputs.sort(key=lambda x: x["name"])
    for x, array in zip(inputs, arrays, strict=True):
        interpreter.resize_tensor_input(x["index"], array.shape)
    interpreter.allocate_tensors()
    for x, array in zip(inputs, arrays, strict=True):
        interpreter.set_tensor(x["index"], array)
    interpreter.invoke()
    [y] = interpreter.get_output_details()
    return interpreter.get_tensor(y["index"])


def litert_of_fixed_sizes(model, folder, example):
    from ai_edge_litert.interpreter import Interpreter

    path = f"{folder}/model.tflite"

    def run(arrays):
        signature = [
            keras.InputSpec(shape=x.shape, dtype=x.dtype.name) for x in arrays
        ]
        if len(signature) > 1:
            signature = [signature]
        model.export(
            path, format="litert", verbose=False, input_signature=signature
        )
        return interpret(Interpreter(path), arrays)

    return run


def tensors(arrays):
    import torch

    return one_or_all([torch.tensor(x) for x in arrays])


def dims(x):
    import torch

    b, t = torch.export.Dim("b", max=64), torch.export.Dim("t", max=64)
    return {0: b, 1: t} if x.shape[1] != 1 else {0: b}


def torch_format(model, folder, example):
    import torch

    path = folder / "model.pt2"
    shapes = [dims(x) for x in model.inputs]
    shapes = shapes[0] if len(shapes) == 1 else [(shapes,)]
    model.export(path, format="torch", verbose=False, dynamic_shapes=shapes)
    program = torch.export.load(path).module()
    return lambda arrays: program(tensors(arrays)).detach()


def torch_export(model, folder, example):
    import torch

    x = tensors(example.draw(np.random.default_rng(0), 2, 3))
    shapes = keras.tree.map_structure(dims, x)
    program = torch.export.export(
        model, (x,), dynamic_shapes=((shapes,),), strict=False
    ).module()
    return lambda arrays: program(tensors(arrays)).detach()


def torch_trace(model, folder, example):
    import torch

    model.eval()
    # Keras traces with one sample of one step.
    x = tensors(example.draw(np.random.default_rng(0), 1, 1))
    program = torch.jit.trace(model, (x,), check_trace=False)
    return lambda arrays: program(tensors(arrays)).detach()


def jax_export(model, folder, example):
    import jax
    from jax import export

    weights = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]

    def predict(x):
        return model.stateless_call(weights, others, x, training=False)[0]

    b, t = export.symbolic_shape("b, t")

    def symbol(x):
        lead = (b, t) if x.shape[1] > 1 else (b, 1)
        return jax.ShapeDtypeStruct((*lead, *x.shape[2:]), x.dtype)

    x = one_or_all(example.draw(np.random.default_rng(0), 2, 3))
    symbols = keras.tree.map_structure(symbol, x)
    program = export.export(jax.jit(predict))(symbols)
    return lambda arrays: program.call(one_or_all(arrays))


@dataclasses.dataclass(frozen=True)
class Format:
    """A format that models are exported to.

    Args:
        backends: The backends that export to it.
        export: Function that takes a model, a folder and the `Exported` of the
            model, and returns a function that runs the exported program on a
            list of arrays.
        sizes: The batches and times to run it on.
    """

    backends: tuple[str, ...]
    export: Callable
    sizes: tuple = SIZES


FORMATS = {
    "tf_saved_model": Format(("tensorflow", "jax"), saved_model),
    "onnx": Format(("tensorflow", "jax", "torch"), onnx),
    "openvino": Format(("tensorflow", "jax", "torch"), openvino),
    "litert": Format(("tensorflow",), litert),
    "litert, fixed sizes": Format(
        # It exports once for each size.
        ("torch",),
        litert_of_fixed_sizes,
        SIZES[:2],
    ),
    "torch": Format(("torch",), torch_format),
    "torch.export": Format(("torch",), torch_export),
    "jax.export": Format(("jax",), jax_export),
}


@dataclasses.dataclass(frozen=True)
class Limit:
    """What cannot be exported.

    Args:
        backend: The backend to export from.
        format: The format to export to.
        reason: Why it cannot be exported.
        message: A regular expression that the error matches.
        models: The names of the models.
        options: The options that cannot be exported, where the model without
            them can. If empty, nothing can, not even time folded by hand.
    """

    backend: str
    format: str
    reason: str
    message: str
    models: tuple[str, ...] = tuple(MODELS)
    options: tuple[str, ...] = ()

    def holds(self, name_of_format, model, option):
        return (
            self.format == name_of_format
            and model in self.models
            and (not self.options or option in self.options)
        )


RECURRENT = ("LSTM, then GRU",)
LOOPS = ("steps_per_call", "share_randomness")
OPENVINO_LOOP = (
    "OpenVINO cannot convert a TensorFlow loop that collects outputs, such as "
    "that of Keras's RNN",
    "TensorList",
)
LITERT_LOOP = (
    "LiteRT cannot run a loop over an unknown time that collects outputs, such "
    "as that of Keras's RNN; it lacks TensorFlow's own operations (Flex)",
    "FlexTensorList|Fill dimensions",
)
TWO_TIMES = (
    "Keras tells JAX that no two inputs have the same time",
    "Incompatible (shapes|types) for broadcasting",
    ("mask as an input",),
)
ONE_TIME = tuple(name for name in MODELS if name != "mask as an input")
TRACED_STEPS = "Keras's RNN on PyTorch keeps the number of steps of the example"
OTHER_VALUES = "Not equal to tolerance"
LIMITS = [
    Limit("tensorflow", "openvino", *OPENVINO_LOOP, RECURRENT),
    Limit("tensorflow", "openvino", *OPENVINO_LOOP, options=LOOPS),
    Limit("tensorflow", "litert", *LITERT_LOOP, RECURRENT),
    Limit("tensorflow", "litert", *LITERT_LOOP, options=LOOPS),
    Limit(
        "tensorflow",
        "litert",
        "LiteRT cannot run Keras's `ops.nonzero`, as it unstacks int64",
        "FlexUnpack",
        ("mask as an input", "hierarchical masks"),
        ("skip_masked",),
    ),
    Limit(
        "jax",
        "onnx",
        "jax2onnx cannot reshape to a product of two unknown sizes",
        "reshape with symbolic dimensions",
        ONE_TIME,
    ),
    Limit(
        "jax",
        "openvino",
        "Keras exports operations of recent JAX that OpenVINO cannot convert",
        "XlaCallModule",
        ONE_TIME,
    ),
    Limit("jax", "onnx", *TWO_TIMES),
    Limit("jax", "openvino", *TWO_TIMES),
    Limit("jax", "tf_saved_model", *TWO_TIMES),
    Limit("torch", "onnx", TRACED_STEPS, OTHER_VALUES, RECURRENT),
    Limit("torch", "openvino", TRACED_STEPS, OTHER_VALUES, RECURRENT),
    Limit(
        "torch",
        "litert, fixed sizes",
        "litert-torch fails to convert Keras's Embedding with a mask",
        "operand type mismatch|nonzero",
        ("hierarchical masks",),
    ),
    Limit(
        "torch",
        "litert, fixed sizes",
        "litert-torch cannot convert operations whose size depends on data",
        "nonzero",
        ("mask as an input",),
        ("skip_masked",),
    ),
    Limit("torch", "torch", TRACED_STEPS, "Constraints violated", RECURRENT),
    Limit(
        "torch", "torch.export", TRACED_STEPS, "Constraints violated", RECURRENT
    ),
]


def leave_options_out(model):
    """Makes the wrappers of a model use one call, which needs no loop."""
    wrappers = [x for x in model.layers if isinstance(x, TimeDistributed)]
    for td in wrappers:
        td.steps_per_call, td.share_randomness = None, False
        td.skip_masked = False

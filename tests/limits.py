"""Checks of the table that fail because of Keras itself.

Each row is verified: the check then runs again on the bare layer, with the
steps as samples, and must raise the same error.
"""

import copy
import dataclasses
import functools

import keras
import pytest

from case import BACKEND


@dataclasses.dataclass(frozen=True)
class Limit:
    case: str
    # The names of tests without `test_`; () for all.
    checks: tuple[str, ...]
    reason: str
    backends: tuple[str, ...] = ()
    # Whether it holds on every machine and in every release.
    everywhere: bool = True

    def covers(self, case, check):
        return (
            case == self.case
            and (not self.checks or check in self.checks)
            and (not self.backends or BACKEND in self.backends)
        )


SYMBOLIC = (
    "a_symbolic_call_agrees_with_an_eager_call",
    "compute_output_shape_agrees_with_an_eager_call",
)
EMPTY = ("nothing_in_nothing_out",)
COMPILED = ("compiled_equals_eager", "a_compiled_model_predicts_the_same")
BARE_FIT = ("a_step_of_fit_equals_one_of_the_bare_layer",)
SHARED = ("all_steps_draw_the_same",)
SHARED_FIT = ("all_steps_draw_the_same_in_fit",)
FIT = BARE_FIT + SHARED_FIT
MIXED = (
    "mixed_precision_is_that_of_the_plain_layer",
    "several_calls_in_mixed_precision_equal_one_call",
)
CONFIG = (
    "a_config_makes_the_same_layer",
    "a_stock_config_loads",
    "upgrade_copies_each_layer",
)
MASKS = (
    "a_masked_tail_changes_nothing_before_it",
    "symbolic_masks_have_the_shapes_of_eager_masks",
)
LOADING = ("a_saved_model_loads",)

NOT_IN_OPENVINO = (
    "CategoryEncoding",
    "GRU, stateful",
    "MelSpectrogram",
    "MixUp",
    "RandomColorDegeneration",
    "RandomGrayscale",
    "RandomHue",
    "RandomPosterization",
    "RandomSaturation",
    "RandomSharpness",
)

# fmt: off
# ruff: disable[E501]
LIMITS = [
    Limit("Attention, with scores", MASKS[1:], "Older Keras gives no scores in a symbolic call.", everywhere=False),
    Limit("AveragePooling3D", MIXED, "PyTorch has no bfloat16 for it.", ("torch",)),
    *(
        Limit(f"{kind}Pooling3D", MIXED[1:], "TensorFlow has no float16 for it on a CPU.", ("tensorflow",), everywhere=False)
        for kind in ("Max", "Average", "AdaptiveMax", "AdaptiveAverage")
    ),
    Limit("Conv2D", EMPTY, "TensorFlow's oneDNN gives an empty batch another shape.", ("tensorflow",), everywhere=False),
    Limit("Discretization", COMPILED + BARE_FIT, "Older TensorFlow compiles it to other bins.", ("tensorflow",), everywhere=False),
    Limit("Discretization", SYMBOLIC, "Older Keras infers another dtype.", ("jax",), everywhere=False),
    Limit("Equalization", BARE_FIT, "Bare, it cannot be in a functional model, where it is part of a cycle."),
    Limit("GRU, stateful", FIT, "It changes the states that the gradients need.", ("torch",)),
    Limit("JaxLayer", (), "Keras needs TensorFlow besides JAX to call it.", ("jax",)),
    Limit("MaxNumBoundingBoxes", COMPILED + FIT, "It pads by a size that JAX does not know.", ("jax",)),
    Limit("MultiHeadAttention, by name", BARE_FIT, "No loss can take the mask attached to the scores."),
    Limit("RNN, of stacked cells", SYMBOLIC, "Its states are nested differently in a symbolic call."),
    Limit("RandomCrop", SYMBOLIC + BARE_FIT, "In inference it leaves most images whole."),
    Limit("RandomCrop", SHARED_FIT, "In inference it leaves most images whole.", ("jax", "torch")),
    Limit("RandomElasticTransform", SHARED + SHARED_FIT, "It draws without its seed.", ("torch",)),
    Limit("RandomElasticTransform", BARE_FIT, "It draws with a size that JAX does not know.", ("jax",)),
    Limit("RandomElasticTransform", SHARED_FIT, "It draws with a size that JAX does not know when compiling.", ("jax",), everywhere=False),
    Limit("RandomShear", CONFIG + LOADING, "Its config is not what its constructor takes."),
    Limit("STFTSpectrogram", MIXED, "It has no bfloat16.", everywhere=False),
    Limit("StringLookup", FIT, "`fit` takes no arrays of strings."),
    Limit("TextVectorization", FIT, "`fit` takes no arrays of strings."),
    Limit("TFSMLayer", MIXED, "The saved function takes float32."),
    Limit("TFSMLayer", CONFIG[:2], "Keras loads code only if safe mode is off."),
    Limit("TorchModuleWrapper", MIXED, "The weights of a module stay in float32."),
    Limit("TorchModuleWrapper", CONFIG[:2], "Keras loads code only if safe mode is off."),
    *(
        Limit(name, COMPILED, "OpenVINO cannot compile what Keras makes of it.", ("openvino",))
        for name in NOT_IN_OPENVINO
    ),
]
# ruff: enable[E501]
# fmt: on

# Other releases of Keras have other limits, which are shown but not listed.
LISTED = keras.__version__.startswith("3.15.")


def no_worse_than_plain(test):
    """Lets a check of a case fail only as it fails for the bare layer."""

    @functools.wraps(test)
    def checked(case, **kwargs):
        check = test.__name__.removeprefix("test_")
        limits = [x for x in LIMITS if x.covers(case.name, check)]
        # The bare layer gets the same random numbers.
        again = copy.deepcopy(kwargs)
        try:
            test(case=case, **kwargs)
        except Exception as error:
            # Wrong results are accepted only if a row says why.
            wrong = isinstance(error, AssertionError)
            if not limits and (LISTED or wrong):
                raise
            with pytest.raises(type(error)):
                test(case=case.plain, **again)
            reason = limits[0].reason if limits else f"Keras: {error!r}"
            pytest.xfail(f"The bare layer fails too. {reason}")
        if LISTED and any(
            limit.checks and limit.everywhere for limit in limits
        ):
            pytest.fail(f"This works now, but is listed: {limits[0]}")

    return checked

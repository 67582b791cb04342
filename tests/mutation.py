"""Plants faults in keras_td, one at a time, and counts those that tests find.

    python tests/mutation.py REPORT [MODULE...]

Cosmic Ray makes the faults. Only tests that reach the faulty statement,
according to Coverage, are run, in forks of one process: loading Keras takes
longer than finding most faults. A fault whose tests never end counts as found.
"""

import ast
import collections
import concurrent.futures
import difflib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

import coverage
import hypothesis  # noqa: F401
import keras  # noqa: F401
import pytest
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.plugins import operator_names

SECONDS = 900
NOTES = pathlib.Path(tempfile.mkdtemp())
# No size is a tensor on PyTorch; on TensorFlow, tests of unknown sizes fail.
UNKNOWN_SIZES = "PyTorch knows all sizes"
# PyTorch's tensors take attributes; on JAX, the tests of masks fail.
ATTRIBUTES = "PyTorch does not need the layers that read and write masks"
PARTS = "only JAX calls a layer on parts, and its tests fail there"
RECOMPUTED = "only TensorFlow recomputes calls in another structure"
FUNCTIONS = "it is for TensorFlow functions, and its tests fail there"
DIGITS = "more digits than needed hold a number, too"
CHANGES_TWICE = "what a call adds has changed its sign once before"
# The lines, before or after, of faults that change nothing on PyTorch: they
# survive without a test run.
EXPLAINED = {
    "return static if not all(map(_is_known, static)) "
    "else tuple(ops.shape(x))": UNKNOWN_SIZES,
    "return ops.where(ops.equal(a, 2), b, a) "
    "if ops.is_tensor(a) else a": UNKNOWN_SIZES,
    "return ops.where(ops.equal(a, 0), b, a) "
    "if ops.is_tensor(a) else a": UNKNOWN_SIZES,
    "place = ops.arange(samples) % rows": UNKNOWN_SIZES,
    "if samples is rows and folding.is_size(samples, rows):": UNKNOWN_SIZES,
    "samples, rows = folding.sizes(x)[0], folding.sizes(valid)[ -1]": "it has "
    "one axis",
    'if not (given.get("training") or self.normalization.trainable):': "it "
    "reads its mask only in training",
    "if not sparse": "the tensors are TensorFlow's, where its tests fail",
    "if folding.differ(samples, rows) or in_graph == [False, True]:": (
        UNKNOWN_SIZES
    ),
    "return ops.logical_or(ops.take(valid, place, axis=0), others)": (
        UNKNOWN_SIZES
    ),
    **{
        f"shapes = [y.shape[ {i}:] for y in trees.tensors(outputs)]": (
            UNKNOWN_SIZES
        )
        for i in (1, 3)
    },
    "if not any(None in shape for shape in shapes):": UNKNOWN_SIZES,
    **{
        f"first = ops.pad(like, [{pads}, *inner])[:, :1]": "any step will do"
        for pads in ("( -1, 0), (0, 1)", "(0, -1), (0, 1)", "(0, 0), (0, 2)")
    },
    "x = ops.swapaxes(x[ -1], 0, 1)": "there is one",
    "if mask is not None or trees.is_tensor(x):": "setting None sets nothing",
    **{
        f"arguments = arguments.first_steps( {i}).map(ops.copy)": "any number "
        "of steps builds a layer"
        for i in (0, 2)
    },
    "if at_hand or not layer_kinds.keeps_state(layer):": "PyTorch has all "
    "values, and builds in a scope too",
    "if len(mask.shape) >= 1 and layer_kinds.keeps_state(layer):": "a mask of "
    "inner steps stays one",
    "return found[ -1]": "there is one",
    "@functools.lru_cache": "it saves time",
    "CALLS_PER_ITERATION = 2": "it saves time",
    "FEW_CALLS = 8": "it saves time",
    "without_padding: bool = True": "each call passes it",
    "class LayerOptions(TypedDict, total=True):": "it is for type checkers",
    **{
        f"self.draws.seed = random.getrandbits( {i})": "any number will do"
        for i in (63, 65)
    },
    **{
        f"return {i} if seed is None and _thread.seeded else seed": (
            "any number will do"
        )
        for i in (1, -1)
    },
    "owner = owners.get(id(loss), -1)": "any name for none will do",
    "places[owner] += 2": "they stay different",
    "weight = ops.cast( 2 if steps is None else steps, wide)": "any weight "
    "will do",
    'wide = "float64" if trees.dtype(loss) >= "float64" else "float32"': "no "
    "name of a float is above it",
    "return 0 if seed is None or _thread.seeded else seed": "any number will "
    "do",
    "both[key] = total - loss, sum_of_weights + weight": CHANGES_TWICE,
    "both[key] = total + loss, sum_of_weights - weight": CHANGES_TWICE,
    **{
        f'*(getattr(keras.layers, f"{name}") for n in ({sizes})),': PARTS
        for name in ("Conv{n}D", "Conv{n}DTranspose")
        for sizes in (" 2, 2, 3", "1, 1, 3", "1, 3, 3", "1, 2, 2")
    },
    **{
        f'*(getattr(keras.layers, f"{name}Conv{{n}}D") for n in ({sizes})),': (
            PARTS
        )
        for name in ("Depthwise", "Separable")
        for sizes in (" 2, 2", "1, 1")
    },
    "PARTS = 5": PARTS,
    "PARTS = 3": PARTS,
    "update is None and not _is_seed(variable)": PARTS,
    "update is not None and _is_seed(variable)": PARTS,
    "update is not None or not _is_seed(variable)": PARTS,
    "for path, like in []:": RECOMPUTED,
    "if trees.is_tensor(like) and x is not None:": RECOMPUTED,
    "if trees.is_tensor(like) or x is None:": RECOMPUTED,
    "if not trees.is_tensor(like) and x is None:": RECOMPUTED,
    "leaves.append(x if not trees.is_tensor(like) else like)": RECOMPUTED,
    "bound = () if not self.own else (self.layer,)": FUNCTIONS,
    "if not self.own:": FUNCTIONS,
    "if not steps:": UNKNOWN_SIZES,
    **{
        f"return folding.align(x, folding.sizes(x)[ {i}], time)": UNKNOWN_SIZES
        for i in (-1, 1)
    },
    **{
        f"read or [ops.zeros(({sizes}))], axis=-1": "nothing reads it"
        for sizes in (
            " 2, iterations, 1",
            " 0, iterations, 1",
            "1, iterations, 2",
            "1, iterations, 0",
        )
    },
    "x = ops.cast(inputs[ -1, start:end], dtype)": "there is one",
    "if self.structure is not None:": FUNCTIONS,
    "if not self.structure is None:": FUNCTIONS,
    **dict.fromkeys(
        (
            "made = recomputed if sum(sizes) < least else call",
            "made = recomputed if sum(sizes) > least else call",
            "made = recomputed if not sum(sizes) >= least else call",
            "least = 1 if not options.remat else max(options.parts)",
            "least = 2 if options.remat else max(options.parts)",
            "least = 0 if options.remat else max(options.parts)",
            "recomputed = remat.recompute(call) "
            'if not hasattr(keras, "remat") else call',
        ),
        "it saves memory",
    ),
    '"in_loop", default=True': FUNCTIONS,
    "outside = scopes.in_loop.set(False)": FUNCTIONS,
    "return ops.reshape(x, x.shape) if not _is_variable(x) else x": FUNCTIONS,
    **{
        f"for _ in range({number}):": DIGITS
        for number in (
            "max(_bytes(x.dtype) // 2, 1) + 1",
            "max(_bytes(x.dtype) + 2, 1) - 1",
            "max(_bytes(x.dtype) - 2, 1) - 1",
            "max(_bytes(x.dtype) // 1, 1) - 1",
            "max(_bytes(x.dtype) // 2, 2) - 1",
            "max(_bytes(x.dtype) // 2, 0) - 1",
            "max(_bytes(x.dtype) // 2, 1) - 0",
        )
    },
    **{
        line.format(bound): DIGITS
        for bound in (">= 2", "> 3", "> 1")
        for line in (
            'digits, x = [], x if _bytes(x.dtype) {} else ops.cast(x, "int32")',
            'whole = dtype if _bytes(dtype) {} else "int32"',
        )
    },
    **{
        f'return {size} if dtype == "bool" else int(dtype.lstrip("uint")) '
        "// 8": DIGITS
        for size in (0, 2)
    },
    "super().__init__(autocast=True)": ATTRIBUTES,
    "self.supports_masking = False": ATTRIBUTES,
    "except AttributeError:": ATTRIBUTES,
    **{f"return inputs[ {i}]": ATTRIBUTES for i in (-1, 0, 1, 2)},
}
# They need to be told which variables.
NOT_USED = ("VariableReplacer", "VariableInserter")
# Two ways to swap one operator for another are enough: to another sum, or to
# the opposite comparison and past its bound.
SWAPS = {
    "BinaryOperator": ("_Add", "_Sub"),
    "ComparisonOperator": (
        "_Is_IsNot",
        "_IsNot_Is",
        "_Eq_NotEq",
        "_NotEq_Eq",
        "_Eq_GtE",
        "_NotEq_Lt",
        "_Lt_GtE",
        "_Lt_LtE",
        "_LtE_Gt",
        "_LtE_Lt",
        "_Gt_LtE",
        "_Gt_GtE",
        "_GtE_Lt",
        "_GtE_Gt",
    ),
}
# One failing test is enough, so tests that found other faults of a module come
# first.
MOST_OFTEN = 25
COVER = "--cover"
OPTIONS = ["-q", "-p", "no:cacheprovider", "--assert=plain"]


def faults(path):
    """Yields each fault of a module: its operator, and the code with it."""
    code = path.read_text()
    for name in operator_names():
        swaps = next((SWAPS[kind] for kind in SWAPS if kind in name), "")
        if name.endswith(NOT_USED) or not name.endswith(swaps):
            continue
        occurrence = 0
        while mutated := mutate_code(code, get_operator(name)(), occurrence):
            # These guard against what does not happen.
            guards = "strict=True", "frozen=True"
            if all(mutated.count(g) == code.count(g) for g in guards):
                yield name, mutated
            occurrence += 1


def tests_of_lines():
    """The tests that reach each line, `{module: {number: tests}}`.

    Exits if a test fails without any fault.
    """
    config, data = NOTES / "config", NOTES / "data"
    config.write_text("[run]\ndynamic_context = test_function\n")
    run = [sys.executable, "-m", "coverage", "run", f"--rcfile={config}"]
    run += [f"--data-file={data}", "--include=keras_td/*"]
    subprocess.run([*run, __file__, COVER], check=True)
    found = coverage.CoverageData(str(data))
    found.read()
    return {
        pathlib.Path(name).name: found.contexts_by_lineno(name)
        for name in found.measured_files()
    }


def statement(code, number):
    """The lines of the statement that contains a line, or of its head."""
    lines = range(number, number + 1)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.stmt) and node.lineno <= number:
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else node.end_lineno
            if number <= last:
                lines = range(node.lineno, last + 1)
    return lines


def tests_of(path, code, tests):
    """The tests that reach the statements with a fault."""
    before = path.read_text()
    matcher = difflib.SequenceMatcher(
        None, before.splitlines(), code.splitlines(), autojunk=False
    )
    contexts = {
        context
        for tag, first, last, *_ in matcher.get_opcodes()
        if tag != "equal"
        for number in range(first + 1, max(last, first + 1) + 1)
        for line in statement(before, number)
        for context in tests[path.name].get(line, ())
    }
    if "" in contexts:  # Python reaches it in an import.
        return ["tests"]
    return sorted(
        f"tests/{context.replace('.', '.py::', 1)}" for context in contexts
    )


class ClearsCaches:
    """Makes each test reach the code whose results an earlier one cached."""

    def pytest_runtest_setup(self):
        for name, module in list(sys.modules.items()):
            if name.startswith("keras_td"):
                for value in vars(module).values():
                    getattr(value, "cache_clear", lambda: None)()


class Finders:
    """Records the tests that find faults of a module, and ranks them."""

    def __init__(self, path):
        self.notes = NOTES / path.name
        self.notes.touch()

    def pytest_runtest_logreport(self, report):
        if report.failed:
            with self.notes.open("a") as notes:
                notes.write(f"{report.nodeid}\n")

    def most_often(self):
        found = collections.Counter(self.notes.read_text().splitlines())
        return [test for test, _ in found.most_common(MOST_OFTEN)]


def passes(path, code, tests):
    """Whether tests pass with `code` as one of the modules."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree("keras_td", f"{folder}/keras_td")
        pathlib.Path(folder, path).write_text(code)
        sys.path.insert(0, folder)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        signal.alarm(SECONDS)
        finders = Finders(path)
        failed = any(
            pytest.main(["-x", *OPTIONS, *run], [finders])
            for run in (finders.most_often(), tests)
            if run
        )
    os._exit(failed)


def difference(path, code):
    lines = path.read_text().splitlines(), code.splitlines()
    diff = difflib.unified_diff(*lines, lineterm="", n=0)
    return "\n".join(list(diff)[2:])


def explanation(path, code):
    """Why a fault changes nothing, if that is known."""
    if path.name == "time_distributed.py":
        return None
    changed = difference(path, code).splitlines()
    lines = [" ".join(x[1:].split()) for x in changed if x[:1] in "+-"]
    return next(filter(None, map(EXPLAINED.get, lines)), None)


def main():
    if sys.argv[1] == COVER:
        sys.exit(pytest.main([*OPTIONS, "tests"], [ClearsCaches()]))
    report = pathlib.Path(sys.argv[1])
    paths = sys.argv[2:] or sorted(pathlib.Path("keras_td").glob("*.py"))
    work = [(p, *f) for p in map(pathlib.Path, paths) for f in faults(p)]
    tests = tests_of_lines()

    survivors = []
    fork = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(mp_context=fork) as pool:
        tasks = [
            None
            if explanation(path, code)
            else pool.submit(passes, path, code, tests_of(path, code, tests))
            for path, _, code in work
        ]
        for (path, name, code), task in zip(work, tasks, strict=True):
            if task is None or task.result():
                survivors.append(
                    f"{path}: {name}: {explanation(path, code)}\n"
                    f"{difference(path, code)}"
                )
                print(survivors[-1], flush=True)

    explained = tasks.count(None)
    changing, killed = len(work) - explained, len(work) - len(survivors)
    print(f"{killed} of {changing} faults found, and {explained} explained")
    found = {
        "mutants": changing,
        "killed": killed,
        "explained": explained,
        "survivors": survivors,
    }
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

"""The project's chores: `nox` tests everything, `nox -l` lists the rest."""

import os
import pathlib
import shutil
import sys

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = [
    "lint",
    "tests",
    "inference",
    "integration",
    "table",
]

BACKENDS = ["tensorflow", "jax", "torch"]
# On these, Keras runs models but does not train them.
INFERENCE = ["numpy", "openvino"]
PYPROJECT = nox.project.load_toml("pyproject.toml")
PIP = ("python", "-m", "pip", "--quiet")
# In tests, XLA takes longer to compile programs than to run them.
XLA_FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
)
REPORTS = pathlib.Path("build", "table").resolve()
WHEEL = f"keras_td-{PYPROJECT['project']['version']}-py3-none-any.whl"

# An environment holds one backend, except for tools that bring another.
each_backend = nox.parametrize("backend", BACKENDS, ids=BACKENDS)
each_inference = nox.parametrize("backend", INFERENCE, ids=INFERENCE)
chosen = os.environ.get("KERAS_BACKEND") or "jax"
chosen_backend = nox.parametrize("backend", [chosen], ids=[chosen])


def groups(*names):
    return nox.project.dependency_groups(PYPROJECT, *names)


def use(session, backend):
    session.env.update(KERAS_BACKEND=backend, TF_CPP_MIN_LOG_LEVEL="3")


@nox.session
def lint(session):
    """Check style and types."""
    session.install(*groups("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


def install(session, *names):
    # Tests import little of what Python would compile here.
    session.install("--no-compile", "-e", ".", *groups(*names, "test"))


def install_keras_2(session):
    # It requires a second TensorFlow, beside the CPU build.
    session.install("--no-deps", "tf_keras")


def run_tests(session, backend, *args, xla_flags=XLA_FLAGS):
    use(session, backend)
    # Tests are small: a process per core is faster than threads.
    session.env.update(OMP_NUM_THREADS="1", TF_NUM_INTRAOP_THREADS="1")
    cache = pathlib.Path(session.create_tmp(), "jax").resolve()
    session.env.update(
        XLA_FLAGS=" ".join(xla_flags),
        JAX_COMPILATION_CACHE_DIR=str(cache),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    # Only whole runs are for the table.
    report = [f"--report={REPORTS / session.name}.json"]
    workers = ("-n", "auto", "--maxprocesses", "4", "--dist", "worksteal")
    args += tuple(session.posargs or report)
    session.run("pytest", *workers, *args)


@nox.session
@each_backend
def tests(session, backend):
    """Run the tests on one backend; arguments go to pytest."""
    install(session, backend)
    if backend == "tensorflow":
        install_keras_2(session)
    run_tests(session, backend)


@nox.session
@each_inference
def inference(session, backend):
    """Run the tests that need no training."""
    install(session, backend)
    run_tests(session, backend)


@nox.session
@each_backend
def slow(session, backend):
    """Run the checks of models that take seconds to make."""
    install(session, backend)
    run_tests(session, backend, "-m", "slow")


@nox.session
@each_backend
def keras_hub(session, backend):
    """Upgrade a model that reads sentences with an encoder of KerasHub."""
    install(session, backend, "keras-hub")
    # It requires TensorFlow, for preprocessing texts.
    session.install("--no-deps", "keras-hub")
    use(session, backend)
    session.run("pytest", "tests/test_keras_hub.py", *session.posargs)


@nox.session
@each_backend
def exports(session, backend):
    """Export models, run them elsewhere, and print which are the same."""
    install(session, backend, f"exports-{backend}")
    use(session, backend)
    print_cells(session, "tests/test_exports.py")


@nox.session
@each_backend
def distributed(session, backend):
    """Train models on many devices, and print which train as on one."""
    install(session, backend)
    use(session, backend)
    print_cells(session, "tests/test_distributed.py", "-m", "distributed")


@nox.session
@each_backend
def pipelines(session, backend):
    """Augment clips in `tf.data`, PyTorch's `DataLoader` and `grain`."""
    install(session, backend, "pipelines")
    use(session, backend)
    session.run("pytest", "tests/test_pipelines.py", *session.posargs)


def print_cells(session, tests, *options):
    report = REPORTS / f"{session.name}.json"
    # In one process, as some tools write to the output that xdist uses.
    args = session.posargs or ["-q"]
    # One of these tools brings a plugin that warns.
    args = ["-p", "no:anyio", f"--report={report}", *options, *args]
    # If tests fail, the table shows which, and fails.
    session.run("pytest", tests, *args, success_codes=[0, 1])
    session.run("python", "tests/table.py", str(report))


@nox.session
@each_backend
def minimums(session, backend):
    """Run the tests on the oldest Keras, with backends of its time."""
    install(session, f"minimum-{backend}")
    # That XLA does not know the other flag.
    run_tests(session, backend, xla_flags=XLA_FLAGS[:1])


@nox.session(python="3.13")
@each_backend
def newest(session, backend):
    """Run the tests on the newest Python that all backends support."""
    install(session, backend)
    run_tests(session, backend)


@nox.session
@each_backend
def nightly(session, backend):
    """Run the tests on the nightly build of Keras."""
    install(session, backend)
    # Both packages install the same files.
    session.run_install(*PIP, "uninstall", "-y", "keras", "keras-nightly")
    session.install("--no-deps", "--force-reinstall", "--pre", "keras-nightly")
    run_tests(session, backend)


@nox.session
def mutation(session):
    """Count the small faults in keras_td that the tests notice."""
    use(session, "torch")
    session.env["OMP_NUM_THREADS"] = "1"
    install(session, "torch", "mutation")
    report = str(REPORTS / "mutation.json")
    session.run("python", "tests/mutation.py", report, *session.posargs)


@nox.session(venv_backend="none")
def table(session):
    """Print which layers work on which backends, from the last runs."""
    needed = [f"tests({backend})" for backend in BACKENDS]
    needed += [f"inference({backend})" for backend in INFERENCE]
    script = (sys.executable, "tests/table.py", str(REPORTS))
    session.run(*script, *needed, external=True)


@nox.session
@each_backend
def integration(session, backend):
    """Try the built wheel in a clean environment, as a user would."""
    use(session, backend)
    tmp = session.create_tmp()
    session.run(*PIP, "wheel", "--no-deps", "-w", tmp, ".", silent=True)
    wheel = f"{tmp}/{WHEEL}"
    needed = groups(backend, "test", "types")
    session.install("--no-compile", wheel, *needed)
    # A reused environment holds an earlier wheel.
    session.run(*PIP, "install", "--no-deps", "--force-reinstall", wheel)
    session.chdir("integration_tests")
    session.run("pytest", *session.posargs)


@nox.session(name="release-check")
@chosen_backend
def release_check(session, backend):
    """Build the sdist and the wheel, and try each in a clean environment."""
    use(session, backend)
    session.install(*groups("release"))
    dist = pathlib.Path("dist").resolve()
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist), silent=True)
    built = list(map(str, dist.iterdir()))
    session.run("twine", "check", "--strict", *built)
    clean = session.virtualenv.location + "-clean"
    _, *pip = PIP
    python = f"{clean}/bin/python"
    needed = groups(backend, "test", "types")
    for path in built:
        session.run("python", "-m", "venv", "--clear", clean)
        session.run(python, *pip, "install", path, *needed, external=True)
        with session.chdir("integration_tests"):
            pytest = (python, "-m", "pytest", *session.posargs)
            session.run(*pytest, external=True)


@nox.session
@chosen_backend
def demo(session, backend):
    """Run the examples on the backend that KERAS_BACKEND names, else JAX."""
    use(session, backend)
    # TensorFlow prints in each process that oneDNN is on.
    session.env["TF_ENABLE_ONEDNN_OPTS"] = "0"
    session.install("-e", ".", *groups(backend, "demo"))
    session.run("python", "examples/read_digits.py", *session.posargs)
    session.run("python", "examples/augment_clips.py")
    session.run("python", "examples/show_masks.py")
    session.run("python", "examples/explain_clips.py")
    session.run("python", "examples/read_documents.py")
    session.run("python", "examples/export.py")
    session.run("python", "examples/train_on_many_devices.py")


@nox.session
@each_backend
def scenarios(session, backend):
    """Compare with Keras's own layer; the last backend prints the table."""
    use(session, backend)
    session.install("-e", ".", *groups(backend))
    reports = pathlib.Path("build", "scenarios").resolve()
    reports.mkdir(parents=True, exist_ok=True)
    script = ("python", "benchmarks/scenarios")
    report = str(reports / f"{backend}.json")
    session.run(*script, "--json", report, *session.posargs)
    files = [reports / f"{name}.json" for name in BACKENDS]
    if all(path.exists() for path in files):
        session.run(*script, "--merge", *map(str, files))


def benchmark(session, backend, script, *names):
    use(session, backend)
    session.install("-e", ".", *groups(*names or [backend]))
    session.run("python", f"benchmarks/{script}.py", *session.posargs)


@nox.session
@each_backend
def bench(session, backend):
    """Measure speed and memory, and update the charts and tables."""
    if backend == "tensorflow":
        install_keras_2(session)
    hardware = "cuda-" if shutil.which("nvidia-smi") else ""
    benchmark(session, backend, "bench", "bench", hardware + backend)
    session.run("python", "benchmarks/padding.py")
    session.run("python", "benchmarks/report.py")


@nox.session
@each_backend
def padding(session, backend):
    """Measure what `skip_masked` saves, as the last part of `bench` does."""
    benchmark(session, backend, "padding", "bench", backend)
    session.run("python", "benchmarks/report.py")


@nox.session
@each_backend
def memory(session, backend):
    """Measure the memory of training on a long clip."""
    benchmark(session, backend, "memory")


@nox.session
@each_backend
def speed(session, backend):
    """Time `steps_per_call=1` against Keras's own layer."""
    benchmark(session, backend, "speed")


@nox.session
def compile_time(session):
    """Time compilation on JAX, against Keras's own layer."""
    benchmark(session, "jax", "compile_time")

"""An exported model equals the model, for any batch and time."""

import keras
import pytest

from case import one_or_all
from exported import MODELS
from exported import OPTIONS
from exporting import FORMATS
from exporting import LIMITS
from exporting import leave_options_out
from reference import as_numpy
from reference import assert_close
from table import ALIKE

pytest.importorskip("onnxruntime", reason="`nox -s exports` installs it")
# Exporters and runtimes warn of their own code.
pytestmark = pytest.mark.filterwarnings("ignore")
BACKEND = keras.backend.backend()
# This begins the reason if a model can be exported without the option.
WITHOUT = "Without the option it works. "
HERE = [name for name, of in FORMATS.items() if BACKEND in of.backends]
LIMITS_HERE = [limit for limit in LIMITS if limit.backend == BACKEND]


def export_and_compare(model, example, name_of_format, rng, folder):
    model(one_or_all(example.draw(rng, 2, 3)))

    of = FORMATS[name_of_format]
    run = of.export(model, folder, example)

    for batch, time in of.sizes:
        arrays = example.draw(rng, batch, time)
        y = as_numpy(run(arrays))
        assert_close(y, as_numpy(model(one_or_all(arrays))))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name_of_format", HERE)
@pytest.mark.parametrize("name", MODELS)
def test_an_export_gives_what_the_model_gives(
    name, name_of_format, option, rng, tmp_path, record_property
):
    record_property("cell", [name, name_of_format])
    record_property("check", option)
    example = MODELS[name]
    model = example.with_options(**OPTIONS[option])
    limits = (x for x in LIMITS_HERE if x.holds(name_of_format, name, option))
    limit = next(limits, None)
    if limit:
        with pytest.raises(Exception, match=limit.message):
            export_and_compare(model, example, name_of_format, rng, tmp_path)
        pytest.xfail(f"{WITHOUT if limit.options else ALIKE}{limit.reason}")

    export_and_compare(model, example, name_of_format, rng, tmp_path)


@pytest.mark.parametrize(
    ("limit", "name"),
    [(x, name) for x in LIMITS_HERE if not x.options for name in x.models],
)
def test_a_limit_is_that_of_a_model_by_hand(limit, name, rng, tmp_path):
    example = MODELS[name]
    with pytest.raises(Exception, match=limit.message):
        export_and_compare(
            example.by_hand(), example, limit.format, rng, tmp_path
        )


@pytest.mark.parametrize(
    ("limit", "option"), [(x, o) for x in LIMITS_HERE for o in x.options]
)
def test_what_a_limit_stops_exports_without_the_option(
    limit, option, rng, tmp_path
):
    example = MODELS[limit.models[0]]
    model = example.with_options(**OPTIONS[option])

    leave_options_out(model)

    export_and_compare(model, example, limit.format, rng, tmp_path)

"""The examples that users read run as they stand."""

import doctest
import pathlib
import re

import keras
import pytest

import keras_td
from backends import needs
from pages import blocks_of
from pages import run_blocks

TOP = pathlib.Path(__file__).parent.parent
PAGES = [TOP / "README.md", *sorted(TOP.glob("docs/*.md"))]
# `nox -s pipelines` installs what it needs.
PAGES.remove(TOP / "docs" / "pipelines.md")


NEEDED = {"activations": needs("training"), "memory": needs("remat")}
# A page without blocks would pass. Most have one at least.
LEAST_BLOCKS = {"README": 2, "development": 0, "performance": 0}


# A page shows how.
@pytest.mark.filterwarnings("ignore:.*this layer does not support masking")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=NEEDED.get(page.stem, ()))
        for page in PAGES
    ],
)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some save models
    run_blocks(page)

    assert len(blocks_of(page)) >= LEAST_BLOCKS.get(page.stem, 1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_links_of_a_page_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())

    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


@needs("remat")
@pytest.mark.parametrize("name", keras_td.__all__)
def test_docstring(name):
    found = doctest.DocTestFinder().find(
        getattr(keras_td, name), globs={"keras": keras, "keras_td": keras_td}
    )
    results = [doctest.DocTestRunner().run(test) for test in found]
    assert sum(result.attempted for result in results) > 1
    assert not any(result.failed for result in results)

"""The examples that users read run as they stand."""

import doctest
import pathlib

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


@needs("remat")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page):
    run_blocks(page)

    assert len(blocks_of(page)) > (3 if page.stem == "README" else 0)


@needs("remat")
@pytest.mark.parametrize("name", keras_td.__all__)
def test_docstring(name):
    found = doctest.DocTestFinder().find(
        getattr(keras_td, name), globs={"keras": keras, "keras_td": keras_td}
    )
    results = [doctest.DocTestRunner().run(test) for test in found]
    assert sum(result.attempted for result in results) > 1
    assert not any(result.failed for result in results)

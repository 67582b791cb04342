"""The examples that users read run as they stand."""

import doctest
import pathlib
import re

import keras
import pytest

import keras_td
from backends import needs

TOP = pathlib.Path(__file__).parent.parent
PAGES = [TOP / "README.md", *sorted(TOP.glob("docs/*.md"))]


@needs("remat")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    namespace = {}
    for block in blocks:
        exec(block, namespace)
    assert len(blocks) > (3 if page.stem == "README" else 0)


@needs("remat")
@pytest.mark.parametrize("name", keras_td.__all__)
def test_docstring(name):
    found = doctest.DocTestFinder().find(
        getattr(keras_td, name), globs={"keras": keras, "keras_td": keras_td}
    )
    results = [doctest.DocTestRunner().run(test) for test in found]
    assert sum(result.attempted for result in results) > 1
    assert not any(result.failed for result in results)

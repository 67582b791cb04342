"""The examples that users read run as they stand."""

import doctest
import pathlib
import re

import keras

import keras_td
from backends import needs

README = pathlib.Path(__file__).parent.parent / "README.md"


@needs("remat")
def test_readme():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    namespace = {}
    for block in blocks:
        exec(block, namespace)
    assert len(blocks) > 3


@needs("remat")
def test_docstring():
    found = doctest.DocTestFinder().find(
        keras_td.TimeDistributed, globs={"keras": keras, "keras_td": keras_td}
    )
    results = [doctest.DocTestRunner().run(test) for test in found]
    assert sum(result.attempted for result in results) > 2
    assert not any(result.failed for result in results)

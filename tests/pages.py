"""Runs the Python blocks of documentation pages."""

import re


def run_blocks(page):
    """Runs the blocks of a page in order, and returns the names they define."""
    names: dict = {}
    for block in blocks_of(page):
        exec(block, names)
    return names


def blocks_of(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)

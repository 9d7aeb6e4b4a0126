"""The examples in the docstrings of the Python modules give what they say."""

import doctest
import importlib

import pytest

MODULES = [
    *("cli.flags", "lab.columns", "lab.formatting", "lab.statistics", "metrics", "toml_lines"),
    *("tunnel.api", "tunnel.metrics_server", "tunnel.settings"),
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    found = doctest.testmod(importlib.import_module(f"t2s.{name}"))
    assert found.attempted > 0
    assert found.failed == 0

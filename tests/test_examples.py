"""The examples in the docstrings of the Python modules give what they say."""

import doctest
import importlib

import pytest

MODULES = ["columns", "flags", "metrics", "metrics_server", "numbers", "settings", "statistics", "toml_lines", "tunnel"]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    found = doctest.testmod(importlib.import_module(f"t2s.{name}"))
    assert found.attempted > 0
    assert found.failed == 0

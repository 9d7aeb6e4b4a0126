"""Both surfaces walked: what the extension exports, what the package re-exports, what the stub says."""

import ast
import doctest
import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import t2s
from t2s import _core

STUB = ast.parse(Path(_core.__file__).with_name("_core.pyi").read_text(encoding="utf-8"))
WRAPPED = {"Tunnel", "Proxy"}  # the package has classes with typed settings around these
NAMES = [name for name in _core.__all__ if name != "__version__"]


def documented():
    """Everything public that can have a docstring: (dotted name, object)."""
    for name in NAMES:
        value = getattr(_core, name)
        yield name, value
        if inspect.isclass(value):
            yield from ((f"{name}.{member}", of) for member, of in vars(value).items() if not member.startswith("_"))


def test_the_package_exports_all_of_the_core():
    assert len(NAMES) > 8, "the walk found the surface"
    assert set(_core.__all__) <= set(t2s.__all__)
    for name in NAMES:
        assert (getattr(t2s, name) is getattr(_core, name)) != (name in WRAPPED)


@pytest.mark.parametrize("name", sorted(WRAPPED))
def test_wrappers_have_all_of_the_core(name):
    walked = {member for member in vars(getattr(_core, name)) if not member.startswith("_")} - {"defaults"}
    assert len(walked) > 2, "the walk found the class"
    assert walked <= set(vars(getattr(t2s, name)))


def test_all_names_exist():
    for name in t2s.__all__:
        assert getattr(t2s, name) is not None
    assert set(t2s.__all__) <= set(dir(t2s))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = t2s.nonsense


def test_modules_import_from_where_a_name_stands():
    """An import from the package itself would hide from import-linter which layer it leads to."""
    files = sorted(Path(t2s.__file__).parent.glob("*/*.py"))
    assert len(files) > 30, "the walk found the modules"
    froms = [
        (node.module, alias.name)
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert {name for module, name in froms if module == "t2s"} == {"_core"}


def test_the_stub_names_the_same():
    stubbed = {node.name for node in STUB.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assert {name for name in stubbed if not name.startswith("_")} == set(NAMES)


def test_everything_has_a_docstring():
    seen = dict(documented())
    assert len(seen) > 15, "the walk went into the classes"
    assert [name for name, value in seen.items() if not (value.__doc__ or "").strip()] == []


def test_exceptions_have_one_root():
    errors = [getattr(t2s, name) for name in NAMES if inspect.isclass(getattr(t2s, name))]
    errors = [error for error in errors if issubclass(error, BaseException)]
    assert len(errors) > 4
    assert all(issubclass(error, t2s.T2sError) and error.__module__ == "t2s" for error in errors)


def test_instances_take_no_attributes():
    with pytest.raises(AttributeError):
        t2s.Histogram().anything = 1


EXAMPLES = [
    test
    for name, value in documented()
    for test in [doctest.DocTestParser().get_doctest(value.__doc__ or "", {}, f"t2s.{name}", None, 0)]
    if test.examples
]


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_docstring_examples(example):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said = []
    runner.run(example, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


def test_one_version():
    assert t2s.__version__ == version("t2s")


def test_import_stays_light():
    heavy = ("polars", "pydantic", "rich", "typer", "jinja2")
    code = f"import sys, t2s; print([name for name in {heavy!r} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"

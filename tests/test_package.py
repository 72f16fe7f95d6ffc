"""The package: what it needs, what it shows, and how its modules depend on each other."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
import tomllib
from pathlib import Path

import pytest

import iobatch
from tests.helpers import ROOT, run_python

PACKAGE = Path(iobatch.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Each module imports only from those before it.
ORDER = (
    "_errors",
    "_arguments",
    "_entries",
    "_core",
    "_batch",
    "_pagecache",
    "_send",
    "_write",
    "_sendall",
    "_tls",
    "filters",
    "aio._budget",
    "aio._readahead",
    "aio._operation",
    "aio._queue",
    "aio._watch",
    "aio._sender",
    "aio._writer",
    "aio._stream",
)


def modules() -> list[str]:
    """Return the modules of the package, without those that only show others' names."""
    paths = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    return [".".join(path.with_suffix("").parts) for path in paths if path.stem != "__init__"]


def imported(module: str) -> set[str]:
    """Return the modules of the package that one of them imports, for typing too."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.removeprefix("iobatch.") for name in names if name.startswith("iobatch.")}


def test_version() -> None:
    """The installed version is the project's, and the newest in the changelog."""
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert importlib.metadata.version("iobatch") == PROJECT["version"] == changes[0]


def test_dependencies() -> None:
    """The library needs attrs and nothing else."""
    assert [re.split(r"[<>=]", name)[0] for name in PROJECT["dependencies"]] == ["attrs"]


def test_import() -> None:
    """Importing it imports no package but attrs, and warns of nothing."""
    result = run_python(
        "import sys; before = set(sys.modules); import iobatch\n"
        "added = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(added - sys.stdlib_module_names))"
    )
    assert (result.stdout, result.stderr) == ("attr attrs iobatch\n", "")


def test_names() -> None:
    """Each public name is there, sorted, and __init__ does nothing but import them."""
    assert iobatch.__all__ == sorted(iobatch.__all__, key=lambda name: (not name.isupper(), name))
    for name in iobatch.__all__:
        assert hasattr(iobatch, name)
    body = ast.parse((PACKAGE / "__init__.py").read_text()).body
    kinds = [type(node) for node in body]
    assert kinds == [ast.Expr, *[ast.ImportFrom] * (len(body) - 2), ast.Assign]


@pytest.mark.parametrize("name", [name for name in iobatch.__all__ if not name.isupper()])
def test_typed_and_documented(name: str) -> None:
    """Each public function, class and method has a docstring and is fully annotated."""
    thing = getattr(iobatch, name)
    members = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
    for member in [thing, *members.values()] if inspect.isclass(thing) else [thing]:
        assert inspect.getdoc(member)
        if inspect.isfunction(member):
            annotations = {*member.__annotations__, "self"}
            assert annotations >= {*inspect.signature(member).parameters, "return"}
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_one_way(module: str) -> None:
    """A module imports only from those before it."""
    assert imported(module) <= set(ORDER[: ORDER.index(module)])


def test_every_module_has_its_place() -> None:
    """The order of imports names every module."""
    assert sorted(modules()) == sorted(ORDER)


@pytest.mark.parametrize("module", ["_arguments", "_entries", "_core", "_batch"])
def test_what_accounts_for_bytes_sees_no_socket(module: str) -> None:
    """The batch and its core never see a socket."""
    assert "import socket" not in (PACKAGE / f"{module}.py").read_text()


def test_the_page_cache_knows_no_loop() -> None:
    """Whether a range is cached is told without any event loop, so that all can use it."""
    assert "asyncio" not in (PACKAGE / "_pagecache.py").read_text()

"""The package: its version, dependencies and public names, and the order of its imports."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import iobatch
from iobatch import COPY_LIMIT, IOB_AGAIN, IOB_DONE, IOB_ERROR, SEND_LIMIT, WRITE_LIMIT
from tests.support.programs import ROOT, run_python

PACKAGE = Path(iobatch.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Each module of the library imports only from the modules before it.
IMPORT_ORDER = (
    "_forms",
    "_errors",
    "_arguments",
    "_files",
    "_entries",
    "_core",
    "_batch",
    "_pagecache",
    "_target",
    "_send",
    "_write",
    "_sendall",
    "_tls",
    "filters",
    "aio._pipelines",
    "aio._budget",
    "aio._readahead",
    "aio._posted",
    "aio._operation",
    "aio._queue",
    "aio._watch",
    "aio._sender",
    "aio._writer",
    "aio._stream",
    "anyio",
    "typing",
)
DOCUMENTED_NAMES = {
    "COMPILED",
    "COPY_LIMIT",
    "IOB_AGAIN",
    "IOB_DONE",
    "IOB_ERROR",
    "SEND_LIMIT",
    "WRITE_LIMIT",
    "IOBatch",
    "TruncatedFileError",
    "iob_send",
    "iob_sendall",
    "iob_sendmsg",
    "iob_write",
}


def module_names() -> set[str]:
    """Return the names of all modules, without each package's `__init__` and the build's hook."""
    paths = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    names = {".".join(path.with_suffix("").parts) for path in paths if path.stem != "__init__"}
    return names - {"_build"}


def is_of_server(name: str) -> bool:
    """Return whether a module is of the file server: it uses the library, and not vice versa."""
    return name.split(".", maxsplit=1)[0] == "httpd"


def imports(module: str) -> set[str]:
    """Return the modules and packages of iobatch that a module imports, for typing too."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    modules = {f"iobatch.{name}" for name in (*module_names(), "_speedups")}
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            imported.update(submodules or {node.module})
    own = {name for name in imported if name.split(".")[0] == "iobatch"}
    return {name.removeprefix("iobatch.") for name in own}


def test_version_is_the_newest_in_the_changelog() -> None:
    """A section of changes that are not released has no date."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(\S+)\] - [\d-]+$", changelog, re.MULTILINE)
    assert importlib.metadata.version("iobatch") == PROJECT["version"] == released[0]


def test_attrs_is_the_only_dependency() -> None:
    assert [re.split(r"[<>=]", name)[0] for name in PROJECT["dependencies"]] == ["attrs"]


def test_import_loads_no_package_except_attrs_and_prints_no_warning() -> None:
    """A module that Cython compiled adds names for Cython's own use, which have no spec."""
    result = run_python(
        "import sys; before = set(sys.modules); import iobatch\n"
        "names = set(sys.modules) - before\n"
        "loaded = [name for name in names if getattr(sys.modules[name], '__spec__', None)]\n"
        "added = {name.partition('.')[0] for name in loaded}\n"
        "print(*sorted(added - sys.stdlib_module_names))"
    )
    assert (result.stdout, result.stderr) == ("attr attrs iobatch\n", "")


def test_codes_and_limits_are_plain_ints_with_the_documented_values() -> None:
    assert (IOB_DONE, IOB_AGAIN, IOB_ERROR) == (0, -1, -3)
    assert (SEND_LIMIT, WRITE_LIMIT) == (2 * 1024 * 1024, 64 * 1024)
    assert 8 * 1024 <= COPY_LIMIT <= 64 * 1024
    for value in (IOB_DONE, IOB_AGAIN, IOB_ERROR, SEND_LIMIT, WRITE_LIMIT, COPY_LIMIT):
        assert type(value) is int


def test_package_exports_the_documented_names() -> None:
    """The py.typed marker is installed, so type checkers read the annotations (PEP 561)."""
    assert set(iobatch.__all__) >= DOCUMENTED_NAMES
    assert all(hasattr(iobatch, name) for name in iobatch.__all__)
    assert (PACKAGE / "py.typed").is_file()


def test_all_is_sorted_and_init_contains_only_imports() -> None:
    assert iobatch.__all__ == sorted(iobatch.__all__, key=lambda name: (not name.isupper(), name))
    body = ast.parse((PACKAGE / "__init__.py").read_text()).body
    kinds = [type(node) for node in body]
    assert kinds == [ast.Expr, *[ast.ImportFrom] * (len(body) - 2), ast.Assign]


@pytest.mark.parametrize("name", [name for name in iobatch.__all__ if not name.isupper()])
def test_public_function_or_class_is_documented_and_annotated(name: str) -> None:
    """The methods of a class are, too."""
    public = getattr(iobatch, name)
    members = {key: value for key, value in vars(public).items() if not key.startswith("_")}
    for member in [public, *members.values()] if inspect.isclass(public) else [public]:
        assert inspect.getdoc(member)
        if inspect.isfunction(member):
            annotations = {*member.__annotations__, "self"}
            assert annotations >= {*inspect.signature(member).parameters, "return"}


@pytest.mark.parametrize("module", IMPORT_ORDER)
def test_module_imports_only_from_modules_before_it(module: str) -> None:
    before = IMPORT_ORDER[: IMPORT_ORDER.index(module)]
    assert imports(module) - {"_speedups"} <= set(before)


def test_only_one_module_imports_the_compiled_one() -> None:
    assert [name for name in module_names() if "_speedups" in imports(name)] == ["_forms"]


def test_import_order_names_every_module_of_the_library() -> None:
    assert {name for name in module_names() if not is_of_server(name)} == set(IMPORT_ORDER)


def test_modules_of_the_server_import_each_other_without_a_cycle() -> None:
    graph = {name: imports(name) for name in module_names() if is_of_server(name)}
    assert graph
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("module", ["_arguments", "_files", "_entries", "_core", "_batch"])
def test_modules_of_the_batch_import_no_socket(module: str) -> None:
    source = (PACKAGE / f"{module}.py").read_text()
    assert not re.search(r"^\s*(import|from) socket\b", source, re.MULTILINE)


def test_page_cache_module_imports_no_asyncio() -> None:
    """A probe works without an event loop, so any loop can use it."""
    assert "asyncio" not in (PACKAGE / "_pagecache.py").read_text()

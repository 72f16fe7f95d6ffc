"""Annotations and help: what type checkers, typing.get_type_hints() and help() show of the API."""

from __future__ import annotations

import array
import ast
import inspect
import pydoc
import re
import sys
import typing
from typing import TYPE_CHECKING, Any

import pytest

import iobatch
import iobatch.aio
import iobatch.anyio
import iobatch.filters
import iobatch.typing
from tests.support.programs import ROOT, run_python

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

MODULES = (iobatch, iobatch.aio, iobatch.anyio, iobatch.filters)
USAGE = sorted((ROOT / "tests" / "typing").glob("*_usage.py"))

# The library makes operations, a program has transforms of its own, and enums have members.
NEVER_CALLED = {"CancellationType", "Transform", "WriteOperation", "WriteStatus"}
NEVER_KEYWORDS = {"self", "seconds"}  # `seconds` are of setters


def is_ours(thing: Any) -> bool:
    """Return whether this library defines a class or function."""
    return str(getattr(thing, "__module__", "")).partition(".")[0] == "iobatch"


def functions_of(cls: type) -> Iterator[tuple[str, Any]]:
    """Give the public and the magic functions of a class, inherited ones and getters included."""
    for base in filter(is_ours, cls.__mro__):
        for name, member in vars(base).items():
            if name.startswith("_") and not name.endswith("__"):
                continue
            functions: tuple[Any, ...] = (member,)
            if isinstance(member, property):
                functions = (member.fget, member.fset)
            elif isinstance(member, classmethod | staticmethod):
                functions = (member.__func__,)
            for function in functions:
                if inspect.isroutine(function) and is_ours(function):
                    yield name, function


def public_things() -> Iterator[tuple[str, Any]]:
    """Give each public class, function, method and getter, with its name."""
    for module in MODULES:
        for name in module.__all__:
            thing = getattr(module, name)
            if not callable(thing):
                continue
            yield f"{module.__name__}.{name}", thing
            if inspect.isclass(thing):
                for member, function in functions_of(thing):
                    yield f"{module.__name__}.{name}.{member}", function


THINGS = list(public_things())


def test_walk_finds_methods_getters_setters_and_magic_methods() -> None:
    names = [name for name, _ in THINGS]
    assert names.count("iobatch.aio.BatchWriter.timeout") == 2  # its getter and its setter
    for name in (
        "iobatch.iob_send",
        "iobatch.IOBatch",
        "iobatch.IOBatch.addfile",
        "iobatch.IOBatch.__enter__",
        "iobatch.IOBatch.error",
        "iobatch.filters.Filter.__init__",
        "iobatch.filters.Transform.compress",
        "iobatch.aio.BatchWriter.__aenter__",
    ):
        assert name in names


@pytest.mark.parametrize(("name", "thing"), THINGS, ids=[name for name, _ in THINGS])
def test_annotations_resolve_at_run_time(name: str, thing: Any) -> None:
    """Those of each parameter and of the result."""
    hints = typing.get_type_hints(thing)
    if inspect.isroutine(thing):
        parameters = [each for each in inspect.signature(thing).parameters if each != "self"]
        expected = {*parameters, "return"}
        assert {*hints} == expected, name


@pytest.mark.parametrize("name", iobatch.typing.__all__)
def test_type_for_annotations_resolves_in_a_function_of_another_program(name: str) -> None:
    result = run_python(
        f"from __future__ import annotations\n"
        f"import typing\n"
        f"from iobatch.typing import {name}\n"
        f"from iobatch.aio import BatchWriter\n"
        f"def function(argument: {name}): ...\n"
        f"assert typing.get_type_hints(function)"
    )
    assert (result.stderr, result.returncode) == ("", 0)


def test_buffer_never_refuses_a_buffer_at_run_time() -> None:
    """In Python 3.11, which has no such class, it is `object`."""
    for buffer in (b"", bytearray(), memoryview(b""), array.array("H")):
        assert isinstance(buffer, iobatch.typing.Buffer)
    assert (iobatch.typing.Buffer is object) == (sys.version_info < (3, 12))


def test_all_of_typing_is_sorted_and_its_docstring_names_each() -> None:
    names = iobatch.typing.__all__
    assert names == sorted(names)
    assert iobatch.typing.__doc__ is not None
    documented = re.findall(r"^    (\w+)", iobatch.typing.__doc__, re.MULTILINE)
    assert sorted(documented) == names


def keywords_in_usage() -> set[tuple[str, str]]:
    """Return each keyword argument in the typed usage, with the name of the called function."""
    found: set[tuple[str, str]] = set()
    for path in USAGE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = node.func
                name = called.attr if isinstance(called, ast.Attribute) else ast.unparse(called)
                found.update((name, each.arg) for each in node.keywords if each.arg)
    return found


def test_typed_usage_names_everything_public() -> None:
    words = set(re.findall(r"\w+", "\n".join(path.read_text() for path in USAGE)))
    for module in (*MODULES, iobatch.typing):
        assert words >= {*module.__all__}
    for name, thing in THINGS:
        member = name.rpartition(".")[2]
        assert inspect.isclass(thing) or member.startswith("__") or member in words, name


def test_typed_usage_gives_every_parameter_by_keyword() -> None:
    found = keywords_in_usage()
    missing = [
        (name, parameter.name)
        for name, thing in THINGS
        if (called := name.rpartition(".")[2]) not in NEVER_CALLED and not called.startswith("__")
        for parameter in inspect.signature(thing).parameters.values()
        if parameter.kind is not parameter.POSITIONAL_ONLY
        and parameter.name not in NEVER_KEYWORDS
        and (called, parameter.name) not in found
    ]
    assert missing == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_help_shows_public_names_and_nothing_generated(module: ModuleType) -> None:
    text = pydoc.plain(pydoc.render_doc(module))
    for name in module.__all__:
        assert re.search(rf"^    (class |async )?{name}\b", text, re.MULTILINE), name
    assert "__attrs" not in text
    assert "generated by attrs" not in text
    assert "__match_args__" not in text
    # The members of a class stand behind a bar. The private base of Protocol is Python's.
    members = set(re.findall(r"^ {5}\|  (_[a-z]\w*)", text, re.MULTILINE))
    assert members <= {"_no_init_or_replace_init"}


def test_help_of_the_package_leads_to_all_modules_pages_and_names() -> None:
    description = iobatch.__doc__ or ""
    for module in ("aio", "anyio", "filters", "httpd", "typing"):
        assert f"iobatch.{module}" in description
    for page in ("iobatch(7)", "iobatch-httpd(1)", "IOBatch(3)"):
        assert page in description
    names = [name for module in MODULES for name in module.__all__]
    assert [name for name in names if not re.search(rf"\b{name}\b", description)] == []

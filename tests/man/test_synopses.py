"""Synopses: the signatures and types of the public names."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any

import pytest

import iobatch
from iobatch import IOBatch, aio, filters
from tests.support.manpages import code

if TYPE_CHECKING:
    from collections.abc import Iterator

FUNCTIONS = [
    *(name for name in iobatch.__all__ if name.startswith("iob_")),
    "send_batch",
    "send_to_stream",
]
# The classes whose members a page shows, and the name that an instance has there.
CLASSES: dict[str, dict[type, str]] = {
    "IOBatch": {IOBatch: "batch"},
    "BatchWriter": {aio.BatchWriter: "writer"},
    "WriteOperation": {aio.WriteOperation: "operation"},
    "Filter": {filters.Filter: "filter", filters.Transform: "transform"},
    "Chunked": {filters.Chunked: "transform"},
    "TLS": {filters.TLS: "transform"},
}


def synopsis(page: str) -> tuple[Any, dict[str, str]]:
    """Return the function or class of a page, and the statements after the import by subject."""
    source = code(f"{page}.3", "SYNOPSIS")
    first, *others = re.findall(r"^\S.*\n(?: .*\n)*", source, re.MULTILINE)
    found = re.fullmatch(r"from (\S+) import (.+)\n", first)
    assert found
    assert page in found[2].split(", ")
    module = importlib.import_module(found[1])
    assert {*found[2].split(", ")} <= {*module.__all__}
    statements = [re.sub(r"\s+", " ", statement).strip() for statement in others]
    by_subject = {re.split("[(:]", text.removeprefix("await "))[0]: text for text in statements}
    assert len(by_subject) == len(statements)
    return getattr(module, page), by_subject


def signature(statement: str) -> inspect.Signature:
    """Return the signature that a statement shows."""
    namespace: dict[str, Any] = {**vars(iobatch), **vars(filters), **vars(aio)}
    definition = re.sub(r"^.*?\(", "shown(", statement)
    exec(f"from __future__ import annotations\ndef {definition}: ...", namespace)
    return inspect.signature(namespace["shown"])


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Give the public members of a class and of its base classes."""
    for base in reversed(cls.__mro__[:-1]):
        for name, member in vars(base).items():
            if not name.startswith("_"):
                yield name, member


def fields(cls: type) -> dict[str, str]:
    """Return the annotations in a class and in its base classes."""
    return {
        name: annotation
        for base in cls.__mro__
        for name, annotation in inspect.get_annotations(base).items()
    }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_synopsis_of_a_function_is_its_signature(name: str) -> None:
    function, statements = synopsis(name)
    assert list(statements) == [name]
    assert signature(statements[name]) == inspect.signature(function)
    assert statements[name].startswith("await ") == inspect.iscoroutinefunction(function)


@pytest.mark.parametrize("page", CLASSES)
def test_synopsis_of_a_class_is_its_constructor_and_its_public_members(page: str) -> None:
    cls, statements = synopsis(page)
    if page == "WriteOperation":  # only a BatchWriter makes one
        assert statements.pop("operation") == "await operation"
    else:
        shown, actual = signature(statements[page]), inspect.signature(cls)
        assert shown.parameters == actual.parameters
        # The return type is left out where there are no parameters.
        assert statements.pop(page) == f"{page}()" or shown.return_annotation == "None"
    expected = {
        f"{instance}.{name}": (owner, name, member)
        for owner, instance in CLASSES[page].items()
        for name, member in members(owner)
    }
    assert set(statements) == set(expected)
    for subject, (owner, name, member) in expected.items():
        statement = statements[subject]
        if inspect.isroutine(member):
            actual = inspect.signature(member)
            without_self = list(actual.parameters.values())[1:]
            assert signature(statement) == actual.replace(parameters=without_self)
            assert statement.startswith("await ") == inspect.iscoroutinefunction(member)
        elif isinstance(member, property):
            assert member.fget is not None
            assert statement == f"{subject}: {inspect.get_annotations(member.fget)['return']}"
        else:
            assert statement == f"{subject}: {fields(owner)[name]}"


@pytest.mark.parametrize("name", aio.__all__)
def test_each_name_of_aio_has_a_docstring_and_full_annotations(name: str) -> None:
    thing = getattr(aio, name)
    assert inspect.getdoc(thing)
    parts = [member for _, member in members(thing)] if inspect.isclass(thing) else [thing]
    for function in [part for part in parts if inspect.isfunction(part)]:
        assert inspect.getdoc(function)
        parameters = {*inspect.signature(function).parameters, "return"} - {"self"}
        assert {*inspect.get_annotations(function)} >= parameters

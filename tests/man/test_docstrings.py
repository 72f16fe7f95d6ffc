"""Pages and docstrings agree: arguments, units, exceptions, return codes, names of iobatch(7)."""

from __future__ import annotations

import asyncio
import builtins
import errno
import inspect
import re
import ssl
from itertools import takewhile
from typing import Any

import anyio
import pytest
import trio

import iobatch
from iobatch import IOBatch, aio, filters, typing
from iobatch.anyio import send_batch
from tests.support.docstrings import Documented, documented
from tests.support.manpages import path, section

# The pages of section 3, and what each of them describes.
SUBJECTS: dict[str, tuple[Any, ...]] = {
    "iob_send": (iobatch.iob_send,),
    "iob_sendall": (iobatch.iob_sendall,),
    "iob_sendmsg": (iobatch.iob_sendmsg,),
    "iob_write": (iobatch.iob_write,),
    "send_batch": (send_batch,),
    "send_to_stream": (aio.send_to_stream,),
    "IOBatch": (IOBatch,),
    "BatchWriter": (aio.BatchWriter,),
    "WriteOperation": (aio.WriteOperation, aio.WriteStatus, aio.CancellationType),
    "Filter": (filters.Filter, filters.Transform),
    "Chunked": (filters.Chunked,),
    "TLS": (filters.TLS,),
}
DOCUMENTED = {
    page: [each for thing in things for each in documented(thing)]
    for page, things in SUBJECTS.items()
}
ALL = [(page, each) for page, parts in DOCUMENTED.items() for each in parts]
EXCEPTIONS = {
    name: thing
    for module in (trio, anyio, asyncio, ssl, iobatch, builtins)
    for name, thing in vars(module).items()
    if isinstance(thing, type) and issubclass(thing, BaseException)
}
NUMBERS = {"int", "int | None", "float | None", "Seconds"}
UNITS = re.compile(r"\b(?:bytes|seconds)\b", re.IGNORECASE)
SIZE = r"\b\d+ (?:bytes|KiB|MiB|seconds)\b"
every_page = pytest.mark.parametrize("page", SUBJECTS)
every_part = pytest.mark.parametrize(
    ("page", "part"), ALL, ids=[f"{page}-{part.name}" for page, part in ALL]
)


def body(page: str) -> list[str]:
    """Return the lines of a page of section 3 after its synopsis."""
    lines = path(f"{page}.3").read_text().splitlines()
    return lines[lines.index(".Sh DESCRIPTION") :]


def items(lines: list[str], macro: str, name: str) -> list[str]:
    """Return the items of lists whose header has a name, each as one text."""
    found = []
    for index, line in enumerate(lines):
        if re.match(rf"\.It {macro} (?:.* )?{re.escape(name)}(?: |$)", line):
            depth = 0
            text = [line]
            for each in lines[index + 1 :]:
                depth += each.startswith(".Bl ") - each.startswith(".El")
                if depth < 0 or (not depth and each.startswith(".It ")):
                    break
                text.append(each)
            found.append("\n".join(text))
    return found


def descriptions(page: str, argument: str) -> str:
    """Return the item of an argument, or else the paragraphs in which it occurs."""
    found = items(body(page), "Fa", argument)
    if not found:
        paragraphs = re.split(
            r"^\.(?:Pp|It|Bl|El|Ss|Sh)\b", "\n".join(body(page)), flags=re.MULTILINE
        )
        found = [text for text in paragraphs if re.search(rf"\bFa {argument}\b", text)]
    return "\n".join(found)


def exceptions(text: str) -> set[str]:
    """Return the exceptions that the macro Er marks in a text, without their modules."""
    marked = re.findall(r"\bEr ((?:[\w.]+(?: , )?)+)", text)
    names = {name.rpartition(".")[2] for each in marked for name in re.split(" , ", each)}
    return names & {*EXCEPTIONS}


def raised(part: Documented) -> set[str]:
    """Return the exceptions under Raises in a docstring, without their modules."""
    return {name.rpartition(".")[2] for name in part.entries("Raises")}


def numbers(part: Documented) -> list[str]:
    """Return the parameters that are numbers of bytes or seconds."""
    return [
        name
        for name, parameter in part.parameters().items()
        if name != "flags" and parameter.annotation in NUMBERS
    ]


@every_part
def test_each_exception_of_a_docstring_is_in_the_page(page: str, part: Documented) -> None:
    """ERRORS has it, or the item of the member."""
    own = items(body(page), "Fn", part.name)
    listed = exceptions("\n".join([*section(f"{page}.3", "ERRORS"), *own]))
    assert raised(part) <= listed


@every_page
def test_each_exception_in_errors_is_in_a_docstring(page: str) -> None:
    """A docstring names it, or a base class of it."""
    text = "\n".join(part.text for part in DOCUMENTED[page])
    headers = "\n".join(line for line in section(f"{page}.3", "ERRORS") if line.startswith(".It "))
    for name in exceptions(headers):
        bases = [each.__name__ for each in EXCEPTIONS[name].__mro__[:-3]]
        assert re.search(rf"\b(?:{'|'.join([*bases, name])})\b", text), name


@every_part
def test_each_errno_of_a_docstring_is_in_the_page(page: str, part: Documented) -> None:
    codes = {name for name in re.findall(r"\bE[A-Z]+\b", part.text) if hasattr(errno, name)}
    assert codes - {*re.findall(r"\bE[A-Z]+\b", "\n".join(body(page)))} == set()


@every_part
def test_each_argument_is_in_the_docstring_and_in_the_page(page: str, part: Documented) -> None:
    parameters = [*part.parameters()]
    assert [*part.entries("Args")] in ([], parameters)
    assert [name for name in parameters if not part.argument(name)] == []
    assert [name for name in parameters if not descriptions(page, name)] == []


@every_page
def test_each_argument_of_a_page_is_that_of_a_public_function(page: str) -> None:
    """A list of arguments has those of the page's own functions."""
    own = {name for part in DOCUMENTED[page] for name in part.parameters()}
    every = {name for _, part in ALL for name in part.parameters()}
    text = "\n".join(body(page))
    assert {*re.findall(r"^\.It Fa (\w+)", text, re.MULTILINE)} <= own
    assert {*re.findall(r"\bFa (\w+)", text)} <= every


@every_part
def test_each_number_has_a_unit_in_the_docstring_and_the_same_in_the_page(
    page: str, part: Documented
) -> None:
    for name in numbers(part):
        unit, *_ = *UNITS.findall(part.argument(name)), "no unit"
        assert unit.lower() in map(str.lower, UNITS.findall(descriptions(page, name))), name


@every_part
def test_each_size_and_time_in_a_docstring_is_in_the_page(page: str, part: Documented) -> None:
    shown = " ".join(body(page))
    assert {*re.findall(SIZE, part.text)} <= {*re.findall(SIZE, shown)}


@every_part
def test_each_limit_that_is_a_default_is_in_the_description_of_its_argument(
    page: str, part: Documented
) -> None:
    synopsis = " ".join(section(f"{page}.3", "SYNOPSIS"))
    for name, limit in re.findall(r"(\w+): [\w |]+ = (\w+_LIMIT)", synopsis):
        assert getattr(iobatch, limit) == part.parameters()[name].default
        assert f"Dv {limit}" in descriptions(page, name)


@every_page
def test_return_codes_are_those_of_the_docstrings(page: str) -> None:
    """Each docstring that has codes has all of them, in the order of the page."""
    shown = []
    for line in section(f"{page}.3", "RETURN VALUES"):
        code = re.fullmatch(r"\.It (?:(n > 0)|Dv (\w+) Pq (\\?-?\d))", line)
        if code:
            shown.append(code[1] or f"{code[2]} ({code[3].removeprefix(chr(92))})")
    code_name = re.compile(r"n > 0|IOB_\w+ \(-?\d\)")
    entries = [[*filter(code_name.fullmatch, part.entries("Returns"))] for part in DOCUMENTED[page]]
    codes = [each for each in entries if each]
    assert all(each == shown for each in codes)
    assert bool(codes) == bool(shown)


@every_page
def test_methods_in_return_values_return_something(page: str) -> None:
    """Each of those has the section Returns, or begins with Return."""
    text = "\n".join(section(f"{page}.3", "RETURN VALUES"))
    own = {part.name: part for part in DOCUMENTED[page] if part.owner}
    for name in own.keys() & {*re.findall(r"\bFn (\w+)", text)}:
        assert re.search(r"^Returns?\b|\breturn\b", own[name].text, re.MULTILINE), name
        assert inspect.signature(own[name].thing).return_annotation != "None", name
    returning = {name for name, part in own.items() if "\nReturns:\n" in part.text}
    assert returning <= {*re.findall(r"\bFn (\w+)", text)}


def test_overview_describes_each_constant_each_exception_and_each_type() -> None:
    functions = {name for name in iobatch.__all__ if name.startswith("iob_")}
    names = {*iobatch.__all__, *typing.__all__} - functions - {"IOBatch"}
    lines = section("iobatch.7", "DESCRIPTION")
    listed = {
        name
        for line in lines
        if re.match(r"\.(?:It )?(?:Dv|Va|Vt|Er|Em) ", line)
        for name in re.findall(r"\b[A-Za-z]\w*\b", line)
    }
    assert names <= listed


def test_docstring_of_the_types_lists_each_of_them() -> None:
    assert typing.__doc__
    table = takewhile(bool, typing.__doc__.split("\n\n")[1].splitlines())
    assert sorted(re.match(r" {4}(\w+)", line)[1] for line in table) == typing.__all__  # type: ignore[index]


def test_docstring_of_the_package_has_each_public_name() -> None:
    assert iobatch.__doc__
    modules = (iobatch, filters, aio)
    names = [name for module in modules for name in module.__all__]
    assert [name for name in names if not re.search(rf"\b{name}\b", iobatch.__doc__)] == []

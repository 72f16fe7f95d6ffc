"""The man pages of iobatch.aio say what the code does."""

from __future__ import annotations

import asyncio
import errno
import inspect
import re
from typing import TYPE_CHECKING, Any

import pytest

import iobatch
from iobatch import IOBatch, aio
from iobatch.aio import BatchWriter, WriteOperation, WriteStatus
from tests.helpers import data
from tests.loops import batch_of, both_loops, full_writer, read, writer_pair
from tests.test_aio_stream import stream
from tests.test_man import code, example, section

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAGES = {"BatchWriter": BatchWriter, "WriteOperation": WriteOperation}


def synopsis(name: str) -> dict[str, str]:
    """Return the statements of a synopsis behind its import, by the name that each is about."""
    first, *others = re.findall(r"^\S.*\n(?: .*\n)*", code(f"{name}.3", "SYNOPSIS"), re.MULTILINE)
    assert name in first.removeprefix("from iobatch.aio import ").strip().split(", ")
    bare = [re.sub(r"^(await )?(writer\.|operation\.)?", "", other.strip()) for other in others]
    return {re.split("[(:]", statement)[0]: statement for statement in bare}


def signature(statement: str) -> inspect.Signature:
    """Return the signature that a statement of a synopsis shows."""
    namespace: dict[str, Any] = {**vars(iobatch), **vars(aio)}
    exec(f"from __future__ import annotations\ndef {statement}: ...", namespace)
    function = namespace[statement.partition("(")[0]]
    return inspect.signature(function)


def members(cls: type) -> dict[str, Any]:
    """Return the public members of a class and of what it is derived from."""
    return {
        name: member
        for part in reversed(cls.__mro__[:-1])
        for name, member in vars(part).items()
        if not name.startswith("_")
    }


@pytest.mark.parametrize("name", PAGES)
def test_class(name: str) -> None:
    """The synopsis of a class has each of its public members, with its signature or type."""
    cls = PAGES[name]
    statements = synopsis(name)
    if name == "WriteOperation":
        assert statements.pop("operation") == "operation"  # await operation
    else:
        shown = str(signature(statements.pop(name))).replace("-> 'None'", "-> None")
        assert shown == str(inspect.signature(cls)).replace("-> 'None'", "-> None")
    assert set(statements) == set(members(cls))
    fields: dict[str, str] = {}
    for part in cls.__mro__:
        fields |= inspect.get_annotations(part)
    for member, statement in statements.items():
        actual = members(cls)[member]
        if inspect.isfunction(actual):
            whole = inspect.signature(actual)
            parameters = list(whole.parameters.values())[1:]  # without self
            assert signature(statement) == whole.replace(parameters=parameters)
            told = f"await writer.{member}(" in code(f"{name}.3", "SYNOPSIS")
            assert told == inspect.iscoroutinefunction(actual)
        elif isinstance(actual, property):
            assert statement == f"{member}: {inspect.get_annotations(actual.fget)['return']}"
        else:
            assert statement == f"{member}: {fields[member]}"


def test_function() -> None:
    """So has that of send_to_stream its signature."""
    statements = synopsis("send_to_stream")
    assert list(statements) == ["send_to_stream"]
    assert signature(statements["send_to_stream"]) == inspect.signature(aio.send_to_stream)


@pytest.mark.parametrize("name", aio.__all__)
def test_documented(name: str) -> None:
    """Each public name, and each public method, has a docstring and is fully annotated."""
    thing = getattr(aio, name)
    assert inspect.getdoc(thing)
    methods = members(thing).values() if inspect.isclass(thing) else [thing]
    for function in [method for method in methods if inspect.isfunction(method)]:
        assert inspect.getdoc(function)
        parameters = {*inspect.signature(function).parameters, "return"} - {"self"}
        assert {*inspect.get_annotations(function)} >= parameters


def test_statuses_and_kinds() -> None:
    """The page of operations tells of each status and of each kind of cancellation."""
    lines = section("WriteOperation.3", "DESCRIPTION")
    told = [line.removeprefix(".It ") for line in lines if re.match(r"\.It [A-Z]+$", line)]
    assert told == [*WriteStatus.__members__, *aio.CancellationType.__members__]


def test_codes_of_wsasend() -> None:
    """The table has twenty codes, each with exceptions and errnos that exist and go together."""
    table = "\n".join(section("WriteOperation.3", "ERRORS")).partition(".TS\n")[2]
    table = re.sub(r"T\{\n(.*?)\nT\}", r"\1", table, flags=re.DOTALL)
    rows = [line.split("\t") for line in table.partition("\n.TE")[0].splitlines()[1:]]
    codes = [row[0] for row in rows if row[0]]
    assert len(codes) == len(set(codes)) == 20
    for _, exception, meaning in rows:
        for number in re.findall(r"\bE[A-Z]+\b", meaning):
            if exception != "OSError" and "on Linux" not in meaning:
                expected = type(OSError(getattr(errno, number), "text")).__name__
                assert exception == expected
            assert hasattr(errno, number)
        for status in re.findall(r"status ([A-Z]+)", meaning):
            assert status in WriteStatus.__members__


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_bytes(data(200_000))
    return file


EXPECTED = b"200000 bytes follow\n" + data(200_000)


@both_loops
async def test_writer_example(path: Path) -> None:
    """The example of BatchWriter sends a file behind a line."""
    with writer_pair(buffers=4096) as (writer, peer):
        serving = asyncio.create_task(example("BatchWriter.3")["serve"](writer.sock, path))
        assert await read(peer, len(EXPECTED)) == EXPECTED
        assert await serving == len(EXPECTED)


@both_loops
async def test_operation_example() -> None:
    """The example of WriteOperation sends the rest after its timeout."""
    send_in_two: Callable[..., Any] = example("WriteOperation.3")["send_in_two"]
    with full_writer() as (writer, peer):
        sending = asyncio.create_task(send_in_two(writer, batch_of(b"abc")))
        await asyncio.sleep(0)
        [operation] = writer._sender.queue.writes
        writer._sender.expire(operation)
        assert await peer.read(3) == b"abc"
        await sending
        await send_in_two(writer, IOBatch())


@both_loops
async def test_stream_example(path: Path) -> None:
    """The example of send_to_stream sends a file behind a line."""
    async with stream(buffers=4096) as (writer, peer):
        sending = asyncio.create_task(example("send_to_stream.3")["send_file"](writer, str(path)))
        assert await read(peer, len(EXPECTED)) == EXPECTED
        assert await sending == len(EXPECTED)

"""The man pages say what the code does."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import socket
import ssl
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import pytest
import trustme

import iobatch
from iobatch import IOBatch, aio, filters
from tests.helpers import PATIENCE, ROOT, data, receive_all, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAGES = sorted((ROOT / "man").iterdir())
FUNCTIONS = [name for name in iobatch.__all__ if name.startswith("iob_")]
SIZES = {"": 1, "KiB": 1024, "MiB": 1024 * 1024}


def section(page: str, title: str) -> list[str]:
    """Return the source lines of one section of a page."""
    lines = (ROOT / "man" / page).read_text().splitlines()
    after = lines[lines.index(f".Sh {title}") + 1 :]
    return list(takewhile(lambda line: not line.startswith(".Sh "), after))


def code(page: str, title: str) -> str:
    """Return the Python code that a section shows, as its reader sees it."""
    shown = []
    literal = False
    for line in section(page, title):
        if line.startswith("."):
            literal = line.startswith(".Bd -literal")
        elif literal:
            shown.append(line.replace(r"\-", "-").replace(r"\e", "\\"))
    return "\n".join(shown) + "\n"


def synopsis(name: str) -> dict[str, str]:
    """Return the statements of a synopsis behind its import, by the name that each is about."""
    statements = re.findall(r"^\S.*\n(?: .*\n)*", code(f"{name}.3", "SYNOPSIS"), re.MULTILINE)
    assert name in statements[0].removeprefix("from iobatch import ").strip().split(", ")
    bare = [statement.strip().removeprefix("batch.") for statement in statements[1:]]
    return {re.split("[(:]", statement)[0]: statement for statement in bare}


def signature(statement: str) -> str:
    """Return the signature of a statement of a synopsis, as inspect shows that of a function."""
    namespace: dict[str, Any] = dict(vars(iobatch))
    name = statement.partition("(")[0]
    exec(f"from __future__ import annotations\ndef {statement}: ...", namespace)
    return str(inspect.signature(namespace[name]))


def example(page: str) -> dict[str, Any]:
    """Run the example of a page, and return what it defines."""
    namespace: dict[str, Any] = {}
    exec(code(page, "EXAMPLES"), namespace)
    return namespace


def sent(
    send: Callable[[socket.socket], object],
    receive: Callable[[socket.socket], bytes] = receive_all,
) -> bytes:
    """Return what arrives when `send` is given a socket."""
    with stream_pair(buffers=4096) as (ours, theirs), ThreadPoolExecutor(1) as pool:
        arrived = pool.submit(receive, theirs)
        try:
            send(ours)
        finally:
            ours.close()
        return arrived.result(PATIENCE)


@pytest.fixture
def content() -> bytes:
    return data(200_000)


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    file = tmp_path / "file"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_signature(name: str) -> None:
    """The synopsis of a function's page is its signature."""
    statements = synopsis(name)
    assert list(statements) == [name]
    assert signature(statements[name]) == str(inspect.signature(getattr(iobatch, name)))


def test_batch_signatures() -> None:
    """The synopsis of IOBatch has each of its public members, with its signature or type."""
    statements = synopsis("IOBatch")
    assert statements.pop("IOBatch") == "IOBatch()"
    assert not inspect.signature(IOBatch).parameters
    assert set(statements) == {name for name in vars(IOBatch) if not name.startswith("_")}
    for name, statement in statements.items():
        member = vars(IOBatch)[name]
        if isinstance(member, property):
            assert statement == f"{name}: {member.fget.__annotations__['return']}"
        else:
            actual = inspect.signature(member)
            parameters = list(actual.parameters.values())[1:]  # without self
            assert signature(statement) == str(actual.replace(parameters=parameters))


def test_every_name_has_a_page() -> None:
    """Each function and each class to be made has a page, and each public name is in some page."""
    others = {"IOBatch", "Filter", "Chunked", "TLS", "BatchWriter", "WriteOperation"}
    named = {*FUNCTIONS, "send_to_stream", *others}
    assert {page.name for page in PAGES} == {"iobatch.7", *(f"{name}.3" for name in named)}
    text = "\n".join(page.read_text() for page in PAGES)
    for name in (*iobatch.__all__, *filters.__all__, *aio.__all__):
        assert re.search(rf"\b{name}\b", text), name


def test_constants() -> None:
    """Wherever a page gives the value of a constant, it is the right one."""
    values: dict[str, set[int]] = {}
    for page in PAGES:
        found = re.findall(r"Dv (\w+) Pq (?:\\)?(-?\d+)(?: ([KM]iB))?", page.read_text())
        for name, number, unit in found:
            values.setdefault(name, set()).add(int(number) * SIZES[unit])
    constants = [name for name in iobatch.__all__ if name.isupper()]
    assert values == {name: {getattr(iobatch, name)} for name in constants}


def test_truncated_file_error() -> None:
    """The overview names each attribute of TruncatedFileError."""
    error = iobatch.TruncatedFileError(3, 4, 5)
    lines = section("iobatch.7", "DESCRIPTION")
    for name in vars(error):
        assert f".It Va {name}" in lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lint(page: Path) -> None:
    """Mandoc finds nothing to warn of in a page."""
    if not shutil.which("mandoc"):
        pytest.skip("mandoc is missing: install it (Debian: apt-get install mandoc)")
    lint = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", page],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")


def test_references() -> None:
    """A page refers to no page of ours that does not exist."""
    names = {page.name for page in PAGES}
    for page in PAGES:
        for name, number in re.findall(
            r"^\.(?:Xr|It Xr) (\S+) (\d)", page.read_text(), re.MULTILINE
        ):
            if name.lower().startswith("iob"):
                assert f"{name}.{number}" in names, page.name


def test_pages_are_installed() -> None:
    """The wheel has every page, in the folder of its section."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"] == {
        f"man/{page.name}": f"share/man/man{page.suffix[1:]}/{page.name}" for page in PAGES
    }


def test_overview_example(path: Path, content: bytes) -> None:
    """The overview's example sends a header and a file."""
    header = f"HTTP/1.0 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    assert sent(lambda sock: example("iobatch.7")["answer"](sock, path)) == header + content


def test_batch_example() -> None:
    """The example of IOBatch has its buffer back as soon as it was sent."""
    names = example("IOBatch.3")
    batch = IOBatch()
    names["add"](batch, b"some bytes")
    assert names["pool"] == []
    assert sent(lambda sock: iobatch.iob_send(sock, batch)) == b"some bytes"
    assert [len(buffer) for buffer in names["pool"]] == [65536]


def test_send_example(path: Path, content: bytes) -> None:
    """The example of iob_send sends all through a non-blocking socket."""

    def send(sock: socket.socket) -> None:
        sock.setblocking(False)
        with IOBatch() as batch:
            batch.addfile(path)
            example("iob_send.3")["send"](sock, batch)

    assert sent(send) == content


def test_sendmsg_example(path: Path, content: bytes) -> None:
    """The example of iob_sendmsg passes an open file."""
    with stream_pair("unix") as (ours, theirs):
        with path.open("rb") as file:
            assert example("iob_sendmsg.3")["pass_descriptor"](ours, file.fileno()) == 12
        message, [fd], _, _ = socket.recv_fds(theirs, 64, 1)
    with os.fdopen(fd, "rb") as passed:
        assert (message, passed.read()) == (b"a descriptor", content)


def test_write_example(path: Path, content: bytes) -> None:
    """The example of iob_write sends all through a non-blocking TLS connection."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)

    def send(sock: socket.socket) -> None:
        with server.wrap_socket(sock, server_side=True) as conn, IOBatch() as batch:
            conn.setblocking(False)
            batch.addfile(path)
            example("iob_write.3")["send"](conn, batch)

    def receive(sock: socket.socket) -> bytes:
        with client.wrap_socket(sock, server_hostname="localhost") as conn:
            return receive_all(conn)

    assert sent(send, receive) == content


def test_sendall_example(path: Path, content: bytes) -> None:
    """The example of iob_sendall sends a file behind a header."""
    header = f"{len(content)} bytes follow\n".encode()
    assert sent(lambda sock: example("iob_sendall.3")["send_file"](sock, path)) == header + content

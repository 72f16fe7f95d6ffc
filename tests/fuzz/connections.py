"""Whole connections: any bytes of a client get well-formed responses, whole and in pieces."""

from __future__ import annotations

import gzip
import os
import re
import socket
from contextlib import ExitStack, suppress
from functools import cache
from select import EPOLLIN, EPOLLOUT
from time import time
from typing import TYPE_CHECKING
from unittest.mock import patch

from iobatch.httpd import codings
from iobatch.httpd.accesslog import AccessLog
from iobatch.httpd.cache import FileCache
from iobatch.httpd.connection import BUILDING, CLOSE, DEFERRED, Connection
from iobatch.httpd.files import Files
from iobatch.httpd.headerfields import NAME_FORM, HeaderFields, parse_rule
from iobatch.httpd.requests import RequestParser
from iobatch.httpd.settings import Settings
from tests.fuzz.clients import LINE, Lines
from tests.fuzz.paths import new_folder
from tests.fuzz.pieces import pieces_of
from tests.fuzz.records import contexts
from tests.support.http import split
from tests.support.httpd import MODIFIED, SECRET

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.http import Response

_STATUSES = {200, 204, 206, 301, 304, 400, 403, 404, 405, 412, 414, 416, 431, 501, 505}
_HEAD = re.compile(
    r"HTTP/1\.1 \d{3} [A-Za-z ]+\r\n(?:[A-Za-z-]+: [\t\x20-\x7e\x80-\xff]*\r\n)+\r\n"
)
_NAMES = re.compile(rf"{NAME_FORM}(?:[ \t]*,[ \t]*{NAME_FORM})*")
# No request has this many steps.
_MAX_STEPS = 10_000
_TEXT = b"".join(b"line %d\n" % i for i in range(300))
_CONTENTS = {
    "a": b"0123456789",
    "b.txt": _TEXT,
    "c.css": _TEXT,
    "c.css.gz": gzip.compress(_TEXT, mtime=0),
    "index.html": b"<h1>home</h1>",
    "d/e f": b"",
}


def connection(data: bytes) -> None:
    """Assert that any bytes get a valid response for each request, and a valid line in the log.

    In pieces they get the same responses as whole.
    """
    parser = RequestParser()
    parser.feed(data)
    methods = [request.method.decode() for request in parser.requests]
    whole, is_ended = _responses([data], methods)
    assert is_ended is parser.ended
    assert len(whole) == len(methods)
    for i, (request, response) in enumerate(zip(parser.requests, whole, strict=True)):
        assert response.status in _STATUSES
        assert SECRET not in response.body
        if request.refused:
            assert response.status == request.refused
        is_last = parser.ended and i == len(whole) - 1
        assert (response.headers.get("Connection") == "close") is is_last
        if request.method == b"GET":
            _check_body(response)
        names = response.headers.get("Access-Control-Allow-Headers")
        assert names is None or _NAMES.fullmatch(names)
    for pieces in pieces_of(data):
        assert _responses(pieces, methods) == (whole, is_ended)


def https(data: bytes) -> None:
    """Assert that a TLS port answers by TLS records, or answers plain HTTP by 400.

    In pieces the same bytes get the same answer.
    """
    server_context, _ = contexts()[1]
    whole, _ = _exchange([data], Settings(tls=server_context))
    if whole.startswith(b"HTTP"):
        [response] = split(whole)
        assert response.status == 400
    else:
        assert whole[:1] in {b"", b"\x15", b"\x16"}  # an alert, or a part of a handshake
    for pieces in pieces_of(data):
        answer, _ = _exchange(pieces, Settings(tls=server_context))
        # A handshake has random numbers.
        assert answer == whole or answer[:1] == whole[:1] == b"\x16"


def _check_body(response: Response) -> None:
    """Assert that a body is a file, a part of one, or a page of a listing."""
    contents, headers, body = _CONTENTS.values(), response.headers, response.body
    if response.status == 206 and "Content-Range" in headers:
        first, last, size = map(int, re.findall(r"\d+", headers["Content-Range"]))
        assert any(len(each) == size and each[first : last + 1] == body for each in contents)
    elif response.status == 200 and "Last-Modified" in headers:
        if headers.get("Transfer-Encoding") == "chunked":
            zstd = headers["Content-Encoding"] == "zstd"
            body = codings._zstd.decompress(body) if zstd else gzip.decompress(body)
        assert body in contents


def _responses(pieces: Iterable[bytes], methods: list[str]) -> tuple[list[Response], bool]:
    """Send pieces on a connection one after the other.

    Returns:
        All responses, and whether the server ends the stream before the client does.

    """
    lines = Lines()
    fields = HeaderFields([parse_rule("Access-Control-Allow-Origin: *")])
    log = AccessLog(lines, combined=True)  # type: ignore[arg-type]
    received, is_ended = _exchange(pieces, Settings(log=log, header_fields=fields))
    log.flush()
    responses = split(received, *methods)
    written = b"".join(lines).splitlines(keepends=True)
    assert all(map(LINE.fullmatch, written))
    assert len(written) == len(responses)
    return responses, is_ended


def _exchange(pieces: Iterable[bytes], settings: Settings) -> tuple[bytes, bool]:
    """Send pieces on a connection; return what it sends, and whether it ends its stream first."""
    files = _files()
    ours, theirs = socket.socketpair()
    with ExitStack() as stack:
        # The tags of files that have just been changed are weak.
        stack.enter_context(patch("iobatch.httpd.files.time", lambda: time() + 10))
        stack.enter_context(patch("iobatch.httpd.responsequeue.time", lambda: MODIFIED + 1))
        stack.enter_context(patch("iobatch.httpd.ranges.token_hex", lambda size: "0" * 2 * size))
        stack.callback(files.close)
        stack.enter_context(theirs)
        ours.setblocking(False)
        theirs.setblocking(False)
        server = Connection(ours, files, settings, 60.0)
        received: list[bytes] = []
        is_open = True
        for piece in filter(None, pieces):
            if is_open:
                theirs.sendall(piece)
                is_open = _run(server, files, theirs, received)
        is_ended = not is_open or received[-1:] == [b""]
        if is_open:
            theirs.shutdown(socket.SHUT_WR)
            assert not _run(server, files, theirs, received)
        server.close()
        _receive(theirs, received)
    return b"".join(received), is_ended


def _receive(client: socket.socket, received: list[bytes]) -> None:
    """Receive what has arrived, and b"" for the end of stream or a reset."""
    with suppress(BlockingIOError):
        while received[-1:] != [b""]:
            try:
                received.append(client.recv(1 << 16))
            except ConnectionResetError:
                received.append(b"")


def _run(
    server: Connection, files: FileCache, client: socket.socket, received: list[bytes]
) -> bool:
    """Run a connection until it waits for input; return whether it is open."""
    for _ in range(_MAX_STEPS):
        events = server.step(0.0)
        _receive(client, received)
        if events == CLOSE:
            return False
        if events == EPOLLIN and not server.has_input:
            return True
        assert events in {EPOLLIN, EPOLLOUT, DEFERRED, BUILDING}
        if events == BUILDING:
            while files.listings.builds:
                files.listings.build(0.0)
    raise AssertionError("the connection spins")


@cache
def _files() -> FileCache:
    """Return the files of a new site; a secret file is beside it."""
    root = new_folder() / "root"
    (root / "d").mkdir(parents=True)
    (root.parent / "secret").write_bytes(SECRET)
    for name, content in {**_CONTENTS, ".hidden": SECRET}.items():
        (root / name).write_bytes(content)
        os.utime(root / name, (MODIFIED, MODIFIED))
    return FileCache(Files(root))

"""The access log."""

from __future__ import annotations

import os
import re
import select
import socket
import ssl
from base64 import b64encode
from contextlib import contextmanager, suppress
from select import EPOLLIN
from typing import TYPE_CHECKING, Any

import pytest

from iobatch.httpd import throttle
from iobatch.httpd.accesslog import MAX_WRITE, AccessLog
from iobatch.httpd.connection import WAITING
from iobatch.httpd.output import Output
from iobatch.httpd.pages import error_page
from iobatch.httpd.requests import Request
from iobatch.httpd.server import WAIT_TICK
from iobatch.httpd.sink import RECORD
from iobatch.httpd.tls import tls_context
from tests.support.http import split
from tests.support.httpd import (
    LARGE,
    SMALL,
    Keys,
    address_of,
    exchange,
    open_connection,
    program,
    prose,
    read_all,
    run_step,
    serving,
)
from tests.support.sockets import PATIENCE, is_silent
from tests.support.tls import MemoryClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# The size of the page that answers 404.
NOT_FOUND = len(error_page(404, "Not Found"))
# The size of a write, and the bytes of it that were accepted.
Write = tuple[int, int]
# A request after which the server closes the connection.
CLOSING = b"GET /1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
CODED = b"GET /text.txt HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n"
# The longest address or name of a client.
CLIENT = b"_" + b"x" * 63
# The address and the time of a line.
HEAD = r"127\.0\.0\.1 - - \[\d\d/[A-Z][a-z][a-z]/\d{4}:\d\d:\d\d:\d\d \+0000\] "


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[Write]:
    """Return a list that collects the calls of os.write."""
    write = os.write
    calls = []

    def record(fd: int, content: bytes) -> int:
        accepted = write(fd, content)
        calls.append((len(content), accepted))
        return accepted

    monkeypatch.setattr(os, "write", record)
    return calls


def log_of(site: Path, log_format: str, *requests: bytes) -> list[str]:
    """Return the lines that the program writes for requests, one connection for each argument."""
    with program(site, "--log", log_format) as (process, url):
        for request in requests:
            exchange(address_of(url), request)
        process.terminate()
        assert process.stdout is not None
        return process.stdout.read().splitlines()


def test_common_format_has_the_status_and_body_size_of_each_response(site: Path) -> None:
    host = b" HTTP/1.1\r\nHost: x\r\n"
    lines = log_of(
        site,
        "common",
        b"GET /1024?q" + host + b"\r\nHEAD /1024" + host + b"\r\n",
        b"GET /nothing" + host + b"\r\n",
        b"GET /1024" + host + b"Range: bytes=1-5\r\n\r\n",
        b"GET /1024 HTTP/1.0\r\nIf-None-Match: *\r\n\r\n",
        b"nonsense\r\n\r\n",
    )
    ends = [re.sub(HEAD, "", line) for line in lines]
    assert ends == [
        '"GET /1024?q HTTP/1.1" 200 1024',
        '"HEAD /1024 HTTP/1.1" 200 -',
        f'"GET /nothing HTTP/1.1" 404 {NOT_FOUND}',
        '"GET /1024 HTTP/1.1" 206 5',
        '"GET /1024 HTTP/1.0" 304 -',
        '"-" 400 16',
    ]


def test_combined_format_escapes_bytes_that_could_end_a_field(site: Path) -> None:
    [line, plain] = log_of(
        site,
        "combined",
        b'GET /"\\ HTTP/1.1\r\nHost: x\r\nReferer: a"b\xe9\r\nUser-Agent: x\ty\r\n\r\n',
        SMALL,
    )
    line = re.sub(HEAD, "", line)
    assert line == rf'"GET /\x22\x5c HTTP/1.1" 404 {NOT_FOUND} "a\x22b\xe9" "x\x09y"'
    assert plain.endswith('"GET /1 HTTP/1.1" 200 1 "-" "-"')


def test_log_contains_only_printable_ascii() -> None:
    """The parser may accept other bytes, which could control a terminal."""
    reading, writing = os.pipe()
    every = bytes(range(256))
    log = AccessLog(Output(writing), combined=True)
    headers = {b"referer": every, b"user-agent": every}
    log.add(b"::1", Request(b"GET", every, "1.1", headers, keep_alive=True), b"200", 0)
    log.close()
    os.close(writing)
    line = os.read(reading, 1 << 16)
    os.close(reading)
    assert re.fullmatch(rb'[ -~]+"GET [!-~ ]+ HTTP/1.1" 200 - "[ -~]+" "[ -~]+"\n', line)
    assert line.count(b'"') == 6


def test_lines_are_joined_up_to_the_size_of_an_atomic_write(writes: list[Write]) -> None:
    """PIPE_BUF bytes: so the lines of several workers don't mix."""
    reading, writing = os.pipe()
    log = AccessLog(Output(writing), combined=False)
    request = Request(b"GET", b"/" + b"x" * 500, "1.1", {}, keep_alive=True)
    for _ in range(20):
        log.add(b"127.0.0.1", request, b"200", 1)
    log.close()
    os.close(writing)
    content = os.read(reading, 1 << 20)
    os.close(reading)
    lines = content.splitlines()
    assert len(lines) == 20
    assert all(line.startswith(b"127.0.0.1") and line.endswith(b" 200 1") for line in lines)
    assert max(size for size, _ in writes) <= MAX_WRITE == select.PIPE_BUF
    assert len(writes) < 4


def test_lines_are_dropped_when_the_reader_is_gone() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    log = AccessLog(Output(writing), combined=False)
    log.add(b"", Request(b"", b"", "1.1", {}, keep_alive=False), b"400", 0)
    log.close()
    assert not log
    os.close(writing)


@pytest.mark.parametrize("method", [b"OPTIONS", b"x" * 30_000], ids=["OPTIONS", "long"])
@pytest.mark.parametrize("value", [b"x", b'"', b"xx\\"])
def test_line_of_a_long_request_is_one_write_and_its_fields_are_closed(
    method: bytes, value: bytes
) -> None:
    reading, writing = os.pipe()
    log = AccessLog(Output(writing), combined=True, authenticated=True)
    for i in range(4):
        long = b"y" * i + value * 8000
        user = b"Basic " + b64encode(long + b":password")
        headers = {b"referer": long, b"user-agent": long, b"authorization": user}
        log.add(CLIENT, Request(method, long, "1.1", headers, keep_alive=True), b"200", 10**18)
        log.flush()
        line = os.read(reading, 1 << 20)
        assert len(line) <= MAX_WRITE
        assert line.endswith(b'"\n')
        assert line.count(b'"') == 6
        assert b"\\" not in re.sub(rb"\\x[0-9a-f]{2}", b"", line)
    os.close(reading)
    os.close(writing)


@contextmanager
def recorded_log() -> Iterator[tuple[AccessLog, list[int]]]:
    """Yield a log, and a list that collects the sizes in its lines when the block ends."""
    reading, writing = os.pipe()
    log = AccessLog(Output(writing), combined=False)
    sizes: list[int] = []
    yield log, sizes
    log.close()
    os.close(writing)
    lines = os.read(reading, 1 << 20).splitlines()
    os.close(reading)
    sizes.extend(int(line.rpartition(b" ")[2].replace(b"-", b"0")) for line in lines)


def receive_until_cut_off(site: Path, request: bytes, **settings: Any) -> tuple[bytes, list[int]]:
    """Return what a client receives before its connection is cut off, and the sizes in the log."""
    with recorded_log() as (log, sizes):
        with open_connection(site, "small buffers", log=log, **settings) as (connection, theirs):
            client = theirs.dup()
            theirs.sendall(request)
            for now in range(3):
                run_step(connection, float(now))
        with client:
            return read_all(client), sizes


@pytest.mark.parametrize("rate", [None, 100_000])
def test_size_of_a_response_that_was_cut_off_is_what_was_sent(site: Path, rate: int | None) -> None:
    """The response before it is logged whole, and those after it were not sent."""
    received, sizes = receive_until_cut_off(site, SMALL + LARGE * 3, rate=rate)
    _, _, body = received.split(b"\r\n\r\n", 2)
    assert 0 < len(body) < 1 << 20
    assert sizes == [1, len(body), 0, 0]


def test_size_of_a_response_before_a_coded_one_is_what_was_sent(site: Path) -> None:
    (site / "text.txt").write_bytes(prose(100_000))
    received, sizes = receive_until_cut_off(site, LARGE + CODED)
    _, _, body = received.partition(b"\r\n\r\n")
    assert sizes == [len(body), 0]


def test_size_of_a_coded_body_that_was_cut_off_is_what_was_sent(site: Path) -> None:
    """It is a lower bound: of the chunk that was cut off the framing may have been sent, too."""
    (site / "text.txt").write_bytes(prose(3 << 20))
    received, sizes = receive_until_cut_off(site, SMALL + CODED + SMALL)
    _, _, chunks = received.split(b"\r\n\r\n", 2)
    assert len(sizes) == 2, "the last request was not answered"
    assert sizes[0] == 1
    assert len(chunks) - 100 < sizes[1] < len(chunks)


def test_size_of_a_tls_response_that_was_cut_off_is_what_was_sent(site: Path, keys: Keys) -> None:
    """Of the last record a part may have been sent, which the client can't decrypt.

    What TLS adds to records that were not sent is counted as a part of them.
    """
    os.truncate(site / "1", 1 << 30)
    context = tls_context(str(keys.certificate), str(keys.key))
    received = bytearray()
    with recorded_log() as (log, sizes), socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(PATIENCE)
        with serving(site, tls=context, log=log) as (_, address):
            sock.connect(address)
            client = keys.client.wrap_socket(
                sock, server_hostname="127.0.0.1", suppress_ragged_eofs=False
            )
            client.sendall(LARGE + SMALL)
            while len(received) < 3 << 19:
                received += client.recv(1 << 14)
        with client, suppress(ssl.SSLEOFError):
            while True:
                received += client.recv(1 << 14)
    _, _, rest = received.partition(b"\r\n\r\n")
    _, _, body = rest[1 << 20 :].partition(b"\r\n\r\n")
    assert sizes[0] == 1 << 20
    assert len(body) - 1000 < sizes[1] <= len(body) + RECORD


def test_response_that_a_filter_holds_is_not_logged_as_sent(
    site: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS takes the whole file at once, and the rate limit lets a part of it leave."""
    (site / "file").write_bytes(bytes(2 * RECORD))
    context = tls_context(str(keys.certificate), str(keys.key))
    now = 0.0
    monkeypatch.setattr(throttle, "monotonic", lambda: now)
    with (
        recorded_log() as (log, sizes),
        open_connection(site, tls=context, log=log, rate=100_000) as (connection, theirs),
    ):
        client = MemoryClient(theirs, keys.client)
        while True:
            with suppress(ssl.SSLWantReadError):
                client.tls.do_handshake()
                break
            theirs.sendall(client.outgoing.read())
            while run_step(connection, now) != EPOLLIN:
                now += WAIT_TICK
            client.incoming.write(theirs.recv(1 << 16))
        client.tls.write(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
        theirs.sendall(client.outgoing.read())
        while is_silent(theirs):
            assert run_step(connection, now) == WAITING
            now += WAIT_TICK
        assert not connection._responses.batch
    [size] = sizes
    assert 0 < size < 2 * RECORD


@pytest.mark.parametrize("coding", ["identity", "gzip"])
@pytest.mark.parametrize("secure", [False, True])
def test_size_of_a_complete_response_is_that_of_its_coded_body(
    site: Path, keys: Keys, coding: str, *, secure: bool
) -> None:
    (site / "text.txt").write_bytes(prose(100_000))
    request = f"GET /text.txt HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {coding}\r\n\r\n".encode()
    context = tls_context(str(keys.certificate), str(keys.key)) if secure else None
    with (
        recorded_log() as (log, sizes),
        serving(site, tls=context, log=log) as (_, address),
        socket.create_connection(address, PATIENCE) as sock,
    ):
        client = keys.client.wrap_socket(sock, server_hostname="127.0.0.1") if secure else sock
        client.sendall((request + SMALL) * 3 + CLOSING)
        with client:
            received = read_all(client)
    assert sizes == [len(response.body) for response in split(received)]
    assert len(sizes) == 7

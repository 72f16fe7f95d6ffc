"""The access log."""

from __future__ import annotations

import os
import re
import select
import subprocess
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd.accesslog import MAX_WAITING, MAX_WRITE, AccessLog
from iobatch.httpd.pages import error_page
from iobatch.httpd.requests import Request
from tests.support.httpd import COMMAND, SMALL, exchange

if TYPE_CHECKING:
    from pathlib import Path


# The size of the page that answers 404.
NOT_FOUND = len(error_page(404, "Not Found"))
# The size of a write, and the bytes of it that were accepted.
Write = tuple[int, int]
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
    with subprocess.Popen(
        [*COMMAND, site, "--port", "0", "--log", log_format],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        match = re.search(rb"http://127.0.0.1:(\d+)/", process.stdout.readline())
        assert match
        for request in requests:
            exchange(("127.0.0.1", int(match[1])), request)
        process.terminate()
        return process.stdout.read().decode("ascii").splitlines()


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
    log = AccessLog(writing, combined=True)
    headers = {b"referer": every, b"user-agent": every}
    log.add(b"::1", Request(b"GET", every, "1.1", headers, keep_alive=True), b"200", 0)
    log.flush()
    os.close(writing)
    line = os.read(reading, 1 << 16)
    os.close(reading)
    assert re.fullmatch(rb'[ -~]+"GET [!-~ ]+ HTTP/1.1" 200 - "[ -~]+" "[ -~]+"\n', line)
    assert line.count(b'"') == 6


def test_lines_are_joined_up_to_the_size_of_an_atomic_write(writes: list[Write]) -> None:
    """PIPE_BUF bytes: so the lines of several workers don't mix."""
    reading, writing = os.pipe()
    log = AccessLog(writing, combined=False)
    request = Request(b"GET", b"/" + b"x" * 500, "1.1", {}, keep_alive=True)
    for _ in range(20):
        log.add(b"127.0.0.1", request, b"200", 1)
    log.flush()
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
    log = AccessLog(writing, combined=False)
    log.add(b"", Request(b"", b"", "1.1", {}, keep_alive=False), b"400", None)
    log.flush()
    assert not log
    os.close(writing)


@pytest.mark.parametrize("value", [b"x", b'"', b"xx\\"])
def test_line_of_a_long_request_is_one_write_and_its_fields_are_closed(value: bytes) -> None:
    reading, writing = os.pipe()
    log = AccessLog(writing, combined=True)
    for i in range(4):
        long = b"y" * i + value * 8000
        headers = {b"referer": long, b"user-agent": long}
        log.add(b"::1", Request(b"OPTIONS", long, "1.1", headers, keep_alive=True), b"200", 10**18)
        log.flush()
        line = os.read(reading, 1 << 20)
        assert len(line) <= MAX_WRITE
        assert line.endswith(b'"\n')
        assert line.count(b'"') == 6
        assert b"\\" not in re.sub(rb"\\x[0-9a-f]{2}", b"", line)
    os.close(reading)
    os.close(writing)


def test_log_never_waits_for_a_slow_reader_and_drops_lines_instead() -> None:
    reading, writing = os.pipe()
    log = AccessLog(writing, combined=False)
    target = b"/" + b"x" * 1000
    for i in range(10_000):
        request = Request(b"GET", target, "1.1", {}, keep_alive=True)
        log.add(b"", request, b"200", i + 1)
    log.flush()
    assert log
    assert sum(map(len, log._writes)) <= MAX_WAITING * MAX_WRITE
    received = bytearray()
    while log:
        received += os.read(reading, 1 << 16)
        log.flush()
    os.close(writing)
    while piece := os.read(reading, 1 << 16):
        received += piece
    os.close(reading)
    sizes = [int(line.rpartition(b" ")[2]) for line in received.splitlines()]
    assert sizes == list(range(1, len(sizes) + 1))
    assert MAX_WAITING < len(sizes) < 10_000


def test_write_that_a_terminal_accepts_in_part_is_completed_later(writes: list[Write]) -> None:
    """Another program that shares the terminal may have made it non-blocking."""
    request = Request(b"GET", b"/" + b"x" * 1000, "1.1", {}, keep_alive=True)
    reading, writing = os.openpty()
    os.set_blocking(writing, False)
    log = AccessLog(writing, combined=False)
    for i in range(100):
        log.add(b"", request, b"200", i + 1)
    received = bytearray()
    while not received.endswith(b" 100\r\n"):
        log.flush()
        received += os.read(reading, 1 << 16)
    os.close(writing)
    os.close(reading)
    assert any(0 < accepted < size for size, accepted in writes)
    assert [int(line.rpartition(b" ")[2]) for line in received.splitlines()] == list(range(1, 101))

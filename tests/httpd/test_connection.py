"""Connections: persistence, pipelining, and slow or endless clients."""

from __future__ import annotations

import errno
import gc
import http.client
import os
import socket
import weakref
from select import EPOLLIN
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd.connection import CLOSE, LINGER_BYTES, READ_SIZE, RESPONDING
from iobatch.httpd.pages import error_page
from iobatch.httpd.responsequeue import MAX_RESPONSES
from tests.support.batches import data
from tests.support.http import split
from tests.support.httpd import (
    LARGE,
    SMALL,
    Address,
    exchange,
    get,
    open_connection,
    read_all,
    send_until_reset,
    serving,
    slow_client,
)
from tests.support.sockets import PATIENCE, receive, reset, wait_for_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST = b"Host: x\r\n"


@pytest.mark.parametrize(
    ("version", "header", "answer", "stays_open"),
    [
        ("1.1", b"", None, True),
        ("1.1", b"Connection: close\r\n", "close", False),
        ("1.0", b"", "close", False),
        ("1.0", b"Connection: keep-alive\r\n", "keep-alive", True),
        ("1.1", b"Content-Length: 0\r\n", None, True),
        # More digits than int() takes from a string.
        pytest.param(
            "1.1", b"Content-Length: " + b"0" * 4301 + b"\r\n", None, True, id="many zeros"
        ),
        ("1.1", b"Content-Length: 5\r\n", "close", False),
        ("1.1", b"Transfer-Encoding: chunked\r\n", "close", False),
        ("1.1", b"Connection: Upgrade\r\nUpgrade: h2c\r\n", "close", False),
    ],
)
def test_connection_stays_open_if_both_sides_can_and_only_a_request_can_follow(
    address: Address, version: str, header: bytes, answer: str | None, *, stays_open: bool
) -> None:
    request = b"GET /1 HTTP/%s\r\n" % version.encode() + HOST + header + b"\r\n"
    responses = split(exchange(address, request + request))
    assert len(responses) == 1 + stays_open
    assert {response.status for response in responses} == {200}
    assert responses[0].headers.get("Connection") == answer


def test_pipelined_requests_are_answered_in_order(address: Address) -> None:
    targets = ("/1", "/nothing", "/32768", "/sub", "/0", "/1024", "/65536", "/")
    requests = [f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for target in targets]
    expected = [exchange(address, request) for request in requests]
    with socket.create_connection(address, PATIENCE) as sock:
        sender = Thread(target=sock.sendall, args=(b"".join(requests) * 100,))
        sender.start()
        received = split(receive(sock, sum(map(len, expected)) * 100))
        sender.join(PATIENCE)
    bodies = [answer.body for raw in expected for answer in split(raw)]
    assert [answer.body for answer in received] == bodies * 100


def test_client_that_sends_a_large_body_first_still_gets_the_refusal(address: Address) -> None:
    client = http.client.HTTPConnection(*address, timeout=PATIENCE)
    client.request("POST", "/1", body=bytes(LINGER_BYTES // 2))
    response = client.getresponse()
    assert response.status == 405
    assert response.read() == b"405 Method Not Allowed\n"
    client.close()


def test_endless_body_ends_in_a_reset(address: Address) -> None:
    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(b"POST /1 HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999\r\n\r\n")
        assert send_until_reset(sock)


def test_nothing_is_read_from_a_client_that_reads_nothing(site: Path) -> None:
    """The batch and the requests that it is made from are bounded."""
    with serving(site) as (server, address), slow_client(address) as sock:
        sock.sendall(LARGE * 1000)
        receive(sock, 12)
        # The answer to a second client shows that the server's turn with the first has ended.
        assert get(address, "/1").status == 200
        [connection] = [each for each in server._connections if each._state is RESPONDING]
        assert 0 < connection._responses.batch.bytesleft < (MAX_RESPONSES + 1) << 20
        assert 0 < len(connection._parser.requests) < READ_SIZE / len(LARGE)


def test_client_with_small_buffers_gets_all_responses_in_order(site: Path) -> None:
    targets = [b"/1048576", b"/1024", b"/65536", b"/nothing", b"/1048576"]
    with serving(site) as (_, address), slow_client(address) as sock:
        for target in targets:
            sock.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % target)
        sock.shutdown(socket.SHUT_WR)
        bodies = [response.body for response in split(read_all(sock))]
    sizes = (1 << 20, 1024, 65536, None, 1 << 20)
    assert bodies == [
        error_page(404, "Not Found").encode() if size is None else data(size, seed=size)
        for size in sizes
    ]


def test_step_without_input_waits_for_it(site: Path) -> None:
    """A selector may report a socket as readable that is not (select(2), BUGS)."""
    with open_connection(site) as (connection, _):
        assert connection.step(0.0) == EPOLLIN


def test_connection_that_the_client_resets_is_over(site: Path) -> None:
    with open_connection(site, "tcp4") as (connection, theirs):
        reset(theirs)
        wait_for_error(connection.sock)
        assert connection.step(0.0) == CLOSE


def test_connection_reset_after_the_last_response_is_over(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then shutdown(2) fails with ENOTCONN."""

    def shutdown(self: socket.socket, how: int) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    with open_connection(site) as (connection, theirs):
        monkeypatch.setattr(socket.socket, "shutdown", shutdown)
        theirs.sendall(b"GET /1 HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        assert connection.step(0.0) == CLOSE
        [response] = split(theirs.recv(4096))
        assert response.status == 200


def test_connection_lingers_for_linger_bytes_at_most(site: Path) -> None:
    with open_connection(site) as (connection, theirs):
        theirs.sendall(b"GET /1 HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        assert connection.step(0.0) == EPOLLIN
        for _ in range(LINGER_BYTES // READ_SIZE - 1):
            theirs.sendall(bytes(READ_SIZE))
            assert connection.step(0.0) == EPOLLIN
        theirs.sendall(bytes(READ_SIZE - 1))
        assert connection.step(0.0) == EPOLLIN
        theirs.sendall(b"x")
        assert connection.step(0.0) == CLOSE


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Disable the collection of cycles."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize(
    "received",
    [b"", SMALL[:20], SMALL, b"nonsense\r\n\r\n"],
    ids=["nothing", "part of a request", "request", "nonsense"],
)
def test_closed_connection_is_freed_without_a_collection_of_cycles(
    site: Path, received: bytes
) -> None:
    with open_connection(site) as (connection, theirs):
        if received:
            theirs.sendall(received)
        connection.step(0.0)
        references = [weakref.ref(connection), weakref.ref(connection._parser)]
    del connection
    assert [reference() for reference in references] == [None, None]

"""Deadlines of connections."""

from __future__ import annotations

import select
import socket
from contextlib import ExitStack
from select import EPOLLIN, EPOLLOUT
from signal import SIGTERM
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from tests.support.httpd import (
    LARGE,
    SMALL,
    new_server,
    open_connection,
    prose,
    run_step,
    send_until_reset,
    serving,
    slow_client,
)
from tests.support.sockets import PATIENCE, clog

if TYPE_CHECKING:
    from pathlib import Path


def test_silent_client_and_unfinished_request_are_closed_after_the_timeout(site: Path) -> None:
    with new_server(site, timeout=0.01) as (server, address, stop), ExitStack() as stack:
        clients = []
        for sent in (b"", b"\r\n", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost"):
            sock = stack.enter_context(socket.create_connection(address, PATIENCE))
            sock.sendall(sent)
            clients.append(sock)
        # Unread bytes would reset a connection. The server reads these before its first timeout.
        thread = Thread(target=server.run)
        thread.start()
        stack.callback(thread.join, PATIENCE)
        stack.callback(stop.send, bytes([SIGTERM, SIGTERM]))
        for sock in clients:
            assert sock.recv(1) == b""


def test_client_that_reads_no_response_is_reset_after_the_timeout(site: Path) -> None:
    with serving(site, timeout=0.01) as (_, address), slow_client(address) as sock:
        # The server closes the connection with unread requests, which resets it, so sendall fails.
        assert send_until_reset(sock, LARGE)


def test_deadline_is_postponed_by_bytes_sent_and_not_by_bytes_received(site: Path) -> None:
    with open_connection(site, "small buffers", timeout=10.0) as (connection, theirs):
        theirs.sendall(b"GET /1048576 HTTP/1.1\r\n")
        assert connection.step(5.0) == EPOLLIN
        assert connection.deadline == 10.0
        theirs.sendall(b"Host: x\r\n\r\n")
        assert connection.step(6.0) == EPOLLOUT
        assert connection.deadline == 16.0
        clog(connection.sock)
        assert connection.step(7.0) == EPOLLOUT
        assert connection.deadline == 16.0


def test_request_has_header_timeout_from_its_first_byte(site: Path) -> None:
    """An idle connection has more time."""
    with open_connection(site, timeout=60.0, header_timeout=20.0) as (connection, theirs):
        theirs.sendall(SMALL)
        assert connection.step(5.0) == EPOLLIN
        assert connection.deadline == 65.0, "idle"
        theirs.sendall(SMALL[:10])
        assert connection.step(10.0) == EPOLLIN
        assert connection.deadline == 30.0, "the first bytes of a request"
        theirs.sendall(SMALL[10:20])
        assert connection.step(29.0) == EPOLLIN
        assert connection.deadline == 30.0, "further bytes of the request"
        theirs.sendall(SMALL[20:])
        assert connection.step(29.5) == EPOLLIN
        assert connection.deadline == 89.5, "idle again"


@pytest.mark.parametrize("size", [1, 3, 5, SMALL.index(b"Host")])
def test_header_timeout_holds_for_a_request_that_begins_in_the_piece_of_another(
    site: Path, size: int
) -> None:
    with open_connection(site, timeout=60.0, header_timeout=20.0) as (connection, theirs):
        theirs.sendall(SMALL + SMALL[:size])
        assert connection.step(5.0) == EPOLLIN
        assert connection.deadline == 25.0
        theirs.sendall(SMALL[size:-1])
        assert connection.step(6.0) == EPOLLIN
        assert connection.deadline == 25.0
        theirs.sendall(SMALL[-1:])
        assert connection.step(7.0) == EPOLLIN
        assert connection.deadline == 67.0


def test_deadline_is_postponed_when_client_reads_what_a_coding_holds(site: Path) -> None:
    """A client that reads nothing does not postpone it."""
    (site / "text.txt").write_bytes(prose(3 << 20))
    with open_connection(site, "small buffers", timeout=10.0) as (connection, theirs):
        theirs.sendall(b"GET /text.txt HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n")
        now = 0.0
        while select.select([], [connection.sock], [], 0)[1]:
            assert run_step(connection, now) == EPOLLOUT
        for _ in range(30):
            now += 9.0
            while not select.select([], [connection.sock], [], 0)[1]:
                theirs.recv(1000)
            assert run_step(connection, now) == EPOLLOUT
            assert connection.deadline == now + 10.0
        clog(connection.sock)
        for _ in range(10):  # until the filters are full
            assert run_step(connection, now) == EPOLLOUT
        assert run_step(connection, now + 5.0) == EPOLLOUT
        assert connection.deadline == now + 10.0

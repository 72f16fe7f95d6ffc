"""Work that takes long waits until other connections ran: coding, handshakes, many closes."""

from __future__ import annotations

import gzip
import http.client
import socket
import ssl
from collections import Counter
from contextlib import ExitStack, suppress
from itertools import pairwise
from select import EPOLLIN, EPOLLOUT
from signal import SIGTERM
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from iobatch.httpd import server as server_module
from iobatch.httpd.connection import DEFERRED
from iobatch.httpd.sink import ResponseSink
from iobatch.httpd.tls import tls_context
from tests.support.http import split
from tests.support.httpd import (
    LARGE,
    SMALL,
    Epoll,
    Keys,
    new_server,
    open_connection,
    prose,
    read_all,
    receive_head,
    run_step,
    serving,
)
from tests.support.sockets import PATIENCE, is_silent, receive
from tests.support.tls import MemoryClient

if TYPE_CHECKING:
    from pathlib import Path

CODED = b"GET /text.txt HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n"
TEXT = prose(1 << 20)


@pytest.fixture(autouse=True)
def write_text(site: Path) -> None:
    """Add a file that is coded in several steps."""
    (site / "text.txt").write_bytes(TEXT)


def test_step_before_a_body_is_coded_defers_it_and_sends_nothing(site: Path) -> None:
    with open_connection(site) as (connection, theirs):
        theirs.sendall(CODED)
        assert connection.step(0.0) == DEFERRED
        assert is_silent(theirs)
        while is_silent(theirs):  # the coder has taken too little for an output
            assert run_step(connection, 0.0) == EPOLLOUT
        assert b"\r\nContent-Encoding: gzip\r\n" in receive_head(theirs)


def test_handshake_is_deferred_and_later_requests_are_not(site: Path, keys: Keys) -> None:
    context = tls_context(str(keys.certificate), str(keys.key))
    with open_connection(site, "tcp4", tls=context) as (connection, theirs):
        client = MemoryClient(theirs, keys.client)
        while True:
            with suppress(ssl.SSLWantReadError):
                client.tls.do_handshake()
                break
            theirs.sendall(client.outgoing.read())
            assert connection.step(0.0) == DEFERRED
            assert is_silent(theirs)
            assert connection.step(0.0) == EPOLLIN
            client.incoming.write(theirs.recv(1 << 16))
        theirs.sendall(client.outgoing.read())
        assert run_step(connection, 0.0) == EPOLLIN
        for _ in range(3):
            client.tls.write(SMALL)
            theirs.sendall(client.outgoing.read())
            assert connection.step(0.0) == EPOLLIN


def test_body_that_is_requested_with_the_end_of_the_handshake_is_sent(
    site: Path, keys: Keys
) -> None:
    """A step that does deferred work can defer more."""
    context = tls_context(str(keys.certificate), str(keys.key))
    with serving(site, tls=context) as (_, address), socket.create_connection(address) as sock:
        client = MemoryClient(sock, keys.client)
        while True:
            with suppress(ssl.SSLWantReadError):
                client.tls.do_handshake()
                break
            sock.sendall(client.outgoing.read())
            client.incoming.write(sock.recv(1 << 16))
        client.tls.write(CODED.replace(b"Host", b"Connection: close\r\nHost"))
        sock.sendall(client.outgoing.read())
        [response] = split(client.read_all())
        assert gzip.decompress(response.body) == TEXT


def test_one_body_is_coded_in_a_turn_whose_time_is_over_and_connections_take_turns(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client with a small request gets its answer in the first turn."""
    done: list[Any] = []
    send = ResponseSink.send

    class CountPolls(Epoll):
        def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
            done.append("wait")
            return super().poll(timeout)

    def count_send(self: ResponseSink) -> int:
        done.append(self)
        return send(self)

    monkeypatch.setattr(ResponseSink, "send", count_send)
    monkeypatch.setattr(server_module, "SLICE", 0.0)
    with ExitStack() as stack:
        server, address, ours = stack.enter_context(new_server(site))
        CountPolls(server)
        clients = [stack.enter_context(socket.create_connection(address)) for _ in range(5)]
        for each in clients[:-1]:
            each.sendall(CODED)
        clients[-1].sendall(SMALL)
        thread = Thread(target=server.run)
        thread.start()
        stack.callback(thread.join, PATIENCE)
        stack.callback(ours.send, bytes([SIGTERM, SIGTERM]))
        receive_head(clients[-1])
        assert len(receive(clients[-1], 1)) == 1
        for each in clients[:-1]:
            response = http.client.HTTPResponse(each)
            response.begin()
            assert gzip.decompress(response.read()) == TEXT
    turns = [each for each in done if each != "wait"]
    assert set(Counter(turns[:4]).values()) == {1}
    for one, two in pairwise(done):
        assert "wait" in {one, two}


def test_work_goes_on_in_the_same_turn_while_its_time_is_not_over(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "SLICE", 1e9)
    with new_server(site) as (server, address, _), ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(address))
        server._accept(0.0)
        for connection in server._connections:
            server._wait_for(connection, DEFERRED)
        assert server._deferred.keys() == server._connections
        server._step_deferred(0.0)
        assert not server._deferred
        assert len(server._watched) == 3


def test_deferred_connection_is_closed_at_its_deadline(site: Path) -> None:
    """It is not in the epoll set."""
    with new_server(site) as (server, address, _), socket.create_connection(address) as sock:
        server._accept(0.0)
        [connection] = server._connections
        server._wait_for(connection, DEFERRED)
        server._tick(connection.deadline)
        server._step_deferred(0.0)
        assert not server._connections
        assert not server._deferred
        assert sock.recv(1) == b""


def test_late_connections_are_closed_in_several_turns(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To close one may free megabytes of the kernel's memory."""
    monkeypatch.setattr(server_module, "SLICE", 0.0)
    with new_server(site) as (server, address, _), ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(address))
        server._accept(0.0)
        server._tick(60.0)
        for left in (2, 1, 0):
            server._step_deferred(0.0)
            assert len(server._connections) == left


def test_late_client_of_an_unfinished_response_is_reset(site: Path) -> None:
    """So the kernel drops the part of the response that it holds."""
    with open_connection(site, "tcp4") as (connection, theirs):
        theirs.sendall(LARGE * 20)
        assert connection.step(0.0) == EPOLLOUT
        connection.give_up()
        with pytest.raises(ConnectionResetError):
            read_all(theirs)


def test_late_client_without_a_response_sees_the_end_of_the_stream(site: Path) -> None:
    with open_connection(site, "tcp4") as (connection, theirs):
        theirs.sendall(SMALL[:-1])
        assert connection.step(0.0) == EPOLLIN
        connection.give_up()
        assert theirs.recv(1) == b""

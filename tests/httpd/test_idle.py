"""Idle connections, which give way to new ones where all places are taken."""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from iobatch.httpd.connection import Connection
from iobatch.httpd.idle import MAX_FOUND
from iobatch.httpd.tls import tls_context
from tests.support.httpd import LARGE, SMALL, Keys, new_server, receive_head, run_step, serving
from tests.support.sockets import PATIENCE, is_silent, receive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from iobatch.httpd.server import Server

    # Connects a client, which is accepted at a time, and returns it with its connection.
    Accept = Callable[[float], tuple[socket.socket, Connection]]

CLOSING = b"GET /1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@contextmanager
def stopped_server(site: Path, **settings: Any) -> Iterator[tuple[Server, Accept]]:
    """Yield a server whose turns a test makes, and a function that connects a client."""
    with new_server(site, **settings) as (server, address, _), ExitStack() as stack:

        def accept(now: float) -> tuple[socket.socket, Connection]:
            before = set(server._connections)
            sock = stack.enter_context(socket.create_connection(address, PATIENCE))
            server._accept(now)
            [connection] = server._connections - before
            return sock, connection

        yield server, accept


def test_more_clients_than_places_are_served_in_turn_on_connections_that_stay_open(
    site: Path,
) -> None:
    with serving(site, max_connections=20) as (server, address), ExitStack() as stack:
        clients = []
        for _ in range(60):
            sock = stack.enter_context(socket.create_connection(address, PATIENCE))
            sock.sendall(SMALL)
            assert receive_head(sock)[:12] == b"HTTP/1.1 200"
            receive(sock, 1)
            clients.append(sock)
        assert [sock.recv(1) for sock in clients[:40]] == [b""] * 40
        assert all(map(is_silent, clients[40:]))
        assert len(server._connections) == 20


def test_longest_idle_connection_gives_way(site: Path) -> None:
    """A client is idle before its first request and between two."""
    with stopped_server(site, max_connections=3) as (server, accept):
        clients = [accept(float(now)) for now in range(3)]
        clients[0][0].sendall(SMALL)
        clients[0][1].step(4.0)
        for number, now in ((1, 5.0), (2, 6.0), (0, 7.0)):
            _, new = accept(now)
            assert not new._parser.refuse_all
            assert clients[number][1] not in server._connections
            assert len(server._connections) == 3
        assert receive_head(clients[0][0])[:12] == b"HTTP/1.1 200"
        receive(clients[0][0], 1)
        assert [sock.recv(1) for sock, _ in clients] == [b""] * 3


@pytest.mark.parametrize(
    ("sent", "steps"),
    [
        pytest.param(b"", 0, id="accepted in the same turn"),
        pytest.param(SMALL, 0, id="request that was not read"),
        pytest.param(SMALL[:1], 1, id="first byte of a request"),
        pytest.param(SMALL + SMALL[:9], 1, id="second request has begun"),
        pytest.param(LARGE * 20, 2, id="response in flight"),
        pytest.param(CLOSING, 1, id="last response sent, and not read for certain"),
    ],
)
def test_connection_that_is_not_idle_keeps_its_place(site: Path, sent: bytes, steps: int) -> None:
    with stopped_server(site, max_connections=1) as (server, accept):
        sock, connection = accept(1.0)
        sock.sendall(sent)
        for _ in range(steps):
            connection.step(1.0)
        _, second = accept(2.0 if sent else 1.0)
        assert server._connections == {connection, second}
        assert second._parser.refuse_all == 503


@pytest.mark.parametrize("reset", [False, True])
def test_connection_that_the_client_has_closed_keeps_its_place_until_its_turn(
    site: Path, *, reset: bool
) -> None:
    """Its turn comes first, because new connections are accepted last."""
    with stopped_server(site, max_connections=1) as (server, accept):
        sock, connection = accept(1.0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))
        sock.close()
        accept(2.0)
        assert connection in server._connections


def test_connection_that_was_turned_away_gives_no_place(site: Path) -> None:
    with stopped_server(site, max_connections=4) as (server, accept):
        served = [accept(1.0) for _ in range(4)]
        for sock, connection in served:
            sock.sendall(SMALL[:1])
            connection.step(1.0)
        _, refused = accept(2.0)
        assert refused._parser.refuse_all
        _, second = accept(3.0)
        assert second._parser.refuse_all
        assert refused in server._connections


def test_listening_goes_on_when_a_connection_becomes_idle(site: Path) -> None:
    """All places, and those of clients that get 503, are taken before."""
    with stopped_server(site, max_connections=1) as (server, accept):
        sock, connection = accept(1.0)
        sock.sendall(SMALL[:-1])
        connection.step(1.0)
        accept(2.0)
        assert server._paused
        sock.sendall(SMALL[-1:])
        connection.step(4.0)
        server._tick(5.0)
        assert not server._paused
        _, third = accept(5.0)
        assert not third._parser.refuse_all
        assert connection not in server._connections


def test_tls_client_keeps_its_place_from_its_first_message_to_the_end_of_the_handshake(
    site: Path, keys: Keys
) -> None:
    context = tls_context(str(keys.certificate), str(keys.key))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = keys.client.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with stopped_server(site, max_connections=1, tls=context) as (_, accept):
        sock, connection = accept(1.0)
        assert connection.is_idle
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        sock.sendall(outgoing.read())
        run_step(connection, 2.0)
        assert not connection.is_idle
        while True:
            incoming.write(sock.recv(1 << 16))
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
        sock.sendall(outgoing.read())
        run_step(connection, 3.0)
        assert connection.is_idle


def test_many_new_connections_take_one_look_at_all(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    is_idle = Connection.is_idle.fget
    assert is_idle is not None

    def counted(self: Connection) -> bool:
        looks.append(self)
        return is_idle(self)

    count = 3 * MAX_FOUND
    monkeypatch.setattr(Connection, "is_idle", property(counted))
    with stopped_server(site, max_connections=count) as (server, accept):
        for now in range(count):
            accept(float(now))
        looks.clear()
        for now in range(count, count + MAX_FOUND):
            accept(float(now))
        assert len(server._connections) == count
        assert len(looks) <= count + 4 * MAX_FOUND

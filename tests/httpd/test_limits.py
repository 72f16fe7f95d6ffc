"""Limits of connections."""

from __future__ import annotations

import socket
import subprocess
from contextlib import ExitStack
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd.connection import LINGER_SECONDS
from iobatch.httpd.server import MAX_TURNED_AWAY
from tests.support.http import split
from tests.support.httpd import LARGE, SMALL, exchange, get, receive_head, serving, slow_client
from tests.support.sockets import PATIENCE, receive

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.httpd import Address


def start_download(address: Address, stack: ExitStack) -> socket.socket:
    """Return a client that has received a part of its responses, and reads no further."""
    sock = stack.enter_context(slow_client(address))
    sock.sendall(LARGE * 20)
    receive_head(sock)
    return sock


def test_connection_beyond_the_limit_gets_503_and_others_are_served(site: Path, curl: str) -> None:
    with serving(site, max_connections=3) as (_, address), ExitStack() as stack:
        served = [start_download(address, stack) for _ in "123"]
        for _ in "12":
            for sock in served:
                receive(sock, 100_000)
            result = subprocess.run(
                [curl, "-sSi", f"http://{address[0]}:{address[1]}/1024"],
                capture_output=True,
                timeout=PATIENCE,
                check=True,
            )
            [refused] = split(result.stdout)
            assert refused.status == 503
            assert refused.headers["Retry-After"] == "5"
            assert refused.headers["Connection"] == "close"
        assert split(exchange(address, SMALL * 3))[0].status == 503
        served[0].close()
        assert any(get(address, "/1024").status == 200 for _ in range(1000))


@pytest.mark.parametrize(
    ("served", "turned_away"), [(1, 1), (10, 3), (4 * MAX_TURNED_AWAY, MAX_TURNED_AWAY)]
)
def test_connections_turned_away_are_bounded_and_closed_soon(
    site: Path, served: int, turned_away: int
) -> None:
    """Further ones wait in the backlog. No client is idle: each has begun a request."""
    with serving(site, max_connections=served) as (server, address), ExitStack() as stack:

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(address, PATIENCE))

        others = []
        for _ in range(served + turned_away + 10):
            others.append(connect())
            others[-1].sendall(SMALL[:1])
        first = others.pop(0)
        for _ in range(10):  # after some turns all connections that will be accepted are
            first.sendall(SMALL[1:] + SMALL[:1])
            receive_head(first)
            receive(first, 1)
        assert len(server._connections) == served + turned_away
        soon = monotonic() + LINGER_SECONDS
        assert sum(each.deadline <= soon for each in server._connections) == turned_away
        waiting = connect()
        waiting.sendall(SMALL)
        for sock in others:
            sock.close()
        first.close()
        assert receive(waiting, 12) in {b"HTTP/1.1 200", b"HTTP/1.1 503"}

"""The limit of a connection's rate."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from select import EPOLLIN
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd import throttle
from iobatch.httpd.connection import WAITING, Connection
from iobatch.httpd.server import WAIT_TICK
from iobatch.httpd.tls import tls_context
from tests.support.batches import data
from tests.support.http import split
from tests.support.httpd import (
    LARGE,
    SMALL,
    Keys,
    get,
    open_connection,
    receive_head,
    run_step,
    serving,
)
from tests.support.send import transmitted
from tests.support.sockets import PATIENCE, receive

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    """The time by which throttles measure."""

    now = 1000.0


@pytest.fixture(name="clock")
def stop_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock of throttles, which stands still until a test moves it."""
    clock = Clock()
    monkeypatch.setattr(throttle, "monotonic", lambda: clock.now)
    return clock


def assert_keeps_rate(
    connection: Connection, theirs: socket.socket, clock: Clock, rate: int
) -> None:
    """Receive for a while, and assert that the bytes that arrive are those that the rate allows."""
    before = transmitted(connection.sock)
    received: list[int] = []
    for i in range(1, 1 + int(min(100, 800_000 / rate) / WAIT_TICK)):
        assert run_step(connection, clock.now) == WAITING
        assert connection.deadline > clock.now
        nbytes = transmitted(connection.sock) - before - sum(received)
        received.append(len(receive(theirs, nbytes)))
        clock.now += WAIT_TICK
        # At most two bursts more: one at the start, and one by which the throttle catches up.
        assert sum(received) <= rate * (i * WAIT_TICK + 2 * throttle.BURST) + 1
    assert max(received) <= 2 * throttle.BURST * rate
    # At most one burst less: a handshake may have used it up.
    assert sum(received) >= rate * (i * WAIT_TICK - throttle.BURST)


@pytest.mark.parametrize("rate", [1000, 80_000])
@pytest.mark.parametrize("accept", ["identity", "gzip"])
def test_bytes_leave_at_the_rate_in_small_pieces_coded_or_not(
    site: Path, clock: Clock, accept: str, rate: int
) -> None:
    """A pause of the throttle is not counted as idleness."""
    (site / "text.txt").write_bytes(data(1 << 20).hex().encode())
    request = f"GET /text.txt HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {accept}\r\n\r\n"
    with open_connection(site, "tcp4", now=clock.now, rate=rate, timeout=5.0) as (
        connection,
        theirs,
    ):
        theirs.sendall(request.encode())
        assert_keeps_rate(connection, theirs, clock, rate)


@pytest.mark.parametrize("rate", [1000, 80_000])
def test_rate_counts_the_bytes_of_tls_from_the_handshake_on(
    site: Path, keys: Keys, clock: Clock, rate: int
) -> None:
    context = tls_context(str(keys.certificate), str(keys.key))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = keys.client.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with open_connection(site, "tcp4", now=clock.now, tls=context, rate=rate, timeout=5.0) as (
        connection,
        theirs,
    ):
        while True:
            with suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                break
            theirs.sendall(outgoing.read())
            while run_step(connection, clock.now) != EPOLLIN:
                clock.now += WAIT_TICK
            incoming.write(theirs.recv(1 << 16))
        tls.write(LARGE)
        theirs.sendall(outgoing.read())
        assert_keeps_rate(connection, theirs, clock, rate)


def test_many_small_responses_leave_at_the_same_rate_as_a_large_one(
    site: Path, clock: Clock
) -> None:
    with open_connection(site, now=clock.now, rate=10_000) as (connection, theirs):
        theirs.setblocking(False)
        start, received = clock.now, 0
        for _ in range(1000):
            theirs.sendall(SMALL)
            while (events := connection.step(clock.now)) != EPOLLIN:
                assert events == WAITING
                clock.now += WAIT_TICK
            received += len(theirs.recv(1 << 16))
        assert received == pytest.approx(10_000 * (clock.now - start), rel=0.02)


@pytest.mark.parametrize("rate", [1, 5])
def test_response_at_the_lowest_rate_ends(site: Path, clock: Clock, rate: int) -> None:
    with open_connection(site, now=clock.now, rate=rate, timeout=5.0) as (connection, theirs):
        start = clock.now
        theirs.sendall(SMALL)
        while connection.step(clock.now) == WAITING:
            assert connection.deadline > clock.now
            clock.now += WAIT_TICK
        [response] = split(theirs.recv(1 << 16))
        assert response.body == data(1, seed=1)
        assert clock.now - start > 200 / rate


@pytest.mark.parametrize("accept", ["identity", "gzip"])
def test_response_at_a_limited_rate_is_complete(site: Path, accept: str) -> None:
    (site / "text.txt").write_bytes(data(1 << 20).hex().encode())
    with serving(site, rate=20_000_000) as (_, address):
        response = get(address, "/text.txt", Accept_Encoding=accept, Connection="close")
        length = len(response.body)
        assert length == 2 << 20 if accept == "identity" else length < 2 << 20
        assert get(address, "/1048576").body == data(1 << 20, seed=1 << 20)


def test_server_resumes_throttled_connections_and_serves_others_meanwhile(site: Path) -> None:
    with (
        serving(site, rate=2_000_000) as (_, address),
        socket.create_connection(address, PATIENCE) as sock,
    ):
        sock.sendall(LARGE)
        head = receive_head(sock)
        assert get(address, "/1").body == data(1, seed=1)
        assert receive(sock, 1 << 20) == data(1 << 20, seed=1 << 20)
    assert head.startswith(b"HTTP/1.1 200")


def test_pause_of_the_throttle_is_added_to_the_deadline(site: Path, clock: Clock) -> None:
    """A byte takes longer than the timeout here."""
    with open_connection(site, now=clock.now, rate=1, timeout=0.25) as (connection, theirs):
        theirs.sendall(SMALL)
        for _ in range(3):
            assert connection.step(clock.now) == WAITING
            resume_at = connection._throttle.resume_at
            assert resume_at >= clock.now + 1 - throttle.BURST
            assert connection.deadline == resume_at + 0.25
            clock.now = resume_at

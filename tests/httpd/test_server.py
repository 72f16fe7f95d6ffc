"""The server's loop: accepting, errors, and the system calls of a request."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from select import EPOLLIN, EPOLLOUT
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd.connection import WAITING, Connection
from iobatch.httpd.output import STDERR
from iobatch.httpd.server import TICK
from tests.support.httpd import (
    LARGE,
    SMALL,
    Epoll,
    children,
    exchange,
    new_server,
    read_all,
    receive_head,
    serving,
    slow_client,
)
from tests.support.programs import tool
from tests.support.sockets import PATIENCE, fd_count, receive

if TYPE_CHECKING:
    from pathlib import Path


def test_connection_that_found_no_descriptor_is_accepted_later(site: Path) -> None:
    refused = Event()

    def accept(self: socket.socket) -> None:
        refused.set()
        raise OSError(errno.EMFILE, "")

    with serving(site) as (_, address):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket.socket, "accept", accept)
            sock = socket.create_connection(address, PATIENCE)
            assert refused.wait(PATIENCE)
        with sock:
            sock.sendall(SMALL)
            assert receive(sock, 12) == b"HTTP/1.1 200"


def test_server_without_descriptors_tries_to_accept_once_a_tick(site: Path) -> None:
    """The listening socket stays readable, so each turn of the loop would try again."""
    times = []

    def accept(self: socket.socket) -> None:
        times.append(monotonic())
        raise OSError(errno.EMFILE, "")

    with serving(site) as (_, address), socket.create_connection(address, PATIENCE) as served:
        served.sendall(SMALL)
        receive_head(served)
        receive(served, 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket.socket, "accept", accept)
            start = monotonic()
            with socket.create_connection(address, PATIENCE):
                for _ in range(100):
                    served.sendall(SMALL)
                    receive_head(served)
                    receive(served, 1)
        ticks = (monotonic() - start) / TICK  # the server may have tried up to here
        assert 1 <= len(times) <= 2 + ticks


def test_accepted_socket_has_tcp_nodelay(site: Path) -> None:
    with serving(site) as (server, address), socket.create_connection(address) as sock:
        sock.sendall(SMALL)
        receive(sock, 10)
        [connection] = server._connections
        assert connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_connection_without_tcp_nodelay_is_served(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "scripted")

    with serving(site) as (_, address):
        monkeypatch.setattr(socket.socket, "setsockopt", refuse)
        assert exchange(address, SMALL).startswith(b"HTTP/1.1 200")


def test_unexpected_exception_ends_one_connection_and_is_printed(
    site: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Other connections go on."""

    def failing(*args: object) -> None:
        raise ZeroDivisionError("unexpected")

    with serving(site) as (_, address), socket.create_connection(address, PATIENCE) as other:
        other.sendall(SMALL)
        assert receive(other, 12) == b"HTTP/1.1 200"
        receive_head(other)
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "_send", failing)
            assert exchange(address, SMALL) == b""
        other.sendall(SMALL)
        assert receive(other, 13)[1:] == b"HTTP/1.1 200"
    STDERR.finish()
    assert "ZeroDivisionError: unexpected" in capfd.readouterr().err


# Runs the server as a program whose clock is ahead: no file is recent.
CLOCK_AHEAD = """
from iobatch.httpd import files, program
now = files.time
files.time = lambda: now() + 10
program.main()
"""


def test_small_file_takes_one_wait_one_recv_one_fstat_and_one_send(
    site: Path, tmp_path: Path
) -> None:
    """A file that is not kept in memory takes one pread more, and a large one goes by sendfile."""
    strace = tool("strace", "strace")
    log = tmp_path / "log"
    with subprocess.Popen(
        [strace, "-qo", log, sys.executable, "-c", CLOCK_AHEAD, site, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        [server] = children(process.pid)
        port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            for size in (1024,) * 5 + (32768,) * 5 + (1 << 20,) * 5:
                sock.sendall(f"GET /{size} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                receive_head(sock)
                receive(sock, size)
        os.kill(server, signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    # The system calls between a wait that a request ended and the next wait.
    turns = [
        tuple(
            call.partition("(")[0].replace("newfstatat", "fstat") for call in turn.splitlines()[1:]
        )
        for turn in log.read_text().split("epoll_wait(")
        if "GET /" in turn
    ]
    assert len(turns) == 15
    # The first request opens the file; another one does if the file stops being fresh.
    assert turns[:5].count(("recvfrom", "fstat", "sendto")) >= 3
    # The compiled form joins what it reads with the header; the pure form gives sendmsg both.
    read = [turn for turn in turns[5:10] if turn[:-1] == ("recvfrom", "fstat", "pread64")]
    assert sum(turn[-1] in ("sendto", "sendmsg") for turn in read) >= 3
    # A large file that the socket does not take at once continues in another turn.
    large = turns[10:]
    sent = ("recvfrom", "fstat", "sendto", "sendfile")
    assert large.count(sent) + large.count((*sent, "epoll_ctl")) >= 3


def test_throttled_connection_is_closed_at_its_deadline(site: Path) -> None:
    """It is not in the epoll set."""
    with new_server(site) as (server, address, _), socket.create_connection(address) as sock:
        server._accept(0.0)
        [connection] = server._connections
        server._wait_for(connection, WAITING)
        server._tick(connection.deadline)
        server._step_deferred(0.0)
        assert not server._connections
        assert not server._waiting
        assert sock.recv(1) == b""


def test_server_that_accepts_nothing_for_a_while_can_be_stopped(site: Path) -> None:
    with new_server(site) as (server, _, stop):
        server._pause()
        stop.send(bytes([signal.SIGTERM]))
        server.run()


def test_connection_that_a_stop_closes_is_not_run_in_the_same_turn(
    site: Path,
) -> None:
    """The request of an idle connection arrives with the request to stop."""

    class StopFirst(Epoll):
        def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
            return sorted(super().poll(timeout), key=lambda item: item[0] in server._watched)

    with new_server(site) as (server, address, stop), socket.create_connection(address) as sock:
        StopFirst(server)
        server._accept(0.0)
        sock.sendall(SMALL)
        stop.send(bytes([signal.SIGTERM]))
        server.run()
        assert not server._connections


class FullEpoll(Epoll):
    """An epoll object without room for some events."""

    refused = 0  # select.EPOLLIN and EPOLLOUT

    def register(self, fd: int, events: int) -> None:
        self._refuse(events)
        super().register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self._refuse(events)
        super().modify(fd, events)

    def _refuse(self, events: int) -> None:
        if events & self.refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


NO_ROOM = "iobatch.httpd: can't wait for a connection, and close it: No space left on device\n"


def test_connection_that_finds_no_room_in_epoll_is_closed_and_reported(
    site: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The others are served. The next one is accepted when a connection ends, or after a tick."""
    with new_server(site) as (server, address, _), ExitStack() as stack:

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(address, PATIENCE))

        epoll = FullEpoll(server)
        first, second = connect(), connect()
        epoll.refused = EPOLLIN
        server._accept(0.0)
        assert first.recv(1) == b""
        assert not server._connections
        assert server._paused
        epoll.refused = 0
        server._resume()
        server._accept(0.0)
        [connection] = server._connections
        second.sendall(SMALL)
        connection.step(0.0)
        assert receive_head(second)[:12] == b"HTTP/1.1 200"
    STDERR.finish()
    assert capfd.readouterr().err == NO_ROOM


@pytest.mark.parametrize("throttled", [False, True])
def test_connection_that_epoll_cannot_change_is_closed_and_the_others_are_served(
    site: Path, capfd: pytest.CaptureFixture[str], *, throttled: bool
) -> None:
    with (
        serving(site, rate=1000 if throttled else None) as (server, address),
        socket.create_connection(address, PATIENCE) as other,
        slow_client(address) as sock,
    ):
        other.sendall(SMALL)
        receive_head(other)
        receive(other, 1)
        epoll = FullEpoll(server)
        epoll.refused = EPOLLOUT
        sock.sendall(LARGE * 20)
        read_all(sock)
        epoll.refused = 0
        other.sendall(SMALL)
        assert receive_head(other)[:12] == b"HTTP/1.1 200"
    STDERR.finish()
    assert capfd.readouterr().err == NO_ROOM


def test_listening_goes_on_at_a_later_tick_when_epoll_has_no_room(site: Path) -> None:
    with new_server(site) as (server, _, _):
        epoll = FullEpoll(server)
        server._pause()
        epoll.refused = EPOLLIN
        server._tick(0.0)
        assert server._paused
        epoll.refused = 0
        server._tick(TICK)
        assert not server._paused
        epoll.modify(server._listener.fileno(), EPOLLIN)  # fails unless it is in the epoll set


def test_exception_in_accepting_or_closing_a_connection_is_printed_and_the_others_are_served(
    site: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def failing(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("unexpected")

    with serving(site) as (server, address):
        for name in ("__attrs_post_init__", "close"):
            with monkeypatch.context() as patch:
                patch.setattr(Connection, name, failing)
                with socket.create_connection(address, PATIENCE) as sock:
                    sock.shutdown(socket.SHUT_WR)
                    assert sock.recv(1) == b""
            assert exchange(address, SMALL)[:12] == b"HTTP/1.1 200"
        assert not server._connections
    STDERR.finish()
    assert capfd.readouterr().err.count("ZeroDivisionError: unexpected") == 2


class Unregisterable(Epoll):
    """An epoll object that removes a descriptor, and reports that it can't."""

    def unregister(self, fd: int) -> None:
        self._epoll.unregister(fd)
        raise OSError(errno.ENOENT, "scripted")


def test_descriptor_that_is_not_in_epoll_ends_no_server(site: Path) -> None:
    """Connections are closed, and the server stops listening, all the same."""
    with new_server(site) as (server, address, stop), socket.create_connection(address) as sock:
        Unregisterable(server)
        server._accept(0.0)
        server._pause()
        server._resume()
        sock.shutdown(socket.SHUT_WR)
        stop.send(bytes([signal.SIGTERM]))
        server.run()
        assert not server._connections


def test_failed_close_leaves_no_other_socket_open(site: Path) -> None:
    class Unclosable(Epoll):
        def close(self) -> None:
            self._epoll.close()
            raise OSError(errno.EIO, "scripted")

    before = fd_count()
    with new_server(site) as (server, _, _):
        Unclosable(server)
    assert fd_count() == before

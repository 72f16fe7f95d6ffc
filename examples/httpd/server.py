"""The listening socket and the loop: who is ready, and who has been silent for too long."""

from __future__ import annotations

import errno
import os
import socket
import traceback
from contextlib import suppress
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from time import monotonic
from typing import TYPE_CHECKING

from attrs import define, field

from connection import REST, Connection

if TYPE_CHECKING:
    from files import Files
    from settings import Settings

# Deadlines are looked at once in so many seconds.
TICK = 1.0
# And connections of a limited rate, if one rests.
REST_TICK = 0.05
# So many connections are accepted before the others have their turn.
MAX_ACCEPTS = 64
BACKLOG = 1024
# So many connections more than there may be are accepted, to answer 503: a client that is told can
# go elsewhere, or tell somebody. But they take descriptors: where there may be few, it's a quarter
# of these. Even more have to wait.
MAX_TURNED_AWAY = 64
# More connections can't be had now; they stay in the backlog.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a listening socket.

    Args:
        host: an address or a name of this machine.
        port: 0: the system chooses one.
        shared: other sockets listen on the same port, and each gets a part of the clients.

    Raises:
        OSError: there is no such address, or it can't be had.

    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except UnicodeError as exc:  # a label that is longer than any name may have
        raise OSError(errno.EINVAL, "not the name of a host") from exc
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" is all addresses, those of IPv4 too, whatever the system's default is.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def listen_unix(path: str) -> socket.socket:
    """Return a socket that listens at a path; one that nobody listens at any more gives way.

    Raises:
        OSError: the path can't be had.

    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if Path(path).is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    Path(path).unlink()
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def unlink_unix(path: str, made: int) -> None:
    """Remove the path of a Unix socket, unless it's another server's by now.

    Args:
        path: where it was.
        made: a descriptor of what was made there (O_PATH): as long as it is open, nothing else has
            its inode's number.

    """
    with suppress(OSError):
        if os.path.samestat(Path(path).stat(), os.fstat(made)):
            Path(path).unlink()
    os.close(made)


def url(listener: socket.socket, *, secure: bool) -> str:
    """Return the address to open in a browser."""
    scheme = "https" if secure else "http"
    if listener.family == socket.AF_UNIX:
        return f"{scheme}+unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104  # all addresses; this is one of them
        host = "localhost"
    return f"{scheme}://[{host}]:{port}/" if ":" in host else f"{scheme}://{host}:{port}/"


@define(eq=False)
class Server:
    """Serves files on a listening socket, until it is told to stop."""

    _listener: socket.socket
    _files: Files
    _settings: Settings
    # A byte, or its end, stops the server: it finishes what it has begun. One more: at once.
    _stop: socket.socket
    _selector: DefaultSelector = field(init=False, factory=DefaultSelector)
    _connections: set[Connection] = field(init=False, factory=set)
    # Those whose rate is used up for now.
    _resting: set[Connection] = field(init=False, factory=set)
    # When they are looked at (time.monotonic).
    _wake: float = field(init=False, default=0.0)
    # The listening socket is left alone until a connection ends, or until the next tick.
    _paused: bool = field(init=False, default=False)
    # When it ends in any case (time.monotonic); None: it has not been told to stop.
    _end: float | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._selector.register(self._listener, EVENT_READ)
        self._selector.register(self._stop, EVENT_READ)

    def close(self) -> None:
        """Close the sockets. What is being sent is cut off."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        self._selector.close()
        self._listener.close()
        self._stop.close()

    def run(self) -> None:
        """Serve until it has stopped."""
        selector = self._selector
        next_tick = 0.0
        while self._end is None or (self._connections and monotonic() < self._end):
            ready = selector.select(self._patience())
            now = monotonic()
            for key, _ in ready:
                connection = key.data
                if connection is not None:
                    try:
                        events = connection.step(now)
                    except Exception:  # noqa: BLE001  # it ends this connection, and no other
                        traceback.print_exc()
                        events = 0
                    if events != key.events:
                        self._turn(connection, events)
                elif key.fileobj is self._listener:
                    self._accept(now)
                elif self._told_to_stop(now):
                    return
                else:
                    break  # some of what is ready may be gone
            if self._resting and now >= self._wake:
                self._wake = now + REST_TICK
                for connection in self._resting:
                    selector.register(connection.sock, EVENT_WRITE, connection)
                self._resting.clear()
            if now >= next_tick:
                next_tick = now + TICK
                self._tick(now)

    def _patience(self) -> float | None:
        """Return how long to wait, in seconds; None: for ever."""
        if self._resting:
            return REST_TICK
        log = self._settings.log
        busy = self._connections or self._files or self._paused or (log is not None and log)
        return TICK if busy else None

    def _turn(self, connection: Connection, events: int) -> None:
        """Wait for something else."""
        if not events:
            self._drop(connection)
        elif events == REST:
            self._selector.unregister(connection.sock)
            self._resting.add(connection)
        else:
            self._selector.modify(connection.sock, events, connection)

    def _accept(self, now: float) -> None:
        for _ in range(MAX_ACCEPTS):
            most = self._settings.max_connections
            surplus = len(self._connections) - most
            if surplus >= min(MAX_TURNED_AWAY, most // 4 + 1):
                self._pause()
                return
            try:
                sock, address = self._listener.accept()
            except OSError as exc:
                # Anything else was one connection's failure (accept(2)), or there is none left.
                if exc.errno in _EXHAUSTED:
                    self._pause()
                return
            if surplus >= 0 and self._settings.tls is not None:
                sock.close()  # a handshake is much more work than the answer
                continue
            sock.setblocking(False)
            peer = b"unix"
            if sock.family != socket.AF_UNIX:
                peer = address[0].removeprefix("::ffff:").encode()  # one of IPv4 (RFC 4291 2.5.5.2)
                # Batches are whole responses: under Nagle's algorithm the second would wait until
                # the first is acknowledged.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(
                sock, self._files, self._settings, now + self._settings.timeout, peer
            )
            if surplus >= 0:
                connection.turn_away(now)
            self._connections.add(connection)
            self._selector.register(sock, EVENT_READ, connection)

    def _pause(self) -> None:
        """Let those who come wait."""
        self._paused = True
        self._selector.unregister(self._listener)

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._selector.register(self._listener, EVENT_READ)

    def _drop(self, connection: Connection) -> None:
        self._connections.remove(connection)
        if connection in self._resting:
            self._resting.remove(connection)
        else:
            self._selector.unregister(connection.sock)
        connection.close()
        self._resume()

    def _told_to_stop(self, now: float) -> bool:
        """Stop, but for responses that are being sent; tell whether these are to be cut off too."""
        again = self._end is not None
        told = self._stop.recv(16)
        if again or len(told) > 1:
            return True
        self._end = now + self._settings.grace
        if not told:
            self._selector.unregister(self._stop)
        if not self._paused:
            self._selector.unregister(self._listener)
        self._paused = False
        self._listener.close()
        for connection in [each for each in self._connections if each.finish()]:
            self._drop(connection)
        return False

    def _tick(self, now: float) -> None:
        """Do what is to be done once in a while."""
        for connection in [each for each in self._connections if each.deadline <= now]:
            self._drop(connection)
        self._files.sweep(now)
        if self._settings.log is not None:
            self._settings.log.flush()
        self._resume()

"""The listening socket and the loop: who is ready, and who has been silent for too long."""

from __future__ import annotations

import errno
import socket
from selectors import EVENT_READ, DefaultSelector
from time import monotonic
from typing import TYPE_CHECKING

from attrs import define, field

from connection import Connection

if TYPE_CHECKING:
    from files import Files
    from settings import Settings

# Deadlines are looked at once in so many seconds.
TICK = 1.0
# So many connections are accepted before the others have their turn.
MAX_ACCEPTS = 64
BACKLOG = 1024
# More connections can't be had now; they stay in the backlog.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Args:
        host: an address or a name of this machine.
        port: 0: the system chooses one.

    Raises:
        OSError: there is no such address, or it can't be had.

    """
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    listener.setblocking(False)
    return listener


def url(listener: socket.socket, *, secure: bool) -> str:
    """Return the address to open in a browser."""
    scheme = "https" if secure else "http"
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
    _selector: DefaultSelector = field(init=False, factory=DefaultSelector)
    _connections: set[Connection] = field(init=False, factory=set)
    # The listening socket is left alone until the next tick.
    _paused: bool = field(init=False, default=False)
    # A byte written to the one makes the other readable: that stops the loop.
    stopper: socket.socket = field(init=False)
    _stopped: socket.socket = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.stopper, self._stopped = socket.socketpair()
        self.stopper.setblocking(False)
        self._selector.register(self._listener, EVENT_READ)
        self._selector.register(self._stopped, EVENT_READ)

    def close(self) -> None:
        """Close every socket. What is being sent is cut off."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        self._selector.close()
        for sock in (self._listener, self.stopper, self._stopped):
            sock.close()

    def run(self) -> None:
        """Serve until something is written to stopper."""
        selector = self._selector
        next_tick = 0.0
        while True:
            idle = not (self._connections or self._files or self._paused)
            ready = selector.select(None if idle else TICK)
            now = monotonic()
            for key, _ in ready:
                connection = key.data
                if connection is not None:
                    events = connection.step(now)
                    if not events:
                        self._drop(connection)
                    elif events != key.events:
                        selector.modify(connection.sock, events, connection)
                elif key.fileobj is self._listener:
                    self._accept(now)
                else:
                    return
            if now >= next_tick:
                next_tick = now + TICK
                self._tick(now)

    def _accept(self, now: float) -> None:
        for _ in range(MAX_ACCEPTS):
            try:
                sock, _ = self._listener.accept()
            except OSError as exc:
                # Anything else was one connection's failure (accept(2)), or there is none left.
                if exc.errno in _EXHAUSTED:
                    self._paused = True
                    self._selector.unregister(self._listener)
                return
            sock.setblocking(False)
            # Batches are whole responses: under Nagle's algorithm the second would wait until the
            # first is acknowledged.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock, self._files, self._settings, now + self._settings.timeout)
            self._connections.add(connection)
            self._selector.register(sock, EVENT_READ, connection)

    def _drop(self, connection: Connection) -> None:
        self._connections.remove(connection)
        self._selector.unregister(connection.sock)
        connection.close()

    def _tick(self, now: float) -> None:
        """Do what is to be done once in a while."""
        for connection in [each for each in self._connections if each.deadline <= now]:
            self._drop(connection)
        self._files.sweep(now)
        if self._paused:
            self._paused = False
            self._selector.register(self._listener, EVENT_READ)

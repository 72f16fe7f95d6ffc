"""The server's loop: it accepts connections, runs those that are ready, and drops silent ones."""

from __future__ import annotations

import errno
import socket
import traceback
from contextlib import suppress
from itertools import chain
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector, SelectorKey
from time import monotonic
from typing import TYPE_CHECKING, Any

from attrs import define, field

from iobatch.httpd.connection import CLOSE, DEFERRED, WAITING, Connection
from iobatch.httpd.idle import IdleConnections
from iobatch.httpd.output import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from iobatch.httpd.cache import FileCache
    from iobatch.httpd.settings import Settings

# Seconds between two checks of the deadlines.
TICK = 1.0
# Seconds between two attempts to resume the waiting connections.
WAIT_TICK = 0.05
# Seconds of deferred work, and of closing late connections, before those that are ready run.
SLICE = 0.002
# The events of a connection that is not in the selector: no step returns this.
_UNWATCHED = -1
# The most connections that are accepted before the others run.
MAX_ACCEPTS = 64
# The most connections above max_connections that are open at a time. Each is answered by 503, so
# that its client can react; with TLS it is closed at once. They take descriptors, so the limit is
# about a quarter of max_connections where that is less. Further clients wait in the backlog.
MAX_TURNED_AWAY = 64
# accept(2) fails with these where the system has no room for a connection, which stays in the
# backlog.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@define(eq=False)
class Server:
    """Serves files on a listening socket until it is asked to stop."""

    _listener: socket.socket
    _files: FileCache
    _settings: Settings
    # The first byte from this socket, or its end of stream, asks the server to finish the responses
    # in flight and stop. Anything after that stops the server at once.
    _stop: socket.socket
    _selector: DefaultSelector = field(init=False, factory=DefaultSelector)
    _connections: set[Connection] = field(init=False, factory=set["Connection"])
    # Connections that wait for nothing from their sockets. They are not in the selector.
    _waiting: set[Connection] = field(init=False, factory=set["Connection"])
    # Connections whose next step takes long, in the order of their turns; True: the deadline has
    # passed, and the connection is closed instead. They are not in the selector.
    _deferred: dict[Connection, bool] = field(init=False, factory=dict["Connection", bool])
    # When the waiting connections return to the selector (time.monotonic).
    _resume_at: float = field(init=False, default=0.0)
    _idle: IdleConnections = field(init=False)
    # The listening socket is out of the selector, until a connection ends or the next tick.
    _paused: bool = field(init=False, default=False)
    # When unfinished responses are cut off (time.monotonic); None: the server was not asked to
    # stop.
    _stop_at: float | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._idle = IdleConnections(self._connections, self._settings.timeout)
        self._selector.register(self._listener, EVENT_READ)
        self._selector.register(self._stop, EVENT_READ)

    def close(self) -> None:
        """Close all sockets and the log. Responses that are being sent are cut off."""
        for connection in list(self._connections):
            self._drop(connection)
        if self._settings.log is not None:
            self._settings.log.close()
        self._selector.close()
        self._listener.close()
        self._stop.close()

    def run(self) -> None:
        """Serve until asked to stop; then send responses in flight, for the grace time at most."""
        listings = self._files.listings
        next_tick = 0.0
        while self._stop_at is None or (self._connections and monotonic() < self._stop_at):
            ready = self._select()
            now = monotonic()
            accepting = False
            for key, _ in ready:
                connection = key.data
                if connection is not None:
                    try:
                        events = connection.step(now)
                    except Exception:  # noqa: BLE001  # a bug ends one connection, not the server
                        report(traceback.format_exc())
                        events = CLOSE
                    if events != key.events:
                        self._wait_for(connection, events, key.events)
                elif key.fileobj is self._listener:
                    accepting = True
                elif self._handle_stop(now):
                    return
                else:
                    break  # connections in `ready` may be closed now
            if listings.builds and listings.build(now):
                self._resume_at = now
            # Last, because idle connections may be closed for new ones.
            if accepting and self._stop_at is None:
                self._accept(now)
            if self._waiting and now >= self._resume_at:
                self._resume_waiting(now)
            if now >= next_tick:
                next_tick = now + TICK
                self._tick(now)

    def _select(self) -> Iterable[tuple[SelectorKey, int]]:
        """Wait for connections, or until there is something else to do; return those to run."""
        log = self._settings.log
        timeout: float | None = None
        if self._deferred:
            return chain(self._selector.select(0.0), self._take_deferred())
        if self._files.listings.builds:
            timeout = 0.0
        elif self._waiting:
            timeout = WAIT_TICK
        elif self._connections or self._files or self._paused or log:
            timeout = TICK
        return self._selector.select(timeout)

    def _take_deferred(self) -> Iterator[tuple[SelectorKey, int]]:
        """Yield deferred connections to run, as the selector does, and close the others."""
        end = monotonic() + SLICE
        while self._deferred:
            connection = next(iter(self._deferred))
            if self._deferred.pop(connection):
                self._drop(connection, connection.give_up)
            else:
                yield SelectorKey(connection.sock, -1, _UNWATCHED, connection), 0
            if monotonic() >= end:
                break

    def _wait_for(self, connection: Connection, events: int, before: int) -> None:
        """Act on the result of a connection's step.

        Args:
            connection: the connection.
            events: the result.
            before: what the selector waited for, or _UNWATCHED.

        """
        if events == CLOSE:
            self._drop(connection)
        elif events in {WAITING, DEFERRED}:
            if before != _UNWATCHED:
                self._selector.unregister(connection.sock)
            if events == WAITING:
                self._waiting.add(connection)
            else:
                self._deferred[connection] = False
        else:
            change = self._selector.register if before == _UNWATCHED else self._selector.modify
            self._watch(connection, events, change)

    def _watch(
        self, connection: Connection, events: int, change: Callable[[socket.socket, int, Any], Any]
    ) -> bool:
        """Change what the selector waits for; return False if the connection is closed instead."""
        try:
            change(connection.sock, events, connection)
        except OSError as exc:  # epoll_ctl(2): ENOMEM and ENOSPC
            report(f"can't wait for a connection, and close it: {exc.strerror}")
            self._drop(connection)
            return False
        return True

    def _resume_waiting(self, now: float) -> None:
        self._resume_at = now + WAIT_TICK
        waiting = list(self._waiting)
        self._waiting.clear()
        for connection in waiting:
            self._watch(connection, EVENT_WRITE, self._selector.register)

    def _accept(self, now: float) -> None:
        limit = self._settings.max_connections
        for _ in range(MAX_ACCEPTS):
            surplus = len(self._connections) - limit
            idle = self._idle.longest(now) if surplus >= 0 else None
            if idle is None and surplus >= min(MAX_TURNED_AWAY, limit // 4 + 1):
                self._pause()
                return
            try:
                sock, address = self._listener.accept()
            except OSError as exc:
                # Other errors are EAGAIN, or the failure of one connection (accept(2)).
                if exc.errno in _EXHAUSTED:
                    self._pause()
                return
            if idle is not None:
                self._drop(idle)
            try:
                connection = self._new_connection(sock, address, now)
            except Exception:  # noqa: BLE001  # as in run()
                report(traceback.format_exc())
                sock.close()
                continue
            if surplus >= 0 and idle is None:
                if self._settings.tls is not None:
                    sock.close()  # a handshake costs far more than the answer
                    continue
                connection.turn_away(now)
            self._connections.add(connection)
            if not self._watch(connection, EVENT_READ, self._selector.register):
                self._pause()
                return

    def _new_connection(self, sock: socket.socket, address: Any, now: float) -> Connection:
        sock.setblocking(False)
        peer = b"unix"
        if sock.family != socket.AF_UNIX:
            peer = address[0].removeprefix("::ffff:").encode()  # IPv4 (RFC 4291 2.5.5.2)
            # A batch holds whole responses. Nagle's algorithm would hold back the end of one until
            # the client has acknowledged the response before it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Connection(sock, self._files, self._settings, now + self._settings.timeout, peer)

    def _pause(self) -> None:
        """Accept nothing for a while: clients wait in the backlog."""
        self._paused = True
        self._selector.unregister(self._listener)

    def _resume(self) -> None:
        if self._paused:
            with suppress(OSError):  # as in _watch; the next tick tries again
                self._selector.register(self._listener, EVENT_READ)
                self._paused = False

    def _drop(self, connection: Connection, close: Callable[[], None] | None = None) -> None:
        self._connections.remove(connection)
        self._deferred.pop(connection, None)
        self._unwatch(connection)
        try:
            (close or connection.close)()
        except Exception:  # noqa: BLE001  # as in run()
            report(traceback.format_exc())
            connection.sock.close()
        self._resume()

    def _unwatch(self, connection: Connection) -> None:
        """Run a connection no more, unless it is deferred."""
        self._waiting.discard(connection)
        with suppress(KeyError):  # it waits for something else, or could not be waited for
            self._selector.unregister(connection.sock)

    def _handle_stop(self, now: float) -> bool:
        """Read from the stop socket; return whether responses in flight must be cut off."""
        again = self._stop_at is not None
        received = self._stop.recv(16)
        if again or len(received) > 1:
            return True
        self._stop_at = now + self._settings.grace
        if not received:
            self._selector.unregister(self._stop)
        if not self._paused:
            self._selector.unregister(self._listener)
        self._paused = False
        self._listener.close()
        for connection in [each for each in self._connections if each.finish()]:
            self._drop(connection)
        if self._connections and self._settings.grace:
            clients = len(self._connections)
            report(
                f"waiting for {clients} client{'s' * (clients > 1)}, at most "
                f"{self._settings.grace:g} seconds; Ctrl-C again cuts them off"
            )
        return False

    def _tick(self, now: float) -> None:
        """Do what is due once a second."""
        for connection in self._connections:
            if connection.deadline <= now:
                # Closing may free megabytes, and many connections may be late at the same time.
                self._unwatch(connection)
                self._deferred[connection] = True
        self._files.sweep(now)
        if self._settings.log is not None:
            self._settings.log.flush()
        self._resume()

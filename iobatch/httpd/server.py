"""The server's loop: it accepts connections, runs those that are ready, and drops silent ones."""

from __future__ import annotations

import errno
import socket
import traceback
from contextlib import suppress
from select import EPOLLIN, EPOLLOUT, epoll
from time import monotonic
from typing import TYPE_CHECKING, Any

from attrs import define, field

from iobatch.httpd.connection import BUILDING, CLOSE, DEFERRED, WAITING, Connection
from iobatch.httpd.idle import IdleConnections
from iobatch.httpd.output import report
from iobatch.httpd.signals import count_stops, has_hangup
from iobatch.httpd.systemd import notify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from iobatch.httpd.cache import FileCache
    from iobatch.httpd.directories import Names
    from iobatch.httpd.settings import Settings

# Seconds between two checks of the deadlines.
TICK = 1.0
# Seconds between two attempts to resume the connections that pause.
WAIT_TICK = 0.05
# Seconds of deferred work, and of closing late connections, before those that are ready run.
SLICE = 0.002
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
    # Each byte from this socket is the number of a signal. The first one to stop, or the end of
    # stream, asks the server to finish the responses in flight and stop. The next one stops the
    # server at once.
    _signals: socket.socket
    # Without the selectors module, which makes an object for each event.
    _epoll: epoll = field(init=False, factory=epoll)
    _connections: set[Connection] = field(init=False, factory=set["Connection"])
    # Connections in the epoll set, by their descriptors.
    _watched: dict[int, Connection] = field(init=False, factory=dict[int, "Connection"])
    # Connections that pause to keep their rate limits, or until a password is verified. They are
    # not in the epoll set.
    _waiting: set[Connection] = field(init=False, factory=set["Connection"])
    # Connections that wait for a listing, by its directory. They are not in the epoll set. Only
    # those whose listing is made resume: the others could be thousands.
    _building: dict[Names, set[Connection]] = field(
        init=False, factory=dict["Names", "set[Connection]"]
    )
    # Connections whose next step takes long, in the order of their turns; True: the deadline has
    # passed, and the connection is closed instead. They are not in the epoll set.
    _deferred: dict[Connection, bool] = field(init=False, factory=dict["Connection", bool])
    # When the waiting connections return to the epoll set (time.monotonic).
    _resume_at: float = field(init=False, default=0.0)
    _idle: IdleConnections = field(init=False)
    # The listening socket is out of the epoll set, until a connection ends or the next tick.
    _paused: bool = field(init=False, default=False)
    # When unfinished responses are cut off (time.monotonic); None: the server was not asked to
    # stop.
    _stop_at: float | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._idle = IdleConnections(self._connections, self._settings.timeout)
        self._epoll.register(self._listener, EPOLLIN)
        self._epoll.register(self._signals, EPOLLIN)

    def close(self) -> None:
        """Close all sockets and the log. Responses that are being sent are cut off."""
        for connection in list(self._connections):
            self._drop(connection)
        if self._settings.log is not None:
            self._settings.log.close()
        for each in (self._epoll, self._listener, self._signals):
            with suppress(OSError):
                each.close()

    def run(self) -> None:
        """Serve until asked to stop; then send responses in flight, for the grace time at most."""
        listings, watched, listener = self._files.listings, self._watched, self._listener.fileno()
        next_tick = 0.0
        while self._stop_at is None or (self._connections and monotonic() < self._stop_at):
            ready = self._epoll.poll(self._timeout())
            now = monotonic()
            accepting = False
            for fd, _ in ready:
                if fd in watched:
                    self._step(watched[fd], now)
                elif fd == listener:
                    accepting = True
                elif self._handle_signals(now):
                    return
                else:
                    break  # connections in `ready` may be closed now
            if self._deferred:
                self._step_deferred(now)
            if listings.builds and (made := listings.build(now)) is not None:
                self._resume_sending(self._building.pop(made, ()))
            if self._building and not listings.builds:  # dropped where no descriptor was left
                self._resume_sending(set[Connection]().union(*self._building.values()))
                self._building.clear()
            # Last, because idle connections may be closed for new ones.
            if accepting and self._stop_at is None:
                self._accept(now)
            if self._waiting and now >= self._resume_at:
                self._resume_waiting(now)
            if now >= next_tick:
                next_tick = now + TICK
                self._tick(now)

    def _timeout(self) -> float | None:
        """Return the seconds until there is something to do, whatever happens."""
        if self._deferred or self._files.listings.builds:
            return 0.0
        if self._waiting:
            return WAIT_TICK
        if self._connections or self._files or self._paused or self._settings.log:
            return TICK
        return None

    def _step(self, connection: Connection, now: float) -> None:
        """Run a connection, and change what it waits for."""
        try:
            events = connection.step(now)
        except Exception:  # noqa: BLE001  # a bug ends one connection, not the server
            report(traceback.format_exc())
            events = CLOSE
        if events != connection.watched:
            self._wait_for(connection, events)

    def _step_deferred(self, now: float) -> None:
        """Run deferred connections, or close them, for the time of a SLICE."""
        end = monotonic() + SLICE
        while self._deferred:
            connection = next(iter(self._deferred))
            if self._deferred.pop(connection):
                self._drop(connection, connection.give_up)
            else:
                self._step(connection, now)
            if monotonic() >= end:
                break

    def _wait_for(self, connection: Connection, events: int) -> None:
        """Act on the result of a connection's step.

        Args:
            connection: the connection.
            events: the result.

        """
        if events == CLOSE:
            self._drop(connection)
        elif events in {WAITING, DEFERRED, BUILDING}:
            self._unwatch(connection)
            if events == WAITING:
                self._waiting.add(connection)
            elif events == DEFERRED:
                self._deferred[connection] = False
            else:
                self._building.setdefault(connection.awaited or (), set()).add(connection)
        else:
            self._watch(connection, events)

    def _watch(self, connection: Connection, events: int) -> bool:
        """Change what epoll waits for; return False if the connection is closed instead."""
        fd = connection.sock.fileno()
        try:
            if connection.watched:
                self._epoll.modify(fd, events)
            else:
                self._epoll.register(fd, events)
        except OSError as exc:  # epoll_ctl(2): ENOMEM and ENOSPC
            report(f"can't wait for a connection, and close it: {exc.strerror}")
            self._drop(connection)
            return False
        connection.watched = events
        self._watched[fd] = connection
        return True

    def _unwatch(self, connection: Connection) -> None:
        """Remove a connection from the epoll set, if it is there."""
        if connection.watched:
            fd = connection.sock.fileno()
            self._unregister(fd)
            connection.watched = 0
            del self._watched[fd]

    def _unregister(self, fd: int) -> None:
        """Remove a descriptor from the epoll set; epoll_ctl(2) fails if it is not there."""
        with suppress(OSError):
            self._epoll.unregister(fd)

    def _resume_waiting(self, now: float) -> None:
        self._resume_at = now + WAIT_TICK
        waiting = list(self._waiting)
        self._waiting.clear()
        self._resume_sending(waiting)

    def _resume_sending(self, connections: Iterable[Connection]) -> None:
        for connection in connections:
            self._watch(connection, EPOLLOUT)

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
            if not self._watch(connection, EPOLLIN):
                self._pause()
                return

    def _new_connection(self, sock: socket.socket, address: Any, now: float) -> Connection:
        sock.setblocking(False)
        peer = b"unix"
        if sock.family != socket.AF_UNIX:
            peer = address[0].removeprefix("::ffff:").encode()  # IPv4 (RFC 4291 2.5.5.2)
            # A batch holds whole responses. Nagle's algorithm would hold back the end of one until
            # the client has acknowledged the response before it. That is all that a failure costs.
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Connection(sock, self._files, self._settings, now + self._settings.timeout, peer)

    def _pause(self) -> None:
        """Accept nothing for a while: clients wait in the backlog."""
        self._paused = True
        self._unregister(self._listener.fileno())

    def _resume(self) -> None:
        if self._paused:
            with suppress(OSError):  # as in _watch; the next tick tries again
                self._epoll.register(self._listener, EPOLLIN)
                self._paused = False

    def _drop(self, connection: Connection, close: Callable[[], None] | None = None) -> None:
        self._connections.remove(connection)
        self._deferred.pop(connection, None)
        self._stop_waiting(connection)
        try:
            (close or connection.close)()
        except Exception:  # noqa: BLE001  # as in run()
            report(traceback.format_exc())
            connection.sock.close()
        self._resume()

    def _stop_waiting(self, connection: Connection) -> None:
        """Run a connection no more, unless it is deferred."""
        self._waiting.discard(connection)
        if connection.awaited in self._building:
            waiting = self._building[connection.awaited]
            waiting.discard(connection)
            if not waiting:
                del self._building[connection.awaited]
        self._unwatch(connection)

    def _handle_signals(self, now: float) -> bool:
        """Act on signals; return whether responses in flight must be cut off."""
        received = self._signals.recv(16)
        if has_hangup(received) and self._settings.log is not None:
            self._settings.log.reopen()
        stops = count_stops(received)
        if stops > 1 or (stops and self._stop_at is not None):
            return True
        if stops:
            if not received:
                self._unregister(self._signals.fileno())
            self._begin_stop(now)
        return False

    def _begin_stop(self, now: float) -> None:
        """Accept no more connections and requests."""
        self._stop_at = now + self._settings.grace
        notify("STOPPING=1")
        if not self._paused:
            self._unregister(self._listener.fileno())
        self._paused = False
        with suppress(OSError):
            self._listener.close()
        for connection in [each for each in self._connections if each.finish()]:
            self._drop(connection)
        if self._connections and self._settings.grace:
            clients = len(self._connections)
            report(
                f"waiting for {clients} client{'s' * (clients > 1)}, at most "
                f"{self._settings.grace:g} seconds; Ctrl-C again cuts them off"
            )

    def _tick(self, now: float) -> None:
        """Do what is due once a second."""
        for waiting in self._building.values():
            for connection in waiting:
                # The time of a listing is not counted against the client.
                connection.deadline = now + self._settings.timeout
        for connection in self._connections:
            if connection.deadline <= now:
                # Closing may free megabytes, and many connections may be late at the same time.
                self._stop_waiting(connection)
                self._deferred[connection] = True
        self._files.sweep(now)
        if self._settings.log is not None:
            self._settings.log.flush()
        self._resume()

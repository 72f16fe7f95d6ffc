"""Worker processes that serve one address, and the process that supervises them."""

from __future__ import annotations

import os
import socket
import traceback
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from attrs import define, field

from iobatch.httpd.output import STDERR, report
from iobatch.httpd.signals import count_stops, has_hangup, ignore_signals
from iobatch.httpd.systemd import leave_notifying, notify

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from iobatch.httpd.accesslog import AccessLog
    from iobatch.httpd.server import Server

    NewServer = Callable[[socket.socket, socket.socket], Server]

# Seconds before a dead worker is replaced, or a failed start is tried again.
RESPAWN_DELAY = 1.0


class _Worker(NamedTuple):
    pid: int
    listener: socket.socket


@define(eq=False)
class Supervisor:
    """Runs a worker for each listening socket, and replaces workers that die."""

    # One for each worker. While a worker is replaced, clients wait in its backlog.
    _listeners: Sequence[socket.socket]
    # Each byte that it receives, the number of a signal, is passed on to each worker.
    _signals: socket.socket
    # Makes a worker's server. Its arguments are the worker's listening socket, and a socket that
    # receives the bytes of `_signals` and ends when the supervisor's process does.
    _new_server: NewServer
    # The log of the workers that are started later.
    _log: AccessLog | None
    _selector: DefaultSelector = field(init=False, factory=DefaultSelector)
    # By the socket that leads to each; it becomes readable when the worker ends.
    _workers: dict[socket.socket, _Worker] = field(init=False, factory=dict[socket.socket, _Worker])
    # Listening sockets without a worker.
    _vacant: list[socket.socket] = field(init=False)
    # When workers are started for the vacant sockets (time.monotonic).
    _start_at: float = field(init=False, default=0.0)
    _stopping: bool = field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._vacant = list(self._listeners)
        self._selector.register(self._signals, EVENT_READ)

    def close(self) -> None:
        """Close what the supervisor waits with."""
        self._selector.close()
        self._signals.close()

    def run(self) -> None:
        """Run the workers until all have stopped."""
        while self._workers or self._vacant:
            if self._vacant and monotonic() >= self._start_at:
                self._fill_vacancies()
            timeout = self._start_at - monotonic() if self._vacant else None
            for key, _ in self._selector.select(timeout):
                if key.fileobj is self._signals:
                    self._pass_on_signals()
                else:
                    self._replace(key.data)

    def _fill_vacancies(self) -> None:
        try:
            while self._vacant:
                self._start(self._vacant[-1])
                self._vacant.pop()
        except OSError as exc:
            report(f"can't start a worker: {exc.strerror}")
            self._start_at = monotonic() + RESPAWN_DELAY

    def _start(self, listener: socket.socket) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._selector.register(ours, EVENT_READ, ours)
                pid = os.fork()
            except OSError:
                with suppress(KeyError):
                    self._selector.unregister(ours)
                ours.close()
                raise
            if not pid:
                others = [each for each in self._listeners if each is not listener]
                unused = [ours, self._signals, *self._workers, *others]
                _run_worker(self._new_server, listener, theirs, unused)
        self._workers[ours] = _Worker(pid, listener)

    def _pass_on_signals(self) -> None:
        received = self._signals.recv(16)
        if has_hangup(received) and self._log is not None:
            self._log.reopen()
            self._log.close()  # a thread opens it, and a process without threads can fork
        if count_stops(received):
            self._stopping = True
            notify("STOPPING=1")
            self._vacant.clear()
            for listener in self._listeners:
                listener.close()  # new clients are refused at once, instead of waiting for nothing
        for sock in self._workers:
            # The worker may have just ended, or be stopped and have read none of hundreds.
            with suppress(OSError):
                sock.send(received, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def _replace(self, sock: socket.socket) -> None:
        """Replace a worker that has ended, unless all are stopping."""
        self._selector.unregister(sock)
        sock.close()
        worker = self._workers.pop(sock)
        os.waitpid(worker.pid, 0)
        if not self._stopping:
            report("a worker died; starting another one")
            self._vacant.append(worker.listener)
            self._start_at = monotonic() + RESPAWN_DELAY


def _run_worker(
    new_server: NewServer,
    listener: socket.socket,
    signals: socket.socket,
    unused: list[socket.socket],
) -> NoReturn:
    """Serve in a process that was just forked, and exit."""
    status = 1
    try:
        # A terminal sends SIGINT to every process; the supervisor passes it on.
        ignore_signals()
        leave_notifying()
        STDERR.drop()
        for sock in unused:
            sock.close()
        server = new_server(listener, signals)
        server.run()
        server.close()
        status = 0
    except BaseException:  # noqa: BLE001  # none may reach the supervisor's code
        report(traceback.format_exc())
    finally:
        STDERR.finish()
        os._exit(status)

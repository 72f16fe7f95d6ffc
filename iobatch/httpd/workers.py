"""Worker processes that serve one address, and the process that supervises them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    Serve = Callable[[socket.socket, socket.socket], None]

# Seconds before a dead worker is replaced, or a failed start is tried again.
RESPAWN_DELAY = 1.0


def stop_socket() -> socket.socket:
    """Return a socket that receives a byte for each SIGINT and SIGTERM."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    # Python writes the byte for signals that have a handler, so each gets one that does nothing.
    # This also undoes an inherited SIG_IGN.
    signal.set_wakeup_fd(theirs.detach())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _do_nothing)
    return ours


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal."""


class _Worker(NamedTuple):
    pid: int
    listener: socket.socket


@define(eq=False)
class Supervisor:
    """Runs a worker for each listening socket, and replaces workers that die."""

    # One for each worker. While a worker is replaced, clients wait in its backlog.
    _listeners: Sequence[socket.socket]
    # Each byte that it receives is passed on to each worker.
    _stop: socket.socket
    # The work of a worker. Its arguments are its listening socket, and a socket that receives the
    # bytes of `_stop` and ends when the supervisor's process does.
    _serve: Serve
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

    def run(self) -> None:
        """Run the workers until all have stopped."""
        with self._selector as selector:
            selector.register(self._stop, EVENT_READ)
            while self._workers or self._vacant:
                if self._vacant and monotonic() >= self._start_at:
                    self._fill_vacancies()
                timeout = self._start_at - monotonic() if self._vacant else None
                for key, _ in selector.select(timeout):
                    if key.fileobj is self._stop:
                        self._pass_on_stop()
                    else:
                        self._replace(key.data)

    def _fill_vacancies(self) -> None:
        try:
            while self._vacant:
                self._start(self._vacant[-1])
                self._vacant.pop()
        except OSError as exc:
            print(f"iobatch.httpd: can't start a worker: {exc.strerror}", file=sys.stderr)
            self._start_at = monotonic() + RESPAWN_DELAY

    def _start(self, listener: socket.socket) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                raise
            if not pid:
                others = [each for each in self._listeners if each is not listener]
                unused = [ours, self._stop, *self._workers, *others]
                _run_worker(self._serve, listener, theirs, unused)
        self._selector.register(ours, EVENT_READ, ours)
        self._workers[ours] = _Worker(pid, listener)

    def _pass_on_stop(self) -> None:
        self._stopping = True
        self._vacant.clear()
        received = self._stop.recv(16)
        for listener in self._listeners:
            listener.close()  # new clients are refused at once, instead of waiting for nothing
        for sock in self._workers:
            with suppress(OSError):  # the worker may have just ended
                sock.send(received, socket.MSG_NOSIGNAL)

    def _replace(self, sock: socket.socket) -> None:
        """Replace a worker that has ended, unless all are stopping."""
        self._selector.unregister(sock)
        sock.close()
        worker = self._workers.pop(sock)
        os.waitpid(worker.pid, 0)
        if not self._stopping:
            print("iobatch.httpd: a worker died; starting another one", file=sys.stderr)
            self._vacant.append(worker.listener)
            self._start_at = monotonic() + RESPAWN_DELAY


def _run_worker(
    serve: Serve, listener: socket.socket, stop: socket.socket, unused: list[socket.socket]
) -> NoReturn:
    """Serve in a process that was just forked, and exit."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        # A terminal sends SIGINT to every process; the supervisor passes it on.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for sock in unused:
            sock.close()
        serve(listener, stop)
        status = 0
    except BaseException:  # noqa: BLE001  # none may reach the supervisor's code
        traceback.print_exc()
    finally:
        os._exit(status)

"""Several processes that serve the same address, and the one that looks after them."""

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

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Serve = Callable[[socket.socket, socket.socket], None]

# Seconds before a process takes the place of one that died, or could not be started.
RESPAWN_DELAY = 1.0


def signals() -> socket.socket:
    """Return what becomes readable when SIGINT or SIGTERM comes."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    # The handlers do nothing, and are installed so that the signals, even if they were ignored,
    # write a byte to the descriptor.
    signal.set_wakeup_fd(theirs.detach())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    return ours


def supervise(listeners: Sequence[socket.socket], stop: socket.socket, serve: Serve) -> None:
    """Let processes serve until they have stopped, and replace those that die before.

    Args:
        listeners: a listening socket for each of them. Who comes while it is being replaced waits.
        stop: every byte that can be read from it is handed on to each of them.
        serve: what each does, with its listening socket and one that gives it these bytes, and its
            end when this process is gone.

    """
    with DefaultSelector() as selector:
        selector.register(stop, EVENT_READ)
        # By the socket that leads to it.
        workers: dict[socket.socket, Worker] = {}
        # What has no worker, and when it gets one (time.monotonic).
        vacant = list(listeners)
        due = 0.0
        stopping = False

        def start(listener: socket.socket) -> None:
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    pid = os.fork()
                except OSError:
                    ours.close()
                    raise
                if not pid:
                    others = [each for each in listeners if each is not listener]
                    _work(serve, listener, theirs, [ours, stop, *workers, *others])
            selector.register(ours, EVENT_READ)
            workers[ours] = Worker(pid, listener)

        while workers or vacant:
            if vacant and monotonic() >= due:
                try:
                    while vacant:
                        start(vacant[-1])
                        vacant.pop()
                except OSError as exc:
                    print(f"httpd: a worker can't be started: {exc.strerror}", file=sys.stderr)
                    due = monotonic() + RESPAWN_DELAY
            for key, _ in selector.select(due - monotonic() if vacant else None):
                sock = key.fileobj
                if TYPE_CHECKING:
                    assert isinstance(sock, socket.socket)
                if sock is stop:
                    stopping = True
                    vacant.clear()
                    told = stop.recv(16)
                    for each in listeners:
                        each.close()  # so that nobody waits in vain
                    for each in workers:
                        with suppress(OSError):  # it may have just ended
                            each.send(told, socket.MSG_NOSIGNAL)
                    continue
                selector.unregister(sock)
                sock.close()
                worker = workers.pop(sock)
                os.waitpid(worker.pid, 0)
                if not stopping:
                    print("httpd: a worker died; another one is started", file=sys.stderr)
                    vacant.append(worker.listener)
                    due = monotonic() + RESPAWN_DELAY


class Worker(NamedTuple):
    """A process that serves."""

    pid: int
    listener: socket.socket


def _work(
    serve: Serve, listener: socket.socket, stop: socket.socket, others: list[socket.socket]
) -> NoReturn:
    """Be a worker."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        # A terminal sends SIGINT to all of them; the first process hands it on.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for sock in others:
            sock.close()
        serve(listener, stop)
        status = 0
    except BaseException:  # noqa: BLE001  # whatever it is, this process must not go on
        traceback.print_exc()
    finally:
        os._exit(status)

"""Connections to a process that drops everything, on a processor of its own.

It stands for a peer on another machine, which costs the sender nothing. So it copies nothing, and
does not sleep: a sender would have to wake it, before some sends and not before others. Only where
it has to share the sender's processor it sleeps.

Segments are those of an Ethernet. The congestion control is Reno, which every Linux has; Cubic, the
usual one, takes about the same time here. BBR would set a timer for most segments. That can take
four times as long as all else, at some paces and not at others, and says nothing about the sender.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.process import BaseProcess

SENDER = 0
READER = 1
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def pin(processor: int) -> None:
    """Stay on a processor."""
    with suppress(OSError):  # where there is no such one, all share what there is
        os.sched_setaffinity(0, {processor})


def end_with_parent() -> None:
    """Have this process killed when the one that started it ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _be_beside(parent: int, target: Callable[..., None], *args: object) -> None:
    end_with_parent()
    if os.getppid() == parent:  # it may have ended meanwhile
        target(*args)


@contextmanager
def beside(target: Callable[..., None], *args: object) -> Iterator[BaseProcess]:
    """Run a function in a process of its own, and kill that if it is still there at the end."""
    process = get_context("fork").Process(target=_be_beside, args=(os.getpid(), target, *args))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def drop(sock: socket.socket, nbytes: int = 1 << 63) -> None:
    """Drop so many bytes, or all up to the end."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    timeout = None if os.sched_getaffinity(0) == {SENDER} else 0
    buffer = bytearray(1 << 20)  # only its length counts
    while nbytes:
        if poller.poll(timeout):
            size = sock.recv_into(buffer, min(nbytes, len(buffer)), socket.MSG_TRUNC)
            if not size:
                break
            nbytes -= size


def _be_reader(
    read: Callable[[socket.socket], None],
    sock: socket.socket,
    sender: socket.socket,
    processor: int,
) -> None:
    sender.close()
    pin(processor)
    read(sock)


def tuned(congestion: bytes = b"reno") -> socket.socket:
    """Return a TCP socket to be connected, without Nagle's delay."""
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
    # Before it connects: what has once been paced by BBR keeps being paced.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion)
    return sock


@contextmanager
def dropped(
    processor: int = READER,
    read: Callable[[socket.socket], None] = drop,
    congestion: bytes = b"reno",
) -> Iterator[socket.socket]:
    """Give a blocking TCP connection on loopback."""
    sender = tuned(congestion)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender.connect(listener.getsockname())
        sock = listener.accept()[0]
    with beside(_be_reader, read, sock, sender, processor) as child:
        sock.close()
        with sender:
            yield sender
        child.join()

"""TCP connections on loopback to a reader: a process on another processor that discards all bytes.

The reader stands for a peer on another machine, which costs the sender no CPU time. So it copies
nothing (MSG_TRUNC). It also polls without sleeping: the sender would pay for waking a sleeping
reader, at some sends and not at others. The reader sleeps only if it shares the sender's processor.

Segments have the size of Ethernet's. The congestion control is Reno, which every Linux kernel has;
Cubic, the default, takes about the same time here. BBR sets a timer for most segments. Its timers
can take four times as long as all other work, at some pacing rates and not at others, and their
cost does not depend on the sender.
"""

from __future__ import annotations

import ctypes
import os
import resource
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


def pin_to_processor(processor: int) -> None:
    """Bind this process to a processor."""
    with suppress(OSError):  # no such processor: the processes share those that exist
        os.sched_setaffinity(0, {processor})


def raise_descriptor_limit() -> int:
    """Allow this process, and those that it starts, the most descriptors; return their number."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, in whatever way the parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _run_child(parent: int, target: Callable[..., None], *args: object) -> None:
    end_with_parent()
    if os.getppid() == parent:  # the parent may have ended before prctl()
        target(*args)


@contextmanager
def child_process(target: Callable[..., None], *args: object) -> Iterator[BaseProcess]:
    """Run a function in a child process, and kill the process on exit."""
    process = get_context("fork").Process(target=_run_child, args=(os.getpid(), target, *args))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def discard(sock: socket.socket, nbytes: int = 1 << 63) -> None:
    """Receive and discard nbytes bytes, or all bytes up to the end of the stream."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    timeout = None if os.sched_getaffinity(0) == {SENDER} else 0
    buffer = bytearray(1 << 20)  # only its length matters: MSG_TRUNC writes nothing into it
    while nbytes:
        if poller.poll(timeout):
            size = sock.recv_into(buffer, min(nbytes, len(buffer)), socket.MSG_TRUNC)
            if not size:
                break
            nbytes -= size


def _run_reader(
    read: Callable[[socket.socket], None],
    sock: socket.socket,
    sender: socket.socket,
    processor: int,
) -> None:
    sender.close()
    pin_to_processor(processor)
    read(sock)


def tuned_socket(congestion: bytes = b"reno") -> socket.socket:
    """Return an unconnected TCP socket with TCP_NODELAY."""
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
    # Set before connect(): a connection that BBR has paced once stays paced.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion)
    return sock


@contextmanager
def reader_connection(
    processor: int = READER,
    read: Callable[[socket.socket], None] = discard,
    congestion: bytes = b"reno",
) -> Iterator[socket.socket]:
    """Yield a blocking TCP connection to a reader on the given processor.

    Args:
        processor: the reader's processor.
        read: called in the reader's process with its end of the connection.
        congestion: the congestion control.

    """
    sender = tuned_socket(congestion)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender.connect(listener.getsockname())
        sock = listener.accept()[0]
    with child_process(_run_reader, read, sock, sender, processor) as child:
        sock.close()
        with sender:
            yield sender
        child.join()

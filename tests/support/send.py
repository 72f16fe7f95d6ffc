"""Sending in tests: repeated calls, responses, TCP_CORK, a sendfile that fails."""

from __future__ import annotations

import fcntl
import socket
import struct
from time import monotonic
from typing import TYPE_CHECKING, Any

from iobatch import COPY_LIMIT, IOBatch, iob_send
from tests.support.batches import check_invariants, data

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.batches import MakeFile

# Plain ints, as flags are compared with what a system call was given.
NOSIGNAL = int(socket.MSG_NOSIGNAL)
MORE = int(socket.MSG_MORE)
LARGE = 5 * COPY_LIMIT  # the length of a range that goes by sendfile
SIOCOUTQNSD = 0x894B  # linux/sockios.h
CORK_TIME = 0.2  # seconds after which TCP sends what it has held back (TCP_CORK in tcp(7))


def unsent(sock: socket.socket) -> int:
    """Return how many bytes TCP has accepted and not yet sent."""
    return int(struct.unpack("i", fcntl.ioctl(sock, SIOCOUTQNSD, bytes(4)))[0])


def transmitted(sock: socket.socket) -> int:
    """Return how many bytes TCP has sent. They may not have arrived yet."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 216)
    # struct tcp_info (linux/tcp.h): tcpi_bytes_sent and tcpi_bytes_retrans.
    sent, repeated = struct.unpack_from("=QQ", info, 200)
    return int(sent - repeated)


def is_held_back(sock: socket.socket, nbytes: int, since: float) -> bool:
    """Return whether TCP holds `nbytes` bytes back, or did so until it had to send them.

    Args:
        sock: the socket.
        nbytes: the number of bytes that it has accepted and not sent.
        since: when the call that gave them to it began (time.monotonic).

    """
    count = unsent(sock)
    # A timer counts ticks, and may be a tick early.
    return count == nbytes or (not count and monotonic() - since > 0.9 * CORK_TIME)


def get_cork(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)


def set_cork(sock: socket.socket, value: int) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, value)


def send_repeatedly(sock: Any, batch: IOBatch, **options: Any) -> list[int]:
    """Call iob_send until it returns 0 or a negative code; return all that it returned."""
    results = []
    for _ in range(100_000):
        results.append(iob_send(sock, batch, **options))
        check_invariants(batch)
        if results[-1] <= 0:
            return results
    raise AssertionError("iob_send never returned 0 or a negative code")


def failing_sendfile(number: int) -> Callable[..., int]:
    """Return a sendfile that raises an OSError with this errno."""

    def sendfile(*_args: int) -> int:
        raise OSError(number, "scripted")

    return sendfile


def make_response(make_file: MakeFile, size: int = LARGE) -> tuple[IOBatch, bytes]:
    """Return a batch of a header, a file range of size bytes and a trailer, and its bytes."""
    content = data(size)
    batch = IOBatch()
    batch.addbuf(b"h" * 200)
    batch.addfile(make_file(content))
    batch.addbuf(b"t" * 300)
    return batch, b"h" * 200 + content + b"t" * 300

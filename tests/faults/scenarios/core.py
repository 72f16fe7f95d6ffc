"""iob_send: batches of buffers, ranges and owned files, to sockets, a pipe and a file."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import contextmanager
from functools import partial
from io import FileIO
from typing import TYPE_CHECKING

from iobatch import iob_send
from tests.faults.delivery import LARGE, SMALL, Delivery
from tests.faults.harness import scenario
from tests.support.sockets import PATIENCE, stream_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.harness import Run


def add_all_kinds(delivery: Delivery) -> Delivery:
    """Add entries of all kinds, and more bytes than small socket buffers hold."""
    delivery.all_kinds()
    delivery.buffer(20_000)
    delivery.buffer(20_001)
    delivery.path_file(SMALL + 2)
    return delivery


@contextmanager
def nonblocking(kind: str, buffers: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield two connected, non-blocking sockets; the first has a send buffer of this size."""
    with stream_pair(kind) as (sock, peer):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        sock.setblocking(False)
        peer.setblocking(False)
        yield sock, peer


@scenario()
def send_to_tcp(run: Run) -> None:
    """Send to a TCP socket, whose cork is removed whatever fails; its buffer holds the batch."""
    delivery = add_all_kinds(Delivery(run))
    with nonblocking("tcp4", 1 << 20) as (sock, peer):
        delivery.drive(partial(iob_send, sock, delivery.batch, limit=80_000), sock, peer)
        assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)
        delivery.finish(sock, peer)


@scenario()
def send_to_unix(run: Run) -> None:
    """Send to a socket whose buffer is smaller than a range, so that there are partial writes."""
    delivery = add_all_kinds(Delivery(run))
    with nonblocking("unix", 8000) as (sock, peer):
        delivery.send(partial(iob_send, sock, delivery.batch), sock, peer)


@scenario()
def send_small(run: Run) -> None:
    """Send small entries without hooks, which are joined for one send."""
    delivery = Delivery(run)
    for size in range(100, 120):
        delivery.buffer(size, hook=False)
    with nonblocking("unix", 4096) as (sock, peer):
        delivery.send(partial(iob_send, sock, delivery.batch), sock, peer)


@scenario()
def send_bytes_and_small_files(run: Run) -> None:
    """Send bytes and small ranges; what was read and not sent is not read again."""
    delivery = Delivery(run)
    for size in range(4):
        delivery.buffer(100 + size, hook=False)
        delivery.file(6000 + size, hook=False)
    with nonblocking("unix", 6000) as (sock, peer):
        delivery.send(partial(iob_send, sock, delivery.batch, limit=15_000), sock, peer)


@scenario()
def send_large_files(run: Run) -> None:
    """Send ranges alone, by several calls of sendfile each."""
    delivery = Delivery(run)
    delivery.file(2 * LARGE, hook=False)
    delivery.file(LARGE, owned=True)
    with nonblocking("unix", 24_000) as (sock, peer):
        delivery.send(partial(iob_send, sock, delivery.batch, limit=70_000), sock, peer)


@scenario()
def send_many_views(run: Run) -> None:
    """Send views, of which the compiled form holds the exports during the call."""
    delivery = Delivery(run)
    for size in range(40):
        delivery.buffer(500 + size, bytearray)
    with nonblocking("unix", 6000) as (sock, peer):
        delivery.send(partial(iob_send, sock, delivery.batch), sock, peer)


@scenario()
def send_with_flags(run: Run) -> None:
    """Send with flags, so that all ranges are read."""
    delivery = add_all_kinds(Delivery(run, exact=False))
    with nonblocking("unix", 24_000) as (sock, peer):
        step = partial(iob_send, sock, delivery.batch, flags=socket.MSG_DONTWAIT)
        delivery.send(step, sock, peer)


@scenario()
def send_with_timeout(run: Run) -> None:
    """Send to a socket with a timeout, which is polled before each send."""
    delivery = add_all_kinds(Delivery(run, exact=False))
    with nonblocking("tcp4", 1 << 20) as (sock, peer):
        sock.settimeout(PATIENCE)
        delivery.send(partial(iob_send, sock, delivery.batch), sock, peer)


@scenario()
def send_to_pipe(run: Run) -> None:
    """Send to a descriptor by write, writev and sendfile."""
    delivery = add_all_kinds(Delivery(run, exact=False))
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 1 << 14)
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    with FileIO(write_end, "w") as pipe, FileIO(read_end) as peer:
        delivery.send(partial(iob_send, write_end, delivery.batch), pipe, peer)


@scenario()
def send_to_file(run: Run) -> None:
    """Send to a file, which takes everything at once."""
    delivery = add_all_kinds(Delivery(run, exact=False))
    path = run.folder / "target"
    with FileIO(path, "w") as file, FileIO(path) as peer:
        delivery.send(partial(iob_send, file, delivery.batch), file, peer)


@scenario()
def send_after_prefetch(run: Run) -> None:
    """Send after prefetch(), whose failure does not matter."""
    delivery = add_all_kinds(Delivery(run))
    with nonblocking("unix", 1 << 20) as (sock, peer):

        def step() -> int:
            delivery.batch.prefetch(LARGE)
            return iob_send(sock, delivery.batch)

        delivery.send(step, sock, peer)

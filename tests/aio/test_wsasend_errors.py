"""WSASend's errors that the kernel reports: the table of codes in WriteOperation(3)."""

from __future__ import annotations

import errno
import mmap
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch
from iobatch.aio import BatchWriter, WriteStatus
from tests.support.batches import batch_of
from tests.support.fakes import again
from tests.support.loops import (
    both_loops,
    scripted_writer,
    writer_pair,
)
from tests.support.sockets import stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable


def udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


async def failure(sock: socket.socket, batch: IOBatch | None = None, **options: Any) -> int | None:
    """Return the errno with which a write on sock ends."""
    writer = BatchWriter(sock)
    operation = writer.write(batch or batch_of(b"abc"), **options)
    with pytest.raises(OSError) as raised:  # the caller checks the errno
        await operation
    assert operation.status is WriteStatus.ERROR
    assert repr(operation.error) == repr(raised.value)
    operation.batch.reset()
    return raised.value.errno


@both_loops
async def test_wsaeconnreset_is_econnreset_after_a_reset_by_the_peer() -> None:
    with stream_pair("tcp4") as (sock, peer):
        sock.setblocking(False)
        sock.send(b"never read")
        peer.close()
        assert await failure(sock) == errno.ECONNRESET


@both_loops
async def test_wsaeconnreset_is_econnrefused_on_a_datagram_socket() -> None:
    """No socket is bound to the destination port."""
    with udp() as sock, udp() as closed:
        sock.connect(closed.getsockname())
        closed.close()
        sock.send(b"x")
        assert await failure(sock) == errno.ECONNREFUSED


@both_loops
async def test_wsaefault_is_efault(make_file: Callable[[bytes], int]) -> None:
    """The buffer is a mapped file that was truncated."""
    fd = make_file(bytes(mmap.PAGESIZE))
    with stream_pair() as (sock, _), mmap.mmap(fd, mmap.PAGESIZE) as mapped:
        sock.setblocking(False)
        os.truncate(fd, 0)
        batch = IOBatch()
        batch.addbuf(mapped)
        assert await failure(sock, batch) == errno.EFAULT


@both_loops
async def test_wsaeinval_is_edestaddrreq_on_an_unconnected_datagram_socket() -> None:
    with udp() as sock:
        assert await failure(sock) == errno.EDESTADDRREQ


@both_loops
async def test_wsaenotconn_is_epipe_for_tcp_and_enotconn_for_local_sockets() -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as local:
        tcp.setblocking(False)
        local.setblocking(False)
        assert await failure(tcp) == errno.EPIPE
        assert await failure(local) == errno.ENOTCONN


@both_loops
async def test_wsaenotsock_is_ebadf_on_a_closed_socket() -> None:
    with writer_pair() as (writer, _):
        writer.sock.close()
        assert await failure(writer.sock) == errno.EBADF


@both_loops
async def test_wsaenotsock_is_enotsock_if_the_descriptor_is_another_file() -> None:
    with socket.socket() as sock, open(os.devnull, "wb") as null:  # noqa: ASYNC230, PTH123  # a device
        sock.setblocking(False)
        os.dup2(null.fileno(), sock.fileno())
        assert await failure(sock) == errno.ENOTSOCK


@both_loops
async def test_wsaeopnotsupp_is_eopnotsupp_for_msg_oob_on_a_datagram_socket() -> None:
    with udp() as sock, udp() as other:
        sock.connect(other.getsockname())
        assert await failure(sock, flags=socket.MSG_OOB) == errno.EOPNOTSUPP


@both_loops
async def test_wsaeshutdown_is_epipe() -> None:
    with writer_pair() as (writer, _):
        writer.sock.shutdown(socket.SHUT_WR)
        assert await failure(writer.sock) == errno.EPIPE


@both_loops
@pytest.mark.parametrize(
    "number",
    [
        errno.EACCES,
        errno.ECONNABORTED,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENOBUFS,
        errno.EHOSTUNREACH,
        errno.ETIMEDOUT,
    ],
    ids=errno.errorcode.get,
)
async def test_other_errors_of_the_kernel_end_the_operation_unchanged(number: int) -> None:
    """ETIMEDOUT is one of them, and does not become a timeout of the operation."""
    with scripted_writer(again(), OSError(number, os.strerror(number))) as (writer, _):
        assert await failure(writer.sock) == number

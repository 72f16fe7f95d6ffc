"""Coming from Winsock: one test for each row of the table of error codes."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch
from iobatch.aio import BatchWriter, WriteStatus
from tests.support.aio import statuses
from tests.support.batches import batch_of
from tests.support.fakes import again
from tests.support.loops import both_loops, full_writer, scripted_writer, writer_pair
from tests.support.manpages import covered, subjects
from tests.support.sockets import refusing_udp, reset, stream_pair, wait_for_error

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = ("iobatch-winsock.7", "Error codes")


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


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


async def scripted_failure(name: str) -> None:
    """Assert that an error of the kernel ends an operation that waits, unchanged."""
    number = getattr(errno, name)
    with scripted_writer(again(), OSError(number, os.strerror(number))) as (writer, _):
        assert await failure(writer.sock) == number


@both_loops
async def test_wsaeacces_is_eacces() -> None:
    """SO_BROADCAST is not set."""
    with udp() as sock:
        assert await failure(sock, address=("255.255.255.255", 9)) == errno.EACCES


@both_loops
async def test_wsaeaddrnotavail_is_eaddrnotavail() -> None:
    await scripted_failure("EADDRNOTAVAIL")


@both_loops
async def test_wsaeafnosupport_is_a_type_error_or_eafnosupport() -> None:
    with udp() as sock:
        operation = BatchWriter(sock).write(batch_of(b"abc"), address=("::1", 9, 0, 0))
        assert (operation.status, type(operation.error)) == (WriteStatus.ERROR, TypeError)
    await scripted_failure("EAFNOSUPPORT")


@both_loops
async def test_wsaeconnaborted_is_econnaborted_or_etimedout_or_epipe() -> None:
    for name in ("ECONNABORTED", "ETIMEDOUT", "EPIPE"):
        await scripted_failure(name)


@both_loops
@pytest.mark.parametrize("kind", ["stream", "ended stream", "datagram"])
async def test_wsaeconnreset_is_econnreset_once_then_epipe_or_for_a_datagram_econnrefused(
    kind: str,
) -> None:
    """The peer resets the stream. No socket takes datagrams at the destination port."""
    if kind == "stream":
        with stream_pair("tcp4") as (sock, peer):
            sock.setblocking(False)
            reset(peer)
            wait_for_error(sock)
            assert await failure(sock) == errno.ECONNRESET
            assert await failure(sock) == errno.EPIPE
        with scripted_writer(2, ConnectionResetError(errno.ECONNRESET, "scripted")) as (writer, _):
            partial, later = (writer.write(batch_of(b"abc")) for _ in range(2))
            await asyncio.wait([partial])
            assert statuses([partial, later]) == [WriteStatus.ERROR, WriteStatus.ABORTED]
            partial.batch.reset()
            assert await writer.write(later.batch) == 3
    elif kind == "ended stream":
        with stream_pair("tcp4") as (sock, peer):
            sock.setblocking(False)
            peer.shutdown(socket.SHUT_WR)
            reset(peer)
            wait_for_error(sock)
            assert await failure(sock) == errno.EPIPE
    else:
        with udp() as sock, refusing_udp() as refusing:
            sock.connect(refusing.getsockname())
            sock.send(b"x")
            wait_for_error(sock)
            assert await failure(sock) == errno.ECONNREFUSED


@both_loops
async def test_wsaedestaddrreq_is_edestaddrreq_on_an_unconnected_datagram_socket() -> None:
    with udp() as sock:
        assert await failure(sock) == errno.EDESTADDRREQ


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
async def test_wsaehostunreach_is_ehostunreach() -> None:
    await scripted_failure("EHOSTUNREACH")


@both_loops
async def test_wsaeinprogress_is_a_runtime_error_of_a_call_in_a_hook() -> None:
    raised: list[type] = []

    def hook() -> None:
        with pytest.raises(RuntimeError) as caught:
            writer.close()
        raised.append(caught.type)

    with writer_pair() as (writer, _):
        batch = IOBatch()
        batch.addbuf(b"abc", on_release=hook)
        assert await writer.write(batch) == 3
    assert raised == [RuntimeError]


@both_loops
async def test_wsaeinval_is_a_value_error_for_a_blocking_socket() -> None:
    with socket.socket() as sock, pytest.raises(ValueError, match="non-blocking"):
        BatchWriter(sock)


@both_loops
async def test_wsaemsgsize_is_emsgsize_and_nothing_was_sent() -> None:
    with udp() as sock, udp() as other:
        sock.connect(other.getsockname())
        operation = BatchWriter(sock).write(batch_of(bytes(70_000)))
        assert (operation.bytes_transferred, operation.batch.bytesleft) == (0, 70_000)
        with pytest.raises(OSError, match="too long") as raised:
            await operation
        assert raised.value.errno == errno.EMSGSIZE


@both_loops
async def test_wsaenetdown_is_enetdown() -> None:
    await scripted_failure("ENETDOWN")


@both_loops
async def test_wsaenetreset_is_enetreset_or_etimedout_or_ehostunreach() -> None:
    for name in ("ENETRESET", "ETIMEDOUT", "EHOSTUNREACH"):
        await scripted_failure(name)


@both_loops
async def test_wsaenetunreach_is_enetunreach() -> None:
    await scripted_failure("ENETUNREACH")


@both_loops
async def test_wsaenobufs_is_enobufs() -> None:
    await scripted_failure("ENOBUFS")


@both_loops
async def test_wsaenotconn_is_epipe_for_tcp_and_enotconn_for_local_sockets() -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as local:
        tcp.setblocking(False)
        local.setblocking(False)
        assert await failure(tcp) == errno.EPIPE
        assert await failure(local) == errno.ENOTCONN


@both_loops
async def test_wsaenotsock_is_ebadf_or_enotsock() -> None:
    with writer_pair() as (writer, _):
        writer.sock.close()
        assert await failure(writer.sock) == errno.EBADF
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
async def test_wsaetimedout_is_an_error_and_a_timeout_of_the_writer_has_no_errno() -> None:
    await scripted_failure("ETIMEDOUT")
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"abc"), timeout=0)
        assert operation.status is WriteStatus.TIMEOUT
        with pytest.raises(TimeoutError) as raised:
            await operation
        assert raised.value.errno is None


@both_loops
async def test_wsaewouldblock_is_the_status_pending() -> None:
    with scripted_writer(again()) as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        assert (operation.status, operation.error) == (WriteStatus.PENDING, None)
        assert await operation == 3


def test_wsanotinitialised_is_a_runtime_error_without_a_loop() -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(RuntimeError, match="no running event loop"):
            BatchWriter(sock)


@both_loops
async def test_wsa_io_pending_is_the_status_pending() -> None:
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        assert (operation.status, operation.error) == (WriteStatus.PENDING, None)
        assert await peer.read(3) == b"abc"
        assert await operation == 3


@both_loops
async def test_wsa_operation_aborted_is_ecanceled_or_cancelled_error() -> None:
    with full_writer() as (writer, _):
        cancelled, closed = (writer.write(batch_of(b"abc")) for _ in range(2))
        cancelled.cancel()
        writer.close()
        assert statuses([cancelled, closed]) == [WriteStatus.CANCELLED, WriteStatus.ABORTED]
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(OSError, match="canceled") as raised:
            await closed
        assert raised.value.errno == errno.ECANCELED
    with scripted_writer(2, OSError(errno.ENOBUFS, "scripted")) as (writer, _):
        operations = [writer.write(batch_of(b"abc")) for _ in range(2)]
        await asyncio.wait(operations)
        assert statuses(operations) == [WriteStatus.ERROR, WriteStatus.ABORTED]

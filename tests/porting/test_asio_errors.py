"""iobatch-asio(7), Error codes: one test for each row of the table, in the rows' order."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, IOBatch, iob_send
from iobatch.aio import BatchWriter, WriteStatus
from tests.support.batches import batch_of
from tests.support.fakes import again
from tests.support.loops import both_loops, full_writer, scripted_writer, writer_pair
from tests.support.manpages import covered, subjects
from tests.support.sockets import clog, refusing_udp, reset, stream_pair, wait_for_error

if TYPE_CHECKING:
    from iobatch.aio import WriteOperation
    from tests.support.batches import MakeFile

PAGE = "iobatch-asio.7", "Error codes"


def udp() -> socket.socket:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


async def failure(sock: socket.socket, batch: IOBatch | None = None, **options: Any) -> OSError:
    """Return the error that ends a write on sock."""
    return await failure_of(BatchWriter(sock).write(batch or batch_of(b"abc"), **options))


async def failure_of(op: WriteOperation) -> OSError:
    """Return the error that ends an operation."""
    with pytest.raises(OSError) as raised:  # the caller checks it
        await op
    assert op.status is WriteStatus.ERROR
    op.batch.reset()
    return raised.value


async def scripted_failure(number: int) -> OSError:
    """Return the error that ends a write whose system call fails."""
    with scripted_writer(again(), OSError(number, os.strerror(number))) as (writer, _):
        return await failure(writer.sock)


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


@both_loops
async def test_ec_value_ec_message_are_errno_and_strerror() -> None:
    message = os.strerror(errno.ENOBUFS)
    with scripted_writer(OSError(errno.ENOBUFS, message)) as (writer, _):
        op = writer.write(batch_of(b"abc"))
        assert isinstance(op.error, OSError)
        assert (op.error.errno, op.error.strerror) == (errno.ENOBUFS, message)
    with writer_pair() as (writer, _):
        assert writer.write(batch_of(b"abc")).error is None


@both_loops
async def test_n_beside_an_error_is_exact() -> None:
    with scripted_writer(2, BrokenPipeError(errno.EPIPE, "broken")) as (writer, _):
        op = writer.write(batch_of(b"abcdef"))
        await asyncio.wait([op])
        assert (op.bytes_transferred, op.batch.bytesleft) == (2, 4)


@both_loops
async def test_write_after_an_error_is_aborted_or_fails_again() -> None:
    with scripted_writer(2, ConnectionResetError(errno.ECONNRESET, "reset")) as (writer, _):
        first = writer.write(batch_of(b"abcdef"))
        await asyncio.wait([first])
        later = [writer.write(batch_of(b"ghi")) for _ in range(2)]
        assert [op.status for op in (first, *later)] == [
            WriteStatus.ERROR,
            WriteStatus.ABORTED,
            WriteStatus.ABORTED,
        ]
    with writer_pair() as (writer, peer):
        peer.close()
        for _ in range(2):
            assert type(await failure_of(writer.write(batch_of(b"abc")))) is BrokenPipeError


@both_loops
async def test_operation_aborted_by_cancel_is_cancelled_error() -> None:
    with full_writer() as (writer, _):
        op = writer.write(batch_of(b"abc"))
        op.cancel()
        with pytest.raises(asyncio.CancelledError):
            await op
        assert (op.status, op.error) == (WriteStatus.CANCELLED, None)


@both_loops
async def test_operation_aborted_by_close_is_ecanceled() -> None:
    with full_writer() as (writer, _):
        op = writer.write(batch_of(b"def"))
        writer.close()
        with pytest.raises(OSError) as raised:  # its errno is checked
            await op
        assert (raised.value.errno, op.status) == (errno.ECANCELED, WriteStatus.ABORTED)


@both_loops
async def test_would_block_try_again_is_iob_again_or_pending() -> None:
    with stream_pair(buffers=4096) as (ours, _):
        clog(ours)
        assert iob_send(ours, batch_of(b"abc")) == IOB_AGAIN
        writer = BatchWriter(ours)
        assert writer.write(batch_of(b"abc")).status is WriteStatus.PENDING
        writer.close()


@both_loops
async def test_broken_pipe_is_broken_pipe_error() -> None:
    with stream_pair() as (ours, theirs):
        ours.setblocking(False)
        theirs.close()
        error = await failure(ours)
        assert (type(error), error.errno) == (BrokenPipeError, errno.EPIPE)


@both_loops
async def test_shut_down_is_broken_pipe_error() -> None:
    with stream_pair("tcp4") as (ours, _):
        ours.setblocking(False)
        ours.shutdown(socket.SHUT_WR)
        error = await failure(ours)
        assert (type(error), error.errno) == (BrokenPipeError, errno.EPIPE)


@both_loops
async def test_connection_reset_is_connection_reset_error() -> None:
    with stream_pair("tcp4") as (ours, theirs):
        ours.setblocking(False)
        reset(theirs)
        wait_for_error(ours)
        error = await failure(ours)
        assert (type(error), error.errno) == (ConnectionResetError, errno.ECONNRESET)


@both_loops
async def test_connection_aborted_is_connection_aborted_error() -> None:
    assert type(await scripted_failure(errno.ECONNABORTED)) is ConnectionAbortedError


@both_loops
async def test_connection_refused_is_connection_refused_error() -> None:
    with udp() as ours, refusing_udp() as refusing:
        ours.connect(refusing.getsockname())
        ours.send(b"x")
        wait_for_error(ours)
        error = await failure(ours)
        assert (type(error), error.errno) == (ConnectionRefusedError, errno.ECONNREFUSED)


@both_loops
async def test_not_connected_is_epipe_or_enotconn() -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as local:
        tcp.setblocking(False)
        local.setblocking(False)
        assert type(await failure(tcp)) is BrokenPipeError
        assert (await failure(local)).errno == errno.ENOTCONN


@both_loops
async def test_bad_descriptor_is_ebadf() -> None:
    with writer_pair() as (writer, _):
        writer.sock.close()
        assert (await failure(writer.sock)).errno == errno.EBADF


@both_loops
async def test_not_socket_is_enotsock(make_file: MakeFile) -> None:
    fd = make_file(b"")
    with socket.socket() as ours:
        ours.setblocking(False)
        os.dup2(fd, ours.fileno())
        assert (await failure(ours)).errno == errno.ENOTSOCK


@both_loops
async def test_message_size_is_emsgsize_and_sends_nothing() -> None:
    with udp() as ours, udp() as theirs:
        ours.connect(theirs.getsockname())
        assert (await failure(ours, batch_of(bytes(70_000)))).errno == errno.EMSGSIZE
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


@both_loops
async def test_no_buffer_space_is_enobufs() -> None:
    assert (await scripted_failure(errno.ENOBUFS)).errno == errno.ENOBUFS


@both_loops
async def test_no_memory_is_enomem_of_the_system() -> None:
    assert (await scripted_failure(errno.ENOMEM)).errno == errno.ENOMEM


@both_loops
async def test_network_down_is_enetdown() -> None:
    assert (await scripted_failure(errno.ENETDOWN)).errno == errno.ENETDOWN


@both_loops
async def test_network_unreachable_is_enetunreach() -> None:
    assert (await scripted_failure(errno.ENETUNREACH)).errno == errno.ENETUNREACH


@both_loops
async def test_host_unreachable_is_ehostunreach() -> None:
    assert (await scripted_failure(errno.EHOSTUNREACH)).errno == errno.EHOSTUNREACH


@both_loops
async def test_timed_out_is_an_error_with_errno_unlike_a_timeout() -> None:
    error = await scripted_failure(errno.ETIMEDOUT)
    assert (type(error), error.errno) == (TimeoutError, errno.ETIMEDOUT)
    with full_writer() as (writer, _):
        op = writer.write(batch_of(b"abc"), timeout=0)
        assert isinstance(op.error, TimeoutError)
        assert (op.error.errno, op.status) == (None, WriteStatus.TIMEOUT)


@both_loops
async def test_access_denied_is_permission_error() -> None:
    """A broadcast needs SO_BROADCAST."""
    with udp() as ours:
        error = await failure(ours, address=("255.255.255.255", 9))
        assert (type(error), error.errno) == (PermissionError, errno.EACCES)


@both_loops
async def test_no_permission_is_permission_error() -> None:
    error = await scripted_failure(errno.EPERM)
    assert (type(error), error.errno) == (PermissionError, errno.EPERM)


@both_loops
async def test_fault_is_efault_of_a_truncated_mapping(make_file: MakeFile) -> None:
    fd = make_file(bytes(mmap.PAGESIZE))
    with stream_pair() as (ours, _), mmap.mmap(fd, mmap.PAGESIZE) as mapped:
        ours.setblocking(False)
        os.truncate(fd, 0)
        batch = IOBatch()
        batch.addbuf(mapped)
        assert (await failure(ours, batch)).errno == errno.EFAULT


@both_loops
async def test_operation_not_supported_is_eopnotsupp() -> None:
    with udp() as ours, udp() as theirs:
        ours.connect(theirs.getsockname())
        assert (await failure(ours, flags=socket.MSG_OOB)).errno == errno.EOPNOTSUPP


@both_loops
async def test_invalid_argument_is_raised_by_the_call() -> None:
    with writer_pair() as (writer, _):
        batch = batch_of(b"abc")
        with pytest.raises(ValueError, match="negative"):
            writer.write(batch, timeout=-1)
        with pytest.raises(TypeError, match="IOBatch"):
            writer.write(b"abc")  # type: ignore[arg-type]
        assert batch.bytesleft == 3

"""iobatch-lispworks(7), Abort and close: one test for each row of the table, in the rows' order."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from iobatch.aio import BatchWriter, CancellationType, WriteStatus
from tests.support.aio import statuses
from tests.support.batches import batch_of
from tests.support.fakes import again
from tests.support.loops import (
    both_loops,
    end_reading,
    full_writer,
    read,
    scripted_writer,
    turns,
    writer_pair,
)
from tests.support.manpages import covered, subjects

PAGE = "iobatch-lispworks.7", "Abort and close"
CANCELLED, ABORTED = WriteStatus.CANCELLED, WriteStatus.ABORTED


def ignore(*_: object) -> None:
    """Do nothing: a callback."""


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


@both_loops
async def test_async_io_state_abort_output_is_cancel() -> None:
    with full_writer() as (writer, peer):
        ops = [writer.write_buffer(content, ignore) for content in (b"abc", b"def")]
        assert ops[0].cancel()
        assert await peer.read(3) == b"def"
    with full_writer() as (writer, _):
        ops = [writer.write_buffer(content, ignore) for content in (b"abc", b"def")]
        asyncio.get_running_loop().call_soon(writer.cancel)
        await turns(1)
        assert statuses(ops) == [CANCELLED] * 2


@both_loops
async def test_write_after_an_abort_is_allowed_unless_a_write_was_sent_in_part() -> None:
    with full_writer() as (writer, peer):
        writer.write_buffer(
            b"abc", ignore, error_callback=lambda *_: writer.write_buffer(b"def", ignore)
        )
        writer.cancel()
        assert await peer.read(3) == b"def"
    with scripted_writer(2, again()) as (writer, sock):
        op = writer.write_buffer(b"abc", ignore)
        writer.cancel()
        assert writer.write_buffer(b"def", ignore).status is ABORTED
        op.batch.reset()
        assert await writer.write_buffer(b"def", ignore) == 3
        assert sock.taken == b"abdef"


@both_loops
async def test_async_io_state_abort_io_is_cancel_of_the_writes_and_of_the_reading_task() -> None:
    with full_writer() as (writer, _):
        op = writer.write_buffer(b"abc", ignore)
        task = asyncio.create_task(read(writer.sock, 1))
        await turns()
        assert (writer.cancel(), task.cancel()) == (True, True)
        await asyncio.wait([task])
        assert (op.status, task.cancelled()) == (CANCELLED, True)


@both_loops
async def test_abort_callback_is_the_error_callback() -> None:
    calls: list[tuple[object, ...]] = []

    def aborted(writer: BatchWriter, data: object, nbytes: int) -> None:
        calls.append((data, nbytes, writer.status))

    with full_writer() as (writer, _):
        writer.write_buffer(b"abc", ignore, error_callback=aborted)
        writer.write_buffer(b"def", aborted)
        writer.cancel()
        assert not calls
        await turns()
        assert calls == [(b"abc", 0, CANCELLED), (b"def", 0, CANCELLED)]


@both_loops
async def test_abort_without_an_operation_returns_false() -> None:
    with writer_pair() as (writer, _):
        assert not writer.cancel()


@both_loops
async def test_async_io_state_abort_and_close_is_terminal() -> None:
    with full_writer() as (writer, _):
        op = writer.write_buffer(b"abc", ignore)
        reading = asyncio.create_task(read(writer.sock, 1))
        await turns()
        assert writer.cancel(CancellationType.TERMINAL)
        await end_reading(reading, writer.sock)
        assert op.status is CANCELLED
        with pytest.raises(OSError, match="closed"):
            writer.write_buffer(b"abc", ignore)


@both_loops
async def test_close_async_io_state_is_close_of_both() -> None:
    with full_writer() as (writer, _):
        op = writer.write_buffer(b"abc", ignore)
        reading = asyncio.create_task(read(writer.sock, 1))
        await turns()
        writer.close()
        await end_reading(reading, writer.sock)
        assert op.status is ABORTED


@both_loops
async def test_keep_alive_p_t_is_close_of_the_writer_alone() -> None:
    with writer_pair() as (writer, peer):
        writer.close()
        writer.sock.send(b"abc")
        assert await BatchWriter(writer.sock).write(batch_of(b"def")) == 3
        assert await read(peer, 6) == b"abcdef"


@both_loops
async def test_write_to_a_closed_state_raises_ecanceled() -> None:
    with writer_pair() as (writer, _):
        writer.close()
        with pytest.raises(OSError, match="closed") as raised:
            writer.write_buffer(b"abc", ignore)
        assert raised.value.errno == errno.ECANCELED


@both_loops
async def test_async_io_state_shutdown_output_follows_the_last_operation() -> None:
    with full_writer() as (writer, peer):
        op = writer.write_buffer(b"abc", ignore)
        assert await peer.read(3) == b"abc"
        await op
        writer.sock.shutdown(socket.SHUT_WR)
        assert await asyncio.get_running_loop().sock_recv(peer.sock, 1) == b""


@both_loops
async def test_async_io_state_shutdown_input_leaves_the_output() -> None:
    with writer_pair() as (writer, peer):
        writer.sock.shutdown(socket.SHUT_RD)
        assert await asyncio.get_running_loop().sock_recv(writer.sock, 1) == b""
        assert await writer.write_buffer(b"abc", ignore) == 3
        assert await read(peer, 3) == b"abc"


@both_loops
async def test_async_io_state_shutdown_io_ends_both() -> None:
    with writer_pair() as (writer, peer):
        assert await writer.write_buffer(b"abc", ignore) == 3
        writer.sock.shutdown(socket.SHUT_RDWR)
        assert await read(peer, 3) == b"abc"
        loop = asyncio.get_running_loop()
        assert [await loop.sock_recv(sock, 1) for sock in (peer, writer.sock)] == [b"", b""]

"""Writes, tasks, files and loops that end while a thread reads ahead."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch, iob_send
from iobatch.aio import BatchWriter, CancellationType, WriteOperation, WriteStatus, send_to_stream
from tests.support.batches import batch_of, check_invariants, data
from tests.support.loops import (
    both_loops,
    read,
    stream,
    turns,
    writer_pair,
)
from tests.support.pagecache import (
    SMALL,
    slow_disk,
)
from tests.support.sockets import PATIENCE, is_silent, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.batches import MakeFile


def cancel(operation: WriteOperation, _writer: BatchWriter) -> None:
    assert operation.cancel()


def cancel_terminal(operation: WriteOperation, _writer: BatchWriter) -> None:
    assert operation.cancel(CancellationType.TERMINAL)


def close(_operation: WriteOperation, writer: BatchWriter) -> None:
    writer.close()


def expire(operation: WriteOperation, writer: BatchWriter) -> None:
    writer._sender.try_now()  # as an expired stall_timeout does first
    writer._sender.expire(operation._posted_write)


@both_loops
@pytest.mark.parametrize("front", [b"", b"header"], ids=["file only", "header and file"])
@pytest.mark.parametrize("end", [cancel, cancel_terminal, close, expire])
async def test_write_ends_at_once_while_a_thread_reads_for_it(
    end: Callable[[WriteOperation, BatchWriter], None], front: bytes, make_file: MakeFile
) -> None:
    """The count is exact, the rest is in the batch, and the thread changes nothing later."""
    fd = make_file(data(SMALL))
    with slow_disk() as disk, writer_pair() as (writer, peer):
        disk.evict(fd)
        disk.ready.clear()
        batch = batch_of(front)
        batch.addfile(fd)
        operation = writer.write(batch)
        following = writer.write(batch_of(b"follow"))
        await turns()
        end(operation, writer)
        assert operation.status in {
            WriteStatus.CANCELLED,
            WriteStatus.ABORTED,
            WriteStatus.TIMEOUT,
        }
        assert (operation.bytes_transferred, operation.batch.bytesleft) == (len(front), SMALL)
        check_invariants(operation.batch)
        goes_on = not front and end in {cancel, expire}
        expected = front + (b"follow" if goes_on else b"")
        assert await read(peer, len(expected)) == expected
        await turns()
        assert following.status is (WriteStatus.DONE if goes_on else WriteStatus.ABORTED)
        disk.ready.set()
        await asyncio.get_running_loop().shutdown_default_executor()
        await turns()
        assert (operation.bytes_transferred, operation.batch.bytesleft) == (len(front), SMALL)
        assert is_silent(peer)
        assert len(disk.thread_reads) == 1
        if end in {close, cancel_terminal}:
            with pytest.raises(OSError, match="closed"):
                writer.write(batch_of(b"more"))
        # The rest is the caller's. iob_send() doesn't probe, and waits for the disk.
        disk.evict(fd)
        assert iob_send(writer.sock, operation.batch) == SMALL


@both_loops
async def test_thread_reads_its_own_file_though_the_descriptor_is_reused(
    make_file: MakeFile, tmp_path: Any
) -> None:
    with slow_disk() as disk, writer_pair() as (writer, _):
        fd = os.dup(make_file(data(SMALL)))
        inode = os.fstat(fd).st_ino
        disk.evict(fd)
        disk.ready.clear()
        batch = IOBatch()
        batch.addfile_close(fd)
        operation = writer.write(batch)
        await turns()
        operation.cancel()
        operation.batch.reset()
        with (tmp_path / "another").open("wb") as another:
            assert another.fileno() == fd
            disk.ready.set()
            await asyncio.get_running_loop().shutdown_default_executor()
        assert disk.thread_reads == [(inode, SMALL)]


@both_loops
async def test_cancelled_send_to_stream_ends_at_once_and_can_be_resumed(
    make_file: MakeFile,
) -> None:
    fd = make_file(data(SMALL))
    with slow_disk() as disk:
        async with stream() as (writer, peer):
            disk.evict(fd)
            disk.ready.clear()
            batch = batch_of(b"header")
            batch.addfile(fd)
            sending = asyncio.create_task(send_to_stream(writer, batch))
            assert await read(peer, 6) == b"header"
            await turns()
            sending.cancel()
            await asyncio.wait([sending])
            assert sending.cancelled()
            assert (batch.bytessent, batch.bytesleft) == (6, SMALL)
            disk.ready.set()
            assert await send_to_stream(writer, batch) == SMALL
            assert await read(peer, SMALL) == data(SMALL)


@both_loops
async def test_descriptor_for_a_thread_is_closed_if_the_task_is_cancelled_first(
    make_file: MakeFile,
) -> None:
    fd = make_file(data(SMALL))
    busy = threading.Event()
    loop = asyncio.get_running_loop()
    with slow_disk() as disk, ThreadPoolExecutor(1) as pool:
        loop.set_default_executor(pool)
        pool.submit(busy.wait, PATIENCE)
        async with stream() as (writer, _):
            disk.evict(fd)
            batch = IOBatch()
            batch.addfile(fd)
            sending = asyncio.create_task(send_to_stream(writer, batch))
            await turns()
            sending.cancel()
            await asyncio.wait([sending])
            assert sending.cancelled()
        busy.set()
        await loop.shutdown_default_executor()
        assert len(disk.thread_reads) == 1


def test_thread_that_outlives_its_loop_closes_its_descriptor(make_file: MakeFile) -> None:
    """The writer can be closed after its loop."""
    fd = make_file(data(SMALL))
    with slow_disk() as disk, stream_pair() as (sock, _):
        sock.setblocking(False)
        disk.evict(fd)
        disk.ready.clear()

        async def post() -> BatchWriter:
            writer = BatchWriter(sock)
            batch = IOBatch()
            batch.addfile(fd)
            writer.write(batch)
            return writer

        loop = asyncio.new_event_loop()
        pool = ThreadPoolExecutor(1)
        loop.set_default_executor(pool)
        writer = loop.run_until_complete(post())
        loop.close()
        writer.close()
        writer.close()
        disk.ready.set()
        pool.shutdown()

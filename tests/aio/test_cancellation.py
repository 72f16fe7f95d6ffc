"""Cancellation: of an operation, of a task that awaits it, and of a whole writer."""

from __future__ import annotations

import asyncio
import errno

import pytest

from iobatch import iob_send
from iobatch.aio import CancellationType, WriteOperation, WriteStatus
from tests.support.aio import statuses
from tests.support.batches import batch_of, data
from tests.support.fakes import again
from tests.support.loops import (
    both_loops,
    full_writer,
    is_watched,
    read,
    scripted_writer,
    turns,
    writer_pair,
)

MIB = 1024 * 1024
TERMINAL = CancellationType.TERMINAL
PARTIAL = CancellationType.PARTIAL
TOTAL = CancellationType.TOTAL
PENDING, DONE = WriteStatus.PENDING, WriteStatus.DONE
CANCELLED, ABORTED = WriteStatus.CANCELLED, WriteStatus.ABORTED


@both_loops
async def test_cancel_before_the_first_byte_removes_only_that_operation() -> None:
    with full_writer() as (writer, peer):
        operations = [writer.write(batch_of(b"%d" % number)) for number in range(5)]
        assert operations[0].cancel(TOTAL)
        assert operations[2].cancel(PARTIAL)
        assert operations[4].cancel()
        assert statuses(operations) == [CANCELLED, PENDING, CANCELLED, PENDING, CANCELLED]
        assert await peer.read(2) == b"13"
        assert [operation.batch.bytesleft for operation in operations] == [1, 0, 1, 0, 1]
        assert (operations[0].bytes_transferred, operations[0].error) == (0, None)


@both_loops
async def test_partial_cancel_keeps_an_exact_count_and_the_rest_can_be_resumed() -> None:
    content = data(MIB)
    with writer_pair(buffers=4096) as (writer, peer):
        operation = writer.write(batch_of(content))
        start = await read(peer, 10_000)
        await turns()
        assert operation.cancel(PARTIAL)
        assert operation.status is CANCELLED
        assert not is_watched(writer)
        sent = operation.bytes_transferred
        assert 10_000 < sent < MIB
        assert operation.batch.bytesleft == MIB - sent
        resumed = writer.write(operation.batch)
        assert start + await read(peer, MIB - 10_000) == content
        assert await resumed == MIB - sent
        assert operation.bytes_transferred == sent


@both_loops
async def test_count_of_an_ended_operation_is_not_that_of_its_batch() -> None:
    """The rest may be sent in any way."""
    with scripted_writer(2) as (writer, sock):
        operation = writer.write(batch_of(b"abcdef"))
        assert operation.cancel()
        assert iob_send(sock, operation.batch) == 4
        assert operation.bytes_transferred == 2


@both_loops
async def test_total_cancel_is_refused_after_the_first_byte() -> None:
    with scripted_writer(1, again()) as (writer, sock):
        operation = writer.write(batch_of(b"abcdef"))
        assert operation.bytes_transferred == 1
        assert not operation.cancel(TOTAL)
        assert operation.status is PENDING
        assert await operation == 6
        assert sock.taken == b"abcdef"


@both_loops
async def test_terminal_cancel_aborts_the_others_and_closes_the_writer() -> None:
    with scripted_writer(2, again()) as (writer, sock):
        operations = [writer.write(batch_of(b"abcdef")) for _ in range(3)]
        assert operations[1].cancel(TERMINAL)
        assert statuses(operations) == [ABORTED, CANCELLED, ABORTED]
        assert [operation.bytes_transferred for operation in operations] == [2, 0, 0]
        batch = batch_of(b"more")
        with pytest.raises(OSError, match="closed") as raised:
            writer.write(batch)
        assert raised.value.errno == errno.ECANCELED
        assert batch.bytesleft == 4
        await turns()
        assert sock.taken == b"ab"


@both_loops
async def test_cancel_of_an_ended_operation_is_refused_and_changes_nothing() -> None:
    with writer_pair() as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        for kind in CancellationType:
            assert not operation.cancel(kind)
        assert (operation.status, operation.bytes_transferred) == (DONE, 3)
        assert writer.write(batch_of(b"x")).done()


@both_loops
async def test_awaiting_a_cancelled_operation_raises_cancelled_error() -> None:
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"abc"))

        async def wait() -> int:
            return await operation

        task = asyncio.create_task(wait())
        await turns()
        operation.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        with pytest.raises(asyncio.CancelledError):
            await operation


@both_loops
async def test_cancelling_the_awaiting_task_is_a_partial_cancel() -> None:
    """The count is exact, and the rest can be resumed."""
    content = data(MIB)
    with writer_pair(buffers=4096) as (writer, peer):
        operations: list[WriteOperation] = []

        async def write() -> None:
            operations.append(writer.write(batch_of(content)))
            await operations[0]

        task = asyncio.create_task(write())
        start = await read(peer, 10_000)
        task.cancel("a message")
        await asyncio.wait([task])
        assert task.cancelled()
        [operation] = operations
        assert operation.status is CANCELLED
        sent = operation.bytes_transferred
        assert sent + operation.batch.bytesleft == MIB
        resumed = writer.write(operation.batch)
        assert start + await read(peer, MIB - 10_000) == content
        assert await resumed == MIB - sent


@both_loops
async def test_asyncio_timeout_cancels_the_awaited_operation() -> None:
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await operation
        assert operation.status is CANCELLED
        assert writer.write(operation.batch).status is PENDING
        assert await peer.read(3) == b"abc"


@both_loops
async def test_cancelling_one_of_several_awaiting_tasks_cancels_the_operation() -> None:
    """The other tasks get a CancelledError too."""
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"abc"))

        async def wait() -> int:
            return await operation

        tasks = [asyncio.create_task(wait()) for _ in range(3)]
        await turns()
        tasks[1].cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        assert operation.status is CANCELLED


@both_loops
async def test_cancelling_a_task_after_its_operation_is_done_changes_nothing() -> None:
    with scripted_writer(again()) as (writer, sock):
        operation = writer.write(batch_of(b"abc"))

        async def wait() -> int:
            return await operation

        task = asyncio.create_task(wait())
        operation.add_done_callback(lambda _: task.cancel())
        await asyncio.wait([task])
        assert (operation.status, operation.bytes_transferred) == (DONE, 3)
        assert sock.taken == b"abc"


@both_loops
async def test_operation_may_end_after_its_awaiting_task_was_cancelled() -> None:
    """The future that the task awaits is done already, and must not get a result."""
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))

        async def wait() -> int:
            return await operation

        task = asyncio.create_task(wait())
        await turns()
        task.cancel()
        writer.close()
        await asyncio.wait([task])
        assert task.cancelled()
        assert operation.status is ABORTED
        await peer.clear()


@both_loops
async def test_writer_cancel_ends_all_writes_in_order_and_leaves_the_writer_open() -> None:
    with scripted_writer(2, again()) as (writer, sock):
        ended: list[int] = []
        operations = [
            writer.write(
                batch_of(b"abc"),
                on_error=lambda operation: ended.append(operation.user_info),
                user_info=number,
            )
            for number in range(3)
        ]
        assert writer.cancel()
        assert statuses(operations) == [CANCELLED] * 3
        assert [operation.bytes_transferred for operation in operations] == [2, 0, 0]
        assert writer.pending == 0
        await turns()
        assert ended == [0, 1, 2]
        assert not writer.cancel()
        operations[0].batch.reset()  # the rest of the truncated write is dropped on purpose
        assert await writer.write(batch_of(b"x")) == 1
        assert sock.taken == b"abx"


@both_loops
async def test_writer_cancel_of_the_only_write_stops_the_watch() -> None:
    with full_writer() as (writer, _):
        writer.write(batch_of(b"abc"))
        assert writer.cancel()
        assert not is_watched(writer)


@both_loops
async def test_writer_total_cancel_spares_the_started_operation_and_returns_false() -> None:
    with scripted_writer(2, again()) as (writer, sock):
        operations = [writer.write(batch_of(b"abc")) for _ in range(3)]
        assert not writer.cancel(TOTAL)
        assert statuses(operations) == [PENDING, CANCELLED, CANCELLED]
        assert await operations[0] == 3
        assert sock.taken == b"abc"
    with full_writer() as (writer, _):
        operations = [writer.write(batch_of(b"abc")) for _ in range(3)]
        assert writer.cancel(TOTAL)
        assert statuses(operations) == [CANCELLED] * 3


@both_loops
async def test_writer_terminal_cancel_cancels_all_and_closes_the_writer() -> None:
    with full_writer() as (writer, _):
        operations = [writer.write(batch_of(b"abc")) for _ in range(3)]
        assert writer.cancel(TERMINAL)
        assert statuses(operations) == [CANCELLED] * 3
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"x"))
        assert not writer.cancel()
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"x"))

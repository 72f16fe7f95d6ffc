"""iobatch-asio(7), Cancellation and timeouts: one test for each row, in the rows' order."""

from __future__ import annotations

import asyncio
import errno
import gc

import pytest

from iobatch.aio import BatchWriter, CancellationType, WriteStatus
from tests.support.aio import statuses
from tests.support.batches import batch_of
from tests.support.fakes import again
from tests.support.loops import (
    FakeTime,
    both_loops,
    full_writer,
    read,
    scripted_writer,
    turns,
    writer_pair,
)
from tests.support.manpages import covered, subjects
from tests.support.sockets import clog, stream_pair

PAGE = "iobatch-asio.7", "Cancellation and timeouts"
PARTIAL, TOTAL = CancellationType.PARTIAL, CancellationType.TOTAL
DONE, CANCELLED, ABORTED = WriteStatus.DONE, WriteStatus.CANCELLED, WriteStatus.ABORTED
TIMEOUT, PENDING = WriteStatus.TIMEOUT, WriteStatus.PENDING


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


@both_loops
async def test_cancellation_signal_emit_is_cancel() -> None:
    with scripted_writer(2, again()) as (writer, _):
        op = writer.write(batch_of(b"abcdef"))
        assert not op.cancel(TOTAL)
        assert op.cancel()  # PARTIAL
        assert op.status is CANCELLED


@both_loops
async def test_cancellation_type_terminal_closes_the_writer() -> None:
    with full_writer() as (writer, _):
        ops = [writer.write(batch_of(b"abc")) for _ in range(3)]
        assert ops[1].cancel(CancellationType.TERMINAL)
        assert statuses(ops) == [ABORTED, CANCELLED, ABORTED]
        with pytest.raises(OSError, match="closed") as raised:
            writer.write(batch_of(b"abc"))
        assert raised.value.errno == errno.ECANCELED


@both_loops
async def test_cancellation_type_partial_counts_and_resumes() -> None:
    with scripted_writer(2, again()) as (writer, sock):
        op = writer.write(batch_of(b"abcdef"))
        assert op.cancel(PARTIAL)
        assert op.bytes_transferred == 2
        assert await writer.write(op.batch) == 4
        assert sock.taken == b"abcdef"


@both_loops
async def test_cancellation_type_total_is_for_the_time_before_the_first_byte() -> None:
    with scripted_writer(2, again()) as (writer, sock):
        ops = [writer.write(batch_of(b"abc")), writer.write(batch_of(b"def"))]
        assert [op.cancel(TOTAL) for op in ops] == [False, True]
        assert await ops[0] == 3
        assert (ops[1].status, sock.taken) == (CANCELLED, b"abc")


@both_loops
async def test_total_partial_is_partial() -> None:
    with scripted_writer(2, again()) as (writer, _):
        first, second = writer.write(batch_of(b"abc")), writer.write(batch_of(b"def"))
        assert (second.cancel(PARTIAL), first.cancel(PARTIAL)) == (True, True)
        assert (second.bytes_transferred, first.bytes_transferred) == (0, 2)


@both_loops
async def test_cancellation_type_all_is_partial_and_keeps_the_socket() -> None:
    with full_writer() as (writer, peer):
        assert writer.write(batch_of(b"abc")).cancel()
        op = writer.write(batch_of(b"def"))
        assert await peer.read(3) == b"def"
        assert await op == 3


@both_loops
async def test_emit_after_completion_changes_nothing() -> None:
    with writer_pair() as (writer, _):
        op = writer.write(batch_of(b"abc"))
        assert [op.cancel(kind) for kind in CancellationType] == [False] * 3
        assert (op.status, writer.write(batch_of(b"x")).status) == (DONE, DONE)


@both_loops
async def test_write_after_a_partial_one_is_aborted_until_its_rest_was_posted_or_reset() -> None:
    for resume in (True, False):
        with scripted_writer(2, again()) as (writer, sock):
            op, later = writer.write(batch_of(b"abc")), writer.write(batch_of(b"def"))
            op.cancel()
            assert statuses([op, later, writer.write(batch_of(b"x"))]) == [
                CANCELLED,
                ABORTED,
                ABORTED,
            ]
            if resume:
                await writer.write(op.batch)
            else:
                op.batch.reset()
            assert await writer.write(later.batch) == 3
            assert sock.taken == (b"abcdef" if resume else b"abdef")
    with scripted_writer(2, again()) as (writer, _):
        writer.write(batch_of(b"abc"), timeout=0)
        gc.collect()
        assert writer.write(batch_of(b"def")).status is ABORTED


@both_loops
async def test_socket_cancel_ends_all_writes_and_no_reads() -> None:
    with full_writer() as (writer, peer):
        reading = asyncio.create_task(read(writer.sock, 3))
        ops = [writer.write(batch_of(b"abc")) for _ in range(2)]
        await turns()
        assert writer.cancel()
        assert statuses(ops) == [CANCELLED] * 2
        peer.sock.send(b"abc")
        assert await reading == b"abc"
    for kind in CancellationType.PARTIAL, CancellationType.TERMINAL:
        with scripted_writer(2, again()) as (writer, _):
            ops = [writer.write(batch_of(b"abc")), writer.write(batch_of(b"def"))]
            assert writer.cancel(kind)
            assert statuses(ops) == [CANCELLED] * 2
    with scripted_writer(2, again()) as (writer, sock):
        ops = [writer.write(batch_of(b"abc")), writer.write(batch_of(b"def"))]
        writer.cancel()
        assert writer.write(batch_of(b"x")).status is ABORTED
        for op in ops:
            writer.write(op.batch)
        await turns()
        assert sock.taken == b"abcdef"


@both_loops
async def test_socket_close_is_close_of_both() -> None:
    with full_writer() as (writer, _):
        op = writer.write(batch_of(b"abc"))
        writer.close()
        writer.sock.close()
        with pytest.raises(OSError) as raised:
            await op
        assert (op.status, raised.value.errno) == (ABORTED, errno.ECANCELED)


@both_loops
async def test_steady_timer_and_cancel_is_a_timeout() -> None:
    with full_writer() as (writer, _):
        op = writer.write(batch_of(b"abc"), timeout=0)
        assert (op.status, op.bytes_transferred) == (TIMEOUT, 0)


@both_loops
async def test_cancel_after_t_token_ends_in_a_timeout_error() -> None:
    with scripted_writer(2, again()) as (writer, _):
        op = writer.write(batch_of(b"abc"), timeout=0)
        with pytest.raises(TimeoutError):
            await op
        assert (op.status, op.bytes_transferred) == (TIMEOUT, 2)


@both_loops
async def test_cancel_at_time_token_is_the_difference_to_the_loops_time() -> None:
    loop = asyncio.get_running_loop()
    with full_writer() as (writer, _):
        when = loop.time() - 1
        batch = batch_of(b"abc")
        with pytest.raises(ValueError, match="negative"):
            writer.write(batch, timeout=when - loop.time())
        assert writer.write(batch, timeout=max(0, when - loop.time())).status is TIMEOUT


@both_loops
async def test_timer_set_anew_by_progress_is_a_stall_timeout() -> None:
    with stream_pair(buffers=4096) as (ours, theirs):
        theirs.setblocking(False)
        filler = clog(ours)
        writer = BatchWriter(ours, stall_timeout=9)
        clock = FakeTime(writer._sender.loop)
        writer._sender.loop = clock  # type: ignore[assignment]
        op = writer.write(batch_of(bytes(1 << 20)))
        clock.advance(8)
        await read(theirs, filler)
        await turns()
        assert op.bytes_transferred > 0
        clock.advance(8)
        assert op.status is PENDING
        clock.advance(9)
        assert op.status is TIMEOUT


@both_loops
async def test_coroutine_cancelled_cancels_the_operation_unless_in_asyncio_wait() -> None:
    content = bytes(1 << 20)
    with writer_pair(buffers=4096) as (writer, _):
        op = writer.write(batch_of(content))

        async def wait() -> int:
            return await op

        task = asyncio.create_task(wait())
        await turns()
        task.cancel()
        await asyncio.wait([task])
        assert (task.cancelled(), op.status) == (True, CANCELLED)
        assert 0 < op.bytes_transferred == len(content) - op.batch.bytesleft
    with full_writer() as (writer, _):
        op = writer.write(batch_of(b"abc"))
        task = asyncio.create_task(asyncio.wait([op]))
        await turns()
        task.cancel()
        await asyncio.wait([task])
        assert (task.cancelled(), op.status) == (True, PENDING)


@both_loops
async def test_disable_cancellation_is_shield() -> None:
    with full_writer() as (writer, peer):
        op = writer.write(batch_of(b"abc"))

        async def wait() -> None:
            await asyncio.shield(op)

        task = asyncio.create_task(wait())
        await turns()
        task.cancel()
        await asyncio.wait([task])
        assert (task.cancelled(), op.status) == (True, PENDING)
        assert await peer.read(3) == b"abc"
        assert await op == 3

"""Timeouts and stall timeouts of posted writes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest

from iobatch import IOBatch
from iobatch.aio import BatchWriter, WriteOperation, WriteStatus
from tests.support.aio import statuses
from tests.support.batches import batch_of
from tests.support.fakes import again
from tests.support.loops import (
    FakeTime,
    both_loops,
    full_writer,
    is_watched,
    scripted_writer,
    turns,
    writer_pair,
)
from tests.support.sockets import PATIENCE

MIB = 1024 * 1024
PENDING, DONE = WriteStatus.PENDING, WriteStatus.DONE
ABORTED, TIMEOUT = WriteStatus.ABORTED, WriteStatus.TIMEOUT


@both_loops
async def test_timeout_ends_the_operation_with_its_count() -> None:
    with writer_pair(buffers=4096) as (writer, _):
        operation = writer.write(batch_of(bytes(MIB)), timeout=0.01)
        with pytest.raises(TimeoutError, match=f"of {MIB} bytes") as raised:
            await operation
        assert raised.value.errno is None  # ETIMEDOUT reports a lost connection
        assert operation.status is TIMEOUT
        assert operation.bytes_transferred > 0
        assert operation.bytes_transferred + operation.batch.bytesleft == MIB
        assert not is_watched(writer)


@both_loops
async def test_timeout_before_the_first_byte_removes_only_that_operation() -> None:
    with full_writer() as (writer, peer):
        first = writer.write(batch_of(b"first"))
        second = writer.write(batch_of(b"second"), timeout=0.01)
        third = writer.write(batch_of(b"third"))
        with pytest.raises(TimeoutError):
            await second
        assert await peer.read(10) == b"firstthird"
        assert [await first, await third] == [5, 5]


@both_loops
async def test_writers_timeout_applies_unless_the_operation_has_its_own() -> None:
    """None overrides the writer's timeout: there is no bound."""
    with full_writer(timeout=0.01) as (writer, peer):
        untimed = writer.write(batch_of(b"abc"), timeout=None)
        timed = writer.write(batch_of(b"def"))
        with pytest.raises(TimeoutError):
            await timed
        assert untimed.status is PENDING
        assert await peer.read(3) == b"abc"
        assert await untimed == 3


@both_loops
async def test_write_that_starts_at_once_has_the_writers_timeouts() -> None:
    for options in {"timeout": 0.01}, {"stall_timeout": 0.01}:
        with writer_pair(buffers=4096, **options) as (writer, _):
            operation = writer.write(batch_of(bytes(MIB)))
            with pytest.raises(TimeoutError):
                await operation
            assert operation.bytes_transferred > 0


@both_loops
async def test_timeout_of_zero_ends_a_write_that_does_not_go_out_at_once() -> None:
    with writer_pair(buffers=4096) as (writer, _):
        ended: list[WriteOperation] = []
        assert writer.write(batch_of(b"abc"), timeout=0).status is DONE
        operation = writer.write(batch_of(bytes(MIB)), timeout=0, on_complete=ended.append)
        assert (operation.status, ended) == (TIMEOUT, [])
        await turns()
        assert ended == [operation]


@both_loops
async def test_timer_is_cancelled_with_its_operation() -> None:
    """An operation that is done at once has no timer."""
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"), timeout=PATIENCE)
        timer = operation._posted_write.timer
        assert timer is not None
        assert timer._handle is not None
        await peer.read(3)
        await operation
        assert timer._handle.cancelled()
        assert operation._posted_write.timer is None
        assert writer.write(batch_of(b"abc"), timeout=PATIENCE)._posted_write.timer is None


@both_loops
async def test_writer_shows_its_timeouts_and_is_pending_at_first() -> None:
    with writer_pair() as (writer, _):
        assert (writer.timeout, writer.stall_timeout, writer.status) == (None, None, PENDING)
        writer.timeout, writer.stall_timeout = 1, 2
        assert (writer.timeout, writer.stall_timeout) == (1, 2)


@both_loops
async def test_stall_timeout_ends_an_operation_without_progress() -> None:
    with full_writer(stall_timeout=0.01) as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        following = writer.write(batch_of(b"def"), stall_timeout=None)
        with pytest.raises(TimeoutError):
            await operation
        assert (operation.bytes_transferred, following.status) == (0, PENDING)


@both_loops
async def test_slow_progress_is_not_a_stall() -> None:
    with writer_pair(buffers=4096) as (writer, peer):
        clock = FakeTime(asyncio.get_running_loop())
        writer._sender.loop = clock  # type: ignore[assignment]
        operation = writer.write(batch_of(bytes(MIB)), stall_timeout=10)
        following = writer.write(batch_of(b"follow"), stall_timeout=10)
        for _ in range(20):
            clock.advance(9)
            sent = operation.bytes_transferred
            while operation.bytes_transferred == sent:
                with suppress(BlockingIOError):
                    peer.recv(1 << 16)
                await asyncio.sleep(0)
        assert statuses([operation, following]) == [PENDING, PENDING]
        assert len(clock.timers) == 2  # one for each operation: progress sets no new timer
        clock.advance(9.9)
        assert operation.status is PENDING
        clock.advance(0.2)
        assert statuses([operation, following]) == [TIMEOUT, ABORTED]


@both_loops
async def test_one_byte_is_progress() -> None:
    with scripted_writer(again(), 1, again(), again()) as (writer, _):
        clock = FakeTime(asyncio.get_running_loop())
        writer._sender.loop = clock  # type: ignore[assignment]
        operation = writer.write(batch_of(b"some"), stall_timeout=10)
        clock.advance(2.5)
        assert operation.bytes_transferred == 1
        clock.advance(9)
        assert (operation.status, operation.bytes_transferred) == (PENDING, 1)


@both_loops
async def test_end_of_an_empty_write_is_no_progress() -> None:
    with full_writer() as (writer, _):
        clock = FakeTime(asyncio.get_running_loop())
        writer._sender.loop = clock  # type: ignore[assignment]
        first = writer.write(batch_of(b"first"))
        empty = writer.write(IOBatch())
        last = writer.write(batch_of(b"last"), stall_timeout=10)
        clock.advance(9)
        first.cancel()
        writer._sender.resume()
        assert statuses([empty, last]) == [DONE, PENDING]
        clock.advance(1.1)
        assert last.status is TIMEOUT


@both_loops
async def test_stall_timeout_counts_from_posting_at_the_earliest() -> None:
    with full_writer() as (writer, _):
        clock = FakeTime(asyncio.get_running_loop())
        writer._sender.loop = clock  # type: ignore[assignment]
        old = writer.write(batch_of(b"old"), stall_timeout=10)
        clock.advance(6)
        new = writer.write(batch_of(b"new"), stall_timeout=10, timeout=30)
        clock.advance(6)
        assert statuses([old, new]) == [TIMEOUT, PENDING]
        clock.advance(6)
        assert statuses([old, new]) == [TIMEOUT, TIMEOUT]


@both_loops
async def test_socket_is_tried_again_before_a_stall_ends_the_operation() -> None:
    """The peer may have read, and the loop may not have reported that yet."""
    with full_writer() as (writer, peer):
        clock = FakeTime(asyncio.get_running_loop())
        writer._sender.loop = clock  # type: ignore[assignment]
        operation = writer.write(batch_of(b"some"), stall_timeout=10)
        while True:  # read everything without a turn of the loop
            with suppress(BlockingIOError):
                peer.sock.recv(1 << 20)
                continue
            break
        clock.advance(10.1)
        assert operation.status is DONE


@both_loops
async def test_stall_is_found_soon_although_the_socket_takes_some_bytes_later() -> None:
    """The last bytes that fit count from a check within the stall timeout, not from its end."""
    with full_writer() as (writer, peer):
        clock = FakeTime(asyncio.get_running_loop())
        writer._sender.loop = clock  # type: ignore[assignment]
        operation = writer.write(batch_of(bytes(MIB)), stall_timeout=10)
        peer.sock.recv(peer.filler)  # the loop has no turn in which to report the socket writable
        clock.advance(2.6)
        assert operation.bytes_transferred > 0
        clock.advance(9.8)
        assert operation.status is PENDING
        clock.advance(0.3)
        assert operation.status is TIMEOUT


@both_loops
async def test_stall_is_looked_for_four_times_within_the_stall_timeout() -> None:
    with full_writer() as (writer, _):
        clock = FakeTime(asyncio.get_running_loop())
        writer._sender.loop = clock  # type: ignore[assignment]
        operation = writer.write(batch_of(b"some"), stall_timeout=10)
        for due in 1002.5, 1005, 1007.5, 1010:
            assert [when for when, _ in clock.timers] == [due]
            clock.advance(2.5)
        assert operation.status is TIMEOUT


@both_loops
@pytest.mark.parametrize(
    ("options", "seconds", "status"),
    [
        ({"timeout": 10}, 5, PENDING),
        ({"timeout": 10}, 9.999, TIMEOUT),  # uvloop's timers may be early by a millisecond
        ({"timeout": 10, "stall_timeout": 100}, 10, TIMEOUT),
    ],
)
async def test_timer_of_a_timeout_does_not_try_the_socket_again(
    options: dict[str, Any], seconds: float, status: WriteStatus
) -> None:
    with full_writer() as (writer, peer):
        clock = FakeTime(asyncio.get_running_loop())
        writer._sender.loop = clock  # type: ignore[assignment]
        operation = writer.write(batch_of(b"some"), **options)
        peer.sock.recv(peer.filler)
        clock.now += seconds
        [(_, check)] = clock.timers
        check()
        assert operation.status is status


@both_loops
@pytest.mark.parametrize("name", ["timeout", "stall_timeout"])
async def test_writes_that_expire_together_end_in_their_order(name: str) -> None:
    """One that has sent some of its bytes aborts the others, whichever timer fires first."""
    with writer_pair(buffers=4096) as (writer, _):
        clock = FakeTime(asyncio.get_running_loop())
        writer._sender.loop = clock  # type: ignore[assignment]
        writer.timeout = 20
        operations = [writer.write(batch_of(bytes(MIB)), **{name: 10}) for _ in range(3)]
        clock.timers.reverse()
        clock.now += 10
        clock.advance(0)
        assert statuses(operations) == [TIMEOUT, ABORTED, ABORTED]


@both_loops
async def test_stall_timeout_of_zero_ends_a_write_that_has_to_wait() -> None:
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"some"), stall_timeout=0)
        assert operation.status is TIMEOUT


@both_loops
@pytest.mark.parametrize(
    ("seconds", "error"),
    [
        (Decimal(1), TypeError),
        ("1", TypeError),
        (10**400, OverflowError),
        (-1, ValueError),
        (float("nan"), ValueError),
    ],
    ids=["Decimal", "str", "10**400", "negative", "NaN"],
)
async def test_bad_timeout_is_refused_before_anything_is_taken(
    seconds: Any, error: type[Exception]
) -> None:
    with full_writer() as (writer, _):
        batch = batch_of(b"abc")
        for options in ({"timeout": seconds}, {"stall_timeout": seconds}):
            with pytest.raises(error):
                writer.write(batch, **options)
            with pytest.raises(error):
                BatchWriter(writer.sock, **options)
            with pytest.raises(error):
                setattr(writer, *options, seconds)
        with pytest.raises(error):
            writer.write_buffer(b"abc", print, timeout=seconds)
        assert batch.bytesleft == 3
        assert (writer.timeout, writer.stall_timeout, writer.pending) == (None, None, 0)


@both_loops
async def test_infinite_timeout_is_no_bound() -> None:
    with full_writer(timeout=float("inf")) as (writer, peer):
        assert writer.timeout is None
        operation = writer.write(batch_of(b"abc"), timeout=float("inf"), stall_timeout=10**300)
        assert await peer.read(3) == b"abc"
        assert await operation == 3

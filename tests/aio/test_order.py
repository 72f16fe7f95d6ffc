"""The order of posted writes, and how a write that ends part-way aborts those after it."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from iobatch import IOBatch, TruncatedFileError
from iobatch.aio import WriteOperation, WriteStatus
from iobatch.filters import Filter
from tests.support.aio import statuses
from tests.support.batches import batch_of, data
from tests.support.fakes import again
from tests.support.loops import (
    both_loops,
    full_writer,
    read,
    scripted_writer,
    turns,
    writer_pair,
)
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

PENDING, DONE, CANCELLED = WriteStatus.PENDING, WriteStatus.DONE, WriteStatus.CANCELLED
ABORTED, TIMEOUT, ERROR = WriteStatus.ABORTED, WriteStatus.TIMEOUT, WriteStatus.ERROR


@both_loops
async def test_writes_go_out_and_complete_in_the_order_of_posting() -> None:
    pieces = [data(size, size) for size in (5000, 1, 30_000, 2, 700, 100_000, 3)]
    with writer_pair(buffers=4096) as (writer, peer):
        completed: list[int] = []
        for number, piece in enumerate(pieces):
            writer.write(
                batch_of(piece),
                user_info=number,
                on_complete=lambda operation: completed.append(operation.user_info),
            )
        everything = b"".join(pieces)
        assert await read(peer, len(everything)) == everything
        await turns()
        assert completed == list(range(len(pieces)))


@both_loops
async def test_awaiting_tasks_resume_in_the_order_of_posting() -> None:
    with full_writer() as (writer, peer):
        order: list[int] = []

        async def write(number: int) -> None:
            await writer.write(batch_of(b"%d" % number))
            order.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(write(number))
            await turns()
            assert not order
            assert await peer.read(8) == b"01234567"
        assert order == list(range(8))


@both_loops
async def test_completion_callbacks_may_post_and_never_nest() -> None:
    with writer_pair() as (writer, peer):
        depth = deepest = 0
        done = asyncio.Event()

        def completed(operation: WriteOperation) -> None:
            nonlocal depth, deepest
            depth += 1
            deepest = max(deepest, depth)
            if operation.user_info:
                writer.write(
                    batch_of(b"x"), on_complete=completed, user_info=operation.user_info - 1
                )
            else:
                done.set()
            depth -= 1

        reading = asyncio.create_task(read(peer, 2001))
        writer.write(batch_of(b"x"), on_complete=completed, user_info=2000)
        await done.wait()
        assert deepest == 1
        assert await reading == b"x" * 2001


@both_loops
@pytest.mark.parametrize("ending", ["cancel", "timeout", "error"])
async def test_write_that_ends_part_way_aborts_those_after_it(
    ending: str, make_file: Callable[[bytes], int]
) -> None:
    """Nothing may follow a truncated body, not even if it is posted later."""
    fd = make_file(bytes(100_000))
    with scripted_writer(2, again(), again(), again()) as (writer, sock):
        batch = batch_of(b"abcdef")
        batch.addfile(fd)
        first = writer.write(batch, timeout=PATIENCE)
        following = [writer.write(batch_of(b"follow")) for _ in range(3)]
        assert first.bytes_transferred == 2
        if ending == "cancel":
            first.cancel()
            assert first.status is CANCELLED
        elif ending == "timeout":
            writer._sender.expire(first._posted_write)
            assert first.status is TIMEOUT
        else:
            os.truncate(fd, 0)
            with pytest.raises(TruncatedFileError):
                await first
            assert first.status is ERROR
        assert statuses(following) == [ABORTED] * 3
        for operation in following:
            assert (operation.bytes_transferred, operation.batch.bytesleft) == (0, 6)
            with pytest.raises(OSError, match="cancel") as raised:
                await operation
            assert raised.value.errno == errno.ECANCELED
        late = [writer.write(following[0].batch), writer.write_some(batch_of(b"late"))]
        late.append(writer.finish())
        assert statuses(late) == [ABORTED] * 3
        assert [operation.batch.bytesleft for operation in late] == [6, 4, 0]
        assert writer.flush().status is DONE
        assert b"follow" not in sock.taken
        first.batch.reset()  # the caller has dropped the rest
        assert await writer.write(late[0].batch) == 6


@both_loops
async def test_rest_of_a_truncated_write_may_be_posted_and_then_others() -> None:
    with scripted_writer(2, again(), again()) as (writer, sock):
        first = writer.write(batch_of(b"abcdef"))
        assert first.cancel()
        rest = writer.write(first.batch)
        assert await rest == 4
        assert await writer.write(batch_of(b"next")) == 4
        assert sock.taken == b"abcdefnext"


@both_loops
async def test_codec_of_a_truncated_body_gets_no_end(make_file: Callable[[bytes], int]) -> None:
    """With its end, the compressed body would be valid, and shorter than the file."""
    fd = make_file(bytes(10_000))
    with writer_pair() as (writer, peer):
        coded = Filter(zlib.compressobj(wbits=31))
        batch = batch_of(b"head")
        batch.addfile(fd, 0, 20_000)
        body = writer.write(batch, through=coded)
        end = writer.finish(through=coded)
        assert statuses([body, end]) == [ERROR, ABORTED]
        with pytest.raises(TruncatedFileError):
            await body
        await turns()
        decoder = zlib.decompressobj(wbits=31)
        with suppress(BlockingIOError):
            decoder.decompress(peer.recv(1 << 20))
        assert not decoder.eof


@both_loops
async def test_error_before_the_first_byte_ends_no_other_write() -> None:
    with full_writer() as (writer, peer):
        batch = IOBatch()
        fd = os.open(os.devnull, os.O_RDONLY)
        batch.addfile(fd, 0, 10)
        failing = writer.write(batch)
        following = writer.write(batch_of(b"follow"))
        assert await peer.read(6) == b"follow"
        assert await following == 6
        with pytest.raises(TruncatedFileError):
            await failing
        os.close(fd)


@both_loops
async def test_work_is_linear_in_the_number_of_operations() -> None:
    """The work is counted in profiler events, since times vary."""

    async def work(count: int) -> int:
        calls = 0

        def count_call(*_: object) -> None:
            nonlocal calls
            calls += 1

        with full_writer() as (writer, peer):
            sys.setprofile(count_call)
            try:
                operations = [writer.write(batch_of(b"x")) for _ in range(count)]
                assert writer.pending == count
                for operation in operations[1::2]:
                    operation.cancel()
            finally:
                sys.setprofile(None)
            await peer.clear()
            sys.setprofile(count_call)
            try:
                while not operations[-2].done():
                    with suppress(BlockingIOError):
                        peer.sock.recv(1 << 16)
                    await asyncio.sleep(0)
            finally:
                sys.setprofile(None)
            assert set(statuses(operations[::2])) == {DONE}
        return calls

    few, many = await work(2500), await work(10_000)
    assert many < 6 * few  # four times as many operations


@both_loops
async def test_rest_that_ends_before_its_first_byte_still_lets_nothing_follow() -> None:
    with scripted_writer(2, again(), again(), again()) as (writer, sock):
        first = writer.write(batch_of(b"abcdef"))
        assert first.cancel()
        rest = writer.write(first.batch)
        after = writer.write(batch_of(b"after"))
        assert rest.cancel()
        late = writer.write(batch_of(b"late"))
        assert statuses([rest, after, late]) == [CANCELLED, ABORTED, ABORTED]
        assert await writer.write(rest.batch) == 4
        assert await writer.write(late.batch) == 4
        assert sock.taken == b"abcdeflate"

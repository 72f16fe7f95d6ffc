"""A BatchWriter belongs to the thread of its loop; other threads reach it through the loop."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from iobatch import IOBatch
from iobatch.aio import BatchWriter, WriteStatus
from tests.support.batches import batch_of, data
from tests.support.loops import both_loops, full_writer, read, writer_pair
from tests.support.sockets import PATIENCE, stream_pair

if TYPE_CHECKING:
    from iobatch.aio import WriteOperation


def test_writer_cannot_be_made_in_a_thread_without_a_running_loop() -> None:
    with stream_pair() as (one, _):
        one.setblocking(False)
        with pytest.raises(RuntimeError, match="no running event loop"):
            BatchWriter(one)


@both_loops
async def test_threads_write_by_run_coroutine_threadsafe() -> None:
    """Each thread's bytes arrive in its order."""
    loop = asyncio.get_running_loop()
    with writer_pair(buffers=4096) as (writer, peer), ThreadPoolExecutor(4) as pool:

        async def write(piece: bytes) -> int:
            sent = await writer.write(batch_of(piece))
            await writer.drain()
            return sent

        def work(number: int) -> list[int]:
            futures = [
                asyncio.run_coroutine_threadsafe(write(b"%d:%03d," % (number, turn)), loop)
                for turn in range(100)
            ]
            return [future.result(PATIENCE) for future in futures]

        workers = [loop.run_in_executor(pool, work, number) for number in range(4)]
        received = await read(peer, 4 * 100 * 6)
        assert [await worker for worker in workers] == [[6] * 100] * 4
        await writer.drain()
    records = received.split(b",")[:-1]
    for number in range(4):
        expected = [b"%d:%03d" % (number, turn) for turn in range(100)]
        assert [each for each in records if each[:1] == b"%d" % number] == expected


@both_loops
async def test_thread_posts_by_call_soon_threadsafe() -> None:
    loop = asyncio.get_running_loop()
    with writer_pair() as (writer, peer), ThreadPoolExecutor(1) as pool:
        batch = batch_of(b"posted")
        await loop.run_in_executor(pool, loop.call_soon_threadsafe, writer.write, batch)
        assert await read(peer, 6) == b"posted"
    assert not batch


@both_loops
async def test_debug_mode_reports_a_write_of_another_thread_that_has_to_wait() -> None:
    """The operation fails with the loop's error, and has its bytes."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = PATIENCE
    with full_writer() as (writer, _), ThreadPoolExecutor(1) as pool:

        def post() -> WriteOperation:
            return writer.write(batch_of(b"wrong"))

        operation = await loop.run_in_executor(pool, post)
        assert operation.status is WriteStatus.ERROR
        assert "thread-safe" in str(operation.exception())
        assert operation.batch is not None
        assert operation.batch.bytesleft == 5
        operation.batch.reset()


@both_loops
async def test_batch_can_be_filled_by_another_thread_before_it_is_posted() -> None:
    content = data(500_000)
    cuts = sorted(random.Random(1).sample(range(len(content)), 200))

    def fill() -> IOBatch:
        batch = IOBatch()
        for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
            batch.addbuf(bytearray(content[start:end]))
        return batch

    with writer_pair() as (writer, peer), ThreadPoolExecutor(1) as pool:
        batch = await asyncio.get_running_loop().run_in_executor(pool, fill)
        operation = writer.write(batch)
        assert await read(peer, len(content)) == content
        assert await operation == len(content)

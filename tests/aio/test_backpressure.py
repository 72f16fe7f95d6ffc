"""Backpressure: pending bytes, high_water and drain()."""

from __future__ import annotations

import asyncio

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


@both_loops
async def test_pending_counts_the_bytes_posted_and_not_sent() -> None:
    with scripted_writer(3, again()) as (writer, _):
        first = writer.write(batch_of(b"abcdef"))
        assert writer.pending == 3
        writer.write(batch_of(b"ghi"), exactly=2)
        last = writer.write(batch_of(b"jkl"))
        assert writer.pending == 8
        last.cancel()
        assert writer.pending == 5
        await first
        await turns()
        assert writer.pending == 0


@both_loops
async def test_producer_that_drains_holds_at_most_high_water_and_one_write() -> None:
    content = data(300_000)
    with writer_pair(buffers=4096, high_water=10_000) as (writer, peer):

        async def produce() -> int:
            most_pending = 0
            for start in range(0, len(content), 1000):
                writer.write(batch_of(content[start : start + 1000]))
                most_pending = max(most_pending, writer.pending)
                await writer.drain()
                assert writer.pending < 10_000
            return most_pending

        producer = asyncio.create_task(produce())
        assert await read(peer, len(content)) == content
        assert 9_000 < await producer < 11_000
        assert writer.pending == 0


@both_loops
async def test_drain_waits_only_while_high_water_bytes_are_pending() -> None:
    with full_writer(high_water=10) as (writer, peer):
        writer.write(batch_of(b"123456789"))
        loop_turns: list[None] = []
        asyncio.get_running_loop().call_soon(loop_turns.append, None)
        await writer.drain()
        assert not loop_turns
        writer.write(batch_of(b"0"))
        waiting = [asyncio.create_task(writer.drain()) for _ in range(3)]
        await turns()
        waiting.pop().cancel()
        await turns()
        assert not any(task.done() for task in waiting)
        await peer.read(10)
        await asyncio.gather(*waiting)


@both_loops
async def test_several_ends_in_one_turn_wake_a_waiting_drain_once() -> None:
    """Its future must not get a second result."""
    with full_writer(high_water=10) as (writer, _):
        operations = [writer.write(batch_of(b"12345")) for _ in range(4)]
        waiting = asyncio.create_task(writer.drain())
        await turns()
        for operation in operations:
            assert not waiting.done()
            operation.cancel()
        await waiting


@both_loops
async def test_close_wakes_a_task_that_waits_in_drain() -> None:
    with full_writer(high_water=1) as (writer, _):
        writer.write(batch_of(b"abc"))
        task = asyncio.create_task(writer.drain())
        await turns()
        assert not task.done()
        writer.close()
        await task


@both_loops
async def test_task_that_has_waited_in_drain_is_forgotten() -> None:
    with full_writer(high_water=1) as (writer, peer):
        writer.write(batch_of(b"abc"))
        draining = asyncio.create_task(writer.drain())
        assert await peer.read(3) == b"abc"
        await draining
        assert not writer._sender._waiters

"""Fairness: a writer sends at most `limit` bytes in one turn of the loop."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from iobatch.aio import BatchWriter, WriteOperation, WriteStatus
from iobatch.aio._budget import TurnBudget
from tests.support.batches import batch_of
from tests.support.loops import (
    LOOPS,
    both_loops,
    new_loop,
    scripted_writer,
)
from tests.support.sockets import stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable

MORE = int(socket.MSG_MORE)
DONE, ABORTED, ERROR = WriteStatus.DONE, WriteStatus.ABORTED, WriteStatus.ERROR


@both_loops
async def test_two_writers_take_turns_however_fast_their_readers_are() -> None:
    with scripted_writer(limit=1000) as (one, _), scripted_writer(limit=1000) as (two, _):
        order: list[str] = []

        async def write(writer: BatchWriter, name: str) -> None:
            for _ in range(30):
                await writer.write(batch_of(bytes(250)))
                order.append(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(write(one, "1"))
            group.create_task(write(two, "2"))
        runs = "".join(order).replace("12", "1 2").replace("21", "2 1").split()
        # A run is one write that waited for the turn, and four that are done at once.
        assert max(map(len, runs)) <= 5
        assert len(runs) >= 12


@both_loops
async def test_long_write_sends_at_most_limit_bytes_in_each_turn() -> None:
    with scripted_writer(limit=1000) as (writer, sock):
        operation = writer.write(batch_of(bytes(3500)))
        assert len(sock.taken) == 1000
        await operation
        assert sock.sizes == [1000, 1000, 1000, 500]


@both_loops
async def test_limit_of_one_byte_sends_one_byte_in_each_turn() -> None:
    with scripted_writer(limit=1) as (writer, sock):
        assert await writer.write(batch_of(b"abc")) == 3
        assert sock.sizes == [1, 1, 1]


@both_loops
async def test_write_of_limit_bytes_is_done_at_once_and_the_next_waits() -> None:
    for options in {}, {"flags": MORE}:
        with scripted_writer(limit=1000) as (writer, sock):
            assert writer.write(batch_of(bytes(1000)), **options).done()
            following = writer.write(batch_of(b"x"))
            assert not following.done()
            assert len(sock.taken) == 1000
            assert await following == 1


@both_loops
@pytest.mark.parametrize("options", [{}, {"flags": MORE}], ids=["plain", "flags"])
async def test_no_write_waits_if_the_loop_runs_between_writes(options: dict[str, int]) -> None:
    """The total exceeds the limit many times over."""
    with scripted_writer(limit=1000) as (writer, sock):
        for _ in range(50):
            assert writer.write(batch_of(bytes(400)), **options).done()
            await asyncio.sleep(0)
        assert len(sock.taken) == 20_000


@both_loops
async def test_no_turn_exceeds_the_limit_whatever_the_turn_before_sent() -> None:
    for first in range(0, 1100, 100):
        with scripted_writer(limit=1000) as (writer, sock):
            # The next turn runs this write first, and then the writer's own callback.
            asyncio.get_running_loop().call_soon(writer.write, batch_of(bytes(400)))
            writer.write(batch_of(bytes(first)))
            assert len(sock.taken) == min(first, 1000)
            await asyncio.sleep(0)
            writer.write(batch_of(bytes(2000)))
            assert len(sock.taken) - min(first, 1000) <= 1000


@both_loops
async def test_bytes_of_a_cancelled_write_count_towards_the_limit() -> None:
    with scripted_writer(600, limit=1000) as (writer, sock):
        operation = writer.write(batch_of(bytes(1000)))
        assert operation.cancel()
        operation.batch.reset()
        writer.write(batch_of(bytes(1000)))
        assert len(sock.taken) == 1000


@both_loops
async def test_refill_scheduled_before_a_turn_adds_no_second_budget() -> None:
    with scripted_writer(limit=1000) as (writer, sock):
        writer.write(batch_of(bytes(900)))
        writer._sender.resume()  # as a stall timer does, before the scheduled refill
        writer.write(batch_of(bytes(600)))
        await asyncio.sleep(0)
        sock.taken.clear()
        writer.write(batch_of(bytes(2000)))
        assert len(sock.taken) <= 1000


@pytest.mark.parametrize("spent", [501, 1000])
def test_refill_is_requested_once_when_less_than_half_of_the_budget_is_left(spent: int) -> None:
    requests: list[Callable[[], None]] = []
    loop: Any = SimpleNamespace(call_soon=requests.append, is_closed=lambda: False)
    budget = TurnBudget(loop, 1000)
    budget.spend(500)
    budget.schedule_refill()
    assert not requests
    budget.spend(spent - 500)
    for _ in range(2):
        budget.schedule_refill()
    [refill] = requests
    budget.spend(10)  # before the loop calls: these bytes count towards the next turn
    refill()
    assert budget.left == 990
    refill()
    assert budget.left == 990
    budget.spend(500)
    budget.schedule_refill()
    assert len(requests) == 2


@pytest.mark.parametrize("name", LOOPS)
def test_closed_loop_refills_no_budget(name: str) -> None:
    """A write that must wait for the closed loop fails. close() aborts a write that waits."""

    async def make(sock: socket.socket) -> BatchWriter:
        return BatchWriter(sock, limit=1000)

    async def post(writer: BatchWriter) -> WriteOperation:
        return writer.write(batch_of(bytes(5000)))

    with stream_pair() as (sock, peer):
        sock.setblocking(False)
        loop = new_loop(name)
        waiting, idle = (loop.run_until_complete(make(sock)) for _ in range(2))
        operation = loop.run_until_complete(post(waiting))
        loop.close()
        assert idle.write(batch_of(bytes(700))).status is DONE
        assert idle.write(batch_of(bytes(700))).status is ERROR
        waiting.close()
        idle.close()
        assert operation.status is ABORTED
        assert len(peer.recv(9999)) == operation.bytes_transferred + 700 + 300

"""A BatchWriter against a model: random calls, and an account of every byte."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest

from iobatch.aio import CancellationType, WriteOperation, WriteStatus
from tests.support.batches import batch_of, check_invariants, data
from tests.support.loops import both_loops, is_watched, turns, writer_pair

if TYPE_CHECKING:
    import socket

    from iobatch.aio import BatchWriter

ENDED_EARLY = (WriteStatus.CANCELLED, WriteStatus.TIMEOUT)


class Posted(NamedTuple):
    """A write that was posted."""

    operation: WriteOperation
    content: bytes
    goal: int  # it is done when this number of bytes was sent
    most: int  # at most this number of bytes is sent


class Model:
    """The writes that were posted, and the bytes that have arrived."""

    def __init__(self, writer: BatchWriter, peer: socket.socket, seed: int) -> None:
        self.writer = writer
        self.peer = peer
        self.random = random.Random(seed)
        self.posted: list[Posted] = []
        self.completed: list[WriteOperation] = []
        self.received = bytearray()

    def post(self) -> None:
        size = self.random.choice([0, 1, 10, 300, 5000, 70_000])
        content = data(size, len(self.posted))
        middle = self.random.randint(0, size)
        batch = batch_of(content[:middle], content[middle:])
        call = self.random.randrange(4)
        goal = most = size
        if call == 0:
            operation = self.writer.write_some(batch)
            goal = min(1, size)
        elif call == 1:
            goal = most = self.random.randint(0, size)
            operation = self.writer.write(batch, exactly=goal)
        elif call == 2:
            operation = self.writer.write(batch, timeout=self.random.choice([0, 99]))
        else:
            operation = self.writer.write(batch)
        self.posted.append(Posted(operation, content, goal, most))
        operation.add_done_callback(self.completed.append)

    def post_rest(self) -> None:
        """Post the unsent bytes of a write that ended part-way: until then, others are aborted."""
        for index, (operation, content, _goal, _most) in enumerate(self.posted):
            sent = operation.bytes_transferred
            if operation.status in ENDED_EARLY and sent and operation.batch:
                rest = self.writer.write(operation.batch)
                rest.add_done_callback(self.completed.append)
                size = len(content) - sent
                self.posted[index] = Posted(operation, content[:sent], sent + 1, sent)
                self.posted.append(Posted(rest, content[sent:], size, size))
                break

    def cancel(self) -> None:
        operation = self.random.choice(self.posted).operation
        if self.random.randrange(2):  # the head of the writer's queue
            operations = (write.operation for write in self.posted)
            operation = next((each for each in operations if not each.done()), operation)
        kind = self.random.choice([CancellationType.PARTIAL, CancellationType.TOTAL])
        pending, sent = not operation.done(), operation.bytes_transferred
        cancelled = operation.cancel(kind)
        assert cancelled == (pending and not (kind is CancellationType.TOTAL and sent))

    def cancel_all(self) -> None:
        self.writer.cancel(self.random.choice([CancellationType.PARTIAL, CancellationType.TOTAL]))

    def receive(self) -> None:
        with suppress(BlockingIOError):
            self.received += self.peer.recv(self.random.choice([1, 1000, 100_000]))

    def check(self) -> None:
        pending = 0
        truncated = False
        for operation, content, goal, most in self.posted:
            sent = operation.bytes_transferred
            assert sent + operation.batch.bytesleft == len(content)
            check_invariants(operation.batch)
            if operation.status is WriteStatus.DONE:
                assert sent >= goal
            elif operation.status is WriteStatus.ABORTED:
                assert truncated
                assert sent == 0
            elif operation.status in ENDED_EARLY:
                truncated = truncated or 0 < sent < goal
            else:
                assert operation.status is WriteStatus.PENDING
                pending += most - sent
        assert self.writer.pending == pending

    def sent(self) -> bytes:
        """Return the bytes that the operations count as sent."""
        return b"".join(write.content[: write.operation.bytes_transferred] for write in self.posted)


@both_loops
@pytest.mark.parametrize("seed", range(12))
async def test_no_byte_is_lost_or_sent_twice_in_any_order_of_calls(seed: int) -> None:
    with writer_pair(buffers=4096, limit=20_000) as (writer, peer):
        model = Model(writer, peer, seed)
        model.post()
        actions = [model.post] * 4 + [model.cancel, model.receive, model.receive, model.post_rest]
        for _ in range(400):
            if model.random.randrange(100) == 0:
                model.cancel_all()
            model.random.choice(actions)()
            if model.random.randrange(3) == 0:
                await turns(1)
            model.check()
        while not all(write.operation.done() for write in model.posted):
            model.receive()
            await asyncio.sleep(0)
        model.check()
        await turns()
        expected = model.sent()
        while len(model.received) < len(expected):
            model.receive()
        assert model.received == expected
        posted = [write.operation for write in model.posted]
        assert set(model.completed) == set(posted)
        done = [operation for operation in model.completed if operation.status is WriteStatus.DONE]
        assert done == [operation for operation in posted if operation.status is WriteStatus.DONE]
        statuses = {operation.status for operation in posted}
        assert statuses >= {WriteStatus.DONE, WriteStatus.ABORTED, WriteStatus.CANCELLED}
        assert writer.pending == 0
        assert not is_watched(writer)

"""BatchWriter against a model: whatever is done to it, every byte is accounted for."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from iobatch.aio import CancellationType, WriteOperation, WriteStatus
from tests.helpers import check_invariants, data
from tests.loops import batch_of, both_loops, is_watched, turns, writer_pair

if TYPE_CHECKING:
    import socket

    from iobatch.aio import BatchWriter

pytestmark = pytest.mark.usefixtures("no_leaks")

ENDED_EARLY = (WriteStatus.CANCELLED, WriteStatus.TIMEOUT)


class Model:
    """What was posted, with its content, and what has arrived."""

    def __init__(self, writer: BatchWriter, peer: socket.socket, seed: int) -> None:
        self.writer = writer
        self.peer = peer
        self.random = random.Random(seed)
        self.posted: list[tuple[WriteOperation, bytes, int]] = []  # with how many bytes end it
        self.completed: list[WriteOperation] = []
        self.received = bytearray()

    def post(self) -> None:
        size = self.random.choice([0, 1, 10, 300, 5000, 70_000])
        content = data(size, len(self.posted))
        middle = self.random.randint(0, size)
        batch = batch_of(content[:middle], content[middle:])
        how = self.random.randrange(4)
        goal = size
        if how == 0:
            operation = self.writer.write_some(batch)
            goal = min(1, size)
        elif how == 1:
            goal = self.random.randint(0, size)
            operation = self.writer.write(batch, exactly=goal)
        elif how == 2:
            operation = self.writer.write(batch, timeout=self.random.choice([0, 99]))
        else:
            operation = self.writer.write(batch)
        self.posted.append((operation, content, goal))
        operation.add_done_callback(self.completed.append)

    def cancel(self) -> None:
        operation, _, _ = self.random.choice(self.posted)
        if self.random.randrange(2):  # what is being sent
            operation = next((each for each, _, _ in self.posted if not each.done()), operation)
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
        for operation, content, goal in self.posted:
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
                pending += (len(content) if goal == 1 else goal) - sent
        assert self.writer.pending <= pending
        assert (self.writer.pending > 0) <= (pending > 0)

    def arrived(self) -> bytes:
        """Return what should have arrived."""
        return b"".join(
            content[: operation.bytes_transferred] for operation, content, _ in self.posted
        )


@both_loops
@pytest.mark.parametrize("seed", range(12))
async def test_any_order_of_calls(seed: int) -> None:
    """Whatever is posted, cancelled and read, in whatever order, no byte is lost, or sent twice."""
    with writer_pair(buffers=4096, limit=20_000) as (writer, peer):
        model = Model(writer, peer, seed)
        model.post()
        actions = [model.post] * 4 + [model.cancel, model.receive, model.receive]
        for _ in range(400):
            if model.random.randrange(100) == 0:
                model.cancel_all()
            model.random.choice(actions)()
            if model.random.randrange(3) == 0:
                await turns(1)
            model.check()
        while not all(operation.done() for operation, _, _ in model.posted):
            model.receive()
            await asyncio.sleep(0)
        model.check()
        await turns()
        expected = model.arrived()
        while len(model.received) < len(expected):
            model.receive()
        assert model.received == expected
        posted = [operation for operation, _, _ in model.posted]
        assert set(model.completed) == set(posted)
        done = [operation for operation in model.completed if operation.status is WriteStatus.DONE]
        assert done == [operation for operation in posted if operation.status is WriteStatus.DONE]
        statuses = {operation.status for operation in posted}
        assert statuses >= {WriteStatus.DONE, WriteStatus.ABORTED, WriteStatus.CANCELLED}
        assert writer.pending == 0
        assert not is_watched(writer)

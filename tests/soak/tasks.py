"""The ways to send a batch on an event loop: BatchWriter, send_batch and send_to_stream."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from iobatch.aio import BatchWriter, CancellationType, WriteStatus, send_to_stream
from iobatch.anyio import send_batch
from iobatch.filters import Filter
from tests.soak.calls import BATCHES_OF_A_CONNECTION, PATIENT_TURNS, decrypt, shake_hands
from tests.soak.peers import Connection
from tests.support.loops import new_loop
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from iobatch.aio import WriteOperation
    from tests.soak.batches import Batches
    from tests.soak.calls import Contexts

    # Uses one connection for at most a number of batches; returns how many it has sent.
    Use = Callable[[Batches, Contexts, int], Awaitable[int]]


class Turns:
    """Counts the turns of a loop in which a lost peer is waited for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._count = 0

    def next(self) -> bool:
        """Let the peer do something; return whether waiting makes sense."""
        self._connection.turn()
        self._count += self._connection.lost
        return self._count < PATIENT_TURNS


class Posted:
    """Some writes that were posted together, and where their bytes are in the stream."""

    def __init__(self, writer: BatchWriter, connection: Connection, count: int) -> None:
        self._connection = connection
        self._start = connection.given_bytes
        contents = []
        self.operations: list[WriteOperation] = []
        for _ in range(count):
            operation, content = post(writer, connection.batches)
            connection.give(content)
            contents.append(len(content))
            self.operations.append(operation)
        # The number of bytes of each write that are sent, as far as is known.
        self._sizes = contents

    def withdraw_unsent(self) -> None:
        """Take note of what is not sent, because a write has failed or was cancelled.

        The writes after it go on if none of its bytes were sent. This is called before each read.
        """
        start = self._start
        for number, operation in enumerate(self.operations):
            end = start + self._sizes[number]
            if operation.done():
                start += operation.bytes_transferred
                self._connection.withdraw(start, end)
                self._sizes[number] = operation.bytes_transferred
            else:
                start = end

    def check(self) -> None:
        """Check how the operations have ended."""
        for operation in self.operations:
            assert operation.done()
            if operation.status is WriteStatus.ERROR:
                assert operation.error is not None
                self._connection.fail(operation.error)
            elif operation.status is not WriteStatus.DONE:
                self._connection.complete = False
            operation.batch.reset()


async def use_writer(batches: Batches, contexts: Contexts, count: int, *, tls: bool = False) -> int:
    """Post batches on a BatchWriter, some at a time, and cancel some."""
    random = batches.random
    through = None
    decode: Callable[[bytes], bytes] = bytes
    if tls:
        transform, client, incoming = shake_hands(contexts)
        through, decode = Filter(transform), partial(decrypt, client, incoming)
    connection = Connection("tcp4" if tls else "unix", batches, decode)
    writer = BatchWriter(connection.sock, through=through)
    sent = 0
    while sent < count and connection.complete:
        posted = Posted(writer, connection, min(count - sent, random.randrange(1, 6)))
        sent += len(posted.operations)
        if random.random() < 0.03:
            chosen = random.choice(posted.operations)
            chosen.cancel(random.choice(list(CancellationType)))
        turns = Turns(connection)
        while not all(operation.done() for operation in posted.operations):
            posted.withdraw_unsent()
            if not turns.next():
                writer.close()
            await asyncio.sleep(0)
        posted.withdraw_unsent()
        posted.check()
        if random.random() < 5 / BATCHES_OF_A_CONNECTION:
            break
    if tls and connection.complete:
        turns = Turns(connection)
        end = writer.finish()
        while not end.done() and turns.next():  # noqa: ASYNC110  # the peer acts in each turn
            await asyncio.sleep(0)
        connection.complete = end.status is WriteStatus.DONE
    writer.close()
    await asyncio.sleep(0)
    connection.close()
    return sent


def post(writer: BatchWriter, batches: Batches) -> tuple[WriteOperation, bytes]:
    """Post a batch or a buffer; return the operation and its bytes."""
    chance = batches.random.random()
    if chance < 0.1:
        content = batches.piece(5000)
        return writer.write_buffer(content, partial(release, batches.hook())), content
    batch, content = batches.any()
    if chance < 0.5:
        return writer.write(batch, on_complete=partial(release, batches.hook())), content
    return writer.write(batch), content


def release(hook: Callable[[], None], *_args: object) -> None:
    hook()


async def use_stream(batches: Batches, contexts: Contexts, count: int) -> int:
    """Send batches over a stream of asyncio or uvloop."""
    random = batches.random
    connection = Connection("tcp4", batches)
    _, writer = await asyncio.open_connection(sock=connection.sock.dup())
    sent = 0
    while sent < count and connection.complete:
        batch, content = batches.any()
        connection.give(content)
        sent += 1
        turns = Turns(connection)
        task = asyncio.create_task(send_to_stream(writer, batch))
        while not task.done():
            if not turns.next():
                task.cancel()
            await asyncio.sleep(0)
        if task.cancelled():
            connection.complete = False
        elif error := task.exception():
            connection.fail(error)
        batch.reset()
        if random.random() < 1 / BATCHES_OF_A_CONNECTION:
            break
    await close_stream(writer, connection)
    connection.close()
    return sent


async def close_stream(writer: asyncio.StreamWriter, connection: Connection) -> None:
    """Close a stream when it has sent all that it holds, or at once if that is impossible."""
    turns = Turns(connection)
    if connection.complete:
        writer.close()
    else:
        writer.transport.abort()
    closing = asyncio.ensure_future(writer.wait_closed())
    while not closing.done():
        if not turns.next():
            writer.transport.abort()
        await asyncio.sleep(0)
    if closing.exception():
        assert connection.lost
    connection.complete = connection.complete and not connection.lost


async def use_trio(batches: Batches, contexts: Contexts, count: int) -> int:
    """Send batches by send_batch, and cancel some calls, after which another one goes on."""
    random = batches.random
    connection = Connection("tcp4", batches)
    sent = 0
    while sent < count and connection.complete:
        batch, content = batches.any()
        connection.give(content)
        sent += 1
        turns = Turns(connection)
        while True:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(let_peer_run, connection, turns, scope)
                    try:
                        await send_batch(connection.sock, batch)
                    except OSError as exc:
                        connection.fail(exc)
                    nursery.cancel_scope.cancel()
            if not scope.cancelled_caught or connection.lost:
                break
        if batch:
            connection.complete = False
        batch.reset()
        if random.random() < 1 / BATCHES_OF_A_CONNECTION:
            break
    connection.close()
    return sent


async def let_peer_run(connection: Connection, turns: Turns, scope: trio.CancelScope) -> None:
    """Let the peer run until this task or the send is cancelled."""
    while turns.next() and connection.random.random() > 0.01:
        await trio.lowlevel.checkpoint()
    scope.cancel()


USES: dict[str, tuple[str, Any]] = {
    "BatchWriter, asyncio": ("asyncio", use_writer),
    "BatchWriter, uvloop": ("uvloop", use_writer),
    "BatchWriter, TLS, asyncio": ("asyncio", partial(use_writer, tls=True)),
    "send_to_stream, asyncio": ("asyncio", use_stream),
    "send_to_stream, uvloop": ("uvloop", use_stream),
    "send_batch, trio": ("trio", use_trio),
}


def run_tasks(name: str, batches: Batches, contexts: Contexts, count: int) -> None:
    """Send this number of batches, in a loop of its own."""
    loop, use = USES[name]

    async def main() -> None:
        left = count
        while left:
            left -= await use(batches, contexts, left)

    if loop == "trio":
        trio.run(main)
        # trio keeps the threads that have read files, in case that there is more to do.
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join(PATIENCE)
    else:
        complaints: list[Any] = []
        with asyncio.Runner(loop_factory=lambda: new_loop(loop)) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
            runner.run(main())
        assert not complaints

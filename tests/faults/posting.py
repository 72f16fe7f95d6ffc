"""Writes that a scenario posts to a BatchWriter, and the facts true of them at the end.

- Every operation has ended: as DONE, unless the fault is one that ends it; as ERROR, with the error
  of the fault; or as ABORTED, after one that ended part-way.
- What arrived is the first `bytes_transferred` bytes of each operation, in the order of posting.
- `operation.batch` holds exactly the rest: when the rests are posted again, they arrive.
- Each hook has run once.
- The loop's exception handler was not called.

A fault of a call that the loop makes for itself, such as epoll_wait(2), ends run_until_complete().
The loop is run again then, and no byte may be lost or repeated.

If the handler of a signal raises, the writer is closed, and the number of bytes sent may be
unknown. What arrived is a prefix of the content then.
"""

from __future__ import annotations

import asyncio
import gc
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from iobatch.aio import BatchWriter, WriteOperation, WriteStatus
from tests.faults.delivery import READS, SENDS, Delivery, is_permanent
from tests.faults.harness import Interrupted
from tests.support.loops import new_loop
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Coroutine

    from tests.faults.harness import Run

# A failure of one of these ends an operation, unless EXHAUSTED excepts it.
WATCH_CALLS = frozenset(("dup", "epoll_ctl", "ioctl"))
# Without a descriptor for a duplicate the writer tries again later.
EXHAUSTED = ("dup", "EMFILE")
# It tells the writer that its socket was closed.
CLOSED = ("fstat", "EBADF")


def run_loop(run: Run, name: str, main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on a new loop of this name; run the loop again if its own call fails."""
    complaints: list[dict[str, Any]] = []
    loop = new_loop(name)
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        task = loop.create_task(main)
        while not task.done():
            try:
                loop.run_until_complete(task)
            except OSError as exc:
                if task.done() or not run.is_fault(exc):
                    raise
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
    complaints = [each for each in complaints if not run.is_fault(each.get("exception"))]
    assert not complaints, f"the loop's exception handler was called: {complaints}"


class Post(NamedTuple):
    """A posted write and its content.

    Attributes:
        delivery: the content.
        operation: the write; None: posting it has raised the exception of a handler, or the one
            before has closed the writer.

    """

    delivery: Delivery
    operation: Any


def is_part_way(post: Post) -> bool:
    """Return whether some bytes of a write were sent, and some were not."""
    return 0 < post.operation.bytes_transferred < len(post.delivery.content)


class Posting:
    """A writer on one end of a pair of sockets, and all that is posted."""

    def __init__(
        self,
        run: Run,
        sock: socket.socket,
        peer: socket.socket,
        *,
        fatal: frozenset[str] = SENDS,
        reads: frozenset[str] = READS,
        **options: Any,
    ) -> None:
        """Make the writer, on the running loop, and have the loop read what arrives.

        Args:
            run: the run.
            sock: where the writer sends to.
            peer: where that arrives.
            fatal: the calls whose failure must end an operation.
            reads: other calls whose failure may end one.
            options: of the writer.

        """
        self.run = run
        self.fatal = fatal
        self.reads = reads
        self.sock = sock
        self.peer = peer
        self.received = bytearray()
        self.posts: list[Post] = []
        sock.setblocking(False)
        peer.setblocking(False)
        self.writer = BatchWriter(sock, **options)
        asyncio.get_running_loop().add_reader(peer, self.read)

    @property
    def closed(self) -> bool:
        """Whether the fault closes the writer."""
        fault = self.run.fault
        return fault is not None and (fault.signal or (fault.call, fault.kind) == CLOSED)

    def read(self) -> None:
        """Read what has arrived."""
        with suppress(BlockingIOError):
            while piece := os.read(self.peer.fileno(), 1 << 16):
                self.received += piece

    def post(self, delivery: Delivery, method: str = "write", **options: Any) -> Any:
        """Post a batch."""
        return self.record(
            delivery, lambda: getattr(self.writer, method)(delivery.batch, **options)
        )

    def record(self, delivery: Delivery, post: Callable[[], WriteOperation]) -> Any:
        """Record the operation that a call of `post` returns for this content."""
        operation = None
        try:
            with self.run.counting():
                operation = post()
        except Interrupted:
            assert self.run.is_fault(Interrupted())
        except OSError:
            if not self.closed:
                raise
        self.posts.append(Post(delivery, operation))
        return operation

    async def wait(self) -> None:
        """Wait until each operation has ended."""
        with self.run.counting():
            async with asyncio.timeout(PATIENCE):
                for _, operation in self.posts:
                    if operation is not None:
                        await wait_for(operation)
        await asyncio.sleep(0)  # for callbacks

    async def finish(self, *early: WriteStatus) -> None:
        """Check everything, post what was not sent again, and check that it arrives.

        Args:
            early: how the first operations end if the fault does not matter; the others as DONE.

        """
        if self.closed:
            await self._finish_closed()
            return
        self.check_statuses(early)
        expected = bytearray()
        for delivery, operation in self.posts:
            sent = operation.bytes_transferred
            expected += delivery.content[:sent]
            assert operation.batch.bytesleft == len(delivery.content) - sent
        # Nothing may follow the one that ended part-way, except its rest.
        for delivery, operation in sorted(self.posts, key=is_part_way, reverse=True):
            if operation.batch:
                expected += delivery.content[operation.bytes_transferred :]
                await self.writer.write(operation.batch)
        await self.end()
        assert self.received == expected, difference(self.received, expected)
        self.release()

    async def _finish_closed(self) -> None:
        """Check that what was counted has arrived, and after it a part of one operation."""
        await self.end()
        counted, rests = bytearray(), []
        for index, (delivery, operation) in enumerate(self.posts):
            if operation is not None:
                assert operation.done()
                done = operation.bytes_transferred
            elif any(post.operation is not None for post in self.posts[index:]):
                # The writer is open: the handler has run after the post, whose result is lost.
                done = len(delivery.content) - delivery.batch.bytesleft
            else:
                done = delivery.batch.bytessent
            counted += delivery.content[:done]
            rests.append(bytes(delivery.content[done:]))
        assert self.received.startswith(counted), difference(self.received, counted)
        rest = self.received[len(counted) :]
        assert any(each.startswith(rest) for each in rests), f"{len(rest)} bytes follow"
        self.release()

    async def end(self) -> None:
        """Close the writer and the socket, and read up to the end of stream."""
        self.writer.close()
        asyncio.get_running_loop().remove_reader(self.peer)
        self.sock.close()
        self.peer.setblocking(True)
        self.read()

    def release(self) -> None:
        """Drop what is left, and check that the hooks have run once."""
        for delivery, operation in self.posts:
            delivery.batch.reset()
            if operation is not None:
                operation.batch.reset()
        deliveries = [delivery for delivery, _ in self.posts]
        self.posts.clear()
        # If the operation was not returned, only the writer refers to its batch.
        del self.writer, operation
        gc.collect()
        for delivery in deliveries:
            delivery.check_released()

    def check_statuses(self, early: tuple[WriteStatus, ...]) -> None:
        """Check how each operation has ended."""
        fault = self.run.fault
        part_way = False
        for index, post in enumerate(self.posts):
            operation = post.operation
            status, error = operation.status, operation.error
            clean = early[index] if index < len(early) else WriteStatus.DONE
            allowed = {clean, WriteStatus.DONE} if fault else {clean}
            if part_way:
                allowed = allowed - {WriteStatus.DONE} | {WriteStatus.ABORTED}
            if status is WriteStatus.ERROR:
                assert not part_way
                assert self.may_fail(), f"operation {index}: {error!r}"
                assert self.run.is_fault(error), f"operation {index}: {error!r}"
            else:
                assert status in allowed, f"operation {index}: {operation!r}"
            part_way |= status is not WriteStatus.DONE and is_part_way(post)
        ended = [operation.status for _, operation in self.posts]
        if fault is not None and fault.call in self.fatal and is_permanent(fault):
            assert WriteStatus.ERROR in ended, f"no operation has failed: {ended}"

    def may_fail(self) -> bool:
        """Return whether the fault may end an operation."""
        fault = self.run.fault
        if fault is None:
            return False
        if fault.call in WATCH_CALLS:
            return (fault.call, fault.kind) != EXHAUSTED
        return is_permanent(fault) and fault.call in SENDS | self.reads


async def wait_for(awaitable: Awaitable[Any]) -> None:
    """Wait for the end of an operation, whatever it is."""
    with suppress(OSError, asyncio.CancelledError):
        await awaitable


def difference(received: bytes | bytearray, expected: bytes | bytearray) -> str:
    """Return where two byte strings begin to differ."""
    pairs = enumerate(zip(received, expected, strict=False))
    common = next((i for i, (one, other) in pairs if one != other), len(received))
    return f"{len(received)} bytes arrived in place of {len(expected)}; {common} of them are right"

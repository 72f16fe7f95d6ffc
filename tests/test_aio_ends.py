"""How posted writes end before they are done: cancelled, timed out, aborted, failed, closed."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch, TruncatedFileError
from iobatch._batch import core_of
from iobatch.aio import BatchWriter, CancellationType, WriteOperation, WriteStatus
from tests.helpers import PATIENCE, again, clog, data, stream_pair
from tests.loops import (
    LOOPS,
    FakeTime,
    batch_of,
    both_loops,
    full_writer,
    is_watched,
    new_loop,
    read,
    scripted_writer,
    turns,
    writer_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("no_leaks")

MIB = 1024 * 1024
TERMINAL = CancellationType.TERMINAL
PARTIAL = CancellationType.PARTIAL
TOTAL = CancellationType.TOTAL
PENDING, DONE, CANCELLED = WriteStatus.PENDING, WriteStatus.DONE, WriteStatus.CANCELLED
ABORTED, TIMEOUT, ERROR = WriteStatus.ABORTED, WriteStatus.TIMEOUT, WriteStatus.ERROR


def statuses(operations: list[WriteOperation]) -> list[WriteStatus]:
    return [operation.status for operation in operations]


# Cancellation


@both_loops
async def test_cancel_before_the_first_byte() -> None:
    """An operation of which nothing was sent just leaves the queue, whatever the kind."""
    with full_writer() as (writer, peer):
        operations = [writer.write(batch_of(b"%d" % number)) for number in range(5)]
        assert operations[0].cancel(TOTAL)
        assert operations[2].cancel(PARTIAL)
        assert operations[4].cancel()
        assert statuses(operations) == [CANCELLED, PENDING, CANCELLED, PENDING, CANCELLED]
        assert await peer.read(2) == b"13"
        assert [operation.batch.bytesleft for operation in operations] == [1, 0, 1, 0, 1]
        assert (operations[0].bytes_transferred, operations[0].error) == (0, None)


@both_loops
async def test_cancel_partial() -> None:
    """PARTIAL stops; the count is exact, the rest is in the batch, and a new write resumes."""
    content = data(MIB)
    with writer_pair(buffers=4096) as (writer, peer):
        operation = writer.write(batch_of(content))
        start = await read(peer, 10_000)
        await turns()
        assert operation.cancel(PARTIAL)
        assert operation.status is CANCELLED
        assert not is_watched(writer)
        sent = operation.bytes_transferred
        assert 10_000 < sent < MIB
        assert operation.batch.bytesleft == MIB - sent
        resumed = writer.write(operation.batch)
        assert start + await read(peer, MIB - 10_000) == content
        assert await resumed == MIB - sent
        assert operation.bytes_transferred == sent


@both_loops
async def test_cancel_total() -> None:
    """TOTAL is refused when a byte was sent, and the operation runs on."""
    with scripted_writer(2, again()) as (writer, sock):
        operation = writer.write(batch_of(b"abcdef"))
        assert operation.bytes_transferred == 2
        assert not operation.cancel(TOTAL)
        assert operation.status is PENDING
        assert await operation == 6
        assert sock.taken == b"abcdef"


@both_loops
async def test_cancel_terminal() -> None:
    """TERMINAL stops, aborts all else, and the writer refuses further writes."""
    with scripted_writer(2, again()) as (writer, sock):
        operations = [writer.write(batch_of(b"abcdef")) for _ in range(3)]
        assert operations[1].cancel(TERMINAL)
        assert statuses(operations) == [ABORTED, CANCELLED, ABORTED]
        assert [operation.bytes_transferred for operation in operations] == [2, 0, 0]
        batch = batch_of(b"more")
        with pytest.raises(OSError, match="closed") as raised:
            writer.write(batch)
        assert raised.value.errno == errno.ECANCELED
        assert batch.bytesleft == 4
        await turns()
        assert sock.taken == b"ab"


@both_loops
async def test_cancel_what_has_ended() -> None:
    """What has ended can't be cancelled, and keeps its status and count."""
    with writer_pair() as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        for kind in CancellationType:
            assert not operation.cancel(kind)
        assert (operation.status, operation.bytes_transferred) == (DONE, 3)
        assert writer.write(batch_of(b"x")).done()


@both_loops
async def test_awaiting_what_was_cancelled() -> None:
    """Awaiting a cancelled operation raises CancelledError, as a cancelled future does."""
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"abc"))

        async def wait() -> int:
            return await operation

        task = asyncio.create_task(wait())
        await turns()
        operation.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        with pytest.raises(asyncio.CancelledError):
            await operation


@both_loops
async def test_an_unknown_kind() -> None:
    """What is no CancellationType raises, and changes nothing."""
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        wrong: Any = "partly"
        for cancel in (operation.cancel, writer.cancel):
            with pytest.raises(ValueError, match="partly"):
                cancel(wrong)
        assert operation.status is PENDING


@both_loops
async def test_cancel_the_awaiting_task() -> None:
    """Cancelling the task that awaits is PARTIAL: the count is exact, and the rest resumes."""
    content = data(MIB)
    with writer_pair(buffers=4096) as (writer, peer):
        operations: list[WriteOperation] = []

        async def write() -> None:
            operations.append(writer.write(batch_of(content)))
            await operations[0]

        task = asyncio.create_task(write())
        start = await read(peer, 10_000)
        task.cancel("with a message")
        await asyncio.wait([task])
        assert task.cancelled()
        [operation] = operations
        assert operation.status is CANCELLED
        sent = operation.bytes_transferred
        assert sent + operation.batch.bytesleft == MIB
        resumed = writer.write(operation.batch)
        assert start + await read(peer, MIB - 10_000) == content
        assert await resumed == MIB - sent


@both_loops
async def test_a_timeout_of_asyncio() -> None:
    """asyncio.timeout() cancels what is awaited within it."""
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await operation
        assert operation.status is CANCELLED
        assert writer.write(operation.batch).status is PENDING
        assert await peer.read(3) == b"abc"


@both_loops
async def test_cancel_one_of_several_tasks() -> None:
    """If one of several awaiting tasks is cancelled, the others learn that the operation was."""
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"abc"))

        async def wait() -> int:
            return await operation

        tasks = [asyncio.create_task(wait()) for _ in range(3)]
        await turns()
        tasks[1].cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        assert operation.status is CANCELLED


@both_loops
async def test_cancel_a_task_too_late() -> None:
    """A task that is cancelled when its operation was just done changes nothing about that."""
    with scripted_writer(again()) as (writer, sock):
        operation = writer.write(batch_of(b"abc"))
        again_and_done = [False]

        async def wait() -> int:
            return await operation

        task = asyncio.create_task(wait())
        operation.add_done_callback(lambda _: task.cancel())
        await asyncio.wait([task])
        assert (operation.status, operation.bytes_transferred) == (DONE, 3)
        assert sock.taken == b"abc"
        del again_and_done


@both_loops
async def test_cancel_a_task_and_then_done() -> None:
    """A future that its task has cancelled already is left alone when the operation ends."""
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))

        async def wait() -> int:
            return await operation

        task = asyncio.create_task(wait())
        await turns()
        task.cancel()
        writer.close()
        await asyncio.wait([task])
        assert task.cancelled()
        assert operation.status is ABORTED
        await peer.clear()


@both_loops
async def test_writer_cancel() -> None:
    """The writer cancels all that is pending, in its order, and can be used again."""
    with scripted_writer(2, again()) as (writer, sock):
        ended: list[int] = []
        operations = [
            writer.write(
                batch_of(b"abc"),
                on_error=lambda operation: ended.append(operation.user_info),
                user_info=number,
            )
            for number in range(3)
        ]
        assert writer.cancel()
        assert statuses(operations) == [CANCELLED] * 3
        assert [operation.bytes_transferred for operation in operations] == [2, 0, 0]
        assert writer.pending == 0
        await turns()
        assert ended == [0, 1, 2]
        assert not writer.cancel()
        assert await writer.write(batch_of(b"x")) == 1
        assert sock.taken == b"abx"


@both_loops
async def test_writer_cancel_total() -> None:
    """TOTAL spares the operation of which something was sent, and says so."""
    with scripted_writer(2, again()) as (writer, sock):
        operations = [writer.write(batch_of(b"abc")) for _ in range(3)]
        assert not writer.cancel(TOTAL)
        assert statuses(operations) == [PENDING, CANCELLED, CANCELLED]
        assert await operations[0] == 3
        assert sock.taken == b"abc"
    with full_writer() as (writer, _):
        operations = [writer.write(batch_of(b"abc")) for _ in range(3)]
        assert writer.cancel(TOTAL)
        assert statuses(operations) == [CANCELLED] * 3


@both_loops
async def test_writer_cancel_terminal() -> None:
    """TERMINAL cancels all, and closes the writer."""
    with full_writer() as (writer, _):
        operations = [writer.write(batch_of(b"abc")) for _ in range(3)]
        assert writer.cancel(TERMINAL)
        assert statuses(operations) == [CANCELLED] * 3
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"x"))
        assert not writer.cancel()
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"x"))


# What ends in its midst


@both_loops
@pytest.mark.parametrize("how", ["cancel", "timeout", "error"])
async def test_nothing_follows_a_truncated_body(
    how: str, make_file: Callable[[bytes], int]
) -> None:
    """What ends between its first and last byte aborts what is behind it, unsent."""
    fd = make_file(bytes(100_000))
    with scripted_writer(2, again(), again(), again()) as (writer, sock):
        batch = batch_of(b"abcdef")
        batch.addfile(fd)
        first = writer.write(batch, timeout=PATIENCE)
        behind = [writer.write(batch_of(b"behind")) for _ in range(3)]
        assert first.bytes_transferred == 2
        if how == "cancel":
            first.cancel()
            assert first.status is CANCELLED
        elif how == "timeout":
            writer._sender.expire(first._posted)
            assert first.status is TIMEOUT
        else:
            os.truncate(fd, 0)
            with pytest.raises(TruncatedFileError):
                await first
            assert first.status is ERROR
        assert statuses(behind) == [ABORTED] * 3
        for operation in behind:
            assert (operation.bytes_transferred, operation.batch.bytesleft) == (0, 6)
            with pytest.raises(OSError, match="cancel") as raised:
                await operation
            assert raised.value.errno == errno.ECANCELED
        assert b"behind" not in sock.taken
        assert await writer.write(behind[0].batch) == 6  # if the caller wants it so


@both_loops
async def test_an_error_before_the_first_byte() -> None:
    """A file that can't be read from its start on ends its operation, and no other."""
    with full_writer() as (writer, peer):
        batch = IOBatch()
        batch.addfile(os.open(os.devnull, os.O_RDONLY), 0, 10)
        fd = core_of(batch).head[0]  # type: ignore[index]
        failing = writer.write(batch)
        behind = writer.write(batch_of(b"behind"))
        assert await peer.read(6) == b"behind"
        assert await behind == 6
        with pytest.raises(TruncatedFileError):
            await failing
        os.close(fd)


@both_loops
async def test_awaiting_what_has_failed_again() -> None:
    """An error that is awaited again and again has the traceback of the last time only."""

    def broken(_sock: object, _view: memoryview) -> int:
        raise ZeroDivisionError

    for options in {}, {"through": broken}:
        with writer_pair(**options) as (writer, peer):
            peer.close()
            operation = writer.write(batch_of(b"abc"))
            depths = []
            for _ in range(3):
                with pytest.raises((BrokenPipeError, ZeroDivisionError)) as raised:
                    await operation
                depths.append(len(raised.traceback))
            assert len(set(depths)) == 1
            # Where a callback's error came from is still to be seen.
            assert (raised.traceback[-1].name == "broken") == bool(options)


# Timeouts


@both_loops
async def test_timeout() -> None:
    """An operation that isn't done in time ends, with the bytes written so far."""
    with writer_pair(buffers=4096) as (writer, _):
        operation = writer.write(batch_of(bytes(MIB)), timeout=0.01)
        with pytest.raises(TimeoutError, match=f"of {MIB} bytes") as raised:
            await operation
        assert raised.value.errno is None  # ETIMEDOUT is the connection's end
        assert operation.status is TIMEOUT
        assert operation.bytes_transferred > 0
        assert operation.bytes_transferred + operation.batch.bytesleft == MIB
        assert not is_watched(writer)


@both_loops
async def test_timeout_before_the_first_byte() -> None:
    """One of which nothing was sent leaves the queue when its time is over."""
    with full_writer() as (writer, peer):
        first = writer.write(batch_of(b"first"))
        second = writer.write(batch_of(b"second"), timeout=0.01)
        third = writer.write(batch_of(b"third"))
        with pytest.raises(TimeoutError):
            await second
        assert await peer.read(10) == b"firstthird"
        assert [await first, await third] == [5, 5]


@both_loops
async def test_timeout_of_the_writer() -> None:
    """The writer's timeout is that of operations that are given none; None is no timeout."""
    with full_writer(timeout=0.01) as (writer, peer):
        patient = writer.write(batch_of(b"abc"), timeout=None)
        hasty = writer.write(batch_of(b"def"))
        with pytest.raises(TimeoutError):
            await hasty
        assert patient.status is PENDING
        assert await peer.read(3) == b"abc"
        assert await patient == 3


@both_loops
async def test_timeout_of_a_plain_write() -> None:
    """A write that was begun at once has the writer's timeouts too."""
    for options in {"timeout": 0.01}, {"stall_timeout": 0.01}:
        with writer_pair(buffers=4096, **options) as (writer, _):
            operation = writer.write(batch_of(bytes(MIB)))
            with pytest.raises(TimeoutError):
                await operation
            assert operation.bytes_transferred > 0


@both_loops
async def test_no_time_at_all() -> None:
    """With a timeout of 0, what does not go out at once ends; its callbacks run from the loop."""
    with writer_pair(buffers=4096) as (writer, _):
        ended: list[WriteOperation] = []
        assert writer.write(batch_of(b"abc"), timeout=0).status is DONE
        operation = writer.write(batch_of(bytes(MIB)), timeout=0, on_complete=ended.append)
        assert (operation.status, ended) == (TIMEOUT, [])
        await turns()
        assert ended == [operation]


@both_loops
async def test_a_hook_that_posts_without_time() -> None:
    """What a hook posts with a timeout of 0 ends too, while its writer is sending."""
    with writer_pair() as (writer, _):
        posted: list[WriteOperation] = []
        batch = IOBatch()
        batch.addbuf(
            b"abc", on_release=lambda: posted.append(writer.write(batch_of(b"x"), timeout=0))
        )
        assert writer.write(batch).status is DONE
        assert posted[0].status is TIMEOUT


@both_loops
async def test_a_timer_goes_with_its_operation() -> None:
    """What was done in time leaves no timer; what was done at once never had one."""
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"), timeout=PATIENCE)
        timer = operation._posted.timer
        assert timer is not None
        assert timer._handle is not None
        await peer.read(3)
        await operation
        assert timer._handle.cancelled()
        assert operation._posted.timer is None
        assert writer.write(batch_of(b"abc"), timeout=PATIENCE)._posted.timer is None


@both_loops
async def test_stall_timeout() -> None:
    """An operation ends when nothing is sent for so long."""
    with full_writer(stall_timeout=0.01) as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        behind = writer.write(batch_of(b"def"), stall_timeout=None)
        with pytest.raises(TimeoutError):
            await operation
        assert (operation.bytes_transferred, behind.status) == (0, PENDING)


@both_loops
async def test_slow_is_not_stalled() -> None:
    """As long as bytes go out, however slowly, no stall_timeout ends anything."""
    with writer_pair(buffers=4096) as (writer, peer):
        now = FakeTime(asyncio.get_running_loop())
        writer._sender.loop = now  # type: ignore[assignment]
        operation = writer.write(batch_of(bytes(MIB)), stall_timeout=10)
        behind = writer.write(batch_of(b"behind"), stall_timeout=10)
        for _ in range(20):
            now.go_on(9)
            sent = operation.bytes_transferred
            while operation.bytes_transferred == sent:
                with suppress(BlockingIOError):
                    peer.recv(1 << 16)
                await asyncio.sleep(0)
        assert statuses([operation, behind]) == [PENDING, PENDING]
        assert len(now.timers) == 2  # one for each, whatever went on meanwhile
        now.go_on(9.9)
        assert operation.status is PENDING
        now.go_on(0.2)
        assert statuses([operation, behind]) == [TIMEOUT, ABORTED]


@both_loops
async def test_stalled_counts_from_posting() -> None:
    """An operation that is posted long after the last progress has all of its time."""
    with full_writer() as (writer, _):
        now = FakeTime(asyncio.get_running_loop())
        writer._sender.loop = now  # type: ignore[assignment]
        old = writer.write(batch_of(b"old"), stall_timeout=10)
        now.go_on(6)
        new = writer.write(batch_of(b"new"), stall_timeout=10, timeout=30)
        now.go_on(6)
        assert statuses([old, new]) == [TIMEOUT, PENDING]
        now.go_on(6)
        assert statuses([old, new]) == [TIMEOUT, TIMEOUT]


@both_loops
async def test_a_stall_is_looked_at_before_it_counts() -> None:
    """A peer that reads is not stalled, though the loop has not said that there is room."""
    with full_writer() as (writer, peer):
        now = FakeTime(asyncio.get_running_loop())
        writer._sender.loop = now  # type: ignore[assignment]
        operation = writer.write(batch_of(b"some"), stall_timeout=10)
        while True:  # the peer reads, and the loop gets no turn in which to notice
            with suppress(BlockingIOError):
                peer.sock.recv(1 << 20)
                continue
            break
        now.go_on(10.1)
        assert operation.status is DONE


@both_loops
async def test_an_idle_writer_is_not_probed() -> None:
    """A stall timeout that is over at once finds what the write itself found."""
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"some"), stall_timeout=0)
        assert operation.status is TIMEOUT


@both_loops
async def test_a_socket_that_can_not_be_watched() -> None:
    """Where the loop refuses the socket, what was begun fails, and what is behind it is aborted."""

    class Blind(FakeTime):
        def add_writer(self, *_args: object) -> None:
            raise OSError(errno.EBADF, "not to be watched")

    posted: list[WriteOperation] = []

    def callback(_sock: object, _view: memoryview) -> int:
        if posted:
            return -1
        posted.append(writer.write(batch_of(b"behind")))
        return 1

    with writer_pair(through=callback) as (writer, _):
        writer._sender._watch.loop = Blind(asyncio.get_running_loop())  # type: ignore[assignment]
        operation = writer.write(batch_of(b"abc"))
        assert statuses([operation, *posted]) == [ERROR, ABORTED]
        assert operation.bytes_transferred == 1


# The end of a writer


@both_loops
async def test_close() -> None:
    """close() aborts what is pending, refuses further writes, and leaves the socket open."""
    with scripted_writer(2, again()) as (writer, sock):
        operations = [writer.write(batch_of(b"abc")) for _ in range(3)]
        writer.close()
        writer.close()
        assert statuses(operations) == [ABORTED] * 3
        assert [operation.batch.bytesleft for operation in operations] == [1, 3, 3]
        for post in (
            lambda: writer.write(batch_of(b"x")),
            lambda: writer.write_some(batch_of(b"x")),
            lambda: writer.write_buffer(b"x", print),
            writer.finish,
        ):
            with pytest.raises(OSError, match="closed") as raised:
                post()
            assert raised.value.errno == errno.ECANCELED
        assert sock.fileno() >= 0
        assert not is_watched(writer)
        await writer.drain()


@both_loops
async def test_close_wakes_who_drains() -> None:
    """A task that waits in drain goes on when the writer is closed."""
    with full_writer(high_water=1) as (writer, _):
        writer.write(batch_of(b"abc"))
        task = asyncio.create_task(writer.drain())
        await turns()
        assert not task.done()
        writer.close()
        await task


@both_loops
async def test_close_behind_the_socket() -> None:
    """Closing the writer after its socket, against the rule, does no harm."""
    for reads in False, True:
        with full_writer() as (writer, _):
            loop = asyncio.get_running_loop()
            fd = writer.sock.fileno()
            if reads:
                loop.add_reader(fd, print)
            operation = writer.write(batch_of(b"abc"))
            twin = os.dup(fd)
            writer.sock.close()
            writer.close()
            assert operation.status is ABORTED
            os.dup2(twin, fd)
            loop.remove_reader(fd)
            os.close(twin)
            os.close(fd)


@pytest.mark.parametrize("name", LOOPS)
def test_close_behind_the_loop(name: str) -> None:
    """A writer may be closed after its loop: there is nobody to be told, and nothing raises."""

    async def post(writer: BatchWriter) -> WriteOperation:
        writer.write(batch_of(b"abc"), on_complete=print, timeout=PATIENCE)
        operation = writer.write(batch_of(b"def"))
        waiting.extend((asyncio.ensure_future(operation), asyncio.ensure_future(writer.drain())))
        await turns()
        return operation

    async def make(sock: socket.socket) -> BatchWriter:
        return BatchWriter(sock, high_water=1)

    waiting: list[asyncio.Future[Any]] = []
    with stream_pair() as (sock, _):
        clog(sock)
        loop = new_loop(name)
        writer = loop.run_until_complete(make(sock))
        operation = loop.run_until_complete(post(writer))
        loop.close()
        writer.close()
        writer.close()
        assert operation.status is ABORTED
        for future in waiting:
            future._log_destroy_pending = False  # type: ignore[attr-defined]
            future.get_coro().close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", LOOPS)
def test_the_credit_of_a_loop_that_is_closed(name: str) -> None:
    """A loop that was closed renews nothing; what has to wait for it is an error, or aborted."""

    async def make(sock: socket.socket) -> BatchWriter:
        return BatchWriter(sock, limit=1000)

    async def post(writer: BatchWriter) -> WriteOperation:
        return writer.write(batch_of(bytes(5000)))

    with stream_pair() as (sock, peer):
        sock.setblocking(False)
        loop = new_loop(name)
        waiting, writer = (loop.run_until_complete(make(sock)) for _ in range(2))
        operation = loop.run_until_complete(post(waiting))
        loop.close()
        assert writer.write(batch_of(bytes(700))).status is DONE
        assert writer.write(batch_of(bytes(700))).status is ERROR
        waiting.close()
        writer.close()
        assert operation.status is ABORTED
        assert len(peer.recv(9999)) == operation.bytes_transferred + 700 + 300


@both_loops
async def test_a_closed_socket() -> None:
    """Writing to a socket that was closed is an error of the operation: WSAENOTSOCK is EBADF."""
    with writer_pair() as (writer, _):
        writer.sock.close()
        assert await failure(writer.sock) == errno.EBADF


@both_loops
async def test_async_with() -> None:
    """At its end `async with` waits until nothing is pending, then closes."""
    with writer_pair(buffers=4096) as (inner, peer):
        content = data(200_000)
        async with BatchWriter(inner.sock) as writer:
            operation = writer.write(batch_of(content))
            last = writer.write(IOBatch())
            reading = asyncio.create_task(read(peer, len(content)))
        assert (operation.status, last.status) == (DONE, DONE)
        assert await reading == content
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"x"))


@both_loops
async def test_async_with_an_exception() -> None:
    """With an exception it does not wait: what is pending is aborted."""
    with full_writer() as (inner, _):
        operations: list[WriteOperation] = []

        async def fail() -> None:
            async with BatchWriter(inner.sock) as writer:
                operations.append(writer.write(batch_of(b"abc")))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert statuses(operations) == [ABORTED]


@both_loops
async def test_async_with_an_error_unheard() -> None:
    """It raises an error that nobody was told of; cancelled while it waits, it closes at once."""
    with writer_pair() as (inner, peer):
        peer.close()
        with pytest.raises(BrokenPipeError):
            async with BatchWriter(inner.sock) as writer:
                writer.write(batch_of(b"abc"))
    with full_writer() as (inner, _):

        async def leave() -> None:
            async with BatchWriter(inner.sock) as writer:
                operations.append(writer.write(batch_of(b"abc")))

        operations: list[WriteOperation] = []
        task = asyncio.create_task(leave())
        await turns()
        task.cancel()
        await asyncio.wait([task])
        assert statuses(operations) == [ABORTED]


# WSASend's errors, as far as Linux can produce them: see the table in WriteOperation(3)


def udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


async def failure(sock: socket.socket, batch: IOBatch | None = None, **options: Any) -> int | None:
    """Return the errno with which a write ends."""
    writer = BatchWriter(sock)
    operation = writer.write(batch or batch_of(b"abc"), **options)
    with pytest.raises(OSError) as raised:  # which one is for the caller to look at
        await operation
    assert (operation.status, operation.error) == (ERROR, raised.value)
    operation.batch.reset()
    return raised.value.errno


@both_loops
async def test_connection_reset() -> None:
    """WSAECONNRESET: the other side has reset the connection."""
    with stream_pair("tcp4") as (sock, peer):
        sock.setblocking(False)
        sock.send(b"never read")
        peer.close()
        assert await failure(sock) == errno.ECONNRESET


@both_loops
async def test_port_unreachable() -> None:
    """WSAECONNRESET, of a datagram socket: nobody listens at the port that was sent to."""
    with udp() as sock, udp() as gone:
        sock.connect(gone.getsockname())
        gone.close()
        sock.send(b"x")
        assert await failure(sock) == errno.ECONNREFUSED


@both_loops
async def test_bad_address(make_file: Callable[[bytes], int]) -> None:
    """WSAEFAULT: the memory is gone, as that of a mapped file that was truncated."""
    fd = make_file(bytes(mmap.PAGESIZE))
    with stream_pair() as (sock, _), mmap.mmap(fd, mmap.PAGESIZE) as mapped:
        sock.setblocking(False)
        os.truncate(fd, 0)
        batch = IOBatch()
        batch.addbuf(mapped)
        assert await failure(sock, batch) == errno.EFAULT


@both_loops
async def test_no_destination() -> None:
    """WSAEINVAL, of a datagram socket that was not connected: EDESTADDRREQ."""
    with udp() as sock:
        assert await failure(sock) == errno.EDESTADDRREQ


@both_loops
async def test_not_connected() -> None:
    """WSAENOTCONN: EPIPE for TCP, ENOTCONN for local sockets."""
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as local:
        tcp.setblocking(False)
        local.setblocking(False)
        assert await failure(tcp) == errno.EPIPE
        assert await failure(local) == errno.ENOTCONN


@both_loops
async def test_not_a_socket() -> None:
    """WSAENOTSOCK: the descriptor has become something else."""
    with socket.socket() as sock, open(os.devnull, "wb") as null:  # noqa: ASYNC230, PTH123
        sock.setblocking(False)
        os.dup2(null.fileno(), sock.fileno())
        assert await failure(sock) == errno.ENOTSOCK


@both_loops
async def test_not_supported() -> None:
    """WSAEOPNOTSUPP: MSG_OOB on a datagram socket."""
    with udp() as sock, udp() as other:
        sock.connect(other.getsockname())
        assert await failure(sock, flags=socket.MSG_OOB) == errno.EOPNOTSUPP


@both_loops
async def test_shut_down() -> None:
    """WSAESHUTDOWN: EPIPE."""
    with writer_pair() as (writer, _):
        writer.sock.shutdown(socket.SHUT_WR)
        assert await failure(writer.sock) == errno.EPIPE


@both_loops
@pytest.mark.parametrize(
    "number",
    [
        errno.EACCES,
        errno.ECONNABORTED,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENOBUFS,
        errno.EHOSTUNREACH,
        errno.ETIMEDOUT,
    ],
    ids=errno.errorcode.get,
)
async def test_what_takes_a_network(number: int) -> None:
    """Any other error of the kernel ends the operation as it is, ETIMEDOUT included."""
    with scripted_writer(again(), OSError(number, os.strerror(number))) as (writer, _):
        assert await failure(writer.sock) == number

"""BatchWriter: what is posted, when it goes out, in which order, and how its end is told."""

from __future__ import annotations

import array
import asyncio
import contextvars
import errno
import gc
import select
import socket
import ssl
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import COPY_LIMIT, IOB_AGAIN, IOBatch, iob_send, iob_write
from iobatch.aio import BatchWriter, WriteOperation, WriteStatus
from tests.helpers import PATIENCE, again, data, receive, stream_pair
from tests.loops import (
    batch_of,
    both_loops,
    full_writer,
    is_watched,
    read,
    scripted_writer,
    turns,
    writer_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("no_leaks")

MORE = int(socket.MSG_MORE)
MIB = 1024 * 1024


# What is posted is done at once, or waits


@both_loops
async def test_done_on_return() -> None:
    """What the socket takes at once is sent, and done, when write returns."""
    with writer_pair() as (writer, peer):
        batch = batch_of(b"header, ", b"body")
        operation = writer.write(batch)
        assert operation.done()
        assert (operation.status, operation.bytes_transferred) == (WriteStatus.DONE, 12)
        assert (operation.error, operation.batch.bytesleft) == (None, 0)
        assert peer.recv(99) == b"header, body"
        assert not batch


@both_loops
async def test_awaiting_what_is_done_does_not_suspend() -> None:
    """Awaiting an operation that was done on return gives its count without a turn of the loop."""
    with writer_pair() as (writer, _):
        happened: list[str] = []
        asyncio.get_running_loop().call_soon(happened.append, "a turn")
        for size in range(100):
            assert await writer.write(batch_of(bytes(size))) == size
        assert not happened


@both_loops
async def test_a_file_behind_its_header(make_file: Callable[[bytes], int]) -> None:
    """Bytes and file ranges, small and large, go out in one order."""
    content = data(3 * COPY_LIMIT)
    fd = make_file(content)
    with writer_pair(buffers=4096) as (writer, peer):
        batch = batch_of(b"header")
        batch.addfile(fd)
        batch.addbuf(b"between")
        batch.addfile(fd, 5, 10)
        expected = b"header" + content + b"between" + content[5:15]
        operation = writer.write(batch)
        assert operation.status is WriteStatus.PENDING
        assert await read(peer, len(expected)) == expected
        assert await operation == len(expected)


@both_loops
async def test_the_call_returns_at_once() -> None:
    """With a full socket the call returns, and the operation waits."""
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"later"))
        assert not operation.done()
        assert (operation.bytes_transferred, operation.batch.bytesleft) == (0, 5)
        assert await peer.read(5) == b"later"
        assert await operation == 5
        assert operation.batch.bytesleft == 0


@both_loops
async def test_an_empty_batch() -> None:
    """A write of nothing is done at once; behind others it is done in its turn."""
    with full_writer() as (writer, peer):
        first = writer.write(batch_of(b"first"))
        empty = writer.write(IOBatch())
        assert not empty.done()
        assert await peer.read(5) == b"first"
        assert (await empty, first.status) == (0, WriteStatus.DONE)
        assert writer.write(IOBatch()).done()


@both_loops
async def test_callbacks_do_not_run_inside_the_call() -> None:
    """A completion is called by the loop, also where the bytes went out at once."""
    with writer_pair() as (writer, _):
        ended: list[WriteOperation] = []
        operation = writer.write(batch_of(b"x"), on_complete=ended.append)
        operation.add_done_callback(ended.append)
        assert operation.done()
        assert not ended
        await turns()
        assert ended == [operation, operation]


@both_loops
async def test_the_batch_can_be_filled_again() -> None:
    """A write takes the batch's entries: the batch is empty, and filling it changes nothing."""
    with full_writer() as (writer, peer):
        batch = batch_of(b"one ")
        first = writer.write(batch)
        assert not batch
        batch.addbuf(b"two")
        assert first.batch.bytesleft == 4
        second = writer.write(batch)
        assert await peer.read(7) == b"one two"
        assert [await first, await second] == [4, 3]


@both_loops
async def test_buffers_stay_the_callers() -> None:
    """A buffer is not copied: it is held until it is sent, and free then."""
    with full_writer() as (writer, peer):
        released: list[str] = []
        buffer = bytearray(b"what it was")
        batch = IOBatch()
        batch.addbuf(buffer, on_release=lambda: released.append("released"))
        operation = writer.write(batch)
        with pytest.raises(BufferError):
            buffer.clear()
        buffer[:4] = b"THIS"  # breaks the rule, to show that there is no copy
        assert await peer.read(11) == b"THIS it was"
        await operation
        assert released == ["released"]
        buffer.clear()


@both_loops
async def test_write_some() -> None:
    """write_some is done with the first bytes taken; write goes on until all are."""
    content = data(MIB)
    with writer_pair(buffers=4096) as (writer, peer):
        operation = writer.write_some(batch_of(content))
        assert operation.status is WriteStatus.DONE
        some = operation.bytes_transferred
        assert 0 < some < MIB
        assert operation.batch.bytesleft == MIB - some
        rest = writer.write(operation.batch)
        assert await read(peer, MIB) == content
        assert await rest == MIB - some


@both_loops
async def test_write_some_waits_for_the_first() -> None:
    """On a full socket write_some waits; what is posted behind it follows what it has sent."""
    with scripted_writer(again(), 3) as (writer, sock):
        some = writer.write_some(batch_of(b"abcdef"))
        rest = writer.write(batch_of(b"XYZ"))
        assert not some.done()
        assert (await some, await rest) == (3, 3)
        assert sock.taken == b"abcXYZ"
        assert writer.write_some(IOBatch()).done()


@both_loops
async def test_exactly() -> None:
    """With exactly=n, n bytes are sent, and the rest is in the operation's batch."""
    with writer_pair() as (writer, peer):
        operation = writer.write(batch_of(b"abc", b"defgh"), exactly=4)
        assert await operation == 4
        assert peer.recv(99) == b"abcd"
        assert await writer.write(operation.batch) == 4
        assert peer.recv(99) == b"efgh"
        assert await writer.write(batch_of(b"ij"), exactly=2) == 2
        assert await writer.write(batch_of(b"kl"), exactly=0) == 0
        assert peer.recv(99) == b"ij"


@both_loops
async def test_exactly_across_a_wait() -> None:
    """The bytes behind the exact number don't go out with a later turn either."""
    content = data(MIB)
    with writer_pair(buffers=4096) as (writer, peer):
        operation = writer.write(batch_of(content), exactly=MIB - 1)
        assert writer.pending < MIB - 1
        assert await read(peer, MIB - 1) == content[:-1]
        assert await operation == MIB - 1
        assert operation.batch.bytesleft == 1
        assert writer.pending == 0


@both_loops
async def test_bad_input_changes_nothing() -> None:
    """What is refused raises before anything is taken or posted."""
    with writer_pair() as (writer, peer):
        batch = batch_of(b"abc")
        wrong: Any = "wrong"
        for error, arguments in [
            (ValueError, {"exactly": 4}),
            (ValueError, {"exactly": -1}),
            (ValueError, {"timeout": -1}),
            (ValueError, {"timeout": float("nan")}),
            (ValueError, {"stall_timeout": -1}),
            (TypeError, {"on_complete": wrong}),
            (TypeError, {"on_error": wrong}),
            (TypeError, {"on_complete": False}),
            (TypeError, {"on_error": ()}),
            (TypeError, {"on_complete": turns}),  # a coroutine function
            (TypeError, {"flags": wrong}),
            (TypeError, {"flags": None}),
            (TypeError, {"flags": 0.0}),
            (OverflowError, {"flags": 1 << 31}),
            (OverflowError, {"flags": -1 << 31}),
        ]:
            with pytest.raises(error):
                writer.write(batch, **arguments)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            writer.write(wrong)
        for call in (wrong, None), (print, wrong):
            with pytest.raises(TypeError):
                writer.write_buffer(b"abc", call[0], error_callback=call[1])
        assert batch.bytesleft == 3
        assert writer.pending == 0
        with pytest.raises(BlockingIOError):
            peer.recv(1)
        operation = writer.write(batch)
        for callback in wrong, turns:
            with pytest.raises(TypeError):
                operation.add_done_callback(callback)


@both_loops
async def test_bad_writers() -> None:
    """A writer is refused on a blocking or TLS socket, and with senseless limits."""
    with stream_pair() as (sock, _):
        with pytest.raises(ValueError, match="non-blocking"):
            BatchWriter(sock)
        sock.setblocking(False)
        options: dict[str, Any]
        for options in (
            {"limit": 0},
            {"high_water": 0},
            {"timeout": -1.0},
            {"stall_timeout": -1.0},
        ):
            with pytest.raises(ValueError, match=r"at least 1|negative"):
                BatchWriter(sock, **options)
        context = ssl.create_default_context()
        with (
            context.wrap_socket(sock, server_hostname="x", do_handshake_on_connect=False) as conn,
            pytest.raises(TypeError, match="through"),
        ):
            BatchWriter(conn)


def test_without_a_loop() -> None:
    """A writer needs a running loop."""
    with stream_pair() as (sock, _):
        sock.setblocking(False)
        with pytest.raises(RuntimeError, match="loop"):
            BatchWriter(sock)


@both_loops
async def test_repr() -> None:
    """A writer and an operation show what a debugger's reader wants to know."""
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"later"))
        fd = writer.sock.fileno()
        assert repr(writer) == (
            f"<BatchWriter on descriptor {fd}: waiting, 1 operations, 5 bytes pending>"
        )
        assert repr(operation) == "<WriteOperation PENDING, 0 bytes>"
        writer.close()
        assert "closed" in repr(writer)
        assert repr(operation).startswith("<WriteOperation ABORTED, 0 bytes: OSError(")


# Order


@both_loops
async def test_order() -> None:
    """Posted writes go out, and are completed, in the order in which they were posted."""
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
async def test_tasks_wake_in_order() -> None:
    """Tasks that await operations go on in the order in which these were posted."""
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
async def test_posting_from_a_completion() -> None:
    """A completion may post; completions never nest."""
    with writer_pair() as (writer, peer):
        depth = most = 0
        done = asyncio.Event()

        def completed(operation: WriteOperation) -> None:
            nonlocal depth, most
            depth += 1
            most = max(most, depth)
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
        assert most == 1
        assert await reading == b"x" * 2001


@both_loops
async def test_posting_from_a_hook() -> None:
    """A batch's hook may post: that goes out behind, and nothing runs inside anything."""
    with writer_pair() as (writer, peer):
        posted: list[WriteOperation] = []
        for first in (batch_of(b"one "), IOBatch()):  # done at once, and with a callback
            first.addbuf(
                b"two ", on_release=lambda: posted.append(writer.write(batch_of(b"three ")))
            )
            first.addbuf(b"four ")
            operation = writer.write(first)
            assert operation.status is WriteStatus.DONE
            assert posted.pop().status is WriteStatus.DONE
        assert peer.recv(99) == b"one two four three two four three "


@both_loops
async def test_posting_from_a_hook_of_what_has_to_wait() -> None:
    """What a hook posts in the midst of an operation that has to wait goes out behind it."""
    with scripted_writer(3, again()) as (writer, sock):
        posted: list[WriteOperation] = []
        batch = IOBatch()
        batch.addbuf(b"abc", on_release=lambda: posted.append(writer.write(batch_of(b"XYZ"))))
        batch.addbuf(b"def")
        operation = writer.write(batch)
        assert not operation.done()
        assert not posted[0].done()
        assert await posted[0] == 3
        assert operation.done()
        assert sock.taken == b"abcdefXYZ"


@both_loops
async def test_posting_what_is_being_sent() -> None:
    """A signal's handler can't post the batch that the writer is just sending."""
    with scripted_writer() as (writer, sock):
        batch = batch_of(b"abc")
        send = sock.send

        def handled(*args: Any) -> int:
            nbytes = send(*args)
            with pytest.raises(RuntimeError):
                writer.write(batch)
            return nbytes

        sock.send = handled  # type: ignore[method-assign]
        assert await writer.write(batch) == 3
        assert sock.taken == b"abc"


@both_loops
async def test_a_finalizer_that_adds(make_file: Callable[[bytes], int]) -> None:
    """What a file object's finalizer adds to the batch is there for its next write."""
    fd = make_file(b"content")

    class File:
        def fileno(self) -> int:
            return fd

        def __del__(self) -> None:
            batch.addfile(fd, 3, 4)

    with writer_pair() as (writer, peer):
        batch = batch_of(b"header ")
        batch.addfile(File(), 0, 3)
        assert await writer.write(batch) == 10
        assert await writer.write(batch) == 4
        assert peer.recv(99) == b"header content"


@both_loops
async def test_a_hook_may_not_stop_what_is_being_sent() -> None:
    """Inside a hook nothing can be cancelled or closed: how much was sent is not known there."""
    with scripted_writer(again(), again()) as (writer, _):
        refused: list[Exception] = []

        def hook() -> None:
            for call in (writer.close, writer.cancel, posted.cancel):
                try:
                    call()
                except RuntimeError as exc:
                    refused.append(exc)

        batch = IOBatch()
        batch.addbuf(b"abc", on_release=hook)
        posted = writer.write(batch, timeout=PATIENCE)
        assert await writer.write(batch_of(b"x")) == 1
        assert (posted.status, len(refused)) == (WriteStatus.DONE, 3)


@both_loops
async def test_a_batch_that_is_being_sent() -> None:
    """A batch can't be posted by its own hook."""
    with writer_pair() as (writer, _), stream_pair() as (sock, _):
        refused: list[BaseException] = []

        def hook() -> None:
            try:
                writer.write(batch)
            except RuntimeError as exc:
                refused.append(exc)

        batch = IOBatch()
        batch.addbuf(b"x", on_release=hook)
        iob_send(sock, batch)
        assert len(refused) == 1
        assert writer.write(batch_of(b"x")).done()


@both_loops
async def test_ten_thousand_operations_are_linear() -> None:
    """Four times as many operations take four times as much work, to send or to cancel."""

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
            assert {operation.status for operation in operations[::2]} == {WriteStatus.DONE}
        return calls

    few, many = await work(2500), await work(10_000)
    assert many < 6 * few


# How the end is told


@both_loops
async def test_await_by_many_and_again() -> None:
    """An operation can be awaited by several tasks, and again later."""
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))

        async def count() -> int:
            return await operation

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(count()) for _ in range(3)]
            await turns()
            await peer.read(3)
        assert [task.result() for task in tasks] == [3, 3, 3]
        assert await operation == 3


@both_loops
async def test_across_threads() -> None:
    """A future of another thread: asyncio.run_coroutine_threadsafe."""
    loop = asyncio.get_running_loop()
    with writer_pair() as (writer, peer):

        async def write() -> int:
            return await writer.write(batch_of(b"from afar"))

        counts: list[int] = []
        thread = threading.Thread(
            target=lambda: counts.append(
                asyncio.run_coroutine_threadsafe(write(), loop).result(PATIENCE)
            )
        )
        thread.start()
        assert await read(peer, 9) == b"from afar"
        await asyncio.to_thread(thread.join, PATIENCE)
        assert counts == [9]


@both_loops
async def test_asyncio_takes_an_operation() -> None:
    """Gather and wait_for take operations as they are."""
    with full_writer() as (writer, peer):
        gathered = asyncio.gather(*(writer.write(batch_of(b"x" * size)) for size in (1, 2, 3)))
        await peer.read(6)
        assert await gathered == [1, 2, 3]
        assert await asyncio.wait_for(writer.write(batch_of(b"x")), PATIENCE) == 1


@both_loops
async def test_callbacks_keep_their_context() -> None:
    """A callback runs in the context in which it was given."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")
    with full_writer() as (writer, peer):
        seen: list[str] = []

        def tell(_: object) -> None:
            seen.append(variable.get())

        token = variable.set("posted")
        operation = writer.write(batch_of(b"x"), on_complete=tell)
        variable.set("added")
        operation.add_done_callback(tell)
        variable.reset(token)
        await peer.read(1)
        await operation
        operation.add_done_callback(tell)
        await turns()
        assert seen == ["posted", "added", "nothing"]


@both_loops
async def test_user_info() -> None:
    """An operation has the user_info that it was given, or the writer's."""
    with writer_pair(user_info="the writer's") as (writer, _):
        assert writer.write(batch_of(b"x")).user_info == "the writer's"
        assert writer.write(batch_of(b"x"), user_info=None).user_info is None
        assert writer.write_some(batch_of(b"x"), user_info=5).user_info == 5
        assert writer.user_info == "the writer's"


@both_loops
async def test_an_exception_of_a_callback() -> None:
    """What a callback raises goes to the loop's exception handler, and nothing else stops."""
    raised: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: raised.append(context["exception"])
    )
    with writer_pair() as (writer, _):
        writer.write(batch_of(b"x"), on_complete=lambda _: 1 / 0)
        await turns()
        assert [type(exc) for exc in raised] == [ZeroDivisionError]
        assert await writer.write(batch_of(b"x")) == 1


# Errors


@both_loops
async def test_error_is_raised_where_it_is_awaited() -> None:
    """Awaiting a failed operation raises its error, each time."""
    with writer_pair() as (writer, peer):
        peer.close()
        operation = writer.write(batch_of(b"abc"))
        assert (operation.status, operation.bytes_transferred) == (WriteStatus.ERROR, 0)
        assert operation.batch.bytesleft == 3
        for _ in range(2):
            with pytest.raises(BrokenPipeError):
                await operation
        await writer.drain()  # the error was heard of


@both_loops
async def test_error_while_waiting() -> None:
    """An error that shows when the socket has become writable ends the operation."""
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        peer.sock.close()
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            await operation
        assert not is_watched(writer)


@both_loops
async def test_on_error() -> None:
    """An error goes to on_error; without one, to on_complete; and it is not logged."""
    with writer_pair() as (writer, peer):
        heard: list[tuple[str, WriteOperation]] = []

        def listener(name: str) -> Callable[[WriteOperation], object]:
            return lambda operation: heard.append((name, operation))

        done = writer.write(
            batch_of(b"x"), on_complete=listener("complete"), on_error=listener("error")
        )
        writer.write(batch_of(b"x"), on_error=listener("error"))
        peer.close()
        failed = writer.write(
            batch_of(b"x"), on_complete=listener("complete"), on_error=listener("error")
        )
        alone = writer.write(batch_of(b"x"), on_complete=listener("complete"))
        await turns()
        assert heard == [("complete", done), ("error", failed), ("complete", alone)]
        await writer.drain()


@both_loops
async def test_an_error_that_nobody_asks_for() -> None:
    """A failed operation that is dropped is not logged; drain raises its error, once."""
    with writer_pair() as (writer, peer):
        peer.close()
        writer.write(batch_of(b"abc"))
        writer.write(batch_of(b"def"))
        gc.collect()
        with pytest.raises(BrokenPipeError):
            await writer.drain()
        await writer.drain()


@both_loops
async def test_an_error_told_later() -> None:
    """A callback that is added to a failed operation hears of the error, so drain does not."""
    with writer_pair() as (writer, peer):
        peer.close()
        heard: list[WriteOperation] = []
        operation = writer.write(batch_of(b"abc"))
        operation.add_done_callback(heard.append)
        await writer.drain()
        await turns()
        assert heard == [operation]


@both_loops
@pytest.mark.parametrize("how", ["awaited", "drained"])
async def test_a_raised_error_keeps_no_batch(how: str) -> None:
    """A failed operation is collected with its last reference, though its error was raised."""
    with writer_pair() as (writer, peer):
        peer.close()
        released: list[str] = []
        batch = IOBatch()
        batch.addbuf(b"abc", on_release=lambda: released.append("released"))
        operation = writer.write(batch)
        gc.disable()
        try:
            with suppress(BrokenPipeError):
                await (operation if how == "awaited" else writer.drain())
            assert not released
            del operation
            assert released == ["released"]
        finally:
            gc.enable()


@both_loops
async def test_a_transports_socket() -> None:
    """On a socket of a transport, what has to wait ends with the error that the loop raises."""
    with stream_pair(buffers=4096) as (sock, _):
        _, stream = await asyncio.open_connection(sock=sock.dup())
        fd = stream.get_extra_info("socket").fileno()
        ours = socket.socket(fileno=fd)
        try:
            ours.setblocking(False)
            writer = BatchWriter(ours)
            begun = writer.write(batch_of(data(MIB)), on_error=lambda _: None)
            assert begun.status is WriteStatus.ERROR
            assert isinstance(begun.error, RuntimeError)
            assert begun.bytes_transferred + begun.batch.bytesleft == MIB
            assert begun.bytes_transferred > 0
            with pytest.raises(RuntimeError, match="transport"):
                await writer.write(batch_of(b"x"))
        finally:
            ours.detach()
            stream.close()
            await stream.wait_closed()


@both_loops
@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), ZeroDivisionError()], ids=repr)
@pytest.mark.parametrize("where", ["write", "write with flags", "the loop's turn"])
async def test_an_interruption(where: str, interruption: BaseException) -> None:
    """What a signal's handler raises while something is sent closes the writer, and goes on.

    For then nobody knows how much was sent.
    """
    in_turn = where == "the loop's turn"
    with scripted_writer(*[again()] * in_turn, interruption) as (writer, sock):
        operations: list[WriteOperation] = []
        if in_turn:
            operations += [writer.write(batch_of(b"abc")), writer.write(batch_of(b"behind"))]
        calls: dict[str, Callable[[], object]] = {
            "write": lambda: writer.write(batch_of(b"abc")),
            "write with flags": lambda: writer.write(batch_of(b"abc"), flags=MORE),
            "the loop's turn": writer._sender.take_turn,  # some exceptions would end the loop
        }
        with pytest.raises(type(interruption)):
            calls[where]()
        assert all(operation.status is WriteStatus.ABORTED for operation in operations)
        assert not is_watched(writer)
        assert sock.taken == b""
        with pytest.raises(OSError, match="closed") as raised:
            writer.write(batch_of(b"def"))
        assert raised.value.errno == errno.ECANCELED


@both_loops
async def test_the_socket_fails_behind_some_bytes() -> None:
    """An error behind the first bytes of a write ends it with their count."""
    with scripted_writer(2, ConnectionResetError(errno.ECONNRESET, "reset")) as (writer, sock):
        batch = batch_of(bytes(20_000), bytes(20_000))  # too much to be joined
        operation = writer.write(batch)
        await turns()
        assert (operation.status, operation.bytes_transferred) == (WriteStatus.ERROR, 2)
        assert operation.batch.bytesleft == 39_998
        with pytest.raises(ConnectionResetError):
            await operation
        assert len(sock.taken) == 2


# Fairness and pressure


@both_loops
async def test_two_writers_take_turns() -> None:
    """After `limit` bytes in a turn a writer defers to the next one, however fast its reader is."""
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
        assert max(map(len, runs)) <= 5  # the one that waited, and four at once
        assert len(runs) >= 12


@both_loops
async def test_a_long_write_takes_turns() -> None:
    """No more than `limit` bytes of a long write go out in one turn."""
    with scripted_writer(limit=1000) as (writer, sock):
        operation = writer.write(batch_of(bytes(3500)))
        assert len(sock.taken) == 1000
        await operation
        assert sock.sizes == [1000, 1000, 1000, 500]


@both_loops
async def test_exactly_the_limit() -> None:
    """A write of just `limit` bytes is done at once; the one behind it waits for the next turn."""
    for options in {}, {"flags": MORE}:
        with scripted_writer(limit=1000) as (writer, sock):
            assert writer.write(batch_of(bytes(1000)), **options).done()
            behind = writer.write(batch_of(b"x"))
            assert not behind.done()
            assert len(sock.taken) == 1000
            assert await behind == 1


@both_loops
@pytest.mark.parametrize("options", [{}, {"flags": MORE}], ids=["plain", "flags"])
async def test_no_write_waits_without_need(options: dict[str, int]) -> None:
    """As long as the loop has its turns, no write waits for one, however much is sent in all."""
    with scripted_writer(limit=1000) as (writer, sock):
        for _ in range(50):
            assert writer.write(batch_of(bytes(400)), **options).done()
            await asyncio.sleep(0)
        assert len(sock.taken) == 20_000


@both_loops
async def test_the_limit_of_each_turn() -> None:
    """Whatever was sent in the turns before, no more than `limit` bytes go out in one turn."""
    for first in range(0, 1100, 100):
        with scripted_writer(limit=1000) as (writer, sock):
            # In the turn that follows this is called first of all, and then the writer itself.
            asyncio.get_running_loop().call_soon(writer.write, batch_of(bytes(400)))
            writer.write(batch_of(bytes(first)))
            assert len(sock.taken) == min(first, 1000)
            await asyncio.sleep(0)
            writer.write(batch_of(bytes(2000)))
            assert len(sock.taken) - min(first, 1000) <= 1000


@both_loops
async def test_the_limit_behind_what_was_cancelled() -> None:
    """What was sent of an operation that was cancelled counts all the same."""
    with scripted_writer(600, limit=1000) as (writer, sock):
        assert writer.write(batch_of(bytes(1000))).cancel()
        writer.write(batch_of(bytes(1000)))
        assert len(sock.taken) == 1000


@both_loops
async def test_the_limit_when_the_loop_was_asked_twice() -> None:
    """A turn that comes for what was spent before another one gives no more than the limit."""
    with scripted_writer(limit=1000) as (writer, sock):
        writer.write(batch_of(bytes(900)))
        writer._sender.take_turn()  # as a timer's may be, which finds the socket writable
        writer.write(batch_of(bytes(600)))
        await asyncio.sleep(0)
        sock.taken.clear()
        writer.write(batch_of(bytes(2000)))
        assert len(sock.taken) <= 1000


@both_loops
async def test_no_busy_loop() -> None:
    """While the socket is full nothing is tried; the loop watches it only as long as it is."""
    with full_writer() as (writer, peer):
        with pytest.MonkeyPatch.context() as patch:
            tried: list[object] = []
            patch.setattr("iobatch.aio._sender.iob_send", lambda *_, **__: tried.append(0) or -1)
            writer.write(batch_of(b"x"))
            writer.write(batch_of(b"y"))
            tried.clear()
            await turns(50)
            assert not tried
        assert await peer.read(2) == b"xy"
        await writer.write(batch_of(b"z"))
        assert not is_watched(writer)


@both_loops
async def test_nothing_is_watched_without_need() -> None:
    """As long as everything is taken at once the loop never watches the socket."""
    with writer_pair() as (writer, _), pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer._sender._watch, "loop", None)
        for _ in range(10):
            await writer.write(batch_of(bytes(100)))
            await writer.write(batch_of(bytes(100)), exactly=50)


@both_loops
async def test_a_slow_reader() -> None:
    """Who drains holds no more than high_water and one write, however much he sends."""
    content = data(300_000)
    with writer_pair(buffers=4096, high_water=10_000) as (writer, peer):

        async def produce() -> int:
            most = 0
            for start in range(0, len(content), 1000):
                writer.write(batch_of(content[start : start + 1000]))
                most = max(most, writer.pending)
                await writer.drain()
                assert writer.pending < 10_000
            return most

        producer = asyncio.create_task(produce())
        assert await read(peer, len(content)) == content
        assert 9_000 < await producer < 11_000
        assert writer.pending == 0


@both_loops
async def test_drain_does_not_wait_without_need() -> None:
    """Below high_water drain returns without a turn of the loop."""
    with full_writer(high_water=10) as (writer, peer):
        writer.write(batch_of(b"123456789"))
        happened: list[str] = []
        asyncio.get_running_loop().call_soon(happened.append, "a turn")
        await writer.drain()
        assert not happened
        writer.write(batch_of(b"0"))
        waiting = [asyncio.create_task(writer.drain()) for _ in range(3)]
        await turns()
        waiting.pop().cancel()
        await turns()
        assert not any(task.done() for task in waiting)
        await peer.read(10)
        await asyncio.gather(*waiting)


@both_loops
async def test_drain_is_woken_once() -> None:
    """Several ends in one turn of the loop wake a task that drains, and do it no harm."""
    with full_writer(high_water=10) as (writer, _):
        operations = [writer.write(batch_of(b"12345")) for _ in range(4)]
        waiting = asyncio.create_task(writer.drain())
        await turns()
        for operation in operations:
            assert not waiting.done()
            operation.cancel()
        await waiting


@both_loops
async def test_pending() -> None:
    """Pending is what was posted and is not sent yet."""
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
async def test_reading_goes_on() -> None:
    """The application reads from the socket while a writer waits for it."""
    loop = asyncio.get_running_loop()
    with full_writer() as (writer, peer):
        reading = asyncio.create_task(loop.sock_recv(writer.sock, 99))
        await turns()
        operation = writer.write(batch_of(b"out"))
        await turns()
        peer.sock.send(b"in")
        assert await reading == b"in"
        reading = asyncio.create_task(loop.sock_recv(writer.sock, 99))
        await turns()
        assert await peer.read(3) == b"out"
        await operation
        await turns()
        peer.sock.send(b"in again")
        assert await reading == b"in again"


# Flags and messages


@both_loops
async def test_out_of_band() -> None:
    """MSG_OOB goes with its operation, and with no other."""
    with writer_pair("tcp4") as (writer, peer):
        assert await writer.write(batch_of(b"!"), flags=socket.MSG_OOB) == 1
        assert await writer.write(batch_of(b"in band")) == 7
        assert select.select([], [], [peer], PATIENCE)[2]
        assert peer.recv(1, socket.MSG_OOB) == b"!"
        assert await read(peer, 7) == b"in band"


@both_loops
async def test_flags_reach_the_socket() -> None:
    """MSG_DONTROUTE and MSG_MORE (for WSASend's MSG_PARTIAL) go with each send of an operation."""
    flags = socket.MSG_DONTROUTE | socket.MSG_MORE
    with scripted_writer(again(), 2, again()) as (writer, sock):
        operation = writer.write(batch_of(b"abcd"), flags=flags)
        some = writer.write_some(batch_of(b"ef"), flags=socket.MSG_DONTROUTE)
        plain = writer.write(batch_of(b"gh"))
        await plain
        assert operation.done()
        assert some.done()
        seen = [call.flags & flags for call in sock.calls]
        assert seen == [flags] * 4 + [socket.MSG_DONTROUTE, 0]


@both_loops
async def test_what_was_offered_before_is_free() -> None:
    """A batch that was offered to a callback before is as new when a writer has taken it."""
    with writer_pair() as (writer, peer):
        batch = batch_of(b"def")
        assert iob_write(None, batch, lambda _sock, _view: -1) == IOB_AGAIN
        assert await writer.write(batch) == 3
        batch.prepend(b"abc")
        assert await writer.write(batch) == 3
        assert peer.recv(99) == b"defabc"


@both_loops
async def test_every_send_has_nosignal() -> None:
    """Every send has MSG_NOSIGNAL, whichever way a write goes."""
    with scripted_writer(1, again()) as (writer, sock):
        writer.write(batch_of(b"small"))
        await writer.write(batch_of(bytes(50_000), bytes(50_000)))
        assert len(sock.calls) == 4
        assert all(call.flags & socket.MSG_NOSIGNAL for call in sock.calls)


@both_loops
@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
async def test_messages(kind: socket.SocketKind, make_file: Callable[[bytes], int]) -> None:
    """On a message socket each write is one message, file ranges included."""
    content = data(3000)
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        one.setblocking(False)
        writer = BatchWriter(one)
        batch = batch_of(b"header")
        batch.addfile(make_file(content))
        assert await writer.write(batch) == 3006
        assert await writer.write_some(batch_of(b"a", b"b")) == 2
        assert other.recv(9999) == b"header" + content
        assert other.recv(9999) == b"ab"
        with pytest.raises(ValueError, match="whole"):
            writer.write(batch_of(b"abc"), exactly=2)


@both_loops
async def test_messages_that_wait() -> None:
    """Messages wait for a slow reader, and come one by one."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        async with BatchWriter(one) as writer:
            messages = [data(500, seed) for seed in range(50)]
            operations = [writer.write(batch_of(message)) for message in messages]
            assert not operations[-1].done()
            loop = asyncio.get_running_loop()
            assert [await loop.sock_recv(other, 999) for _ in messages] == messages
            assert [await operation for operation in operations] == [500] * 50


@both_loops
async def test_a_message_that_is_too_long() -> None:
    """It is an error and nothing of it is sent; the messages behind it are."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.bind(("127.0.0.1", 0))
        one.connect(other.getsockname())
        one.setblocking(False)
        writer = BatchWriter(one)
        long = writer.write(batch_of(bytes(70_000)))
        behind = writer.write(batch_of(b"short"))
        with pytest.raises(OSError, match="too long") as raised:
            await long
        assert raised.value.errno == errno.EMSGSIZE
        assert (long.bytes_transferred, long.batch.bytesleft) == (0, 70_000)
        assert await behind == 5
        assert receive(other, 5) == b"short"


# LispWorks' call


@both_loops
async def test_write_buffer() -> None:
    """write_buffer sends data[start:end], and calls back with writer, data and count."""
    with writer_pair() as (writer, peer):
        calls: list[tuple[object, ...]] = []

        def callback(*arguments: object) -> None:
            calls.append((*arguments, writer.status))

        text = bytearray(b"0123456789")
        numbers = array.array("H", [1, 2, 3])
        writer.write_buffer(text, callback)
        writer.write_buffer(text, callback, start=2, end=5)
        writer.write_buffer(text, callback, start=-1)
        operation = writer.write_buffer(numbers, callback, end=4)
        assert await operation == 4
        text.clear()  # nothing holds it any more
        expected = b"0123456789" + b"234" + b"9" + numbers.tobytes()[:4]
        assert peer.recv(99) == expected
        assert not calls
        await turns()
        assert [call[2] for call in calls] == [10, 3, 1, 4]
        assert calls[3] == (writer, numbers, 4, WriteStatus.DONE)
        with pytest.raises(BufferError):
            writer.write_buffer(memoryview(b"abcd")[::2], callback)


@both_loops
async def test_write_buffer_sticks() -> None:
    """Timeout and user_info stay for later operations; None is no timeout, not "as before"."""
    with writer_pair() as (writer, _):
        first = writer.write_buffer(b"x", print_nothing, timeout=7, user_info="mine")
        second = writer.write_buffer(b"x", print_nothing)
        assert (first.user_info, second.user_info) == ("mine", "mine")
        assert (writer.timeout, writer.user_info) == (7, "mine")
        assert writer.write(batch_of(b"x"), timeout=1).user_info == "mine"
        assert writer.timeout == 7
        writer.write_buffer(b"x", print_nothing, timeout=None, user_info=None)
        assert (writer.timeout, writer.user_info) == (None, None)


def print_nothing(*_: object) -> None:
    """Stand for a callback."""


@both_loops
@pytest.mark.parametrize("with_error_callback", [True, False])
async def test_write_buffer_ends(*, with_error_callback: bool) -> None:
    """A timeout goes to callback; other failures too, but to error_callback if there is one."""
    with full_writer() as (writer, peer):
        calls: list[tuple[str, int, WriteStatus]] = []

        def callback(_writer: BatchWriter, _data: object, nbytes: int) -> None:
            calls.append(("callback", nbytes, writer.status))

        def failed(_writer: BatchWriter, _data: object, nbytes: int) -> None:
            calls.append(("failed", nbytes, writer.status))

        options: Any = {"error_callback": failed} if with_error_callback else {}
        writer.write_buffer(b"timeout", callback, timeout=0, **options)
        writer.write_buffer(b"cancel", callback, timeout=None, **options).cancel()
        failing = writer.write_buffer(b"error", callback, **options)
        peer.sock.close()
        with suppress(OSError):
            await failing
        how = "failed" if with_error_callback else "callback"
        assert calls == [
            ("callback", 0, WriteStatus.TIMEOUT),
            (how, 0, WriteStatus.CANCELLED),
            (how, 0, WriteStatus.ERROR),
        ]


@both_loops
async def test_what_is_no_batch_or_callback_is_refused() -> None:
    """Wrong arguments are a TypeError, and nothing is posted."""
    with writer_pair() as (writer, _):
        for post in (
            lambda: writer.write(b"abc", exactly=1),  # type: ignore[arg-type]
            lambda: writer.write_buffer(b"abc", None),  # type: ignore[arg-type]
            lambda: BatchWriter(writer.sock, timeout=...),  # type: ignore[arg-type]
        ):
            with pytest.raises(TypeError):
                post()
        assert writer.pending == 0

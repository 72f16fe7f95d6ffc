"""How the end of an operation reaches callbacks, tasks and other threads."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from iobatch.aio import BatchWriter
from tests.support.batches import batch_of
from tests.support.loops import (
    both_loops,
    full_writer,
    read,
    turns,
    writer_pair,
)
from tests.support.sockets import PATIENCE, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from iobatch.aio import WriteOperation


@both_loops
async def test_callbacks_run_from_the_loop_even_if_the_write_is_done_at_once() -> None:
    with writer_pair() as (writer, _):
        ended: list[WriteOperation] = []
        operation = writer.write(batch_of(b"x"), on_complete=ended.append)
        operation.add_done_callback(ended.append)
        assert operation.done()
        assert not ended
        await turns()
        assert ended == [operation, operation]


@both_loops
async def test_callback_runs_in_the_context_in_which_it_was_given() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")
    with full_writer() as (writer, peer):
        seen: list[str] = []

        def record(_: object) -> None:
            seen.append(variable.get())

        token = variable.set("posted")
        operation = writer.write(batch_of(b"x"), on_complete=record)
        variable.set("added")
        operation.add_done_callback(record)
        variable.reset(token)
        await peer.read(1)
        await operation
        operation.add_done_callback(record)
        await turns()
        assert seen == ["posted", "added", "nothing"]


@both_loops
async def test_exception_of_a_callback_goes_to_the_loops_exception_handler() -> None:
    raised: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: raised.append(context["exception"])
    )
    with writer_pair() as (writer, _):
        writer.write(batch_of(b"x"), on_complete=lambda _: 1 / 0)
        await turns()
        assert [type(exc) for exc in raised] == [ZeroDivisionError]
        assert await writer.write(batch_of(b"x")) == 1


@both_loops
async def test_error_goes_to_on_error_or_without_it_to_on_complete() -> None:
    with writer_pair() as (writer, peer):
        called: list[tuple[str, WriteOperation]] = []

        def callback(name: str) -> Callable[[WriteOperation], object]:
            return lambda operation: called.append((name, operation))

        done = writer.write(
            batch_of(b"x"), on_complete=callback("complete"), on_error=callback("error")
        )
        writer.write(batch_of(b"x"), on_error=callback("error"))
        peer.close()
        failed = writer.write(
            batch_of(b"x"), on_complete=callback("complete"), on_error=callback("error")
        )
        alone = writer.write(batch_of(b"x"), on_complete=callback("complete"))
        await turns()
        assert called == [("complete", done), ("error", failed), ("complete", alone)]
        await writer.drain()


@both_loops
async def test_operation_is_awaited_by_several_tasks_and_again_later() -> None:
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
async def test_operation_is_awaited_from_another_thread() -> None:
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
async def test_gather_and_wait_for_take_operations() -> None:
    with full_writer() as (writer, peer):
        gathered = asyncio.gather(*(writer.write(batch_of(b"x" * size)) for size in (1, 2, 3)))
        await peer.read(6)
        assert await gathered == [1, 2, 3]
        assert await asyncio.wait_for(writer.write(batch_of(b"x")), PATIENCE) == 1


@both_loops
async def test_asyncio_wait_accepts_operations() -> None:
    with full_writer() as (writer, peer):
        operations = [writer.write(batch_of(b"abc")) for _ in range(3)]
        done, pending = await asyncio.wait(operations, timeout=0)
        assert (done, pending) == (set(), set(operations))
        await peer.clear()
        done, pending = await asyncio.wait(operations, return_when=asyncio.FIRST_COMPLETED)
        assert operations[0] in done
        done, pending = await asyncio.wait(operations, return_when=asyncio.FIRST_EXCEPTION)
        assert (done, pending) == (set(operations), set())
        assert all(operation._posted_write.done_callbacks is None for operation in operations)


@both_loops
async def test_exception_is_that_of_a_future() -> None:
    with full_writer() as (writer, _):
        cancelled, aborted = writer.write(batch_of(b"x")), writer.write(batch_of(b"x"))
        with pytest.raises(asyncio.InvalidStateError):
            cancelled.exception()
        assert not cancelled.cancelled()
        cancelled.cancel()
        assert cancelled.cancelled()
        with pytest.raises(asyncio.CancelledError):
            cancelled.exception()
        writer.close()
        assert aborted.exception() is aborted.error is not None
        assert not aborted.cancelled()
    with writer_pair() as (writer, _):
        assert writer.write(batch_of(b"x")).exception() is None


@both_loops
async def test_removed_callback_is_not_called() -> None:
    with full_writer() as (writer, peer):
        ended: list[WriteOperation] = []
        kept: list[WriteOperation] = []
        remove, keep = ended.append, kept.append
        operation = writer.write(batch_of(b"x"), on_complete=remove)
        operation.add_done_callback(remove)
        operation.add_done_callback(keep)
        waiting = asyncio.ensure_future(operation)
        await turns()
        assert operation.remove_done_callback(remove) == 2
        assert operation.remove_done_callback(remove) == 0
        assert await peer.read(1) == b"x"
        assert await waiting == 1
        await turns()
        assert (ended, kept) == ([], [operation])
        assert operation.remove_done_callback(keep) == 0


@both_loops
async def test_done_callback_that_is_none_is_refused() -> None:
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"x"))
        with pytest.raises(TypeError, match="callback must not be None"):
            operation.add_done_callback(None)  # type: ignore[arg-type]
        assert operation.cancel()


def break_socket(sock: object, view: object) -> int:
    raise BrokenPipeError


def break_with_cause(sock: object, view: object) -> int:
    raise ZeroDivisionError("of a callback") from KeyError("the cause")


@both_loops
@pytest.mark.parametrize("through", [None, break_socket])
@pytest.mark.parametrize("retrieve", ["await", "drain", "wait"])
async def test_failed_operation_is_freed_without_the_collector(through: Any, retrieve: str) -> None:
    """No traceback refers to the operation, its batch or its buffers."""
    gc.collect()
    gc.disable()
    try:
        with stream_pair() as (ours, theirs):
            ours.setblocking(False)
            theirs.close()
            writer = BatchWriter(ours, through=through)
            batch = batch_of(b"abc")
            buffer = Buffer(b"x")
            batch.addbuf(buffer)
            freed = [weakref.ref(buffer)]
            del buffer
            operation = writer.write(batch)
            freed += [weakref.ref(operation), weakref.ref(operation.batch)]
            try:
                if retrieve == "await":
                    await operation
                elif retrieve == "drain":
                    await writer.drain()
                else:
                    await asyncio.wait([operation])
                    raise operation.exception() or AssertionError
            except OSError:
                pass
            del operation
            writer.close()
            del writer
            assert [reference() for reference in freed] == [None] * 3
    finally:
        gc.enable()


@both_loops
async def test_exception_of_a_callback_keeps_its_traceback_and_cause() -> None:
    """Also if it is retrieved twice: each time a copy is raised."""
    with writer_pair(through=break_with_cause) as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        lengths = set()
        for _ in range(2):
            with pytest.raises(ZeroDivisionError) as raised:
                await operation
            assert isinstance(raised.value.__cause__, KeyError)
            lengths.add(len(raised.traceback))
            assert raised.traceback[-1].name == "break_with_cause"
        assert len(lengths) == 1


class Buffer(bytearray):
    """A buffer that can be referred to weakly."""

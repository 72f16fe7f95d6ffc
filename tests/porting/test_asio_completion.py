"""iobatch-asio(7), Completion: one test for each row of the table, in the rows' order."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import TYPE_CHECKING

import pytest

from iobatch.aio import WriteOperation, WriteStatus
from tests.support.batches import batch_of, data
from tests.support.fakes import again
from tests.support.loops import both_loops, full_writer, read, scripted_writer, turns, writer_pair
from tests.support.manpages import covered, subjects
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from iobatch.aio import BatchWriter
    from tests.support.fakes import Scripted

PAGE = "iobatch-asio.7", "Completion"


def failing_writer() -> AbstractContextManager[tuple[BatchWriter, Scripted]]:
    """Return a writer that sends two bytes, and fails then."""
    return scripted_writer(2, BrokenPipeError(32, "broken"))


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


@both_loops
async def test_handler_ec_n_is_called_with_the_operation() -> None:
    ended: list[WriteOperation] = []
    with failing_writer() as (writer, _):
        failed = writer.write(batch_of(b"abcdef"), on_complete=ended.append)
        await turns()
        assert ended == [failed]
        assert (type(failed.error), failed.bytes_transferred) == (BrokenPipeError, 2)
    with full_writer() as (writer, _):
        cancelled = writer.write(batch_of(b"abc"), on_complete=ended.append)
        cancelled.cancel()
        await turns()
        assert ended == [failed, cancelled]
        assert (cancelled.error, cancelled.status) == (None, WriteStatus.CANCELLED)


@both_loops
async def test_if_ec_in_a_handler_is_on_error() -> None:
    called: list[str] = []
    with scripted_writer(again(), BrokenPipeError(32, "broken")) as (writer, _):
        op = writer.write(
            batch_of(b"abc"),
            on_complete=lambda _: called.append("complete"),
            on_error=lambda _: called.append("error"),
        )
        await asyncio.wait([op])
        assert called == ["error"]


@both_loops
async def test_never_from_within_the_call_are_callbacks_called() -> None:
    ended: list[WriteOperation] = []
    with writer_pair() as (writer, _):
        op = writer.write(batch_of(b"abc"), on_complete=ended.append)
        assert (op.done(), ended) == (True, [])
        await turns(1)
        assert ended == [op]


@both_loops
async def test_immediate_completion_is_seen_on_return() -> None:
    with writer_pair() as (writer, _):
        op = writer.write(batch_of(b"abc"))
        assert op.done()
        with pytest.raises(StopIteration) as returned:
            next(op.__await__())
        assert returned.value.value == 3


@both_loops
async def test_handler_that_posts_is_never_inside_another() -> None:
    order: list[str] = []
    with writer_pair() as (writer, peer):

        def first(_: WriteOperation) -> None:
            order.append("first begins")
            writer.write(batch_of(b"def"), on_complete=lambda _: order.append("second"))
            order.append("first ends")

        writer.write(batch_of(b"abc"), on_complete=first)
        assert await read(peer, 6) == b"abcdef"
        await turns()
        assert order == ["first begins", "first ends", "second"]


@both_loops
async def test_exception_in_a_handler_goes_to_the_exception_handler() -> None:
    raised: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: raised.append(context["exception"])
    )
    with writer_pair() as (writer, _):
        writer.write(batch_of(b"abc"), on_complete=lambda _: 1 / 0)
        await turns()
        assert [type(exc) for exc in raised] == [ZeroDivisionError]


@both_loops
async def test_state_in_a_handler_is_user_info() -> None:
    seen: list[object] = []
    with writer_pair() as (writer, _):
        writer.write(
            batch_of(b"abc"), on_complete=lambda op: seen.append(op.user_info), user_info="state"
        )
        await turns()
        assert seen == ["state"]


@both_loops
async def test_use_future_is_the_operation() -> None:
    with full_writer() as (writer, peer):
        op = writer.write(batch_of(b"abc"))
        task = asyncio.ensure_future(op)
        assert await peer.read(3) == b"abc"
        assert (await task, await op, await op) == (3, 3, 3)


@both_loops
async def test_future_get_in_a_thread_is_run_coroutine_threadsafe() -> None:
    loop = asyncio.get_running_loop()
    counts: list[int] = []
    with full_writer() as (writer, peer):

        async def write() -> int:
            return await writer.write(batch_of(b"abc"))

        def get() -> None:
            counts.append(asyncio.run_coroutine_threadsafe(write(), loop).result(PATIENCE))

        thread = threading.Thread(target=get)
        thread.start()
        assert await peer.read(3) == b"abc"
        await asyncio.to_thread(thread.join, PATIENCE)
        assert counts == [3]


@both_loops
async def test_use_awaitable_is_await() -> None:
    with full_writer() as (writer, peer):
        reading = asyncio.create_task(peer.read(3))
        assert await writer.write(batch_of(b"abc")) == 3
        assert await reading == b"abc"


@both_loops
async def test_yield_context_is_await_in_a_coroutine_function() -> None:
    with writer_pair() as (writer, peer):

        async def write_twice() -> int:
            return await writer.write(batch_of(b"abc")) + await writer.write(batch_of(b"de"))

        assert await write_twice() == 5
        assert await read(peer, 5) == b"abcde"


@both_loops
async def test_yield_ec_redirect_error_is_asyncio_wait_and_the_status() -> None:
    with failing_writer() as (writer, _):
        op = writer.write(batch_of(b"abcdef"))
        await asyncio.wait([op])
        assert (op.status, type(op.error)) == (WriteStatus.ERROR, BrokenPipeError)
    with scripted_writer(2, again()) as (writer, _):
        op = writer.write(batch_of(b"abcdef"))
        op.cancel()
        await asyncio.wait([op])
        assert (op.status, op.error, op.bytes_transferred) == (WriteStatus.CANCELLED, None, 2)


@both_loops
async def test_as_tuple_is_asyncio_wait_and_three_attributes() -> None:
    with writer_pair() as (writer, _):
        op = writer.write(batch_of(b"abc"))
        await asyncio.wait([op])
        assert (op.status, op.error, op.bytes_transferred) == (WriteStatus.DONE, None, 3)


@both_loops
async def test_detached_errors_are_raised_by_drain_once_except_those_of_aborted() -> None:
    with failing_writer() as (writer, _):
        writer.write(batch_of(b"abcdef"))
        await turns()
        with pytest.raises(BrokenPipeError):
            await writer.drain()
        await writer.drain()
    with failing_writer() as (writer, _), pytest.raises(BrokenPipeError):
        async with writer:
            writer.write(batch_of(b"abcdef"))
    with scripted_writer(2, again()) as (writer, _):
        async with writer:
            writer.write(batch_of(b"abcdef")).cancel()
            op = writer.write(batch_of(b"ghi"))
            await writer.drain()
        assert (op.status, op.bytes_transferred) == (WriteStatus.ABORTED, 0)


@both_loops
async def test_system_error_is_the_exception_of_await_or_a_cancelled_error() -> None:
    with failing_writer() as (writer, _):
        op = writer.write(batch_of(b"abcdef"))
        with pytest.raises(BrokenPipeError):
            await op
    with full_writer() as (writer, _):
        op = writer.write(batch_of(b"abc"))
        op.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await op
        assert not isinstance(raised.value, Exception)


@both_loops
async def test_cancel_by_other_code_ends_the_awaiting_task_as_cancelled() -> None:
    with full_writer() as (writer, _):
        op = writer.write(batch_of(b"abc"))

        async def wait() -> None:
            await op

        async with asyncio.TaskGroup() as group:
            task = group.create_task(wait())
            await turns()
            op.cancel()
        assert (task.cancelled(), task.cancelling()) == (True, 0)


@both_loops
async def test_append_prepend_is_a_partial_function() -> None:
    seen: list[tuple[str, WriteOperation]] = []
    with writer_pair() as (writer, _):

        def f(value: str, op: WriteOperation) -> None:
            seen.append((value, op))

        op = writer.write(batch_of(b"abc"), on_complete=functools.partial(f, "value"))
        await turns()
        assert seen == [("value", op)]


@both_loops
async def test_consign_is_user_info() -> None:
    with writer_pair() as (writer, _):
        value = object()
        assert writer.write(batch_of(b"abc"), user_info=value).user_info is value


@both_loops
async def test_co_spawn_ex_f_token_is_create_task() -> None:
    with full_writer() as (writer, peer):

        async def write() -> int:
            return await writer.write(batch_of(b"abc"))

        task = asyncio.create_task(write())
        assert await peer.read(3) == b"abc"
        assert await task == 3


@both_loops
async def test_async_compose_is_a_coroutine_function() -> None:
    content = data(50_000)
    with writer_pair(buffers=4096) as (writer, peer):

        async def write_with_length() -> int:
            head = await writer.write(batch_of(len(content).to_bytes(4)))
            return head + await writer.write(batch_of(content))

        task = asyncio.create_task(write_with_length())
        received = await read(peer, 4 + len(content))
        assert (await task, received[4:]) == (4 + len(content), content)


@both_loops
async def test_make_parallel_group_is_asyncio_wait() -> None:
    with full_writer() as (writer, _), writer_pair() as (other, _):
        ops = [writer.write(batch_of(b"abc")), other.write(batch_of(b"abc"))]
        done, pending = await asyncio.wait(ops, return_when=asyncio.FIRST_COMPLETED)
        assert (done, pending) == ({ops[1]}, {ops[0]})
        assert [op.cancel() for op in pending] == [True]


@both_loops
async def test_co_await_a_b_returns_after_the_first_end_of_any_kind() -> None:
    with full_writer() as (writer, _), failing_writer() as (other, _):
        ops = [writer.write(batch_of(b"abc")), other.write(batch_of(b"abc"))]
        done, pending = await asyncio.wait(ops, return_when=asyncio.FIRST_COMPLETED)
        assert [op.status for op in (*done, *pending)] == [WriteStatus.ERROR, WriteStatus.PENDING]


@both_loops
async def test_co_await_a_b_for_both_is_gather() -> None:
    with full_writer() as (writer, peer), failing_writer() as (other, _), writer_pair() as (ok, _):
        assert await asyncio.gather(ok.write(batch_of(b"a")), ok.write(batch_of(b"bc"))) == [1, 2]
        op = writer.write(batch_of(b"abc"))
        with pytest.raises(BrokenPipeError):
            await asyncio.gather(op, other.write(batch_of(b"abc")))
        assert await peer.read(3) == b"abc"
        await turns()
        assert op.status is WriteStatus.DONE

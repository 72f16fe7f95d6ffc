"""Coming from Winsock: one test for each row of the tables of results, and of the order."""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress

import pytest

from iobatch.aio import WriteOperation, WriteStatus
from tests.support.aio import statuses
from tests.support.batches import batch_of, data
from tests.support.loops import both_loops, full_writer, read, scripted_writer, turns, writer_pair
from tests.support.manpages import covered, subjects
from tests.support.sockets import PATIENCE

PAGE = ("iobatch-winsock.7", "Return values and results", "Order and number of operations")


def test_the_tests_here_and_the_rows_of_the_tables_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


# Return values and results


@both_loops
async def test_0_is_an_operation_that_is_done_when_write_returns() -> None:
    seen: list[WriteOperation] = []
    with writer_pair() as (writer, _):
        operation = writer.write(batch_of(b"abc"), on_complete=seen.append)
        assert operation.done()
        assert await operation == 3  # does not suspend: no callback has run
        assert seen == []
        await turns(1)
        assert seen == [operation]


@both_loops
async def test_socket_error_is_an_exception_without_an_operation() -> None:
    seen: list[WriteOperation] = []
    with writer_pair() as (writer, _):
        batch = batch_of(b"abc")
        writer.close()
        with pytest.raises(OSError, match="closed"):
            writer.write(batch, on_complete=seen.append)
        await turns()
        assert (seen, batch.bytesleft) == ([], 3)


@both_loops
async def test_immediate_error_ends_the_operation_and_its_callback_is_called() -> None:
    seen: list[WriteOperation] = []
    with scripted_writer(2, OSError(errno.ENOBUFS, "scripted")) as (writer, _):
        operations = [writer.write(batch_of(b"abc"), on_complete=seen.append) for _ in range(2)]
        assert statuses(operations) == [WriteStatus.ERROR, WriteStatus.ABORTED]
        await turns()
        assert seen == operations


@both_loops
async def test_wsagetlasterror_is_the_errno_of_the_error() -> None:
    with scripted_writer(OSError(errno.ENOBUFS, "scripted")) as (writer, _):
        error = writer.write(batch_of(b"abc")).error
        assert isinstance(error, OSError)
        assert error.errno == errno.ENOBUFS


@both_loops
async def test_wsagetoverlappedresult_is_await() -> None:
    with scripted_writer(3, OSError(errno.ENOBUFS, "scripted")) as (writer, _):
        assert await writer.write(batch_of(b"abc")) == 3
        with pytest.raises(OSError) as raised:
            await writer.write(batch_of(b"abc"))
        assert raised.value.errno == errno.ENOBUFS


@both_loops
async def test_fwait_true_is_await() -> None:
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        reading = asyncio.create_task(peer.read(3))
        done, _ = await asyncio.wait([operation], timeout=0)
        assert (done, operation.done()) == (set(), False)
        assert await operation == 3
        assert await reading == b"abc"


@both_loops
async def test_fwait_false_is_done() -> None:
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        assert not operation.done()
        await peer.read(3)
        assert operation.done()


@both_loops
async def test_wsa_io_incomplete_is_invalid_state_error() -> None:
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        with pytest.raises(asyncio.InvalidStateError):
            operation.exception()


@both_loops
async def test_wsawaitformultipleevents_is_asyncio_wait_for_any_number() -> None:
    with full_writer() as (writer, peer):
        operations = [writer.write(batch_of(b"a")) for _ in range(100)]
        done, pending = await asyncio.wait(operations, timeout=0)
        assert (len(done), len(pending)) == (0, 100)
        operations[50].cancel()
        wait_for_one = asyncio.wait(operations, return_when=asyncio.FIRST_COMPLETED)
        done, pending = await wait_for_one
        assert (done, len(pending)) == ({operations[50]}, 99)
        await peer.read(99)
        done, pending = await asyncio.wait(operations)
        assert (len(done), len(pending)) == (100, 0)


@both_loops
async def test_falertable_sleepex_is_any_await_that_suspends() -> None:
    seen: list[WriteOperation] = []
    with writer_pair() as (writer, _):
        operation = writer.write(batch_of(b"abc"), on_complete=seen.append)
        assert seen == []
        await asyncio.sleep(0)
        assert seen == [operation]


@both_loops
async def test_getqueuedcompletionstatus_is_get_of_a_queue() -> None:
    queue: asyncio.Queue[WriteOperation] = asyncio.Queue()
    with scripted_writer(3, OSError(errno.ENOBUFS, "scripted")) as (writer, _):
        for _ in range(2):
            writer.write(batch_of(b"abc"), on_complete=queue.put_nowait)
        ended = [await queue.get() for _ in range(2)]
        assert statuses(ended) == [WriteStatus.DONE, WriteStatus.ERROR]


@both_loops
async def test_its_dwmilliseconds_is_a_timeout_around_get() -> None:
    queue: asyncio.Queue[WriteOperation] = asyncio.Queue()
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"), on_complete=queue.put_nowait)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await queue.get()
        assert not operation.done()
        await peer.read(3)
        assert await queue.get() is operation


@both_loops
async def test_its_worker_threads_call_run_coroutine_threadsafe() -> None:
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[WriteOperation] = asyncio.Queue()

    def worker() -> WriteOperation:
        return asyncio.run_coroutine_threadsafe(queue.get(), loop).result(PATIENCE)

    with writer_pair() as (writer, _):
        workers = [asyncio.create_task(asyncio.to_thread(worker)) for _ in range(2)]
        operations = {writer.write(batch_of(b"a"), on_complete=queue.put_nowait) for _ in workers}
        assert {*await asyncio.gather(*workers)} == operations


@both_loops
async def test_getqueuedcompletionstatusex_is_get_nowait_until_the_queue_is_empty() -> None:
    queue: asyncio.Queue[WriteOperation] = asyncio.Queue()
    with writer_pair() as (writer, _):
        operations = [writer.write(batch_of(b"a"), on_complete=queue.put_nowait) for _ in range(3)]
        ended = [await queue.get()]
        await turns()
        with suppress(asyncio.QueueEmpty):
            while True:
                ended.append(queue.get_nowait())
        assert ended == operations


@both_loops
async def test_completion_key_is_user_info_of_the_writer() -> None:
    with writer_pair(user_info="key") as (writer, _):
        assert writer.write(batch_of(b"abc")).user_info == "key"
        assert writer.write(batch_of(b"abc"), user_info="context").user_info == "context"


@both_loops
async def test_postqueuedcompletionstatus_is_put_nowait_from_any_thread() -> None:
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[str] = asyncio.Queue()
    await asyncio.to_thread(loop.call_soon_threadsafe, queue.put_nowait, "item")
    assert await queue.get() == "item"


@both_loops
async def test_no_completion_on_success_is_a_callback_added_only_if_not_done() -> None:
    seen: list[WriteOperation] = []
    with full_writer() as (writer, peer):
        for _ in range(2):
            operation = writer.write(batch_of(b"abc"))
            if not operation.done():
                operation.add_done_callback(seen.append)
            await peer.clear()
            await operation
            await turns()
    assert len(seen) == 1
    lost = OSError(errno.ENOBUFS, "scripted")
    with scripted_writer(lost, lost) as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        assert operation.status is WriteStatus.ERROR
        with pytest.raises(OSError, match=r"\[Errno") as raised:
            await writer.drain()
        assert raised.value.errno == errno.ENOBUFS
        assert isinstance(writer.write(batch_of(b"abc")).exception(), OSError)
        await writer.drain()


# Order and number of operations


@both_loops
async def test_order_of_sending_is_that_of_the_posting() -> None:
    with writer_pair(buffers=4096) as (writer, peer):
        for seed in range(3):
            writer.write(batch_of(data(50_000, seed)))
        assert await read(peer, 150_000) == b"".join(data(50_000, seed) for seed in range(3))


@both_loops
async def test_order_of_completion_routines_is_that_of_the_ends() -> None:
    seen: list[WriteOperation] = []
    with full_writer() as (writer, peer):
        operations = [writer.write(batch_of(b"a"), on_complete=seen.append) for _ in range(3)]
        operations[2].cancel()
        await peer.read(2)
        await turns()
    assert seen == [operations[2], operations[0], operations[1]]


@both_loops
async def test_nested_routines_never_run_and_a_routine_may_post() -> None:
    events: list[str] = []

    def routine(_operation: WriteOperation) -> None:
        events.append("begin")
        if len(events) < 6:
            writer.write(batch_of(b"abc"), on_complete=routine)
        events.append("end")

    with writer_pair() as (writer, _):
        writer.write(batch_of(b"abc"), on_complete=routine)
        assert events == []
        await turns(10)
    assert events == ["begin", "end"] * 4


@both_loops
async def test_wsasend_in_several_threads_is_posting_through_the_loop() -> None:
    loop = asyncio.get_running_loop()
    with writer_pair() as (writer, peer):

        async def post(byte: int) -> WriteOperation:
            return writer.write(batch_of(bytes([byte]) * 3))

        def send(byte: int) -> None:
            asyncio.run_coroutine_threadsafe(post(byte), loop).result(PATIENCE)

        await asyncio.gather(*(asyncio.to_thread(send, byte) for byte in range(8)))
        received = await read(peer, 24)
    pieces = [received[start : start + 3] for start in range(0, 24, 3)]
    assert sorted(pieces) == [bytes([byte]) * 3 for byte in range(8)]


@both_loops
async def test_too_many_requests_have_no_limit_and_drain_waits() -> None:
    with full_writer(high_water=100) as (writer, peer):
        for _ in range(1000):
            writer.write(batch_of(b"a"))
        draining = asyncio.ensure_future(writer.drain())
        await turns()
        assert (draining.done(), writer.pending) == (False, 1000)
        await peer.read(1000)
        await draining
        assert writer.pending < 100


@both_loops
async def test_so_sndtimeo_is_a_timeout_of_the_write() -> None:
    with full_writer() as (writer, _):
        for option in ("timeout", "stall_timeout"):
            operation = writer.write(batch_of(b"abc"), **{option: 0})  # type: ignore[arg-type]
            assert operation.status is WriteStatus.TIMEOUT
            assert operation.batch.bytesleft == 3
            with pytest.raises(TimeoutError):
                await operation

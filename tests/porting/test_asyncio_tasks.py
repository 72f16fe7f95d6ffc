"""Coming from asyncio: one test for each row of the tables of tasks, and of one socket's users."""

from __future__ import annotations

import asyncio
import errno
import gc
from typing import TYPE_CHECKING

import pytest

from iobatch import IOB_DONE, IOBatch, iob_send
from iobatch.aio import BatchWriter, WriteOperation, WriteStatus, send_to_stream
from tests.support.batches import batch_of, data
from tests.support.loops import (
    both_loops,
    full_writer,
    read,
    scripted_writer,
    stream,
    turns,
    writer_pair,
)
from tests.support.manpages import covered, subjects
from tests.support.sockets import is_silent, stream_pair

if TYPE_CHECKING:
    from tests.support.batches import MakeFile

PAGE = (
    "iobatch-asyncio.7",
    "Tasks, timeouts and cancellation",
    "What can be combined on one socket",
)


def test_the_tests_here_and_the_rows_of_the_tables_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


# Tasks, timeouts and cancellation


@both_loops
async def test_asyncio_timeout_seconds_is_a_timeout_of_write_or_cancels() -> None:
    with full_writer() as (writer, _):
        assert writer.write(batch_of(b"abc"), timeout=0).status is WriteStatus.TIMEOUT
        operation = writer.write(batch_of(b"abc"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await operation
        assert operation.status is WriteStatus.CANCELLED


@both_loops
async def test_asyncio_wait_for_drain_s_is_the_same_or_a_timeout_of_the_write() -> None:
    with full_writer(high_water=1) as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0)
        assert not operation.done()
        assert writer.write(batch_of(b"def"), timeout=0).status is WriteStatus.TIMEOUT
        assert await peer.read(3) == b"abc"


@both_loops
async def test_a_timeout_part_way_aborts_later_writes_until_the_rest_is_posted_or_reset() -> None:
    content = data(1_000_000)
    with writer_pair(buffers=4096) as (writer, peer):
        operation = writer.write(batch_of(content), timeout=0)
        with pytest.raises(TimeoutError):
            await operation
        sent = operation.bytes_transferred
        assert await read(peer, sent) == content[:sent]
        assert 0 < sent == len(content) - operation.batch.bytesleft
        assert writer.write(batch_of(b"abc")).status is WriteStatus.ABORTED
        await writer.drain()
        assert not writer.write(operation.batch).done()
    for end in ("timeout", "cancellation"):
        with writer_pair(buffers=4096) as (writer, _):
            operation = writer.write(batch_of(content), timeout=0 if end == "timeout" else None)
            operation.cancel()
            assert operation.cancelled() == (end == "cancellation")
            if end == "timeout":
                with pytest.raises(TimeoutError):
                    await writer.drain()
            assert writer.write(batch_of(b"abc")).status is WriteStatus.ABORTED
            await writer.drain()
            operation.batch.reset()
            assert writer.write(batch_of(content)).status is WriteStatus.PENDING


@both_loops
async def test_no_progress_is_stall_timeout() -> None:
    with full_writer() as (writer, _):
        assert writer.write(batch_of(b"abc"), stall_timeout=0).status is WriteStatus.TIMEOUT


@both_loops
async def test_task_cancel_in_drain_leaves_the_operations() -> None:
    with full_writer(high_water=1) as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        draining = asyncio.ensure_future(writer.drain())
        await turns()
        draining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await draining
        assert not operation.done()
        assert await peer.read(3) == b"abc"
        assert await operation == 3


@both_loops
async def test_task_cancel_in_a_write_cancels_the_operation_with_exact_counts() -> None:
    content = data(1_000_000)
    with writer_pair(buffers=4096) as (writer, peer):
        operation = writer.write(batch_of(content))
        task = asyncio.ensure_future(operation)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert operation.status is WriteStatus.CANCELLED
        sent = operation.bytes_transferred
        assert await read(peer, sent) == content[:sent]
        assert is_silent(peer)
        assert sent + operation.batch.bytesleft == len(content)


@both_loops
async def test_task_cancel_in_send_to_stream_leaves_the_rest_in_the_batch() -> None:
    content = data(2_000_000)
    async with stream(buffers=4096) as (writer, peer):
        batch = batch_of(content)
        sending = asyncio.create_task(send_to_stream(writer, batch))
        await turns()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert batch.bytessent + batch.bytesleft == len(content)
        writer.close()
        assert await read(peer, batch.bytessent) == content[: batch.bytessent]
        assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""


@both_loops
@pytest.mark.parametrize("way", ["shield", "wait"])
async def test_asyncio_shield_coroutine_keeps_the_operation_and_logs_its_error_unlike_asyncio_wait(
    way: str,
) -> None:
    loop = asyncio.get_running_loop()
    logged: list[str] = []
    loop.set_exception_handler(lambda _, context: logged.append(context["message"]))
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))

        async def wait() -> None:
            await (asyncio.shield(operation) if way == "shield" else asyncio.wait([operation]))

        task = asyncio.create_task(wait())
        await turns()
        task.cancel()
        await asyncio.wait([task])
        assert not operation.done()
        peer.sock.close()
        await asyncio.wait([operation])
        await turns()
        del task
        gc.collect()
    assert logged == (["Task exception was never retrieved"] if way == "shield" else [])


@both_loops
async def test_asyncio_create_task_coroutine_is_write_itself() -> None:
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        future = asyncio.ensure_future(operation)
        assert asyncio.isfuture(future)
        with pytest.raises(TypeError):
            await asyncio.create_task(operation)  # type: ignore[arg-type]
        assert await peer.read(3) == b"abc"
        assert operation.done()
        assert await future == 3


@both_loops
async def test_asyncio_gather_takes_operations() -> None:
    with full_writer() as (writer, peer):
        operations = [writer.write(batch_of(bytes(size))) for size in (1, 2, 3)]
        reading = asyncio.create_task(peer.read(6))
        assert await asyncio.gather(*operations) == [1, 2, 3]
        await reading


@both_loops
async def test_asyncio_wait_takes_operations() -> None:
    with full_writer() as (writer, peer):
        operations = [writer.write(batch_of(b"abc")) for _ in range(3)]
        reading = asyncio.create_task(peer.read(9))
        done, pending = await asyncio.wait(operations)
        assert (done, pending) == ({*operations}, set())
        await reading


@both_loops
async def test_future_add_done_callback_f_has_the_same_name() -> None:
    seen: list[WriteOperation] = []
    with writer_pair() as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        operation.add_done_callback(seen.append)
        await turns(1)
        assert seen == [operation]


@both_loops
async def test_exception_never_retrieved_is_raised_once_by_drain_or_the_end() -> None:
    """The loop's exception handler would fail this test."""
    reset = ConnectionResetError(errno.ECONNRESET, "scripted")
    with scripted_writer(reset, reset) as (writer, _):
        writer.write(batch_of(b"abc"))
        with pytest.raises(ConnectionResetError):
            await writer.drain()
        await writer.drain()
        with pytest.raises(ConnectionResetError):
            async with writer:
                writer.write(batch_of(b"abc"))


# What can be combined on one socket


@both_loops
async def test_batchwriter_sock_recv_work_together() -> None:
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        reading = asyncio.create_task(read(writer.sock, 5))
        await turns()
        peer.sock.send(b"reply")
        assert await reading == b"reply"
        assert await peer.read(3) == b"abc"
        assert await operation == 3


@both_loops
async def test_batchwriter_add_reader_work_together() -> None:
    loop = asyncio.get_running_loop()
    with full_writer() as (writer, peer):
        readable = asyncio.Event()
        loop.add_reader(writer.sock, readable.set)
        operation = writer.write(batch_of(b"abc"))
        peer.sock.send(b"reply")
        await readable.wait()
        assert await peer.read(3) == b"abc"
        assert await operation == 3
        assert writer.sock.recv(10) == b"reply"
        readable.clear()
        peer.sock.send(b"another")
        await readable.wait()
        loop.remove_reader(writer.sock)


@both_loops
async def test_batchwriter_iob_send_work_together_while_nothing_is_pending() -> None:
    with writer_pair() as (writer, peer):
        await writer.write(batch_of(b"one, "))
        batch = batch_of(b"two, ")
        assert [iob_send(writer.sock, batch) for _ in range(2)] == [5, IOB_DONE]
        await writer.write(batch_of(b"three"))
        assert await read(peer, 15) == b"one, two, three"


@both_loops
async def test_batchwriter_add_writer_do_not_a_waiting_writer_removes_the_callback() -> None:
    called: list[str] = []
    with full_writer() as (writer, peer):
        asyncio.get_running_loop().add_writer(writer.sock, called.append, "writable")
        await turns()
        operation = writer.write(batch_of(b"abc"))
        assert await peer.read(3) == b"abc"
        assert await operation == 3
        await turns()
        assert called == []


@both_loops
async def test_batchwriter_sock_sendall_do_not_sock_sendall_waits_forever() -> None:
    loop = asyncio.get_running_loop()
    with full_writer() as (writer, peer):
        sending = asyncio.create_task(loop.sock_sendall(writer.sock, b"sendall"))
        await turns()
        operation = writer.write(batch_of(b"abc"))
        assert await peer.read(3) == b"abc"
        assert await operation == 3
        await turns()
        assert not sending.done()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending


@both_loops
async def test_two_batchwriters_mix_their_bytes() -> None:
    with writer_pair(limit=2) as (writer, peer):
        first = writer.write(batch_of(b"abcd"))
        second = BatchWriter(writer.sock).write(batch_of(b"1234"))
        assert await read(peer, 8) == b"ab1234cd"
        assert [await first, await second] == [4, 4]


@both_loops
async def test_batchwriter_transport_is_a_runtime_error_when_it_must_wait() -> None:
    with stream_pair("tcp4", buffers=4096) as (ours, peer):
        sock = ours.dup()
        sock.setblocking(False)
        _, writer = await asyncio.open_connection(sock=sock)
        operation = BatchWriter(sock).write(batch_of(bytes(1_000_000)))
        with pytest.raises(RuntimeError, match="used by transport"):
            await operation
        peer.setblocking(False)
        await read(peer, operation.bytes_transferred)
        assert operation.bytes_transferred > 0
        writer.close()
        await writer.wait_closed()


@both_loops
async def test_batchwriter_on_a_duplicate_works_beside_the_streams_reader() -> None:
    with stream_pair("tcp4", buffers=4096) as (ours, peer):
        peer.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours.dup())
        ours.close()
        with writer.get_extra_info("socket").dup() as sock:
            async with BatchWriter(sock) as batch_writer:
                operation = batch_writer.write(batch_of(data(1_000_000)))
                assert not operation.done()
                peer.send(b"reply")
                assert await reader.readexactly(5) == b"reply"
                assert await read(peer, 1_000_000) == data(1_000_000)
        writer.close()
        await writer.wait_closed()
        assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""


@both_loops
async def test_send_to_stream_streamreader_work_together() -> None:
    with stream_pair("tcp4", buffers=4096) as (ours, peer):
        reader, writer = await asyncio.open_connection(sock=ours.dup())
        peer.setblocking(False)
        sending = asyncio.create_task(send_to_stream(writer, batch_of(bytes(200_000))))
        peer.send(b"reply")
        assert await reader.readexactly(5) == b"reply"
        await read(peer, 200_000)
        assert await sending == 200_000
        writer.close()
        await writer.wait_closed()


@both_loops
async def test_send_to_stream_stream_write_come_between_or_raise(make_file: MakeFile) -> None:
    async with stream(buffers=4096) as (writer, peer):
        writer.write(b"before, ")
        await send_to_stream(writer, batch_of(b"batch, "))
        writer.write(b"after")
        assert await read(peer, 20) == b"before, batch, after"
        sending = asyncio.create_task(send_to_stream(writer, batch_of(bytes(1_000_000))))
        await turns()
        writer.write(b"x")
        received = await read(peer, 1_000_001)
        await sending
        assert 0 < received.index(b"x") < 1_000_000
        if type(writer.transport).__module__.startswith("uvloop"):
            return  # without sendfile
        batch = IOBatch()
        batch.addfile(make_file(data(1_000_000)))
        sending = asyncio.create_task(send_to_stream(writer, batch))
        received = await read(peer, 1)
        with pytest.raises(RuntimeError, match="sendfile is in progress"):
            writer.write(b"x")
        assert received + await read(peer, 999_999) == data(1_000_000)
        await sending

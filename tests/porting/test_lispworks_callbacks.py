"""iobatch-lispworks(7), Callbacks and status: one test for each row, in the rows' order."""

from __future__ import annotations

import asyncio
import errno
import threading
import zlib
from typing import TYPE_CHECKING, Any

from iobatch.aio import BatchWriter, CancellationType, WriteStatus
from iobatch.filters import Filter
from tests.support.aio import statuses
from tests.support.batches import batch_of
from tests.support.fakes import again
from tests.support.loops import both_loops, full_writer, read, scripted_writer, turns, writer_pair
from tests.support.manpages import covered, subjects
from tests.support.sockets import reset, wait_for_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from iobatch.aio import WriteOperation

PAGE = "iobatch-lispworks.7", "Callbacks and status"
DONE, TIMEOUT, CANCELLED = WriteStatus.DONE, WriteStatus.TIMEOUT, WriteStatus.CANCELLED
ABORTED, ERROR = WriteStatus.ABORTED, WriteStatus.ERROR


class Calls(list[tuple[str, object, int, WriteStatus]]):
    """A list of callbacks' names, data, counts, and the writer's status during the call."""

    def callback(self, name: str) -> Callable[[BatchWriter, Any, int], object]:
        def append(writer: BatchWriter, data: object, nbytes: int) -> None:
            self.append((name, data, nbytes, writer.status))

        return append

    @property
    def options(self) -> dict[str, Any]:
        """Both callbacks, as arguments of write_buffer()."""
        return {"callback": self.callback("callback"), "error_callback": self.callback("error")}


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


@both_loops
async def test_callback_is_called_after_success_and_timeout_or_alone_at_every_end() -> None:
    calls = Calls()
    with writer_pair() as (writer, _):
        writer.write_buffer(b"abc", **calls.options)
        await turns()
    with full_writer() as (writer, _):
        writer.write_buffer(b"abc", **calls.options, timeout=0)
        writer.write_buffer(b"abc", calls.callback("alone"), timeout=None).cancel()
        await turns()
    assert calls == [
        ("callback", b"abc", 3, DONE),
        ("callback", b"abc", 0, TIMEOUT),
        ("alone", b"abc", 0, CANCELLED),
    ]


@both_loops
async def test_error_callback_is_called_after_errors_cancellation_and_abortion() -> None:
    calls = Calls()
    with scripted_writer(2, again(), BrokenPipeError(errno.EPIPE, "broken")) as (writer, _):
        op = writer.write_buffer(b"abc", **calls.options)
        writer.write_buffer(b"def", **calls.options)
        await asyncio.wait([op])
        await turns()
    with full_writer() as (writer, _):
        writer.write_buffer(b"ghi", **calls.options).cancel()
        await turns()
    assert calls == [
        ("error", b"abc", 2, ERROR),
        ("error", b"def", 0, ABORTED),
        ("error", b"ghi", 0, CANCELLED),
    ]


@both_loops
async def test_number_of_bytes_written_is_exact_and_the_rest_can_be_sent() -> None:
    calls = Calls()
    with scripted_writer(2, again()) as (writer, sock):
        op = writer.write_buffer(b"abcdef", calls.callback("callback"), timeout=0)
        await turns()
        assert calls == [("callback", b"abcdef", 2, TIMEOUT)]
        assert writer.timeout == 0
        assert await writer.write(op.batch, timeout=None) == 4
        assert sock.taken == b"abcdef"
    with writer_pair(through=Filter(zlib.compressobj())) as (writer, _):
        assert await writer.write_buffer(bytes(50_000), calls.callback("filtered")) == 50_000
        await turns()
        assert calls[1:] == [("filtered", bytes(50_000), 50_000, DONE)]
        writer.close()


@both_loops
async def test_process_of_the_callbacks_is_the_thread_of_the_loop() -> None:
    idents: list[int] = []
    with writer_pair() as (writer, _):
        op = writer.write_buffer(b"abc", lambda *_: idents.append(threading.get_ident()))
        assert (op.done(), idents) == (True, [])
        await turns()
        assert idents == [threading.get_ident()]


@both_loops
async def test_write_in_a_callback_is_allowed() -> None:
    with writer_pair() as (writer, peer):
        calls = Calls()
        writer.write_buffer(
            b"abc", lambda *_: writer.write_buffer(b"def", calls.callback("second"))
        )
        assert await read(peer, 6) == b"abcdef"
        await turns()
        assert calls == [("second", b"def", 3, DONE)]


@both_loops
async def test_error_in_a_callback_handler_is_the_loops() -> None:
    raised: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: raised.append(context["exception"])
    )
    with writer_pair() as (writer, _):
        calls = Calls()
        writer.write_buffer(b"abc", lambda *_: 1 / 0)
        writer.write_buffer(b"def", calls.callback("second"))
        await turns()
        assert [type(exc) for exc in raised] == [ZeroDivisionError]
        assert calls == [("second", b"def", 3, DONE)]


@both_loops
async def test_async_io_state_write_status_is_status() -> None:
    with full_writer() as (writer, peer):
        calls = Calls()
        op = writer.write_buffer(b"abc", calls.callback("callback"))
        assert (op.status, writer.status) == (WriteStatus.PENDING, WriteStatus.PENDING)
        assert await peer.read(3) == b"abc"
        await op
        await turns()
        assert (op.status, [call[3] for call in calls]) == (DONE, [DONE])
        writer.write(batch_of(bytes(1 << 20)))
        assert writer.status is DONE


@both_loops
async def test_write_status_nil_is_done() -> None:
    with writer_pair() as (writer, _):
        op = writer.write_buffer(b"abc", lambda *_: None)
        assert (op.status, op.error) == (DONE, None)


@both_loops
async def test_write_status_timeout_is_timeout() -> None:
    with full_writer() as (writer, _):
        op = writer.write_buffer(b"abc", lambda *_: None, timeout=0)
        assert (op.status, type(op.error)) == (TIMEOUT, TimeoutError)


@both_loops
async def test_write_status_eof_is_an_error_of_the_connection() -> None:
    for kind, expected in [("socketpair", BrokenPipeError), ("tcp4", ConnectionResetError)]:
        with writer_pair(kind) as (writer, peer):
            reset(peer)
            wait_for_error(writer.sock)
            op = writer.write_buffer(b"abc", lambda *_: None)
            await asyncio.wait([op])
            assert (op.status, type(op.error)) == (ERROR, expected)


@both_loops
async def test_write_status_other_values_are_exceptions() -> None:
    with scripted_writer(OSError(errno.ENOBUFS, "no buffers")) as (writer, _):
        op = writer.write_buffer(b"abc", lambda *_: None)
        await asyncio.wait([op])
        assert isinstance(op.error, OSError)
        assert (op.status, op.error.errno) == (ERROR, errno.ENOBUFS)


@both_loops
async def test_write_after_a_partial_one_is_aborted_until_the_rest_was_posted() -> None:
    with scripted_writer(2, again()) as (writer, sock):
        op = writer.write_buffer(b"abc", lambda *_: None)
        assert op.cancel(CancellationType.PARTIAL)
        later = writer.write_buffer(b"def", lambda *_: None)
        assert statuses([op, later]) == [CANCELLED, ABORTED]
        writer.write(op.batch)
        assert await writer.write(later.batch) == 3
        writer.write(batch_of(b"g"))
        assert sock.taken == b"abcdefg"


@both_loops
async def test_resume_with_start_follows_a_reset_or_is_a_write_without_callback() -> None:
    with scripted_writer(2, again(), again(), timeout=0) as (writer, sock):
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def resume(writer: BatchWriter, data: bytes, nbytes: int) -> None:
            op.batch.reset()
            writer.write_buffer(
                data,
                lambda _writer, _data, more: ended.set_result(nbytes + more),
                start=1 + nbytes,
                timeout=None,
            )

        op = writer.write_buffer(b"abcdef", resume, start=1)
        assert await ended == 5
        assert sock.taken == b"bcdef"
    calls = Calls()
    with scripted_writer(2, again(), timeout=0) as (writer, _):
        op = writer.write_buffer(b"abc", calls.callback("callback"))
        await turns()
        done: asyncio.Future[WriteOperation] = asyncio.get_running_loop().create_future()
        rest = writer.write(op.batch, timeout=None, on_complete=done.set_result)
        assert (await done, rest.bytes_transferred) == (rest, 1)
        assert (len(calls), writer.status) == (1, TIMEOUT)

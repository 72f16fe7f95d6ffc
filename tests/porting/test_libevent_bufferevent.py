"""Coming from libevent: one test for each row of the tables about bufferevent and filters."""

from __future__ import annotations

import asyncio
import errno
import socket
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, TruncatedFileError, iob_write
from iobatch.aio import BatchWriter, WriteOperation, WriteStatus
from iobatch.filters import Filter
from tests.support.batches import batch_of, data
from tests.support.fakes import Scripted
from tests.support.filters import (
    Identity,
    Swallowing,
    step_until_done,
    step_when_writable,
    write_and_finish,
)
from tests.support.loops import both_loops, full_writer, read, turns, writer_pair
from tests.support.manpages import covered, example, subjects
from tests.support.sockets import stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.batches import MakeFile
    from tests.support.tls import TLSClient

PAGE = ("iobatch-libevent.7", "bufferevent", "Events", "Filters and flush modes")


def test_the_tests_here_and_the_rows_of_the_tables_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


def flushing_gzip() -> Any:
    """Return the transform of the page's example."""
    return example(PAGE[0])["FlushingGzip"]()


# bufferevent


@both_loops
async def test_bufferevent_socket_new_is_a_writer_on_a_non_blocking_socket() -> None:
    with stream_pair() as (ours, theirs):
        with pytest.raises(ValueError, match="non-blocking"):
            BatchWriter(ours)
        ours.setblocking(False)
        async with BatchWriter(ours) as writer:
            await writer.write(batch_of(b"abc"))
        assert theirs.recv(10) == b"abc"


@both_loops
async def test_bev_opt_defer_callbacks_is_always_set() -> None:
    called: list[WriteOperation] = []
    with writer_pair() as (writer, _):
        operation = writer.write(batch_of(b"abc"), on_complete=called.append)
        assert operation.done()
        assert called == []
        await turns()
        assert called == [operation]


@both_loops
async def test_bev_opt_threadsafe_is_call_soon_threadsafe() -> None:
    loop = asyncio.get_running_loop()
    with writer_pair() as (writer, peer):
        await asyncio.to_thread(loop.call_soon_threadsafe, writer.write, batch_of(b"abc"))
        assert await read(peer, 3) == b"abc"


@both_loops
async def test_bufferevent_write_returns_an_operation_and_copies_nothing() -> None:
    buffer = bytearray(b"abc")
    with full_writer() as (writer, peer):
        batch = IOBatch()
        batch.addbuf(buffer)
        operation = writer.write(batch)
        buffer[:] = b"ABC"
        assert await peer.read(3) == b"ABC"
        assert await operation == 3


@both_loops
async def test_bufferevent_write_buffer_empties_the_batch() -> None:
    with full_writer() as (writer, _):
        batch = batch_of(b"abc")
        writer.write(batch)
        assert batch.bytesleft == 0


@both_loops
async def test_bufferevent_get_output_is_pending_or_the_batch_of_an_operation() -> None:
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        assert writer.pending == 3
        writer.close()
        assert (writer.pending, operation.batch.bytesleft) == (0, 3)


@both_loops
async def test_writecb_is_on_complete_when_the_write_is_done() -> None:
    called: list[WriteOperation] = []
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"), on_complete=called.append)
        await turns()
        assert called == []
        assert await peer.read(3) == b"abc"
        assert await operation == 3
        await turns()
        assert called == [operation]


@both_loops
async def test_eventcb_is_on_error_or_the_exception() -> None:
    called: list[WriteOperation] = []
    with writer_pair() as (writer, peer):
        peer.close()
        operation = writer.write(batch_of(b"abc"), on_error=called.append)
        with pytest.raises(BrokenPipeError):
            await operation
        await turns()
        assert called == [operation]


@both_loops
async def test_cbarg_is_user_info() -> None:
    with writer_pair(user_info="the writer's") as (writer, _):
        assert writer.write(batch_of(b"abc")).user_info == "the writer's"
        assert writer.write(batch_of(b"abc"), user_info="its own").user_info == "its own"


@both_loops
async def test_low_watermark_is_high_water_less_1() -> None:
    with full_writer(high_water=2 + 1) as (writer, peer):
        writer.write(batch_of(b"ab"))
        await writer.drain()
        writer.write(batch_of(b"c"))
        draining = asyncio.create_task(writer.drain())
        await turns()
        assert not draining.done()
        assert await peer.read(3) == b"abc"
        await draining


def test_high_watermark_is_that_of_a_filter() -> None:
    pipeline = Filter(Identity(), lambda _sock, _view: -1, high_water=3)
    batch = batch_of(b"abc", b"def")
    assert iob_write(None, batch, pipeline, limit=3) == 3
    assert iob_write(None, batch, pipeline) == IOB_AGAIN
    assert pipeline.bytesleft == 3


@both_loops
async def test_bufferevent_disable_is_cancel_and_a_later_write() -> None:
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        assert operation.cancel()
        writer.write(operation.batch)
        assert await peer.read(3) == b"abc"


@both_loops
async def test_bufferevent_set_timeouts_is_stall_timeout() -> None:
    for options in ({"stall_timeout": 0.01}, {"timeout": 0.01}):
        with full_writer(**options) as (writer, _), pytest.raises(TimeoutError):
            await writer.write(batch_of(b"abc"))


@both_loops
async def test_bufferevent_free_is_close_and_aborts() -> None:
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        writer.close()
        assert (operation.status, operation.batch.bytesleft) == (WriteStatus.ABORTED, 3)
        assert writer.sock.fileno() >= 0  # as without BEV_OPT_CLOSE_ON_FREE
    with writer_pair(buffers=4096) as (writer, peer):
        async with writer:
            operation = writer.write(batch_of(data(100_000)))
            reading = asyncio.create_task(read(peer, 100_000))
        assert operation.status is WriteStatus.DONE
        assert await reading == data(100_000)


@both_loops
async def test_bufferevent_set_max_single_write_is_limit() -> None:
    with writer_pair(limit=4) as (writer, peer):
        operation = writer.write(batch_of(b"abcdef"))
        assert operation.bytes_transferred == 4
        assert await read(peer, 6) == b"abcdef"


@both_loops
async def test_bufferevent_openssl_socket_new_is_a_filter_with_tls(tls_client: TLSClient) -> None:
    with writer_pair(through=tls_client.filter) as (writer, peer):
        await writer.write(batch_of(b"abc"))
        tls_client.incoming.write(peer.recv(1 << 16))
        assert tls_client.sslobject.read(10) == b"abc"


@both_loops
async def test_ssl_shutdown_is_finish(tls_client: TLSClient) -> None:
    with writer_pair(through=tls_client.filter) as (writer, peer):
        writer.write(batch_of(b"abc"))
        await writer.finish()
        assert tls_client.read(peer.recv(1 << 16)) == b"abc"  # up to close_notify


@both_loops
async def test_bufferevent_pair_new_is_a_socketpair() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        async with BatchWriter(ours) as writer:
            writer.write(batch_of(b"abc"))
        assert theirs.recv(10) == b"abc"


@both_loops
async def test_bufferevent_getfd_is_sock() -> None:
    with writer_pair() as (writer, _):
        assert writer.sock.send(b"abc") == 3


# Events


@both_loops
async def test_bev_event_eof_is_a_truncated_file_error(make_file: MakeFile) -> None:
    with writer_pair() as (writer, peer):
        batch = batch_of(b"abc")
        batch.addfile(make_file(b"def"), 0, 4)
        operation = writer.write(batch)
        with pytest.raises(TruncatedFileError):
            await operation
        writer.sock.shutdown(socket.SHUT_WR)
        assert await read(peer, 6) == b"abcdef"
        assert await asyncio.get_running_loop().sock_recv(peer, 10) == b""


@both_loops
async def test_bev_event_error_is_an_os_error() -> None:
    with writer_pair() as (writer, peer):
        peer.close()
        operation = writer.write(batch_of(b"abc"))
        with pytest.raises(BrokenPipeError):
            await operation
        assert operation.status is WriteStatus.ERROR


@both_loops
async def test_evutil_socket_error_is_the_errno_of_the_error() -> None:
    with writer_pair() as (writer, peer):
        peer.close()
        operation = writer.write(batch_of(b"abc"))
        assert isinstance(operation.error, OSError)
        assert operation.error.errno == errno.EPIPE


@both_loops
async def test_bev_event_timeout_is_a_timeout_error_after_which_the_rest_can_be_posted() -> None:
    content = data(100_000)
    with writer_pair(buffers=4096, stall_timeout=0.01) as (writer, peer):
        operation = writer.write(batch_of(content))
        with pytest.raises(TimeoutError):
            await operation
        assert operation.status is WriteStatus.TIMEOUT
        assert 0 < operation.bytes_transferred < len(content)
        writer.write(operation.batch, stall_timeout=None)
        assert await read(peer, len(content)) == content


# Filters and flush modes


def test_bufferevent_filter_new_is_a_filter_over_another(sock: Scripted) -> None:
    write_and_finish(sock, batch_of(b"abc"), Filter(zlib.compressobj(), Filter(Identity())))
    assert zlib.decompress(bytes(sock.taken)) == b"abc"


def test_src_is_taken_as_a_whole(sock: Scripted) -> None:
    seen: list[bytes] = []

    class Transform(Identity):
        def compress(self, data: Any) -> bytes:
            seen.append(bytes(data))
            return b""

    assert iob_write(sock, batch_of(b"abc"), Filter(Transform())) == 3
    assert seen == [b"abc"]


def test_dst_is_the_value_returned(sock: Scripted) -> None:
    class Transform(Identity):
        def compress(self, data: Any) -> bytes:
            return bytes(data).upper()

        def flush(self) -> bytes:
            return b"."

    write_and_finish(sock, batch_of(b"abc"), Filter(Transform()))
    assert sock.taken == b"ABC."


def test_dst_limit_is_high_water_of_the_filter() -> None:
    pipeline = Filter(Identity(), lambda _sock, _view: -1, high_water=3)
    batch = batch_of(b"abcdef")
    codes = [iob_write(None, batch, pipeline, limit=2) for _ in range(3)]
    assert codes == [2, 2, IOB_AGAIN]


def test_ctx_is_an_attribute_of_the_transform(sock: Scripted) -> None:
    transform = Swallowing()
    assert iob_write(sock, batch_of(b"abc"), Filter(transform)) == 3
    assert transform.kept == b"abc"


def test_bev_ok_is_the_output(sock: Scripted) -> None:
    assert iob_write(sock, batch_of(b"abc"), Filter(Identity())) == 3
    assert sock.taken == b"abc"


def test_bev_need_more_is_no_output(sock: Scripted) -> None:
    pipeline = Filter(Swallowing())
    batch = batch_of(b"abc")
    assert iob_write(sock, batch, pipeline) == 3
    assert (sock.taken, batch.bytesleft) == (b"", 0)
    step_until_done(sock, lambda: pipeline.finish(sock), pipeline)
    assert sock.taken == b"abc"


def test_bev_error_is_an_os_error_that_stays(sock: Scripted) -> None:
    class Transform(Identity):
        def compress(self, data: Any) -> bytes:
            raise OSError(errno.EILSEQ, "scripted")

    pipeline = Filter(Transform())
    batch = batch_of(b"abc")
    assert [iob_write(sock, batch, pipeline) for _ in range(2)] == [IOB_ERROR] * 2
    assert pipeline.error is not None
    assert pipeline.error.errno == errno.EILSEQ


def test_bev_normal_is_compress_and_flushes_nothing(sock: Scripted) -> None:
    pipeline = Filter(flushing_gzip())
    assert iob_write(sock, batch_of(b"abc"), pipeline) == 3
    assert zlib.decompressobj(31).decompress(bytes(sock.taken)) == b""


@pytest.mark.parametrize("flush", ["drain", "flush", "write"])
@both_loops
async def test_bev_flush_is_compress_of_nothing(flush: str) -> None:
    pipeline = Filter(flushing_gzip())
    with writer_pair(through=pipeline) as (writer, peer):
        if flush == "write":
            await writer.write(batch_of(b"abc"))
        else:
            assert iob_write(writer.sock, batch_of(b"abc"), pipeline) == 3
            if flush == "flush":
                await writer.flush()
            else:
                step_when_writable(lambda: pipeline.drain(writer.sock), writer.sock, pipeline)
        assert zlib.decompressobj(31).decompress(peer.recv(1 << 16)) == b"abc"
        assert pipeline.drain(writer.sock) == IOB_DONE  # no further flush


@both_loops
async def test_bev_finished_is_flush_called_once() -> None:
    pipeline = Filter(flushing_gzip())
    with writer_pair(through=pipeline) as (writer, peer):
        writer.write(batch_of(b"abc"))
        await writer.finish()
        assert await writer.finish() == 0
        coder = zlib.decompressobj(31)
        assert coder.decompress(peer.recv(1 << 16)) == b"abc"
        assert (coder.eof, coder.unused_data) == (True, b"")


@pytest.mark.parametrize("step", [Filter.drain, Filter.finish])
def test_bufferevent_flush_is_called_until_0(step: Callable[[Filter, Any], int]) -> None:
    pipeline = Filter(flushing_gzip())
    with Scripted(*[1] * 5) as sock:
        assert iob_write(sock, batch_of(b"abc"), pipeline) == 3
        assert step(pipeline, sock) > 0
        step_until_done(sock, lambda: step(pipeline, sock), pipeline)
        assert zlib.decompressobj(31).decompress(bytes(sock.taken)) == b"abc"


def test_bufferevent_get_underlying_is_then() -> None:
    underlying = Filter(Identity())
    assert Filter(Identity(), underlying).then is underlying

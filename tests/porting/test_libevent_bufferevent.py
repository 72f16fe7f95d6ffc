"""Coming from libevent: one test for each row of the tables about bufferevent."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOBatch, TruncatedFileError, iob_write
from iobatch.aio import BatchWriter, WriteOperation, WriteStatus, send_to_stream
from iobatch.filters import Filter
from tests.support.batches import batch_of, data
from tests.support.fakes import Scripted
from tests.support.filters import Identity
from tests.support.loops import both_loops, full_writer, read, turns, writer_pair
from tests.support.manpages import covered, subjects
from tests.support.sockets import stream_pair
from tests.support.tls import TLSClient, tls_contexts

if TYPE_CHECKING:
    import trustme

    from tests.support.batches import MakeFile

PAGE = ("iobatch-libevent.7", "bufferevent", "Events")


def test_the_tests_here_and_the_rows_of_the_tables_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


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
        batch = batch_of(b"ab")
        batch.addbuf(b"c")
        operation = writer.write(batch)
        assert writer.pending == 3
        writer.close()
        assert (writer.pending, operation.batch.bytesleft) == (0, 3)


@both_loops
async def test_bufferevent_setcb_is_the_callbacks_and_user_info_of_a_write() -> None:
    done: list[WriteOperation] = []
    failed: list[WriteOperation] = []
    with writer_pair() as (writer, _):
        operation = writer.write(
            batch_of(b"abc"), on_complete=done.append, on_error=failed.append, user_info="cbarg"
        )
        await turns()
        assert (done, failed) == ([operation], [])
        assert operation.user_info == "cbarg"


@both_loops
async def test_writecb_is_on_complete_which_is_called_for_errors_too_without_on_error() -> None:
    called: list[object] = []
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"), on_complete=called.append)
        await turns()
        assert called == []
        assert await peer.read(3) == b"abc"
        assert await operation == 3
        await turns()
        assert called == [operation]
    called.clear()
    with writer_pair() as (writer, lost):
        lost.close()
        failed = writer.write(batch_of(b"abc"), on_complete=called.append)
        writer.write(
            batch_of(b"abc"), on_complete=called.append, on_error=lambda _: called.append("g")
        )
        await turns()
        assert called == [failed, "g"]


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
async def test_bufferevent_setwatermark_ev_write_lowmark_is_high_water_less_1() -> None:
    with full_writer(high_water=2 + 1) as (writer, peer):
        writer.write(batch_of(b"ab"))
        await writer.drain()
        writer.write(batch_of(b"c"))
        draining = asyncio.create_task(writer.drain())
        await turns()
        assert not draining.done()
        assert await peer.read(3) == b"abc"
        await draining


def test_bufferevent_setwatermark_ev_write_highmark_is_that_of_a_filter() -> None:
    pipeline = Filter(Identity(), lambda _sock, _view: -1, high_water=3)
    batch = batch_of(b"abc", b"def")
    assert iob_write(None, batch, pipeline, limit=3) == 3
    assert iob_write(None, batch, pipeline) == IOB_AGAIN
    assert pipeline.bytesleft == 3


@both_loops
async def test_bufferevent_disable_ev_write_is_cancel_and_later_writes_in_order() -> None:
    content = data(200_000)
    with writer_pair(buffers=4096) as (writer, peer):
        operations = [writer.write(batch_of(content)), writer.write(batch_of(b"abc"))]
        operations.append(writer.write(batch_of(b"def")))
        assert writer.cancel()
        assert 0 < operations[0].bytes_transferred < len(content)
        for operation in operations:
            writer.write(operation.batch)
        assert await read(peer, len(content) + 6) == content + b"abcdef"


@both_loops
async def test_bufferevent_set_timeouts_timeout_write_is_stall_timeout() -> None:
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
async def test_shutdown_fd_shut_wr_follows_the_last_operation() -> None:
    content = data(100_000)
    with writer_pair(buffers=4096) as (writer, peer):
        reading = asyncio.create_task(read(peer, len(content)))
        await writer.write(batch_of(content))
        writer.sock.shutdown(socket.SHUT_WR)
        assert await reading == content
        assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""


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


def test_bufferevent_openssl_filter_new_is_a_filter_before_another_one(
    authority: trustme.CA,
) -> None:
    with Scripted() as sock:
        underlying = Filter(Identity())
        client = TLSClient(authority, then=underlying)
        client.shake_hands()
        before = underlying.bytessent
        assert iob_write(sock, batch_of(b"abc"), client.filter) == 3
        assert client.filter.drain(sock) == IOB_DONE
        assert underlying.bytessent - before == len(sock.taken)
        client.incoming.write(bytes(sock.taken))
        assert client.sslobject.read(10) == b"abc"


def test_bufferevent_ssl_accepting_is_server_side(authority: trustme.CA) -> None:
    context, _ = tls_contexts(authority)
    assert context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True).server_side


def test_bufferevent_ssl_connecting_is_server_hostname(authority: trustme.CA) -> None:
    _, context = tls_contexts(authority)
    sslobject = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
    assert not sslobject.server_side


def test_allow_dirty_shutdown_is_to_catch_ssl_eof_error(tls_client: TLSClient) -> None:
    with pytest.raises(ssl.SSLEOFError):
        tls_client.tls.receive(b"")


@both_loops
async def test_ssl_shutdown_is_finish(tls_client: TLSClient) -> None:
    with writer_pair(through=tls_client.filter) as (writer, peer):
        writer.write(batch_of(b"abc"))
        await writer.finish()
        assert tls_client.read(peer.recv(1 << 16)) == b"abc"  # up to close_notify


@both_loops
async def test_socket_connect_hostname_is_sock_connect_or_open_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
        port = listener.getsockname()[1]
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("localhost", port))
        peer, _ = listener.accept()
        with peer:
            async with BatchWriter(sock) as batch_writer:
                batch_writer.write(batch_of(b"abc"))
            assert peer.recv(10) == b"abc"
        _reader, writer = await asyncio.open_connection("localhost", port)
        peer, _ = listener.accept()
        with peer:
            assert await send_to_stream(writer, batch_of(b"abc")) == 3
            assert peer.recv(10) == b"abc"
            writer.close()


@both_loops
async def test_evconnlistener_new_bind_is_create_server_and_sock_accept() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        with socket.create_connection(listener.getsockname()) as peer:
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            with sock:
                async with BatchWriter(sock) as writer:
                    writer.write(batch_of(b"abc"))
                assert peer.recv(10) == b"abc"


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
async def test_bev_event_eof_is_the_end_of_the_stream_or_a_truncated_file_error(
    make_file: MakeFile,
) -> None:
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
async def test_bev_event_timeout_is_a_timeout_error_after_which_the_rests_are_posted() -> None:
    content = data(100_000)
    with writer_pair(buffers=4096, stall_timeout=0.01) as (writer, peer):
        operations = [writer.write(batch_of(content)), writer.write(batch_of(b"abc"))]
        with pytest.raises(TimeoutError):
            await operations[0]
        assert [each.status.name for each in operations] == ["TIMEOUT", "ABORTED"]
        assert 0 < operations[0].bytes_transferred < len(content)
        writer.cancel()
        for operation in operations:
            writer.write(operation.batch, stall_timeout=None)
        assert await read(peer, len(content) + 3) == content + b"abc"
    with full_writer() as (writer, reader):
        operations = [writer.write(batch_of(b"abc"), timeout=0.01), writer.write(batch_of(b"def"))]
        with pytest.raises(TimeoutError):
            await operations[0]
        assert operations[1].status is WriteStatus.PENDING
        writer.cancel()
        for operation in operations:
            writer.write(operation.batch)
        assert await reader.read(6) == b"abcdef"

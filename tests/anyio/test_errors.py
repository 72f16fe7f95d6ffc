"""The errors of send_batch, and what each leaves in the batch."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from io import FileIO
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from iobatch import IOBatch, TruncatedFileError
from iobatch.anyio import send_batch
from tests.support.anyio import nonblocking_pair, read
from tests.support.batches import batch_of, check_invariants, data
from tests.support.fakes import Scripted
from tests.support.sockets import clog, reset, stream_pair
from tests.support.tls import TLSClient, tls_contexts

if TYPE_CHECKING:
    import trustme

    from tests.support.batches import MakeFile

pytestmark = pytest.mark.anyio


async def test_second_send_over_a_socket_is_refused_at_once() -> None:
    """The first continues, whether the socket is full or not."""
    batch = batch_of(b"second")
    with nonblocking_pair(buffers=4096) as (sock, peer):
        filler = clog(sock)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_batch, sock, batch_of(b"first"))
            await anyio.wait_all_tasks_blocked()
            peer.recv(filler)  # so that the second send would not have to wait
            with pytest.raises(anyio.BusyResourceError):
                await send_batch(sock, batch)
        assert (batch.bytessent, batch.bytesleft, batch.error) == (0, 6, None)
        assert await send_batch(sock, batch) == 6
        assert await read(peer, 11) == b"firstsecond"


async def test_socket_that_another_task_waits_for_is_busy() -> None:
    batch = batch_of(b"hello")
    with nonblocking_pair(buffers=4096) as (sock, _peer):
        clog(sock)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.wait_writable, sock)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await send_batch(sock, batch)
            tasks.cancel_scope.cancel()
    assert (batch.bytesleft, batch.error) == (5, None)


async def test_closed_socket_is_refused_and_the_batch_keeps_everything() -> None:
    batch = batch_of(b"hello")
    with nonblocking_pair() as (sock, _peer):
        sock.close()
        with pytest.raises(anyio.ClosedResourceError):
            await send_batch(sock, batch)
    assert (batch.bytesleft, batch.error) == (5, None)


async def test_socket_that_is_closed_during_the_wait_ends_the_send() -> None:
    batch = batch_of(data(500_000))
    with nonblocking_pair(buffers=4096) as (sock, peer):
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await send_batch(sock, batch)

            tasks.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            anyio.notify_closing(sock)
            sock.close()
        sent = batch.bytessent
        assert sent + batch.bytesleft == 500_000
        assert await read(peer, sent) == data(500_000)[:sent]
    assert batch.error is None
    check_invariants(batch)


async def test_socket_that_the_callback_closes_is_not_waited_for() -> None:
    batch = batch_of(b"hello")
    with nonblocking_pair() as (sock, _peer):

        def callback(_sock: object, _view: memoryview) -> int:
            sock.close()
            return -1

        with pytest.raises(anyio.ClosedResourceError):
            await send_batch(sock, batch, callback)
    assert (batch.bytesleft, batch.error) == (5, None)


async def test_socket_that_is_closed_after_the_last_byte_is_no_error() -> None:
    batch = IOBatch()
    with nonblocking_pair() as (sock, peer):
        batch.addbuf(b"hello", on_release=sock.close)
        assert await send_batch(sock, batch) == 5
        assert await read(peer, 5) == b"hello"


async def test_closed_file_object_is_refused() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    pipe = FileIO(writing, "w")
    pipe.close()
    with pytest.raises(anyio.ClosedResourceError):
        await send_batch(pipe, batch_of(b"hello"))


async def test_socket_that_is_closed_at_a_checkpoint_ends_the_send() -> None:
    """Its number may belong to another file by then."""
    batch = batch_of(data(300_000))
    with Scripted() as sock:
        sock.setblocking(False)

        def close_after_the_second(_nbytes: int) -> None:
            if batch.bytessent == 200_000:
                sock.close()

        with pytest.raises(anyio.ClosedResourceError):
            await send_batch(sock, batch, limit=100_000, progress=close_after_the_second)
    assert (batch.bytessent, batch.bytesleft, batch.error) == (200_000, 100_000, None)


@pytest.mark.parametrize("how", ["closed", "reset"])
async def test_peer_that_has_gone_is_an_error_of_the_batch(how: str) -> None:
    batch = batch_of(data(500_000))
    with stream_pair("tcp4", buffers=4096) as (sock, peer):
        sock.setblocking(False)
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                with pytest.raises(ConnectionError):
                    await send_batch(sock, batch)

            tasks.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            if how == "reset":
                reset(peer)
            else:
                peer.close()
    assert isinstance(batch.error, ConnectionError)
    assert batch.bytessent + batch.bytesleft == 500_000
    check_invariants(batch)


async def test_error_of_the_socket_is_raised_by_each_call() -> None:
    batch = batch_of(b"hello")
    with Scripted(2, BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))) as sock:
        sock.setblocking(False)
        for _ in range(2):
            with pytest.raises(BrokenPipeError):
                await send_batch(sock, batch)
            assert (batch.bytessent, batch.bytesleft) == (2, 3)
        assert len(sock.calls) == 2


async def test_truncated_file_is_an_error_with_its_attributes(make_file: MakeFile) -> None:
    fd = make_file(data(100))
    batch = batch_of(b"header")
    batch.addfile(fd)
    os.ftruncate(fd, 40)
    with nonblocking_pair() as (sock, _peer), pytest.raises(TruncatedFileError) as caught:
        await send_batch(sock, batch)
    assert (caught.value.offset, caught.value.missing) == (40, 60)
    assert batch.bytessent == 46


async def test_filter_that_must_read_raises_ssl_want_read_error(authority: trustme.CA) -> None:
    client = TLSClient(authority)
    batch = batch_of(b"hello")
    with nonblocking_pair() as (sock, _peer):
        for _ in range(2):
            with pytest.raises(ssl.SSLWantReadError, match="must read"):
                await send_batch(sock, batch, client.filter)
    assert (batch.bytesleft, batch.error) == (5, None)


async def test_exception_of_progress_and_of_the_callback_leave_exact_counts() -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    batch = batch_of(data(300_000))
    with Scripted() as sock:
        sock.setblocking(False)
        with pytest.raises(ZeroDivisionError):
            await send_batch(sock, batch, limit=100_000, progress=fail)
        assert (batch.bytessent, batch.bytesleft) == (100_000, 200_000)
        with pytest.raises(ZeroDivisionError):
            await send_batch(sock, batch, fail)
        assert await send_batch(sock, batch) == 200_000
        assert sock.taken == data(300_000)


@pytest.mark.parametrize("seconds", [None, 1.0])
async def test_socket_that_can_block_is_refused(seconds: float | None) -> None:
    batch = batch_of(b"hello")
    with stream_pair() as (sock, _peer):
        sock.settimeout(seconds)
        with pytest.raises(ValueError, match="non-blocking"):
            await send_batch(sock, batch)
        with pytest.raises(ValueError, match="non-blocking"):
            await send_batch(sock, batch, socket.socket.send)
    assert batch.bytesleft == 5


async def test_pipe_that_can_block_is_refused() -> None:
    reading, writing = os.pipe()
    with (
        FileIO(reading),
        FileIO(writing, "w") as pipe,
        pytest.raises(ValueError, match="non-blocking"),
    ):
        await send_batch(pipe, batch_of(b"hello"))


async def test_tls_socket_without_a_callback_is_refused(authority: trustme.CA) -> None:
    """Its descriptor would carry plain text."""
    context, _ = tls_contexts(authority)
    with (
        stream_pair() as (sock, _peer),
        context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False) as conn,
    ):
        conn.setblocking(False)
        with pytest.raises(TypeError, match="iob_write"):
            await send_batch(conn, batch_of(b"hello"))


@pytest.mark.parametrize("sock", [None, 1, "socket"])
@pytest.mark.parametrize("callback", [None, socket.socket.send])
async def test_object_without_fileno_is_refused(sock: Any, callback: Any) -> None:
    with pytest.raises(TypeError, match="sock must be a socket"):
        await send_batch(sock, batch_of(b"hello"), callback)


async def test_stream_in_place_of_its_socket_is_refused_with_a_hint() -> None:
    class Stream:
        socket = None

    with pytest.raises(TypeError, match="sock must be a socket, not Stream: pass its socket"):
        await send_batch(Stream(), batch_of(b"hello"))


@pytest.mark.parametrize("limit", [0, -1])
async def test_limit_below_one_is_refused(limit: int) -> None:
    with nonblocking_pair() as (sock, _peer), pytest.raises(ValueError, match="limit"):
        await send_batch(sock, IOBatch(), limit=limit)


async def test_refused_arguments_leave_the_socket_free() -> None:
    with nonblocking_pair() as (sock, peer):
        sock.setblocking(True)
        with pytest.raises(ValueError, match="non-blocking"):
            await send_batch(sock, IOBatch())
        sock.setblocking(False)
        assert await send_batch(sock, batch_of(b"hello")) == 5
        assert await read(peer, 5) == b"hello"

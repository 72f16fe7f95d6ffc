"""send_to_stream: errors, cancellation, and the bytes that are counted then."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
from contextlib import suppress
from io import FileIO
from typing import TYPE_CHECKING

import pytest
import trustme

from iobatch import (
    COPY_LIMIT,
    IOB_AGAIN,
    SEND_LIMIT,
    IOBatch,
    TruncatedFileError,
    iob_write,
)
from iobatch.aio import send_to_stream
from iobatch.aio._stream import READ_LIMIT
from tests.support.batches import batch_of, check_invariants, data
from tests.support.loops import both_loops, read, stream, turns
from tests.support.sockets import PATIENCE, receive_all, reset, wait_for_error
from tests.support.tls import tls_contexts

if TYPE_CHECKING:
    import ssl

    from tests.support.batches import MakeFile

LARGE = READ_LIMIT + COPY_LIMIT


@both_loops
async def test_truncated_file_is_an_error_after_the_bytes_before_its_end(
    make_file: MakeFile,
) -> None:
    for size, missing in (50, 10), (LARGE, 10), (LARGE, LARGE):
        fd = make_file(data(size))
        async with stream() as (writer, peer):
            batch = batch_of(b"header")
            batch.addfile(fd, 0, size + missing)
            batch.addbuf(b"follow")
            with pytest.raises(TruncatedFileError) as raised:
                await send_to_stream(writer, batch)
            assert (raised.value.offset, raised.value.missing) == (size, missing)
            assert (batch.bytessent, batch.bytesleft) == (size + 6, missing + 6)
            assert await read(peer, size + 6) == b"header" + data(size)
            with pytest.raises(TruncatedFileError):
                await send_to_stream(writer, batch)


@both_loops
async def test_failed_close_of_a_file_that_was_sent_does_not_matter(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop's sendfile uses a file that is opened anew."""

    class Unclosable(FileIO):
        def close(self) -> None:
            if not self.closed:
                super().close()
                raise OSError(errno.EIO, "scripted")

    monkeypatch.setattr("iobatch.aio._stream.FileIO", Unclosable)
    fd = make_file(data(LARGE))
    async with stream() as (writer, peer):
        batch = IOBatch()
        batch.addfile(fd)
        arriving = asyncio.create_task(read(peer, LARGE))
        assert await send_to_stream(writer, batch) == LARGE
        assert await arriving == data(LARGE)


@both_loops
async def test_lost_connection_becomes_the_error_of_the_batch(make_file: MakeFile) -> None:
    fd = make_file(data(LARGE))
    async with stream(buffers=4096) as (writer, peer):
        batch = batch_of(data(300_000))
        batch.addfile(fd)
        sending = asyncio.create_task(send_to_stream(writer, batch))
        await turns()
        peer.close()
        with pytest.raises(OSError, match=r"lost|reset|pipe|closed"):
            await sending
        assert batch.error is not None
        assert 0 < batch.bytessent < 300_000
        check_invariants(batch)


@both_loops
async def test_closed_stream_is_a_broken_pipe_and_takes_nothing() -> None:
    async with stream() as (writer, _):
        writer.close()
        batch = batch_of(b"abc")
        with pytest.raises(BrokenPipeError, match="closed"):
            await send_to_stream(writer, batch)
        assert batch.bytesleft == 3


@both_loops
async def test_raised_error_holds_no_reference_to_the_batch() -> None:
    """A failed batch is collected with its last reference, without the cycle collector."""
    async with stream() as (writer, _):
        released: list[str] = []
        batch = IOBatch()
        batch.addbuf(b"abc", on_release=lambda: released.append("released"))
        writer.close()
        gc.disable()
        try:
            with suppress(BrokenPipeError):
                await send_to_stream(writer, batch)
            assert not released
            del batch
            assert released == ["released"]
        finally:
            gc.enable()


@both_loops
async def test_cancellation_between_pieces_keeps_an_exact_count_to_resume_from() -> None:
    content = data(1_000_000)
    async with stream(buffers=4096) as (writer, peer):
        batch = batch_of(content)
        sending = asyncio.create_task(send_to_stream(writer, batch))
        await turns()
        sending.cancel()
        await asyncio.wait([sending])
        assert sending.cancelled()
        assert 0 < batch.bytessent < len(content)
        check_invariants(batch)
        arriving = asyncio.create_task(read(peer, len(content)))
        await send_to_stream(writer, batch)
        assert await arriving == content


def test_cancellation_inside_sendfile_aborts_the_transport(make_file: MakeFile) -> None:
    """How much was sent is unknown then."""
    fd = make_file(data(SEND_LIMIT))

    async def main() -> None:
        async with stream(buffers=4096) as (writer, peer):
            batch = IOBatch()
            batch.addfile(fd)
            batch.addbuf(b"follow")
            sending = asyncio.create_task(send_to_stream(writer, batch))
            start = await read(peer, 1000)
            sending.cancel()
            await asyncio.wait([sending])
            assert sending.cancelled()
            assert writer.transport.is_closing()
            check_invariants(batch)
            peer.setblocking(True)
            rest = await asyncio.to_thread(receive_all, peer)
            assert data(SEND_LIMIT).startswith(start + rest)

    asyncio.run(main())


def test_loop_forgets_the_socket_of_a_cancelled_sendfile(make_file: MakeFile) -> None:
    """The next socket has its number: the loop could not watch that one."""
    fd = make_file(data(SEND_LIMIT))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reports: list[object] = []
        loop.set_exception_handler(lambda _loop, context: reports.append(context))
        async with stream(buffers=4096) as (writer, peer):
            number = writer.get_extra_info("socket").fileno()
            batch = IOBatch()
            batch.addfile(fd)
            sending = asyncio.create_task(send_to_stream(writer, batch))
            await read(peer, 1000)
            sending.cancel()
            await asyncio.wait([sending])
        assert (loop.remove_reader(number), loop.remove_writer(number)) == (False, False)
        assert reports == []

    asyncio.run(main())


def test_error_inside_sendfile_aborts_the_transport(make_file: MakeFile) -> None:
    """How much was sent is unknown then."""
    fd = make_file(data(SEND_LIMIT))
    sendfile = os.sendfile
    script = [1000]

    def broken(out: int, fd: int, offset: int, _count: int) -> int:
        if not script:
            raise OSError(errno.EIO, "the disk is broken")
        return sendfile(out, fd, offset, script.pop())

    async def main() -> None:
        async with stream() as (writer, peer):
            batch = IOBatch()
            batch.addfile(fd)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("os.sendfile", broken)
                with pytest.raises(OSError, match="broken"):
                    await send_to_stream(writer, batch)
            assert (batch.bytessent, batch.bytesleft) == (0, SEND_LIMIT)
            assert writer.transport.is_closing()
            peer.setblocking(True)
            assert await asyncio.to_thread(receive_all, peer) == data(1000)

    asyncio.run(main())


@pytest.mark.parametrize("method", ["abort", "close"])
def test_transport_closed_during_sendfile_is_an_error(method: str, make_file: MakeFile) -> None:
    """The loop's sendfile never finishes then, so send_to_stream polls the transport."""
    fd = make_file(data(SEND_LIMIT))

    async def main() -> None:
        async with stream(buffers=4096) as (writer, peer), asyncio.timeout(PATIENCE):
            batch = IOBatch()
            batch.addfile(fd)
            checks: list[bool] = []
            tasks_at_close: list[int] = []

            class File(FileIO):
                def close(self) -> None:
                    tasks_at_close.append(len(asyncio.all_tasks()))
                    super().close()

            polled = asyncio.Event()
            is_closing = writer.transport.is_closing

            def check() -> bool:
                checks.append(is_closing())
                if len(checks) == 5:
                    polled.set()
                return checks[-1]

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("iobatch.aio._stream._CLOSE_CHECK_INTERVAL", 0.001)
                patch.setattr("iobatch.aio._stream.FileIO", File)
                patch.setattr(writer.transport, "is_closing", check)
                sending = asyncio.create_task(send_to_stream(writer, batch))
                await read(peer, 1000)
                checks.clear()
                polled.clear()
                await polled.wait()
                getattr(writer.transport, method)()
                with pytest.raises(BrokenPipeError, match="closed"):
                    await sending
                assert tasks_at_close == [2]  # the loop's sendfile has ended
            assert batch.bytessent == 0

    asyncio.run(main())


@both_loops
@pytest.mark.parametrize("size", [1000, 1_600_000])
async def test_lost_connection_under_tls_raises(size: int) -> None:
    """A TLS transport drops what is written until it learns of the loss."""
    authority = trustme.CA()
    server_context, client_context = tls_contexts(authority)
    connected: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    async def accept(_reader: object, writer: asyncio.StreamWriter) -> None:
        connected.set_result(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=server_context)
    async with server:
        address = server.sockets[0].getsockname()

        def connect() -> ssl.SSLSocket:
            sock = socket.create_connection(address, PATIENCE)
            return client_context.wrap_socket(sock, server_hostname="localhost")

        client = await asyncio.to_thread(connect)
        sending = await connected
        # A reset, of which the server's loop has not heard when the send begins.
        reset(client)
        wait_for_error(sending.get_extra_info("socket"))
        with pytest.raises(ConnectionError):
            await send_to_stream(sending, batch_of(bytes(size)))
        sending.close()
        with suppress(OSError):
            await sending.wait_closed()


@both_loops
async def test_refused_write_removes_the_pin_of_an_earlier_iob_write() -> None:
    """As while the transport is sending a file for another caller."""

    def refuse(_data: object) -> None:
        raise RuntimeError("scripted")

    batch = batch_of(b"def")
    assert iob_write(None, batch, lambda _sock, _view: -1) == IOB_AGAIN
    async with stream() as (writer, peer):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer, "write", refuse)
            with pytest.raises(RuntimeError, match="scripted"):
                await send_to_stream(writer, batch)
        batch.prepend(b"abc")
        assert await send_to_stream(writer, batch) == 6
        assert await read(peer, 6) == b"abcdef"

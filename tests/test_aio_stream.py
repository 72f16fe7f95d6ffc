"""send_to_stream: batches over streams that belong to somebody else."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from iobatch import COPY_LIMIT, SEND_LIMIT, IOBatch, TruncatedFileError
from iobatch.aio import send_to_stream
from iobatch.aio._stream import READ_LIMIT
from tests.helpers import PATIENCE, check_invariants, data, log_preads, receive_all, stream_pair
from tests.loops import batch_of, both_loops, read, turns

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

    MakeFile = Callable[[bytes], int]

pytestmark = pytest.mark.usefixtures("no_leaks")

LARGE = READ_LIMIT + COPY_LIMIT


@asynccontextmanager
async def stream(
    *, buffers: int | None = None, **options: Any
) -> AsyncIterator[tuple[asyncio.StreamWriter, socket.socket]]:
    """Give the writer of a stream, and the non-blocking socket at its other end."""
    with stream_pair("tcp4", buffers=buffers) as (ours, theirs):
        theirs.setblocking(False)
        _, writer = await asyncio.open_connection(sock=ours.dup(), **options)
        ours.close()
        try:
            yield writer, theirs
        finally:
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()


def mixed(fd: int, content: bytes) -> tuple[IOBatch, bytes]:
    """Return a batch of everything there is, and what should arrive of it."""
    batch = batch_of(b"header", data(300_000, 1))
    batch.addfile(fd)
    batch.addbuf(bytearray(b"between"))
    batch.addfile(fd, 7, 100)
    batch.addfile(fd, 3, LARGE)
    expected = [b"header", data(300_000, 1), content, b"between", content[7:107]]
    return batch, b"".join([*expected, content[3 : 3 + LARGE]])


@both_loops
@pytest.mark.parametrize("buffers", [None, 4096])
async def test_everything_arrives(buffers: int | None, make_file: MakeFile) -> None:
    """Buffers and ranges, small and large, arrive in order, over a fast and over a slow stream."""
    content = data(SEND_LIMIT + LARGE)
    batch, expected = mixed(make_file(content), content)
    async with stream(buffers=buffers) as (writer, peer):
        arriving = asyncio.create_task(read(peer, len(expected)))
        assert await send_to_stream(writer, batch) == len(expected)
        assert (batch.bytesleft, batch.bytessent) == (0, len(expected))
        check_invariants(batch)
        assert await arriving == expected
        assert await send_to_stream(writer, batch) == 0


@both_loops
async def test_over_tls(make_file: MakeFile) -> None:
    """Over TLS it arrives as it was, the loop's own fallback is not used."""
    content = data(LARGE + 3)
    batch, expected = mixed(make_file(content), content)
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)

    def receive(sock: socket.socket) -> bytes:
        sock.setblocking(True)
        with server.wrap_socket(sock, server_side=True) as conn:
            return receive_all(conn)

    with stream_pair("tcp4", buffers=16_384) as (ours, theirs):
        arriving = asyncio.create_task(asyncio.to_thread(receive, theirs))
        _, writer = await asyncio.open_connection(
            sock=ours.dup(), ssl=client, server_hostname="localhost"
        )
        ours.close()
        assert await send_to_stream(writer, batch) == len(expected)
        writer.close()
        await writer.wait_closed()
        assert await arriving == expected


@pytest.mark.parametrize("size", [READ_LIMIT, READ_LIMIT + 1])
def test_large_ranges_are_not_read(size: int, make_file: MakeFile) -> None:
    """On asyncio a range above READ_LIMIT goes by sendfile, and the file's position stays."""
    content = data(size)
    fd = make_file(content)

    async def main() -> None:
        async with stream() as (writer, peer):
            with pytest.MonkeyPatch.context() as patch:
                reads = log_preads(patch)
                os.lseek(fd, 5, os.SEEK_SET)
                batch = batch_of(b"header")
                batch.addfile(fd)
                arriving = asyncio.create_task(read(peer, size + 6))
                assert await send_to_stream(writer, batch) == size + 6
                assert await arriving == b"header" + content
                assert bool(reads) == (size <= READ_LIMIT)
                assert os.lseek(fd, 0, os.SEEK_CUR) == 5

    asyncio.run(main())


@pytest.mark.parametrize("lacking", ["regular file", "procfs", "sendfile"])
def test_what_sendfile_refuses_is_read(lacking: str, make_file: MakeFile) -> None:
    """A range that the loop can't send is read, with those behind it."""
    content = data(3 * LARGE)
    fd = make_file(content)

    async def main() -> None:
        async with stream() as (writer, peer):
            with pytest.MonkeyPatch.context() as patch:
                if lacking == "regular file":
                    patch.setattr("iobatch.aio._stream.S_ISREG", lambda _mode: False)
                elif lacking == "procfs":
                    patch.setattr("iobatch.aio._stream.FileIO", refuse)
                else:
                    patch.setattr("os.sendfile", refuse)
                reads = log_preads(patch)
                batch = IOBatch()
                batch.addfile(fd)
                arriving = asyncio.create_task(read(peer, len(content)))
                assert await send_to_stream(writer, batch) == len(content)
                assert await arriving == content
                assert sum(piece.size for piece in reads) == len(content)

    def refuse(*_: object) -> None:
        raise OSError(22, "scripted")

    asyncio.run(main())


@both_loops
async def test_a_slow_stream_holds_little(make_file: MakeFile) -> None:
    """The stream is given one piece at a time: memory stays flat, whatever the CPython."""
    batch = batch_of(*(data(10_000, seed) for seed in range(300)))
    async with stream(buffers=4096) as (writer, peer):
        sending = asyncio.create_task(send_to_stream(writer, batch))
        await turns()
        _, high = writer.transport.get_write_buffer_limits()  # type: ignore[attr-defined]
        assert 0 < writer.transport.get_write_buffer_size() <= high + 128 * 1024
        assert batch.bytesleft > 2_500_000
        assert batch.bytessent + batch.bytesleft == 3_000_000
        received = await read(peer, 3_000_000)
        assert received == b"".join(data(10_000, seed) for seed in range(300))
        assert await sending == 3_000_000


@both_loops
async def test_buffers_are_free_when_they_are_taken() -> None:
    """What the stream still holds are copies of what could change."""
    async with stream(buffers=4096) as (writer, peer):
        writer.transport.set_write_buffer_limits(high=1 << 30)
        buffer = bytearray(data(100_000))
        batch = IOBatch()
        batch.addbuf(buffer)
        assert await send_to_stream(writer, batch) == 100_000
        buffer[:] = bytes(99)
        assert await read(peer, 100_000) == data(100_000)


@both_loops
async def test_a_truncated_file(make_file: MakeFile) -> None:
    """A file that ends early is an error, with the count of what went before."""
    for size, missing in (50, 10), (LARGE, 10), (LARGE, LARGE):
        fd = make_file(data(size))
        async with stream() as (writer, peer):
            batch = batch_of(b"header")
            batch.addfile(fd, 0, size + missing)
            batch.addbuf(b"behind")
            with pytest.raises(TruncatedFileError) as raised:
                await send_to_stream(writer, batch)
            assert (raised.value.offset, raised.value.missing) == (size, missing)
            assert (batch.bytessent, batch.bytesleft) == (size + 6, missing + 6)
            assert await read(peer, size + 6) == b"header" + data(size)
            with pytest.raises(TruncatedFileError):
                await send_to_stream(writer, batch)


@both_loops
async def test_a_lost_connection(make_file: MakeFile) -> None:
    """A connection that is lost is an error, and so is a stream that was closed."""
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
    async with stream() as (writer, _):
        writer.close()
        batch = batch_of(b"abc")
        with pytest.raises(BrokenPipeError, match="closed"):
            await send_to_stream(writer, batch)
        assert batch.bytesleft == 3


@both_loops
async def test_cancelled_between_pieces() -> None:
    """Cancelled while it writes, the count is exact, and a second call resumes."""
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


def test_an_error_in_sendfile(make_file: MakeFile) -> None:
    """Where the loop's sendfile fails nobody knows the count, either: the stream ends there."""
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


@pytest.mark.parametrize("how", ["abort", "close"])
def test_closed_in_sendfile(how: str, make_file: MakeFile) -> None:
    """Where somebody else closes the transport meanwhile, that is an error, and nothing hangs."""
    fd = make_file(data(SEND_LIMIT))

    async def main() -> None:
        async with stream(buffers=4096) as (writer, peer), asyncio.timeout(PATIENCE):
            batch = IOBatch()
            batch.addfile(fd)
            glances: list[bool] = []
            several = asyncio.Event()
            is_closing = writer.transport.is_closing

            def glance() -> bool:
                glances.append(is_closing())
                if len(glances) == 5:
                    several.set()
                return glances[-1]

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("iobatch.aio._stream._GLANCE", 0.001)
                patch.setattr(writer.transport, "is_closing", glance)
                sending = asyncio.create_task(send_to_stream(writer, batch))
                await read(peer, 1000)
                await several.wait()
                getattr(writer.transport, how)()
                with pytest.raises(BrokenPipeError, match="closed"):
                    await sending
            assert batch.bytessent == 0

    asyncio.run(main())


@both_loops
async def test_others_have_their_turns() -> None:
    """However fast the reader is, the loop has a turn at least each SEND_LIMIT bytes."""

    class Endless(asyncio.WriteTransport):
        """It takes everything at once."""

        def __init__(self) -> None:
            super().__init__()
            self.taken: list[int] = [0]
            self.closed = False

        def write(self, piece: Any) -> None:
            self.taken[-1] += len(piece)

        def writelines(self, pieces: Any) -> None:
            for piece in pieces:
                self.write(piece)

        def get_write_buffer_limits(self) -> tuple[int, int]:
            return 0, 1 << 20

        def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
            pass

        def is_closing(self) -> bool:
            return self.closed

        def close(self) -> None:
            self.closed = True

    loop = asyncio.get_running_loop()
    transport = Endless()
    protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    sending = asyncio.create_task(send_to_stream(writer, batch_of(bytes(10 * SEND_LIMIT))))
    while not sending.done():
        await asyncio.sleep(0)
        transport.taken.append(0)
    assert sum(transport.taken) == await sending == 10 * SEND_LIMIT
    assert max(transport.taken) == SEND_LIMIT
    writer.close()


@both_loops
async def test_a_raised_error_keeps_no_batch() -> None:
    """A batch that failed is collected with its last reference, though its error was raised."""
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


def test_cancelled_in_sendfile(make_file: MakeFile) -> None:
    """Cancelled inside sendfile nobody knows the count: the stream ends there."""
    fd = make_file(data(SEND_LIMIT))

    async def main() -> None:
        async with stream(buffers=4096) as (writer, peer):
            batch = IOBatch()
            batch.addfile(fd)
            batch.addbuf(b"behind")
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


@both_loops
async def test_one_sender_at_a_time() -> None:
    """While a batch is being sent it can be added to, but not sent or reset."""
    async with stream(buffers=4096) as (writer, peer):
        batch = batch_of(data(300_000))
        sending = asyncio.create_task(send_to_stream(writer, batch))
        await turns()
        with pytest.raises(RuntimeError):
            await send_to_stream(writer, batch)
        with pytest.raises(RuntimeError):
            batch.reset()
        batch.addbuf(b"more")
        assert await read(peer, 300_004) == data(300_000) + b"more"
        assert await sending == 300_004

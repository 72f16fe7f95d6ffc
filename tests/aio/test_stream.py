"""send_to_stream: what arrives, and how much a stream is given at a time."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import COPY_LIMIT, SEND_LIMIT, IOBatch
from iobatch.aio import send_to_stream
from iobatch.aio._stream import READ_LIMIT
from tests.support.batches import STAGE_LIMIT, batch_of, check_invariants, data
from tests.support.fakes import log_preads
from tests.support.loops import both_loops, read, stream, turns
from tests.support.sockets import receive_all, stream_pair
from tests.support.tls import tls_contexts

if TYPE_CHECKING:
    import socket

    import trustme

    from tests.support.batches import MakeFile

LARGE = READ_LIMIT + COPY_LIMIT


def batch_of_all_kinds(fd: int, content: bytes) -> tuple[IOBatch, bytes]:
    """Return a batch of large and small buffers and ranges, and the bytes that it holds."""
    batch = batch_of(b"header", data(300_000, 1))
    batch.addfile(fd)
    batch.addbuf(bytearray(b"between"))
    batch.addfile(fd, 7, 100)
    batch.addfile(fd, 3, LARGE)
    expected = [b"header", data(300_000, 1), content, b"between", content[7:107]]
    return batch, b"".join([*expected, content[3 : 3 + LARGE]])


@both_loops
@pytest.mark.parametrize("buffers", [None, 4096], ids=["fast", "slow"])
async def test_buffers_and_ranges_arrive_in_order(buffers: int | None, make_file: MakeFile) -> None:
    content = data(SEND_LIMIT + LARGE)
    batch, expected = batch_of_all_kinds(make_file(content), content)
    async with stream(buffers=buffers) as (writer, peer):
        arriving = asyncio.create_task(read(peer, len(expected)))
        assert await send_to_stream(writer, batch) == len(expected)
        assert (batch.bytesleft, batch.bytessent) == (0, len(expected))
        check_invariants(batch)
        assert await arriving == expected
        assert await send_to_stream(writer, batch) == 0


@both_loops
async def test_batch_arrives_over_tls(make_file: MakeFile, authority: trustme.CA) -> None:
    """A TLS transport has no sendfile, so all ranges are read."""
    content = data(LARGE + 3)
    batch, expected = batch_of_all_kinds(make_file(content), content)
    server, client = tls_contexts(authority)

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


@pytest.mark.parametrize("size", [READ_LIMIT, READ_LIMIT + 1], ids=["limit", "above limit"])
def test_range_goes_by_sendfile_only_above_read_limit(size: int, make_file: MakeFile) -> None:
    """On asyncio only: uvloop has no sendfile. The position of the caller's file stays."""
    content = data(size)
    fd = make_file(content)

    async def main() -> None:
        async with stream() as (writer, peer):
            with pytest.MonkeyPatch.context() as patch:
                reads = log_preads(patch)
                os.lseek(fd, 5, os.SEEK_SET)
                batch = IOBatch()
                batch.addfile(fd)
                batch.addbuf(b"between")
                batch.addfile(fd)
                arriving = asyncio.create_task(read(peer, 7 + 2 * size))
                assert await send_to_stream(writer, batch) == 7 + 2 * size
                assert await arriving == content + b"between" + content
                if size > READ_LIMIT:
                    assert not reads
                else:  # both ranges: a last piece that is small is read by the probe
                    assert sum(piece.size for piece in reads) > size
                assert os.lseek(fd, 0, os.SEEK_CUR) == 5

    asyncio.run(main())


@pytest.mark.parametrize("lacking", ["regular file", "procfs", "sendfile"])
def test_range_that_sendfile_refuses_is_read_with_all_ranges_after_it(
    lacking: str, make_file: MakeFile
) -> None:
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
        raise OSError(errno.EINVAL, "scripted")

    asyncio.run(main())


@both_loops
async def test_slow_stream_is_given_one_piece_at_a_time() -> None:
    """The limit holds even where CPython's writelines() does not check it (gh-127655)."""
    batch = batch_of(*(data(10_000, seed) for seed in range(300)))
    async with stream(buffers=4096) as (writer, peer):
        sending = asyncio.create_task(send_to_stream(writer, batch))
        await turns()
        _, high = writer.transport.get_write_buffer_limits()  # type: ignore[attr-defined]
        assert 0 < writer.transport.get_write_buffer_size() <= high + STAGE_LIMIT
        assert batch.bytesleft > 2_500_000
        assert batch.bytessent + batch.bytesleft == 3_000_000
        received = await read(peer, 3_000_000)
        assert received == b"".join(data(10_000, seed) for seed in range(300))
        assert await sending == 3_000_000


@both_loops
async def test_buffer_may_change_as_soon_as_the_stream_has_taken_it() -> None:
    """The stream holds a copy of a buffer that can change."""
    async with stream(buffers=4096) as (writer, peer):
        writer.transport.set_write_buffer_limits(high=1 << 30)
        buffer = bytearray(data(100_000))
        batch = IOBatch()
        batch.addbuf(buffer)
        assert await send_to_stream(writer, batch) == 100_000
        buffer[:] = bytes(99)
        assert await read(peer, 100_000) == data(100_000)


@both_loops
async def test_loop_gets_a_turn_every_send_limit_bytes() -> None:
    """The transport takes everything, so drain() never waits."""

    class Endless(asyncio.WriteTransport):
        """A transport that takes everything at once."""

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
async def test_batch_being_sent_can_be_added_to_but_not_sent_or_reset() -> None:
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

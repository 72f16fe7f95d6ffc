"""Coming from asyncio: one test for each row of the tables of sockets and files, and of uvloop."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from io import BytesIO, UnsupportedOperation
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, IOBatch, TruncatedFileError, iob_send
from iobatch.aio import BatchWriter, WriteStatus, send_to_stream
from tests.support.batches import batch_of, data
from tests.support.fakes import patch_os
from tests.support.loops import both_loops, full_writer, new_loop, read, stream, turns, writer_pair
from tests.support.manpages import covered, subjects
from tests.support.pagecache import SMALL, slow_disk
from tests.support.sockets import PATIENCE, refusing_udp, stream_pair, wait_for_error

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tests.support.batches import MakeFile

PAGE = ("iobatch-asyncio.7", "Sockets and files", "uvloop")
LARGE = 600_000  # bytes of a range that goes by sendfile, also over a stream


def test_the_tests_here_and_the_rows_of_the_tables_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


def range_of(fd: int, *args: int) -> IOBatch:
    batch = IOBatch()
    batch.addfile(fd, *args)
    return batch


def udp() -> socket.socket:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    return sock


# Sockets and files


@both_loops
async def test_loop_sock_sendall_sock_data_is_write_with_a_count_after_a_cancellation() -> None:
    content = data(1_000_000)
    with writer_pair(buffers=4096) as (writer, peer):
        operation = writer.write(batch_of(content))
        operation.cancel()
        with pytest.raises(asyncio.CancelledError):
            await operation
        sent = operation.bytes_transferred
        assert 0 < sent < len(content)
        assert await read(peer, sent) == content[:sent]
        with pytest.raises(BlockingIOError):
            peer.recv(1)


@both_loops
async def test_loop_sock_sendto_sock_data_addr_is_write_with_an_address() -> None:
    with udp() as sock, udp() as to:
        assert await BatchWriter(sock).write(batch_of(b"abc"), address=to.getsockname()) == 3
        assert await asyncio.get_running_loop().sock_recv(to, 10) == b"abc"


@both_loops
async def test_datagramtransport_sendto_is_write_and_its_errors_are_the_operations() -> None:
    with udp() as sock, refusing_udp() as refusing:
        address = refusing.getsockname()
        writer = BatchWriter(sock)
        assert await writer.write(batch_of(b"abc"), address=address) == 3
        sock.connect(address)
        sock.send(b"x")
        wait_for_error(sock)
        with pytest.raises(ConnectionRefusedError):
            await writer.write(batch_of(b"abc"))


@both_loops
async def test_loop_sock_sendfile_sock_file_is_addfile_and_write(make_file: MakeFile) -> None:
    content = data(LARGE)
    with writer_pair(buffers=4096) as (writer, peer):
        operation = writer.write(range_of(make_file(content)))
        assert await read(peer, LARGE) == content
        assert await operation == LARGE


@both_loops
async def test_loop_sendfile_transport_file_is_addfile_and_send_to_stream(
    make_file: MakeFile,
) -> None:
    content = data(LARGE)
    async with stream(buffers=4096) as (writer, peer):
        reading = asyncio.create_task(read(peer, LARGE))
        assert await send_to_stream(writer, range_of(make_file(content))) == LARGE
        assert await reading == content


@both_loops
async def test_offset_count_are_arguments_of_addfile(make_file: MakeFile) -> None:
    async with stream() as (writer, peer):
        assert await send_to_stream(writer, range_of(make_file(b"abcdef"), 2, 3)) == 3
        assert await read(peer, 3) == b"cde"


@both_loops
async def test_file_shorter_than_count_is_a_truncated_file_error(make_file: MakeFile) -> None:
    fd = make_file(b"abc")
    with writer_pair() as (writer, _), pytest.raises(TruncatedFileError):
        await writer.write(range_of(fd, 0, 5))
    async with stream() as (stream_writer, _):
        with pytest.raises(TruncatedFileError):
            await send_to_stream(stream_writer, range_of(fd, 0, 5))


@both_loops
async def test_file_tell_after_an_error_is_a_count_of_all_bytes(make_file: MakeFile) -> None:
    fd = make_file(b"abc")
    os.lseek(fd, 1, os.SEEK_SET)
    with writer_pair() as (writer, _):
        batch = batch_of(b"header")
        batch.addfile(fd, 0, 5)
        operation = writer.write(batch)
        with pytest.raises(TruncatedFileError):
            await operation
        assert operation.bytes_transferred == len(b"header") + 3
    async with stream() as (stream_writer, _):
        batch = range_of(fd, 0, 5)
        with pytest.raises(TruncatedFileError):
            await send_to_stream(stream_writer, batch)
        assert batch.bytessent == 3
    assert os.lseek(fd, 0, os.SEEK_CUR) == 1


def refuse_sendfile(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: int) -> int:
        raise OSError(errno.EINVAL, "scripted")

    patch_os(patch, "sendfile", refuse)


@both_loops
async def test_fallback_true_is_always_so_for_a_descriptor(make_file: MakeFile) -> None:
    content = data(LARGE)
    memory = BytesIO(content)
    with pytest.raises(UnsupportedOperation):
        IOBatch().addfile(memory)
    with writer_pair() as (writer, peer):
        operation = writer.write(batch_of(memory.getbuffer()))
        assert await read(peer, LARGE) == content
        assert await operation == LARGE
    with writer_pair() as (writer, peer), pytest.MonkeyPatch.context() as patch:
        refuse_sendfile(patch)
        operation = writer.write(range_of(make_file(content)))
        assert await read(peer, LARGE) == content
        assert await operation == LARGE


@both_loops
async def test_sendfilenotavailableerror_is_never_raised(make_file: MakeFile) -> None:
    content = data(LARGE)
    async with stream() as (writer, peer):
        with pytest.MonkeyPatch.context() as patch:
            refuse_sendfile(patch)
            reading = asyncio.create_task(read(peer, LARGE))
            assert await send_to_stream(writer, range_of(make_file(content))) == LARGE
            assert await reading == content


@both_loops
async def test_loop_add_writer_sock_callback_calls_iob_send(make_file: MakeFile) -> None:
    loop = asyncio.get_running_loop()
    content = data(LARGE)
    batch = range_of(make_file(content))
    codes: list[int] = []

    def callback() -> None:
        codes.append(iob_send(ours, batch))
        if codes[-1] in (0, -3):
            loop.remove_writer(ours)

    with stream_pair(buffers=4096) as (ours, peer):
        ours.setblocking(False)
        peer.setblocking(False)
        loop.add_writer(ours, callback)
        assert await read(peer, LARGE) == content
        while batch or codes[-1]:
            await turns()
        await turns()
        assert (sum(code for code in codes if code > 0), codes.count(0)) == (LARGE, 1)
        assert IOB_AGAIN not in codes


@both_loops
async def test_asyncio_to_thread_file_read_is_addfile(make_file: MakeFile) -> None:
    """The loop goes on while a thread reads."""
    fd = make_file(data(SMALL))
    with slow_disk() as disk, writer_pair() as (writer, peer):
        disk.evict(fd)
        disk.ready.clear()
        operation = writer.write(range_of(fd))
        await turns()
        assert not operation.done()
        disk.ready.set()
        assert await read(peer, SMALL) == data(SMALL)
        assert (await operation, disk.stalls) == (SMALL, [])


# uvloop


def run_on_uvloop(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await main

    with asyncio.Runner(loop_factory=lambda: new_loop("uvloop")) as runner:
        runner.run(bounded())


def test_missing_sendfile_is_reading_and_writing(make_file: MakeFile) -> None:
    content = data(LARGE)
    fd = make_file(content)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with stream() as (writer, peer):
            with os.fdopen(os.dup(fd), "rb") as file, pytest.raises(NotImplementedError):
                await loop.sendfile(writer.transport, file)
            reading = asyncio.create_task(read(peer, LARGE))
            assert await send_to_stream(writer, range_of(fd)) == LARGE
            assert await reading == content

    run_on_uvloop(main())


def test_missing_sock_sendfile_is_called_by_a_batch_writer(make_file: MakeFile) -> None:
    fd = make_file(data(LARGE))
    sendfile = os.sendfile
    counts: list[int] = []

    def log(*args: int) -> int:
        counts.append(sendfile(*args))
        return counts[-1]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with writer_pair() as (writer, peer), pytest.MonkeyPatch.context() as patch:
            with os.fdopen(os.dup(fd), "rb") as file, pytest.raises(NotImplementedError):
                await loop.sock_sendfile(writer.sock, file)
            patch_os(patch, "sendfile", log)
            operation = writer.write(range_of(fd))
            assert await read(peer, LARGE) == data(LARGE)
            assert (await operation, sum(counts)) == (LARGE, LARGE)

    run_on_uvloop(main())


def test_missing_sock_sendto_is_write_with_an_address() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with udp() as sock, udp() as to:
            with pytest.raises(NotImplementedError):
                await loop.sock_sendto(sock, b"abc", to.getsockname())
            assert await BatchWriter(sock).write(batch_of(b"abc"), address=to.getsockname()) == 3
            assert await loop.sock_recv(to, 10) == b"abc"

    run_on_uvloop(main())


def test_closed_while_it_is_watched_is_aborted() -> None:
    async def main() -> None:
        with full_writer() as (writer, _):
            operation = writer.write(batch_of(b"abc"))
            writer.sock.close()
            await asyncio.wait([operation])
            assert operation.status is WriteStatus.ABORTED

    run_on_uvloop(main())

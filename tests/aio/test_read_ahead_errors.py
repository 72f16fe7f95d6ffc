"""Errors and ends of files that a thread finds when it reads ahead."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch, TruncatedFileError
from iobatch._pagecache import READ_AHEAD
from iobatch.aio import WriteStatus, send_to_stream
from tests.support.batches import batch_of, data
from tests.support.loops import (
    both_loops,
    read,
    stream,
    writer_pair,
)
from tests.support.pagecache import (
    LARGE,
    slow_disk,
)
from tests.support.sockets import without_standard_input

if TYPE_CHECKING:
    from tests.support.batches import MakeFile

BROKEN = READ_AHEAD + 100_000  # the offset from which the disk can't be read


@both_loops
@pytest.mark.parametrize("broken", [0, BROKEN], ids=["at the start", "part-way"])
@pytest.mark.parametrize("through", [None, socket.socket.send], ids=["plain", "callback"])
async def test_read_error_of_a_thread_ends_the_write_after_the_readable_bytes(
    through: Any, broken: int, make_file: MakeFile
) -> None:
    """The error is that which a read by the loop's thread would raise."""
    fd = make_file(data(LARGE))
    with slow_disk() as disk, writer_pair(through=through) as (writer, peer):
        disk.evict(fd)
        disk.broken_from = broken
        batch = IOBatch()
        batch.addfile(fd)
        operation = writer.write(batch)
        following = writer.write(batch_of(b"follow"))
        assert await read(peer, broken) == data(LARGE)[:broken]
        with pytest.raises(OSError, match="broken") as raised:
            await operation
        assert raised.value.errno == errno.EIO
        assert (operation.status, operation.bytes_transferred) == (WriteStatus.ERROR, broken)
        assert repr(operation.batch.error) == repr(raised.value)
        assert operation.batch.bytesleft == LARGE - broken
        if broken:
            assert following.status is WriteStatus.ABORTED
        else:
            assert await read(peer, 6) == b"follow"
            assert await following == 6
        assert not disk.stalls


@both_loops
async def test_read_error_of_a_thread_ends_the_write_on_a_socket_with_the_number_0(
    make_file: MakeFile,
) -> None:
    fd = make_file(data(LARGE))
    with slow_disk() as disk, without_standard_input(), writer_pair() as (writer, _):
        assert writer.sock.fileno() == 0
        disk.evict(fd)
        disk.broken_from = 0
        batch = IOBatch()
        batch.addfile(fd)
        with pytest.raises(OSError, match="broken"):
            await writer.write(batch)
        assert not disk.stalls


@both_loops
@pytest.mark.parametrize("broken", [0, BROKEN], ids=["at the start", "part-way"])
async def test_read_error_of_a_thread_ends_send_to_stream_after_the_readable_bytes(
    broken: int, make_file: MakeFile
) -> None:
    fd = make_file(data(LARGE))
    with slow_disk() as disk:
        async with stream() as (writer, peer):
            disk.evict(fd)
            disk.broken_from = broken
            batch = IOBatch()
            batch.addfile(fd)
            arriving = asyncio.create_task(read(peer, broken))
            with pytest.raises(OSError, match="broken") as raised:
                await send_to_stream(writer, batch)
            assert await arriving == data(LARGE)[:broken]
            assert (repr(batch.error), batch.bytessent) == (repr(raised.value), broken)
            assert batch.bytesleft == LARGE - broken
            assert not disk.stalls


@both_loops
@pytest.mark.parametrize("size", [0, 10, LARGE], ids=["empty", "short", "long"])
async def test_file_truncated_before_the_read_ends_the_write_at_its_end(
    size: int, make_file: MakeFile
) -> None:
    fd = make_file(data(LARGE + 10))
    with slow_disk() as disk, writer_pair() as (writer, peer):
        batch = IOBatch()
        batch.addfile(fd)
        disk.evict(fd)
        os.truncate(fd, size)
        operation = writer.write(batch)
        assert await read(peer, size) == data(LARGE + 10)[:size]
        with pytest.raises(TruncatedFileError) as raised:
            await operation
        assert (raised.value.offset, raised.value.missing) == (size, LARGE + 10 - size)
        assert not disk.stalls


@both_loops
@pytest.mark.parametrize("size", [0, 10, LARGE], ids=["empty", "short", "long"])
async def test_file_truncated_before_the_read_ends_send_to_stream_at_its_end(
    size: int, make_file: MakeFile
) -> None:
    fd = make_file(data(LARGE + 10))
    with slow_disk() as disk:
        async with stream() as (writer, peer):
            batch = IOBatch()
            batch.addfile(fd)
            disk.evict(fd)
            os.truncate(fd, size)
            arriving = asyncio.create_task(read(peer, size))
            with pytest.raises(TruncatedFileError) as raised:
                await send_to_stream(writer, batch)
            assert await arriving == data(LARGE + 10)[:size]
            assert (raised.value.offset, raised.value.missing) == (size, LARGE + 10 - size)
            assert not disk.stalls

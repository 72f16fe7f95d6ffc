"""Message sockets: each write is one message."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING

import pytest

from iobatch import IOBatch
from iobatch.aio import BatchWriter, WriteStatus
from tests.support.batches import batch_of, data
from tests.support.loops import (
    both_loops,
)
from tests.support.pagecache import (
    MESSAGE,
    PAGE,
    slow_disk,
)
from tests.support.sockets import is_silent, receive

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


@both_loops
@pytest.mark.parametrize(
    "kind", [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM], ids=["seqpacket", "datagram"]
)
async def test_each_write_is_one_message_with_its_file_ranges(
    kind: socket.SocketKind, make_file: MakeFile
) -> None:
    content = data(3000)
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        one.setblocking(False)
        writer = BatchWriter(one)
        batch = batch_of(b"header")
        batch.addfile(make_file(content))
        assert await writer.write(batch) == 3006
        assert await writer.write_some(batch_of(b"a", b"b")) == 2
        assert other.recv(9999) == b"header" + content
        assert other.recv(9999) == b"ab"
        with pytest.raises(ValueError, match="message socket"):
            writer.write(batch_of(b"abc"), exactly=2)


@both_loops
async def test_empty_batch_is_done_and_sends_no_message() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        one.setblocking(False)
        operation = BatchWriter(one).write(IOBatch())
        assert (operation.status, await operation) == (WriteStatus.DONE, 0)
        assert is_silent(other)


@both_loops
async def test_messages_wait_for_a_slow_reader_and_stay_separate() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        async with BatchWriter(one) as writer:
            messages = [data(500, seed) for seed in range(50)]
            operations = [writer.write(batch_of(message)) for message in messages]
            assert not operations[-1].done()
            loop = asyncio.get_running_loop()
            assert [await loop.sock_recv(other, 999) for _ in messages] == messages
            assert [await operation for operation in operations] == [500] * 50


@both_loops
async def test_message_that_is_too_long_fails_unsent_and_the_next_goes_out() -> None:
    """WSASend's WSAEMSGSIZE is EMSGSIZE."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.bind(("127.0.0.1", 0))
        one.connect(other.getsockname())
        one.setblocking(False)
        writer = BatchWriter(one)
        long = writer.write(batch_of(bytes(70_000)))
        following = writer.write(batch_of(b"short"))
        with pytest.raises(OSError, match="too long") as raised:
            await long
        assert raised.value.errno == errno.EMSGSIZE
        assert (long.bytes_transferred, long.batch.bytesleft) == (0, 70_000)
        assert await following == 5
        assert receive(other, 5) == b"short"


@both_loops
@pytest.mark.parametrize("keeps_nothing", [False, True])
async def test_message_waits_until_all_its_files_are_read(
    *, keeps_nothing: bool, make_file: MakeFile
) -> None:
    one, other = make_file(data(MESSAGE)), make_file(data(MESSAGE, 1))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, slow_disk() as disk:
        ours.setblocking(False)
        async with BatchWriter(ours) as writer:
            batch = batch_of(b"header")
            batch.addfile(one)
            batch.addbuf(b"between")
            batch.addfile(other)
            disk.evict(one)
            disk.evict(other)
            disk.keeps_nothing = keeps_nothing
            operation = writer.write(batch)
            assert (operation.done(), operation.bytes_transferred) == (False, 0)
            assert await operation == 13 + 2 * MESSAGE
            expected = b"header" + data(MESSAGE) + b"between" + data(MESSAGE, 1)
            assert theirs.recv(1 << 20) == expected
            assert disk.stalls == [] or keeps_nothing
            assert len({inode for inode, _ in disk.thread_reads}) == 2


@both_loops
@pytest.mark.parametrize("fault", ["truncated", "unreadable"])
async def test_message_with_a_truncated_or_unreadable_file_is_not_sent(
    fault: str, make_file: MakeFile
) -> None:
    fd = make_file(data(MESSAGE))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, slow_disk() as disk:
        ours.setblocking(False)
        writer = BatchWriter(ours)
        batch = batch_of(b"header")
        batch.addfile(fd)
        disk.evict(fd)
        if fault == "truncated":
            os.truncate(fd, 5 * PAGE)
        else:
            disk.broken_from = 5 * PAGE
        operation = writer.write(batch)
        with pytest.raises(OSError, match=r"ended|broken"):
            await operation
        assert (operation.bytes_transferred, operation.batch.bytesleft) == (0, 6 + MESSAGE)
        assert is_silent(theirs)

"""Posting writes: what is sent inside the call, what waits, and what stays in the batch."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from iobatch import COPY_LIMIT, IOB_AGAIN, IOB_ERROR, IOBatch, iob_send, iob_write
from iobatch.aio import WriteStatus
from tests.support.batches import batch_of, data
from tests.support.fakes import again
from tests.support.loops import (
    both_loops,
    full_writer,
    read,
    scripted_writer,
    writer_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1024 * 1024


@both_loops
async def test_write_that_the_socket_takes_is_done_on_return() -> None:
    with writer_pair() as (writer, peer):
        batch = batch_of(b"header, ", b"body")
        operation = writer.write(batch)
        assert operation.done()
        assert (operation.status, operation.bytes_transferred) == (WriteStatus.DONE, 12)
        assert (operation.error, operation.batch.bytesleft) == (None, 0)
        assert peer.recv(99) == b"header, body"
        assert not batch


@both_loops
async def test_awaiting_a_done_operation_does_not_suspend() -> None:
    with writer_pair() as (writer, _):
        turns: list[None] = []
        asyncio.get_running_loop().call_soon(turns.append, None)
        for size in range(100):
            assert await writer.write(batch_of(bytes(size))) == size
        assert not turns


@both_loops
async def test_buffers_and_file_ranges_go_out_in_order(make_file: Callable[[bytes], int]) -> None:
    """A large range, which goes by sendfile, and a small one, which is read, between buffers."""
    content = data(3 * COPY_LIMIT)
    fd = make_file(content)
    with writer_pair(buffers=4096) as (writer, peer):
        batch = batch_of(b"header")
        batch.addfile(fd)
        batch.addbuf(b"between")
        batch.addfile(fd, 5, 10)
        expected = b"header" + content + b"between" + content[5:15]
        operation = writer.write(batch)
        assert operation.status is WriteStatus.PENDING
        assert await read(peer, len(expected)) == expected
        assert await operation == len(expected)


@both_loops
async def test_write_to_a_full_socket_returns_a_pending_operation() -> None:
    """WSASend's WSAEWOULDBLOCK and WSA_IO_PENDING are no errors here."""
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"later"))
        assert not operation.done()
        assert (operation.bytes_transferred, operation.batch.bytesleft) == (0, 5)
        assert await peer.read(5) == b"later"
        assert await operation == 5
        assert operation.batch.bytesleft == 0


@both_loops
async def test_empty_write_is_done_at_once_or_after_those_before_it() -> None:
    with full_writer() as (writer, peer):
        first = writer.write(batch_of(b"first"))
        empty = writer.write(IOBatch())
        assert not empty.done()
        assert await peer.read(5) == b"first"
        assert (await empty, first.status) == (0, WriteStatus.DONE)
        assert writer.write(IOBatch()).done()


@both_loops
async def test_write_takes_the_entries_and_the_batch_can_be_filled_again() -> None:
    """Adding to the batch doesn't change the write."""
    with full_writer() as (writer, peer):
        batch = batch_of(b"one ")
        first = writer.write(batch)
        assert not batch
        batch.addbuf(b"two")
        assert first.batch.bytesleft == 4
        second = writer.write(batch)
        assert await peer.read(7) == b"one two"
        assert [await first, await second] == [4, 3]


@both_loops
async def test_buffer_is_held_without_a_copy_and_released_when_sent() -> None:
    with full_writer() as (writer, peer):
        released: list[str] = []
        buffer = bytearray(b"kept as is")
        batch = IOBatch()
        batch.addbuf(buffer, on_release=lambda: released.append("released"))
        operation = writer.write(batch)
        with pytest.raises(BufferError):
            buffer.clear()
        buffer[:4] = b"SENT"  # against the rule, to show that there is no copy
        assert await peer.read(10) == b"SENT as is"
        await operation
        assert released == ["released"]
        buffer.clear()


@both_loops
async def test_write_removes_the_pin_of_an_earlier_iob_write() -> None:
    """A callback that returned "again" leaves the head of its batch pinned."""
    with writer_pair() as (writer, peer):
        batch = batch_of(b"def")
        assert iob_write(None, batch, lambda _sock, _view: -1) == IOB_AGAIN
        assert await writer.write(batch) == 3
        batch.prepend(b"abc")
        assert await writer.write(batch) == 3
        assert peer.recv(99) == b"defabc"


@both_loops
async def test_write_some_is_done_with_the_first_bytes_taken() -> None:
    content = data(MIB)
    with writer_pair(buffers=4096) as (writer, peer):
        operation = writer.write_some(batch_of(content))
        assert operation.status is WriteStatus.DONE
        sent = operation.bytes_transferred
        assert 0 < sent < MIB
        assert operation.batch.bytesleft == MIB - sent
        rest = writer.write(operation.batch)
        assert await read(peer, MIB) == content
        assert await rest == MIB - sent


@both_loops
async def test_entries_of_a_failed_batch_are_sent() -> None:
    """The error is the batch's, and stays there."""
    batch = batch_of(b"abc")
    assert iob_write(None, batch, lambda _sock, _view: 0) == IOB_ERROR
    with writer_pair() as (writer, peer):
        assert await writer.write(batch) == 3
        assert peer.recv(99) == b"abc"
        assert isinstance(batch.error, BrokenPipeError)


@both_loops
async def test_operation_counts_no_bytes_that_its_batch_sent_before() -> None:
    with scripted_writer(3, 2) as (writer, sock):
        batch = batch_of(b"abc", b"def")
        assert iob_send(sock, batch, limit=3) == 3
        operation = writer.write(batch)
        assert (operation.bytes_transferred, batch.bytessent) == (2, 3)
        assert await operation == 3


@both_loops
async def test_write_some_is_done_with_one_byte() -> None:
    with scripted_writer(1) as (writer, _):
        operation = writer.write_some(batch_of(b"abc"))
        assert (operation.status, operation.bytes_transferred) == (WriteStatus.DONE, 1)


@both_loops
async def test_write_some_on_a_full_socket_waits_for_its_first_bytes() -> None:
    """The next write follows the bytes that were sent."""
    with scripted_writer(again(), 3) as (writer, sock):
        some = writer.write_some(batch_of(b"abcdef"))
        rest = writer.write(batch_of(b"XYZ"))
        assert not some.done()
        assert (await some, await rest) == (3, 3)
        assert sock.taken == b"abcXYZ"
        assert writer.write_some(IOBatch()).done()


@both_loops
async def test_exactly_sends_n_bytes_and_leaves_the_rest_in_the_batch() -> None:
    with writer_pair() as (writer, peer):
        operation = writer.write(batch_of(b"abc", b"defgh"), exactly=4)
        assert await operation == 4
        assert peer.recv(99) == b"abcd"
        assert await writer.write(operation.batch) == 4
        assert peer.recv(99) == b"efgh"
        assert await writer.write(batch_of(b"ij"), exactly=2) == 2
        assert await writer.write(batch_of(b"kl"), exactly=0) == 0
        assert peer.recv(99) == b"ij"


@both_loops
async def test_exactly_holds_across_turns_of_the_loop() -> None:
    content = data(MIB)
    with writer_pair(buffers=4096) as (writer, peer):
        operation = writer.write(batch_of(content), exactly=MIB - 1)
        assert writer.pending < MIB - 1
        assert await read(peer, MIB - 1) == content[:-1]
        assert await operation == MIB - 1
        assert operation.batch.bytesleft == 1
        assert writer.pending == 0


@both_loops
async def test_operation_has_its_own_user_info_or_the_writers() -> None:
    with writer_pair(user_info="the writer's") as (writer, _):
        assert writer.write(batch_of(b"x")).user_info == "the writer's"
        assert writer.write(batch_of(b"x"), user_info=None).user_info is None
        assert writer.write_some(batch_of(b"x"), user_info=5).user_info == 5
        assert writer.user_info == "the writer's"


@both_loops
async def test_repr_shows_the_state_and_the_bytes() -> None:
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"later"))
        fd = writer.sock.fileno()
        assert repr(writer) == (
            f"<BatchWriter on descriptor {fd}: waiting, 1 operations, 5 bytes pending>"
        )
        assert repr(operation) == "<WriteOperation PENDING, 0 bytes>"
        writer.close()
        assert "closed" in repr(writer)
        assert repr(operation).startswith("<WriteOperation ABORTED, 0 bytes: OSError(")

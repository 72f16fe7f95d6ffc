"""BatchWriter through filters that fail, and drain() after them."""

from __future__ import annotations

import asyncio
import errno
import ssl
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR
from iobatch.aio import BatchWriter, WriteOperation, WriteStatus
from iobatch.filters import Filter
from tests.support.batches import batch_of
from tests.support.filters import Identity
from tests.support.loops import both_loops, full_writer, is_watched, read, turns, writer_pair
from tests.support.sockets import PATIENCE, clog, reset, stream_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


class ScriptedFilter:
    """A filter that takes everything; drain() and finish() return or raise its script's items."""

    def __init__(self, *script: int | BaseException, wants: int = EVENT_WRITE) -> None:
        self.script = list(script)
        self.wants = wants
        self.bytesleft = self.bytessent = 0
        self.error: OSError | None = None

    def __call__(self, _sock: socket.socket, view: memoryview) -> int:
        self.bytesleft += len(view)
        return len(view)

    def drain(self, _sock: socket.socket) -> int:
        action = self.script.pop(0) if self.script else IOB_DONE
        if isinstance(action, BaseException):
            raise action
        if action == IOB_DONE:
            self.bytesleft = 0
        if action == IOB_ERROR:
            self.error = OSError(errno.EIO, "scripted")
        return action

    finish = drain


async def wait_until_idle(writer: BatchWriter) -> None:
    while "waiting" in repr(writer):  # noqa: ASYNC110 # a writer has no event for this
        await asyncio.sleep(0)


@both_loops
async def test_filter_error_fails_an_operation_whose_bytes_it_had_taken() -> None:
    with full_writer(through=Filter(Identity())) as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        later = writer.write(batch_of(b"def"))
        peer.sock.close()
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            await operation
        assert (operation.bytes_transferred, operation.status) == (3, WriteStatus.ERROR)
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            await later
        assert not is_watched(writer)


@both_loops
async def test_bytes_taken_before_a_file_failed_are_passed_on(
    make_file: Callable[[bytes], int],
) -> None:
    with full_writer(through=Filter(Identity()), high_water=100) as (writer, peer):
        batch = batch_of(bytes(2000))
        batch.addfile(make_file(b""), 0, 10)
        operation = writer.write(batch)
        while not operation.done():
            await peer.clear()
            await asyncio.sleep(0)
        assert (operation.status, operation.bytes_transferred) == (WriteStatus.ERROR, 2000)
        assert await read(peer.sock, 2000) == bytes(2000)


@both_loops
async def test_operation_is_done_when_filter_drain_returns_done() -> None:
    """drain() moves bytes, returns IOB_AGAIN, moves more bytes, and then returns IOB_DONE."""
    with writer_pair(through=ScriptedFilter(2, IOB_AGAIN, 1)) as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        assert not operation.done()
        assert await operation == 3


FAILURES = pytest.mark.parametrize(
    ("error", "script", "wants"),
    [
        (OSError, [IOB_ERROR, IOB_ERROR], EVENT_WRITE),
        (ZeroDivisionError, [ZeroDivisionError(), IOB_DONE], EVENT_WRITE),
        (ssl.SSLWantReadError, [IOB_AGAIN, IOB_AGAIN], EVENT_READ),
    ],
    ids=["IOB_ERROR", "exception", "wants to read"],
)


@FAILURES
@both_loops
async def test_failure_of_filter_drain_fails_the_operation(
    error: type[Exception], script: list[int | BaseException], wants: int
) -> None:
    with writer_pair(through=ScriptedFilter(*script, wants=wants)) as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        with pytest.raises(error):
            await operation
        assert operation.status is WriteStatus.ERROR
        assert not is_watched(writer)


@FAILURES
@both_loops
async def test_failure_of_filter_finish_fails_the_writers_finish(
    error: type[Exception], script: list[int | BaseException], wants: int
) -> None:
    with writer_pair(through=ScriptedFilter(*script, wants=wants)) as (writer, _):
        with pytest.raises(error):
            await writer.finish()
        assert not is_watched(writer)


@both_loops
@pytest.mark.parametrize(
    "size", [60_000, 1 << 20], ids=["held by the filter", "more than it holds"]
)
async def test_reset_by_the_peer_ends_a_write_that_waits_in_a_filter(size: int) -> None:
    """The loop may report it once (uvloop), and the filter may still take input in that turn.

    Either size is more than the sockets take: TCP frees a part of a full buffer when the peer
    acknowledges it later.
    """
    with stream_pair("tcp4", buffers=4096) as (ours, theirs):
        ours.setblocking(False)
        clog(ours)
        writer = BatchWriter(ours, through=Filter(Identity()))
        operation = writer.write(batch_of(bytes(size)))
        await turns()
        assert operation.status is WriteStatus.PENDING
        reset(theirs)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                await operation
        assert operation.status is WriteStatus.ERROR
        writer.close()


@both_loops
async def test_block_raises_a_timeout_although_the_filter_holds_bytes_that_cannot_be_sent() -> None:
    """The filter takes all of them in the call that posts them, and needs no turn of the loop."""
    with full_writer(through=Filter(Identity())) as (writer, _):
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(TimeoutError, match="of 60000 bytes"):
                async with writer:
                    writer.write(batch_of(bytes(60_000)), timeout=0.01)
        assert writer.pending == 60_000


@both_loops
async def test_drain_raises_a_timeout_although_the_filter_holds_bytes_that_cannot_be_sent() -> None:
    with full_writer(through=Filter(Identity())) as (writer, _):
        writer.write(batch_of(bytes(100_000)), timeout=0.01)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(TimeoutError, match="of 100000 bytes"):
                await writer.drain()
            await writer.drain()  # no operation is pending


@both_loops
async def test_drain_raises_once_an_exception_of_the_filter_over_leftovers() -> None:
    """No operation is left that could end with it."""
    with writer_pair(through=ScriptedFilter(IOB_AGAIN, 1, ZeroDivisionError())) as (writer, _):
        writer.write(batch_of(b"abc")).cancel()
        await wait_until_idle(writer)
        with pytest.raises(ZeroDivisionError):
            await writer.drain()
        await writer.drain()


@both_loops
async def test_drain_raises_only_the_first_of_two_errors() -> None:
    """The operation times out before the filter fails with its leftovers."""
    with writer_pair(through=ScriptedFilter(IOB_AGAIN, ZeroDivisionError())) as (writer, _):
        writer._sender.expire(writer.write(batch_of(b"abc"))._posted_write)
        await wait_until_idle(writer)
        with pytest.raises(TimeoutError):
            await writer.drain()
        await writer.drain()


@both_loops
async def test_drain_raises_a_filter_error_over_leftovers() -> None:
    filter_ = ScriptedFilter(IOB_AGAIN, IOB_ERROR)
    with writer_pair(through=filter_, high_water=1) as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        assert operation.cancel()
        await turns()
        with pytest.raises(OSError, match="scripted"):
            await writer.drain()


@both_loops
async def test_retrieved_filter_error_is_not_raised_again_by_drain_or_exit() -> None:
    class Broken(Identity):
        def compress(self, piece: Any, /) -> bytes:
            raise ZeroDivisionError

    with stream_pair() as (sock, _):
        sock.setblocking(False)
        failed: list[WriteOperation] = []
        async with BatchWriter(sock, through=Filter(Broken())) as writer:
            with pytest.raises(ZeroDivisionError):
                await writer.write(batch_of(b"abc"))
            operation = writer.write(batch_of(b"abc"), on_error=failed.append)
            await writer.drain()
        await turns()
        assert failed == [operation]


@both_loops
async def test_retrieved_filter_error_is_not_raised_again_for_leftovers() -> None:
    filter_ = ScriptedFilter(IOB_AGAIN, IOB_ERROR, IOB_ERROR)
    with writer_pair(through=filter_) as (writer, _):
        assert writer.write(batch_of(b"abc")).cancel()
        operation = writer.write(batch_of(b"def"), on_error=lambda _: None)
        writer._sender.resume()
        assert (operation.status, operation.error) == (WriteStatus.ERROR, filter_.error)
        await writer.drain()


@both_loops
async def test_drain_does_not_wait_for_bytes_held_by_a_failed_filter() -> None:
    filter_ = ScriptedFilter(IOB_AGAIN, IOB_ERROR, IOB_ERROR)
    with writer_pair(through=filter_, high_water=1) as (writer, _):
        operation = writer.write(batch_of(b"abc"), on_error=lambda _: None)
        await writer.drain()
        assert operation.status is WriteStatus.ERROR
        assert writer.pending == 3

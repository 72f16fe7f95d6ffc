"""Errors of operations: raised where awaited, and by drain() if not retrieved."""

from __future__ import annotations

import errno
import gc

import pytest

from iobatch import IOBatch
from iobatch.aio import BatchWriter, WriteOperation, WriteStatus
from tests.support.batches import batch_of
from tests.support.loops import (
    both_loops,
    full_writer,
    is_watched,
    scripted_writer,
    turns,
    writer_pair,
)


@both_loops
async def test_awaiting_a_failed_operation_raises_its_error_each_time() -> None:
    with writer_pair() as (writer, peer):
        peer.close()
        operation = writer.write(batch_of(b"abc"))
        assert (operation.status, operation.bytes_transferred) == (WriteStatus.ERROR, 0)
        assert operation.batch.bytesleft == 3
        for _ in range(2):
            with pytest.raises(BrokenPipeError):
                await operation
        await writer.drain()  # raises nothing: the error was retrieved


@both_loops
async def test_traceback_of_an_error_does_not_grow_with_each_await() -> None:
    def broken(_sock: object, _view: memoryview) -> int:
        raise ZeroDivisionError

    for options in {}, {"through": broken}:
        with writer_pair(**options) as (writer, peer):
            peer.close()
            operation = writer.write(batch_of(b"abc"))
            depths = []
            for _ in range(3):
                with pytest.raises((BrokenPipeError, ZeroDivisionError)) as raised:
                    await operation
                depths.append(len(raised.traceback))
            assert len(set(depths)) == 1
            # The callback's own frame is still the innermost.
            assert (raised.traceback[-1].name == "broken") == bool(options)


@both_loops
async def test_error_that_appears_while_a_write_waits_ends_it() -> None:
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        peer.sock.close()
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            await operation
        assert not is_watched(writer)


@both_loops
async def test_error_after_the_first_bytes_ends_the_write_with_their_count() -> None:
    with scripted_writer(2, ConnectionResetError(errno.ECONNRESET, "reset")) as (writer, sock):
        batch = batch_of(bytes(20_000), bytes(20_000))  # more than is joined into one buffer
        operation = writer.write(batch)
        await turns()
        assert (operation.status, operation.bytes_transferred) == (WriteStatus.ERROR, 2)
        assert operation.batch.bytesleft == 39_998
        with pytest.raises(ConnectionResetError):
            await operation
        assert len(sock.taken) == 2


@both_loops
async def test_unretrieved_error_is_raised_by_drain_once_and_not_logged() -> None:
    with writer_pair() as (writer, peer):
        peer.close()
        writer.write(batch_of(b"abc"))
        writer.write(batch_of(b"def"))
        gc.collect()
        with pytest.raises(BrokenPipeError):
            await writer.drain()
        await writer.drain()


@both_loops
async def test_error_of_an_aborted_operation_is_raised_only_by_itself() -> None:
    with writer_pair() as (owner, _):
        async with BatchWriter(owner.sock) as writer:
            operation = writer.write(batch_of(bytes(10_000_000)))
            writer.close()
            await writer.drain()
        with pytest.raises(OSError, match="canceled"):
            await operation


@both_loops
async def test_exception_retrieves_the_error() -> None:
    with writer_pair() as (writer, peer):
        peer.close()
        assert isinstance(writer.write(batch_of(b"abc")).exception(), BrokenPipeError)
        await writer.drain()


@both_loops
async def test_callback_added_after_the_failure_retrieves_the_error() -> None:
    with writer_pair() as (writer, peer):
        peer.close()
        called: list[WriteOperation] = []
        operation = writer.write(batch_of(b"abc"))
        operation.add_done_callback(called.append)
        await writer.drain()
        await turns()
        assert called == [operation]


@both_loops
@pytest.mark.parametrize("retrieval", ["await", "drain"])
async def test_raised_error_holds_no_reference_to_the_batch(retrieval: str) -> None:
    """A failed operation is collected with its last reference, without the cycle collector."""
    with writer_pair() as (writer, peer):
        peer.close()
        released: list[str] = []
        batch = IOBatch()
        batch.addbuf(b"abc", on_release=lambda: released.append("released"))
        operation = writer.write(batch)
        gc.disable()
        try:
            with pytest.raises(BrokenPipeError) as raised:
                await (operation if retrieval == "await" else writer.drain())
            assert not released
            del operation
            assert released == ["released"]
            assert raised.value.errno == errno.EPIPE
        finally:
            gc.enable()

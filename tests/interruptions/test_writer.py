"""Handlers that raise while a BatchWriter is in use."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from iobatch import COMPILED, IOB_AGAIN, IOBatch, iob_send
from iobatch.filters import Filter
from tests.support.batches import batch_of, data
from tests.support.interruptions import (
    KINDS,
    LARGE,
    SMALL,
    drain,
    every_kind,
    handler_that_raises,
    raise_from_handler,
)
from tests.support.loops import both_loops, full_writer, read, turns, writer_pair
from tests.support.sockets import PATIENCE, fd_count, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from tests.support.batches import MakeFile


@both_loops
@every_kind
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("hook", [None, partial(int)], ids=["no hook", "hook"])
@pytest.mark.parametrize("options", [{}, {"timeout": PATIENCE}], ids=["at once", "posted"])
async def test_interrupted_write_closes_the_writer_or_changes_nothing(
    size: int,
    hook: Callable[[], object] | None,
    options: dict[str, Any],
    kind: type[Exception],
    make_file: MakeFile,
) -> None:
    content = data(size)
    fd = make_file(content)
    closed = 0
    for point in count(1):
        with writer_pair() as (writer, peer):
            batch = IOBatch()
            batch.addbuf(b"header", on_release=hook)
            batch.addfile(fd)
            operations = []
            with handler_that_raises(point, kind) as raised, suppress(*KINDS):
                operations.append(writer.write(batch, **options))
            try:
                operations.append(writer.write(batch_of(b"next")))
            except OSError:  # the writer is closed
                closed += 1
                assert raised
            else:
                operations.append(writer.write(batch))
                await operations[-1]
            writer.close()
            assert all(operation.done() for operation in operations)
            received = drain(peer)
            wanted = b"header" + content
            # A writer that was closed may have sent a part of the first write. Otherwise the batch
            # was sent by the first write or by the last one.
            if received != wanted[: len(received)]:
                assert received in {wanted + b"next", b"next" + wanted}
        if not raised:
            break
    # The compiled form writes a plain batch without running any Python code.
    if COMPILED and not (hook or options):
        assert (point, closed) == (1, 0)
    else:
        assert point > 10
        assert closed > 0


@both_loops
@every_kind
async def test_interrupted_turn_of_the_loop_ends_every_write(
    kind: type[Exception], make_file: MakeFile
) -> None:
    """Unsent writes are aborted, and no byte is sent twice."""
    content = data(LARGE)
    fd = make_file(content)
    for point in count(1):
        with full_writer() as (writer, peer):
            first, second = IOBatch(), batch_of(b"second")
            first.addbuf(b"header")
            first.addfile(fd)
            operations = [writer.write(first), writer.write(second)]
            await peer.clear()
            with handler_that_raises(point, kind) as raised, suppress(kind):
                writer._sender.resume()  # not by the loop: the exception must reach this test
            writer.close()
            assert all(operation.done() for operation in operations)
            received = drain(peer.sock)
            wanted = b"header" + content + b"second"
            assert received == wanted[: len(received)]
            assert operations[0].bytes_transferred <= len(received)
        if not raised:
            break
    assert point > 20


@both_loops
async def test_interrupted_post_of_a_write_that_waits_leaks_no_descriptor() -> None:
    """The loop watches a duplicate of the socket's descriptor."""
    for point in count(1):
        with full_writer() as (writer, _):
            before = fd_count()
            handler = handler_that_raises(point, ZeroDivisionError)
            with handler as raised, suppress(ZeroDivisionError):
                writer.write(batch_of(b"abc"))
            writer.close()
            await turns()  # uvloop keeps a descriptor until a later turn
            assert fd_count() == before, point
        if not raised:
            break
    assert point > 20


@both_loops
@every_kind
@pytest.mark.parametrize("end", ["cancel", "expire", "cancel all", "close"])
async def test_no_write_follows_one_whose_early_end_was_interrupted(
    end: str, kind: type[Exception]
) -> None:
    """The peer would read the bytes of a later write as a part of the truncated one."""
    content = data(1_000_000)
    for point in count(1):
        with writer_pair(buffers=4096) as (writer, peer):
            operation = writer.write(batch_of(content))
            later = writer.write(batch_of(b"later"))
            with handler_that_raises(point, kind) as raised, suppress(kind):
                if end == "cancel":
                    operation.cancel()
                elif end == "expire":
                    writer._sender.expire(operation._posted_write)
                elif end == "cancel all":
                    writer.cancel()
                else:
                    writer.close()
                assert not raised  # the exception leaves the call
            if operation.done():
                assert later.done()
                assert later.bytes_transferred == 0
            writer.close()
            assert operation.done()
            assert later.done()
            with suppress(BlockingIOError):
                while piece := peer.recv(1 << 20):
                    assert b"later" not in piece
        if not raised:
            break
    assert point > 10


@both_loops
async def test_writer_stays_closed_however_often_its_close_is_interrupted() -> None:
    with full_writer() as (writer, peer):
        operations = [writer.write(batch_of(b"abc"), on_complete=lambda _: None) for _ in range(2)]
        with pytest.MonkeyPatch.context() as patch:
            call_soon = Mock(side_effect=ZeroDivisionError("handler"))
            patch.setattr(writer._sender, "loop", Mock(call_soon=call_soon, is_closed=bool))
            with pytest.raises(ZeroDivisionError, match="handler"):
                writer.close()
        await peer.clear()
        await asyncio.wait(operations)
        assert drain(peer.sock) == b""


@both_loops
async def test_exception_of_a_handler_in_the_end_of_a_write_closes_the_writer() -> None:
    """The exception leaves the call, and the writes after that one have ended."""
    with full_writer() as (writer, _):
        operations = [writer.write(batch_of(b"abc"), on_complete=lambda _: None) for _ in range(2)]
        with pytest.MonkeyPatch.context() as patch:
            call_soon = Mock(side_effect=[ZeroDivisionError("handler"), None, None])
            loop = Mock(call_soon=call_soon, is_closed=bool)
            patch.setattr(writer._sender, "loop", loop)
            with pytest.raises(ZeroDivisionError, match="handler"):
                operations[0].cancel()
        assert call_soon.call_count == 3
        assert all(operation.done() for operation in operations)
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"def"))


@both_loops
async def test_oserror_of_a_handler_in_add_writer_closes_the_writer() -> None:
    """The exception leaves the call: it isn't the loop's refusal, which leaves the writer open."""
    with full_writer() as (writer, _):
        with pytest.MonkeyPatch.context() as patch:
            loop: Any = Mock(add_writer=raise_from_handler)
            patch.setattr(writer._sender._watch, "loop", loop)
            with pytest.raises(BlockingIOError, match="handler"):
                writer.write(batch_of(b"abc"))
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"def"))


@both_loops
async def test_oserror_of_a_handler_in_the_check_of_the_socket_closes_the_writer() -> None:
    """The exception leaves the call: it isn't the error of a socket that is closed."""
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fstat", raise_from_handler)
            with pytest.raises(BlockingIOError, match="handler"):
                writer._sender._watch.check()
        assert operation.done()
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"def"))


@both_loops
async def test_oserror_of_a_handler_in_the_close_of_the_duplicate_leaves_the_call() -> None:
    """It isn't the error of close(), which does not matter."""
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        close = os.close

        def close_and_handle(fd: int) -> None:
            close(fd)
            raise_from_handler()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "close", close_and_handle)
            with pytest.raises(BlockingIOError, match="handler"):
                operation.cancel()


@both_loops
async def test_oserror_of_a_handler_in_filter_drain_closes_the_writer() -> None:
    """The exception leaves the call: it isn't the filter's, which drain() raises later."""
    interrupted = False

    def callback(_sock: object, _view: memoryview) -> int:
        if interrupted:
            raise_from_handler()
        return IOB_AGAIN

    with writer_pair(through=Filter(Identity(), callback)) as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        interrupted = True
        operation.cancel()
        with pytest.raises(BlockingIOError, match="handler"):
            writer._sender.resume()
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"def"))


class Identity:
    """A transform that returns its input."""

    def compress(self, data: Buffer, /) -> bytes:
        return bytes(data)

    def flush(self) -> bytes:
        return b""


@both_loops
async def test_write_of_an_interrupted_batch_sends_only_its_unsent_bytes() -> None:
    for point in count(1):
        with stream_pair() as (sock, other_peer), writer_pair() as (writer, peer):
            batch = IOBatch()
            batch.addbuf(b"A" * 3000)
            batch.addbuf(b"B" * 2000)
            with handler_that_raises(point, ZeroDivisionError) as raised, suppress(*KINDS):
                iob_send(sock, batch, limit=3000)
            if batch.error is None:
                left = batch.bytesleft
                assert await writer.write(batch) == left
                wanted = (b"A" * 3000 + b"B" * 2000)[5000 - left :]
                assert await read(peer, left) == wanted
                assert writer.pending == 0
            other_peer.close()
        if not raised:
            break

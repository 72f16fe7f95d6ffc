"""BatchWriter through filters: completion, cancellation and the end of the stream."""

from __future__ import annotations

import asyncio
import socket
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from iobatch import IOB_AGAIN, WRITE_LIMIT
from iobatch.aio import CancellationType, WriteStatus
from iobatch.filters import Chunked, Filter
from tests.support.batches import batch_of, data
from tests.support.filters import Growing, Identity
from tests.support.http import unchunk
from tests.support.loops import (
    FakeTime,
    both_loops,
    full_writer,
    is_watched,
    read,
    turns,
    writer_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer


@both_loops
async def test_gzip_in_chunked_coding_decodes_and_finish_ends_it(
    make_file: Callable[[bytes], int],
) -> None:
    content = data(300_000)
    pipeline = Filter(zlib.compressobj(wbits=31), Filter(Chunked()))
    with writer_pair(buffers=4096, through=pipeline) as (writer, peer):
        batch = batch_of(b"header")
        batch.addfile(make_file(content))
        operations = [writer.write(batch), writer.write(batch_of(b"footer")), writer.finish()]
        received = bytearray()
        while not received.endswith(b"\r\n0\r\n\r\n"):
            received += await asyncio.get_running_loop().sock_recv(peer, 1 << 16)
        assert [await operation for operation in operations] == [300_006, 6, 0]
        decompressed = zlib.decompress(unchunk(bytes(received)), wbits=31)
        assert decompressed == b"header" + content + b"footer"
        assert writer.pending == 0
        with pytest.raises(BrokenPipeError):
            await writer.write(batch_of(b"more"))
        assert await writer.finish() == 0


@both_loops
async def test_finish_without_a_filter_only_waits_for_earlier_writes() -> None:
    with full_writer() as (writer, peer):
        writer.write(batch_of(b"abc"))
        end = writer.finish()
        assert not end.done()
        assert await peer.read(3) == b"abc"
        assert await end == 0
        assert writer.write(batch_of(b"def")).done()


@both_loops
async def test_flags_are_refused_with_a_filter() -> None:
    """Flags can't reach the socket through a filter."""
    with writer_pair(through=Filter(Identity())) as (writer, _):
        batch = batch_of(b"abc")
        with pytest.raises(ValueError, match="flags"):
            writer.write(batch, flags=socket.MSG_OOB)
        assert batch.bytesleft == 3


@both_loops
async def test_operation_is_done_when_the_filter_has_passed_on_its_bytes() -> None:
    with full_writer(through=Filter(Identity())) as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        assert operation.bytes_transferred == 3
        assert operation.status is WriteStatus.PENDING
        assert writer.pending == 3  # the filter holds them
        some = writer.write_some(batch_of(b"defg"))
        assert writer.pending == 7
        assert await peer.read(7) == b"abcdefg"
        assert await operation == 3
        assert await some == 4


@both_loops
async def test_pending_includes_the_bytes_held_by_each_filter() -> None:
    pipeline = Filter(Identity(), Filter(Identity()))
    with full_writer(through=pipeline, high_water=1) as (writer, peer):
        operation = writer.write(batch_of(data(5000)))
        await turns()
        assert (operation.status, writer.pending) == (WriteStatus.PENDING, 5000)
        await peer.clear()
        await operation
        assert writer.pending == 0


@both_loops
async def test_bytes_taken_from_a_cancelled_operation_are_passed_on() -> None:
    """No other write is in the queue."""
    content = data(1000)
    with full_writer(through=Filter(Identity(), high_water=1000)) as (writer, peer):
        whole = writer.write(batch_of(content))
        later = writer.write(batch_of(b"second"))
        assert (whole.bytes_transferred, whole.status) == (1000, WriteStatus.PENDING)
        assert not whole.cancel(CancellationType.TOTAL)
        assert later.cancel()
        assert whole.cancel()
        assert writer.pending == 1000
        assert await peer.read(1000) == content
        await turns()
        assert writer.pending == 0
        assert not is_watched(writer)


@both_loops
async def test_cancelling_after_the_filter_took_every_byte_aborts_nothing() -> None:
    """The body is not truncated, so the next write may follow it."""
    with full_writer(through=Filter(Identity())) as (writer, peer):
        whole = writer.write(batch_of(b"whole"))
        later = writer.write(batch_of(b"second"))
        assert whole.cancel()
        assert (whole.bytes_transferred, later.status) == (5, WriteStatus.PENDING)
        assert await peer.read(11) == b"wholesecond"
        assert await later == 6


@both_loops
async def test_leftovers_go_out_in_one_turn_however_many_steps_they_take() -> None:
    ready = False

    def callback(_sock: socket.socket, _view: memoryview) -> int:
        return 1 if ready else IOB_AGAIN

    with writer_pair(through=Filter(Identity(), callback)) as (writer, _):
        assert writer.write(batch_of(b"abc")).cancel()
        ready = True
        writer._sender.resume()
        assert writer.pending == 0
        assert not is_watched(writer)


@both_loops
async def test_leftovers_that_use_up_a_turns_limit_end_in_the_next_turn() -> None:
    with full_writer(through=Filter(Identity()), limit=5000) as (writer, peer):
        operation = writer.write(batch_of(bytes(5000)))
        assert operation.bytes_transferred == 5000
        operation.cancel()
        assert await peer.read(5000) == bytes(5000)
        await turns()
        assert not is_watched(writer)


@both_loops
async def test_one_turn_passes_on_at_most_limit_bytes_of_leftovers() -> None:
    ready = False
    sizes: list[int] = []
    total = 0

    def callback(_sock: socket.socket, view: memoryview) -> int:
        if not ready:
            return IOB_AGAIN
        sizes.append(len(view))
        return len(view)

    with writer_pair(through=Filter(Growing(), callback)) as (writer, _):
        operation = writer.write(batch_of(data(2000)))
        assert operation.cancel()
        assert operation.bytes_transferred == 2000
        ready = True
        while writer.pending:
            await turns(1)
            assert sum(sizes) <= WRITE_LIMIT
            total += sum(sizes)
            sizes.clear()
        assert total == 2000 * 100


@both_loops
async def test_slow_progress_of_a_filter_prevents_stall_timeout() -> None:
    with writer_pair(buffers=4096, through=Filter(Identity())) as (writer, peer):
        now = FakeTime(asyncio.get_running_loop())
        writer._sender.loop = now  # type: ignore[assignment]
        operation = writer.write(batch_of(bytes(1 << 20)), stall_timeout=10)
        for _ in range(100):
            now.advance(9)
            pending = writer.pending
            while writer.pending == pending:
                with suppress(BlockingIOError):
                    peer.recv(1000)
                await asyncio.sleep(0)
        assert operation.status is WriteStatus.PENDING
        now.advance(10.1)
        assert operation.status is WriteStatus.TIMEOUT


@both_loops
@pytest.mark.parametrize("filters", [1, 2])
async def test_input_that_a_filter_takes_while_nothing_leaves_it_is_a_stall(filters: int) -> None:
    """A filter takes high_water bytes of input although the socket is full."""
    through = None
    for _ in range(filters):
        through = Filter(Identity(), through)
    with full_writer(through=through) as (writer, _):
        now = FakeTime(asyncio.get_running_loop())
        writer._sender.loop = now  # type: ignore[assignment]
        operation = writer.write(batch_of(bytes(250_000)), stall_timeout=10)
        for _ in range(3):
            now.advance(3)
            writer._sender.resume()
        assert operation.bytes_transferred == 250_000
        assert operation.status is WriteStatus.PENDING
        now.advance(1.1)
        assert operation.status is WriteStatus.TIMEOUT


@both_loops
async def test_input_of_a_compressor_that_makes_no_output_yet_is_no_stall() -> None:
    """The peer takes all that there is to take."""

    class Collect:
        def compress(self, _data: Buffer, /) -> bytes:
            return b""

        def flush(self) -> bytes:
            return b"end"

    with writer_pair(through=Filter(Collect())) as (writer, peer):
        now = FakeTime(asyncio.get_running_loop())
        writer._sender.loop = now  # type: ignore[assignment]
        operation = writer.write(batch_of(bytes(1 << 20)), stall_timeout=10)
        while operation.status is WriteStatus.PENDING:
            now.advance(9)
            await asyncio.sleep(0)
        assert operation.status is WriteStatus.DONE
        await writer.finish()
        assert await read(peer, 3) == b"end"

"""Writes with a pipeline of their own: the codings of one response, above the connection's TLS."""

from __future__ import annotations

import asyncio
import errno
import gzip
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, IOBatch, iob_write
from iobatch.aio import BatchWriter, CancellationType, WriteStatus
from iobatch.filters import Chunked, Filter
from tests.support.aio import statuses
from tests.support.batches import batch_of
from tests.support.filters import Identity, Xor, codec
from tests.support.http import split
from tests.support.loops import both_loops, full_writer, read, turns, writer_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

BODY = b"The same again and again. " * 1000
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ABORTED, CANCELLED, DONE = WriteStatus.ABORTED, WriteStatus.CANCELLED, WriteStatus.DONE


async def receive_xor(sock: Any) -> bytes:
    received = bytearray()
    while not received.endswith(b"\0"):
        received += await asyncio.get_running_loop().sock_recv(sock, 1 << 16)
    return Xor().compress(received[:-1])


@both_loops
async def test_each_response_has_its_head_over_tls_and_its_body_through_a_codec() -> None:
    secure = Filter(Xor())
    with writer_pair(through=secure) as (writer, peer):
        arriving = asyncio.create_task(receive_xor(peer))
        async with writer:
            for _ in range(3):
                coded = codec(secure)
                writer.write(batch_of(HEAD))
                writer.write(batch_of(BODY), through=coded)
                writer.write(batch_of(BODY), through=coded)
                operation = writer.finish(through=coded, until=secure)
            assert await operation == 0
            assert writer.pending == 0
            await writer.finish()
        responses = split(await arriving)
        assert [gzip.decompress(response.body) for response in responses] == [BODY * 2] * 3


@both_loops
async def test_codec_needs_no_pipeline_of_the_writer() -> None:
    with writer_pair() as (writer, peer):
        coded = codec(None)
        writer.write(batch_of(HEAD))
        writer.write(batch_of(BODY), through=coded)
        writer.finish(through=coded)
        assert await writer.write(batch_of(b"next")) == 4
        raw = await read(peer, len(HEAD))
        while not raw.endswith(b"0\r\n\r\nnext"):
            raw += await read(peer, 1)
        [response] = split(raw.removesuffix(b"next"))
        assert gzip.decompress(response.body) == BODY


@both_loops
async def test_posting_other_bytes_into_an_open_codec_raises_and_changes_nothing() -> None:
    secure = Filter(Xor())
    with writer_pair(through=secure) as (writer, peer):
        coded = codec(secure)
        await writer.write(batch_of(BODY), through=coded)
        batch = batch_of(b"between")
        for post in (
            lambda: writer.write(batch),
            lambda: writer.write_some(batch),
            lambda: writer.write(batch, through=codec(secure)),
            lambda: writer.write_buffer(b"between", print),
            writer.finish,
        ):
            with pytest.raises(RuntimeError, match="codec is open"):
                post()
        assert batch.bytesleft == 7
        assert writer.flush().status is DONE
        await writer.finish(through=coded, until=secure)
        assert await writer.write(batch) == 7
        await writer.finish()
        assert (await receive_xor(peer)).endswith(b"0\r\n\r\nbetween")


@both_loops
async def test_codec_that_has_taken_no_bytes_is_not_open() -> None:
    """Its only write was cancelled before its first byte."""
    secure = Filter(Identity())
    with full_writer(through=secure) as (writer, peer):
        first = writer.write(batch_of(b"first"))
        coded = writer.write(batch_of(BODY), through=codec(secure))
        assert coded.cancel(CancellationType.TOTAL)
        second = writer.write(batch_of(b"second"))
        assert await peer.read(11) == b"firstsecond"
        assert await first == 5
        assert await second == 6


@both_loops
@pytest.mark.parametrize("kind", [CancellationType.PARTIAL, CancellationType.TOTAL])
async def test_cancelled_end_of_a_codec_aborts_what_was_posted_after_it(
    kind: CancellationType,
) -> None:
    """The bytes would be taken for a part of the body."""
    with full_writer() as (writer, peer):
        coded = codec(None)
        body = writer.write(batch_of(BODY), through=coded)
        end = writer.finish(through=coded)
        after = writer.write(batch_of(b"after"))
        assert end.cancel(kind)
        assert statuses([end, after]) == [CANCELLED, ABORTED]
        assert after.batch.bytesleft == 5
        with pytest.raises(RuntimeError, match="codec is open"):
            writer.write(after.batch)
        await peer.clear()
        await body
        end = writer.finish(through=coded)
        operation = writer.write(after.batch)
        raw = b""
        while not raw.endswith(b"0\r\n\r\nafter"):
            raw += await read(peer.sock, 1)
        assert await end == 0
        assert await operation == 5


@both_loops
@pytest.mark.parametrize(
    "make",
    [lambda _: None, lambda _: codec(None), lambda _: Filter(Identity(), bytes.__len__)],
    ids=["None", "to the socket", "to another callback"],
)
async def test_pipeline_that_bypasses_the_writers_is_refused(
    make: Callable[[Filter], Any],
) -> None:
    """Its bytes would leave as plain text under TLS."""
    secure = Filter(Xor())
    with writer_pair(through=secure) as (writer, _):
        batch = batch_of(b"secret")
        for post in (
            lambda through: writer.write(batch, through=through),
            lambda through: writer.write_some(batch, through=through),
            lambda through: writer.finish(through=through),
            lambda through: writer.flush(through=through),
        ):
            with pytest.raises(ValueError, match="lead to the writer's own"):
                post(make(secure))
        assert batch.bytesleft == 6


@both_loops
async def test_bad_pipelines_and_ends_are_refused() -> None:
    with writer_pair() as (writer, _):
        with pytest.raises(TypeError, match="through must be callable, not 'int'"):
            writer.write(batch_of(b"x"), through=7)  # type: ignore[arg-type]
        for through in None, codec(None):
            with pytest.raises(ValueError, match="until must be a filter"):
                writer.finish(through=through, until=Filter(Identity()))
        with pytest.raises(ValueError, match="flags must be 0"):
            writer.write(batch_of(b"x"), through=codec(None), flags=1)
        assert writer.finish().status is DONE


@both_loops
async def test_codec_is_open_while_any_of_its_writes_is_queued() -> None:
    with full_writer() as (writer, _):
        coded = codec(None)
        writer.write(batch_of(b"before"))
        *others, last = [writer.write(batch_of(b"x"), through=coded) for _ in range(3)]
        for each in others:
            assert each.cancel()
            with pytest.raises(RuntimeError, match="another codec is open"):
                writer.write(batch_of(b"x"), through=codec(None))
        assert last.cancel()
        writer.write(batch_of(b"x"), through=codec(None))


@both_loops
async def test_pending_counts_each_filter_once() -> None:
    secure = Filter(Identity(), lambda *_: IOB_AGAIN)
    with writer_pair(through=secure) as (writer, _):
        first, second = Filter(Identity(), secure), Filter(Identity(), secure)
        writer.write(batch_of(bytes(10)))
        writer.write(batch_of(bytes(100)), through=first)
        writer.finish(through=first, until=secure)
        writer.write(batch_of(bytes(1000)), through=second)
        assert secure.bytesleft == 10
        assert writer.pending == 1110
        writer.cancel()
        assert writer.pending == 10


@both_loops
async def test_pending_counts_what_a_codec_held_before_its_write() -> None:
    with full_writer() as (writer, _):
        coded = Filter(Identity(), lambda *_: IOB_AGAIN)
        assert iob_write(None, batch_of(b"held"), coded) == 4
        writer.write(batch_of(b"before"))
        writer.write(batch_of(b"x"), through=coded)
        assert writer.pending == 4 + 6 + 1


@both_loops
async def test_leftovers_of_a_codec_are_sent_on_after_its_write_was_cancelled() -> None:
    with full_writer() as (writer, peer):
        coded = Filter(Identity())
        operation = writer.write(batch_of(bytes(600_000)), through=coded)
        held = coded.bytesleft
        assert 0 < held < 600_000
        assert operation.cancel()
        assert writer.pending == held
        await peer.read(operation.bytes_transferred)
        await turns()
        assert writer.pending == 0


@both_loops
async def test_cancelling_several_codecs_keeps_the_one_that_has_begun_open() -> None:
    with full_writer() as (writer, peer):
        first, second = Filter(Chunked()), Filter(Chunked())
        writer.write(batch_of(b"body"), through=first)
        writer.finish(through=first)
        writer.write(batch_of(b"other"), through=second)
        writer.finish(through=second)
        assert writer.cancel()
        with pytest.raises(RuntimeError, match="codec is open"):
            writer.write(batch_of(b"next"))
        writer.finish(through=first)
        operation = writer.write(batch_of(b"next"))
        assert await peer.read(18) == b"4\r\nbody\r\n0\r\n\r\nnext"
        assert await operation == 4
        assert writer.pending == 0


@both_loops
async def test_flush_and_empty_writes_open_no_codec_and_close_none() -> None:
    with writer_pair() as (writer, peer):
        first, second = Filter(Chunked()), Filter(Chunked())
        await writer.write(batch_of(b"body"), through=first)
        for operation in (
            writer.flush(through=second),
            writer.flush(through=first),
            writer.write(IOBatch(), through=second),
        ):
            assert operation.status is DONE
        with pytest.raises(RuntimeError, match="codec is open"):
            writer.write(batch_of(b"plain"))
        await writer.write(batch_of(b"more"), through=first)
        await writer.finish(through=first)
        await writer.flush(through=second)
        assert await writer.write(batch_of(b"plain")) == 5
        assert await read(peer, 28) == b"4\r\nbody\r\n4\r\nmore\r\n0\r\n\r\nplain"


@both_loops
async def test_cancelled_end_of_a_stream_without_a_body_is_still_owed() -> None:
    """The end is output that the filter holds."""
    with full_writer() as (writer, peer):
        coded = Filter(Chunked())
        assert writer.finish(through=coded).cancel()
        with pytest.raises(RuntimeError, match="codec is open"):
            writer.write(batch_of(b"next"))
        writer.finish(through=coded)
        operation = writer.write(batch_of(b"next"))
        assert await peer.read(9) == b"0\r\n\r\nnext"
        assert await operation == 4


@both_loops
async def test_writer_refuses_a_pipeline_that_can_not_be_called() -> None:
    with writer_pair() as (writer, _), pytest.raises(TypeError, match="through must be callable"):
        BatchWriter(writer.sock, through=5)  # type: ignore[arg-type]


@both_loops
async def test_a_codec_that_failed_lets_no_other_bytes_follow() -> None:
    """Its stream can't be ended, so the truncated body must be the last thing on the connection."""

    class Broken(Identity):
        def compress(self, data: Buffer, /) -> bytes:
            if len(memoryview(data)) == 3:
                raise OSError(errno.EIO, "scripted")
            return super().compress(data)

    with writer_pair() as (writer, _):
        broken = Filter(Broken())
        assert await writer.write(batch_of(b"good"), through=broken) == 4
        with pytest.raises(OSError, match="scripted"):
            await writer.write(batch_of(b"bad"), through=broken)
        with pytest.raises(RuntimeError, match="another codec has failed"):
            writer.write(batch_of(b"the next response"))


@both_loops
async def test_one_byte_opens_a_codec() -> None:
    """While the write of that byte is queued, and after it."""
    with full_writer() as (writer, peer):
        coded = Filter(Chunked())
        operation = writer.write(batch_of(b"x"), through=coded)
        with pytest.raises(RuntimeError, match="codec is open"):
            writer.write(batch_of(b"plain"))
        assert await peer.read(6) == b"1\r\nx\r\n"
        assert await operation == 1
        with pytest.raises(RuntimeError, match="codec is open"):
            writer.write(batch_of(b"plain"))


@both_loops
async def test_cancelled_write_through_the_writers_filter_opens_no_codec() -> None:
    secure = Filter(Identity())
    with full_writer(through=secure) as (writer, peer):
        first = writer.write(batch_of(b"head"))
        assert writer.write(batch_of(b"cancelled")).cancel()
        coded = Filter(Chunked(), secure)
        operation = writer.write(batch_of(b"body"), through=coded)
        assert await peer.read(13) == b"head4\r\nbody\r\n"
        assert [await first, await operation] == [4, 4]


@both_loops
async def test_leftovers_of_a_codec_are_sent_on_after_a_flush_that_does_not_reach_it() -> None:
    ready = False

    def callback(_sock: object, view: memoryview) -> int:
        return len(view) if ready else IOB_AGAIN

    with writer_pair() as (writer, _):
        assert writer.write(batch_of(b"abc"), through=Filter(Identity(), callback)).cancel()
        operation = writer.flush()
        ready = True
        writer._sender.resume()
        assert operation.done()
        assert writer.pending == 0

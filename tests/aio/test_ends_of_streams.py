"""The end of `async with`, and the streams of filters that must have ended before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from iobatch import IOBatch
from iobatch.filters import Filter
from tests.support.batches import batch_of
from tests.support.filters import Identity, Xor, codec
from tests.support.loops import both_loops, writer_pair

if TYPE_CHECKING:
    from iobatch.aio import BatchWriter

BODY = b"The same again and again. " * 1000


@both_loops
@pytest.mark.parametrize("ends", ["finish", "until", "close", "raise"])
async def test_async_with_accepts_a_stream_that_was_ended(ends: str) -> None:
    secure = Filter(Xor())
    coded = codec(secure)
    with writer_pair(through=secure) as (writer, _):
        try:
            async with writer:
                await writer.write(batch_of(BODY), through=coded)
                if ends == "finish":
                    await writer.finish(through=coded)
                elif ends == "until":
                    await writer.finish(through=coded, until=secure)
                elif ends == "close":
                    writer.close()
                else:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            assert ends == "raise"


@both_loops
async def test_one_byte_begins_the_stream_of_a_filter() -> None:
    with writer_pair(through=Filter(Identity())) as (writer, _):
        assert await writer.write(batch_of(b"x")) == 1
        with pytest.raises(RuntimeError, match="the stream of a filter was not ended"):
            writer._sender.pipelines.check_finished()


@both_loops
async def test_stream_below_the_filter_that_was_left_open_is_not_ended() -> None:
    secure = Filter(Xor())
    middle = Filter(Identity(), secure)
    coded = codec(middle)
    with writer_pair(through=secure) as (writer, _):
        await writer.write(batch_of(BODY), through=coded)
        await writer.finish(through=coded, until=middle)
        with pytest.raises(RuntimeError, match="the stream of a filter was not ended"):
            writer._sender.pipelines.check_finished()


@both_loops
@pytest.mark.parametrize("unfinished", ["codec", "TLS"])
async def test_async_with_refuses_to_leave_a_stream_without_its_end(unfinished: str) -> None:
    """The peer would get a truncated body, or no close_notify."""
    secure = Filter(Xor())
    coded = codec(secure)

    async def respond(writer: BatchWriter) -> None:
        async with writer:
            if unfinished == "TLS":
                await writer.write(batch_of(BODY))
            else:
                await writer.write(batch_of(BODY), through=coded)

    with writer_pair(through=secure) as (writer, _):
        with pytest.raises(RuntimeError, match="stream of a filter was not ended"):
            await respond(writer)
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"x"))


@both_loops
async def test_async_with_reports_a_filters_error_and_not_its_missing_end() -> None:
    def broken(*_: object) -> int:
        raise ConnectionResetError

    with (
        writer_pair(through=Filter(Identity(), broken)) as (writer, _),
        pytest.raises(ConnectionResetError),
    ):
        async with writer:
            writer.write(batch_of(BODY))


@both_loops
async def test_async_with_needs_no_end_of_a_filter_that_took_nothing() -> None:
    with writer_pair(through=Filter(Xor())) as (writer, _):
        async with writer:
            await writer.write(IOBatch())
            await writer.flush()

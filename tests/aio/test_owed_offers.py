"""Offers that a callback must be given again, after the end of the write that made them."""

from __future__ import annotations

from typing import Any

import pytest

from iobatch import IOB_AGAIN, iob_write
from iobatch.aio import CancellationType, WriteStatus
from iobatch.filters import Chunked, Filter
from tests.support.aio import statuses
from tests.support.batches import batch_of
from tests.support.loops import both_loops, turns, writer_pair

ABORTED, CANCELLED, DONE = WriteStatus.ABORTED, WriteStatus.CANCELLED, WriteStatus.DONE


@both_loops
async def test_offer_that_openssl_may_have_begun_is_made_again_before_other_bytes() -> None:
    """The end of its operation leaves it owed: cancelled, timed out, or failed."""
    offers: list[bytes] = []
    script = [IOB_AGAIN, IOB_AGAIN]

    def callback(_sock: Any, view: memoryview) -> int:
        offers.append(bytes(view))
        return script.pop() if script else len(view)

    with writer_pair(through=callback) as (writer, _):
        first = writer.write(batch_of(b"first"))
        after = writer.write(batch_of(b"after"))
        assert not first.cancel(CancellationType.TOTAL)
        assert first.cancel()
        assert statuses([first, after]) == [CANCELLED, ABORTED]
        other = batch_of(b"other")
        with pytest.raises(RuntimeError, match="offered the bytes of an earlier operation again"):
            writer.write(other)
        assert other.bytesleft == 5
        again = writer.write(first.batch)
        operation = writer.write(other)
        await turns(50)
        writer._sender.resume()
        assert statuses([again, operation]) == [DONE, DONE]
        assert set(offers[:-1]) == {b"first"}
        assert offers[-1] == b"other"


@both_loops
async def test_owed_offer_stays_owed_until_its_callback_gets_it() -> None:
    """Neither a write that is cancelled first nor a reset frees the callback for other bytes."""
    offers: list[bytes] = []

    def callback(_sock: Any, view: memoryview) -> int:
        offers.append(bytes(view))
        return IOB_AGAIN

    with writer_pair(through=callback) as (writer, _):
        first = writer.write(batch_of(b"first"))
        assert first.cancel()
        coded = Filter(Chunked(), callback)
        for post in (
            lambda: writer.write(batch_of(b"other")),
            lambda: writer.write(first.batch, through=coded),
            lambda: writer.finish(through=coded),
        ):
            with pytest.raises(RuntimeError, match="offered the bytes of an earlier operation"):
                post()
        again = writer.write(first.batch)
        assert not again.cancel(CancellationType.TOTAL)
        assert again.cancel()
        again.batch.reset()
        with pytest.raises(RuntimeError, match="offered the bytes of an earlier operation"):
            writer.write(batch_of(b"other"))
        assert set(offers) == {b"first"}


@both_loops
async def test_offer_of_the_same_length_does_not_stand_for_the_owed_one() -> None:
    with writer_pair(through=lambda _sock, _view: IOB_AGAIN) as (writer, _):
        assert writer.write(batch_of(b"first")).cancel()
        other = batch_of(b"other")
        assert iob_write(None, other, lambda _sock, _view: IOB_AGAIN) == IOB_AGAIN
        with pytest.raises(RuntimeError, match="offered the bytes of an earlier operation"):
            writer.write(other)


@both_loops
async def test_offer_of_one_byte_may_have_been_sent() -> None:
    with writer_pair(through=lambda _sock, _view: IOB_AGAIN) as (writer, _):
        operation = writer.write(batch_of(b"x"))
        assert not operation.cancel(CancellationType.TOTAL)
        assert operation.cancel()

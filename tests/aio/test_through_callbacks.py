"""BatchWriter through callbacks of iob_write that hold no bytes."""

from __future__ import annotations

import errno
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, WRITE_LIMIT, iob_write
from iobatch.aio import CancellationType, WriteStatus
from iobatch.filters import Filter
from tests.support.batches import batch_of, data
from tests.support.filters import Identity
from tests.support.loops import both_loops, full_writer, is_watched, turns, writer_pair
from tests.support.write import Sink

if TYPE_CHECKING:
    from collections.abc import Callable

    from iobatch.typing import Through


def answer_again(_sock: object, _view: memoryview) -> int:
    return IOB_AGAIN


@both_loops
async def test_short_counts_and_again_of_a_callback_lose_nothing() -> None:
    callback = Sink(3, -1, 2)
    with writer_pair(through=callback) as (writer, _):
        first = writer.write(batch_of(b"abcdef"))
        second = writer.write(batch_of(b"XYZ"))
        assert (first.bytes_transferred, writer.pending) == (3, 6)
        assert [await first, await second] == [6, 3]
        assert callback.taken == b"abcdefXYZ"
        assert callback.offers[1] == callback.offers[2] == b"def"
        assert not is_watched(writer)


@both_loops
async def test_callback_takes_limit_bytes_in_one_turn() -> None:
    """The default is WRITE_LIMIT."""
    options: dict[str, int]
    for limit, options in (WRITE_LIMIT, {}), (1000, {"limit": 1000}):
        callback = Sink()
        with writer_pair(through=callback, **options) as (writer, _):
            operation = writer.write(batch_of(bytes(3 * limit)))
            assert len(callback.taken) == limit
            await turns(1)
            assert await operation == 3 * limit


@both_loops
async def test_error_after_again_aborts_the_writes_after_it() -> None:
    """After "again" part of the offer may be on its way: the failed write counts as started."""
    callback = Sink(-1, OSError(errno.ENOBUFS, "scripted"))
    with writer_pair(through=callback) as (writer, _):
        first = writer.write(batch_of(b"abc"))
        later = writer.write(batch_of(b"second"))
        with pytest.raises(OSError, match="scripted"):
            await first
        assert later.status is WriteStatus.ABORTED


@both_loops
async def test_write_whose_offer_is_pending_counts_as_started() -> None:
    """A callback like SSL_write, after "again", must be offered the same bytes.

    Part of them may be on its way: TOTAL is refused, and a cancellation aborts the writes after it.
    """
    callback = Sink(-1, -1)
    with writer_pair(through=callback) as (writer, _):
        first = writer.write(batch_of(b"abc"))
        later = writer.write(batch_of(b"second"))
        assert first.bytes_transferred == 0
        assert not first.cancel(CancellationType.TOTAL)
        assert not writer.cancel(CancellationType.TOTAL)
        assert first.cancel()
        assert later.status is WriteStatus.CANCELLED  # by writer.cancel(): it had not started
        first = writer.write(first.batch)
        later = writer.write(batch_of(b"second"))
        assert first.cancel()
        assert later.status is WriteStatus.ABORTED
        resumed = writer.write(first.batch)
        assert await resumed == 3
        assert callback.offers == [b"abc"] * 3


@both_loops
async def test_one_byte_that_is_offered_counts_as_started() -> None:
    with writer_pair(through=answer_again) as (writer, _):
        assert not writer.write(batch_of(b"x")).cancel(CancellationType.TOTAL)


@both_loops
@pytest.mark.parametrize(
    ("through", "pins", "starts"),
    [
        (lambda: answer_again, True, True),
        (lambda: answer_again, False, False),
        (lambda: None, True, False),
        (lambda: Filter(Identity(), answer_again), True, False),
    ],
    ids=["callback", "callback without pin", "socket", "filter"],
)
async def test_batch_with_a_pin_counts_as_started_if_it_waits_for_a_callback(
    through: Callable[[], Through], *, pins: bool, starts: bool
) -> None:
    """The socket and a filter may be given other bytes than those of the last offer."""
    with full_writer(through=through()) as (writer, _):
        writer.write(batch_of(b"first"))
        batch = batch_of(b"x")
        if pins:
            assert iob_write(None, batch, answer_again) == IOB_AGAIN
        operation = writer.write(batch)
        assert operation.cancel(CancellationType.TOTAL) is not starts


@both_loops
async def test_write_some_offers_pinned_bytes_again_before_later_writes() -> None:
    offers: list[bytes] = []
    script = [100, BlockingIOError(errno.EAGAIN, "again")]

    def callback(_sock: Any, view: memoryview) -> int:
        offers.append(bytes(view))
        action = script.pop(0) if script else len(view)
        if isinstance(action, BaseException):
            raise action
        return action

    first, second, third = data(100), data(60_000, 1), data(100, 2)
    with writer_pair(through=callback) as (writer, _):
        some = writer.write_some(batch_of(bytearray(first), bytearray(second)))  # type: ignore[arg-type]
        later = writer.write(batch_of(third))
        assert await some == len(first + second)
        await later
    assert offers == [first, second, second, third]


@both_loops
async def test_exactly_must_not_be_less_than_the_pinned_offer() -> None:
    def callback(_sock: Any, _view: memoryview) -> int:
        return -1

    with writer_pair(through=callback) as (writer, _):
        operation = writer.write(batch_of(data(1000)))
        operation.cancel()
        with pytest.raises(ValueError):
            writer.write(operation.batch, exactly=10)
        assert operation.batch.bytesleft == 1000


@both_loops
async def test_exception_of_a_callback_ends_its_operation_and_the_rest_may_follow() -> None:
    callback = Sink(2, ZeroDivisionError(), -7)
    with writer_pair(through=callback) as (writer, _):
        broken = writer.write(batch_of(b"abc"))
        with pytest.raises(ZeroDivisionError):
            await broken
        assert (broken.status, broken.bytes_transferred) == (WriteStatus.ERROR, 2)
        assert broken.batch.bytesleft == 1
        rest = writer.write(broken.batch)
        with pytest.raises(ValueError, match="-7"):
            await rest
        assert await writer.write(rest.batch) == 1


@both_loops
async def test_keyboard_interrupt_in_a_callback_closes_the_writer() -> None:
    callback = Sink(-1, 1, KeyboardInterrupt())
    with writer_pair(through=callback) as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        # The test calls resume() in the loop's place: raised there, it would end the loop.
        with pytest.raises(KeyboardInterrupt):
            writer._sender.resume()
        assert (operation.status, operation.bytes_transferred) == (WriteStatus.ABORTED, 1)
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"def"))


@both_loops
async def test_callback_that_wants_to_read_fails_its_operation() -> None:
    """A BatchWriter does not read."""
    callback = Sink(ssl.SSLWantReadError())
    with writer_pair(through=callback) as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        with pytest.raises(ssl.SSLWantReadError, match="read"):
            await operation
        assert operation.batch.bytesleft == 3
        assert await writer.write(operation.batch) == 3

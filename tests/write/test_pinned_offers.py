"""Pinned offers: after again the next offer is the same bytes."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from iobatch import (
    IOB_AGAIN,
    IOB_ERROR,
    IOBatch,
    iob_send,
    iob_sendall,
    iob_sendmsg,
    iob_write,
)
from tests.support.batches import batch_of, check_invariants, data, take
from tests.support.fakes import Scripted, again
from tests.support.loops import both_loops, writer_pair
from tests.support.sockets import is_silent, receive, stream_pair
from tests.support.write import Sink, write_repeatedly

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.batches import MakeFile


@pytest.mark.parametrize("first", [1, 4, 100, None])
@pytest.mark.parametrize("second", [1, 3, 7, 200_000, None])
@pytest.mark.parametrize("kind", ["buffer", "file", "small pieces"])
def test_retry_offers_the_same_bytes_in_the_same_length(
    make_file: MakeFile, first: int | None, second: int | None, kind: str
) -> None:
    """OpenSSL ends the connection otherwise (SSL_write(3): bad write retry)."""
    content = data(1000)
    batch, sink = IOBatch(), Sink(-1, None, BlockingIOError(), -1)
    if kind == "buffer":
        batch.addbuf(content)
    elif kind == "file":
        batch.addfile(make_file(content))
    else:
        for i in range(0, 1000, 10):
            batch.addbuf(content[i : i + 10])
    assert iob_write(None, batch, sink, limit=first) == IOB_AGAIN
    for limit in (second, first, second):
        batch.addbuf(b"more")  # bytes added later don't lengthen the offer
        assert iob_write(None, batch, sink, limit=limit) == IOB_AGAIN
    assert iob_write(None, batch, sink, limit=second) > 0
    assert len({*sink.offers[:5]}) == 1
    write_repeatedly(batch, sink)
    assert sink.taken == content + b"more" * 3


def test_short_count_removes_the_pin() -> None:
    batch, sink = batch_of(b"0123456789"), Sink(-1, 2, -1, 3)
    assert iob_write(None, batch, sink, limit=5) == IOB_AGAIN
    assert iob_write(None, batch, sink, limit=9) == 2
    assert iob_write(None, batch, sink, limit=4) == IOB_AGAIN
    assert iob_write(None, batch, sink, limit=1) == 3
    assert sink.offers == [b"01234", b"01234", b"2345", b"2345"]
    write_repeatedly(batch, sink)
    assert sink.taken == b"0123456789"


def test_exception_of_the_callback_keeps_an_earlier_pin() -> None:
    batch, sink = batch_of(b"0123456789"), Sink(-1, KeyError(), 11)
    assert iob_write(None, batch, sink, limit=4) == IOB_AGAIN
    for error in (KeyError, ValueError):
        with pytest.raises(error):
            iob_write(None, batch, sink, limit=7)
    assert write_repeatedly(batch, sink) == [10, 0]
    assert sink.offers[:4] == [b"0123"] * 4


def test_pin_moves_with_its_batch_into_an_empty_one() -> None:
    batch, other, sink = batch_of(b"0123456789"), IOBatch(), Sink(-1)
    assert iob_write(None, batch, sink, limit=4) == IOB_AGAIN
    other.extend(batch)
    check_invariants(other)
    with pytest.raises(RuntimeError):
        other.prepend(b"x")
    batch.prepend(b"y")
    write_repeatedly(other, sink)
    assert sink.offers[:2] == [b"0123", b"0123"]


def test_pin_does_not_move_after_other_entries() -> None:
    """OpenSSL holds the record of the offer, and would send it before them. Nothing changes."""
    batch, other, sink = batch_of(b"0123456789"), batch_of(b"first "), Sink(-1)
    assert iob_write(None, batch, sink, limit=4) == IOB_AGAIN
    with pytest.raises(RuntimeError):
        other.extend(batch)
    assert (other.bytesleft, batch.bytesleft) == (6, 10)
    check_invariants(other)
    check_invariants(batch)
    write_repeatedly(other, Sink())
    other.extend(batch)
    write_repeatedly(other, sink)
    assert sink.offers[:2] == [b"0123", b"0123"]
    assert sink.taken == b"0123456789"


def test_pin_does_not_move_into_a_batch_with_a_pin_of_its_own() -> None:
    one, two = batch_of(b"one"), batch_of(b"two")
    for batch in (one, two):
        assert iob_write(None, batch, Sink(-1)) == IOB_AGAIN
    with pytest.raises(RuntimeError):
        one.extend(two)
    assert (one.bytesleft, two.bytesleft) == (3, 3)


def test_pin_does_not_move_into_a_batch_that_is_written_or_reset() -> None:
    """Its last entry may have been removed, so that it looks empty."""
    pinned, refused = batch_of(b"pinned"), []
    assert iob_write(None, pinned, Sink(-1)) == IOB_AGAIN

    def extend() -> None:
        with pytest.raises(RuntimeError):
            batch.extend(pinned)
        refused.append(batch.bytesleft)

    batch = IOBatch()
    for _ in range(2):
        batch.addbuf(b"last", on_release=extend)
        assert iob_write(None, batch, Sink()) == 4
        batch.addbuf(b"dropped", on_release=extend)
        batch.reset()
    assert refused == [0, 0, 0, 0]
    assert pinned.bytesleft == 6


def test_pinned_batch_takes_entries_at_its_end() -> None:
    """addbuf(), addbufs() and extend() leave the pin; a batch so filled moves as one."""
    batch, other, sink = batch_of(b"0123456789"), batch_of(b" extended"), Sink(-1, -1, -1)
    assert iob_write(None, batch, sink, limit=4) == IOB_AGAIN
    batch.addbuf(b" added")
    batch.addbufs([b" buffers", bytearray(b"!")])
    batch.extend(other)
    assert iob_write(None, batch, sink) == IOB_AGAIN
    other.extend(batch)
    check_invariants(other)
    write_repeatedly(other, sink)
    write_repeatedly(other, sink)
    assert sink.offers[:4] == [b"0123"] * 4
    assert sink.taken == b"0123456789 added buffers! extended"


@pytest.mark.parametrize("code", [-3, OSError("scripted"), MemoryError()], ids=repr)
def test_failed_batch_has_no_pin_and_moves_after_other_entries(code: int | Exception) -> None:
    """Its connection is lost, so its bytes are for another one."""
    batch, other = batch_of(b"pinned"), batch_of(b"first ")
    sink = Sink(-1, code)
    assert iob_write(None, batch, sink) == IOB_AGAIN
    with suppress(MemoryError):
        assert iob_write(None, batch, sink) == IOB_ERROR
    other.extend(batch)
    assert take(other) == b"first pinned"


def test_reset_drops_the_pin_with_its_bytes() -> None:
    batch = batch_of(b"0123456789")
    assert iob_write(None, batch, Sink(-1), limit=4) == IOB_AGAIN
    batch.reset()
    batch.addbuf(b"new")
    batch.prepend(b"even ")
    assert take(batch) == b"even new"


def test_iob_sendall_repeats_the_pinned_offer() -> None:
    batch, sink = batch_of(b"0123456789", b" more"), Sink(-1)
    with stream_pair() as (one, _):
        assert iob_write(one, batch, sink, limit=4) == IOB_AGAIN
        assert iob_sendall(one, batch, sink) == 15
    assert sink.offers[:2] == [b"0123", b"0123"]
    assert sink.taken == b"0123456789 more"


@both_loops
async def test_batch_writer_repeats_the_pinned_offer() -> None:
    """write() moves the entries into a batch of its own, and the pin with them."""
    batch, sink = batch_of(b"0123456789", b" more"), Sink(-1)
    with writer_pair(through=sink) as (writer, _):
        assert iob_write(writer.sock, batch, sink, limit=4) == IOB_AGAIN
        assert await writer.write(batch) == 15
    assert sink.offers[:2] == [b"0123", b"0123"]
    assert sink.taken == b"0123456789 more"


def test_iob_sendmsg_removes_the_pin() -> None:
    batch = batch_of(b"0123456789")
    assert iob_write(None, batch, Sink(-1), limit=4) == IOB_AGAIN
    with stream_pair() as (one, other):
        assert iob_sendmsg(one, batch) == 10
        assert receive(other, 10) == b"0123456789"
    check_invariants(batch)


def test_iob_send_removes_the_pin() -> None:
    batch = IOBatch()
    batch.addbuf(b"0123456789")
    assert iob_write(None, batch, lambda _sock, _view: None, limit=4) == IOB_AGAIN
    with stream_pair() as (one, other):
        assert iob_send(one, batch, limit=2) == 2
        batch.prepend(b"+")
        assert iob_send(one, batch) == 9
        assert receive(other, 11) == b"01+23456789"


@pytest.mark.parametrize("send", [iob_send, iob_sendmsg])
def test_full_socket_removes_the_pin(send: Callable[[Scripted, IOBatch], int]) -> None:
    """The next bytes of a plain socket are free: others can come first."""
    batch = batch_of(b"0123456789")
    assert iob_write(None, batch, Sink(-1), limit=4) == IOB_AGAIN
    with Scripted(again()) as sock:
        assert send(sock, batch) == IOB_AGAIN
        batch.prepend(b"+")
        assert send(sock, batch) == 11
        assert sock.taken == b"+0123456789"


def test_iob_send_sends_the_pinned_bytes_and_the_rest() -> None:
    batch = batch_of(b"0123456789")
    with stream_pair() as (one, other):
        assert iob_write(one, batch, lambda _sock, _view: -1, limit=3) == IOB_AGAIN
        assert is_silent(other)
        assert iob_send(one, batch) == 10
        assert receive(other, 10) == b"0123456789"
    check_invariants(batch)

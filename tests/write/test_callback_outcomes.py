"""The outcomes of a callback: a count, again, a permanent error, another exception."""

from __future__ import annotations

import errno
import gc
import os
import selectors
import ssl
import weakref
from contextlib import suppress
from typing import Any

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_write
from tests.support.batches import batch_of, check_invariants, data
from tests.support.write import Sink, write_repeatedly


def test_empty_batch_is_done_without_a_callback() -> None:
    sink = Sink()
    assert iob_write(None, IOBatch(), sink) == IOB_DONE
    assert sink.offers == []


def test_count_is_returned_first_then_done() -> None:
    batch, sink = batch_of(b"hello"), Sink()
    assert write_repeatedly(batch, sink) == [5, 0]
    assert sink.taken == b"hello"
    assert batch.bytessent == 5


def test_short_count_ends_the_call() -> None:
    """The next offer begins after the last byte taken."""
    batch, sink = batch_of(b"0123456789", bytearray(b"abc")), Sink(3)
    assert iob_write(None, batch, sink) == 3
    assert len(sink.offers) == 1
    assert write_repeatedly(batch, sink) == [10, 0]
    assert sink.taken == b"0123456789abc"


def test_true_counts_as_1() -> None:
    """A count may be any object with __index__."""
    batch, sink = batch_of(b"ab"), Sink(True)
    assert iob_write(None, batch, sink) == 1
    assert batch.bytesleft == 1


AGAIN = [
    (-1, selectors.EVENT_WRITE),
    (None, selectors.EVENT_WRITE),
    (BlockingIOError(errno.EAGAIN, "scripted"), selectors.EVENT_WRITE),
    (BlockingIOError(), selectors.EVENT_WRITE),
    (ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "scripted"), selectors.EVENT_WRITE),
    (ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "scripted"), selectors.EVENT_READ),
    (TimeoutError("timed out"), selectors.EVENT_WRITE),
]


@pytest.mark.parametrize(("outcome", "wants"), AGAIN, ids=repr)
def test_again_sets_wants_and_the_same_bytes_are_offered_next(outcome: Any, wants: int) -> None:
    batch, sink = batch_of(b"hello"), Sink(outcome, outcome)
    for _ in range(2):
        assert iob_write(None, batch, sink) == IOB_AGAIN
        assert (batch.wants, batch.bytesleft, batch.error) == (wants, 5, None)
        check_invariants(batch)
    assert write_repeatedly(batch, sink) == [5, 0]
    assert sink.offers == [b"hello"] * 3
    assert batch.wants == selectors.EVENT_WRITE


@pytest.mark.parametrize(("outcome", "wants"), AGAIN, ids=repr)
def test_count_is_returned_first_then_again_with_its_wants(outcome: Any, wants: int) -> None:
    batch = batch_of(bytearray(b"hello"), bytearray(b"world"))
    sink = Sink(5, outcome, outcome)
    assert iob_write(None, batch, sink) == 5
    assert batch.wants == wants
    assert iob_write(None, batch, sink) == IOB_AGAIN
    assert sink.offers == [b"hello", b"world", b"world"]
    assert write_repeatedly(batch, sink) == [5, 0]


def test_os_error_of_a_subclass_with_errno_eagain_is_again() -> None:
    """OSError(EAGAIN) is a BlockingIOError; a subclass of OSError keeps its own type."""

    class OwnError(OSError):
        pass

    batch, sink = batch_of(b"abc"), Sink(OwnError(errno.EAGAIN, "scripted"))
    assert iob_write(None, batch, sink) == IOB_AGAIN
    assert batch.error is None
    assert iob_write(None, batch, sink) == 3


@pytest.mark.parametrize(
    "number", [errno.EAGAIN, errno.EINPROGRESS, errno.EALREADY, None], ids=errno.errorcode.get
)
def test_blocking_io_error_is_again_whatever_its_errno(number: int | None) -> None:
    """With MSG_FASTOPEN a connection in progress gives EINPROGRESS."""
    error = BlockingIOError() if number is None else BlockingIOError(number, "scripted")
    batch, sink = batch_of(b"abc"), Sink(error)
    assert iob_write(None, batch, sink) == IOB_AGAIN
    assert iob_write(None, batch, sink) == 3


def test_bytes_that_a_full_buffered_file_took_are_not_written_twice() -> None:
    """The file's BlockingIOError counts these bytes in characters_written."""
    source, target = os.pipe()
    os.set_blocking(source, False)
    os.set_blocking(target, False)
    content = data(1_000_000)
    batch = batch_of(content)
    received = bytearray()
    with os.fdopen(target, "wb") as file:
        for _ in range(10_000):
            if len(received) == len(content):
                break
            assert iob_write(file, batch, lambda file, view: file.write(view)) != IOB_ERROR
            with suppress(BlockingIOError):  # the file keeps bytes in its own buffer
                file.flush()
            with suppress(BlockingIOError):
                received += os.read(source, 5000)  # few, so that the pipe stays full
    os.close(source)
    assert received == content
    assert not batch


@pytest.mark.parametrize("count", [1, 9, 10])
def test_characters_written_count_as_taken(count: int) -> None:
    batch, sink = batch_of(b"0123456789"), Sink(BlockingIOError(errno.EAGAIN, "scripted", count))
    assert iob_write(None, batch, sink) == count
    assert (batch.bytesleft, batch.error) == (10 - count, None)
    check_invariants(batch)


@pytest.mark.parametrize("count", [-5, 6, 10**9])
def test_impossible_characters_written_is_again(count: int) -> None:
    batch = batch_of(b"hello")
    sink = Sink(BlockingIOError(errno.EAGAIN, "scripted", count))
    assert iob_write(None, batch, sink) == IOB_AGAIN
    check_invariants(batch)
    assert batch.bytesleft == 5


@pytest.mark.parametrize(
    ("outcome", "kind", "number"),
    [
        (0, BrokenPipeError, errno.EPIPE),
        (-3, OSError, None),
        (OSError(errno.EIO, "scripted"), OSError, errno.EIO),
        (ConnectionResetError(errno.ECONNRESET, "s"), ConnectionResetError, errno.ECONNRESET),
        (TimeoutError(errno.ETIMEDOUT, "scripted"), TimeoutError, errno.ETIMEDOUT),
        (ssl.SSLError(ssl.SSL_ERROR_SSL, "scripted"), ssl.SSLError, ssl.SSL_ERROR_SSL),
        (ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "s"), ssl.SSLZeroReturnError, None),
        (ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "scripted"), ssl.SSLEOFError, None),
        (OSError("no errno"), OSError, None),
    ],
    ids=repr,
)
def test_error_is_permanent_and_the_callback_is_not_called_again(
    outcome: Any, kind: type[OSError], number: int | None
) -> None:
    """An error is 0 (the other side accepts no more), -3 or any other OSError."""
    batch, sink = batch_of(b"hello"), Sink(outcome)
    for _ in range(2):
        assert iob_write(None, batch, sink) == IOB_ERROR
    error = batch.error
    assert isinstance(error, kind)
    assert error.__traceback__ is error.__context__ is error.__cause__ is None
    if number is not None:
        assert error.errno == number
    assert len(sink.offers) == 1
    assert batch.bytesleft == 5
    check_invariants(batch)


def test_count_is_returned_first_then_the_error() -> None:
    batch = batch_of(bytearray(b"hello"), bytearray(b"world"))
    sink = Sink(5, OSError(errno.EPIPE, "scripted"))
    assert iob_write(None, batch, sink) == 5
    assert iob_write(None, batch, sink) == IOB_ERROR
    assert isinstance(batch.error, BrokenPipeError)
    assert len(sink.offers) == 2
    assert (batch.bytessent, batch.bytesleft) == (5, 5)


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (6, ValueError),
        (10**9, ValueError),
        (-2, ValueError),
        (-4, ValueError),
        ("5", TypeError),
        (5.0, TypeError),
        (b"", TypeError),
        (KeyError("scripted"), KeyError),
        (ValueError("scripted"), ValueError),
    ],
    ids=repr,
)
def test_impossible_count_or_other_exception_propagates(
    outcome: Any, error: type[BaseException]
) -> None:
    """The batch is as before that callback: the offer is neither counted nor pinned."""
    batch = batch_of(bytearray(b"one"), bytearray(b"hello"))
    sink = Sink(3, outcome)
    with pytest.raises(error):
        iob_write(None, batch, sink)
    assert (batch.bytesleft, batch.bytessent, batch.error) == (5, 3, None)
    check_invariants(batch)
    batch.prepend(b"not pinned: ")
    sink.taken.clear()
    write_repeatedly(batch, sink)
    assert sink.taken == b"not pinned: hello"


def test_keyboard_interrupt_in_the_callback_fails_the_batch() -> None:
    """The number of bytes that the callback took is unknown, so none is offered again."""
    batch, sink = batch_of(b"0123456789"), Sink(3, KeyboardInterrupt())
    assert iob_write(None, batch, sink) == 3
    with pytest.raises(KeyboardInterrupt):
        iob_write(None, batch, sink)
    assert iob_write(None, batch, sink) == IOB_ERROR
    assert batch.error is not None
    assert batch.error.errno == errno.EIO
    assert len(sink.offers) == 2
    batch.reset()
    check_invariants(batch)


def test_exception_of_a_callback_makes_no_reference_cycle() -> None:
    """Its batch is collected as soon as the exception is dropped."""

    def fail(_sock: object, _view: memoryview) -> int:
        raise ZeroDivisionError

    batch = batch_of(b"hello")
    reference = weakref.ref(batch)
    gc.collect()
    gc.disable()
    try:
        with suppress(ZeroDivisionError):
            iob_write(None, batch, fail)
        del batch
        assert reference() is None
    finally:
        gc.enable()

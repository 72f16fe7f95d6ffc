"""During the callback: its arguments, and what it may do to the batch."""

from __future__ import annotations

import socket
import sys
from pickle import PickleBuffer
from typing import Any

import pytest

from iobatch import IOBatch, iob_send, iob_sendmsg, iob_write
from tests.support.batches import batch_of, check_invariants
from tests.support.write import Sink


@pytest.mark.parametrize(
    "sock", [None, 5, "name", object(), sys.stdout], ids=["None", "int", "str", "object", "file"]
)
def test_callback_gets_sock_as_given(sock: Any) -> None:
    seen = []

    def callback(got: Any, view: memoryview) -> int:
        seen.append(got is sock)
        return len(view)

    assert iob_write(sock, batch_of(b"x"), callback) == 1
    assert seen == [True]


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_callback_gets_a_read_only_view_of_single_bytes(kind: type) -> None:
    """The view of a bytearray is read-only, too."""

    def callback(_sock: None, view: memoryview) -> int:
        assert type(view) is memoryview
        assert (view.readonly, view.format, view.ndim, view.itemsize) == (True, "B", 1, 1)
        return len(view)

    assert iob_write(None, batch_of(kind(b"hello")), callback) == 5


@pytest.mark.parametrize("outcome", [5, -1, KeyError()], ids=["count", "again", "exception"])
def test_view_is_released_when_the_callback_returns_or_raises(outcome: Any) -> None:
    """After reset() nothing prevents the buffer from being resized."""
    kept = []

    def callback(_sock: None, view: memoryview) -> int:
        kept.append(view)
        if isinstance(outcome, Exception):
            raise outcome
        return int(outcome)

    buffer = bytearray(b"hello")
    batch = batch_of(buffer)
    if isinstance(outcome, Exception):
        with pytest.raises(KeyError):
            iob_write(None, batch, callback)
    else:
        iob_write(None, batch, callback)
    with pytest.raises(ValueError, match="released"):
        len(kept[0])
    batch.reset()
    buffer.append(0)


def test_numpy_array_kept_over_the_view_does_no_harm() -> None:
    """The contract forbids a callback to keep the view, which can't be released then."""
    numpy = pytest.importorskip("numpy", reason="install numpy")
    kept = []

    def callback(_sock: None, view: memoryview) -> int:
        kept.append(numpy.frombuffer(view, "u1"))
        return len(view)

    batch = batch_of(b"hello", bytearray(b"world"))
    while iob_write(None, batch, callback) > 0:
        check_invariants(batch)
    assert b"".join(map(bytes, kept)) == b"helloworld"


def test_pickle_buffer_kept_over_the_view_does_no_harm() -> None:
    """The contract forbids a callback to keep the view, which can't be released then."""
    batch = batch_of(b"one", bytearray(b"two"))
    kept = []

    def callback(_sock: object, view: memoryview) -> int:
        kept.append(PickleBuffer(view))
        return len(view)

    assert iob_write(None, batch, callback) == 6
    assert [bytes(each) for each in kept] == [b"one", b"two"]
    check_invariants(batch)


def test_batch_error_is_none_during_the_callback() -> None:
    """The error stored for the case of an interruption isn't visible."""
    batch = batch_of(b"one")
    seen = []

    def callback(_sock: object, view: memoryview) -> int:
        seen.append(batch.error)
        return len(view)

    assert iob_write(None, batch, callback) == 3
    assert seen == [None]


def test_callback_must_not_send_reset_move_or_prepend() -> None:
    """Each attempt on the batch being written is a RuntimeError."""
    batch, other = batch_of(b"hello"), IOBatch()
    errors = []

    def callback(_sock: None, view: memoryview) -> int:
        for forbidden in (
            lambda: iob_write(None, batch, Sink()),
            lambda: iob_send(1, batch),
            lambda: iob_sendmsg(unused, batch),
            batch.reset,
            lambda: other.extend(batch),
            lambda: batch.prepend(b"x"),
        ):
            with pytest.raises(RuntimeError) as caught:
                forbidden()
            errors.append(caught.type)
        return len(view)

    with socket.socket() as unused:
        assert iob_write(None, batch, callback) == 5
    assert len(errors) == 6
    check_invariants(batch)


def test_buffer_added_by_the_callback_is_sent_last() -> None:
    batch = batch_of(b"hello ")
    taken = bytearray()

    def callback(_sock: None, view: memoryview) -> int:
        if not taken:
            batch.addbuf(b"world")
        taken.extend(view)
        return len(view)

    while iob_write(None, batch, callback) > 0:
        check_invariants(batch)
    assert taken == b"hello world"


def test_callback_may_send_another_batch() -> None:
    """A chain of filters works in this way."""
    batch, other, sink = batch_of(b"hello"), IOBatch(), Sink()

    def callback(sock: None, view: memoryview) -> int:
        other.addbuf(bytes(view).upper())
        iob_write(sock, other, sink)
        return len(view)

    assert iob_write(None, batch, callback) == 5
    assert sink.taken == b"HELLO"

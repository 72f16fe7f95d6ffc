"""Filters: after the batch iob_sendall drains a callback that has drain."""

from __future__ import annotations

import errno
import selectors
from typing import Any

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_sendall
from tests.support.batches import batch_of
from tests.support.sockets import PATIENCE, clog, stream_pair


class ScriptedFilter:
    """A stand-in for a Filter: a callback that takes everything, and a scripted drain."""

    def __init__(self, *script: int) -> None:
        self.script = list(script)
        self.drains: list[Any] = []
        self.error: OSError | None = None
        self.wants = selectors.EVENT_WRITE
        self.bytesleft = 0

    def __call__(self, _sock: object, view: memoryview) -> int:
        assert not self.drains, "drain was called before all of the batch was written"
        self.bytesleft += len(view)
        return len(view)

    def drain(self, sock: object) -> int:
        self.drains.append(sock)
        code = self.script.pop(0) if self.script else IOB_DONE
        if code == IOB_DONE:
            self.bytesleft = 0
        return code

    def finish(self, sock: object) -> int:
        raise AssertionError("only the caller may call finish")


def test_filter_is_drained_until_it_returns_done() -> None:
    """Bytes sent by drain are neither counted nor reported as progress."""
    steps: list[int] = []
    with stream_pair() as (one, _other):
        callback = ScriptedFilter(7, IOB_AGAIN, 3, IOB_AGAIN, IOB_AGAIN)
        sent = iob_sendall(one, batch_of(b"hello"), callback, progress=steps.append)
        assert (sent, sum(steps)) == (5, 5)
        assert callback.drains == [one] * 6


def test_filter_is_drained_even_if_the_batch_is_empty() -> None:
    with stream_pair() as (one, _other):
        callback = ScriptedFilter(7)
        assert iob_sendall(one, IOBatch(), callback) == 0
        assert callback.drains == [one] * 2


def test_error_of_the_filter_is_raised_when_drain_fails() -> None:
    with stream_pair() as (one, _other):
        callback = ScriptedFilter(IOB_ERROR)
        callback.error = ConnectionResetError(errno.ECONNRESET, "scripted")
        with pytest.raises(ConnectionResetError):
            iob_sendall(one, batch_of(b"hello"), callback)


def test_wait_during_drain_follows_the_wants_of_the_filter() -> None:
    """The socket is readable, but never writable."""
    with stream_pair() as (one, other):
        clog(one)
        other.send(b"?")
        callback = ScriptedFilter(IOB_AGAIN)
        callback.wants = selectors.EVENT_READ
        assert iob_sendall(one, batch_of(b"hello"), callback, timeout=PATIENCE) == 5


@pytest.mark.parametrize("held", [0, 100])
def test_timeout_bounds_the_drain_whatever_bytesleft_is(held: int) -> None:
    with stream_pair() as (one, _other):
        clog(one)
        callback = ScriptedFilter(*[IOB_AGAIN] * 1000, IOB_ERROR)
        callback.error = OSError("the timeout did not end the drain")
        batch = batch_of(b"hello")
        callback.bytesleft = held
        with pytest.raises(TimeoutError):
            iob_sendall(one, batch, callback, timeout=0.01)
        assert batch.bytessent == 5

"""Handlers that raise while a pipeline of filters is written, drained and finished."""

from __future__ import annotations

from itertools import count
from ssl import SSLError, SSLWantReadError
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_write
from iobatch.filters import Chunked, Filter
from tests.support.batches import batch_of, data
from tests.support.filters import Identity
from tests.support.interruptions import KINDS, drain, handler_that_raises
from tests.support.sockets import stream_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


# A filter must not handle these of a handler as its transform's, either.
FILTER_KINDS = (*KINDS, SSLError, SSLWantReadError)
every_kind = pytest.mark.parametrize("kind", FILTER_KINDS, ids=lambda kind: kind.__name__)


class Failing(Identity):
    """A transform whose flush raises, and which then has an alert to send."""

    def __init__(self, error: OSError) -> None:
        self.error = error
        self.alert = b""
        self.flushes = 0

    def compress(self, data: Any) -> Any:
        return data or self.alert

    def flush(self) -> bytes:
        self.flushes += 1
        self.alert = b"alert"
        raise self.error


BODY = data(5000)
WHOLE = b"1388\r\n" + BODY + b"\r\n0\r\n\r\n"


def drive(
    sock: socket.socket, peer: socket.socket, batch: IOBatch, pipeline: Filter
) -> tuple[bytes, list[Exception]]:
    """Write, drain and finish until the end or an error, whatever a handler raises.

    Returns:
        The bytes that arrived, and the exceptions that left the calls.

    """
    received = bytearray()
    caught: list[Exception] = []
    steps: list[Callable[[], int]] = [
        lambda: iob_write(sock, batch, pipeline),
        lambda: pipeline.drain(sock),
        lambda: pipeline.finish(sock),
    ]
    while steps:
        code = IOB_AGAIN
        try:
            code = steps[0]()
        except FILTER_KINDS as exc:
            caught.append(exc)
        received += drain(peer)
        if code == IOB_ERROR:
            break
        if code == IOB_DONE:
            del steps[0]
    return bytes(received), caught


@every_kind
def test_handlers_exception_leaves_the_call_and_no_byte_is_sent_twice(
    kind: type[Exception],
) -> None:
    """Either the whole stream arrives once, or the batch or the pipeline has failed."""
    for point in count(1):
        with stream_pair() as (sock, peer), batch_of(BODY) as batch:
            sock.setblocking(False)
            peer.setblocking(False)
            pipeline = Filter(Identity(), Filter(Chunked(), Filter(Identity())))
            with handler_that_raises(point, kind) as raised:
                received, caught = drive(sock, peer, batch, pipeline)
            assert caught == raised
            if batch.error is None and pipeline.error is None:
                assert received == WHOLE
            else:
                assert WHOLE.startswith(received)
                assert raised
        if not raised:
            break
    assert point > 40


@every_kind
@pytest.mark.parametrize("error", [BrokenPipeError, SSLError])
def test_handlers_exception_in_the_handling_of_an_error_leaves_the_call(
    error: type[OSError], kind: type[Exception]
) -> None:
    """The filter has failed in any case, and flushes its transform at most once."""
    for point in count(1):
        with stream_pair() as (sock, peer), batch_of(BODY) as batch:
            sock.setblocking(False)
            peer.setblocking(False)
            transform = Failing(error())
            pipeline = Filter(transform, Filter(Identity()))
            with handler_that_raises(point, kind) as raised:
                _, caught = drive(sock, peer, batch, pipeline)
            assert caught == raised
            assert batch.error or pipeline.error
            assert transform.flushes <= 1
        if not raised:
            break
    assert point > 20

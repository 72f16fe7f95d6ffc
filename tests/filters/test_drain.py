"""Filter.drain: pushing held and waiting output without ending anything."""

from __future__ import annotations

import gzip
import ssl
import zlib
from collections import deque
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE
from types import SimpleNamespace
from typing import Any

from iobatch import IOB_AGAIN, IOB_DONE, iob_write
from iobatch.filters import Chunked, Filter
from tests.support.batches import batch_of, data
from tests.support.fakes import Scripted, again
from tests.support.filters import BODY, Growing, Identity, step_until_done


def test_drain_sends_a_transforms_waiting_output_and_no_last_chunk(sock: Scripted) -> None:
    """drain() asks for waiting output by compress(b""), which Chunked answers with b""."""
    pipeline = Filter(Chunked())
    assert iob_write(sock, batch_of(b"abc"), pipeline) == 3
    assert pipeline.drain(sock) == IOB_DONE
    assert sock.taken == b"3\r\nabc\r\n"
    transform = SimpleNamespace(compress=lambda data: bytes(data) or b"waiting", flush=bytes)
    pipeline = Filter(transform, pipeline)
    assert pipeline.drain(sock) > 0
    assert sock.taken == b"3\r\nabc\r\n7\r\nwaiting\r\n"


def test_drain_does_not_flush_a_compressor(sock: Scripted) -> None:
    """drain() ends nothing: the compressor keeps its last output until finish()."""
    pipeline = Filter(zlib.compressobj(wbits=31))
    reference = zlib.compressobj(wbits=31)
    expected = b""
    half = len(BODY) // 2
    for part in (BODY[:half], BODY[half:]):
        batch = batch_of(part)
        # Without a limit the compressor gets the same pieces as its reference.
        step_until_done(sock, partial(iob_write, sock, batch, pipeline, limit=None), pipeline)
        step_until_done(sock, lambda: pipeline.drain(sock), pipeline)
        expected += reference.compress(part)
        assert sock.taken == expected
    step_until_done(sock, lambda: pipeline.finish(sock), pipeline)
    assert gzip.decompress(sock.taken) == BODY


def test_drain_counts_a_byte_that_the_next_filter_took_and_the_socket_refused() -> None:
    class Handshake(Identity):
        done = False

        def compress(self, data: Any) -> Any:
            if data and not self.done:
                raise ssl.SSLWantReadError
            return data

    transform = Handshake()
    pipeline = Filter(Identity(), Filter(transform))
    with Scripted(again()) as sock:
        assert iob_write(sock, batch_of(b"a"), pipeline) == 1
        transform.done = True
        assert pipeline.drain(sock) == 1
        assert sock.taken == b""
        step_until_done(sock, lambda: pipeline.drain(sock), pipeline)
        assert sock.taken == b"a"


def test_drain_counts_the_only_byte_that_a_full_next_filter_took() -> None:
    last = Filter(Identity(), high_water=1)
    first = Filter(Identity(), last)
    with Scripted(*[again()] * 100) as sock:
        for piece in (b"a", b"b", data(40_000)):  # the third is too long to be joined
            assert iob_write(sock, batch_of(piece), first) == len(piece)
        assert (first.bytesleft, last.bytesleft) == (40_001, 1)
        sock.script.appendleft(1)
        assert last.drain(sock) == 1
        assert first.drain(sock) == 1
        assert (first.bytesleft, last.bytesleft) == (40_000, 1)


def test_drain_returns_again_for_reading_when_compress_must_read(sock: Scripted) -> None:
    """The bytes that the next filter holds are sent first."""
    script: deque[Any] = deque([ssl.SSLWantReadError(), ssl.SSLWantReadError(), b"waited"])

    def compress(_: Any) -> bytes:
        step = script.popleft() if script else b""
        if isinstance(step, bytes):
            return step
        raise step

    pipeline = Filter(
        SimpleNamespace(compress=compress, flush=bytes), next_filter := Filter(Identity())
    )
    next_filter._batch.addbuf(b"held ")
    assert pipeline.drain(sock) == 5
    assert pipeline.drain(sock) == IOB_AGAIN
    assert pipeline.wants == EVENT_READ
    step_until_done(sock, lambda: pipeline.drain(sock), pipeline)
    assert pipeline.wants == EVENT_WRITE
    assert sock.taken == b"held waited"


def test_drain_of_a_full_filter_does_not_run_its_transform() -> None:
    pipeline = Filter(SimpleNamespace(compress=lambda data: bytes(data) or b"more", flush=bytes))
    pipeline._batch.addbuf(data(256 * 1024))  # the default of high_water
    with Scripted(again(), 100, again()) as sock:
        assert [pipeline.drain(sock) for _ in range(2)] == [IOB_AGAIN, 100]
        assert pipeline.bytesleft == 256 * 1024 - 100
        # Below high_water the transform runs again.
        assert pipeline.drain(sock) == IOB_AGAIN
        assert pipeline.bytesleft == 256 * 1024 - 100 + len(b"more")


def test_drain_stops_when_the_next_filter_is_full() -> None:
    """The next filter takes one piece, whose output fills it; the second piece stays."""
    ready = False
    next_filter = Filter(Growing(), lambda _sock, view: len(view) if ready else -1, high_water=1)
    pipeline = Filter(Identity(), next_filter)
    for size in (1, 40_000, 40_000):
        assert iob_write(None, batch_of(bytes(size)), pipeline) == size
    assert (next_filter.bytesleft, pipeline.bytesleft) == (100, 80_000)
    ready = True
    assert next_filter.drain(None) == 100
    ready = False
    assert pipeline.drain(None) == 40_000
    assert (next_filter.bytesleft, pipeline.bytesleft) == (100 * 40_000, 40_000)

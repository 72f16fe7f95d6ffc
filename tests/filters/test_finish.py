"""Filter.finish: the end of the stream, and writes after it."""

from __future__ import annotations

import gzip
import zlib
from functools import partial
from typing import TYPE_CHECKING

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, iob_write
from iobatch.filters import Chunked, Filter
from tests.support.batches import batch_of, data
from tests.support.fakes import Scripted, again
from tests.support.filters import BODY, Identity, Swallowing, step_until_done, write_and_finish
from tests.support.http import unchunk

if TYPE_CHECKING:
    from tests.support.tls import TLSClient


def test_finish_and_drain_after_finish_return_done_and_send_nothing(
    tls_client: TLSClient, sock: Scripted
) -> None:
    pipeline = Filter(zlib.compressobj(wbits=31), Filter(Chunked(), tls_client.filter))
    write_and_finish(sock, batch_of(BODY), pipeline)
    calls = len(sock.calls)
    assert [pipeline.finish(sock), pipeline.drain(sock), pipeline.finish(sock)] == [IOB_DONE] * 3
    assert len(sock.calls) == calls


def test_write_after_finish_is_a_broken_pipe_of_the_batch_only(sock: Scripted) -> None:
    """The finished filter has no error; a filter that passes bytes on to it has one."""
    pipeline = Filter(Identity(), Filter(Chunked()))
    write_and_finish(sock, batch_of(b"abc"), pipeline)
    batch = batch_of(b"more")
    assert iob_write(sock, batch, pipeline) == IOB_ERROR
    assert isinstance(batch.error, BrokenPipeError)
    assert "finished" in str(batch.error)
    assert (batch.bytesleft, pipeline.error, pipeline.finish(sock)) == (4, None, IOB_DONE)
    upper = Filter(Identity(), pipeline)
    assert iob_write(sock, accepted := batch_of(b"more"), upper) == 4
    assert upper.drain(sock) == IOB_ERROR
    assert isinstance(upper.error, BrokenPipeError)
    assert not accepted


def test_write_after_finish_to_a_full_filter_is_an_error_and_not_again() -> None:
    pipeline = Filter(Identity(), high_water=1)
    with Scripted(again(), again(), again(), again()) as sock:
        assert iob_write(sock, batch_of(b"abc"), pipeline) == 3
        pipeline._finished = True  # finish() itself would wait for room
        batch = batch_of(b"more")
        assert iob_write(sock, batch, pipeline) == IOB_ERROR
        assert isinstance(batch.error, BrokenPipeError)


def test_until_is_drained_and_stays_open_for_the_next_pipeline(
    tls_client: TLSClient, sock: Scripted
) -> None:
    for number in range(3):
        pipeline = Filter(zlib.compressobj(wbits=31), Filter(Chunked(), tls_client.filter))
        batch = batch_of(data(1000, number))
        step_until_done(sock, partial(iob_write, sock, batch, pipeline), pipeline)
        for _ in range(2):  # the second does nothing
            step_until_done(sock, partial(pipeline.finish, sock, until=tls_client.filter), pipeline)
        assert not tls_client.filter.bytesleft
        tls_client.incoming.write(bytes(sock.taken))
        sock.taken.clear()
        plain = b""
        while not plain.endswith(b"\r\n0\r\n\r\n"):
            plain += tls_client.sslobject.read(100)
        assert gzip.decompress(unchunk(plain)) == data(1000, number)
    step_until_done(
        sock, lambda: tls_client.filter.finish(sock, until=tls_client.filter), tls_client.filter
    )
    assert not sock.taken
    step_until_done(sock, lambda: pipeline.finish(sock), pipeline)
    assert tls_client.read(bytes(sock.taken)) == b""


def test_until_outside_the_pipeline_is_refused_before_anything_ends(sock: Scripted) -> None:
    first = Filter(Identity(), Filter(Chunked()))
    with pytest.raises(ValueError):
        first.finish(sock, until=Filter(Identity()))
    write_and_finish(sock, batch_of(b"abc"), first)
    assert unchunk(bytes(sock.taken)) == b"abc"


def test_finish_flushes_the_transform_only_below_high_water() -> None:
    transform = Swallowing()
    pipeline = Filter(transform, high_water=1000)
    pipeline._batch.addbuf(data(1000))
    transform.kept += b"the end"
    with Scripted(again(), 999, again()) as sock:
        assert pipeline.finish(sock) == IOB_AGAIN
        assert pipeline.bytesleft == 1000
        assert pipeline.drain(sock) == 999
        assert pipeline.finish(sock) == IOB_AGAIN
        assert pipeline.bytesleft == 1 + 7
        step_until_done(sock, lambda: pipeline.finish(sock), pipeline)
        assert sock.taken == data(1000) + b"the end"

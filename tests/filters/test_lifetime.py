"""Lifetime: a reset of the batch, and filters that are dropped."""

from __future__ import annotations

import gc
import gzip
import ssl
import weakref
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOBatch
from iobatch.filters import Chunked, Filter
from tests.support.batches import batch_of, data
from tests.support.filters import (
    Identity,
    PartialWriteSocket,
    assert_refused,
    write_and_finish,
    write_while_taken,
)
from tests.support.sockets import clog, stream_pair

if TYPE_CHECKING:
    from tests.support.fakes import Scripted
    from tests.support.tls import TLSClient


def test_reset_drops_only_what_the_filter_has_not_taken() -> None:
    """The compressed stream goes on with the bytes added after the reset."""
    pipeline = Filter(
        zlib.compressobj(wbits=31), Filter(Identity(), high_water=1000), high_water=1000
    )
    with PartialWriteSocket(500) as sock:
        batch = batch_of(data(300_000))
        assert write_while_taken(sock, batch, pipeline) == IOB_AGAIN
        taken = batch.bytessent
        assert 0 < taken < 300_000
        batch.reset()
        batch.addbuf(b"and something else")
        write_and_finish(sock, batch, pipeline)
        assert gzip.decompress(sock.taken) == data(300_000)[:taken] + b"and something else"


def test_dropped_pipeline_is_freed_at_once_and_holds_no_buffer(unraisable: list[Any]) -> None:
    """The bytes that it holds are dropped without a report to sys.unraisablehook."""
    source = bytearray(300_000)
    pipeline = Filter(Identity(), Filter(Chunked()))
    references = [weakref.ref(pipeline), weakref.ref(pipeline.then)]
    with stream_pair() as (sock, _), IOBatch() as batch:
        clog(sock)
        batch.addbuf(source)
        assert write_while_taken(sock, batch, pipeline) == IOB_DONE
        source.clear()  # BufferError if anything held a view of it
        gc.disable()
        try:
            del pipeline
            assert [reference() for reference in references] == [None, None]
        finally:
            gc.enable()
    assert not unraisable


def test_traceback_of_an_error_does_not_keep_filter_or_tls_alive(
    tls_client: TLSClient, sock: Scripted
) -> None:
    with pytest.raises(ssl.SSLError):
        tls_client.tls.receive(b"not a TLS record")
    with pytest.raises(ssl.SSLError):
        tls_client.tls.receive(b"more")
    assert_refused(sock, tls_client.filter, ssl.SSLError)
    references = [weakref.ref(tls_client.filter), weakref.ref(tls_client.tls)]
    gc.disable()
    try:
        tls_client.__dict__.clear()
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()

"""Pipelines of filters: TLS, and gzip in the chunked coding over TLS."""

from __future__ import annotations

import socket
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_write
from iobatch.filters import Chunked, Filter
from tests.faults.delivery import Delivery
from tests.faults.harness import Interrupted, scenario
from tests.faults.scenarios.core import add_all_kinds, nonblocking
from tests.faults.tls import TLSClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.harness import Run


class Pipe:
    """A pipeline over a connection, and the steps that send a delivery through it."""

    def __init__(
        self, delivery: Delivery, pipeline: Filter, last: Filter, sock: Any, peer: Any
    ) -> None:
        self.delivery = delivery
        self.pipeline = pipeline
        self.last = last
        self.sock = sock
        self.peer = peer
        self.rest = IOBatch()  # the entries of a batch that failed

    def write(self, batch: IOBatch) -> int:
        """Write a batch, drain the pipeline, and finish it; return the last code."""
        steps = (
            partial(iob_write, self.sock, batch, self.pipeline),
            partial(self.pipeline.drain, self.sock),
            partial(self.pipeline.finish, self.sock),
        )
        for step in steps:
            code = self.repeat(step)
            if code == IOB_ERROR:
                break
        return code

    def repeat(self, step: Callable[[], int]) -> int:
        """Call `step` until it returns IOB_DONE or IOB_ERROR, which it returns."""
        run, batches = self.delivery.run, (self.delivery.batch, self.rest)
        while True:
            try:
                with run.counting():
                    code = step()
            except Interrupted:
                assert run.is_fault(Interrupted())
                code = 1
            total = sum(batch.bytesleft + batch.bytessent for batch in batches)
            assert total == len(self.delivery.content)
            if code in {IOB_DONE, IOB_ERROR}:
                return code
            self.delivery.await_writable(self.sock, self.peer, wait=code == IOB_AGAIN)

    def finish(self) -> None:
        """Check everything at the end."""
        delivery, pipeline = self.delivery, self.pipeline
        batch, content = delivery.batch, delivery.content
        code = self.write(batch)
        error = batch.error or pipeline.error
        delivery.check_error(error)
        assert (code == IOB_ERROR) == (error is not None)
        if error is not None and pipeline.error is None and not delivery.is_count_unknown(error):
            # A file could not be read: the rest goes the same way.
            self.rest.extend(batch)
            code = self.write(self.rest)
        self.sock.close()
        self.peer.setblocking(True)
        delivery.read(self.peer.fileno())
        assert delivery.received == content[: len(delivery.received)], "no prefix of the content"
        if code == IOB_DONE:
            assert delivery.received == content
        if not delivery.is_count_unknown(error):
            assert self.last.bytessent == delivery.raw, "the filter has not counted what it sent"
        batch.reset()
        self.rest.reset()
        delivery.check_released()


@scenario()
def write_through_tls(run: Run) -> None:
    """Send a batch as records, then close_notify."""
    client = TLSClient()
    delivery = add_all_kinds(Delivery(run, exact=False, decode=client.decrypt))
    with nonblocking("unix", 40_000) as (sock, peer):
        tls = client.connect_filter(peer, sock)
        delivery.raw += tls.bytessent
        Pipe(delivery, tls, tls, sock, peer).finish()
        assert client.ended or tls.error is not None


@scenario()
def write_through_gzip_chunked_tls(run: Run) -> None:
    """Send a compressed response, then close_notify."""
    client, chunks, gzip = TLSClient(), ChunkReader(), zlib.decompressobj(wbits=31)
    delivery = Delivery(
        run, exact=False, decode=lambda raw: gzip.decompress(chunks.read(client.decrypt(raw)))
    )
    add_all_kinds(delivery)
    with nonblocking("unix", 40_000) as (sock, peer):
        tls = client.connect_filter(peer, sock)
        delivery.raw += tls.bytessent
        body = Filter(zlib.compressobj(wbits=31), Filter(Chunked(), tls), high_water=20_000)
        Pipe(delivery, body, tls, sock, peer).finish()
        if body.error is None:
            assert client.ended
            assert chunks.ended
            assert gzip.eof


@scenario()
def write_through_gzip_to_callback(run: Run) -> None:
    """Send through a pipeline that ends in a callback."""
    gzip = zlib.decompressobj(wbits=31)
    delivery = add_all_kinds(Delivery(run, exact=False, decode=gzip.decompress))
    with nonblocking("unix", 16_000) as (sock, peer):
        pipeline = Filter(zlib.compressobj(wbits=31), socket.socket.send, high_water=30_000)
        Pipe(delivery, pipeline, pipeline, sock, peer).finish()
        assert gzip.eof or pipeline.error is not None


class ChunkReader:
    """Decodes the chunked coding of HTTP/1.1.

    Attributes:
        ended: whether the last chunk has arrived.

    """

    def __init__(self) -> None:
        self.pending = b""
        self.ended = False

    def read(self, data: bytes) -> bytes:
        """Return the content of the complete chunks."""
        self.pending += data
        content = bytearray()
        while not self.ended:
            size_line, end, rest = self.pending.partition(b"\r\n")
            size = int(size_line, 16) if end else 0
            if not end or len(rest) < size + 2:
                break
            assert rest[size : size + 2] == b"\r\n"
            content += rest[:size]
            self.pending = rest[size + 2 :]
            self.ended = not size
        assert not (self.ended and self.pending)
        return bytes(content)

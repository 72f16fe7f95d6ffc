"""One call: how many bytes it moves on, and in how few system calls."""

from __future__ import annotations

import gzip
import zlib
from selectors import EVENT_WRITE
from typing import TYPE_CHECKING, Any

from iobatch import IOB_AGAIN, IOB_ERROR, WRITE_LIMIT, iob_write
from iobatch.filters import Chunked, Filter
from tests.support.batches import batch_of, data
from tests.support.filters import (
    BODY,
    Counting,
    Growing,
    Identity,
    PartialWriteSocket,
    Swallowing,
    step_until_done,
)
from tests.support.http import unchunk
from tests.support.tls import TLSClient

if TYPE_CHECKING:
    import trustme

    from tests.support.fakes import Scripted


def test_tls_records_of_one_offer_share_a_system_call(
    authority: trustme.CA, sock: Scripted
) -> None:
    """A long stream goes out in few large system calls."""
    client = TLSClient(authority)
    client.shake_hands()
    assert iob_write(sock, batch_of(data(WRITE_LIMIT)), client.filter) == WRITE_LIMIT
    assert len(sock.calls) == 1
    # TLS 1.3 adds 22 bytes to each record: its header, a content type and a tag.
    assert len(sock.taken) == WRITE_LIMIT + 4 * 22
    batch = batch_of(data(1 << 20))
    step_until_done(sock, lambda: iob_write(sock, batch, client.filter), client.filter)
    step_until_done(sock, lambda: client.filter.drain(sock), client.filter)
    assert len(sock.calls) <= 1 + 6
    client.incoming.write(bytes(sock.taken))
    plain = b""
    while len(plain) < WRITE_LIMIT + (1 << 20):
        plain += client.sslobject.read(1 << 20)
    assert plain == data(WRITE_LIMIT) + data(1 << 20)


def test_last_bytes_of_all_filters_and_close_notify_share_a_system_call(
    tls_client: TLSClient, sock: Scripted
) -> None:
    pipeline = Filter(zlib.compressobj(wbits=31), Filter(Chunked(), tls_client.filter))
    assert iob_write(sock, batch_of(b"short"), pipeline) == 5
    calls = len(sock.calls)
    step_until_done(sock, lambda: pipeline.finish(sock), pipeline)
    assert len(sock.calls) == calls + 1
    assert gzip.decompress(unchunk(tls_client.read(bytes(sock.taken)))) == b"short"


def test_output_for_another_filter_is_passed_on_at_once(sock: Scripted) -> None:
    """Only the filter before the socket collects output for larger system calls."""
    next_transform = Counting()
    pipeline = Filter(Identity(), Filter(next_transform))
    batch = batch_of(data(1 << 20))
    for _ in range(3):
        assert iob_write(sock, batch, pipeline) == WRITE_LIMIT
        assert next_transform.take() == WRITE_LIMIT
        assert not pipeline.bytesleft


def test_one_call_gives_each_transform_at_most_64_kib() -> None:
    transforms = [Counting(), Counting(), Counting()]
    pipeline = None
    for transform in transforms:
        pipeline = Filter(transform, pipeline)
    assert pipeline is not None
    first = Filter(Chunked(), pipeline)
    with PartialWriteSocket(100_003) as sock, batch_of(data(2_000_000)) as batch:

        def step() -> int:
            code = iob_write(sock, batch, first, limit=WRITE_LIMIT) or first.finish(sock)
            assert all(transform.take() <= WRITE_LIMIT for transform in transforms)
            return code

        step_until_done(sock, step, first)
        assert unchunk(bytes(sock.taken)) == data(2_000_000)


def test_one_write_passes_on_at_most_64_kib_of_grown_output(sock: Scripted) -> None:
    next_transform = Counting()
    pipeline = Filter(Growing(), Filter(next_transform), high_water=1000)
    batch = batch_of(data(4000))
    assert iob_write(sock, batch, pipeline) == 4000
    assert next_transform.take() == WRITE_LIMIT
    batch = batch_of(data(3000, 1))
    assert iob_write(sock, batch, pipeline) == IOB_AGAIN
    assert batch.wants == EVENT_WRITE
    assert next_transform.take() == WRITE_LIMIT
    while batch:
        assert iob_write(sock, batch, pipeline) != IOB_ERROR
        assert next_transform.take() <= WRITE_LIMIT
    step_until_done(sock, lambda: pipeline.finish(sock), pipeline)
    assert sock.taken == Growing().compress(data(4000) + data(3000, 1))


def test_one_call_gives_the_last_callback_at_most_64_kib() -> None:
    """The callback takes at most 40 000 bytes of an offer; one call may make several offers."""
    sizes: list[int] = []

    def callback(_: Any, view: memoryview) -> int:
        sizes.append(min(len(view), 40_000))
        return sizes[-1]

    pipeline = Filter(Growing(), callback)
    batch = batch_of(data(5000))
    while code := iob_write(None, batch, pipeline) or pipeline.finish(None):
        assert code > 0
        assert sum(sizes) <= WRITE_LIMIT
        sizes.clear()


def test_one_finish_passes_on_at_most_64_kib_of_flushed_output(sock: Scripted) -> None:
    next_transform = Counting()
    pipeline = Filter(Swallowing(), Filter(next_transform))
    batch = batch_of(BODY)
    step_until_done(sock, lambda: iob_write(sock, batch, pipeline), pipeline)

    def step() -> int:
        code = pipeline.finish(sock)
        assert next_transform.take() <= WRITE_LIMIT
        return code

    step_until_done(sock, step, pipeline)
    assert sock.taken == BODY

"""Backpressure: high_water bounds the bytes that a filter holds."""

from __future__ import annotations

from collections import deque
from selectors import EVENT_WRITE
from typing import TYPE_CHECKING

import pytest

from iobatch import IOB_AGAIN, IOB_ERROR, WRITE_LIMIT, iob_write
from iobatch.filters import Chunked, Filter
from tests.support.batches import batch_of, data
from tests.support.fakes import Scripted, again
from tests.support.filters import (
    BODY,
    Counting,
    Growing,
    Identity,
    PartialWriteSocket,
    step_until_done,
    write_and_finish,
    write_while_taken,
)
from tests.support.http import unchunk

if TYPE_CHECKING:
    from tests.support.tls import TLSClient


def test_high_water_must_be_at_least_1() -> None:
    assert Filter(Identity(), high_water=1).bytesleft == 0
    with pytest.raises(ValueError):
        Filter(Identity(), high_water=0)


def test_filter_that_holds_high_water_takes_nothing_and_waits_for_writing() -> None:
    pipeline = Filter(Identity(), high_water=5)
    assert pipeline.wants == EVENT_WRITE
    with Scripted(again(), again()) as sock:
        assert iob_write(sock, batch_of(b"01234"), pipeline) == 5
        assert pipeline(sock, memoryview(b"5")) == IOB_AGAIN
        assert pipeline.drain(sock) == 5
        assert pipeline.wants == EVENT_WRITE


def test_filter_before_one_that_holds_high_water_keeps_its_bytes() -> None:
    last = Filter(Identity(), high_water=5)
    first = Filter(Identity(), last)
    with Scripted(*[again()] * 3) as sock:
        assert iob_write(sock, batch_of(b"01234"), first) == 5
        assert iob_write(sock, batch_of(b"5"), first) == 1
        assert first.drain(sock) == IOB_AGAIN
        assert (first.bytesleft, last.bytesleft) == (1, 5)


def test_full_filter_tries_the_socket_before_it_takes_more() -> None:
    transform = Counting()
    pipeline = Filter(transform, high_water=100_000)
    with Scripted(*[again()] * 4, 1, again(), 70_000, again()) as sock:
        batch = batch_of(data(1 << 20))
        codes = [iob_write(sock, batch, pipeline) for _ in range(2)]
        assert codes == [WRITE_LIMIT] * 2
        codes = [iob_write(sock, batch, pipeline) for _ in range(3)]
        assert codes == [IOB_AGAIN] * 3
        assert pipeline.bytesleft == 2 * WRITE_LIMIT - 1
        assert transform.take() == 2 * WRITE_LIMIT
        calls = len(sock.calls)
        sock.script = deque([70_000, again()])
        # A partial write makes room and shows that the socket is full: no second send follows.
        assert iob_write(sock, batch, pipeline) == WRITE_LIMIT
        assert len(sock.calls) == calls + 1
        write_and_finish(sock, batch, pipeline)
        assert sock.taken == data(1 << 20)


def test_full_socket_fills_every_filter_and_then_the_first_returns_again(
    tls_client: TLSClient,
) -> None:
    tls_client.filter._high_water = 50_000
    middle = Filter(Chunked(), tls_client.filter, high_water=30_000)
    first = Filter(Identity(), middle, high_water=20_000)
    with Scripted(*[again()] * 1000) as sock:
        batch = batch_of(BODY)
        assert write_while_taken(sock, batch, first) == IOB_AGAIN
        assert batch.wants == first.wants == EVENT_WRITE
        assert [each.bytesleft > 0 for each in (first, middle, tls_client.filter)] == [True] * 3
        assert first.drain(sock) == first.finish(sock) == IOB_AGAIN
        assert batch
        sock.script.clear()
        write_and_finish(sock, batch, first)
        assert unchunk(tls_client.read(bytes(sock.taken))) == BODY


@pytest.mark.parametrize("write_size", [61, 700, 70_000])
def test_filters_hold_at_most_high_water_plus_the_output_of_one_piece(write_size: int) -> None:
    body = data(3000)
    first = Filter(Growing(), Filter(Identity(), high_water=1000), high_water=5000)
    with PartialWriteSocket(write_size) as sock, batch_of(body) as batch:

        def step() -> int:
            code = iob_write(sock, batch, first, limit=300) or first.finish(sock)
            assert first.bytesleft < 5000 + 300 * 100  # Growing repeats each byte 100 times
            assert first.then.bytesleft < 1000 + WRITE_LIMIT
            return code

        step_until_done(sock, step, first)
        assert sock.taken == Growing().compress(body)


def test_held_bytes_stay_bounded_while_the_socket_accepts_everything(sock: Scripted) -> None:
    pipeline = Filter(Growing(), Filter(Identity()), high_water=1000)
    for seed in range(20):
        batch = batch_of(data(2000, seed))
        while batch:
            assert iob_write(sock, batch, pipeline) != IOB_ERROR
            assert pipeline.bytesleft < 1000 + 2000 * 100

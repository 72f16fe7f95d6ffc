"""Other tasks run while send_batch sends, however fast the reader is."""

from __future__ import annotations

from itertools import pairwise
from selectors import EVENT_WRITE
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from iobatch import WRITE_LIMIT
from iobatch.anyio import send_batch
from iobatch.filters import Filter
from tests.support.anyio import watched_awaits
from tests.support.batches import batch_of, data
from tests.support.fakes import Scripted, again
from tests.support.filters import Identity

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("callback", "limit", "most"),
    [
        (lambda: None, 1_000, 1_000),
        (lambda: None, 100_000, 100_000),
        (lambda: Filter(Identity()), 1_000, 1_000),
        (lambda: Filter(Identity()), 100_000, WRITE_LIMIT),
        (lambda: Filter(Identity()), None, WRITE_LIMIT),
    ],
)
async def test_another_task_runs_after_each_step(
    callback: Callable[[], Any], limit: int | None, most: int
) -> None:
    """The socket accepts everything at once.

    In each turn trio runs the tasks in random order, so two turns of one task may come between two
    of the other.
    """
    content = data(300_000)
    turns: list[int] = []  # the bytes sent in each turn
    done = False
    with Scripted() as sock:
        sock.setblocking(False)

        async def take_turns() -> None:
            while not done:
                turns.append(len(sock.taken) - sum(turns))
                await checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take_turns)
            await checkpoint()
            assert await send_batch(sock, batch_of(content), callback(), limit=limit) == 300_000
            done = True
        assert sock.taken == content
    assert max(turns) <= 2 * most
    assert len(turns) >= 300_000 // most - 1


@pytest.mark.parametrize("short", [600, 999])
async def test_bytes_of_short_sends_count_towards_the_limit(short: int) -> None:
    at_await = [0]
    with Scripted(*[short] * 20) as sock:
        sock.setblocking(False)
        with watched_awaits(lambda _: at_await.append(len(sock.taken))):
            assert await send_batch(sock, batch_of(data(10_000)), limit=1_000) == 10_000
    assert {after - before for before, after in pairwise(at_await)} == {0, 1_000}


async def test_limit_counts_from_the_last_wait_for_the_socket() -> None:
    """Other tasks have run meanwhile."""
    at_await: list[int] = []
    with Scripted(600, again()) as sock:
        sock.setblocking(False)
        with watched_awaits(lambda _: at_await.append(len(sock.taken))):
            assert await send_batch(sock, batch_of(data(2_000)), limit=1_000) == 2_000
    assert at_await == [0, 600, 1_600]


async def test_bytes_of_a_drain_count_towards_the_limit() -> None:
    class Holding:
        """A callback that takes all, and passes on 500 bytes in each drain."""

        error: OSError | None = None
        wants = EVENT_WRITE
        bytesleft = 0

        def __call__(self, _sock: object, view: memoryview) -> int:
            self.bytesleft += len(view)
            return len(view)

        def drain(self, _sock: object) -> int:
            passed = min(500, self.bytesleft)
            self.bytesleft -= passed
            return passed

    awaits: list[str] = []
    with Scripted() as sock, watched_awaits(awaits.append):
        sock.setblocking(False)
        assert await send_batch(sock, batch_of(data(5_000)), Holding(), limit=1_000) == 5_000
    assert awaits == ["checkpoint"] * (1 + 5 + 5)


async def test_two_fast_sends_take_turns() -> None:
    order: list[int] = []
    with Scripted() as first, Scripted() as second:
        first.setblocking(False)
        second.setblocking(False)

        async def send(sock: Scripted, number: int) -> None:
            await send_batch(
                sock, batch_of(data(50_000)), limit=10_000, progress=lambda _: order.append(number)
            )

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, first, 1)
            tasks.start_soon(send, second, 2)
    assert sorted(order) == [1] * 5 + [2] * 5
    assert all({*order[i : i + 2]} == {1, 2} for i in range(0, 10, 2))

"""send_batch under trio, and under anyio on asyncio."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import trio

from iobatch.anyio import send_batch
from tests.faults.harness import Run, scenario
from tests.faults.scenarios.aio import SELECTOR, mixed
from tests.support.sockets import stream_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tests.faults.delivery import Delivery

# A failure of one of these is that of waiting, or of making the duplicate of a trio.socket. It is
# not the batch's, so the batch can go on.
WAITS = frozenset(("dup", "epoll_ctl", "epoll_wait", "fstat", "getsockopt", "ioctl"))


class Reader(trio.abc.Instrument):
    """Reads whenever the loop waits."""

    def __init__(self, delivery: Delivery, peer: socket.socket) -> None:
        self.delivery = delivery
        self.peer = peer

    def read(self) -> None:
        self.delivery.read(self.peer.fileno())

    def before_io_wait(self, timeout: float) -> None:
        if timeout > 0:
            self.read()


def on_trio(main: Callable[[Any], Any], reader: Reader) -> None:
    """Run a function of the socket's wrapper on trio."""
    # Trio chooses the order of its tasks at random. Hypothesis seeds the same object.
    trio._core._run._r.seed(0)
    trio.run(main, trio.socket.from_stdlib_socket, instruments=[reader])


def on_asyncio(main: Callable[[Any], Any], reader: Reader) -> None:
    """Run a function of the socket's wrapper on asyncio."""

    async def run() -> None:
        asyncio.get_running_loop().add_reader(reader.peer, reader.read)
        try:
            await main(lambda sock: sock)
        finally:
            asyncio.get_running_loop().remove_reader(reader.peer)

    anyio.run(run)


def send_all(run: Run, start: Callable[..., None], delivery: Delivery) -> None:
    """Send a batch, cancel that after the first bytes, and go on.

    If the loop itself fails, or waiting does, a new loop goes on.
    """
    batch = delivery.batch
    with stream_pair(buffers=4096) as (sock, peer):
        sock.setblocking(False)
        peer.setblocking(False)
        reader = Reader(delivery, peer)

        async def send(wrap: Callable[[socket.socket], Any]) -> None:
            ours = wrap(sock.dup())
            try:
                with run.counting(), anyio.CancelScope() as scope:
                    progress = lambda _: scope.cancel()  # noqa: E731
                    await send_batch(ours, batch, progress=progress)
                    assert not batch
                with run.counting():
                    await count(partial(send_batch, ours, batch))
            finally:
                ours.close()

        async def count(call: Callable[[], Any]) -> None:
            before = batch.bytessent
            sent = await call()
            assert sent == batch.bytessent - before
            assert batch.bytesleft + batch.bytessent == len(delivery.content)

        async def go_on(wrap: Callable[[socket.socket], Any]) -> None:
            if batch.error is None:
                ours = wrap(sock.dup())
                await send_batch(ours, batch)
                ours.close()

        try:
            start(send, reader)
        except OSError as exc:
            fault = run.fault
            if fault is None or not run.is_fault(exc):
                raise
            if batch.error is None and not fault.signal and fault.call not in WAITS:
                raise
        assert batch.bytesleft + batch.bytessent == len(delivery.content)
        start(go_on, reader)
        delivery.finish(sock, peer)


# If epoll_wait(2) fails, or epoll_ctl(2) where a wait is cancelled, trio abandons its tasks without
# an end (TrioInternalError).
@scenario(
    silent=(2, 4),  # of duplicates of the socket
    spared=(("epoll_wait", None), ("epoll_ctl", None)),
)
def send_batch_on_trio(run: Run) -> None:
    send_all(run, on_trio, mixed(run))


@scenario(spared=SELECTOR)
def send_batch_on_asyncio(run: Run) -> None:
    send_all(run, on_asyncio, mixed(run))

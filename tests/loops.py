"""What the tests of iobatch.aio share: both loops, and writers whose sockets are full."""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib.util
import inspect
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch
from iobatch.aio import BatchWriter
from tests.helpers import PATIENCE, Scripted, clog, stream_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterator

    from tests.helpers import Action

LOOPS = ("asyncio", "uvloop")

with suppress(ImportError):
    # libuv opens two descriptors for its first loop, and keeps them.
    importlib.import_module("uvloop").new_event_loop().close()


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "asyncio":
        return asyncio.new_event_loop()
    if not importlib.util.find_spec("uvloop"):
        pytest.skip("uvloop is missing: install it (pip install uvloop)")
    return importlib.import_module("uvloop").new_event_loop()  # type: ignore[no-any-return]


def both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test on asyncio's own loop, and on uvloop; neither may have reason to complain."""

    @functools.wraps(test)
    def run(*args: Any, loop: str, **kwargs: Any) -> None:
        complaints: list[dict[str, Any]] = []

        async def main() -> None:
            running = asyncio.get_running_loop()
            running.set_exception_handler(lambda _, context: complaints.append(context))
            async with asyncio.timeout(PATIENCE):
                await test(*args, **kwargs)

        with asyncio.Runner(loop_factory=lambda: new_loop(loop)) as runner:
            runner.run(main())
            gc.collect()  # what was never retrieved is logged when it is collected
        assert not complaints

    signature = inspect.signature(test)
    parameters = [
        *signature.parameters.values(),
        inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY),
    ]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return pytest.mark.parametrize("loop", LOOPS)(run)


def batch_of(*pieces: bytes) -> IOBatch:
    batch = IOBatch()
    for piece in pieces:
        batch.addbuf(piece)
    return batch


@contextmanager
def writer_pair(
    kind: str = "socketpair", *, buffers: int | None = None, **options: Any
) -> Iterator[tuple[BatchWriter, socket.socket]]:
    """Give a writer, and a non-blocking socket on which its bytes arrive."""
    with stream_pair(kind, buffers=buffers) as (ours, theirs):
        ours.setblocking(False)
        theirs.setblocking(False)
        writer = BatchWriter(ours, **options)
        yield writer, theirs
        writer.close()


@contextmanager
def full_writer(**options: Any) -> Iterator[tuple[BatchWriter, Peer]]:
    """Give a writer whose socket is full, so that what is posted has to wait, and its reader."""
    with writer_pair(buffers=4096, **options) as (writer, peer):
        yield writer, Peer(peer, clog(writer.sock))


class Peer:
    """The reader of a socket that was filled."""

    def __init__(self, sock: socket.socket, filler: int) -> None:
        self.sock = sock
        self.filler = filler

    async def clear(self) -> None:
        """Read the filler, and nothing else, so that there is room."""
        await read(self.sock, self.filler)
        self.filler = 0

    async def read(self, nbytes: int) -> bytes:
        """Read exactly so many bytes behind the filler."""
        return (await read(self.sock, self.filler + nbytes))[self.filler :]


async def read(sock: socket.socket, nbytes: int) -> bytes:
    """Read exactly so many bytes."""
    received = bytearray()
    while len(received) < nbytes:
        piece = await asyncio.get_running_loop().sock_recv(sock, nbytes - len(received))
        assert piece, f"the end came after {len(received)} of {nbytes} bytes"
        received += piece
    return bytes(received)


@contextmanager
def scripted_writer(*script: Action, **options: Any) -> Iterator[tuple[BatchWriter, Scripted]]:
    """Give a writer on a scripted socket. The loop takes it for writable, as it has no peer."""
    with Scripted(*script) as sock:
        sock.setblocking(False)
        writer = BatchWriter(sock, **options)
        yield writer, sock
        writer.close()


class FakeTime:
    """A loop whose time goes on when it is told."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loop, name)

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        self.timers.append((when, callback))
        # What is given back can be cancelled; it does nothing else.
        return self.loop.call_at(self.loop.time() + 999, lambda: None)

    def go_on(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer[0] <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for _, callback in due:
            callback()


async def turns(count: int = 5) -> None:
    """Let the loop make some turns."""
    for _ in range(count):
        await asyncio.sleep(0)


def is_watched(writer: BatchWriter) -> bool:
    """Tell whether the loop waits for a writer's socket; nobody waits for it any more then."""
    return asyncio.get_running_loop().remove_writer(writer.sock.fileno())

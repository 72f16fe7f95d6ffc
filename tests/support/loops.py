"""Event loops in tests: both loops, writers on sockets in a chosen state, and a loop's clock."""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib.util
import inspect
import os
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from iobatch.aio import BatchWriter
from tests.support.fakes import Scripted
from tests.support.sockets import PATIENCE, clog, stream_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.support.fakes import Action

LOOPS = ("asyncio", "uvloop")


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "asyncio":
        return asyncio.new_event_loop()
    if not importlib.util.find_spec("uvloop"):
        pytest.skip("uvloop is missing: install it (pip install uvloop)")
    return importlib.import_module("uvloop").new_event_loop()  # type: ignore[no-any-return]


def both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test on asyncio's own loop and on uvloop.

    The test fails if the loop's exception handler is called.
    """

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
            gc.collect()  # asyncio reports an unretrieved exception when its future is collected
        assert not complaints

    signature = inspect.signature(test)
    parameters = [
        *signature.parameters.values(),
        inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY),
    ]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return pytest.mark.parametrize("loop", LOOPS)(run)


@contextmanager
def writer_pair(
    kind: str = "socketpair", *, buffers: int | None = None, **options: Any
) -> Iterator[tuple[BatchWriter, socket.socket]]:
    """Yield a writer, and the non-blocking socket that receives its bytes."""
    with stream_pair(kind, buffers=buffers) as (ours, theirs):
        ours.setblocking(False)
        theirs.setblocking(False)
        writer = BatchWriter(ours, **options)
        yield writer, theirs
        writer.close()


@contextmanager
def full_writer(**options: Any) -> Iterator[tuple[BatchWriter, Peer]]:
    """Yield a writer whose socket is full, so that every write waits, and the socket's reader."""
    with writer_pair(buffers=4096, **options) as (writer, peer):
        yield writer, Peer(peer, clog(writer.sock))


class Peer:
    """The reader of a socket that was filled with `filler` bytes."""

    def __init__(self, sock: socket.socket, filler: int) -> None:
        self.sock = sock
        self.filler = filler

    async def clear(self) -> None:
        """Read exactly the filler, so that the socket is writable."""
        await read(self.sock, self.filler)
        self.filler = 0

    async def read(self, nbytes: int) -> bytes:
        """Read the filler and exactly nbytes after it; return those."""
        return (await read(self.sock, self.filler + nbytes))[self.filler :]


async def read(sock: socket.socket, nbytes: int) -> bytes:
    """Read exactly nbytes."""
    received = bytearray()
    while len(received) < nbytes:
        piece = await asyncio.get_running_loop().sock_recv(sock, nbytes - len(received))
        assert piece, f"the end came after {len(received)} of {nbytes} bytes"
        received += piece
    return bytes(received)


async def end_reading(reading: asyncio.Task[bytes], sock: socket.socket) -> None:
    """End a task that reads before its socket is closed.

    Another socket with the same number can then receive.
    """
    fd = sock.fileno()
    reading.cancel()
    await asyncio.wait([reading])
    assert reading.cancelled()
    with ExitStack() as stack:
        # The next descriptor has the lowest free number: take those below this one.
        while (taken := os.open(os.devnull, os.O_RDONLY)) < fd:
            stack.callback(os.close, taken)
        os.close(taken)
        sock.close()
        ends = stack.enter_context(stream_pair())
        assert fd in {each.fileno() for each in ends}
        for ours, theirs in (ends, ends[::-1]):
            ours.setblocking(False)
            receiving = asyncio.create_task(read(ours, 3))
            await turns()
            theirs.send(b"new")
            assert await receiving == b"new"


@contextmanager
def scripted_writer(*script: Action, **options: Any) -> Iterator[tuple[BatchWriter, Scripted]]:
    """Yield a writer on a scripted socket.

    The socket is not connected, and such a socket polls as writable (POLLOUT and POLLHUP).
    """
    with Scripted(*script) as sock:
        sock.setblocking(False)
        writer = BatchWriter(sock, **options)
        yield writer, sock
        writer.close()


class FakeTime:
    """A loop with a clock that only advance() moves; all else is the real loop's."""

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
        # The caller gets a handle that can be cancelled. Its callback does nothing.
        return self.loop.call_at(self.loop.time() + 999, lambda: None)

    def advance(self, seconds: float) -> None:
        """Move the clock, and call the timers that are due."""
        self.now += seconds
        due = [timer for timer in self.timers if timer[0] <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for _, callback in due:
            callback()


async def turns(count: int = 5) -> None:
    """Let the loop run for a number of turns."""
    for _ in range(count):
        await asyncio.sleep(0)


def is_watched(writer: BatchWriter) -> bool:
    """Return whether the loop watches a writer's socket, by a duplicate; stop it from doing so."""
    fd = writer._sender._watch._fd
    return fd >= 0 and asyncio.get_running_loop().remove_writer(fd)


@asynccontextmanager
async def stream(
    *, buffers: int | None = None, **options: Any
) -> AsyncIterator[tuple[asyncio.StreamWriter, socket.socket]]:
    """Yield the writer of a TCP stream, and the non-blocking socket at the other end."""
    with stream_pair("tcp4", buffers=buffers) as (ours, theirs):
        theirs.setblocking(False)
        _, writer = await asyncio.open_connection(sock=ours.dup(), **options)
        ours.close()
        try:
            yield writer, theirs
        finally:
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

"""send_batch in tests: what goes on beside it, and every point at which it waits."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.support.sockets import PATIENCE, stream_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterator


@contextmanager
def nonblocking_pair(
    kind: str = "socketpair", *, buffers: int | None = None
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield two connected, non-blocking sockets."""
    with stream_pair(kind, buffers=buffers) as (ours, theirs):
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


async def read(peer: socket.socket, nbytes: int) -> bytes:
    """Read exactly nbytes."""
    received = bytearray()
    with anyio.fail_after(PATIENCE):
        while len(received) < nbytes:
            await anyio.wait_readable(peer)
            piece = peer.recv(nbytes - len(received))
            assert piece, f"the end came after {len(received)} of {nbytes} bytes"
            received += piece
    return bytes(received)


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until a condition is true."""
    with anyio.fail_after(PATIENCE):
        while not condition():
            await checkpoint()


@contextmanager
def watched_awaits(on_await: Callable[[str], None]) -> Iterator[None]:
    """Call on_await with the name of each function that send_batch awaits, before it does."""

    def watched(
        name: str, function: Callable[..., Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **options: Any) -> Any:
            on_await(name)
            return await function(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("checkpoint", "wait_readable", "wait_writable"):
            function = getattr(anyio, name, checkpoint)
            patch.setattr(f"iobatch.anyio.{name}", watched(name, function))
        run_sync = watched("run_sync", anyio.to_thread.run_sync)
        patch.setattr("iobatch.anyio.to_thread", SimpleNamespace(run_sync=run_sync))
        yield

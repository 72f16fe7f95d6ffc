"""Uses of iobatch.anyio that type checkers must accept in strict mode. It is never run."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, assert_type

from iobatch.anyio import send_batch
from iobatch.filters import Chunked, Filter

if TYPE_CHECKING:
    import socket

    import trio

    from iobatch import IOBatch


async def send(sock: socket.socket, stream: trio.SocketStream, batch: IOBatch) -> int:
    """Send over each kind of socket, with each parameter."""
    done: list[int] = []
    sent = await send_batch(sock=sock, batch=batch, limit=None, progress=done.append)
    sent += await send_batch(stream.socket, batch, callback=Filter(Chunked()))
    return assert_type(sent + await send_batch(sock, batch, ssl.SSLSocket.send), int)

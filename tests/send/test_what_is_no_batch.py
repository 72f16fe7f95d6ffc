"""Arguments that are no batch."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from iobatch import iob_send, iob_sendall, iob_sendmsg, iob_write
from iobatch.aio import send_to_stream
from iobatch.anyio import send_batch
from tests.support.sockets import stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable


def send_by_trio(sock: Any, batch: Any) -> None:
    """Call send_batch."""
    sock.setblocking(False)
    trio.run(send_batch, sock, batch)


def send_by_asyncio(sock: Any, batch: Any) -> None:
    """Call send_to_stream."""

    async def send() -> None:
        _, writer = await asyncio.open_connection(sock=sock.dup())
        try:
            await send_to_stream(writer, batch)
        finally:
            writer.close()
            await writer.wait_closed()

    asyncio.run(send())


@pytest.mark.parametrize(
    "call",
    [
        iob_send,
        iob_sendmsg,
        iob_sendall,
        partial(iob_write, callback=print),
        send_by_trio,
        send_by_asyncio,
    ],
)
@pytest.mark.parametrize("other", [b"bytes", None])
def test_what_is_no_batch_is_refused_by_the_name_of_its_class(
    call: Callable[[Any, Any], object], other: object
) -> None:
    expected = f"batch must be an IOBatch, not {type(other).__name__!r}"
    with stream_pair() as (sock, _), pytest.raises(TypeError, match=expected):
        call(sock, other)

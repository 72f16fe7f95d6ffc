"""The examples of the pages for programs that come from libowfat and libevent."""

from __future__ import annotations

import asyncio
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tests.support.batches import batch_of, data
from tests.support.loops import both_loops, writer_pair
from tests.support.manpages import example
from tests.support.sockets import PATIENCE, receive, stream_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator


def test_example_of_libowfat_sends_each_batch_and_returns_the_errors() -> None:
    content = data(500_000)
    send_all = example("iobatch-libowfat.7")["send_all"]
    with (
        stream_pair(buffers=4096) as (one, first),
        stream_pair(buffers=4096) as (other, second),
        stream_pair() as (lost, third),
        ThreadPoolExecutor(2) as pool,
    ):
        third.close()
        received = [pool.submit(receive, peer, len(content)) for peer in (first, second)]
        batches = {sock: batch_of(content) for sock in (one, other, lost)}
        errors: dict[socket.socket, OSError] = send_all(batches)
        assert [each.result(PATIENCE) for each in received] == [content, content]
    assert [(sock, type(error)) for sock, error in errors.items()] == [(lost, BrokenPipeError)]


@both_loops
async def test_example_of_libevent_flushes_each_message_and_ends_the_stream() -> None:
    loop = asyncio.get_running_loop()
    coder = zlib.decompressobj(wbits=31)

    with writer_pair() as (writer, peer):

        async def messages() -> AsyncIterator[bytes]:
            for message in (b"one", b"two"):
                yield message
                # The message has been flushed when the next one is requested.
                assert coder.decompress(await loop.sock_recv(peer, 1 << 16)) == message

        await example("iobatch-libevent.7")["send_messages"](writer.sock, messages())
        assert coder.decompress(await loop.sock_recv(peer, 1 << 16)) == b""
        assert coder.eof

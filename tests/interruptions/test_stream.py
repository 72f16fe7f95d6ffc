"""Handlers that raise in send_to_stream()."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

import pytest

from iobatch.aio import send_to_stream
from tests.support.batches import batch_of, data
from tests.support.interruptions import (
    LARGE,
    SMALL,
    every_kind,
    handler_that_raises,
    raise_from_handler,
)
from tests.support.loops import both_loops, stream

if TYPE_CHECKING:
    import socket

    from tests.support.batches import MakeFile


@both_loops
@every_kind
@pytest.mark.parametrize("size", [SMALL, LARGE, 600_000])
async def test_interrupted_send_to_stream_repeats_no_byte(
    size: int, kind: type[Exception], make_file: MakeFile
) -> None:
    """The handler's exception leaves the call. A second call sends the bytes that are left."""
    content = data(size)
    fd = make_file(content)
    wanted = b"header" + content
    for point in count(1):
        async with stream() as (writer, peer):
            batch = batch_of(b"header")
            batch.addfile(fd)
            received = bytearray()

            async def read_all(peer: socket.socket = peer, received: bytearray = received) -> None:
                with suppress(ConnectionResetError):
                    while piece := await asyncio.get_running_loop().sock_recv(peer, 1 << 20):
                        received.extend(piece)

            reading = asyncio.create_task(read_all())
            with handler_that_raises(point, kind) as raised, suppress(kind):
                await send_to_stream(writer, batch)
                assert not raised, "the call has suppressed the exception"
            if raised and batch.error is None and not writer.is_closing():
                await send_to_stream(writer, batch)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            await reading
            assert bytes(received) == wanted[: len(received)]
        if not raised or point > 120:  # a limit, since each point takes a connection
            break
    assert point > 10


@both_loops
async def test_interrupted_stream_write_fails_the_batch() -> None:
    """The number of bytes that the transport took is unknown.

    An error of the transport itself does not fail the batch.
    """

    def refuse(_data: object) -> None:
        raise RuntimeError("the transport is sending a file")

    async with stream() as (writer, _):
        for write, error, failed in (
            (refuse, RuntimeError, False),
            (raise_from_handler, BlockingIOError, True),
        ):
            batch = batch_of(b"header")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(writer, "write", write)
                with pytest.raises(error):
                    await send_to_stream(writer, batch)
            assert (batch.bytesleft, batch.error is not None) == (6, failed)


@both_loops
async def test_oserror_of_a_handler_between_two_pieces_is_not_stored() -> None:
    batch = batch_of(b"abc")
    async with stream() as (writer, _peer):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer, "drain", raise_from_handler)
            with pytest.raises(BlockingIOError, match="handler"):
                await send_to_stream(writer, batch)
    assert (batch.bytessent, batch.error) == (3, None)

"""The end of a writer: close() and `async with`."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch
from iobatch.aio import BatchWriter, WriteOperation, WriteStatus
from tests.support.aio import statuses
from tests.support.batches import batch_of, data
from tests.support.fakes import again
from tests.support.loops import (
    LOOPS,
    both_loops,
    full_writer,
    is_watched,
    new_loop,
    read,
    scripted_writer,
    turns,
    writer_pair,
)
from tests.support.sockets import PATIENCE, clog, stream_pair

if TYPE_CHECKING:
    import socket

DONE, ABORTED = WriteStatus.DONE, WriteStatus.ABORTED


@both_loops
async def test_close_aborts_pending_writes_and_refuses_more_but_keeps_the_socket() -> None:
    """WSASend's WSA_OPERATION_ABORTED is ECANCELED."""
    with scripted_writer(2, again()) as (writer, sock):
        operations = [writer.write(batch_of(b"abc")) for _ in range(3)]
        writer.close()
        writer.close()
        assert statuses(operations) == [ABORTED] * 3
        assert [operation.batch.bytesleft for operation in operations] == [1, 3, 3]
        for post in (
            lambda: writer.write(batch_of(b"x")),
            lambda: writer.write_some(batch_of(b"x")),
            lambda: writer.write_buffer(b"x", print),
            writer.finish,
        ):
            with pytest.raises(OSError, match="closed") as raised:
                post()
            assert raised.value.errno == errno.ECANCELED
        assert sock.fileno() >= 0
        assert not is_watched(writer)
        await writer.drain()


@both_loops
async def test_closed_writer_stays_closed_if_it_is_cancelled() -> None:
    with writer_pair() as (writer, _):
        writer.close()
        assert not writer.cancel()
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"abc"))


@both_loops
async def test_closing_the_writer_after_its_socket_does_no_harm() -> None:
    """BatchWriter(3) forbids this order."""
    for reads in False, True:
        with full_writer() as (writer, _):
            loop = asyncio.get_running_loop()
            fd = writer.sock.fileno()
            if reads:
                loop.add_reader(fd, print)
            operation = writer.write(batch_of(b"abc"))
            duplicate = os.dup(fd)
            writer.sock.close()
            writer.close()
            assert operation.status is ABORTED
            # Open the descriptor again: uvloop ends the process if it watches a closed one.
            os.dup2(duplicate, fd)
            loop.remove_reader(fd)
            os.close(duplicate)
            os.close(fd)


@pytest.mark.parametrize("name", LOOPS)
def test_closing_the_writer_after_its_loop_aborts_and_raises_nothing(name: str) -> None:
    async def post(writer: BatchWriter) -> WriteOperation:
        writer.write(batch_of(b"abc"), on_complete=print, timeout=PATIENCE)
        operation = writer.write(batch_of(b"def"))
        waiting.extend((asyncio.ensure_future(operation), asyncio.ensure_future(writer.drain())))
        await turns()
        return operation

    async def make(sock: socket.socket) -> BatchWriter:
        return BatchWriter(sock, high_water=1)

    waiting: list[asyncio.Future[Any]] = []
    with stream_pair() as (sock, _):
        clog(sock)
        loop = new_loop(name)
        writer = loop.run_until_complete(make(sock))
        operation = loop.run_until_complete(post(writer))
        loop.close()
        writer.close()
        writer.close()
        assert operation.status is ABORTED
        for future in waiting:  # the closed loop can't finish these tasks
            future._log_destroy_pending = False  # type: ignore[attr-defined]
            future.get_coro().close()  # type: ignore[attr-defined]


@both_loops
async def test_async_with_waits_until_nothing_is_pending_then_closes() -> None:
    with writer_pair(buffers=4096) as (owner, peer):
        content = data(200_000)
        async with BatchWriter(owner.sock) as writer:
            operation = writer.write(batch_of(content))
            last = writer.write(IOBatch())
            reading = asyncio.create_task(read(peer, len(content)))
        assert (operation.status, last.status) == (DONE, DONE)
        assert await reading == content
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"x"))


@both_loops
async def test_async_with_aborts_pending_writes_on_an_exception() -> None:
    with full_writer() as (owner, _):
        operations: list[WriteOperation] = []

        async def fail() -> None:
            async with BatchWriter(owner.sock) as writer:
                operations.append(writer.write(batch_of(b"abc")))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert statuses(operations) == [ABORTED]


@both_loops
async def test_async_with_raises_an_unretrieved_error() -> None:
    with writer_pair() as (owner, peer):
        peer.close()
        with pytest.raises(BrokenPipeError):
            async with BatchWriter(owner.sock) as writer:
                writer.write(batch_of(b"abc"))


@both_loops
async def test_async_with_closes_at_once_if_it_is_cancelled_while_it_waits() -> None:
    with full_writer() as (owner, _):

        async def leave() -> None:
            async with BatchWriter(owner.sock) as writer:
                operations.append(writer.write(batch_of(b"abc")))

        operations: list[WriteOperation] = []
        task = asyncio.create_task(leave())
        await turns()
        task.cancel()
        await asyncio.wait([task])
        assert statuses(operations) == [ABORTED]

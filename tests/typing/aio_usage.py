"""Uses of iobatch.aio that type checkers must accept in strict mode. It is never run."""

from __future__ import annotations

import asyncio
import socket
import ssl
import zlib
from typing import TYPE_CHECKING, Any, assert_type

from iobatch import IOBatch
from iobatch.aio import (
    BatchWriter,
    CancellationType,
    WriteOperation,
    WriteStatus,
    send_to_stream,
)
from iobatch.filters import TLS, Filter

if TYPE_CHECKING:
    from iobatch.typing import (
        Buffer,
        BufferDoneCallback,
        DoneCallback,
        Seconds,
        Through,
    )


def ended(operation: WriteOperation) -> None:
    """Be a DoneCallback."""
    print(operation.status.name)


def buffer_ended(writer: BatchWriter, _data: Buffer, nbytes: int) -> None:
    """Be a BufferDoneCallback."""
    print(writer.status, nbytes)


on_end: DoneCallback = ended
on_buffer_end: BufferDoneCallback = buffer_ended
timeouts: list[Seconds] = [1, 1.5, None, ...]
pipelines: list[Through] = [None, ssl.SSLSocket.send, Filter(zlib.compressobj())]


async def post(sock: socket.socket, tls: TLS, seconds: Seconds, through: Through) -> int:
    """Post writes in each way, with each parameter."""
    connection = Filter(tls)
    batch = IOBatch()
    writer = BatchWriter(
        sock=sock,
        through=connection,
        timeout=30,
        stall_timeout=None,
        limit=1 << 20,
        high_water=1 << 16,
        user_info={"id": 1},
    )
    operation = writer.write(
        batch=batch,
        flags=socket.MSG_MORE,
        through=through,
        exactly=5,
        ancdata=[(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"")],
        address=("127.0.0.1", 9),
        timeout=seconds,
        stall_timeout=...,
        on_complete=on_end,
        on_error=lambda each: print(each.error),
        user_info=None,
    )
    some = writer.write_some(
        batch=batch,
        flags=0,
        through=...,
        timeout=1.5,
        stall_timeout=1,
        on_complete=ended,
        on_error=None,
        user_info="some",
    )
    buffered = writer.write_buffer(
        data=bytearray(b"abc"),
        callback=on_buffer_end,
        start=0,
        end=None,
        timeout=None,
        error_callback=buffer_ended,
        user_info=...,
    )
    flushed = writer.flush(through=through)
    finished = writer.finish(through=Filter(zlib.compressobj(), connection), until=connection)
    await asyncio.wait([asyncio.ensure_future(each) for each in (some, buffered, flushed)])
    await writer.drain()
    return assert_type(await operation, int) + await finished


async def manage(writer: BatchWriter) -> Any:
    """Use each attribute and method of a writer."""
    async with writer as same:
        assert_type(same, BatchWriter)
        assert_type(writer.timeout, float | None)
        assert_type(writer.stall_timeout, float | None)
        writer.timeout = 1
        writer.stall_timeout = None
        writer.user_info = "next"
        assert_type(writer.status, WriteStatus)
        assert_type(writer.sock, socket.socket)
        assert_type(writer.pending, int)
        assert_type(writer.cancel(kind=CancellationType.TERMINAL), bool)
    writer.close()
    return writer.user_info


def inspect(operation: WriteOperation) -> Any:
    """Use each attribute and method of an operation."""
    operation.add_done_callback(callback=on_end)
    assert_type(operation.remove_done_callback(callback=on_end), int)
    assert_type(operation.cancel(kind=CancellationType.TOTAL), bool)
    assert_type(operation.cancelled() or operation.done(), bool)
    assert_type(operation.exception() or operation.error, Exception | None)
    assert_type(operation.batch, IOBatch)
    assert_type(operation.bytes_transferred, int)
    if operation.status is WriteStatus.DONE:
        return None
    return operation.user_info


async def stream(writer: asyncio.StreamWriter, batch: IOBatch) -> int:
    """Send a batch over a stream."""
    return await send_to_stream(writer=writer, batch=batch)

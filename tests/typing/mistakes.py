"""Mistakes that type checkers must find: each comment that ignores one must be needed.

It is checked, and never run.
"""

from __future__ import annotations

import socket
import zlib
from typing import TYPE_CHECKING

from iobatch import IOBatch, iob_send, iob_sendall, iob_write
from iobatch.filters import Filter

if TYPE_CHECKING:
    from iobatch.aio import BatchWriter, WriteOperation
    from iobatch.typing import WriteCallback

batch = IOBatch()
sock = socket.socket()

batch.addbuf("text")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
batch.addbuf(b"", lambda: None)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
batch.addbufs([b"", "text"])  # type: ignore[list-item] # pyright: ignore[reportArgumentType]
batch.adds(b"bytes")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
batch.addfile(None)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
batch.addfile_close(sock.fileno)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
batch.extend([b""])  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
batch.bytesleft = 0  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]

iob_send("socket", batch)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
iob_send(sock, batch, 0)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
iob_send(sock, b"")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
iob_sendall(sock, batch, timeout="1")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def no_count(_sock: object, _view: memoryview) -> str:
    """Be no callback: it returns no number."""
    return ""


callback: WriteCallback[int] = no_count  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]
iob_write(sock, batch, no_count)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
iob_write(1, batch, socket.socket.send)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

Filter(zlib)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
Filter(zlib.compressobj(), None, 1)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
Filter(_transform=zlib.compressobj())  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


async def post(writer: BatchWriter) -> None:
    """Make the mistakes of posted writes."""
    writer.write(b"abc")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    writer.write(batch, timeout="1")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    writer.write(batch, on_complete=print_two)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    writer.write_buffer(b"", print_one)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    writer.cancel("partial")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    writer.pending = 0  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]
    writer.drain()  # type: ignore[unused-coroutine] # pyright: ignore[reportUnusedCoroutine]


def print_one(operation: WriteOperation) -> None:
    """Be a DoneCallback."""
    print(operation)


def print_two(writer: BatchWriter, operation: WriteOperation) -> None:
    """Be no callback of this library."""
    print(writer, operation)

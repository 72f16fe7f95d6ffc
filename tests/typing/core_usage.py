"""Uses of iobatch that type checkers must accept in strict mode. It is checked, and never run."""

from __future__ import annotations

import array
import os
import socket
import ssl
import sys
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, assert_type

import numpy as np

from iobatch import (
    COMPILED,
    COPY_LIMIT,
    IOB_AGAIN,
    IOB_DONE,
    IOB_ERROR,
    SEND_LIMIT,
    WRITE_LIMIT,
    IOBatch,
    TruncatedFileError,
    iob_send,
    iob_sendall,
    iob_sendmsg,
    iob_write,
)

if TYPE_CHECKING:
    import mmap
    from io import BufferedReader

    from iobatch.typing import Buffer, HasFileno, OpenFile, WriteCallback


def codes_and_limits() -> list[int]:
    """Use the constants as ints."""
    assert_type(COMPILED, bool)
    return [IOB_DONE, IOB_AGAIN, IOB_ERROR, COPY_LIMIT, SEND_LIMIT, WRITE_LIMIT]


def buffers(mapped: mmap.mmap, other: Buffer) -> list[Buffer]:
    """Return the kinds of buffers that IOBatch(3) names."""
    kinds: list[Buffer] = [
        b"",
        bytearray(),
        memoryview(b""),
        array.array("H"),
        mapped,
        np.zeros(3).data,
        other,
    ]
    if sys.version_info >= (3, 12):  # numpy declares its arrays as buffers from then on
        kinds.append(np.zeros(3))
    return kinds


def add(batch: IOBatch, file: BufferedReader, entry: os.DirEntry[str], owned: OpenFile) -> None:
    """Add entries of each kind."""
    wrapper: HasFileno = owned
    batch.addbuf(data=bytearray(b"abc"), on_release=lambda: None)
    batch.addbufs(buffers=[b"abc", bytearray(b"def")])
    batch.addbufs(memoryview(piece) for piece in (b"a", b"b"))
    batch.adds(text="abc", encoding="latin-1")
    batch.addfile(file=file, offset=0, count=None, on_release=file.close)
    for path in ("name", b"name", Path("name"), entry, 7, wrapper):
        batch.addfile(path)
    batch.addfile_close(file=owned, offset=1, count=2)
    for taken in ("name", b"name", Path("name"), 7, file):
        batch.addfile_close(taken)
    batch.prepend(data=b"abc", on_release=None)
    batch.extend(other=IOBatch())
    batch.prefetch(nbytes=1 << 20)


def look(batch: IOBatch) -> int:
    """Read each attribute."""
    with batch as same:
        assert_type(same, IOBatch)
    assert_type(batch.error, OSError | None)
    assert_type(bool(batch), bool)
    try:
        batch.raise_for_error()
    except TruncatedFileError as exc:
        return exc.fd + exc.offset + exc.missing
    batch.reset()
    return batch.bytesleft + batch.bytessent + batch.wants


def errors() -> OSError:
    """Make an error."""
    return TruncatedFileError(fd=3, offset=10, missing=20)


def send(sock: socket.socket, batch: IOBatch, wrapper: HasFileno) -> int:
    """Send in each way."""
    total = iob_send(sock=sock, batch=batch, flags=socket.MSG_MORE, limit=None)
    for target in (sock, 1, wrapper):
        total += iob_send(target, batch)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1]))]
    total += iob_sendmsg(
        sock=sock, batch=batch, ancdata=ancillary, flags=0, address=("127.0.0.1", 9)
    )
    return assert_type(total, int)


def whole(sock: socket.socket, batch: IOBatch) -> int:
    """Send a whole batch."""
    done: list[int] = []
    return iob_sendall(
        sock=sock,
        batch=batch,
        callback=socket.socket.send,
        timeout=1.5,
        limit=SEND_LIMIT,
        progress=done.append,
    )


class Connection:
    """An object of the caller's, with a method that is a callback."""

    def write(self, view: memoryview) -> int | None:
        """Take some bytes."""
        return len(view)


def write(conn: ssl.SSLSocket, sock: socket.socket, batch: IOBatch) -> int:
    """Use the callbacks that iob_write(3) names, and others."""
    kept: WriteCallback[BytesIO] = BytesIO.write
    return assert_type(
        iob_write(sock=conn, batch=batch, callback=ssl.SSLSocket.send, limit=None)
        + iob_write(sock, batch, socket.socket.send)
        + iob_write(1, batch, os.write)
        + iob_write(Connection(), batch, Connection.write)
        + iob_write(BytesIO(), batch, kept)
        + iob_write(None, batch, lambda _, view: len(view)),
        int,
    )

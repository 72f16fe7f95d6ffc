"""Uses of filters that type checkers must accept in strict mode. It is checked, and never run."""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from selectors import EVENT_READ
from ssl import MemoryBIO
from typing import TYPE_CHECKING, Any, cast

import brotli  # type: ignore[import-untyped] # pyright: ignore[reportMissingTypeStubs]
from isal import isal_zlib

from iobatch import IOBatch, iob_write
from iobatch.filters import TLS, Chunked, Filter, Transform

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from ssl import SSLContext

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdCompressor
else:
    from backports.zstd import ZstdCompressor


class Brotli:
    """A transform to brotli, as in Filter(3). The package has no types."""

    def __init__(self) -> None:
        coder = cast("Any", brotli.Compressor())  # pyright: ignore[reportUnknownMemberType]
        self.compress: Callable[[memoryview | bytes], bytes] = coder.process
        self.flush: Callable[[], bytes] = coder.finish


class Upper:
    """A transform that returns another kind of buffer."""

    def compress(self, data: bytes | memoryview, /) -> bytearray:
        """Return data in upper case."""
        return bytearray(data).upper()

    def flush(self) -> memoryview:
        """Return no more output."""
        return memoryview(b"")


def transforms(tls: TLS) -> list[Transform]:
    """Return all that Filter(3) lists as transforms."""
    return [
        zlib.compressobj(wbits=31),
        bz2.BZ2Compressor(),
        lzma.LZMACompressor(),
        isal_zlib.compressobj(wbits=31),  # pyright: ignore[reportUnknownMemberType]
        ZstdCompressor(level=3),
        Brotli(),
        Upper(),
        Chunked(),
        tls,
    ]


def last(sock: socket.socket, view: memoryview) -> int:
    """Be the callback at the end of a pipeline."""
    return sock.send(view)


def send(sock: socket.socket, context: SSLContext) -> int:
    """Use every public name and parameter of a filter."""
    incoming, outgoing = MemoryBIO(), MemoryBIO()
    sslobject = context.wrap_bio(incoming, outgoing, server_side=True)
    tls = TLS(sslobject=sslobject, incoming=incoming, outgoing=outgoing)
    connection = Filter(tls, last, high_water=1 << 20)
    body = Filter(
        transform=zlib.compressobj(), then=Filter(Chunked(), connection), high_water=1 << 16
    )
    plain: bytes = tls.receive(sock.recv(65536))
    with IOBatch() as batch:
        batch.addbuf(plain)
        code: int = iob_write(sock, batch, body) or body.finish(sock=sock, until=connection)
    if body.error is not None:
        raise body.error
    if body.wants == EVENT_READ and not tls.ended and not body.bytesleft:
        code = body.drain(sock=sock)
    return code

"""The response sink: a batch, and a coded body after it, through TLS and the throttle."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

from attrs import define, field

from iobatch import IOBatch, iob_send, iob_write
from iobatch.filters import Chunked, Filter

if TYPE_CHECKING:
    import socket

    from typing_extensions import Buffer

    from iobatch.filters import Transform
    from iobatch.httpd.throttle import Throttle

# The bytes after which a connection yields to the others.
TURN = 256 * 1024
# The most bytes that are encrypted at once; pieces of half this size take a sixth more CPU. OpenSSL
# keeps a buffer of this size for each connection.
PIECE = 128 * 1024
# A filter that holds this number of bytes takes no more. It can exceed the number by the output for
# one piece.
HIGH_WATER = 64 * 1024
# A compressor takes up to 0.8 MiB until its client has read the output. With this many in use,
# further responses are sent without a coding.
MAX_CODERS = 128
_coders: WeakSet[Filter] = WeakSet()
# The largest TLS record (RFC 8446 5.1): much smaller pieces would be mostly overhead.
RECORD = 16 * 1024


def can_encode() -> bool:
    """Return whether one more response may be coded on the fly."""
    return len(_coders) < MAX_CODERS


def _output_of(coder: Filter) -> int:
    return coder.bytessent + coder.bytesleft


class HeadedChunks(Chunked):
    """Chunked coding that begins with a response's head, so one system call sends both."""

    def __init__(self, head: bytes) -> None:
        """Keep the head until the first chunk."""
        self._head = head

    def compress(self, data: Buffer, /) -> bytes:
        """Return data as a chunk."""
        return self._prefix(super().compress(data))

    def flush(self) -> bytes:
        """Return the last chunk."""
        return self._prefix(super().flush())

    def _prefix(self, chunk: bytes) -> bytes:
        if chunk:
            chunk, self._head = self._head + chunk, b""
        return chunk


@define(eq=False)
class ResponseSink:
    """Sends a batch, and after it at most one body that is coded on the fly.

    Both go through TLS and the throttle, where the connection has them. A sink is true while it
    holds something to send.
    """

    _sock: socket.socket
    # Bytes and files that need no coding. They are sent before the coded body.
    batch: IOBatch
    _tls: Filter | None = None
    # The last step before the socket; None: no rate limit.
    _throttle: Throttle | None = None
    # After everything else, TLS is ended by close_notify.
    ending: bool = False
    _body: IOBatch = field(init=False, factory=IOBatch)
    # The size of the last coded body, in bytes.
    _coded: int = field(init=False, default=0)
    # The content coding of the body; None: there is no coded body.
    _coder: Filter | None = field(init=False, default=None)
    # The transfer coding that follows the content coding.
    _chunks: Filter | None = field(init=False, default=None)
    # The callback for the batch; None: it goes to the socket by iob_send.
    _then: Filter | Throttle | None = field(init=False)
    # The most bytes of the batch that are offered to `_then` at once.
    _piece: int = field(init=False, default=PIECE)

    def __attrs_post_init__(self) -> None:
        self._then = self._throttle if self._tls is None else self._tls
        if self._throttle is not None:
            # A slow rate would keep a large piece in memory for long.
            self._piece = min(PIECE, max(RECORD, self._throttle.quantum))

    def close(self) -> None:
        """Drop what is left of the coded body."""
        self._body.reset()

    def encode(self, head: bytes, body: IOBatch, transform: Transform) -> None:
        """Add a response after the batch; its body is coded, and sent in chunks."""
        self._body = body
        self._chunks = Filter(HeadedChunks(head), self._then, high_water=HIGH_WATER)
        self._coder = Filter(transform, self._chunks, high_water=HIGH_WATER)
        _coders.add(self._coder)

    @property
    def has_coded_body(self) -> bool:
        """Whether a coded body is unsent. Then nothing may be added to the batch."""
        return self._coder is not None

    def __bool__(self) -> bool:
        return (
            self.batch.bytesleft > 0
            or self._coder is not None
            or (self._tls is not None and (self.ending or self._tls.bytesleft > 0))
        )

    @property
    def coded_bytes(self) -> int:
        """The size of the last body that was coded, as far as it is coded."""
        return self._coded if self._coder is None else _output_of(self._coder)

    @property
    def held_bytes(self) -> int:
        """The number of bytes that filters hold. If it shrinks, the socket has accepted some."""
        filters = (self._coder, self._chunks, self._tls)
        return sum(each.bytesleft for each in filters if each is not None)

    def send(self) -> int:
        """Send what the socket takes, up to about TURN bytes; return as iob_send does."""
        total = 0
        while self and total < TURN:
            nbytes = self._step()
            if nbytes < 0:
                return total or nbytes
            total += nbytes
        return total

    def _step(self) -> int:
        sock, tls = self._sock, self._tls
        if self.batch:
            if self._then is None:
                return iob_send(sock, self.batch)
            return iob_write(sock, self.batch, self._then, limit=self._piece)
        if self._coder is not None:
            if self._body:
                return iob_write(sock, self._body, self._coder)
            nbytes = self._coder.finish(sock, until=tls)
            if not nbytes:
                self._coded = _output_of(self._coder)
                self._coder = None
            return nbytes
        if TYPE_CHECKING:
            assert tls is not None
        if self.ending:
            nbytes = tls.finish(sock)
            self.ending = nbytes != 0
            return nbytes
        return tls.drain(sock)

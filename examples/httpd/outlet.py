"""The way out for what can't go straight to the socket: content codings and TLS."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakSet

from attrs import define, field

from iobatch import IOB_AGAIN, IOBatch, iob_send, iob_write
from iobatch.filters import Chunked, Filter

if TYPE_CHECKING:
    import socket

    from typing_extensions import Buffer

    from iobatch.filters import Transform

# So many bytes are taken in one turn, then the other connections have theirs.
TURN = 256 * 1024
# Of these, so many are encrypted at once: half of it takes a sixth more CPU. A connection's OpenSSL
# keeps the memory for as many.
PIECE = 128 * 1024
# For a client that is slower than we are a filter holds so much, and what comes of one piece more.
HIGH_WATER = 64 * 1024
# A compressor holds up to 0.8 MiB until its client has read what comes out of it. When all
# connections together have so many, others get their files as they are.
MAX_CODERS = 128
_coders: WeakSet[Filter] = WeakSet()
# Where the rate is limited, so many seconds' bytes leave at once, and no more than what so many
# seconds would have allowed is made up for later.
BURST = 1 / 8
# A record of TLS (RFC 8446 5.1): pieces that are much smaller would make more of them than of data.
RECORD = 16 * 1024


def can_encode() -> bool:
    """Tell whether one more response may be coded."""
    return len(_coders) < MAX_CODERS


class Headed(Chunked):
    """Chunked coding behind the head of its response, so that one system call sends both."""

    def __init__(self, head: bytes) -> None:
        """Keep the head for the first chunk."""
        self._head = head

    def compress(self, data: Buffer, /) -> bytes:
        """Return data as a chunk."""
        return self._lead(super().compress(data))

    def flush(self) -> bytes:
        """Return the last chunk."""
        return self._lead(super().flush())

    def _lead(self, chunk: bytes) -> bytes:
        if chunk:
            chunk, self._head = self._head + chunk, b""
        return chunk


@define(eq=False)
class Meter:
    """Sends no more than a rate allows; it is what iob_write calls for that, or the last Filter.

    So what counts is what leaves, with all that codings and TLS make of it.
    """

    # In bytes per second.
    _rate: int
    # Not before then anything more is sent (time.monotonic).
    rest_until: float = field(init=False, default=0.0)
    # So many bytes leave at once.
    share: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.share = max(1, int(self._rate * BURST))

    def __call__(self, sock: socket.socket, view: memoryview) -> int:
        """Send some of the view, if it is time; return as iob_write wants it."""
        now = monotonic()
        if now < self.rest_until:
            return IOB_AGAIN
        nbytes = sock.send(view[: self.share])
        self.rest_until = max(self.rest_until, now - BURST) + nbytes / self._rate
        return nbytes


@define(eq=False)
class Outlet:
    """Sends a batch, then maybe a body through a content coding, and all of it through TLS.

    It is true as long as something of that is left.
    """

    _sock: socket.socket
    # What needs no coding; it goes first.
    batch: IOBatch
    _tls: Filter | None = None
    # What is behind TLS, or there without it; None: the socket itself.
    _meter: Meter | None = None
    # When all is sent, TLS is to be ended as well.
    ending: bool = False
    _body: IOBatch = field(init=False, factory=IOBatch)
    # What the body goes through; None: there is none.
    _coder: Filter | None = field(init=False, default=None)
    # What is behind it.
    _chunks: Filter | None = field(init=False, default=None)
    # What the batch goes through, and how much of it at once.
    _way: Filter | Meter | None = field(init=False)
    _piece: int = field(init=False, default=PIECE)

    def __attrs_post_init__(self) -> None:
        self._way = self._meter if self._tls is None else self._tls
        if self._meter is not None:
            # What is read ahead is held for long.
            self._piece = min(PIECE, max(RECORD, self._meter.share))

    def close(self) -> None:
        """Let go what is left of the body."""
        self._body.reset()

    def encode(self, head: bytes, body: IOBatch, transform: Transform) -> None:
        """Send a response behind what is in the batch, its body coded and in chunks."""
        self._body = body
        self._chunks = Filter(Headed(head), self._way, high_water=HIGH_WATER)
        self._coder = Filter(transform, self._chunks, high_water=HIGH_WATER)
        _coders.add(self._coder)

    @property
    def coding(self) -> bool:
        """A response is still to be coded: nothing may be added to the batch meanwhile."""
        return self._coder is not None

    def __bool__(self) -> bool:
        return (
            self.batch.bytesleft > 0
            or self._coder is not None
            or (self._tls is not None and (self.ending or self._tls.bytesleft > 0))
        )

    @property
    def held(self) -> int:
        """The bytes that were taken and have not left: where they get fewer, some have."""
        filters = (self._coder, self._chunks, self._tls)
        return sum(each.bytesleft for each in filters if each is not None)

    def send(self) -> int:
        """Send what the socket takes, up to about TURN bytes; return as iob_send does."""
        moved = 0
        while self and moved < TURN:
            nbytes = self._step()
            if nbytes < 0:
                return moved or nbytes
            moved += nbytes
        return moved

    def _step(self) -> int:
        sock, tls = self._sock, self._tls
        if self.batch:
            if self._way is None:
                return iob_send(sock, self.batch)
            return iob_write(sock, self.batch, self._way, limit=self._piece)
        if self._coder is not None:
            if self._body:
                return iob_write(sock, self._body, self._coder)
            nbytes = self._coder.finish(sock, until=tls)
            if not nbytes:
                self._coder = None
            return nbytes
        if TYPE_CHECKING:
            assert tls is not None
        if self.ending:
            nbytes = tls.finish(sock)
            self.ending = nbytes != 0
            return nbytes
        return tls.drain(sock)

"""TLS as a transform of a Filter, over memory BIOs. iobatch.filters has it for users."""

from __future__ import annotations

from copy import copy
from ssl import SSL_ERROR_ZERO_RETURN, SSLError, SSLWantReadError, SSLZeroReturnError
from typing import TYPE_CHECKING, Final

from attrs import define, field

if TYPE_CHECKING:
    from ssl import MemoryBIO, SSLObject

    from typing_extensions import Buffer

_RECORD: Final = 16 * 1024  # a read gives no more than one record has (RFC 8446, section 5.1)


@define(eq=False)
class TLS:
    """A transform to TLS, over memory BIOs: one connection, and the last filter before its socket.

    The filter sends. What arrives goes to receive(), or the caller writes it to the BIO and uses
    the SSLObject directly. Either drives the handshake; until it is done nothing can be written,
    and the filter wants to read. What a handshake, a key update or an alert has to say goes out
    with what is written next, and by drain(): call that after receive().

    All records of a piece of input go to the socket in one system call, where ssl.SSLSocket.send
    makes one for each record; that in turn needs no BIOs, and is a callback of iob_write by itself.

    Args:
        sslobject: made by ssl.SSLContext.wrap_bio(incoming, outgoing).
        incoming: where it reads.
        outgoing: where it writes.

    """

    _sslobject: SSLObject
    _incoming: MemoryBIO
    _outgoing: MemoryBIO
    # Why the peer is not there any more. It is copied when it is raised: a traceback would make a
    # cycle of the two.
    _ended: SSLError | None = field(init=False, default=None)

    def receive(self, data: Buffer, /) -> bytes:
        """Decrypt what the socket received; b"" is its end.

        Returns:
            What the peer wrote, as far as whole records are there. Maybe b"", as for a handshake.

        Raises:
            SSLZeroReturnError: the peer has sent close_notify.
            SSLEOFError: the end came without close_notify.
            SSLError: the peer's alert, or what is wrong with what it sent (drain() tells it).
            What came before is returned first. After any of these nothing more can be written.

        """
        if self._ended is not None:
            raise copy(self._ended)
        if memoryview(data).nbytes:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        pieces = []
        try:
            while piece := self._sslobject.read(_RECORD):
                pieces.append(piece)
            if not pieces:
                raise SSLZeroReturnError(SSL_ERROR_ZERO_RETURN, "the peer has sent close_notify")
        except SSLWantReadError:
            pass
        except SSLError as exc:
            self._ended = copy(exc)
            if not pieces:
                raise
        return b"".join(pieces)

    def compress(self, data: Buffer, /) -> bytes:
        """Return the messages that wait, then data as records."""
        view = memoryview(data).cast("B")
        if view and self._ended is not None:
            raise copy(self._ended)
        # Only the first write can find a handshake unfinished, so all of the data is taken or
        # nothing.
        while view:
            view = view[self._sslobject.write(view) :]
        return self._outgoing.read()

    def flush(self) -> bytes:
        """Return what waits, then close_notify. The peer's is not waited for."""
        if self._ended is not None and not isinstance(self._ended, SSLZeroReturnError):
            raise copy(self._ended)
        self._sslobject.do_handshake()  # nothing if it is done, else SSLWantReadError
        waiting = self._outgoing.pending
        try:
            self._sslobject.unwrap()
        except SSLWantReadError:
            pass
        except SSLError:
            # Unread data came before the peer's close_notify, which is no error here.
            if self._outgoing.pending == waiting:
                raise
        return self._outgoing.read()

"""TLS as a transform of a Filter, over memory BIOs. iobatch.filters re-exports it."""

from __future__ import annotations

from copy import copy
from ssl import SSL_ERROR_ZERO_RETURN, SSLError, SSLWantReadError, SSLZeroReturnError
from typing import TYPE_CHECKING, Final

from attrs import define, field

if TYPE_CHECKING:
    from ssl import MemoryBIO, SSLObject

    from typing_extensions import Buffer

# The most plain text in one record, and so in one read (RFC 8446, section 5.1).
_RECORD_SIZE: Final = 16 * 1024


@define(eq=False)
class TLS:
    """A transform to TLS over memory BIOs, for one connection: the last filter before its socket.

    The filter sends. Received data goes to receive(), or the caller writes it to the incoming BIO
    and uses the SSLObject directly. Both drive the handshake. Until the handshake is done nothing
    can be written, and the filter wants to read. The messages of a handshake, a key update or an
    alert go out with the next write or with drain(): call drain() after receive().

    All records of a piece of input go to the socket in one system call. ssl.SSLSocket.send makes
    one system call for each record, but needs no BIOs and is itself a callback of iob_write.

    Args:
        sslobject: made by ssl.SSLContext.wrap_bio(incoming, outgoing).
        incoming: the BIO that sslobject reads from.
        outgoing: the BIO that sslobject writes to.

    """

    _sslobject: SSLObject
    _incoming: MemoryBIO
    _outgoing: MemoryBIO
    # The error that ended receiving, or None. Only copies of it are raised: a traceback on this one
    # would make a cycle with this object.
    _receive_error: SSLError | None = field(init=False, default=None)

    def receive(self, data: Buffer, /) -> bytes:
        """Decrypt data that the socket received; b"" marks the end of the stream.

        Returns:
            The plain text of all complete records; b"" if there is none, as during a handshake.

        Raises:
            SSLZeroReturnError: the peer has sent close_notify.
            SSLEOFError: the stream ended without close_notify.
            SSLError: the peer sent an alert, or invalid data (drain() then sends the alert).
            Plain text that came before the error is returned first, and the next call raises. After
            any of these errors nothing more can be written.

        """
        if self._receive_error is not None:
            raise copy(self._receive_error)
        if memoryview(data).nbytes:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        pieces = []
        try:
            while piece := self._sslobject.read(_RECORD_SIZE):
                pieces.append(piece)
            if not pieces:
                raise SSLZeroReturnError(SSL_ERROR_ZERO_RETURN, "the peer has sent close_notify")
        except SSLWantReadError:
            pass
        except SSLError as exc:
            self._receive_error = copy(exc)
            if not pieces:
                raise
        return b"".join(pieces)

    def compress(self, data: Buffer, /) -> bytes:
        """Return the waiting messages, then data as records."""
        view = memoryview(data).cast("B")
        if view and self._receive_error is not None:
            raise copy(self._receive_error)
        # Only the first write can find the handshake unfinished, so either all of the data is taken
        # or none.
        while view:
            view = view[self._sslobject.write(view) :]
        return self._outgoing.read()

    def flush(self) -> bytes:
        """Return the waiting messages, then close_notify, without waiting for the peer's."""
        if self._receive_error is not None and not isinstance(
            self._receive_error, SSLZeroReturnError
        ):
            raise copy(self._receive_error)
        self._sslobject.do_handshake()  # SSLWantReadError unless the handshake is done
        waiting = self._outgoing.pending
        try:
            self._sslobject.unwrap()
        except SSLWantReadError:
            pass
        except SSLError:
            # close_notify was written. Unread data before the peer's close_notify is no error here.
            if self._outgoing.pending == waiting:
                raise
        return self._outgoing.read()

"""TLS as a transform of a Filter, over memory BIOs. iobatch.filters re-exports it."""

from __future__ import annotations

from copy import copy
from ssl import (
    SSL_ERROR_ZERO_RETURN,
    MemoryBIO,
    SSLError,
    SSLObject,
    SSLWantReadError,
    SSLZeroReturnError,
)
from typing import Final

from iobatch._arguments import Buffer  # noqa: TC001 # for typing.get_type_hints
from iobatch._errors import ssl_error

# The most plain text in one record, and so in one read (RFC 8446, section 5.1).
_RECORD_SIZE: Final = 16 * 1024


class TLS:
    """A transform to TLS over memory BIOs, for one connection: the last filter before its socket.

    The filter sends. Received data goes to receive(), or the caller writes it to the incoming BIO
    and uses the SSLObject directly. Both drive the handshake. The handshake is over when
    sslobject.version() returns a str. Until then it returns None, nothing can be written, and the
    filter wants to read. The messages of a handshake, and alerts, go out with the next write or by
    drain() of the filter (with a BatchWriter, by flush() of the writer): call it after each
    receive() of the handshake, and after one that has raised.

    The close_notify of the peer ends what the peer sends. In TLS 1.3 writing goes on, and finish()
    of the filter sends our close_notify. TLS 1.2 closes both directions: after receive() has raised
    SSLZeroReturnError, only finish() works. A write fails with that error, and the filter with it.

    All records of an offer go to the socket in one system call. ssl.SSLSocket.send makes one system
    call for each record of 16 KiB, but needs no BIOs and is itself a callback of iob_write.

    Args:
        sslobject: made by ssl.SSLContext.wrap_bio(incoming, outgoing).
        incoming: the BIO that sslobject reads from.
        outgoing: the BIO that sslobject writes to.

    Source: RFC 8446, section 6.1; RFC 5246, section 7.2.1.
    """

    __slots__ = (
        "__weakref__",
        "_end_reported",
        "_incoming",
        "_outgoing",
        "_receive_error",
        "_sslobject",
    )

    def __init__(self, sslobject: SSLObject, incoming: MemoryBIO, outgoing: MemoryBIO) -> None:
        """Make a transform for one connection."""
        self._sslobject = sslobject
        self._incoming = incoming
        self._outgoing = outgoing
        # What ended receiving, or None. Only copies of it are raised: a traceback on this one would
        # make a cycle with this object.
        self._receive_error: SSLError | None = None
        # Whether receive() has raised it. Before that, data from the same piece may be answered.
        self._end_reported = False

    @property
    def ended(self) -> bool:
        """Whether the peer's stream has ended, so that the next receive() raises the reason.

        This is true from the call of receive() that returned the last data. A peer that waits for
        an answer sends nothing else, so waiting for the socket does not reveal the end.
        """
        return self._receive_error is not None

    def receive(self, data: Buffer, /) -> bytes:
        """Decrypt bytes that the socket received.

        Args:
            data: the bytes; b"" is the end of the stream.

        Returns:
            The plain text of all complete records; b"" if there is none, as during a handshake.

        Raises:
            SSLZeroReturnError: the peer has sent close_notify.
            SSLEOFError: the stream has ended without close_notify.
            SSLError: the handshake has failed, or the peer has sent an alert or invalid data
                (drain() of the filter then sends the alert, if there is one).
            Plain text that came before the error is returned first, and the next call raises. Each
            later call raises the same error. Nothing more can be written, except after close_notify
            in TLS 1.3.
            TypeError: data does not support the buffer protocol; nothing has changed.

        """
        plain = b"" if self.ended else self._decrypt(data)
        if plain or self._receive_error is None:
            return plain
        self._end_reported = True
        raise copy(self._receive_error)

    def compress(self, data: Buffer, /) -> bytes:
        """Return the messages that wait, then data as records.

        Raises:
            SSLWantReadError: nothing was taken: the handshake is not over.
            SSLError: nothing was taken: the connection has failed, or ended (see receive).

        """
        view = memoryview(data).cast("B")
        error = self._receive_error
        if view and error is not None:
            closed = isinstance(error, SSLZeroReturnError)
            # OpenSSL would write after the peer's close_notify in every version. There is no
            # version before the handshake is done.
            if not closed or (self._end_reported and self._sslobject.version() != "TLSv1.3"):
                raise copy(error)
        # Only the first write can find the handshake unfinished, so either all of the data is taken
        # or none.
        while view:
            view = view[self._sslobject.write(view) :]
        return self._outgoing.read()

    def flush(self) -> bytes:
        """Return the messages that wait, then close_notify, without waiting for the peer's.

        Raises:
            SSLWantReadError: the handshake is not over.
            SSLError: the connection has failed (see receive).

        """
        error = self._receive_error
        if error is not None:
            closed = isinstance(error, SSLZeroReturnError)
            # A handshake that the peer has ended will never be done.
            if not closed or self._sslobject.version() is None:
                raise copy(error)
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

    def _decrypt(self, data: Buffer) -> bytes:
        """Return the plain text of all complete records, and store the error that ended them."""
        if memoryview(data).nbytes:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        pieces: list[bytes] = []
        try:
            while piece := self._sslobject.read(_RECORD_SIZE):
                pieces.append(piece)
            self._receive_error = ssl_error(
                SSLZeroReturnError, SSL_ERROR_ZERO_RETURN, "the peer has sent close_notify"
            )
        except SSLWantReadError:
            pass
        except SSLError as exc:
            self._receive_error = copy(exc)
        return b"".join(pieces)

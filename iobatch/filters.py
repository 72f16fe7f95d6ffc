"""Filters: pipelines of compression, chunked coding and TLS for iob_write.

A Filter is a callback of iob_write. It gives what it is offered to its transform, keeps what comes
out in a batch of its own, and sends that on: to the next filter, to another callback, or to the
socket. When it holds too much it says "again". So does the next one to it, and thus pressure goes
up the pipeline by itself.
"""

from __future__ import annotations

import errno
from copy import copy
from functools import partial
from selectors import EVENT_READ
from ssl import (
    SSL_ERROR_WANT_READ,
    SSL_ERROR_ZERO_RETURN,
    SSLError,
    SSLWantReadError,
    SSLWantWriteError,
    SSLZeroReturnError,
)
from traceback import format_exception_only
from typing import TYPE_CHECKING, Any, Final, Protocol

from attrs import define, field, setters
from attrs.validators import ge

from iobatch._batch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch
from iobatch._send import iob_send
from iobatch._write import WRITE_LIMIT, iob_write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from ssl import MemoryBIO, SSLObject

    from typing_extensions import Buffer

__all__ = ["TLS", "Chunked", "Filter", "Transform"]

_RECORD: Final = 16 * 1024  # a read gives no more than one record has (RFC 8446, section 5.1)


class Transform(Protocol):
    """What a Filter works with: the shape of the standard library's compressor objects.

    zlib.compressobj(), bz2.BZ2Compressor(), lzma.LZMACompressor() and the compressors of zstd have
    it as they are.
    """

    def compress(self, data: Buffer, /) -> Buffer:
        """Take all of data, and return what output is ready, maybe none.

        b"" asks for what waits by itself, if anything does. Raising SSLWantReadError says that
        nothing was taken, because something has to be read first. The data is valid during the
        call only; it may be returned, though, in whole or in part.
        """

    def flush(self) -> Buffer:
        """End the stream, and return the rest of the output.

        It is called once, unless it raises SSLWantReadError, and nothing is called after it.
        """


@define(eq=False, on_setattr=setters.NO_OP)  # which would validate at each change of state
class Filter:
    """A callback of iob_write that sends what it is given through a transform, and on.

    What it has taken is its own: reset() of the batch where it came from does not take it back,
    and is no end of the stream. A filter that is dropped drops what it holds. It may keep output
    back to send more at once: what ends a message is drain(), what ends the stream is finish().

    An OSError, of the transform or from further on, is permanent: the batch gets it, and it stays
    in `error`. Any other exception propagates, once if it is the transform's: an OSError (EIO)
    that names it stays in `error`, as it does for what would mean "again" of a callback: a
    transform has nothing to wait for but SSLWantReadError. What a transform was given when it
    raised doesn't count as taken, but nobody knows what it made of it. Writing after finish() is a
    BrokenPipeError.

    Args:
        transform: what the bytes go through.
        then: where the output goes: another Filter, any other callback of iob_write, or None for
            the socket itself, by iob_send.
        high_water: a filter that holds so many bytes takes no input. So it never holds more than
            this and the output for one piece of input.

    Raises:
        ValueError: high_water is below 1.

    """

    _transform: Transform
    _then: Filter | Callable[[Any, memoryview], int | None] | None = None
    _high_water: int = field(default=256 * 1024, kw_only=True, validator=ge(1))
    # The output that is still to go on.
    _batch: IOBatch = field(init=False, factory=IOBatch)
    _finished: bool = field(init=False, default=False)
    # The transform has to read before it takes more.
    _starved: bool = field(init=False, default=False)
    # The last bytes taken were as many as one offer has: more are likely to follow.
    _streaming: bool = field(init=False, default=False)

    @property
    def bytesleft(self) -> int:
        """The bytes that this filter holds; those further on hold their own."""
        return self._batch.bytesleft

    @property
    def error(self) -> OSError | None:
        """The permanent error, of this filter or of one further on."""
        error = self._batch._error
        if error is None and isinstance(self._then, Filter):
            return self._then.error
        return error

    @property
    def wants(self) -> int:
        """What to wait for after IOB_AGAIN: selectors.EVENT_WRITE, or EVENT_READ (TLS)."""
        # Before all that is held went out, there is no answer to be read.
        if self._starved and not any(each._batch for each in self._pipeline()):
            return EVENT_READ
        return self._then.wants if isinstance(self._then, Filter) else self._batch.wants

    def __call__(self, sock: Any, view: memoryview) -> int:
        """Take bytes, and send on what comes of them: this is the callback, for iob_write to call.

        Returns:
            How many bytes were taken, all of them as a rule; or IOB_AGAIN (-1): wait for writing.

        Raises:
            SSLWantReadError: nothing was taken; wait for reading.
            OSError: nothing was taken; the permanent error.
            Exception: what else the transform, or the callback at the end, raises.

        """
        batch = self._batch
        full = batch._left >= self._high_water
        if full:
            self._push(sock)
            if batch._left >= self._high_water:
                # Maybe sock takes more, and is ready at once when it is waited for; but to move
                # more in this call would be unfair to others.
                return self._again()
        taken = self._take(sock, view)
        if taken < 0:
            self.drain(sock)  # its part of a handshake
            self._starved = True
            return self._again()
        streaming, self._streaming = self._streaming, taken >= WRITE_LIMIT
        # In the midst of a stream, a few large system calls cost much less than many.
        collect = streaming and self._streaming and self._then is None
        if not full and not (collect and batch._left < self._high_water):
            try:
                self._push(sock)
            except BaseException as exc:
                # To the caller nothing was taken: a second time would be wrong.
                self._fail(exc)
                raise
        return taken

    def drain(self, sock: Any) -> int:
        """Send on what is held, here and further on, and what transforms have waiting.

        That ends nothing: what a compressor keeps to itself stays there.

        Args:
            sock: as given to iob_write.

        Returns:
            n > 0: n bytes were moved on; call again.
            IOB_DONE (0): nothing is held; every byte was accepted at the end of the pipeline.
            IOB_AGAIN (-1): nothing was moved; wait until sock is ready for `wants`.
            IOB_ERROR (-3): nothing was moved, now or later: `error` says why.

        Raises:
            Exception: what a transform or the callback at the end raises, other than OSError.

        """
        if self.error is not None:
            return IOB_ERROR
        code = IOB_DONE
        if not self._finished and self._batch._left < self._high_water:
            code = self._run(sock, self._transform.compress, b"")
        return code if code == IOB_ERROR else self._onward(sock, Filter.drain) or code

    def finish(self, sock: Any, *, until: Filter | None = None) -> int:
        """End the stream: flush the transform, drain this filter, then finish the next one.

        Call it while it returns n > 0. After 0 it does nothing more, and returns 0.

        Args:
            sock: as given to iob_write.
            until: a filter further on, or this one, that is drained but stays open: the TLS of a
                connection, below the codings of one response.

        Returns:
            As drain().

        Raises:
            ValueError: until is not in this pipeline.
            Exception: as drain().

        """
        if until is not None and until not in self._pipeline():
            raise ValueError("until has to be a filter of this pipeline")
        if self is until:
            return self.drain(sock)
        if self.error is not None:
            return IOB_ERROR
        if not self._finished:
            if self._batch._left >= self._high_water:
                return self._push(sock)
            code = self._run(sock, self._transform.flush)
            if code == IOB_AGAIN:
                code = self.drain(sock) or IOB_AGAIN
                self._starved = True
            if code:
                return code
            self._finished = True
        return self._onward(sock, partial(Filter.finish, until=until))

    def _pipeline(self) -> Iterator[Filter]:
        each: Any = self
        while isinstance(each, Filter):
            yield each
            each = each._then

    def _check(self) -> None:
        """Raise what is in the way of taking anything."""
        error = self.error
        if error is not None:
            raise error
        if self._finished:
            raise BrokenPipeError(errno.EPIPE, "the filter has been finished")

    def _again(self) -> int:
        """Tell iob_write to wait, and for what."""
        self._check()
        if self.wants == EVENT_READ:
            raise SSLWantReadError(SSL_ERROR_WANT_READ, "the filter has to read first")
        return IOB_AGAIN

    def _take(self, sock: Any, view: memoryview) -> int:
        """Take bytes, unless this is full, without sending anything on."""
        self._check()
        if self._batch._left >= self._high_water:
            return IOB_AGAIN
        size = len(view)
        if self._run(sock, self._transform.compress, view) == IOB_DONE:
            return size
        self._check()
        return IOB_AGAIN

    def _run(self, sock: Any, method: Callable[..., Buffer], *data: Buffer) -> int:
        """Let the transform do something, and keep its output; return IOB_DONE or why not."""
        try:
            output = method(*data)
            # What is no bytes may be its input, or change when it is called again.
            self._batch.addbuf(output if type(output) is bytes else bytes(memoryview(output)))
        except SSLWantReadError:
            self._starved = True
            return IOB_AGAIN
        except BaseException as exc:
            if isinstance(exc, SSLError):
                # The alert that tells the peer why; there is no other time to send it.
                self._batch.addbuf(bytes(memoryview(self._transform.compress(b""))))
                self._push(sock)
            self._fail(exc)
            if isinstance(exc, OSError):
                return IOB_ERROR
            raise
        self._starved = False
        return IOB_DONE

    def _fail(self, exc: BaseException) -> None:
        again = isinstance(exc, BlockingIOError | SSLWantWriteError) or (
            isinstance(exc, TimeoutError) and exc.errno is None
        )
        if again or not isinstance(exc, OSError):
            # iob_write would take the former for "again".
            exc = OSError(errno.EIO, f"a filter broke: {format_exception_only(exc)[-1].strip()}")
        self._batch._fail(exc)

    def _push(self, sock: Any) -> int:
        """Move on what this filter holds, no more than one call may; return as drain() does."""
        if self._then is None:
            return iob_send(sock, self._batch)
        moved = nbytes = 0
        while moved < WRITE_LIMIT:
            # A callback may take less than it is offered, and more the next time.
            nbytes = iob_write(sock, self._batch, self._then, limit=WRITE_LIMIT - moved)
            if nbytes <= 0:
                break
            moved += nbytes
        return moved or nbytes

    def _onward(self, sock: Any, step: Callable[[Filter, Any], int]) -> int:
        """Move on what this filter holds, and when it holds nothing, do a step of the next one."""
        then = self._then
        if not isinstance(then, Filter):
            return self._push(sock)
        moved = 0
        if then._batch._left < then._high_water:
            # What the next one adds goes out with it, in one system call.
            moved = iob_write(sock, self._batch, then._take)
        if self._batch:
            return moved if moved > 0 else self._push(sock)
        code = step(then, sock)
        return moved if code == IOB_AGAIN and moved > 0 else code


class Chunked:
    """A transform to HTTP/1.1's chunked coding. Each piece of input becomes a chunk.

    Source: RFC 9112, section 7.1.
    """

    def compress(self, data: Buffer, /) -> bytes:
        """Return data as a chunk; no data is no chunk, as that would be the last one."""
        size = memoryview(data).nbytes
        return b"".join((b"%x\r\n" % size, data, b"\r\n")) if size else b""

    def flush(self) -> bytes:
        """Return the last chunk, and no trailers."""
        return b"0\r\n\r\n"


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
        """Return data as records, behind the messages that wait."""
        view = memoryview(data).cast("B")
        if view and self._ended is not None:
            raise copy(self._ended)
        # Only the first write can find a handshake unfinished, so all of the data is taken or
        # nothing.
        while view:
            view = view[self._sslobject.write(view) :]
        return self._outgoing.read()

    def flush(self) -> bytes:
        """Return what waits, with close_notify behind it. The peer's is not waited for."""
        if self._ended is not None and not isinstance(self._ended, SSLZeroReturnError):
            raise copy(self._ended)
        self._sslobject.do_handshake()  # nothing if it is done, else SSLWantReadError
        waiting = self._outgoing.pending
        try:
            self._sslobject.unwrap()
        except SSLWantReadError:
            pass
        except SSLError:
            # Data that nobody has read is in front of the peer's close_notify: that may be so.
            if self._outgoing.pending == waiting:
                raise
        return self._outgoing.read()

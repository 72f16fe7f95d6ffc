"""Filters: pipelines of compression, chunked coding and TLS for iob_write.

A Filter is a callback of iob_write. It gives what it is offered to its transform, keeps what comes
out in a batch of its own, and sends that on: to the next filter, to another callback, or to the
socket. When it holds too much it says "again". So does the next one to it, and thus pressure goes
up the pipeline by itself.
"""

from __future__ import annotations

import errno
from functools import partial
from selectors import EVENT_READ
from ssl import SSL_ERROR_WANT_READ, SSLError, SSLWantReadError
from traceback import format_exception_only
from typing import TYPE_CHECKING, Any, Protocol

from attrs import define, field, setters
from attrs.validators import ge

from iobatch._batch import IOBatch, core_of
from iobatch._core import IOB_AGAIN, IOB_DONE, IOB_ERROR
from iobatch._errors import is_again, is_interruption
from iobatch._send import iob_send
from iobatch._tls import TLS
from iobatch._write import WRITE_LIMIT, iob_write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Buffer

__all__ = ["TLS", "Chunked", "Filter", "Transform"]


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
    raised doesn't count as taken, but what it made of it is unknown. Writing after finish() is a
    BrokenPipeError.

    Args:
        transform: what the bytes go through.
        then: where the output goes: another Filter, any other callback of iob_write, or None for
            the socket itself, by iob_send.
        high_water: a filter that holds this number of bytes takes no input. It never holds more
            than this and the output for one piece of input.

    Raises:
        ValueError: high_water is below 1.

    """

    _transform: Transform
    then: Filter | Callable[[Any, memoryview], int | None] | None = None
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
        error = self._batch.error
        if error is None and isinstance(self.then, Filter):
            return self.then.error
        return error

    @property
    def wants(self) -> int:
        """What to wait for after IOB_AGAIN: selectors.EVENT_WRITE, or EVENT_READ (TLS)."""
        # Before all that is held went out, there is no answer to be read.
        if self._starved and not any(each.bytesleft for each in self._pipeline()):
            return EVENT_READ
        return self.then.wants if isinstance(self.then, Filter) else self._batch.wants

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
        full = batch.bytesleft >= self._high_water
        if full:
            self._push(sock)
            if batch.bytesleft >= self._high_water:
                # Maybe sock takes more, and is ready at once when it is waited for; but to move
                # more in this call would be unfair to others.
                return self._again()
        taken = self._take(sock, view)
        if taken < 0:
            self.drain(sock)  # its part of a handshake
            self._starved = True
            return self._again()
        streaming, self._streaming = self._streaming, taken >= WRITE_LIMIT
        # Within a stream, a few large system calls cost much less than many small ones.
        collect = streaming and self._streaming and self.then is None
        if not full and not (collect and batch.bytesleft < self._high_water):
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
        if not self._finished and self._batch.bytesleft < self._high_water:
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
            if self._batch.bytesleft >= self._high_water:
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
            each = each.then

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
        if self._batch.bytesleft >= self._high_water:
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
            handled = isinstance(exc, OSError) and not is_interruption(exc)
            self._fail(exc)
            if handled:
                return IOB_ERROR
            raise
        self._starved = False
        return IOB_DONE

    def _fail(self, exc: BaseException) -> None:
        if not isinstance(exc, OSError) or is_again(exc):
            # iob_write would take the latter for "again".
            exc = OSError(errno.EIO, f"a filter broke: {format_exception_only(exc)[-1].strip()}")
        core_of(self._batch).fail(exc)

    def _push(self, sock: Any) -> int:
        """Move on what this filter holds, no more than one call may; return as drain() does."""
        if self.then is None:
            return iob_send(sock, self._batch)
        moved = nbytes = 0
        while moved < WRITE_LIMIT:
            # A callback may take less than it is offered, and more the next time.
            nbytes = iob_write(sock, self._batch, self.then, limit=WRITE_LIMIT - moved)
            if nbytes <= 0:
                break
            moved += nbytes
        return moved or nbytes

    def _onward(self, sock: Any, step: Callable[[Filter, Any], int]) -> int:
        """Move on what this filter holds, and when it holds nothing, do a step of the next one."""
        then = self.then
        if not isinstance(then, Filter):
            return self._push(sock)
        # What the next one adds goes out with it, in one system call. A full one says "again".
        moved = iob_write(sock, self._batch, then._take)  # noqa: SLF001 # a Filter, too
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

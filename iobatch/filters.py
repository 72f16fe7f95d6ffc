"""Filters: pipelines of compression, chunked coding and TLS for iob_write.

A Filter is a callback of iob_write. It passes the bytes that it is offered to its transform, keeps
the output in a batch of its own, and sends that batch on: to the next filter, to another callback,
or to the socket. Backpressure: a filter that holds too many bytes answers "again"; then the filter
before it fills up too, and so on up the pipeline.
"""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from selectors import EVENT_READ
from ssl import SSL_ERROR_WANT_READ, SSLError, SSLWantReadError
from traceback import format_exception_only
from typing import TYPE_CHECKING, Any, Protocol

from iobatch._arguments import Buffer  # noqa: TC001 # for typing.get_type_hints
from iobatch._batch import IOBatch, core_of
from iobatch._core import COUNT_UNKNOWN, IOB_AGAIN, IOB_DONE, IOB_ERROR
from iobatch._errors import is_again, is_interruption, ssl_error, suppress_call_error
from iobatch._send import iob_send
from iobatch._tls import TLS
from iobatch._write import WRITE_LIMIT, WriteCallback, iob_write

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TLS", "Chunked", "Filter", "Transform"]


class Transform(Protocol):
    """The transform of a Filter, with the methods of the standard library's compressor objects.

    The objects of zlib.compressobj(), bz2.BZ2Compressor() and lzma.LZMACompressor() and the
    compressors of zstd are transforms as they are.
    """

    @abstractmethod
    def compress(self, data: bytes | memoryview, /) -> Buffer:
        """Take all of data, and return the output that is ready; it may be empty.

        Args:
            data: a view that is valid only during the call, but the method may return it or a part
                of it. The bytes object b"" requests the output that is ready without input, if any.

        Raises:
            SSLWantReadError: nothing was taken, because the transform must read first.

        """

    @abstractmethod
    def flush(self) -> Buffer:
        """End the stream, and return the rest of the output.

        Only Filter.finish calls it: once, and again only after it has raised SSLWantReadError,
        because it must read first. After it has returned, no method of the transform is called.
        """


class Filter:
    """A callback of iob_write that passes bytes through a transform, and sends the output on.

    Bytes that a filter has taken belong to the filter: reset() of the batch from which they came
    neither takes them back nor ends the stream. A filter that is garbage-collected drops the bytes
    it holds. A filter may hold output back to send more at once: call drain() at the end of a
    message, and finish() at the end of the stream.

    An OSError of the transform, of a later filter or of the callback at the end is permanent,
    unless it means "again": `error` keeps it, and the batch given to iob_write fails with it, in
    that call or in the next. Any other exception propagates. If the transform raised it, or if the
    callback at the end raised it in a call that took bytes, an OSError (EIO) that names it stays in
    `error`.

    A transform waits only by SSLWantReadError: the same EIO replaces any other OSError that means
    "again" when a callback raises it, such as BlockingIOError. Bytes given to a transform that
    raised do not count as taken, but it is unknown whether the transform has used them. A write
    after finish() fails with BrokenPipeError.

    Args:
        transform: the object that the bytes go through.
        then: the destination of the output: another Filter, any other callback of iob_write, or
            None for the socket itself, by iob_send.
        high_water: a number of bytes, at least 1. A filter that holds at least this number of bytes
            takes no input. It never holds more than this number plus the output for one piece of
            input.

    Raises:
        ValueError: high_water is below 1.

    """

    __slots__ = (
        "__weakref__",
        "_batch",
        "_finished",
        "_high_water",
        "_needs_read",
        "_streaming",
        "_transform",
        "then",
    )

    then: Filter | WriteCallback[Any] | None

    def __init__(
        self,
        transform: Transform,
        then: Filter | WriteCallback[Any] | None = None,
        *,
        high_water: int = 256 * 1024,
    ) -> None:
        """Make a filter that holds no bytes."""
        if high_water < 1:
            raise ValueError(f"high_water must be at least 1, not {high_water}")
        self._transform = transform
        self.then = then
        self._high_water = high_water
        # The output that is not sent on yet.
        self._batch = IOBatch()
        self._finished = False
        # The transform must read before it takes more.
        self._needs_read = False
        # The last input filled a whole offer of WRITE_LIMIT bytes: more is likely to follow.
        self._streaming = False

    def __repr__(self) -> str:
        return f"<Filter through {self._transform!r}, {self._batch!r}, then {self.then!r}>"

    @property
    def bytesleft(self) -> int:
        """The number of bytes that this filter holds; later filters count their own."""
        return self._batch.bytesleft

    @property
    def bytessent(self) -> int:
        """The number of bytes that have left this filter since it was made."""
        return self._batch.bytessent

    @property
    def error(self) -> OSError | None:
        """The permanent error of this filter or of a later one, or None."""
        error = self._batch.error
        if error is None and isinstance(self.then, Filter):
            return self.then.error
        return error

    @property
    def wants(self) -> int:
        """The event to wait for after IOB_AGAIN: selectors.EVENT_WRITE, or EVENT_READ (TLS)."""
        # The peer can answer only after all held bytes are sent.
        if self._needs_read and not any(each.bytesleft for each in self._pipeline()):
            return EVENT_READ
        return self.then.wants if isinstance(self.then, Filter) else self._batch.wants

    def __call__(self, sock: Any, view: memoryview) -> int:
        """Take bytes, and send on the output for them. This is the callback that iob_write calls.

        Returns:
            The length of the view: all of it was taken; or IOB_AGAIN (-1): nothing was taken; wait
            until sock is writable.

        Raises:
            SSLWantReadError: nothing was taken; wait for reading.
            BrokenPipeError: nothing was taken: the filter was finished before.
            OSError: nothing was taken; the error is permanent.
            Exception: any other exception of the transform, or of the callback at the end.

        """
        batch = self._batch
        full = batch.bytesleft >= self._high_water
        if full:
            self._forward(sock)
            if batch.bytesleft >= self._high_water:
                # sock may take more, and a wait for it may end at once, but moving more bytes in
                # this call would be unfair to other connections.
                return self._answer_again()
        taken = self._accept(sock, view)
        if taken < 0:
            self.drain(sock)  # sends the output of a handshake
            self._needs_read = True
            return self._answer_again()
        streaming, self._streaming = self._streaming, taken >= WRITE_LIMIT
        # Within a stream, few large system calls cost much less than many small ones.
        hold_back = streaming and self._streaming and self.then is None
        if not full and not (hold_back and batch.bytesleft < self._high_water):
            try:
                self._forward(sock)
            except BaseException as exc:
                # iob_write counts these bytes as not taken, and would offer them again: so this
                # filter fails.
                self._fail(exc)
                raise
        return taken

    def drain(self, sock: Any) -> int:
        """Send on the bytes that this filter and later filters hold.

        Also send the output that transforms have ready without input, such as a message of a TLS
        handshake. It ends no stream: bytes inside a compressor stay there. BatchWriter.flush posts
        such a push; BatchWriter.drain is a wait, and sends nothing.

        Args:
            sock: as given to iob_write.

        Returns:
            n > 0: n bytes were moved on; call again.
            IOB_DONE (0): no filter holds bytes; the end of the pipeline has accepted every byte.
            IOB_AGAIN (-1): wait until sock is ready for `wants`, and call again. A filter that is
                full answers so even if it has moved some of its bytes on.
            IOB_ERROR (-3): `error` is the reason. A full filter may have sent bytes that it held
                before another failed. No later call moves anything.

        Raises:
            Exception: any exception except OSError, of a transform or of the callback at the end.

        """
        if self.error is not None:
            return IOB_ERROR
        code = IOB_DONE
        if not self._finished and self._batch.bytesleft < self._high_water:
            code = self._run_transform(sock, b"")
        return code if code == IOB_ERROR else self._forward_and_step(sock, Filter.drain) or code

    def finish(self, sock: Any, *, until: Filter | None = None) -> int:
        """End the stream: flush the transform, drain this filter, then finish the next one.

        Call it while it returns n > 0. After it has returned 0, more calls do nothing and return 0.

        Args:
            sock: as given to iob_write.
            until: this filter or a later one. It is drained, but it and the filters after it stay
                open: for example, the TLS of a connection, after the codings of one response.

        Returns:
            As for drain().

        Raises:
            ValueError: until is not in this pipeline.
            Exception: as for drain().

        """
        if until is not None and until not in self._pipeline():
            raise ValueError("until must be a filter of this pipeline")
        if self is until:
            return self.drain(sock)
        if self.error is not None:
            return IOB_ERROR
        if not self._finished:
            if self._batch.bytesleft >= self._high_water:
                return self._forward(sock)
            code = self._run_transform(sock, None)
            if code == IOB_AGAIN:
                code = self.drain(sock) or IOB_AGAIN
                self._needs_read = True
            if code:
                return code
        return self._forward_and_step(sock, partial(Filter.finish, until=until))

    def _pipeline(self) -> Iterator[Filter]:
        """Yield this filter and the filters after it."""
        each: Any = self
        while isinstance(each, Filter):
            yield each
            each = each.then

    def _check_writable(self) -> None:
        """Raise the error that prevents this filter from taking bytes, if there is one."""
        error = self.error
        if error is not None:
            raise error
        if self._finished:
            raise BrokenPipeError(errno.EPIPE, "the filter is finished")

    def _answer_again(self) -> int:
        """Return IOB_AGAIN, or raise SSLWantReadError if this filter wants to read."""
        self._check_writable()
        if self.wants == EVENT_READ:
            raise ssl_error(SSLWantReadError, SSL_ERROR_WANT_READ, "the filter must read first")
        return IOB_AGAIN

    def _accept(self, sock: Any, view: memoryview) -> int:
        """Take bytes without sending any on; return their number, or IOB_AGAIN for none."""
        self._check_writable()
        if self._batch.bytesleft >= self._high_water:
            return IOB_AGAIN
        size = len(view)
        return size if self._run_transform(sock, view) == IOB_DONE else IOB_AGAIN

    def _run_transform(self, sock: Any, data: bytes | memoryview | None) -> int:
        """Give data to the transform, or flush it if data is None, and keep the output.

        Returns:
            IOB_DONE; IOB_AGAIN: the transform must read first; IOB_ERROR: `error` is the reason.

        Raises:
            BaseException: the transform's, if it is not an OSError; a signal handler's.

        """
        core = core_of(self._batch)
        core.error = COUNT_UNKNOWN  # rule 3 of _core: it stays if the steps below are interrupted
        try:
            transform = self._transform
            output = transform.flush() if data is None else transform.compress(data)
            # Output that is not bytes is copied: it may be the input, or change at the next call.
            self._batch.addbuf(output if type(output) is bytes else bytes(memoryview(output)))
        except BaseException as exc:
            handled = isinstance(exc, OSError) and not is_interruption(exc)
            if handled and isinstance(exc, SSLWantReadError):
                core.error = None
                self._needs_read = True
                return IOB_AGAIN
            if handled and isinstance(exc, SSLError):
                self._send_alert(sock)
            self._fail(exc)
            if handled:
                return IOB_ERROR
            raise
        # One step with the removal of the error: no interruption leads to a second flush.
        core.error = None
        self._finished = data is None
        self._needs_read = False
        return IOB_DONE

    def _send_alert(self, sock: Any) -> None:
        """Send the alert that reports an SSLError to the peer, if that is possible at once.

        This filter sends nothing after it. The error to report is the first one, so an error here
        is ignored.
        """
        core = core_of(self._batch)
        with suppress_call_error(Exception):
            self._batch.addbuf(bytes(memoryview(self._transform.compress(b""))))
            core.error = None
            try:
                self._forward(sock)
            finally:
                core.error = COUNT_UNKNOWN

    def _fail(self, exc: BaseException) -> None:
        """Store the permanent error."""
        core = core_of(self._batch)
        core.error = COUNT_UNKNOWN  # it stays if the memory for the message is missing
        if not isinstance(exc, OSError) or is_again(exc) or is_interruption(exc):
            # An OSError that means "again" would make iob_write retry. The exception of a signal
            # handler is recognized by its traceback, which a stored error does not keep.
            reason = "".join(format_exception_only(exc)).strip()
            exc = OSError(errno.EIO, f"the filter failed: {reason}")
        core.fail(exc)

    def _forward(self, sock: Any) -> int:
        """Send on the bytes this filter holds, within the limit of one call; return as drain()."""
        if self.then is None:
            return iob_send(sock, self._batch)
        moved = nbytes = 0
        while moved < WRITE_LIMIT:
            # A callback may take a part of one offer and then all of the next, so a partial write
            # does not end the loop.
            nbytes = iob_write(sock, self._batch, self.then, limit=WRITE_LIMIT - moved)
            if nbytes <= 0:
                break
            moved += nbytes
        return moved or nbytes

    def _forward_and_step(self, sock: Any, step: Callable[[Filter, Any], int]) -> int:
        """Send on the bytes this filter holds; when it holds none, do a step of the next one."""
        then = self.then
        if not isinstance(then, Filter):
            return self._forward(sock)
        # _accept sends nothing on, so these bytes and the next filter's own output go out in one
        # system call. It returns IOB_AGAIN if that filter is full.
        moved = iob_write(sock, self._batch, then._accept)  # noqa: SLF001 # then is a Filter too
        if self._batch:
            return moved if moved > 0 else self._forward(sock)
        code = step(then, sock)
        return moved if code == IOB_AGAIN and moved > 0 else code


class Chunked:
    """A transform to the chunked coding of HTTP/1.1: it makes each piece of input a chunk.

    Source: RFC 9112, section 7.1.
    """

    def compress(self, data: Buffer, /) -> bytes:
        """Return data as a chunk, or b"" for empty data: an empty chunk would end the body.

        Raises:
            TypeError: data does not support the buffer protocol, or is not C-contiguous.

        """
        size = memoryview(data).nbytes
        return b"".join((b"%x\r\n" % size, data, b"\r\n")) if size else b""

    def flush(self) -> bytes:
        """Return the last chunk, without trailers."""
        return b"0\r\n\r\n"

"""Posted writes on an asyncio loop: batches go out in the order in which they were posted."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextvars import copy_context
from operator import index
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Final, final

from attrs import define

from iobatch._batch import IOB_ERROR, IOBatch
from iobatch._cold import joined
from iobatch._entries import MAX_FD, flatten, natural
from iobatch._operation import (
    DONE,
    CancellationType,
    Listener,
    WriteOperation,
    WriteStatus,
    check_callable,
    either,
)
from iobatch._posted import CLOSED, IDLE, SENDING, WAITING, PostedWrites
from iobatch._send import _NOSIGNAL, _ended, iob_send
from iobatch._stream import send_to_stream

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

__all__ = ["BatchWriter", "CancellationType", "WriteOperation", "WriteStatus", "send_to_stream"]

BufferListener = Callable[["BatchWriter", Any, int], object]
# A number of seconds; None: no bound; `...`: what it was before.
Seconds = float | EllipsisType | None
_NO_FLAGS: Final = 0


@final
@define(eq=False, repr=False)
class BatchWriter(PostedWrites):
    """Sends batches over a socket, one behind the other, on the running asyncio loop.

    The socket stays the caller's, who may read from it meanwhile, and closes it after the writer.
    Nobody else may write to it, and it may not belong to an asyncio transport. A writer belongs to
    the thread of its loop.

    Args:
        sock: a non-blocking socket. On a message socket (datagram, seqpacket) each write is one
            message.
        through: write through this callback of iob_write, as a rule a Filter. An operation is done
            when the filter has passed on all of its bytes. A writer can't read: if the filter has
            to (a TLS handshake), the operation ends with SSLWantReadError.
        timeout: seconds from posting an operation until it must be done; None: no bound.
        stall_timeout: seconds in which something must be sent while an operation is pending,
            however slowly; None: no bound.
        limit: the most bytes to send in one turn of the loop; None: SEND_LIMIT, or WRITE_LIMIT
            with a filter.
        high_water: drain() waits while so many bytes, or more, are pending.
        user_info: the user_info of operations that are given none.

    Attributes:
        sock: as above.
        timeout, stall_timeout, user_info: as above; they may be set for later operations.
        status: how the operation ended whose callback of write_buffer was called last.

    Raises:
        ValueError: sock is not non-blocking; limit or high_water is below 1; a timeout is negative.
        TypeError: sock is a TLS socket, and there is no through for it.
        RuntimeError: no loop is running.

    """

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        for seconds in (self.timeout, self.stall_timeout):
            if _seconds(seconds, None) is not seconds:
                raise TypeError("a writer's timeout is a number of seconds, or None")

    def write(
        self,
        batch: IOBatch,
        *,
        flags: int = 0,
        exactly: int | None = None,
        timeout: Seconds = ...,
        stall_timeout: Seconds = ...,
        on_complete: Listener | None = None,
        on_error: Listener | None = None,
        user_info: Any = ...,
    ) -> WriteOperation:
        """Post a write of all of a batch, and return at once.

        It takes the batch's entries, as IOBatch.extend does: the batch is empty then, and may be
        filled again. Writes go out in the order in which they were posted. What the socket takes
        at once is sent inside this call, and the operation may be done when it returns; its
        callbacks are called by the loop all the same. A file that is not in the page cache is
        read by a thread first, and the loop goes on meanwhile.

        An operation that ends before its first byte was sent just leaves the queue. One that ends
        between its first and its last ends those behind it too, as ABORTED: nothing may follow a
        truncated body. What was not sent is in the batch of each, and can be posted again.

        Args:
            batch: what to send.
            flags: MSG_* flags for every send(2); not with a filter.
            exactly: send only so many bytes; the rest goes into the operation's batch. Not for
                messages.
            timeout: seconds until it must be done; None: no bound; `...`: the writer's.
            stall_timeout: seconds in which the writer must send something; likewise.
            on_complete: called with the operation when it is done; and also when it ended
                otherwise, if there is no on_error.
            on_error: called with the operation when it ended otherwise.
            user_info: the operation's user_info; `...`: the writer's.

        Raises:
            OSError: ECANCELED: the writer was closed, or cancelled as TERMINAL.
            ValueError: exactly is negative, more than the batch has, less than what a callback
                was offered and must be offered again, or given for a message; a timeout is
                negative; there are flags, but also a filter.
            TypeError: batch is no IOBatch; a callback can't be called, or is a coroutine function.
            OverflowError: flags are more than an int of C has.
            RuntimeError: batch is being sent: this is its own hook or callback.

        Source: WSASend; Boost.Asio, async_write.
        """
        if (
            self._state == IDLE
            and self._direct
            and type(batch) is IOBatch
            and not batch._busy
            and 0 < batch._left <= self._credit
            and timeout is ...
            and stall_timeout is ...
            and exactly is None
            and on_complete is on_error is None
            and flags is _NO_FLAGS
            and (
                (data := joined(batch)) is not None
                or self._guard.reach(batch, batch._left) == batch._left
            )
        ):
            # Most writes go this way: nothing waits, and the socket takes them whole. What they
            # cost is what the writer costs, so nothing is called or made that they can do without.
            error = rest = None
            self._state = SENDING
            try:
                if data is not None:
                    batch._busy = True
                    nbytes = self.sock.send(data, _NOSIGNAL)
                else:
                    rest = IOBatch()
                    rest.extend(batch)
                    nbytes = iob_send(self.sock, rest)
            except OSError as exc:
                nbytes = 0
                error = exc
            except BaseException:
                # A signal's handler, or no memory: how much was sent is not known.
                batch._busy = False
                (batch if rest is None else rest).reset()
                self._shut()
                raise
            batch._busy = False
            info = self.user_info if user_info is ... else user_info
            # What a signal's handler has added to the batch meanwhile is sent with it.
            if rest or (rest is None and nbytes != batch._left):
                return self._go_on(batch, rest, info, nbytes, error)
            if rest is None:
                batch._left = batch._pin = 0
                batch._joinable = True
                batch._queue.clear()  # a finalizer of a file object may add something
            self._credit -= nbytes
            self._state = IDLE
            if self._credit < self._scarce and self._asked < 0:
                self._save()
            if self._queue:  # hooks have posted it
                self._pump()
            return WriteOperation(self, info, nbytes, nbytes, DONE, None, nbytes)
        return self._post(
            batch,
            flags=flags,
            exactly=exactly,
            timeout=timeout,
            stall_timeout=stall_timeout,
            listener=either(on_complete, on_error),
            user_info=user_info,
        )

    def write_some(
        self,
        batch: IOBatch,
        *,
        flags: int = 0,
        timeout: Seconds = ...,
        stall_timeout: Seconds = ...,
        on_complete: Listener | None = None,
        on_error: Listener | None = None,
        user_info: Any = ...,
    ) -> WriteOperation:
        """Post a write that is done as soon as some of the batch was sent.

        How much is in the operation's bytes_transferred, the rest in its batch, and what was posted
        behind it follows at once. Args and Raises: as for write().

        Source: Boost.Asio, async_write_some.
        """
        return self._post(
            batch,
            some=True,
            flags=flags,
            timeout=timeout,
            stall_timeout=stall_timeout,
            listener=either(on_complete, on_error),
            user_info=user_info,
        )

    def write_buffer(
        self,
        data: Buffer,
        callback: BufferListener,
        *,
        start: int = 0,
        end: int | None = None,
        timeout: Seconds = ...,
        error_callback: BufferListener | None = None,
        user_info: Any = ...,
    ) -> WriteOperation:
        """Post a write of data[start:end].

        When it has ended, the loop calls callback(writer, data, nbytes): on success, on a timeout,
        and where there is no error_callback in any other case too. The writer's `status` tells
        then how it ended.

        Args:
            data: a C-contiguous buffer; held, not copied, until it is sent.
            callback: see above.
            start: where to begin, in bytes.
            end: where to end, in bytes; None: with the last.
            timeout: as for write(); but it stays for later operations.
            error_callback: called in place of callback when the operation failed, was cancelled
                or was aborted.
            user_info: as for write(); but it stays for later operations.

        Raises:
            OSError, ValueError: as for write().
            TypeError: data has no buffer; a callback can't be called.
            BufferError: data is not C-contiguous.

        Source: LispWorks, async-io-state-write-buffer.
        """
        if callback is None:
            raise TypeError("a callback is required")
        check_callable(callback)
        check_callable(error_callback)

        def tell(operation: WriteOperation) -> None:
            self.status = operation.status
            if error_callback is None or self.status in (DONE, WriteStatus.TIMEOUT):
                callback(self, data, operation.bytes_transferred)
            else:
                error_callback(self, data, operation.bytes_transferred)

        batch = IOBatch()
        batch.addbuf(memoryview(flatten(data))[start:end])
        operation = self._post(batch, timeout=timeout, listener=tell, user_info=user_info)
        self.timeout = _seconds(timeout, self.timeout)
        self.user_info = operation.user_info
        return operation

    def finish(self) -> WriteOperation:
        """Post the end of the stream: what the filter says at its end, as TLS does close_notify.

        The operation has no bytes of its own. It is done when all that was posted before is sent,
        and all that the filter has to say at the end. The filter takes no writes after it. Without
        a filter there is nothing to end, and it is done when it is its turn.

        Raises:
            OSError: as for write().

        """
        return self._post(IOBatch(), finishes=True)

    async def drain(self) -> None:
        """Wait until less than high_water bytes are pending.

        Raises:
            Exception: the first error or timeout of an operation that had no callback, unless
                somebody awaited it: so he who only posts and drains learns of it, once.

        """
        while self._state == WAITING and self.pending >= self._high_water:
            await self._change()
        self._raise_unheard()

    def cancel(self, kind: CancellationType = CancellationType.PARTIAL) -> bool:
        """Cancel all pending operations, in their order.

        Args:
            kind: TERMINAL: close the writer as well. TOTAL: cancel only those of which nothing was
                sent; the others go on.

        Returns:
            Whether there were any, and all were cancelled.

        Raises:
            RuntimeError: this is a hook or callback of a batch that this writer is sending.

        """
        kind = CancellationType(kind)
        self._refuse_if_sending()
        operations = list(self._queue)
        if kind is CancellationType.TOTAL:
            operations = [operation for operation in operations if not operation._touched]
        cancelled = 0 < len(operations) == len(self._queue)
        for operation in operations:
            self._end(operation, WriteStatus.CANCELLED)
        self._settle()
        if kind is CancellationType.TERMINAL:
            self._shut()
        return cancelled

    def close(self) -> None:
        """End all pending operations as ABORTED, and take no more.

        What the filter still holds is not sent: await finish() before. The socket stays open. More
        calls do nothing.

        Raises:
            RuntimeError: this is a hook or callback of a batch that this writer is sending.

        """
        self._refuse_if_sending()
        self._shut()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait until nothing is pending, unless there is an exception; then close.

        Raises: as drain().
        """
        try:
            while exc_type is None and self._state == WAITING:
                await self._change()
        finally:
            self._shut()
        if exc_type is None:
            self._raise_unheard()

    def _post(
        self,
        batch: IOBatch,
        *,
        flags: int = 0,
        exactly: int | None = None,
        some: bool = False,
        finishes: bool = False,
        timeout: Seconds = ...,
        stall_timeout: Seconds = ...,
        listener: Listener | None = None,
        user_info: Any = ...,
    ) -> WriteOperation:
        """Check what was given, and queue an operation."""
        if self._state == CLOSED:
            raise OSError(errno.ECANCELED, "the writer is closed")
        if not isinstance(batch, IOBatch):
            raise TypeError(f"an IOBatch is required, not {type(batch).__name__!r}")
        flags = index(flags)
        if flags and self._through is not None:
            raise ValueError("flags are for a socket; a filter knows none")
        if not -MAX_FD <= flags <= MAX_FD:
            raise OverflowError(f"flags are an int of C: {flags}")
        if exactly is not None:
            if self._messages:
                raise ValueError("a message is sent whole")
            exactly = natural(exactly, "exactly")
            if exactly > batch.bytesleft:
                raise ValueError(f"the batch has {batch.bytesleft} bytes, not {exactly}")
            if exactly < batch._pin:
                raise ValueError(f"{batch._pin} bytes were offered before, and must be again")
        timeout = _seconds(timeout, self.timeout)
        stall_timeout = _seconds(stall_timeout, self.stall_timeout)
        rest = IOBatch()
        rest.extend(batch)
        most = rest.bytesleft if exactly is None else exactly
        operation = WriteOperation(
            self,
            self.user_info if user_info is ... else user_info,
            min(1, most) if some else most,
            most,
            flags=flags,
            finishes=finishes,
            batch=rest,
        )
        if listener is not None:
            operation._listen((listener, copy_context()))
        self._enqueue(operation)
        self._start(operation, timeout, stall_timeout)
        return operation

    def _go_on(
        self,
        batch: IOBatch,
        rest: IOBatch | None,
        info: object,
        nbytes: int,
        error: OSError | None,
    ) -> WriteOperation:
        """Queue an operation that write() has begun, but could not complete."""
        if rest is None:
            rest = IOBatch()
            rest.extend(batch)
            if error is None:
                rest._advance(nbytes)
            else:
                nbytes = _ended(rest, error)
        size = rest.bytessent + rest.bytesleft
        operation = WriteOperation(self, info, size, size, batch=rest)
        self._enqueue(operation)
        self._queue.move_to_end(operation, last=False)  # hooks may have posted others
        if nbytes == IOB_ERROR:
            self._stop(operation, WriteStatus.ERROR, rest.error)
            self._state = IDLE
        else:
            self._credit -= rest.bytessent
            # To try once more is for the loop, when it says that the socket is writable.
            self._settle()
        self._start(operation, self.timeout, self.stall_timeout)
        return operation


def _seconds(seconds: Seconds, before: float | None) -> float | None:
    """Return a timeout; `...` is what it was before."""
    if seconds is ...:
        return before
    if seconds is not None and not seconds >= 0:  # not a number, either
        raise ValueError(f"a timeout must not be negative: {seconds}")
    return seconds

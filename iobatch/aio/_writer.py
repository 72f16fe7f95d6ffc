"""BatchWriter: posts writes on the running event loop, which go out in the order of posting."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from contextvars import copy_context
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Final, final

from iobatch._arguments import as_byte_view, check_flags, check_limit, check_nonnegative
from iobatch._batch import IOBatch, core_of
from iobatch._send import SEND_LIMIT
from iobatch._write import WRITE_LIMIT
from iobatch.aio._budget import TurnBudget
from iobatch.aio._operation import (
    DONE,
    PENDING,
    CancellationType,
    Listener,
    PostedWrite,
    WriteOperation,
    WriteStatus,
    check_callable,
    either,
)
from iobatch.aio._sender import CLOSED, STATE_NAMES, WAITING, WriteSender

if TYPE_CHECKING:
    import socket
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

BufferListener = Callable[["BatchWriter", Any, int], object]
# A number of seconds; None: no bound; `...`: what it was before.
Seconds = float | EllipsisType | None
_NO_FLAGS: Final = 0


@final
class BatchWriter:
    """Sends batches over a socket, one after the other, on the running asyncio loop.

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
        high_water: drain() waits while at least this number of bytes is pending.
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

    __slots__ = (
        "__weakref__",
        "_sender",
        "_through",
        "sock",
        "stall_timeout",
        "status",
        "timeout",
        "user_info",
    )

    sock: socket.socket
    timeout: float | None
    stall_timeout: float | None
    user_info: Any
    status: WriteStatus

    def __init__(
        self,
        sock: socket.socket,
        *,
        through: Callable[[Any, memoryview], int | None] | None = None,
        timeout: float | None = None,
        stall_timeout: float | None = None,
        limit: int | None = None,
        high_water: int = 64 * 1024,
        user_info: Any = None,
    ) -> None:
        """Make a writer without writes."""
        loop = asyncio.get_running_loop()
        if sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")
        if through is None and hasattr(sock, "do_handshake"):
            raise TypeError(
                "a TLS socket's batches go through its send: through=ssl.SSLSocket.send"
            )
        if high_water < 1:
            raise ValueError(f"high_water must be at least 1: {high_water}")
        for seconds in (timeout, stall_timeout):
            if _seconds(seconds, None) is not seconds:
                raise TypeError("a writer's timeout is a number of seconds, or None")
        if limit is None:
            limit = SEND_LIMIT if through is None else WRITE_LIMIT
        self.sock = sock
        self.timeout = timeout
        self.stall_timeout = stall_timeout
        self.user_info = user_info
        self.status = PENDING
        self._through = through
        self._sender = WriteSender(
            loop, sock, through, TurnBudget(loop, check_limit(limit)), high_water
        )

    @property
    def pending(self) -> int:
        """The bytes that were posted and are not sent yet, with those that filters hold."""
        return self._sender.pending

    def __repr__(self) -> str:
        sender = self._sender
        return (
            f"<{type(self).__name__} on descriptor {self.sock.fileno()}: "
            f"{STATE_NAMES[sender.state]}, {len(sender.queue.writes)} operations, "
            f"{sender.pending} bytes pending>"
        )

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
        between its first and its last ends those after it too, as ABORTED: nothing may follow a
        truncated body. What was not sent is in the batch of each, and can be posted again.

        Args:
            batch: what to send.
            flags: MSG_* flags for every send(2); not with a filter.
            exactly: send only this number of bytes; the rest goes into the operation's batch. Not
                for messages.
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
            timeout is ...
            and stall_timeout is ...
            and exactly is None
            and on_complete is on_error is None
            and flags is _NO_FLAGS
            and type(batch) is IOBatch
        ):
            operation = self._sender.send_at_once(
                batch,
                self.user_info if user_info is ... else user_info,
                self.timeout,
                self.stall_timeout,
            )
            if operation is not None:
                return operation
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
        after it follows at once. Args and Raises: as for write().

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
        batch.addbuf(memoryview(as_byte_view(data))[start:end])
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
                somebody awaited it. So code that only posts and drains still sees it, once.

        """
        sender = self._sender
        while sender.state == WAITING and sender.pending >= sender.high_water:
            await sender.change()
        sender.queue.raise_unretrieved()

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
        return self._sender.cancel_all(kind)

    def close(self) -> None:
        """End all pending operations as ABORTED, and take no more.

        What the filter still holds is not sent: await finish() before. The socket stays open. More
        calls do nothing.

        Raises:
            RuntimeError: this is a hook or callback of a batch that this writer is sending.

        """
        self._sender.check_not_busy()
        self._sender.close()

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
        sender = self._sender
        try:
            while exc_type is None and sender.state == WAITING:
                await sender.change()
        finally:
            sender.close()
        if exc_type is None:
            sender.queue.raise_unretrieved()

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
        sender = self._sender
        if sender.state == CLOSED:
            raise OSError(errno.ECANCELED, "the writer is closed")
        if not isinstance(batch, IOBatch):
            raise TypeError(f"an IOBatch is required, not {type(batch).__name__!r}")
        flags = check_flags(flags)
        if flags and self._through is not None:
            raise ValueError("flags are for a socket; a filter knows none")
        if exactly is not None:
            exactly = self._check_exactly(exactly, batch)
        timeout = _seconds(timeout, self.timeout)
        stall_timeout = _seconds(stall_timeout, self.stall_timeout)
        write = PostedWrite(sender, self.user_info if user_info is ... else user_info)
        write.flags = flags
        write.finishes = finishes
        write.operation = operation = WriteOperation(write)
        if listener is not None:
            write.listen((listener, copy_context()))
        write.batch = rest = IOBatch()
        rest.extend(batch)
        try:
            most = rest.bytesleft if exactly is None else exactly
            write.max_bytes = most
            write.complete_at = min(1, most) if some else most
            sender.post(write, timeout, stall_timeout)
        except BaseException:
            # A signal handler's: what was taken is not sent, and nothing may follow it.
            sender.close()
            raise
        return operation

    def _check_exactly(self, exactly: int, batch: IOBatch) -> int:
        if self._sender.messages:
            raise ValueError("a message is sent whole")
        exactly = check_nonnegative(exactly, "exactly")
        if exactly > batch.bytesleft:
            raise ValueError(f"the batch has {batch.bytesleft} bytes, not {exactly}")
        pinned = core_of(batch).pinned
        if exactly < pinned:
            raise ValueError(f"{pinned} bytes were offered before, and must be again")
        return exactly


def _seconds(seconds: Seconds, before: float | None) -> float | None:
    """Return a timeout; `...` is what it was before."""
    if seconds is ...:
        return before
    if seconds is not None and not seconds >= 0:  # not a number, either
        raise ValueError(f"a timeout must not be negative: {seconds}")
    return seconds

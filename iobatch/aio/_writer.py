"""BatchWriter: posts writes on the running event loop, and sends them in the order of posting."""

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
from iobatch._target import check_more
from iobatch._write import WRITE_LIMIT
from iobatch.aio._budget import TurnBudget
from iobatch.aio._operation import (
    DONE,
    PENDING,
    CancellationType,
    DoneCallback,
    PostedWrite,
    WriteOperation,
    WriteStatus,
    check_callable,
    combine_callbacks,
)
from iobatch.aio._sender import CLOSED, STATE_NAMES, WAITING, WriteSender

if TYPE_CHECKING:
    import socket
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

BufferDoneCallback = Callable[["BatchWriter", Any, int], object]
# A number of seconds; None: no bound; `...`: the writer's value.
Seconds = float | EllipsisType | None
_NO_FLAGS: Final = 0


@final
class BatchWriter:
    """Sends batches over a socket, one after the other, on the running asyncio loop.

    The socket belongs to the caller. The caller may read from the socket meanwhile, and must close
    it only after closing the writer. Nothing else may write to the socket, and it must not belong
    to an asyncio transport. A writer may be used only in the thread of its loop.

    Args:
        sock: a non-blocking socket. On a message socket (datagram, seqpacket) each write is one
            message.
        through: a callback of iob_write, normally a Filter, that all bytes go through. An operation
            is done when the filter has passed on all of its bytes, or another callback has taken
            them. A writer does not read: if the filter or callback must read (a TLS handshake), the
            operation ends with SSLWantReadError.
        timeout: seconds from the posting of an operation until it must be done; None: no bound.
        stall_timeout: seconds within which the writer must send some bytes while an operation is
            pending; None: no bound.
        limit: the most bytes to send in one turn of the loop; None: SEND_LIMIT, or WRITE_LIMIT
            with through (in iob_send and iob_write None is no limit).
        high_water: drain() waits while at least this number of bytes is pending.
        user_info: the user_info of operations that are posted without one.

    Attributes:
        sock: as above.
        timeout, stall_timeout, user_info: as above; they may be set for later operations.
        status: the final status of the operation whose write_buffer() callback was called last.

    Raises:
        ValueError: sock is blocking, or has a timeout; limit or high_water is below 1; a timeout is
            negative or NaN.
        TypeError: sock is a TLS socket and through is None; a timeout is `...`.
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
        """Create a writer with an empty queue."""
        loop = asyncio.get_running_loop()
        if sock.gettimeout() != 0:
            raise ValueError("sock must be non-blocking")
        if through is None and hasattr(sock, "do_handshake"):
            raise TypeError("a TLS socket needs through=ssl.SSLSocket.send")
        if high_water < 1:
            raise ValueError(f"high_water must be at least 1, not {high_water}")
        for seconds in (timeout, stall_timeout):
            if _resolve_timeout(seconds, None) is not seconds:
                raise TypeError("a writer's timeout must be a number of seconds or None")
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
        """The number of bytes posted and not sent yet, including those that filters hold."""
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
        on_complete: DoneCallback | None = None,
        on_error: DoneCallback | None = None,
        user_info: Any = ...,
    ) -> WriteOperation:
        """Post a write of a whole batch, and return at once.

        The writer takes the batch's entries, as IOBatch.extend does: the batch is then empty, and
        may be filled again. Writes are sent in the order of posting. Bytes that the socket takes at
        once are sent inside this call, so the operation may be done when write() returns; its
        callbacks still run from the loop. A file that is not in the page cache is first read by a
        thread, while the loop goes on.

        An operation that ends before its first byte was sent, or may have been sent, just leaves
        the queue, and the operations after it go on. An operation that ends after that and before
        its last byte also ends those after it, as ABORTED: nothing may follow a truncated body.
        Unsent bytes are in the batch of each operation, and can be posted again.

        Args:
            batch: the batch to send.
            flags: MSG_* flags for every send(2); not with through.
            exactly: the number of bytes to send; the rest stays in the operation's batch. Not for
                messages.
            timeout: seconds until the operation must be done; None: no bound; `...`: the writer's.
            stall_timeout: seconds within which the writer must send some bytes; None: no bound;
                `...`: the writer's.
            on_complete: called with the operation when it is done; without on_error, also when it
                ends in any other way.
            on_error: called with the operation when it ends in any way except DONE.
            user_info: the operation's user_info; `...`: the writer's.

        Raises:
            OSError: ECANCELED: the writer was closed, or cancelled as TERMINAL. EOPNOTSUPP: for
                MSG_MORE, as iob_send raises it.
            ValueError: exactly is negative, more than the batch has, less than the offer that a
                callback must be given again (see iob_write), or given for a message; a timeout is
                negative or NaN; flags are given with through.
            TypeError: batch is not an IOBatch; a callback is not callable, or is a coroutine
                function.
            OverflowError: flags don't fit a C int.
            RuntimeError: a call on the batch is in progress, as during its hooks and callbacks.

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
            done_callback=combine_callbacks(on_complete, on_error),
            user_info=user_info,
        )

    def write_some(
        self,
        batch: IOBatch,
        *,
        flags: int = 0,
        timeout: Seconds = ...,
        stall_timeout: Seconds = ...,
        on_complete: DoneCallback | None = None,
        on_error: DoneCallback | None = None,
        user_info: Any = ...,
    ) -> WriteOperation:
        """Post a write that is done as soon as some bytes of the batch were sent.

        The operation's bytes_transferred is their number, and its batch has the rest. The
        operations posted after it follow at once. Args and Raises: as for write().

        Source: Boost.Asio, async_write_some.
        """
        return self._post(
            batch,
            some=True,
            flags=flags,
            timeout=timeout,
            stall_timeout=stall_timeout,
            done_callback=combine_callbacks(on_complete, on_error),
            user_info=user_info,
        )

    def write_buffer(
        self,
        data: Buffer,
        callback: BufferDoneCallback,
        *,
        start: int = 0,
        end: int | None = None,
        timeout: Seconds = ...,
        error_callback: BufferDoneCallback | None = None,
        user_info: Any = ...,
    ) -> WriteOperation:
        """Post a write of data[start:end].

        When the operation has ended, the loop calls callback(writer, data, nbytes): on success, on
        a timeout, and without error_callback in every other case too. During that call the writer's
        `status` is the operation's.

        Args:
            data: a C-contiguous buffer; held, not copied, until it is sent.
            callback: as above.
            start: the offset of the first byte.
            end: the offset after the last byte; None: the end of data.
            timeout: as for write(), but kept for later operations.
            error_callback: called instead of callback if the operation failed, was cancelled or was
                aborted.
            user_info: as for write(), but kept for later operations.

        Raises:
            OSError, ValueError: as for write().
            TypeError: data does not support the buffer protocol; a callback is not callable, or is
                a coroutine function.
            BufferError: data is not C-contiguous.

        Source: LispWorks, async-io-state-write-buffer.
        """
        if callback is None:
            raise TypeError("callback must not be None")
        check_callable(callback)
        check_callable(error_callback)

        def notify(operation: WriteOperation) -> None:
            self.status = operation.status
            if error_callback is None or self.status in (DONE, WriteStatus.TIMEOUT):
                callback(self, data, operation.bytes_transferred)
            else:
                error_callback(self, data, operation.bytes_transferred)

        batch = IOBatch()
        batch.addbuf(memoryview(as_byte_view(data))[start:end])
        operation = self._post(batch, timeout=timeout, done_callback=notify, user_info=user_info)
        self.timeout = _resolve_timeout(timeout, self.timeout)
        self.user_info = operation.user_info
        return operation

    def finish(self) -> WriteOperation:
        """Post the end of the stream: the final output of the filter, such as TLS's close_notify.

        The operation has no bytes of its own. It is done when all writes posted before have ended
        and the filter's final output is sent. The filter takes no writes after it. Without a filter
        there is no stream to end, and the operation is done when it reaches the head of the queue.

        Raises:
            OSError: as for write().

        """
        return self._post(IOBatch(), finishes=True)

    async def drain(self) -> None:
        """Wait until fewer than high_water bytes are pending.

        Raises:
            Exception: the first unretrieved error or timeout of an operation, once. It is
                unretrieved if the operation had no callback and was not awaited. So code that only
                posts and drains still sees it.

        """
        sender = self._sender
        while sender.state == WAITING and sender.pending >= sender.high_water:
            await sender.wait_for_change()
        sender.queue.raise_unretrieved()

    def cancel(self, kind: CancellationType = CancellationType.PARTIAL) -> bool:
        """Cancel all pending operations, in their order.

        Args:
            kind: TERMINAL: also close the writer. TOTAL: cancel only operations of which no byte
                was sent, or may have been sent; the others go on.

        Returns:
            Whether operations were pending and all of them were cancelled.

        Raises:
            RuntimeError: the writer is sending, as in a hook of a batch, or in `through`.

        """
        return self._sender.cancel_all(kind)

    def close(self) -> None:
        """End all pending operations as ABORTED, and take no more.

        Bytes that the filter holds are not sent: await finish() first. The socket stays open.
        Further calls do nothing.

        Raises:
            RuntimeError: the writer is sending, as in a hook of a batch, or in `through`.

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
        """Close the writer. First wait until nothing is pending, unless the block raised.

        Raises: as for drain().
        """
        sender = self._sender
        try:
            while exc_type is None and sender.state == WAITING:
                await sender.wait_for_change()
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
        done_callback: DoneCallback | None = None,
        user_info: Any = ...,
    ) -> WriteOperation:
        """Check the arguments, and post an operation."""
        sender = self._sender
        if sender.state == CLOSED:
            raise OSError(errno.ECANCELED, "the writer is closed")
        if not isinstance(batch, IOBatch):
            raise TypeError(f"batch must be an IOBatch, not {type(batch).__name__!r}")
        flags = check_flags(flags)
        if flags:
            if self._through is not None:
                raise ValueError("flags must be 0 when through is given")
            check_more(self.sock, flags)
        if exactly is not None:
            exactly = self._check_exactly(exactly, batch)
        timeout = _resolve_timeout(timeout, self.timeout)
        stall_timeout = _resolve_timeout(stall_timeout, self.stall_timeout)
        write = PostedWrite(sender, self.user_info if user_info is ... else user_info)
        write.flags = flags
        write.finishes = finishes
        write.operation = operation = WriteOperation(write)
        if done_callback is not None:
            write.add_done_callback((done_callback, copy_context()))
        write.batch = rest = IOBatch()
        rest.extend(batch)
        try:
            size = rest.bytesleft if exactly is None else exactly
            write.max_bytes = size
            write.complete_at = min(1, size) if some else size
            sender.post(write, timeout, stall_timeout)
        except BaseException:
            # A signal handler's exception or a MemoryError: the entries may be sent in part, and
            # nothing may follow them.
            sender.close()
            raise
        return operation

    def _check_exactly(self, exactly: int, batch: IOBatch) -> int:
        if self._sender.sends_messages:
            raise ValueError("exactly must be None for a message socket")
        exactly = check_nonnegative(exactly, "exactly")
        if exactly > batch.bytesleft:
            raise ValueError(
                f"exactly must be at most bytesleft ({batch.bytesleft}), not {exactly}"
            )
        pinned = core_of(batch).pinned
        if exactly < pinned:
            raise ValueError(
                f"exactly must be at least the length to offer again ({pinned}), not {exactly}"
            )
        return exactly


def _resolve_timeout(seconds: Seconds, default: float | None) -> float | None:
    """Return a timeout; `...` stands for default."""
    if seconds is ...:
        return default
    if seconds is not None and not seconds >= 0:  # NaN included
        raise ValueError(f"a timeout must not be negative or NaN: {seconds}")
    return seconds

"""The public face of a posted write, and its completion callbacks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import copy_context
from inspect import iscoroutinefunction
from typing import Any, final

from iobatch._batch import IOBatch
from iobatch._errors import copy_to_raise
from iobatch._forms import compiled_methods
from iobatch.aio._posted import DONE, PENDING, CancellationType, PostedWrite, Sender, WriteStatus


@final
@compiled_methods
class WriteOperation:
    """A write that was posted on a BatchWriter. Only a writer makes operations.

    Awaiting an operation returns the number of bytes that were sent, or raises `error`, or raises
    asyncio.CancelledError if the operation was cancelled. It can be awaited any number of times, by
    any number of tasks, or never. If a task that awaits it is cancelled, the operation is
    cancelled, too (PARTIAL). An error that is never retrieved is not logged, but drain() of the
    writer and the end of its `async with` raise the first one, except that of ABORTED. After an
    error the unsent bytes are in `batch`, and can be posted again.
    """

    __slots__ = ("__weakref__", "_write")

    def __init__(self, write: PostedWrite | tuple[Sender, Any, int]) -> None:
        """Wrap a write.

        Args:
            write: the write; or, for a write that was done when it was posted, the arguments from
                which it is made when it is needed. Most such operations are only awaited, which
                costs half as much without the write.

        """
        self._write = write

    @property
    def _posted_write(self) -> PostedWrite:
        write = self._write
        if isinstance(write, tuple):
            sender, user_info, sent = write
            write = self._write = PostedWrite(sender, user_info, DONE, sent)
        return write

    @property
    def status(self) -> WriteStatus:
        """The WriteStatus of the operation; every status except PENDING is final."""
        return self._posted_write.status

    @property
    def error(self) -> Exception | None:
        """The exception that ended the operation; None if it is pending, done or cancelled.

        TimeoutError for TIMEOUT; OSError (ECANCELED) for ABORTED; for ERROR an OSError, such as
        TruncatedFileError and SSLWantReadError, or any other Exception of the filter or callback.
        """
        return self._posted_write.error

    @property
    def user_info(self) -> Any:
        """The value that the caller gave."""
        return self._posted_write.user_info

    @property
    def batch(self) -> IOBatch:
        """The bytes that are not sent yet. The writer owns it while the operation is pending."""
        write = self._posted_write
        if write.batch is None:
            write.batch = IOBatch()
        return write.batch

    @property
    def bytes_transferred(self) -> int:
        """The number of bytes that were sent: accepted by the kernel, or by `through`."""
        return self._posted_write.transferred

    def done(self) -> bool:
        """Return whether the operation has ended, in any way."""
        return self._posted_write.status is not PENDING

    def add_done_callback(self, callback: DoneCallback) -> None:
        """Have the loop call callback with the operation when it has ended.

        If it has ended already, that is in the next turn of the loop. The context is that of this
        call. An exception of the callback goes to the exception handler of the loop.

        Raises:
            TypeError: callback is not callable, or is a coroutine function.

        """
        if callback is None:
            raise TypeError("callback must not be None")
        check_callable(callback)
        context = copy_context()
        write = self._posted_write
        if write.status is PENDING:
            write.add_done_callback((callback, context))
        else:
            write.sender.mark_retrieved(write.error)
            write.sender.loop.call_soon(callback, self, context=context)

    def remove_done_callback(self, callback: DoneCallback) -> int:
        """Remove a callback, unless the loop has scheduled it; return how often it was added."""
        return self._posted_write.remove_done_callback(callback)

    def cancelled(self) -> bool:
        """Return whether the operation was cancelled."""
        return self._posted_write.status is WriteStatus.CANCELLED

    def exception(self) -> Exception | None:
        """Return `error`. With this method asyncio.wait() accepts operations.

        Raises:
            asyncio.InvalidStateError: the operation is pending.
            asyncio.CancelledError: the operation was cancelled.

        """
        if not self.done():
            raise asyncio.InvalidStateError("the operation is pending")
        if self.cancelled():
            raise asyncio.CancelledError
        write = self._posted_write
        write.sender.mark_retrieved(write.error)
        return write.error

    def cancel(self, kind: CancellationType = CancellationType.PARTIAL) -> bool:
        """Cancel the operation.

        If some of its bytes, but not all, were sent, the operations posted after it end as ABORTED:
        nothing may follow a truncated body.

        Args:
            kind: how far the cancellation goes; see CancellationType.

        Returns:
            Whether the operation was cancelled. False if it had ended. Also False for TOTAL if any
            byte was sent, or may have been sent: then the operation goes on.

        Raises:
            RuntimeError: the writer is sending, as in a hook of a batch or in `through`.
            ValueError: kind is not a CancellationType.

        After each of them nothing has changed.

        Source: Boost.Asio, cancellation_type.
        """
        kind = CancellationType(kind)
        write = self._posted_write
        return write.status is PENDING and write.sender.cancel(write, kind)

    def __await__(self) -> Generator[Any, None, int]:
        if type(self._write) is tuple:
            return self._write[2]
        write = self._posted_write
        if write.status is PENDING:
            # One future for each awaiting task: cancelling a task cancels only its own future.
            future = write.sender.loop.create_future()
            write.add_done_callback(future)
            try:
                yield from future
            except asyncio.CancelledError:
                self.cancel()
                raise
        if write.status is DONE:
            return write.sent
        write.sender.mark_retrieved(write.error)
        try:
            raise asyncio.CancelledError if write.error is None else copy_to_raise(write.error)
        finally:
            # Break the cycle of frame, error and traceback: it would keep the batch alive.
            del self, write

    def __repr__(self) -> str:
        error = "" if self.error is None else f": {self.error!r}"
        return f"<WriteOperation {self.status.name}, {self.bytes_transferred} bytes{error}>"


DoneCallback = Callable[[WriteOperation], object]


def combine_callbacks(
    on_complete: DoneCallback | None, on_error: DoneCallback | None
) -> DoneCallback | None:
    """Return a callback that calls on_complete or on_error, by the final status."""
    check_callable(on_complete)
    check_callable(on_error)
    if on_error is None:
        return on_complete

    def notify(operation: WriteOperation) -> None:
        callback = on_complete if operation.status is DONE else on_error
        if callback is not None:
            callback(operation)

    return notify


def check_callable(callback: object) -> None:
    """Refuse a callback that the loop can't call; None is allowed."""
    if callback is not None and not callable(callback):
        raise TypeError(f"a callback must be callable, not {type(callback).__name__!r}")
    if iscoroutinefunction(callback):
        raise TypeError("a callback must not be a coroutine function")

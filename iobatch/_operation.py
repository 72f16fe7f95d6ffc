"""What a posted write is: its state, its count, and how its end is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from enum import Enum
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, Protocol, final

from attrs import define

from iobatch._batch import IOBatch

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

# uvloop counts whole milliseconds, so a timer may fire that much too early.
_RESOLUTION: Final = 0.001


class WriteStatus(Enum):
    """How a posted write stands, or ended."""

    PENDING = "pending"
    # All that was to be sent was accepted by the kernel.
    DONE = "done"
    TIMEOUT = "timeout"
    # By cancel(), or by the cancellation of a task that awaited it.
    CANCELLED = "cancelled"
    # One in front of it ended in its midst, or the writer was closed.
    ABORTED = "aborted"
    ERROR = "error"


class CancellationType(Enum):
    """How far a cancellation goes (Boost.Asio: cancellation_type)."""

    # Stop, and let the writer take no more writes.
    TERMINAL = "terminal"
    # Stop; what was sent is counted, and the rest is in the operation's batch.
    PARTIAL = "partial"
    # Only if nothing was sent; else nothing changes.
    TOTAL = "total"


# Looking up a member of an Enum costs more than all else that a finished operation does.
PENDING: Final = WriteStatus.PENDING
DONE: Final = WriteStatus.DONE


class Writer(Protocol):
    """What an operation needs of the writer that it was posted on."""

    _loop: asyncio.AbstractEventLoop
    # When something was sent last, in the loop's time.
    _progress: float
    # The error of an operation that nobody was told of.
    _unheard: Exception | None

    def _cancel(self, operation: WriteOperation, kind: CancellationType) -> bool: ...
    def _expire(self, operation: WriteOperation) -> None: ...
    def _probe(self) -> None: ...


@final
@define(eq=False, repr=False)
class WriteOperation:
    """A write that was posted on a BatchWriter; its methods make them, and nobody else.

    Awaiting it gives the number of bytes that were sent, or raises what ended it: `error`, or
    asyncio.CancelledError for one that was cancelled. If the task that awaits it is cancelled,
    the operation is cancelled too (PARTIAL). It is awaited any number of times, by any number of
    tasks, or never: an error that nobody asks for is not logged; the writer's drain() raises it.

    Attributes:
        status: how it stands.
        error: the OSError that ended it, TimeoutError and ECANCELED (for ABORTED) included, or any
            other exception of a callback; None while it is pending, and if it is done or
            cancelled.
        user_info: the caller's.

    """

    _writer: Writer
    user_info: Any
    # It is complete when so many bytes were sent,
    _goal: int
    # of no more than so many that may be sent.
    _most: int
    # These stand as arguments, since attrs makes those faster than defaults of another kind.
    status: WriteStatus = PENDING
    error: Exception | None = None
    # The bytes that were sent; while it is pending, its batch counts them.
    _sent: int = 0
    # What is not sent yet; None: nothing, and nobody has asked.
    _batch: IOBatch | None = None
    _flags: int = 0
    # It ends the filtered stream.
    _finishes: bool = False
    # A callback that is no Filter said "again": with OpenSSL a part of it may be on its way.
    _offered: bool = False
    _listeners: list[asyncio.Future[None] | tuple[Listener, Context]] | None = None
    _timer: Timer | None = None
    # The error's own, without those who awaited it.
    _traceback: TracebackType | None = None

    @property
    def batch(self) -> IOBatch:
        """What is not sent yet. While the operation is pending it belongs to the writer."""
        if self._batch is None:
            self._batch = IOBatch()
        return self._batch

    @property
    def bytes_transferred(self) -> int:
        """The bytes that were sent: accepted by the kernel, or by the filter."""
        return self.batch.bytessent if self.status is PENDING else self._sent

    def done(self) -> bool:
        """Tell whether it has ended, in whatever way."""
        return self.status is not PENDING

    def add_done_callback(self, callback: Listener) -> None:
        """Have the loop call callback(operation) when the operation has ended.

        It runs from the loop, in the context of this call, and never inside a call of this
        library; what it raises goes to the loop's exception handler.

        Raises:
            TypeError: callback can't be called, or is a coroutine function.

        """
        check_callable(callback)
        context = copy_context()
        if self.status is PENDING:
            self._listen((callback, context))
        else:
            self._heard()
            self._writer._loop.call_soon(callback, self, context=context)

    def cancel(self, kind: CancellationType = CancellationType.PARTIAL) -> bool:
        """Stop the operation.

        If some of its bytes, but not all, were sent, those that were posted behind it end as
        ABORTED: nothing may follow a truncated body.

        Args:
            kind: how far to go; see CancellationType.

        Returns:
            Whether it was cancelled. It is not if it had ended; nor, with TOTAL, if a byte of it
            was sent: then it goes on.

        Raises:
            RuntimeError: this is a hook or callback of a batch that the writer is sending.

        Source: Boost.Asio, cancellation_type.
        """
        return self.status is PENDING and self._writer._cancel(self, kind)

    def __await__(self) -> Generator[Any, None, int]:
        if self.status is PENDING:
            # One for each that waits: whose task is cancelled, only its own is.
            future = self._writer._loop.create_future()
            self._listen(future)
            try:
                yield from future
            except asyncio.CancelledError:
                self.cancel()
                raise
        if self.status is DONE:
            return self._sent
        self._heard()
        error = self.error or asyncio.CancelledError()
        try:
            raise error.with_traceback(self._traceback)
        finally:
            # Its traceback has this frame: no cycle may keep the batch.
            del self, error

    def __repr__(self) -> str:
        error = "" if self.error is None else f": {self.error!r}"
        return f"<WriteOperation {self.status.name}, {self.bytes_transferred} bytes{error}>"

    # What follows is for the writer.

    @property
    def _unsent(self) -> bool:
        """Whether there is more to send."""
        return self.bytes_transferred < self._goal

    @property
    def _touched(self) -> bool:
        """Whether some of it was sent, or may be on its way."""
        return self._offered or self.bytes_transferred > 0

    @property
    def _begun(self) -> bool:
        """Whether some of it, but not all, was sent or may be on its way."""
        return self._touched and self.bytes_transferred < self._goal

    def _listen(self, listener: asyncio.Future[None] | tuple[Listener, Context]) -> None:
        if self._listeners is None:
            self._listeners = []
        self._listeners.append(listener)

    def _heard(self) -> None:
        """Note that somebody was told of the error."""
        if self._writer._unheard is self.error:
            self._writer._unheard = None

    def _end(self, status: WriteStatus, error: Exception | None) -> None:
        """Take the final state, and have the loop tell all who listen, in their order."""
        self._sent = self.bytes_transferred
        self.status = status
        self.error = error
        if error is not None:
            self._traceback = error.__traceback__
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        if self._listeners is not None and not self._writer._loop.is_closed():
            listeners, self._listeners = self._listeners, None
            for listener in listeners:
                if isinstance(listener, tuple):
                    callback, context = listener
                    self._writer._loop.call_soon(callback, self, context=context)
                elif not listener.done():
                    listener.set_result(None)


Listener = Callable[[WriteOperation], object]


def either(on_complete: Listener | None, on_error: Listener | None) -> Listener | None:
    """Make one callback of two."""
    check_callable(on_complete)
    check_callable(on_error)
    if on_error is None:
        return on_complete

    def tell(operation: WriteOperation) -> None:
        callback = on_complete if operation.status is DONE else on_error
        if callback is not None:
            callback(operation)

    return tell


def check_callable(callback: object) -> None:
    """Refuse what the loop can't call; None is no callback."""
    if callback is not None and not callable(callback):
        raise TypeError(f"a callback must be callable, not {type(callback).__name__!r}")
    if iscoroutinefunction(callback):
        raise TypeError("a callback can't be a coroutine function")


@define(eq=False)
class Timer:
    """The one timer for both timeouts of a pending operation, set anew only when it fires."""

    _operation: WriteOperation
    # When it ends, whatever happens.
    _end: float
    # For how long nothing may be sent,
    _stall: float
    # from when it was posted on, or from what the writer sent last.
    _posted: float
    _handle: asyncio.TimerHandle | None = None

    def check(self) -> None:
        """End the operation if it is time, else look again when it may be."""
        writer = self._operation._writer
        now = writer._loop.time() + _RESOLUTION
        if self._stalled_at() <= now < self._end:
            writer._probe()
            if self._operation.status is not WriteStatus.PENDING:
                return
        due = min(self._end, self._stalled_at())
        if due <= now:
            writer._expire(self._operation)
        else:
            self._handle = writer._loop.call_at(due, self.check)

    def _stalled_at(self) -> float:
        return max(self._posted, self._operation._writer._progress) + self._stall

    def stop(self) -> None:
        """Take it off the loop."""
        if self._handle is not None:
            self._handle.cancel()

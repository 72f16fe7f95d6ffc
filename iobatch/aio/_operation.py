"""What a posted write is: its states, its count, and how its end is told.

A PostedWrite is the write itself, which the sender works with. A WriteOperation is its public face.

    state      how it gets there                                error         those after it
    PENDING    it was posted
    DONE       the kernel accepted all that was to be sent      None          go on
    CANCELLED  cancel(), or the task awaiting it was cancelled  None          see below
    TIMEOUT    its time was over                                TimeoutError  see below
    ERROR      a file, the socket, callback or filter failed    what failed   see below
    ABORTED    one before it ended part-way, or the writer was  ECANCELED     are aborted too
               closed

PENDING leads to each of the others, and all others are final. A write that ends as CANCELLED,
TIMEOUT or ERROR part-way (after its first byte was sent or may be on its way, and before its last)
ends those posted after it as ABORTED: nothing may follow a truncated body. One that ends before its
first byte just leaves the queue. BatchWriter.cancel() ends each write that it cancels as CANCELLED.
ENDINGS says this to the code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from enum import Enum
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, Protocol, final

from attrs import define, frozen

from iobatch._batch import IOBatch

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType


class WriteStatus(Enum):
    """How a posted write stands, or ended."""

    PENDING = "pending"
    # All that was to be sent was accepted by the kernel.
    DONE = "done"
    TIMEOUT = "timeout"
    # By cancel(), or by the cancellation of a task that awaited it.
    CANCELLED = "cancelled"
    # One before it ended part-way, or the writer was closed.
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


@frozen
class Ending:
    """What an end of a write means for the rest of its writer."""

    # If it comes part-way, the writes after it are aborted.
    aborts_those_after: bool = False
    # An error that is not retrieved is raised by drain(), once.
    reported_by_drain: bool = False
    # The filter may hold bytes that it was given, and that are still to be sent.
    leaves_bytes_in_filter: bool = True


ENDINGS: Final = {
    WriteStatus.DONE: Ending(leaves_bytes_in_filter=False),
    WriteStatus.CANCELLED: Ending(aborts_those_after=True),
    WriteStatus.TIMEOUT: Ending(aborts_those_after=True, reported_by_drain=True),
    WriteStatus.ERROR: Ending(aborts_those_after=True, reported_by_drain=True),
    WriteStatus.ABORTED: Ending(),
}


class Sender(Protocol):
    """What a write, its timer and its operation need of the sender that has the write."""

    loop: asyncio.AbstractEventLoop
    # When something was sent last, in the loop's time.
    last_progress: float

    def cancel(self, write: PostedWrite, kind: CancellationType) -> bool:
        """Cancel a pending write."""

    def expire(self, write: PostedWrite) -> None:
        """End a write, since its time is over."""

    def try_now(self) -> None:
        """Try to send though the loop has not said that the socket is writable."""

    def retrieved(self, error: Exception | None) -> None:
        """Note that an error was retrieved."""


class PostedWrite:
    """A write that was posted, as its sender and its timer see it."""

    # Most writes are done when they are posted: so what only a pending one has stands here as the
    # class's, which costs them nothing.

    # It is complete when this number of bytes was sent.
    complete_at: int = 0
    # At most this number of its batch's bytes may be sent.
    max_bytes: int = 0
    error: Exception | None = None
    # The error's own traceback, without the frames of those who awaited it.
    traceback: TracebackType | None = None
    # What is not sent yet; None: nothing, and the batch was not asked for.
    batch: IOBatch | None = None
    flags: int = 0
    # It ends the filtered stream.
    finishes: bool = False
    # A callback that is no Filter said "again": with OpenSSL a part of it may be on its way.
    offered: bool = False
    # What listeners are called with; None when it has ended, so that there is no cycle.
    operation: WriteOperation | None = None
    listeners: list[asyncio.Future[None] | tuple[Callable[..., object], Context]] | None = None
    timer: Timer | None = None

    def __init__(
        self, sender: Sender, user_info: Any, status: WriteStatus = PENDING, sent: int = 0
    ) -> None:
        """Make a write; sent is what bytes_transferred is when it has ended."""
        self.sender = sender
        self.user_info = user_info
        self.status = status
        # While it is pending, its batch counts what was sent.
        self.sent = sent

    @property
    def transferred(self) -> int:
        """The bytes that were sent."""
        if self.status is PENDING and self.batch is not None:
            return self.batch.bytessent
        return self.sent

    @property
    def unsent(self) -> bool:
        """Whether there is more to send."""
        return self.transferred < self.complete_at

    @property
    def started(self) -> bool:
        """Whether some of it was sent, or may be on its way."""
        return self.offered or self.transferred > 0

    @property
    def part_way(self) -> bool:
        """Whether some of it, but not all, was sent or may be on its way."""
        return self.started and self.unsent

    def listen(
        self, listener: asyncio.Future[None] | tuple[Callable[..., object], Context]
    ) -> None:
        """Have a listener told of the end."""
        if self.listeners is None:
            self.listeners = []
        self.listeners.append(listener)

    def end(self, status: WriteStatus, error: Exception | None) -> None:
        """Take the final state, and have the loop tell all listeners, in their order.

        Called again it goes on where a signal handler's exception stopped it.
        """
        if self.status is PENDING:
            sent = self.transferred
            traceback = None if error is None else error.__traceback__
            self.sent = sent
            self.status = status
            self.error = error
            self.traceback = traceback
        if self.timer is not None:
            self.timer.stop()
            self.timer = None
        loop = self.sender.loop
        while self.listeners and not loop.is_closed():
            listener = self.listeners[0]
            if isinstance(listener, tuple):
                callback, context = listener
                loop.call_soon(callback, self.operation, context=context)
            elif not listener.done():
                listener.set_result(None)
            del self.listeners[0]
        self.operation = self.listeners = None


@final
class WriteOperation:
    """A write that was posted on a BatchWriter; only its methods make them.

    Awaiting it gives the number of bytes that were sent, or raises what ended it: `error`, or
    asyncio.CancelledError for one that was cancelled. If the task that awaits it is cancelled,
    the operation is cancelled too (PARTIAL). It is awaited any number of times, by any number of
    tasks, or never: an error that is never retrieved is not logged; the writer's drain() raises it.
    """

    __slots__ = ("__weakref__", "_write")

    def __init__(self, write: PostedWrite | tuple[Sender, Any, int]) -> None:
        """Show a write; only a BatchWriter does this.

        Args:
            write: it, or the arguments of one that was done when it was posted: it is made when it
                is needed. Most such operations are just awaited, and cost half as much so.

        """
        self._write = write

    @property
    def _posted(self) -> PostedWrite:
        if type(self._write) is tuple:
            sender, user_info, sent = self._write
            self._write = PostedWrite(sender, user_info, DONE, sent)
        return self._write  # type: ignore[return-value]

    @property
    def status(self) -> WriteStatus:
        """How the write stands, or ended."""
        return self._posted.status

    @property
    def error(self) -> Exception | None:
        """What ended the write; None while it is pending, and if it is done or cancelled.

        It is an OSError, TimeoutError and ECANCELED (for ABORTED) included, or any other exception
        of a callback.
        """
        return self._posted.error

    @property
    def user_info(self) -> Any:
        """The caller's."""
        return self._posted.user_info

    @property
    def batch(self) -> IOBatch:
        """What is not sent yet. While the operation is pending it belongs to the writer."""
        write = self._posted
        if write.batch is None:
            write.batch = IOBatch()
        return write.batch

    @property
    def bytes_transferred(self) -> int:
        """The bytes that were sent: accepted by the kernel, or by the filter."""
        return self._posted.transferred

    def done(self) -> bool:
        """Tell whether it has ended, in whatever way."""
        return self._posted.status is not PENDING

    def add_done_callback(self, callback: Listener) -> None:
        """Have the loop call callback(operation) when the operation has ended.

        It runs from the loop, in the context of this call, and never inside a call of this
        library; what it raises goes to the loop's exception handler.

        Raises:
            TypeError: callback can't be called, or is a coroutine function.

        """
        check_callable(callback)
        context = copy_context()
        write = self._posted
        if write.status is PENDING:
            write.listen((callback, context))
        else:
            write.sender.retrieved(write.error)
            write.sender.loop.call_soon(callback, self, context=context)

    def cancel(self, kind: CancellationType = CancellationType.PARTIAL) -> bool:
        """Stop the operation.

        If some of its bytes, but not all, were sent, those that were posted after it end as
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
        write = self._posted
        return write.status is PENDING and write.sender.cancel(write, kind)

    def __await__(self) -> Generator[Any, None, int]:
        if type(self._write) is tuple:
            return self._write[2]
        write = self._posted
        if write.status is PENDING:
            # One for each that waits: whose task is cancelled, only its own is.
            future = write.sender.loop.create_future()
            write.listen(future)
            try:
                yield from future
            except asyncio.CancelledError:
                self.cancel()
                raise
        if write.status is DONE:
            return write.sent
        write.sender.retrieved(write.error)
        error = write.error or asyncio.CancelledError()
        try:
            raise error.with_traceback(write.traceback)
        finally:
            # Its traceback has this frame: no cycle may keep the batch.
            del self, write, error

    def __repr__(self) -> str:
        error = "" if self.error is None else f": {self.error!r}"
        return f"<WriteOperation {self.status.name}, {self.bytes_transferred} bytes{error}>"


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


# uvloop counts whole milliseconds, so a timer may fire that much too early.
_RESOLUTION: Final = 0.001


@define(eq=False)
class Timer:
    """The one timer for both timeouts of a pending write, set anew only when it fires."""

    _write: PostedWrite
    # When the write ends, whatever happens.
    _deadline: float
    # For how long nothing may be sent: counted from when it was posted, or from the sender's last
    # progress.
    _stall: float
    _posted: float
    _handle: asyncio.TimerHandle | None = None

    def check(self) -> None:
        """End the write if it is time, else look again when it may be."""
        sender = self._write.sender
        now = sender.loop.time() + _RESOLUTION
        if self._stalled_at() <= now < self._deadline:
            sender.try_now()
            if self._write.status is not PENDING:
                return
        due = min(self._deadline, self._stalled_at())
        if due <= now:
            sender.expire(self._write)
        else:
            self._handle = sender.loop.call_at(due, self.check)

    def _stalled_at(self) -> float:
        return max(self._posted, self._write.sender.last_progress) + self._stall

    def stop(self) -> None:
        """Take it off the loop."""
        if self._handle is not None:
            self._handle.cancel()

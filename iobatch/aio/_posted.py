"""Posted writes: their states, their counts, and how their end is reported.

A PostedWrite is the write itself, for the WriteSender. A WriteOperation is its public API.

    state      cause                                            error          writes after it
    PENDING    the write was posted
    DONE       all bytes to be sent were accepted               None           go on
    CANCELLED  cancel(), or the awaiting task was cancelled     None           see below
    TIMEOUT    a timeout expired                                TimeoutError   see below
    ERROR      a file, the socket, callback or filter failed    the exception  see below
    ABORTED    an earlier write ended part-way, or the writer   ECANCELED      are aborted too
               was closed

All states except PENDING are final. DONE: the bytes were accepted by the kernel, or by a callback
at the end. A write that ends as CANCELLED, TIMEOUT or ERROR part-way ends the writes after it as
ABORTED: nothing may follow a truncated body. Part-way means after the first byte was sent, or may
have been sent, and before the last. A write that ends before its first byte just leaves the queue,
and the writes after it go on. BatchWriter.cancel() ends each write that it cancels as CANCELLED,
not ABORTED, although an earlier one may end part-way. ENDINGS holds these rules.
"""

from __future__ import annotations

from abc import abstractmethod
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any, Final, Protocol

from attrs import define, frozen

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from contextvars import Context

    from iobatch._batch import IOBatch
    from iobatch.aio._pipelines import Through


class WriteStatus(Enum):
    """The status of a posted write: PENDING, or how it ended (see the module's table).

    PENDING: the operation waits, or is being sent.
    DONE: all bytes that were to be sent were accepted.
    TIMEOUT: it was not done in `timeout` seconds, or nothing was sent for `stall_timeout` seconds.
    CANCELLED: it was cancelled by cancel(), or with a task that awaited it.
    ABORTED: an earlier operation ended part-way, or the writer or its socket was closed.
    ERROR: the kernel returned an error, a file ended early, or the filter failed.
    """

    PENDING = "pending"
    DONE = "done"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    ABORTED = "aborted"
    ERROR = "error"


class CancellationType(Enum):
    """How far a cancellation goes.

    TERMINAL: cancel the operation, end all others as ABORTED, and close the writer.
    PARTIAL: cancel the operation; bytes_transferred is exact, and the rest is in its batch.
    TOTAL: cancel the operation only if no byte of it was sent, or may have been sent.

    Source: Boost.Asio, cancellation_type.
    """

    TERMINAL = "terminal"
    PARTIAL = "partial"
    TOTAL = "total"


# A lookup of an Enum's member costs more than the rest of a finished operation's work.
PENDING: Final = WriteStatus.PENDING
DONE: Final = WriteStatus.DONE


@frozen
class Ending:
    """The effects of a final status on the writer and its other writes."""

    # If the write ends part-way, the writes after it are aborted.
    aborts_later_writes: bool = False
    # drain() raises an unretrieved error, once.
    reported_by_drain: bool = False
    # The filter may hold bytes of the write that are still to be sent.
    leaves_bytes_in_filter: bool = True


ENDINGS: Final = {
    WriteStatus.DONE: Ending(leaves_bytes_in_filter=False),
    WriteStatus.CANCELLED: Ending(aborts_later_writes=True),
    WriteStatus.TIMEOUT: Ending(aborts_later_writes=True, reported_by_drain=True),
    WriteStatus.ERROR: Ending(aborts_later_writes=True, reported_by_drain=True),
    WriteStatus.ABORTED: Ending(),
}


class Sender(Protocol):
    """The members of a WriteSender that a write, its timer and its operation use."""

    loop: asyncio.AbstractEventLoop
    # The loop's time when bytes of a queued write were last sent; 0: none yet.
    last_progress: float

    @abstractmethod
    def cancel(self, write: PostedWrite, kind: CancellationType) -> bool:
        """Cancel a pending write."""

    def expire(self, write: PostedWrite) -> None:
        """End a write whose timeout has expired."""

    def try_now(self) -> None:
        """Try to send before the loop reports the socket writable."""

    def mark_retrieved(self, error: Exception | None) -> None:
        """Forget an error that was retrieved."""


class PostedWrite:
    """A posted write, as the WriteSender and the timer use it."""

    # Most writes are done when they are posted. Fields that only a pending write needs are class
    # attributes, which cost those writes nothing.

    # The write is done when this number of bytes was sent.
    complete_at: int = 0
    # At most this number of bytes may be sent.
    max_bytes: int = 0
    error: Exception | None = None
    # The bytes not sent yet. None: there are none, and no batch was requested.
    batch: IOBatch | None = None
    flags: int = 0
    # The arguments of sendmsg(2), for a message.
    ancdata: Sequence[tuple[int, int, bytes]] = ()
    address: Any = None
    # The pipeline of its bytes, and the same if it is a filter.
    through: Through = None
    filter: Any = None
    # The write ends the stream of its pipeline, up to the filter `until`.
    finishes: bool = False
    until: Any = None
    # The stream is a codec's, so no other bytes may follow unless this write is done.
    ends_codec: bool = False
    # A callback that is not a Filter answered "again": OpenSSL may have sent a part of the offer.
    offer_pending: bool = False
    # The write continues one that ended part-way.
    resumes: bool = False
    # The WriteOperation to pass to callbacks; None when the write has ended: there is no cycle.
    operation: Any = None
    # The futures to complete, and the callbacks to call, when the write has ended.
    done_callbacks: list[asyncio.Future[None] | tuple[Callable[..., object], Context]] | None = None
    timer: Timer | None = None

    def __init__(
        self, sender: Sender, user_info: Any, status: WriteStatus = PENDING, sent: int = 0
    ) -> None:
        """Create a write; sent is the bytes_transferred of a write that has ended."""
        self.sender = sender
        self.user_info = user_info
        self.status = status
        # While the write is pending, its batch counts the bytes sent.
        self.sent = sent

    @property
    def transferred(self) -> int:
        """The number of bytes sent."""
        if self.status is PENDING and self.batch is not None:
            return self.batch.bytessent
        return self.sent

    @property
    def incomplete(self) -> bool:
        """Whether more bytes must be sent before the write is done."""
        return self.transferred < self.complete_at

    @property
    def started(self) -> bool:
        """Whether some bytes were sent, or may have been sent."""
        return self.offer_pending or self.transferred > 0

    @property
    def part_way(self) -> bool:
        """Whether nothing may follow the write if it ends now.

        That is when some bytes, but not all, were sent or may have been sent, by this write or by
        the one that it continues; and when the stream of a codec would stay without its end.
        """
        begun = self.started or self.resumes
        return (begun and (self.incomplete or self.offer_pending)) or self.ends_codec

    @property
    def ended(self) -> bool:
        """Whether the write has ended, in any way."""
        return self.status is not PENDING

    def add_done_callback(
        self, done_callback: asyncio.Future[None] | tuple[Callable[..., object], Context]
    ) -> None:
        """Add a future to complete, or a callback to call, when the write ends."""
        if self.done_callbacks is None:
            self.done_callbacks = []
        self.done_callbacks.append(done_callback)

    def remove_done_callback(self, callback: Callable[..., object]) -> int:
        """Remove all additions of a callback; return their number."""
        callbacks = self.done_callbacks or []
        kept = [each for each in callbacks if not isinstance(each, tuple) or each[0] != callback]
        removed = len(callbacks) - len(kept)
        if removed:
            self.done_callbacks = kept or None
        return removed

    def end(self, status: WriteStatus, error: Exception | None) -> None:
        """Set the final status; complete the futures and schedule the callbacks, in their order.

        A second call continues where a signal handler's exception stopped the first.
        """
        if self.status is PENDING:
            sent = self.transferred
            self.sent = sent
            self.status = status
            self.error = error
        if self.timer is not None:
            self.timer.stop()
            self.timer = None
        loop = self.sender.loop
        while self.done_callbacks and not loop.is_closed():
            done_callback = self.done_callbacks[0]
            if isinstance(done_callback, tuple):
                callback, context = done_callback
                loop.call_soon(callback, self.operation, context=context)
            elif not done_callback.done():
                done_callback.set_result(None)
            del self.done_callbacks[0]
        self.operation = self.done_callbacks = None


# uvloop counts whole milliseconds: a timer may fire up to this number of seconds too early.
_TIMER_RESOLUTION: Final = 0.001
# A stall is found at most this part of the stall timeout too late.
_CHECKS_IN_A_STALL: Final = 4


@define(eq=False)
class Timer:
    """The one timer for both timeouts of a pending write; progress does not reschedule it."""

    _write: PostedWrite
    # The loop's time at which the write ends in any case.
    _deadline: float
    # The most seconds from the later of the posting and the last progress, to the next progress.
    _stall_timeout: float
    _posted_at: float
    _handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """End the write if a timeout has expired, else schedule the next check."""
        sender = self._write.sender
        if self.expired:
            sender.expire(self._write)
        else:
            wait = self._stall_timeout / _CHECKS_IN_A_STALL
            due = min(self._due(), sender.loop.time() + max(wait, _TIMER_RESOLUTION))
            self._handle = sender.loop.call_at(due, self._check)

    def _check(self) -> None:
        sender = self._write.sender
        if self._stall_timeout < inf and sender.loop.time() < self._deadline:
            # The peer's system takes some bytes after the socket was full, and the loop does not
            # report a socket writable that has room for so few. Progress counts from here.
            sender.try_now()
        if not self._write.ended:
            self.start()

    @property
    def expired(self) -> bool:
        """Whether the write must end."""
        return self._due() <= self._write.sender.loop.time() + _TIMER_RESOLUTION

    def _due(self) -> float:
        progress = max(self._posted_at, self._write.sender.last_progress)
        return min(self._deadline, progress + self._stall_timeout)

    def stop(self) -> None:
        """Cancel the scheduled check."""
        if self._handle is not None:
            self._handle.cancel()

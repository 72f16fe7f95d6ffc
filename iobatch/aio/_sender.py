"""Sends what is at the head of a writer's queue, and waits where it has to.

    state     what it means                             it goes to
    EMPTY     nothing is queued                         BUSY, CLOSED
    BUSY      a call that sends is in progress;         EMPTY, WAITING; CLOSED, if a signal
              what is posted now is only queued         handler's exception ends that call
    WAITING   for the loop to say that the socket is    BUSY, EMPTY, CLOSED
              writable, or for a thread to have read
    CLOSED    every write has ended, none is taken      -

How writes end is in the table of _operation.py; the queue follows it.
"""

from __future__ import annotations

import socket
from functools import partial
from math import inf
from selectors import EVENT_READ
from ssl import SSL_ERROR_WANT_READ, SSLWantReadError
from typing import TYPE_CHECKING, Any, Final, final

from attrs import define, field

from iobatch._batch import IOBatch, core_of
from iobatch._core import IDLE, IOB_AGAIN, IOB_DONE, IOB_ERROR, SENDING
from iobatch._errors import is_interruption
from iobatch._pagecache import PageCacheProbe
from iobatch._send import SEND_LIMIT, iob_send, iob_sendmsg, send_joined
from iobatch._write import iob_write
from iobatch.aio._operation import (
    DONE,
    ENDINGS,
    PENDING,
    CancellationType,
    PostedWrite,
    Timer,
    WriteOperation,
    WriteStatus,
)
from iobatch.aio._queue import WriteQueue
from iobatch.aio._readahead import finish_reading, start_reading
from iobatch.aio._watch import SocketWatch
from iobatch.filters import Filter

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from iobatch._core import BatchCore
    from iobatch.aio._budget import TurnBudget

# Plain ints: members of an Enum take longer to look up.
EMPTY: Final = 0
BUSY: Final = 1
WAITING: Final = 2
CLOSED: Final = 3
STATE_NAMES: Final = ("idle", "sending", "waiting", "closed")

READ_FIRST: Final = "the filter has to read before it can write, and a writer has no reader"


@final
@define(eq=False)
class WriteSender:
    """Sends posted writes in their order.

    No code of the caller's runs inside its calls except batches' hooks, the filter, and callbacks
    of iob_write. Yielding to the loop goes through the socket's watch as well, even where the
    socket is not full, so there is one way to go on.
    """

    loop: asyncio.AbstractEventLoop
    sock: socket.socket
    # Where bytes go through before the socket: a callback of iob_write, or None.
    through: Callable[[Any, memoryview], int | None] | None
    budget: TurnBudget
    # drain() waits while at least this number of bytes is pending.
    high_water: int
    state: int = field(init=False, default=EMPTY)
    # When something was sent last, in the loop's time.
    last_progress: float = field(init=False, default=0)
    # Each write is one message.
    messages: bool = field(init=False)
    # Bytes go straight to a stream socket.
    _direct: bool = field(init=False)
    # `through`, if it keeps some of the bytes that it took: a Filter.
    _filter: Any = field(init=False, default=None)
    queue: WriteQueue = field(init=False)
    _probe: PageCacheProbe = field(init=False)
    # The write that waits for a thread to read from its file. It is at the head.
    _reading: PostedWrite | None = field(init=False, default=None)
    # A write ended before the filter had passed on all that it took.
    _filter_has_leftovers: bool = field(init=False, default=False)
    _watch: SocketWatch = field(init=False)
    # Tasks that wait for fewer bytes to be pending.
    _waiters: list[asyncio.Future[None]] = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self.messages = self.through is None and self.sock.type != socket.SOCK_STREAM
        self._direct = self.through is None and not self.messages
        self.queue = WriteQueue(self._write_ended)
        self._watch = SocketWatch(self.loop, self.sock, self.take_turn)
        self._probe = PageCacheProbe(whole=self.messages)
        if hasattr(self.through, "drain"):
            self._filter = self.through

    @property
    def pending(self) -> int:
        """The bytes that were posted and are not sent yet, with those that filters hold."""
        pending = self.queue.bytesleft
        each: Any = self._filter
        if each is not None:
            pending += each.bytesleft
            while isinstance(each, Filter) and isinstance(each := each.then, Filter):
                pending += each.bytesleft
        return pending

    # Posting

    def send_at_once(
        self, batch: IOBatch, user_info: Any, timeout: float | None, stall_timeout: float | None
    ) -> WriteOperation | None:
        """Send a batch where it is, if nothing else waits and all of it can be sent now.

        Most writes go this way. What they cost is what a writer costs, so nothing is made or called
        that they can do without. Where the socket takes less, the rest is queued.

        Returns:
            None: this way is closed; nothing has changed.

        """
        core = core_of(batch)
        left = core.left
        budget = self.budget
        if (
            self.state != EMPTY
            or not self._direct
            or core.activity
            or core.unsettled
            or core.error is not None
            or not 0 < left <= budget.left
        ):
            return None
        sent = core.sent
        # Both are locked: a handler may neither send this batch nor a write meanwhile.
        self.state = BUSY
        core.activity = SENDING
        try:
            ready = self._probe.examine(core, left)
            if core.left != left or (type(ready) is int and ready < left):
                self.state = EMPTY
                return None
            if type(ready) is bytes:
                code = send_joined(self.sock, core, ready)
            else:
                core.activity = IDLE
                if core.releasable:
                    # Hooks find the caller's batch empty, and may add to it.
                    batch = IOBatch()
                    core_of(batch).take(core)
                    core = core_of(batch)
                    sent = 0
                code = iob_send(self.sock, batch, limit=left)
            core.activity = IDLE
            if code != left:
                return self._queue_rest(
                    core, sent, code, user_info, timeout=timeout, stall_timeout=stall_timeout
                )
        except BaseException:
            self.close()
            raise
        finally:
            core.activity = IDLE
        core.sent = sent  # it counts what goes out from this batch, and this went out from a write
        budget.left -= left
        self.state = EMPTY
        if budget.left < budget.scarce:
            budget.schedule_refill()
        if self.queue.order:  # a hook or finalizer has posted them
            self._send_queued()
        return WriteOperation((self, user_info, left))

    def _queue_rest(
        self,
        core: BatchCore,
        sent: int,
        code: int,
        user_info: Any,
        *,
        timeout: float | None,
        stall_timeout: float | None,
    ) -> WriteOperation:
        """Queue a write that was begun from the caller's batch, which gets its state back."""
        batch = IOBatch()
        rest = core_of(batch)
        rest.take(core)
        rest.sent, core.sent = core.sent - sent, sent
        rest.error, core.error = core.error, None
        size = rest.sent + rest.left
        write = PostedWrite(self, user_info)
        write.batch = batch
        write.complete_at = write.max_bytes = size
        write.operation = operation = WriteOperation(write)
        self.queue.prepend(write)  # hooks may have posted others
        if code == IOB_ERROR:
            self._stop(write, WriteStatus.ERROR, rest.error)
            self.state = EMPTY
            if self.queue.order:
                self._send_queued()
        else:
            self.budget.spend(rest.sent)
            # To try once more is for the loop, when it says that the socket is writable.
            self._update_watch()
        self._set_timer(write, timeout, stall_timeout)
        return operation

    def post(self, write: PostedWrite, timeout: float | None, stall_timeout: float | None) -> None:
        """Queue a write, send what can be sent at once, and set its timer."""
        self.queue.append(write)
        if self.state == EMPTY:
            self._send_queued()
        self._set_timer(write, timeout, stall_timeout)

    def _set_timer(
        self, write: PostedWrite, timeout: float | None, stall_timeout: float | None
    ) -> None:
        if write.status is PENDING and not (timeout is None and stall_timeout is None):
            now = self.loop.time()
            write.timer = Timer(
                write,
                inf if timeout is None else now + timeout,
                inf if stall_timeout is None else stall_timeout,
                now,
            )
            write.timer.check()

    # Sending

    def take_turn(self) -> None:
        """Go on: the loop has had a turn, and the socket is writable."""
        self.budget.refill()
        self._send_queued()

    def try_now(self) -> None:
        """Try to send though the loop has not said that the socket is writable.

        It says so when much of the socket's buffer is free; a peer that reads slowly needs long for
        that.
        """
        if self.state == WAITING and self._reading is None:
            self.take_turn()

    def _send_queued(self) -> None:
        """Send what goes out now, and have the loop call again if anything has to wait."""
        self.state = BUSY
        try:
            while self.budget.left > 0 and self._step():
                pass
            self._update_watch()
        except BaseException:
            # A signal handler's exception, or no memory: how much was sent may be unknown.
            self.close()
            raise

    def _step(self) -> bool:
        """Take a step with the write at the head; tell whether another may follow."""
        head = self.queue.head
        if head is None:
            return self._filter_has_leftovers and self._drain_leftovers()
        before = 0 if self._filter is None else self.pending
        try:
            code, source = self._advance(head)
        except Exception as exc:
            if self.through is None or is_interruption(exc):
                raise
            # It's the callback's, and the write's to tell.
            self._stop(head, WriteStatus.ERROR, exc)
            return True
        # A filter that is full says "again", and may have sent some of what it holds all the same.
        if code > 0 or (self._filter is not None and self.pending < before):
            self.last_progress = self.loop.time()
        if code > 0:
            self.budget.spend(code)
            # A callback that holds a part of what it was offered must be offered the rest first.
            if self._filter is not None or head.unsent or head.offered:
                return True
            code = IOB_DONE
        if code == IOB_DONE:
            self.queue.end_one(head, DONE)
        elif code == IOB_ERROR:
            self._stop(head, WriteStatus.ERROR, source.error)
        elif source.wants == EVENT_READ:
            self._stop(head, WriteStatus.ERROR, SSLWantReadError(SSL_ERROR_WANT_READ, READ_FIRST))
        else:
            return False
        return True

    def _advance(self, head: PostedWrite) -> tuple[int, Any]:
        """Send some of a write, or what the filter holds of it.

        Returns:
            The code, and what has `error` and `wants`.

        """
        if head.unsent or head.offered:
            return self._send(head), head.batch
        if self._filter is None:
            return IOB_DONE, head.batch
        step = self._filter.finish if head.finishes else self._filter.drain
        return step(self.sock), self._filter

    def _send(self, head: PostedWrite) -> int:
        """Send some of a write's batch."""
        batch: Any = head.batch
        core = core_of(batch)
        if self.messages:
            if not self._make_ready(head, core.left, core.left):
                return IOB_AGAIN
            return iob_sendmsg(self.sock, batch, (), head.flags)
        # No more than SEND_LIMIT is examined for a call, however much a turn may send.
        most = min(head.max_bytes - head.transferred, self.budget.left, SEND_LIMIT)
        limit = self._make_ready(head, 1, most)
        if not limit:
            return IOB_AGAIN
        if self.through is None:
            return iob_send(self.sock, batch, flags=head.flags, limit=limit)
        code = iob_write(self.sock, batch, self.through, limit=limit)
        if code != IOB_ERROR:  # else what was offered before stays so
            head.offered = core.pinned > 0 and self._filter is None
        return code

    def _make_ready(self, head: PostedWrite, least: int, most: int) -> int:
        """Return how much of the head can be sent without waiting for the disk.

        Returns:
            least to most bytes; 0: fewer, and a thread reads them first.

        """
        core = core_of(head.batch)  # type: ignore[arg-type]
        while (ready := self._probe.ready(core, most)) < least:
            future = start_reading(self.loop, self._probe)
            if future is not None:
                self._reading = head
                future.add_done_callback(partial(self._has_read, head))
                return 0
        return ready

    def _has_read(self, head: PostedWrite, future: asyncio.Future[int | OSError]) -> None:
        """Go on: a thread has read."""
        if self._reading is not head:
            return  # the write has ended meanwhile
        self._reading = None
        error = finish_reading(self._probe, future)
        if error is not None:
            core_of(head.batch).fail(error)  # type: ignore[arg-type]
            self._stop(head, WriteStatus.ERROR, error)
        self.take_turn()

    def _drain_leftovers(self) -> bool:
        """Take a step with what writes that ended have left in the filter."""
        code = IOB_ERROR
        try:
            code = self._filter.drain(self.sock)
        except Exception as exc:
            if is_interruption(exc):
                raise
            self.queue.report(exc)
        if code > 0:
            self.budget.spend(code)
            return True
        if code == IOB_ERROR:
            self.queue.report(self._filter.error)
        self._filter_has_leftovers = code == IOB_AGAIN and self._filter.wants != EVENT_READ
        return False

    # Waiting

    def _update_watch(self) -> None:
        """Have the loop watch the socket while anything waits for it; wake those who can go on."""
        if self.state == CLOSED:
            return
        waits = bool(self.queue.order) or self._filter_has_leftovers
        if waits and self._reading is None:
            waits = self._start_watch()
        else:
            self._watch.stop()
        if waits:
            self.state = WAITING
        else:
            self.state = EMPTY
            self.budget.schedule_refill()
        if self._waiters and (self.state == EMPTY or self.pending < self.high_water):
            self._wake_waiters()

    def _wake_waiters(self) -> None:
        for waiter in self._waiters:
            if not (waiter.done() or self.loop.is_closed()):
                waiter.set_result(None)

    def _start_watch(self) -> bool:
        """Have the loop watch the socket; return False if it refuses, which ends all writes."""
        try:
            self._watch.start()
        except Exception as exc:
            if is_interruption(exc):
                raise
            # The socket is closed, or belongs to a transport.
            for write in self.queue.writes:
                self._stop(write, WriteStatus.ERROR, exc)
            self._filter_has_leftovers = False
            return False
        return True

    async def change(self) -> None:
        """Wait until fewer than high_water bytes are pending, or nothing waits any more."""
        waiter = self.loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)

    # Ending

    def cancel(self, write: PostedWrite, kind: CancellationType) -> bool:
        """Cancel a pending write, as WriteOperation.cancel says."""
        kind = CancellationType(kind)
        self.check_not_busy()
        if kind is CancellationType.TOTAL and write.started:
            return False
        self._stop(write, WriteStatus.CANCELLED)
        self._update_watch()
        if kind is CancellationType.TERMINAL:
            self.close()
        return True

    def cancel_all(self, kind: CancellationType) -> bool:
        """Cancel all pending writes, as BatchWriter.cancel says."""
        kind = CancellationType(kind)
        self.check_not_busy()
        writes = self.queue.writes
        if kind is CancellationType.TOTAL:
            writes = [write for write in writes if not write.started]
        cancelled = 0 < len(writes) == len(self.queue.writes)
        for write in writes:
            self.queue.end_one(write, WriteStatus.CANCELLED)
        self._update_watch()
        if kind is CancellationType.TERMINAL:
            self.close()
        return cancelled

    def expire(self, write: PostedWrite) -> None:
        """End a write, since its time is over."""
        text = f"{write.transferred} of {write.max_bytes} bytes were sent in time"
        self._stop(write, WriteStatus.TIMEOUT, TimeoutError(text))
        if self.state != BUSY:
            self._update_watch()

    def close(self) -> None:
        """Abort everything, and let nothing more be posted."""
        self.state = CLOSED
        self.queue.abort_all()
        self._filter_has_leftovers = False
        self._watch.stop()
        self._wake_waiters()

    def check_not_busy(self) -> None:
        """Refuse what can't be done while a batch is being sent.

        Raises:
            RuntimeError: a batch is being sent.

        """
        if self.state == BUSY:
            raise RuntimeError("a batch is being sent: this is its own hook or callback")

    def retrieved(self, error: Exception | None) -> None:
        """Note that an error was retrieved, so that drain() doesn't raise it."""
        self.queue.retrieved(error)

    def _stop(
        self, write: PostedWrite, status: WriteStatus, error: Exception | None = None
    ) -> None:
        """End a write before it is done, and those after it if it has begun."""
        try:
            self.queue.end_early(write, status, error)
        except BaseException:
            self.close()
            raise

    def _write_ended(self, write: PostedWrite, status: WriteStatus) -> None:
        if self._reading is write:
            self._reading = None
        self._probe.forget()
        # A filter that has failed sends nothing any more.
        self._filter_has_leftovers = (
            self._filter is not None
            and ENDINGS[status].leaves_bytes_in_filter
            and self._filter.error is None
        )

"""Sends the head of a writer's queue, and waits for the socket or the disk.

    state     meaning                                   next states
    EMPTY     nothing is queued                         BUSY, CLOSED
    BUSY      a call that sends is in progress;         EMPTY, WAITING; CLOSED, if a MemoryError or
              writes posted meanwhile are only queued   a signal handler's exception ends the call
    WAITING   for the socket, the next turn of the      BUSY, EMPTY, CLOSED
              loop, or a thread that reads ahead
    CLOSED    every write has ended, none is accepted   -

The table in _operation.py defines how writes end; the queue implements it.
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
from iobatch._errors import is_interruption, ssl_error
from iobatch._forms import compiled_methods
from iobatch._pagecache import PageCacheProbe
from iobatch._send import SEND_LIMIT, iob_send, iob_sendmsg, send_joined
from iobatch._write import WRITE_LIMIT, iob_write
from iobatch.aio._operation import WriteOperation
from iobatch.aio._pipelines import Pipelines, Through, bytes_held, bytes_passed_on
from iobatch.aio._posted import (
    DONE,
    ENDINGS,
    PENDING,
    CancellationType,
    PostedWrite,
    Timer,
    WriteStatus,
)
from iobatch.aio._queue import WriteQueue
from iobatch.aio._readahead import finish_read_ahead, start_read_ahead
from iobatch.aio._watch import SocketWatch

if TYPE_CHECKING:
    import asyncio

    from iobatch._core import BatchCore
    from iobatch.aio._budget import TurnBudget

# Plain ints: members of an Enum take longer to look up.
EMPTY: Final = 0
BUSY: Final = 1
WAITING: Final = 2
CLOSED: Final = 3
STATE_NAMES: Final = ("empty", "busy", "waiting", "closed")  # for repr, indexed by the state

MUST_READ: Final = (
    "the filter or callback must read before it can write, and a BatchWriter does not read"
)


@final
@compiled_methods
@define(eq=False)
class WriteSender:
    """Sends posted writes in their order.

    Inside its calls, the caller's code runs only as hooks of batches, the filter, callbacks of
    iob_write, signal handlers and finalizers.
    """

    loop: asyncio.AbstractEventLoop
    sock: socket.socket
    pipelines: Pipelines
    budget: TurnBudget
    # drain() waits while at least this number of bytes is pending.
    high_water: int
    state: int = field(init=False, default=EMPTY)
    # The loop's time when bytes of a queued write were last sent; 0: none yet.
    last_progress: float = field(init=False, default=0)
    # Whether sock is a message socket and the writer has no pipeline: each write is one message.
    sends_messages: bool = field(init=False)
    # Whether the bytes of a write that has no pipeline of its own go straight to a stream socket.
    _direct: bool = field(init=False)
    queue: WriteQueue = field(init=False)
    _probe: PageCacheProbe = field(init=False)
    # The head, while it waits for a thread to read from its file; else None.
    _awaiting_read: PostedWrite | None = field(init=False, default=None)
    # The filter of a write that ended early, which may hold bytes of that write; else None.
    _leftovers: Any = field(init=False, default=None)
    # The unsent bytes of a write that ended part-way. Until this batch is posted again or reset,
    # nothing may follow. None: no write ended so.
    _rest: IOBatch | None = field(init=False, default=None)
    # The offer that a callback without drain() must be given again, after the write that made it
    # has ended: the head of its batch, the length, and the callback. None: there is no such offer.
    _owed_offer: tuple[object, int, Through] | None = field(init=False, default=None)
    _watch: SocketWatch = field(init=False)
    # The futures of tasks in wait_for_change().
    _waiters: list[asyncio.Future[None]] = field(init=False, factory=list["asyncio.Future[None]"])

    def __attrs_post_init__(self) -> None:
        own = self.pipelines.through
        self.sends_messages = own is None and self.sock.type != socket.SOCK_STREAM
        self._direct = own is None and not self.sends_messages
        self.queue = WriteQueue(self._write_ended)
        self._watch = SocketWatch(self.loop, self.sock, self.resume, self.close)
        self._probe = PageCacheProbe(whole=self.sends_messages)

    @property
    def pending(self) -> int:
        """The number of bytes posted and not sent yet, including those that filters hold."""
        return self.queue.bytesleft + self.pipelines.held()

    # Posting

    def send_at_once(
        self, batch: IOBatch, user_info: Any, timeout: float | None, stall_timeout: float | None
    ) -> WriteOperation | None:
        """Send a batch without queueing it, if no write is queued and all of it can be sent now.

        Most writes take this path, so its cost is the cost of a writer: it makes no object and no
        call that it can avoid. If the socket takes less than all, the rest is queued.

        Returns:
            The operation; None: this path can't be taken, and nothing has changed.

        """
        core = core_of(batch)
        left = core.left
        budget = self.budget
        if (
            self.state != EMPTY
            or not self._direct
            or self.pipelines.codec is not None
            or self._rest is not None
            or core.activity
            or core.release_pending
            or core.error is not None
            or not 0 < left <= budget.left
        ):
            return None
        sent = core.sent
        # Lock writer and batch: a signal handler must not send this batch or a queued write.
        self.state = BUSY
        core.activity = SENDING
        try:
            ready = self._probe.try_join_cached(core, left)
            if core.left != left or (type(ready) is int and ready < left):
                self.state = EMPTY
                return None
            if type(ready) is bytes:
                code = send_joined(self.sock, core, ready)
            else:
                core.activity = IDLE
                if core.releasable:
                    # Hooks must find the caller's batch empty, and may add to it.
                    batch = IOBatch()
                    core_of(batch).extend(core)
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
        core.sent = sent  # a batch's count does not include bytes that a write has taken from it
        budget.left -= left
        self.state = EMPTY
        if budget.left < budget.refill_below:
            budget.schedule_refill()
        if self.queue.order:  # a hook or finalizer has posted writes
            self._send_queued()
        return WriteOperation((self, user_info, left))

    def _queue_rest(
        self,
        core: BatchCore,
        sent_before: int,
        code: int,
        user_info: Any,
        *,
        timeout: float | None,
        stall_timeout: float | None,
    ) -> WriteOperation:
        """Queue the rest of a write that started in the caller's batch, and restore that batch.

        The write takes the entries, the count of its bytes, and the error. The caller's batch gets
        back the count that it had before, and no error.
        """
        batch = IOBatch()
        rest = core_of(batch)
        rest.extend(core)
        rest.sent, core.sent = core.sent - sent_before, sent_before
        rest.error, core.error = core.error, None
        size = rest.sent + rest.left
        write = PostedWrite(self, user_info)
        write.batch = batch
        write.complete_at = write.max_bytes = size
        write.operation = operation = WriteOperation(write)
        self.queue.prepend(write)  # hooks may have posted other writes
        self.pipelines.posted(None, has_bytes=True, finishes=False)
        if code == IOB_ERROR:
            self._end_early(write, WriteStatus.ERROR, rest.error)
            self.state = EMPTY
            if self.queue.order:
                self._send_queued()
        else:
            self.budget.spend(rest.sent)
            # The next attempt comes when the loop reports the socket writable.
            self._update_watch()
        self._set_timer(write, timeout, stall_timeout)
        return operation

    def post(self, write: PostedWrite, timeout: float | None, stall_timeout: float | None) -> None:
        """Queue a write, send what can be sent at once, and start its timer."""
        self.queue.append(write)
        if write.max_bytes:
            self._owed_offer = None  # if there was one, this write makes it
        self.pipelines.posted(write.through, has_bytes=write.max_bytes > 0, finishes=write.finishes)
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
            write.timer.start()

    # Sending

    def resume(self) -> None:
        """Send queued writes in a new turn of the loop, with a full budget."""
        if self.state == CLOSED or self.sock.fileno() < 0:
            self.close()  # the socket was closed under the writer, or close() was interrupted
            return
        self.budget.refill()
        self._send_queued()

    def try_now(self) -> None:
        """Try to send before the loop reports the socket writable.

        The loop reports that only when much of the socket's buffer is free, which takes long if the
        peer reads slowly.
        """
        if self.state == WAITING and self._awaiting_read is None and self._watch.check():
            self.resume()

    def _send_queued(self) -> None:
        """Send all that can be sent now, and have the loop call again if anything must wait."""
        self.state = BUSY
        try:
            while self.budget.left > 0 and self._advance_queue():
                pass
            self._update_watch()
        except BaseException:
            # A signal handler's exception or a MemoryError: the count of bytes sent may be unknown.
            self.close()
            raise

    def _advance_queue(self) -> bool:
        """Advance the head by one step; return whether another step may follow."""
        head = self.queue.head
        if head is None:
            return self._leftovers is not None and self._drain_leftovers()
        filtered = head.filter is not None
        before = bytes_passed_on(head.filter) if filtered else 0
        try:
            code, source = self._advance_write(head)
        except Exception as exc:
            if (head.through is None and not self.sends_messages) or is_interruption(exc):
                raise
            # The callback raised the exception, or sendmsg refused an argument: the write reports
            # it.
            self._end_early(head, WriteStatus.ERROR, exc)
            return True
        progress = code > 0
        if filtered:
            # A filter takes input while its output can't be sent, and a full one returns IOB_AGAIN
            # even if it has sent some of the bytes it holds.
            sent = bytes_passed_on(head.filter) > before
            progress = sent or (progress and not bytes_held(head.filter))
        if progress:
            self.last_progress = self.loop.time()
        if code > 0:
            self.budget.spend(code)
            # A write does not end while a callback must be offered the same bytes again.
            if head.filter is not None or head.incomplete or head.offer_pending:
                return True
            code = IOB_DONE
        if code == IOB_DONE:
            if head.finishes:
                self.pipelines.finished(head.through, head.until)
            self.queue.end_one(head, DONE)
        elif code == IOB_ERROR:
            self._end_early(head, WriteStatus.ERROR, source.error)
        elif source.wants == EVENT_READ:
            error = ssl_error(SSLWantReadError, SSL_ERROR_WANT_READ, MUST_READ)
            self._end_early(head, WriteStatus.ERROR, error)
        else:
            return False
        return True

    def _advance_write(self, head: PostedWrite) -> tuple[int, Any]:
        """Send some bytes of a write, or some bytes of it that the filter holds.

        Returns:
            The return code, and the batch or filter whose `error` and `wants` go with it.

        """
        if head.incomplete or head.offer_pending:
            return self._send_batch(head), head.batch
        if head.filter is None:
            return IOB_DONE, head.batch
        if not head.finishes:
            return head.filter.drain(self.sock), head.filter
        self.pipelines.took(head.filter)  # the end of a stream is output, too
        options = {} if head.until is None else {"until": head.until}
        return head.filter.finish(self.sock, **options), head.filter

    def _send_batch(self, head: PostedWrite) -> int:
        """Send some bytes of a write's batch."""
        batch: Any = head.batch
        core = core_of(batch)
        if self.sends_messages and head.through is None:
            if not self._make_ready(head, core.left, core.left):
                return IOB_AGAIN
            return iob_sendmsg(self.sock, batch, head.ancdata, head.flags, head.address)
        # One call probes and sends at most this number of bytes, however many a turn may send.
        most = SEND_LIMIT if head.through is self.pipelines.through else WRITE_LIMIT
        max_bytes = min(head.max_bytes - head.transferred, self.budget.left, most)
        limit = self._make_ready(head, 1, max_bytes)
        if not limit:
            return IOB_AGAIN
        if head.through is None:
            return iob_send(self.sock, batch, flags=head.flags, limit=limit)
        code = iob_write(self.sock, batch, head.through, limit=limit)
        if code > 0:
            self.pipelines.took(head.filter)
        if code != IOB_ERROR:  # else an earlier offer stays pending
            head.offer_pending = core.pinned > 0 and head.filter is None
        return code

    def _make_ready(self, head: PostedWrite, min_bytes: int, max_bytes: int) -> int:
        """Return the number of bytes of the head that can be sent without waiting for the disk.

        Returns:
            min_bytes to max_bytes; 0: fewer than min_bytes, and a thread reads ahead first.

        """
        batch: Any = head.batch
        core = core_of(batch)
        while (ready := self._probe.ready(core, max_bytes)) < min_bytes:
            future = start_read_ahead(self.loop, self._probe)
            if future is not None:
                self._awaiting_read = head
                future.add_done_callback(partial(self._resume_after_read, head))
                return 0
        return ready

    def _resume_after_read(self, head: PostedWrite, future: asyncio.Future[int | OSError]) -> None:
        """Continue with a write after a thread has read from its file."""
        if self._awaiting_read is not head:
            return  # the write ended meanwhile
        self._awaiting_read = None
        error = finish_read_ahead(self._probe, future)
        if error is not None and self.sock.fileno() >= 0:
            batch: Any = head.batch
            core_of(batch).fail(error)
            self._end_early(head, WriteStatus.ERROR, error)
        self.resume()

    def _drain_leftovers(self) -> bool:
        """Drain, by one step, the bytes that ended writes have left in the filter."""
        code = IOB_ERROR
        try:
            code = self._leftovers.drain(self.sock)
        except Exception as exc:
            if is_interruption(exc):
                raise
            self.queue.keep_unretrieved(exc)
        if code > 0:
            self.budget.spend(code)
            return True
        if code == IOB_ERROR:
            self.queue.keep_unretrieved(self._leftovers.error)
        if code != IOB_AGAIN or self._leftovers.wants == EVENT_READ:
            self._leftovers = None
        return False

    # Waiting

    def _update_watch(self) -> None:
        """Have the loop resume if anything waits for it, and wake tasks that can go on."""
        waits = bool(self.queue.order) or self._leftovers is not None
        if waits and self._awaiting_read is None:
            waits = self._start_watch()
        else:
            self._watch.stop()
        if self.state == CLOSED:
            return
        if waits:
            self.state = WAITING
        else:
            self.state = EMPTY
            self.budget.schedule_refill()
        if self._waiters and (not self.queue.order or self.pending < self.high_water):
            self._wake_waiters()

    def _wake_waiters(self) -> None:
        for waiter in self._waiters:
            if not (waiter.done() or self.loop.is_closed()):
                waiter.set_result(None)

    def _start_watch(self) -> bool:
        """Have the loop watch the socket; if it refuses, end all writes and return False."""
        if self.sock.fileno() < 0:
            self.close()  # a hook or callback has closed the socket
            return False
        try:
            self._watch.start(writable=self.budget.left <= 0)
        except Exception as exc:
            if is_interruption(exc):
                raise
            # The descriptor is closed, or belongs to a transport.
            for write in self.queue.writes:
                self._end_early(write, WriteStatus.ERROR, exc)
            self._leftovers = None
            return False
        return True

    async def wait_for_change(self) -> None:
        """Wait until drain() or the end of an `async with` block must check its condition again.

        That is when fewer than high_water bytes are pending, and when no write is queued.
        """
        waiter = self.loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)

    # Ending

    def cancel(self, write: PostedWrite, kind: CancellationType) -> bool:
        """Cancel a pending write; see WriteOperation.cancel."""
        self.check_not_busy()
        if kind is CancellationType.TOTAL and write.started:
            return False
        self._end_early(write, WriteStatus.CANCELLED)
        self._update_watch()
        if kind is CancellationType.TERMINAL:
            self.close()
        return True

    def cancel_all(self, kind: CancellationType) -> bool:
        """Cancel all pending writes; see BatchWriter.cancel."""
        self.check_not_busy()
        writes = self.queue.writes
        if kind is CancellationType.TOTAL:
            writes = [write for write in writes if not write.started]
        cancelled = 0 < len(writes) == len(self.queue.writes)
        try:
            for write in writes:
                self.queue.end_one(write, WriteStatus.CANCELLED)
        except BaseException:
            self.close()
            raise
        self._update_watch()
        if kind is CancellationType.TERMINAL:
            self.close()
        return cancelled

    def expire(self, write: PostedWrite) -> None:
        """End a write whose timeout has expired.

        The writes before it, whose timeouts may have expired at the same time, end first: one of
        them may have sent some bytes, and then this write is aborted.
        """
        writes = self.queue.writes
        before = writes[: writes.index(write)]
        expired = [each for each in before if each.timer is not None and each.timer.expired]
        for each in [*expired, write]:
            text = f"{each.transferred} of {each.max_bytes} bytes were sent in time"
            self._end_early(each, WriteStatus.TIMEOUT, TimeoutError(text))
        if self.state != BUSY:
            self._update_watch()

    def close(self) -> None:
        """Abort all writes, and accept no more."""
        self.state = CLOSED
        try:
            self._end_all()
        except BaseException:
            self._end_all()  # continue where a signal handler's exception stopped the first call
            raise

    def _end_all(self) -> None:
        self.queue.abort_all()
        self._leftovers = None
        self._watch.stop()
        self._wake_waiters()

    def check_not_busy(self) -> None:
        """Refuse an action that is impossible while the writer is sending.

        Raises:
            RuntimeError: a call that sends is in progress.

        """
        if self.state == BUSY:
            raise RuntimeError("the writer is in use: a call on it is in progress")

    def mark_retrieved(self, error: Exception | None) -> None:
        """Forget an error that was retrieved, so that drain() doesn't raise it."""
        self.queue.mark_retrieved(error)

    def _end_early(
        self, write: PostedWrite, status: WriteStatus, error: Exception | None = None
    ) -> None:
        """End a write before it is done; end the writes after it if it ends part-way."""
        try:
            self.queue.end_early(write, status, error)
        except BaseException:
            self.close()
            raise

    def _write_ended(self, write: PostedWrite, status: WriteStatus) -> None:
        if self._awaiting_read is write:
            self._awaiting_read = None
        self._probe.forget()
        self.pipelines.ended(write.through, ends_codec=write.ends_codec and status is not DONE)
        if status is not DONE and write.part_way and write.batch:
            self._rest = write.batch
        if write.offer_pending:
            batch: Any = write.batch
            core = core_of(batch)
            self._owed_offer = core.head, core.pinned, write.through
        # A failed filter sends nothing more.
        if write.filter is not None and write.filter.error is not None:
            self._leftovers = None
        elif ENDINGS[status].leaves_bytes_in_filter:
            # A codec leads to the writer's filter, so the fuller pipeline includes the other.
            if bytes_held(write.filter) >= bytes_held(self._leftovers):
                self._leftovers = write.filter
        elif not bytes_held(self._leftovers):
            self._leftovers = None

    def truncated(self) -> IOBatch | None:
        """Return the unsent bytes of a write that ended part-way; None: nothing is truncated."""
        if not self._rest:
            self._rest = None
        return self._rest

    def check_owed_offer(self, batch: IOBatch, through: Through) -> None:
        """Refuse bytes in place of those that a callback must be offered again.

        OpenSSL may have sent a part of the record that it made of them.

        Raises:
            RuntimeError: batch does not begin with the offer that is owed to this callback.

        """
        if self._owed_offer is not None:
            core = core_of(batch)
            owed, length, callback = self._owed_offer
            is_owed = batch and core.head is owed and core.pinned == length
            if not is_owed or through is not callback:
                raise RuntimeError(
                    "the callback must be offered the bytes of an earlier operation again: post "
                    "the batch of that operation first"
                )

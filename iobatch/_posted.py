"""The queue of posted writes: what of it is sent when, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from math import inf
from selectors import EVENT_READ
from ssl import SSL_ERROR_WANT_READ, SSLWantReadError
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field

from iobatch._batch import IOB_AGAIN, IOB_DONE, IOB_ERROR
from iobatch._cold import Guard
from iobatch._entries import positive
from iobatch._operation import DONE, PENDING, CancellationType, Timer, WriteOperation, WriteStatus
from iobatch._send import SEND_LIMIT, iob_send, iob_sendmsg
from iobatch._write import WRITE_LIMIT, iob_write
from iobatch.filters import Filter

if TYPE_CHECKING:
    from collections.abc import Callable

# Plain ints: members of an Enum take longer to look up.
IDLE: Final = 0  # nothing is queued
SENDING: Final = 1  # inside a call that sends: what is posted now is only queued
WAITING: Final = 2  # for the loop to say that the socket is writable, or that a thread has read
CLOSED: Final = 3

READ_FIRST: Final = "the filter has to read before it can write, and a writer has no reader"


@define(eq=False, repr=False)
class PostedWrites:
    """Sends what stands at the head of its queue, and has the loop tell of what ended.

    Nobody's code but a batch's own hooks and the filter's runs inside its calls. Only the head is
    ever sent in part.

    It waits for the socket to be writable not only where the socket is full, but also where the
    loop shall have a turn in between: so there is one way to go on.
    """

    sock: socket.socket
    _through: Callable[[Any, memoryview], int | None] | None = field(default=None, kw_only=True)
    timeout: float | None = field(default=None, kw_only=True)
    stall_timeout: float | None = field(default=None, kw_only=True)
    _limit: int | None = field(default=None, kw_only=True)
    _high_water: int = field(default=64 * 1024, kw_only=True)
    user_info: Any = field(default=None, kw_only=True)
    status: WriteStatus = field(init=False, default=PENDING)

    _loop: asyncio.AbstractEventLoop = field(init=False, factory=asyncio.get_running_loop)
    _state: int = field(init=False, default=IDLE)
    # The pending operations, as an ordered set: one may leave it from the midst.
    _queue: OrderedDict[WriteOperation, None] = field(init=False, factory=OrderedDict)
    # The bytes that they may send; the head may have sent some of its own already.
    _queued: int = field(init=False, default=0)
    # How much may be sent before the loop has had a turn,
    _credit: int = field(init=False)
    # below how much the loop is asked for one,
    _scarce: int = field(init=False)
    # and how much it was when the loop was asked; -1: it was not.
    _asked: int = field(init=False, default=-1)
    # It tells what of a batch can be sent without waiting for the disk.
    _guard: Guard = field(init=False)
    # The operation that waits for a thread to read from its file. It is at the head.
    _reading: WriteOperation | None = field(init=False, default=None)
    # Each write is one message.
    _messages: bool = field(init=False)
    # A send will do: a stream without a filter.
    _direct: bool = field(init=False)
    # What bytes go through, if it keeps some of them: a Filter.
    _filter: Any = field(init=False, default=None)
    # An operation ended before the filter had passed on all that it took.
    _leftover: bool = field(init=False, default=False)
    # The descriptor that the loop watches, or -1.
    _watched: int = field(init=False, default=-1)
    # When something was sent last, in the loop's time.
    _progress: float = field(init=False, default=0)
    # The first error of an operation that nobody was told of.
    _unheard: Exception | None = field(init=False, default=None)
    # Those that wait for less to be pending.
    _waiters: list[asyncio.Future[None]] = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        if self.sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")
        if self._through is None and hasattr(self.sock, "do_handshake"):
            raise TypeError(
                "a TLS socket's batches go through its send: through=ssl.SSLSocket.send"
            )
        if self._high_water < 1:
            raise ValueError(f"high_water must be at least 1: {self._high_water}")
        if self._limit is None:
            self._limit = SEND_LIMIT if self._through is None else WRITE_LIMIT
        self._refill()
        self._scarce = self._credit // 2
        self._messages = self._through is None and self.sock.type != socket.SOCK_STREAM
        self._guard = Guard(self._messages)
        self._direct = self._through is None and not self._messages
        if hasattr(self._through, "drain"):
            self._filter = self._through

    @property
    def pending(self) -> int:
        """The bytes that were posted and are not sent yet, with those that filters hold."""
        pending = self._queued
        for head in self._queue:
            pending -= head.bytes_transferred
            break
        each: Any = self._filter
        while each is not None:
            pending += each.bytesleft
            further = each._then if isinstance(each, Filter) else None
            each = further if isinstance(further, Filter) else None
        return pending

    def __repr__(self) -> str:
        state = ("idle", "sending", "waiting", "closed")[self._state]
        return (
            f"<{type(self).__name__} on descriptor {self.sock.fileno()}: {state}, "
            f"{len(self._queue)} operations, {self.pending} bytes pending>"
        )

    # Starting

    def _start(
        self, operation: WriteOperation, timeout: float | None, stall_timeout: float | None
    ) -> None:
        """Send what can be sent if nothing was in front of an operation, and set its timer."""
        if self._state == IDLE:
            self._pump()
        if operation.status is PENDING and not (timeout is None and stall_timeout is None):
            now = self._loop.time()
            operation._timer = Timer(
                operation,
                inf if timeout is None else now + timeout,
                inf if stall_timeout is None else stall_timeout,
                now,
            )
            operation._timer.check()

    def _enqueue(self, operation: WriteOperation) -> None:
        self._queue[operation] = None
        self._queued += operation._most

    # Sending

    def _turn(self) -> None:
        """Go on: the loop has had a turn, and the socket is writable."""
        self._refill()
        self._pump()

    def _refill(self) -> None:
        self._credit = positive(self._limit)
        self._asked = -1

    def _renew(self) -> None:
        """Refill what was spent before the loop was asked for this turn, if it had no other."""
        if self._asked >= 0:
            spent = self._asked - self._credit
            self._refill()
            self._credit -= spent

    def _save(self) -> None:
        """Have the credit renewed by the loop before there is none left.

        So a writer that never waits has no write that does, and most cost nothing for it.
        """
        if not self._loop.is_closed():
            self._asked = self._credit
            self._loop.call_soon(self._renew)

    def _probe(self) -> None:
        """Try to send though the loop has not said that the socket is writable.

        It says so when much of the buffer is free; a peer that reads slowly needs long for that.
        """
        if self._state == WAITING and self._reading is None:
            self._turn()

    def _pump(self) -> None:
        """Send what goes out now, and have the loop call again if anything has to wait."""
        self._state = SENDING
        try:
            while self._credit > 0 and self._step():
                pass
        except BaseException:
            # A signal's handler, or no memory: how much was sent is not known.
            self._shut()
            raise
        self._settle()

    def _step(self) -> bool:
        """Take a step with the operation at the head; tell whether another may follow."""
        head = next(iter(self._queue), None)
        if head is None:
            return self._leftover and self._sweep()
        source: Any = self._filter
        before = 0 if source is None else self.pending
        try:
            if head._unsent or head._offered:
                source = head.batch
                code = self._send(head)
            elif source is None:
                code = IOB_DONE
            elif head._finishes:
                code = source.finish(self.sock)
            else:
                code = source.drain(self.sock)
        except Exception as exc:
            if self._through is None:
                raise
            # It's the callback's, and the operation's to tell.
            self._stop(head, WriteStatus.ERROR, exc)
            return True
        # A filter that is full says "again", and may have sent some of what it holds all the same.
        if code > 0 or (self._filter is not None and self.pending < before):
            self._progress = self._loop.time()
        if code > 0:
            self._credit -= code
            # A callback that holds a part of what it was offered must be offered the rest first.
            if self._filter is not None or head._unsent or head._offered:
                return True
            code = IOB_DONE
        if code == IOB_DONE:
            self._end(head, DONE)
        elif code == IOB_ERROR:
            self._stop(head, WriteStatus.ERROR, source.error)
        elif source.wants == EVENT_READ:
            self._stop(head, WriteStatus.ERROR, SSLWantReadError(SSL_ERROR_WANT_READ, READ_FIRST))
        else:
            return False
        return True

    def _send(self, head: WriteOperation) -> int:
        """Send some of an operation's batch."""
        batch = head.batch
        # No more than SEND_LIMIT is looked at for a call, however much a turn may send.
        if self._messages:
            least = most = min(batch.bytesleft, SEND_LIMIT)
        else:
            least, most = 1, min(head._most - head.bytes_transferred, self._credit, SEND_LIMIT)
        while (limit := self._guard.reach(batch, most)) < least:
            future = self._guard.fetch(self._loop)
            if future is not None:
                self._reading = head
                future.add_done_callback(partial(self._fetched, head))
                return IOB_AGAIN
        if self._messages:
            return iob_sendmsg(self.sock, batch, (), head._flags)
        if self._through is None:
            return iob_send(self.sock, batch, flags=head._flags, limit=limit)
        code = iob_write(self.sock, batch, self._through, limit=limit)
        if code != IOB_ERROR:  # else what was offered before stays so
            head._offered = batch._pin > 0 and self._filter is None
        return code

    def _sweep(self) -> bool:
        """Take a step with what operations that ended have left in the filter."""
        code = IOB_ERROR
        try:
            code = self._filter.drain(self.sock)
        except Exception as exc:  # noqa: BLE001 # there is no operation to tell it
            self._unheard = self._unheard or exc
        if code > 0:
            self._credit -= code
            return True
        if code == IOB_ERROR and self._unheard is None:
            self._unheard = self._filter.error
        self._leftover = code == IOB_AGAIN and self._filter.wants != EVENT_READ
        return False

    def _fetched(self, head: WriteOperation, future: asyncio.Future[int | OSError]) -> None:
        """Go on: a thread has read."""
        if self._reading is not head:
            return  # it has ended meanwhile
        self._reading = None
        error = self._guard.fetched(future)
        if error is not None:
            head.batch._fail(error)
            self._stop(head, WriteStatus.ERROR, error)
        self._turn()

    # Waiting

    def _settle(self) -> None:
        """Have the loop watch the socket as long as anything waits; wake those who can go on."""
        if self._state == CLOSED:
            return
        if (self._queue or self._leftover) and self._watched < 0 and self._reading is None:
            fd = self.sock.fileno()
            try:
                self._loop.add_writer(fd, self._turn)
                self._watched = fd
            except Exception as exc:  # noqa: BLE001 # it is closed, or belongs to a transport
                for operation in list(self._queue):
                    self._stop(operation, WriteStatus.ERROR, exc)
                self._leftover = False
        self._state = WAITING if self._queue or self._leftover else IDLE
        if self._watched >= 0 and (self._state == IDLE or self._reading is not None):
            # There is nothing to watch any more where the caller has closed it.
            with suppress(OSError):
                self._loop.remove_writer(self._watched)
            self._watched = -1
        if self._credit < self._scarce and self._asked < 0 and self._state == IDLE:
            self._save()
        if self._waiters and (self._state == IDLE or self.pending < self._high_water):
            for waiter in self._waiters:
                if not (waiter.done() or self._loop.is_closed()):
                    waiter.set_result(None)

    async def _change(self) -> None:
        """Wait until less than high_water bytes are pending, or nothing waits any more."""
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)

    # Ending

    def _end(
        self, operation: WriteOperation, status: WriteStatus, error: Exception | None = None
    ) -> None:
        """End an operation, whatever it leaves behind."""
        del self._queue[operation]
        self._queued -= operation._most
        if self._reading is operation:
            self._reading = None
        self._guard.forget()
        # A filter that has failed sends nothing any more.
        self._leftover = (
            self._filter is not None and status is not DONE and self._filter.error is None
        )
        operation._end(status, error)

    def _stop(
        self, operation: WriteOperation, status: WriteStatus, error: Exception | None = None
    ) -> None:
        """End an operation before it is done, and with it those behind it if it was begun."""
        if operation.status is not PENDING:
            return
        if error is not None and operation._listeners is None and self._unheard is None:
            self._unheard = error
        begun = operation._begun
        self._end(operation, status, error)
        if begun:
            self._abort()

    def _abort(self) -> None:
        """End all operations as ABORTED."""
        for operation in list(self._queue):
            error = OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self._end(operation, WriteStatus.ABORTED, error)

    def _cancel(self, operation: WriteOperation, kind: CancellationType) -> bool:
        """Do what WriteOperation.cancel says of a pending operation."""
        kind = CancellationType(kind)
        self._refuse_if_sending()
        if kind is CancellationType.TOTAL and operation._touched:
            return False
        self._stop(operation, WriteStatus.CANCELLED)
        self._settle()
        if kind is CancellationType.TERMINAL:
            self._shut()
        return True

    def _expire(self, operation: WriteOperation) -> None:
        """End an operation, since its time is over."""
        text = f"{operation.bytes_transferred} of {operation._most} bytes were sent in time"
        self._stop(operation, WriteStatus.TIMEOUT, TimeoutError(text))
        if self._state != SENDING:
            self._settle()

    def _shut(self) -> None:
        """Abort everything, and let nothing more be posted."""
        self._abort()
        self._leftover = False
        self._settle()
        self._state = CLOSED

    def _refuse_if_sending(self) -> None:
        if self._state == SENDING:
            raise RuntimeError("a batch is being sent: this is its own hook or callback")

    def _raise_unheard(self) -> None:
        error, self._unheard = self._unheard, None
        if error is not None:
            try:
                raise error
            finally:
                # Its traceback has this frame, and those of the caller.
                del self, error

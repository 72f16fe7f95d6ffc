"""The inside of a batch: its entries in order, their accounting, and what may be done to it when.

BatchCore is the seam. The modules that send know a batch by its core, which core_of() gives them,
and use only what has no underscore here: they look at the head, replace what was read or joined,
consume what was accepted, and keep what ended a call. IOBatch puts the public face on it. No socket
is ever seen here, and a class in C with the same members can take this one's place.

Re-entrancy. Other code runs in the middle of this library's: a hook, which a core calls; a callback
of iob_write; a signal handler; a finalizer. Each of them may

- add entries at the end, at any time;
- prepend, except while a system call or callback has the head, or after a callback said "again";
- send, reset or move its entries to another batch only while no call on it is in progress: else
  RuntimeError;
- raise. A hook's exception is reported, a callback's is covered by iob_write's contract, a
  finalizer's never leaves it. A signal handler's comes out of the call that it interrupted, as long
  as the handler keeps its frame argument, by which it is known.

CPython runs signal handlers at a function's start, after a call, and at each iteration of a loop,
between its test and its body; and finalizers also where memory is allocated. Statements without any
of these are one step, which no handler sees half done. The library relies on that, by five rules:

1. Counts and queue change in one step. What takes several (removing entries that were accepted,
   running their hooks) is driven by state in the core, not in local variables. If an exception
   stops it, the core stays `unsettled`, and settle() goes on before anything else is done with the
   batch. So each hook runs once and each owned file is closed once, whatever happens.
2. A sender stores `activity = SENDING` right before its `try`, and IDLE as the first statement of
   its `finally`. A call to begin or end a send would leave room for a handler.
3. Before each call that can take bytes a sender stores `error = COUNT_UNKNOWN`. consume() and
   call_raised() take it back when it is known what was taken. So an exception that a handler raises
   between the system call and its accounting leaves a batch that has failed for good, rather than
   one that would send the same bytes twice.
4. look() returns a copy of the queue. A sender locks first (rule 2), then looks: under the lock the
   queue can only grow at its end, so what the copy has stays true.
5. settle() is never inside itself: what is added meanwhile waits for the one in progress.
"""

from __future__ import annotations

import errno
from collections import deque
from itertools import islice
from selectors import EVENT_READ, EVENT_WRITE
from ssl import SSLWantReadError
from typing import Any, Final

from attrs import define

from iobatch._arguments import MAX_BYTES
from iobatch._entries import IOV_MAX, Entry, Release, Releases, pread
from iobatch._errors import (
    TruncatedFileError,
    forget_frames,
    is_again,
    is_from_handler,
    is_interruption,
    report_unraisable,
)

IOB_DONE: Final = 0
IOB_AGAIN: Final = -1
IOB_ERROR: Final = -3

IDLE: Final = 0  # no call is in progress
SENDING: Final = 1  # a system call or callback has the head, so that nothing may get before it
RELEASING: Final = 2  # entries that are gone are removed, and their hooks run

# The most bytes that are made ready before a file range that is read: so one system call reads no
# more of files than this, and a slow reader's batch holds no more of them.
STAGE_LIMIT: Final = 128 * 1024
# Up to here copying neighbours into one offer costs less than the record or the system call that
# it saves.
OFFER_LIMIT: Final = 32 * 1024

TOO_LONG: Final = "neither a batch nor a file has more than 2**63 - 1 bytes"

# A core's error during each call that can take bytes (rule 3).
COUNT_UNKNOWN: Final = OSError(
    errno.EIO, "an exception interrupted the accounting: it is unknown how many bytes were sent"
)


@define(eq=False, repr=False, init=False)
class BatchCore:
    """The entries of a batch and their accounting: what the sending functions know of it."""

    # The bytes still to be written.
    left: int
    # The bytes written since creation or reset.
    sent: int
    # The permanent error, or COUNT_UNKNOWN.
    error: OSError | None
    # What to wait for after "again": EVENT_WRITE or EVENT_READ.
    wants: int
    # The length of an offer that a callback answered by "again": the first bytes of the head, which
    # is a buffer then. The next offer must be the same (SSL_write(3): "bad write retry"). 0: none.
    pinned: int
    # IDLE, SENDING or RELEASING.
    activity: int
    # The number of entries that are file ranges. All that are counted neither here nor below are
    # `bytes`: where both are 0, all can be joined.
    ranges: int
    # The number of entries with something to be done when they go: views and Releases.
    releasable: int
    # settle() is in progress, or an exception has stopped it.
    unsettled: bool
    # The entries, in order. Only this module and IOBatch's shortest ways of adding touch it.
    queue: deque[Entry]
    # The first bytes of the queue were accepted or dropped, and are still to be removed from it.
    _spent: int
    # What to run now.
    _due: deque[Release]

    def __init__(self) -> None:
        """Make an empty core."""
        # A generated __init__, which looks every default up, takes three times as long.
        self.left = self.sent = self.pinned = self.ranges = self.releasable = self._spent = 0
        self.error = None
        self.wants = EVENT_WRITE
        self.activity = IDLE
        self.unsettled = False
        self.queue = deque()
        self._due = deque()

    # Adding

    def append(self, entry: Entry, count: int, releases: Releases = ()) -> None:
        """Add an entry of count bytes, and what to run when they are gone.

        An empty entry is not added; what belongs to it runs at once.

        Raises:
            OverflowError: more than 2**63 - 1 bytes would be left. Nothing has changed.

        """
        is_range = type(entry) is tuple
        releasable = len(releases)
        if type(entry) is memoryview:
            releasable += 1
        entries = (entry, *releases)
        left = self.left + count
        if left > MAX_BYTES:
            raise OverflowError(TOO_LONG)
        if count:
            self.left = left
            self.ranges += is_range
            self.releasable += releasable
            self.queue.extend(entries)
        else:
            self._release_empty(entry, releases)

    def prepend(self, entry: bytes | memoryview, releases: Releases = ()) -> None:
        """Add a buffer before what is left; otherwise as append().

        Raises:
            RuntimeError: the head is in use, see above.

        """
        if self.unsettled:
            self.settle()
        if self.pinned or self._spent or self.activity == SENDING:
            raise RuntimeError("the bytes at the head have been offered or are being sent")
        count = len(entry)
        releasable = len(releases) + (type(entry) is memoryview)
        entries = (*releases, entry)
        left = self.left + count
        if left > MAX_BYTES:
            raise OverflowError(TOO_LONG)
        if count:
            self.left = left
            self.releasable += releasable
            self.queue.extendleft(entries)
        else:
            self._release_empty(entry, releases)

    def take(self, other: BatchCore) -> None:
        """Move all entries of another core to the end of this one; its error stays where it is.

        Raises:
            RuntimeError: the other batch is being sent.
            OverflowError: as for append().

        """
        other.check_idle()
        empty: deque[Entry] = deque()
        left = self.left + other.left
        if left > MAX_BYTES:
            raise OverflowError(TOO_LONG)
        # From here to the last call is one step.
        moved, other.queue = other.queue, empty
        pinned = other.pinned
        self.left = left
        self.ranges += other.ranges
        self.releasable += other.releasable
        other.left = other.pinned = other.ranges = other.releasable = 0
        if self.queue or self.activity:
            self.queue.extend(moved)
        else:
            # The head of the other is the head of this one now: a retry must stay the same.
            self.queue = moved
            self.pinned = pinned

    # Looking at the head

    @property
    def head(self) -> Entry:
        """The first entry; there must be one."""
        return self.queue[0]

    def look(self, count: int | None = None) -> list[Entry]:
        """Return the first count entries, or all."""
        if count is None:
            return list(self.queue)
        while True:
            try:
                return list(islice(self.queue, count))
            except RuntimeError as exc:
                # An entry was added after the iterator was made.
                if is_interruption(exc):
                    raise

    # Staging: entries become buffers; each byte is read and joined once

    def stage(  # noqa: PLR0912 # one pass: a call for each range would cost a tenth of its read
        self,
        room: int,
        copy_limit: int = MAX_BYTES,
        *,
        whole: bool = False,
        joinable: bool = False,
    ) -> tuple[list[bytes | memoryview], int]:
        """Turn the entries at the head into buffers for one system call.

        Here it is decided which ranges go by sendfile: those of more than copy_limit bytes, unless
        sendfile was refused for them before. The caller chooses copy_limit, and calls
        refuse_sendfile() for the range at the head if it finds sendfile of no use. Any other range
        is read, and the bytes take its place in the queue. A range that goes by sendfile ends the
        run of buffers.

        A fault of a file, and its end before the end of the range, shows only when the range is at
        the head: what is before it is sent first, whatever the sizes.

        Args:
            room: the most bytes to return.
            copy_limit: the longest range that is read.
            whole: for one message: any number of buffers, and any fault shows at once.
            joinable: only neighbours that can be joined: nothing except `bytes`, and nothing to be
                released between them.

        Returns:
            The buffers, and how many bytes they have. If a range that goes by sendfile is at the
            head there are none, and the number is the length of that range.

        Raises:
            OSError: the range at the head can't be read.
            TruncatedFileError: its file has ended.

        """
        buffers: list[bytes | memoryview] = []
        size = releases = 0
        most = room if whole or room < STAGE_LIMIT else STAGE_LIMIT  # with what is read of files
        queue = self.queue
        for entry in list(queue) if whole or len(queue) <= IOV_MAX else self.look(IOV_MAX):
            if type(entry) is bytes:
                buffers.append(entry)
                size += len(entry)
            elif type(entry) is tuple:
                fd, offset, count, file, refused = entry
                want = most - size
                if count > copy_limit and not refused:
                    return buffers, size or count
                if want <= 0:
                    break
                try:
                    data = pread(fd, count if count < want else want, offset)
                    if not data:
                        raise TruncatedFileError(fd, offset, count)
                except OSError as exc:
                    if whole or not buffers or is_interruption(exc):
                        raise
                    break
                index = len(buffers) + releases
                got = len(data)
                buffers.append(data)
                size += got
                if got < count:
                    rest = (fd, offset + got, count - got, file, refused)
                    queue[index] = rest
                    queue.insert(index, data)
                    break
                self.ranges -= 1
                queue[index] = data
            elif joinable:
                break
            elif type(entry) is memoryview:
                buffers.append(entry)
                size += len(entry)
            else:
                releases += 1
            if size >= room:
                break
        if size > room:
            buffers[-1] = memoryview(buffers[-1])[: room - size]
            size = room
        return buffers, size

    def stage_one(self, room: int) -> bytes | memoryview:
        """Make one buffer of the entries at the head, for a call that takes no more than one.

        Args:
            room: the most bytes to read; a buffer that was there may be longer.

        Raises: as for stage.
        """
        queue = self.queue
        head = queue[0]
        if type(head) is bytes and len(head) < OFFER_LIMIT:
            # No more of a file than can be joined; its rest comes by itself.
            room = min(room, OFFER_LIMIT)
        elif type(head) is not tuple:
            return head  # type: ignore[return-value]  # never a Release
        buffers, _ = self.stage(room, joinable=True)
        if type(buffers[-1]) is memoryview:
            buffers.pop()  # cut off for want of room: it stays as it is
        if len(buffers) > 1:
            joined = b"".join(buffers)
            last = len(buffers) - 1
            # One call removes those before the last, so that no handler sees some of them gone. It
            # takes them all, as none is empty.
            removals = islice(iter(queue.popleft, None), last)
            queue[last] = joined
            all(removals)
        return queue[0]  # type: ignore[return-value]  # it is a buffer now

    def pin(self, room: int) -> memoryview:
        """Return what to offer to a callback, and pin it: the next offer is the same.

        Args and Raises: as for stage_one.
        """
        if not self.pinned:
            self.pinned = min(len(self.stage_one(room)), room)
        return memoryview(self.queue[0])[: self.pinned].toreadonly()  # type: ignore[arg-type]

    def refuse_sendfile(self) -> None:
        """Have the range at the head read from now on, since sendfile can't be used for it."""
        fd, offset, count, file, _ = self.queue[0]  # type: ignore[misc]
        self.queue[0] = (fd, offset, count, file, True)
        self.error = None

    # What came of a call

    def consume(self, nbytes: int) -> None:
        """Account for bytes that were accepted, and release the entries that they end."""
        left = self.left - nbytes
        self.left = left
        self.sent += nbytes
        self.error = None
        self.pinned = 0
        if not left and not self.releasable:
            self.ranges = 0
            # Last, since a handler may add entries at its end.
            self.queue.clear()
            return
        self._spent += nbytes
        self.unsettled = True
        self.settle()

    def call_raised(self, exc: BaseException) -> int | None:
        """Account for a call that raised an exception, and so has taken nothing.

        Returns:
            IOB_AGAIN, and `wants` says what to wait for; IOB_ERROR, and `error` is kept; None:
            the exception must be raised: it is no OSError, or a signal handler's, after which the
            count may be unknown.

        """
        if is_interruption(exc):
            return None
        self.error = None
        if not isinstance(exc, OSError):
            return None
        if is_again(exc):
            self.wants = EVENT_READ if isinstance(exc, SSLWantReadError) else EVENT_WRITE
            # A callback may raise the same exception each time: its traceback must not grow.
            forget_frames(exc)
            return IOB_AGAIN
        self.fail(exc)
        return IOB_ERROR

    def fail(self, error: OSError) -> None:
        """Keep a permanent error, without the frames and views that its traceback holds."""
        forget_frames(error)
        self.error = error
        self.pinned = 0

    def clear(self, *, left: int = 0) -> None:
        """Drop all entries and the error, run what belongs to the entries, and count from 0 again.

        What hooks add meanwhile stays. The argument is for a batch that is being collected, which
        must take nothing.
        """
        self._spent += self.left
        self.left = left
        self.sent = self.pinned = 0
        self.error = None
        self.wants = EVENT_WRITE
        self.unsettled = True
        self.settle()

    # Order of calls

    def why_not(self) -> int | None:
        """Return why nothing can be sent now, IOB_ERROR or IOB_DONE, or None if something can.

        Raises:
            RuntimeError: as check_idle().

        """
        if self.activity or self.unsettled:
            self.check_idle()
        if self.error is not None:
            return IOB_ERROR
        return None if self.left else IOB_DONE

    def check_idle(self) -> None:
        """Finish what was interrupted, unless the batch is being sent.

        Raises:
            RuntimeError: it is: this is a hook, callback or handler that runs inside that call.

        """
        if self.activity:
            raise RuntimeError("the batch is being sent: this is its own hook or callback")
        if self.unsettled:
            self.settle()

    def settle(self) -> None:
        """Remove the entries that were accepted or dropped, then run what was to be run after them.

        It goes on where an exception stopped it, and is never inside itself.
        """
        activity = self.activity
        if activity == RELEASING:
            return  # what was added meanwhile has its turn
        self.activity = RELEASING
        try:
            self._remove_spent()
            if self._due:
                self._run_due()
        finally:
            self.activity = activity
        self.unsettled = False

    # What follows is for this class.

    def _remove_spent(self) -> None:
        queue = self.queue
        while queue:
            entry: Any = queue[0]
            kind = type(entry)
            if kind is Release:
                self.releasable -= 1
                del queue[0]
                self._due.append(entry)
                continue
            size = entry[2] if kind is tuple else len(entry)
            spent = self._spent
            if size > spent:
                if spent:
                    self._shorten_head(spent)
                break
            if kind is tuple:
                self.ranges -= 1
            elif kind is memoryview:
                self.releasable -= 1
            self._spent = spent - size
            del queue[0]
            if kind is memoryview:
                entry.release()

    def _run_due(self) -> None:
        """Run the hooks of entries that are gone."""
        due = self._due
        while due:
            release = due[0]
            try:
                release()
            except BaseException as exc:  # there is no caller to raise it to
                if isinstance(exc, KeyboardInterrupt) or is_from_handler(exc):
                    raise
                report_unraisable(exc)
            del due[0]

    def _shorten_head(self, spent: int) -> None:
        """Remove the first bytes, but not all, of the entry at the head."""
        entry = self.queue[0]
        if type(entry) is tuple:
            fd, offset, count, file, refused = entry
            self.queue[0] = (fd, offset + spent, count - spent, file, refused)
            self._spent = 0
            return
        rest = memoryview(entry)[spent:]  # type: ignore[arg-type]  # never a Release
        plain = type(entry) is bytes
        self.queue[0] = rest
        self._spent = 0
        self.releasable += plain
        if type(entry) is memoryview:
            entry.release()

    def _release_empty(self, entry: Entry, releases: Releases) -> None:
        """Run what belongs to an entry that has no bytes."""
        if type(entry) is memoryview:
            entry.release()
        if releases:
            self.unsettled = True
            self._due.extend(releases)
            self.settle()

"""The core of a batch: its entries in order, their accounting, and when each operation is allowed.

BatchCore is the interface between a batch and the modules that send it. These modules get the core
from core_of() and use only its members without an underscore: with them a module turns the head
into buffers, reports the bytes that were accepted, and stores the error that ended a call. IOBatch
is the public API of a core. This module uses no sockets, and a class in C with the same members can
replace BatchCore.

Re-entrancy. Other code runs during the calls of this library: a hook, which a core calls; a
callback of iob_write; a signal handler; a finalizer; another thread. Such code may

- add entries at the end, except to a batch that is being garbage-collected;
- prepend, except while a call is sending the batch (its hooks may), and except after a callback has
  returned "again", until the offered bytes are taken, another function sends the batch, or the
  batch fails or is reset;
- send a batch, reset it or move its entries to another batch only while no call on it is in
  progress. Otherwise RuntimeError is raised;
- raise an exception. The exception of a hook is reported to sys.unraisablehook. iob_write handles
  the exception of a callback by its contract. The exception of a finalizer never leaves the
  finalizer. The exception of a signal handler propagates out of the interrupted call, even out of a
  hook. is_from_handler() recognizes it by the handler's frame argument, so a handler written in
  Python must keep that argument. KeyboardInterrupt propagates in the same way, also if the hook
  itself raised it.

CPython runs signal handlers at the start of a function, after a call, and at the jump back of each
loop: before the next item of a `for` loop; before or after the test of a `while` loop, depending on
the version. It switches threads at these points, and in calls that wait. It runs finalizers at
these points, where memory is allocated, and where the last reference to an object is dropped.
Statements without any of these points are one step: no handler, thread or finalizer sees such a
step half done. The library keeps five rules about steps:

1. The counts and the queue change in one step. Work that takes several steps (removing accepted
   entries and running their hooks) is driven by state in the core, not by local variables. If an
   exception stops this work, `release_pending` stays true, and the next call that sends, resets,
   prepends to or empties the batch resumes the work. So each hook, and each owned file's close(),
   is called once.
2. A function that sends stores `activity = SENDING` before its `try`, with none of these points in
   between, and IDLE as the first statement of its `finally`. If methods did this, a handler could
   run between the method and the `try`. There is no such point between the last test of `activity`
   and the store either: another thread could begin a call there.
3. Before each call that can take bytes, such a function stores `error = COUNT_UNKNOWN`. This error
   is removed as soon as the number of bytes taken is known. So if a handler raises an exception
   between the system call and its accounting, or the interpreter raises a MemoryError or
   RecursionError there, the batch has failed permanently and cannot send the same bytes twice. A
   MemoryError in a callback has the same effect.
4. snapshot() returns a copy of the queue. A function that sends locks the batch first (rule 2) and
   takes the snapshot second. Other code can only append to a locked queue, so the copy stays equal
   to the first entries of the queue until the function itself changes the queue.
5. release_entries() never runs inside itself: work that is added meanwhile is done by the call in
   progress. Only the function that sends a batch removes entries while it does so; other code, in
   another thread too, only runs the hooks of empty entries that it adds.
"""

from __future__ import annotations

import errno
from collections import deque
from itertools import islice
from selectors import EVENT_READ, EVENT_WRITE
from ssl import SSLWantReadError
from typing import TYPE_CHECKING, Any, Final

from attrs import define

from iobatch._arguments import MAX_BYTES, release_views
from iobatch._entries import IOV_MAX, Entry, FileRange, Release, Releases
from iobatch._errors import (
    TruncatedFileError,
    drop_traceback,
    is_again,
    is_from_handler,
    is_interruption,
    report_unraisable,
)
from iobatch._files import pread
from iobatch._forms import connect, speedups

if TYPE_CHECKING:
    from collections.abc import Iterable

IOB_DONE: Final = 0
IOB_AGAIN: Final = -1
IOB_ERROR: Final = -3

# The activities of a batch.
IDLE: Final = 0  # no call is in progress
SENDING: Final = 1  # a call is sending the batch, so nothing can be prepended
RELEASING: Final = 2  # consumed or dropped entries are being removed, and their hooks run

# Except for a message, stage() stops reading files when its buffers hold this number of bytes. So
# each send reads at most this number of file bytes, and the batch of a slow peer holds no more of
# them in memory.
STAGE_LIMIT: Final = 128 * 1024
# Up to this size, copying neighbours into one offer costs less than the TLS record or the system
# call that it saves.
JOIN_OFFER_LIMIT: Final = 32 * 1024

IN_USE: Final = "the batch is in use: a call on it is in progress"
TOO_LONG: Final = "a batch's length and a file range's end must not exceed 2**63 - 1 bytes"

# The error of a core during each call that can take bytes (rule 3).
COUNT_UNKNOWN: Final = OSError(
    errno.EIO, "an exception interrupted the accounting: the number of bytes sent is unknown"
)


@define(eq=False, repr=False, init=False)
class CoreState:
    """The fields of a BatchCore."""

    # The number of bytes left to send.
    left: int
    # The number of bytes sent since creation or reset().
    sent: int
    # The permanent error, or COUNT_UNKNOWN (rule 3).
    error: OSError | None
    # The event to wait for after "again": EVENT_WRITE or EVENT_READ.
    wants: int
    # The length of the offer that a callback is given or has answered with "again". The head is a
    # buffer then, and the offer is its first `pinned` bytes. After "again" the next offer must be
    # the same (SSL_write(3): "bad write retry"). 0: no offer is pinned.
    pinned: int
    # IDLE, SENDING or RELEASING.
    activity: int
    # The number of file ranges in the queue.
    ranges: int
    # The number of views and Releases in the queue: entries that need an action when they are
    # removed. If `ranges` and `releasable` are 0, all entries are `bytes` and can be joined.
    releasable: int
    # Whether release_entries() is in progress, or was stopped by an exception.
    release_pending: bool
    # The entries, in order. Apart from this module only the fast paths of IOBatch, which add
    # entries, access it.
    queue: deque[Entry]
    # The number of bytes at the head of the queue that were accepted or dropped, and that are still
    # in the queue.
    _to_remove: int
    # The Releases that were removed from the queue, and whose hooks have not run.
    _due_releases: deque[Release]

    def __init__(self) -> None:
        """Make an empty core."""
        # A generated __init__ looks up every default and takes three times as long.
        self.left = self.sent = self.pinned = self.ranges = self.releasable = self._to_remove = 0
        self.error = None
        self.wants = EVENT_WRITE
        self.activity = IDLE
        self.release_pending = False
        self.queue = deque()
        self._due_releases = deque()


Queue = deque
if speedups is not None and not TYPE_CHECKING:
    CoreState, Queue = speedups.CoreState, speedups.EntryQueue


class BatchCore(CoreState):
    """The entries of a batch and their accounting, as the sending modules use them."""

    __slots__ = ()

    # Adding

    def append(self, entry: Entry, count: int, releases: Releases = ()) -> None:
        """Add an entry at the end of the batch.

        An empty entry is not added, and its releases run at once.

        Args:
            entry: a buffer or a range.
            count: its length in bytes.
            releases: the hooks to run when the entry is released.

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
            raise _too_long(entries)
        if count:
            self.left = left
            self.ranges += is_range
            self.releasable += releasable
            self.queue.extend(entries)
        else:
            self._release_empty(entry, releases)

    def append_buffers(self, buffers: list[bytes | memoryview], releasable: int) -> None:
        """Add buffers at the end of the batch.

        Args:
            buffers: the buffers, none of them empty.
            releasable: the number of views among them.

        Raises:
            OverflowError: as for append().

        """
        count = sum(map(len, buffers))
        left = self.left + count
        if left > MAX_BYTES:
            raise _too_long(buffers)
        self.left = left
        self.releasable += releasable
        self.queue.extend(buffers)

    def prepend(self, entry: bytes | memoryview, releases: Releases = ()) -> None:
        """Add a buffer before the head of the batch; otherwise as append().

        Raises:
            RuntimeError: the head is pinned, or is being sent or removed.
            OverflowError: as for append().

        """
        count = len(entry)
        releasable = len(releases) + (type(entry) is memoryview)
        entries = (*releases, entry)
        if self.release_pending:
            self.release_entries()
        # Until the entry is in the queue, no point follows at which another thread can send.
        # An entry is removed before its Release. A buffer between the two would delay the hook.
        # (type() is a call, at whose end the interpreter can switch threads.)
        removing = self._to_remove or (self.queue and self.queue[0].__class__ is Release)
        if self.pinned or removing or self.activity == SENDING:
            raise RuntimeError(
                "the first bytes of the batch are being sent or removed, or must be offered to the "
                "callback again"
            )
        left = self.left + count
        if left > MAX_BYTES:
            raise _too_long(entries)
        if count:
            self.left = left
            self.releasable += releasable
            self.queue.extendleft(entries)
        else:
            self._release_empty(entry, releases)

    def extend(self, other: BatchCore) -> None:
        """Move all entries of another core to the end of this core.

        The other core keeps its error and its count of sent bytes.

        Raises:
            RuntimeError: a call on the other batch is in progress; or its head is pinned, and would
                not become the head of this batch.
            OverflowError: as for append().

        """
        empty: deque[Entry] = Queue()
        # Until the entries have moved, no point follows at which a call on `other` can begin.
        while other.activity or other.release_pending:
            other.check_idle()
        left = self.left + other.left
        if left > MAX_BYTES:
            raise OverflowError(TOO_LONG)
        pinned = other.pinned
        if pinned and (self.queue or self.activity):
            raise RuntimeError(
                "the first bytes of the other batch must be offered to its callback again, so they "
                "can be moved only into an empty batch"
            )
        # From here to the call of `self.queue.extend` is one step.
        moved, other.queue = other.queue, empty
        self.left = left
        self.ranges += other.ranges
        self.releasable += other.releasable
        other.left = other.pinned = other.ranges = other.releasable = 0
        if self.queue or self.activity:
            self.queue.extend(moved)
        else:
            # The head of the other core becomes the head of this core, so its pin moves with it.
            self.queue = moved
            self.pinned = pinned

    # Looking at the head

    @property
    def head(self) -> Entry:
        """The first entry. The queue must not be empty."""
        return self.queue[0]

    def snapshot(self, count: int | None = None) -> list[Entry]:
        """Return a copy of the queue: its first `count` entries, or all."""
        if count is None:
            return list(self.queue)
        while True:
            try:
                return list(islice(self.queue, count))
            except RuntimeError as exc:
                # The queue changed during the iteration: copy again.
                if isinstance(exc, RecursionError) or is_interruption(exc):
                    raise

    # Staging: entries become buffers, and no byte of a file is read twice

    def stage(  # noqa: PLR0912 # one loop: a call for each range makes its read a tenth slower
        self,
        max_bytes: int,
        copy_limit: int = MAX_BYTES,
        *,
        whole: bool = False,
        joinable: bool = False,
    ) -> tuple[list[bytes | memoryview], int]:
        """Turn the entries at the head into buffers for one system call.

        This method decides which ranges are sent by sendfile: those of more than copy_limit bytes,
        unless sendfile has already been refused for the range. A caller that can't use sendfile for
        the range at the head calls refuse_sendfile(). All other ranges are read, and the bytes
        replace the range in the queue. The buffers end before a range that is sent by sendfile.

        A failed read, or the end of a file before the end of its range, is raised only if the range
        is at the head: the entries before the range are sent first.

        Args:
            max_bytes: the most bytes to return.
            copy_limit: a range of more than this number of bytes is sent by sendfile, unless
                sendfile was refused for it.
            whole: for one message: return any number of buffers, more than IOV_MAX too, read more
                than STAGE_LIMIT, and raise any fault at once.
            joinable: return only neighbours that can be joined: `bytes` with no Release between
                them.

        Returns:
            The buffers and their total length in bytes. If a range that is sent by sendfile is at
            the head, an empty list and the length of that range.

        Raises:
            OSError: the range at the head can't be read.
            TruncatedFileError: the file of the range at the head has ended.

        """
        buffers: list[bytes | memoryview] = []
        size = releases = 0
        # The size up to which ranges are read.
        read_limit = max_bytes if whole or max_bytes < STAGE_LIMIT else STAGE_LIMIT
        queue = self.queue
        for entry in list(queue) if whole or len(queue) <= IOV_MAX else self.snapshot(IOV_MAX):
            if type(entry) is bytes:
                buffers.append(entry)
                size += len(entry)
            elif type(entry) is tuple:
                fd, offset, count, file, refused = entry
                want = read_limit - size
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
            if size >= max_bytes:
                break
        if size > max_bytes:
            buffers[-1] = memoryview(buffers[-1])[: max_bytes - size]
            size = max_bytes
        return buffers, size

    def coalesce_head(self, max_bytes: int) -> bytes | memoryview:
        """Make one buffer of the entries at the head, for a call that takes one, and return it.

        Args:
            max_bytes: the most bytes to read or join; a single buffer may be longer.

        Raises: as for stage().
        """
        queue: deque[Any] = self.queue
        head: bytes | memoryview | FileRange = queue[0]
        if type(head) is bytes and len(head) < JOIN_OFFER_LIMIT:
            # Read no more of a file than can be joined. The rest of the file is read later.
            max_bytes = min(max_bytes, JOIN_OFFER_LIMIT)
        elif not isinstance(head, tuple):
            return head
        buffers, _ = self.stage(max_bytes, joinable=True)
        if type(buffers[-1]) is memoryview:
            buffers.pop()  # stage() has cut this buffer at max_bytes: leave its entry whole
        if len(buffers) > 1:
            joined = b"".join(buffers)
            last = len(buffers) - 1
            # One call, all(), removes the entries before the last, so that no handler sees only
            # some of them removed. It does not stop early: no entry is empty, so none is false.
            removals = islice(iter(queue.popleft, None), last)
            queue[last] = joined
            all(removals)
        buffer: bytes | memoryview = queue[0]
        return buffer

    def pin_head(self, max_bytes: int) -> memoryview:
        """Return the next offer for a callback, and pin it: the next call returns the same bytes.

        Args:
            max_bytes: the most bytes of a new offer. The length of a pinned offer does not change.

        Raises: as for stage().
        """
        if not self.pinned:
            self.pinned = min(len(self.coalesce_head(max_bytes)), max_bytes)
        head: Any = self.queue[0]
        return memoryview(head)[: self.pinned].toreadonly()

    def refuse_sendfile(self) -> None:
        """Mark the range at the head to be read from now on, because sendfile can't send it."""
        head: Any = self.queue[0]
        fd, offset, count, file, _ = head
        self.queue[0] = (fd, offset, count, file, True)
        self.error = None

    # The result of a call

    def consume(self, nbytes: int) -> None:
        """Account for nbytes accepted bytes, and release the entries that are complete."""
        left = self.left - nbytes
        self.left = left
        self.sent += nbytes
        self.pinned = 0
        if not left and not self.releasable:
            self.error = None
            self.ranges = 0
            # The last statement, since a handler may run after this call and add entries.
            self.queue.clear()
            return
        self._to_remove += nbytes
        self.error = None  # the counts are complete: each sum could have raised a MemoryError
        self.release_pending = True
        self.release_entries(SENDING)

    def call_raised(self, exc: BaseException) -> int | None:
        """Account for a call that raised an exception.

        Such a call has taken no bytes, unless a signal handler interrupted it, or a MemoryError
        did, which may come from the accounting itself.

        Returns:
            IOB_AGAIN: `wants` is the event to wait for. IOB_ERROR: `error` is stored. None: the
            caller must re-raise the exception. The exception is not an OSError, or a signal handler
            raised it; if the handler, or a lack of memory or stack, stopped a call that can take
            bytes, `error` stays COUNT_UNKNOWN.

        """
        if isinstance(exc, MemoryError | RecursionError) or is_interruption(exc):
            return None
        self.error = None
        if not isinstance(exc, OSError):
            return None
        if is_again(exc):
            self.wants = EVENT_READ if isinstance(exc, SSLWantReadError) else EVENT_WRITE
            # A callback may raise the same exception object each time; its traceback must not grow.
            drop_traceback(exc)
            return IOB_AGAIN
        self.fail(exc)
        return IOB_ERROR

    def fail(self, error: OSError) -> None:
        """Store a permanent error without its traceback, whose frames hold views; drop the pin."""
        drop_traceback(error)
        self.error = error
        self.pinned = 0

    def clear(self) -> None:
        """Drop and release all entries; set error, counts and `wants` to their initial values.

        Entries that hooks add meanwhile stay in the batch.

        Raises:
            RuntimeError: a call on the batch is in progress.

        """
        if self.activity:
            raise RuntimeError(IN_USE)
        self._to_remove += self.left
        self.left = self.sent = self.pinned = 0
        self.error = None
        self.wants = EVENT_WRITE
        self.release_pending = True
        self.release_entries()

    def finalize(self) -> None:
        """Release all entries of a batch that is being garbage-collected.

        No later call could resume a release that the exception of a signal handler stops, so this
        one does.
        """
        dropped = False
        while True:
            try:
                if not dropped:
                    self._to_remove += self.left
                    # The batch counts as full, so hooks can't add entries, which would never be
                    # sent.
                    self.left = MAX_BYTES
                    self.release_pending = dropped = True
                self.release_entries()
            except BaseException as exc:  # it would be lost with a finalizer
                if not is_interruption(exc):
                    raise
                report_unraisable(exc)
            else:
                return

    # Order of calls

    def check_idle(self) -> None:
        """Check that no call on the batch is in progress, and finish a release that was stopped.

        Raises:
            RuntimeError: a call on the batch is in progress: the caller is a hook, a callback, a
                signal handler or a finalizer that runs inside that call.

        """
        if self.activity:
            raise RuntimeError(IN_USE)
        self.release_entries()

    def release_entries(self, caller: int = IDLE) -> None:
        """Remove the entries that were accepted or dropped, then run their hooks.

        A call after an exception resumes where the exception stopped the last call. While another
        call is in progress, this one leaves the work to it, except that during a send it runs the
        hooks that are due (rule 5).

        Args:
            caller: the activity of the caller: SENDING for the function that sends the batch.

        """
        activity = self.activity
        if activity != caller:
            if activity == SENDING:
                self._run_due_releases()
                # Other work is left to the function that sends.
                is_hook = self.queue and type(self.queue[0]) is Release
                if not (is_hook or self._to_remove or self._due_releases):
                    self.release_pending = False
            return
        self.activity = RELEASING
        try:
            self._remove_entries()
            # Other code may add an empty entry just before this call returns.
            while self._due_releases:
                self._run_due_releases()
        finally:
            self.activity = activity
        self.release_pending = False

    # The members below are private to this class.

    def _remove_entries(self) -> None:
        queue: deque[Any] = self.queue
        while queue:
            entry = queue[0]
            kind = type(entry)  # pyright: ignore[reportUnknownVariableType] # the class of an Any
            if kind is Release:
                self.releasable -= 1
                del queue[0]
                self._due_releases.append(entry)
                continue
            size = entry[2] if kind is tuple else len(entry)
            spent = self._to_remove
            if size > spent:
                if spent:
                    self._shorten_head(spent)
                break
            if kind is tuple:
                self.ranges -= 1
            elif kind is memoryview:
                self.releasable -= 1
            self._to_remove = spent - size
            del queue[0]
            if kind is memoryview:
                entry.release()

    def _run_due_releases(self) -> None:
        """Run the hooks of the entries that were removed."""
        due = self._due_releases
        while due:
            release = due[0]
            try:
                release()
            except BaseException as exc:  # no caller expects the exception of a hook
                if isinstance(exc, KeyboardInterrupt) or is_from_handler(exc):
                    raise
                report_unraisable(exc)
            if due and due[0] is release:  # else another thread has removed it meanwhile
                del due[0]

    def _shorten_head(self, spent: int) -> None:
        """Remove the first `spent` bytes of the head, which is longer than that."""
        entry = self.queue[0]
        if type(entry) is tuple:
            fd, offset, count, file, refused = entry
            self.queue[0] = (fd, offset + spent, count - spent, file, refused)
            self._to_remove = 0
            return
        buffer: Any = entry  # never a Release
        rest = memoryview(buffer)[spent:]
        plain = type(entry) is bytes
        self.queue[0] = rest
        self._to_remove = 0
        self.releasable += plain
        if type(entry) is memoryview:
            entry.release()

    def _release_empty(self, entry: Entry, releases: Releases) -> None:
        """Release an entry that has no bytes, and run its hooks."""
        if type(entry) is memoryview:
            entry.release()
        if releases:
            self.release_pending = True
            self._due_releases.extend(releases)
            self.release_entries()


def _too_long(entries: Iterable[Entry]) -> OverflowError:
    """Release the views of refused entries, which a traceback would hold; return the error."""
    release_views(entries)
    return OverflowError(TOO_LONG)


connect(BatchCore)

"""Probe whether file ranges are in the page cache, and read them ahead; without an event loop.

A read of a range that is not cached waits for the disk and blocks the event loop. So before each
attempt to send, the code for an event loop asks a PageCacheProbe how many bytes of the batch are
ready, and sends these. If no bytes are ready, it has a thread call the ReadAhead that read_ahead()
returns, and passes the number of bytes read to record_read().
"""

from __future__ import annotations

import os
from io import FileIO
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, final

from attrs import define, field

from iobatch._entries import Release
from iobatch._errors import is_again, is_interruption, suppress_call_error
from iobatch._files import duplicate, pread
from iobatch._forms import connect

if TYPE_CHECKING:
    from iobatch._core import BatchCore

# The most bytes that a thread reads ahead at a time. More would be read long before they are sent.
READ_AHEAD: Final = 512 * 1024
# The distance between the probed bytes of a long range. Linux itself reads half as much ahead.
PROBE_STRIDE: Final = 256 * 1024
# In a range of up to this number of bytes only the last byte is probed.
SINGLE_PROBE_LIMIT: Final = 64 * 1024
# The most bytes that one pread of a thread returns.
_READ_SIZE: Final = 64 * 1024
# A batch of up to this number of bytes is read and joined. A larger one is cheaper to probe than to
# copy.
JOIN_CACHED_LIMIT: Final = 20 * 1024
# The most entries that are probed before one call. Those that the call does not send are probed
# again.
MAX_PROBED_ENTRIES: Final = 256

_NOWAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0)
_preadv: Any = getattr(os, "preadv", None)
# The target of the probes' reads. Its content is not used.
_BYTE: Final = (bytearray(1),)


def cached_count(fd: int, offset: int, count: int) -> int:
    """Return how many bytes at the start of a range can be read without waiting for the disk.

    Single bytes are read with RWF_NOWAIT: the last byte of the range (usually a file was read from
    its start, so if its last byte is cached, all of it is); in a range of more than
    SINGLE_PROBE_LIMIT bytes also the first byte; and the last byte of each PROBE_STRIDE. A gap in
    the cache that is shorter than PROBE_STRIDE can be missed, and costs one or two waits for the
    disk.

    Source: preadv2(2), RWF_NOWAIT.
    """
    ready = 0
    try:
        if count > SINGLE_PROBE_LIMIT:
            _preadv(fd, _BYTE, offset, _NOWAIT)
        while count - ready > PROBE_STRIDE:
            _preadv(fd, _BYTE, offset + ready + PROBE_STRIDE - 1, _NOWAIT)
            ready += PROBE_STRIDE
        _preadv(fd, _BYTE, offset + count - 1, _NOWAIT)
    except OSError as exc:
        if is_interruption(exc):
            raise
        if isinstance(exc, BlockingIOError):
            return ready
        # The file does not support RWF_NOWAIT (EOPNOTSUPP, as on tmpfs), or reading fails in any
        # other way. The range counts as cached, and the send reports the error.
    return count


@final
@define(eq=False)
class ReadAhead:
    """A function that reads a part of a range into the page cache; call it once, in a thread.

    It owns a duplicate of the descriptor, so that it never reads from another file if the original
    descriptor is closed and its number is reused.
    """

    _file: FileIO
    _offset: int
    _count: int
    # The first of __call__() and close() acquires it, and only that one closes the file: a thread
    # may be reading when nothing waits for it any longer.
    _claim: Lock = field(init=False, factory=Lock)

    def __call__(self) -> int | OSError:
        """Read; return the number of bytes read, or the error if the first read failed.

        After close() nothing is read.
        """
        done = 0
        if not self._claim.acquire(blocking=False):
            return done
        fd = self._file.fileno()
        try:
            # Request all of the bytes from the disk at once. It is advice: its failure loses time.
            with suppress_call_error(OSError):
                os.posix_fadvise(fd, self._offset, self._count, os.POSIX_FADV_WILLNEED)
            while done < self._count:
                want = min(self._count - done, _READ_SIZE)
                size = len(pread(fd, want, self._offset + done))
                if not size:
                    break
                done += size
        except OSError as exc:
            # After "again" the send reads the range itself, and answers "again" as well.
            if not (done or is_again(exc)):
                return exc
        finally:
            self._close()
        return done

    def close(self) -> None:
        """Close the duplicate descriptor, unless __call__() has begun, which closes it itself."""
        if self._claim.acquire(blocking=False):
            self._close()

    def _close(self) -> None:
        # A failed close of a duplicate that was only read from loses nothing.
        with suppress_call_error(OSError):
            self._file.close()


@final
@define(eq=False)
class PageCacheProbe:
    """Finds out how many bytes of a batch can be sent without waiting for the disk."""

    # Whether the batch is one message, which is sent whole or not at all.
    _whole: bool = field(default=False, alias="whole")
    # The range that the last probe found not wholly cached: descriptor, offset, count.
    uncached: tuple[int, int, int] = field(init=False, default=(-1, 0, 0))
    # The ranges that count as read, by a thread or later by the send: descriptor, start, end. They
    # count as cached even if the page cache has dropped them since, so each send makes progress.
    _read_ranges: list[tuple[int, int, int]] = field(init=False, factory=list[tuple[int, int, int]])

    def try_join_cached(self, core: BatchCore, max_bytes: int) -> bytes | int:
        """Return all bytes of a small batch, joined; otherwise a number of bytes, as ready() does.

        Most responses are some bytes and a small file. Reading the file here is the read that
        sending would need in any case, so joining adds no system call and makes a probe
        unnecessary. The batch is not changed.

        Args:
            core: the batch.
            max_bytes: as for ready().

        """
        if core.left > JOIN_CACHED_LIMIT or core.left > max_bytes:
            return self.ready(core, max_bytes)
        entries: list[Any] = core.snapshot()
        if core.releasable or (core.ranges and not _NOWAIT):
            return self.ready(core, max_bytes)
        if not core.ranges:
            return b"".join(entries)
        for index, entry in enumerate(entries):
            if type(entry) is not bytes:  # a range: there are no views and no hooks
                fd, offset, count, _, _ = entry
                buffer = bytearray(count)
                try:
                    if _preadv(fd, (buffer,), offset, _NOWAIT) < count:
                        return max_bytes  # the send reports the end of the file
                except OSError as exc:
                    if is_interruption(exc):
                        raise
                    if not isinstance(exc, BlockingIOError):
                        return max_bytes  # as in cached_count()
                    ready = self._already_read(fd, offset, count)
                    if not ready:
                        self.uncached = entry[:3]
                    return sum(map(len, entries[:index])) + ready
                entries[index] = buffer
        return b"".join(entries)

    def ready(self, core: BatchCore, max_bytes: int) -> int:
        """Return how many bytes from the head of a batch can be sent without waiting for the disk.

        Args:
            core: the batch.
            max_bytes: the most bytes to be sent.

        Returns:
            At most max_bytes; more may be cached than is returned. 0: the head of the batch is not
            cached, and read_ahead() is the next step. If the batch has no ranges, or the system
            has no RWF_NOWAIT: max_bytes.

        """
        if not (core.ranges and _NOWAIT):
            return max_bytes
        size = 0
        for entry in core.snapshot(None if self._whole else MAX_PROBED_ENTRIES):
            if type(entry) is tuple:
                fd, offset, count, _, _ = entry
                if count > max_bytes - size:
                    count = max_bytes - size
                ready = self._already_read(fd, offset, count) or cached_count(fd, offset, count)
                size += ready
                if ready < count:
                    self.uncached = entry[:3]
                    break
            elif type(entry) is not Release:
                size += len(entry)
            if size >= max_bytes:
                return max_bytes
        return size

    def read_ahead(self) -> ReadAhead | None:
        """Return a ReadAhead for the start of the range that is not cached.

        Returns:
            A ReadAhead, which the caller calls or closes. None: no descriptor is available for it.
            The send must read these bytes itself, and ready() counts them as cached from then on.

        """
        fd, offset, count = self.uncached
        count = min(count, READ_AHEAD)
        try:
            return ReadAhead(duplicate(fd, FileIO), offset, count)
        except OSError as exc:
            if is_interruption(exc):
                raise
            self.record_read(count)
            return None

    def record_read(self, count: int = READ_AHEAD) -> None:
        """Count bytes of the range as cached: a thread has read them, or the send must.

        Args:
            count: the number of bytes, from the start of the range.

        """
        fd, offset, range_count = self.uncached
        if self._whole:
            count = range_count  # a message is sent whole: the rest of the range counts too
        else:
            self._read_ranges.clear()
        # At least 1, so that at the end of a file the send reads and reports the end.
        self._read_ranges.append((fd, offset, offset + max(1, count)))

    def forget(self) -> None:
        """Forget the ranges that were read: the cache may drop them before the next batch."""
        self._read_ranges.clear()

    def _already_read(self, fd: int, offset: int, count: int) -> int:
        """Return how many bytes at the start of a range count as read."""
        for its_fd, start, end in self._read_ranges:
            if its_fd == fd and start <= offset < end:
                return min(count, end - offset)
        return 0


connect(PageCacheProbe)

"""Is a range in the page cache? If it is not, how to have it read first. Knows no event loop.

A read of a file that is not cached waits for the disk, and all that a loop serves waits with it.
So before each attempt to send a batch a loop has a PageCacheProbe examine it, and sends what is
ready. If that is nothing, it runs what read_ahead() returns in a thread, and reports the result by
has_read().
"""

from __future__ import annotations

import os
from io import FileIO
from typing import TYPE_CHECKING, Any, Final, final

from attrs import define, field

from iobatch._entries import Release, pread
from iobatch._errors import is_interruption

if TYPE_CHECKING:
    from iobatch._core import BatchCore

# What a thread reads at a time, so that only what is soon sent is read.
READ_AHEAD: Final = 512 * 1024
# The distance between the bytes of a range that are probed: Linux reads half as much ahead.
PROBE_STRIDE: Final = 256 * 1024
# A range up to here is probed at its last byte only.
SINGLE_PROBE_LIMIT: Final = 64 * 1024
# A batch up to here is read and joined: more would take longer to copy than to probe.
JOIN_CACHED_LIMIT: Final = 20 * 1024
# The most entries that are probed for a call; what the call does not send is probed again.
MAX_PROBED_ENTRIES: Final = 256

_NOWAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0)
_preadv: Any = getattr(os, "preadv", None)
# Where the probes read to; the byte itself is of no use.
_BYTE: Final = (bytearray(1),)


def cached(fd: int, offset: int, count: int) -> int:
    """Return how much of a range, from its start on, can be read without waiting for the disk.

    Single bytes are read in that way: the last one, since files are read from their start, and of
    a long range the first one and one in each PROBE_STRIDE. A shorter hole is overlooked: it costs
    a wait or two for the disk.

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
        # The file knows no such reads (EOPNOTSUPP, as on tmpfs), or the read itself will fail.
    return count


@final
@define(eq=False)
class ReadAhead:
    """Reads a part of a range into the page cache; to be called once, in a thread.

    It has a duplicate of the descriptor, so that it never reads from another file, whatever becomes
    of the original meanwhile.
    """

    _file: FileIO
    _offset: int
    _count: int

    def __call__(self) -> int | OSError:
        """Read; return how many bytes there were, or why there were none."""
        done = 0
        with self._file as file:
            fd = file.fileno()
            try:
                # So that the disk has all of it to do at once.
                os.posix_fadvise(fd, self._offset, self._count, os.POSIX_FADV_WILLNEED)
                while done < self._count:
                    want = min(self._count - done, SINGLE_PROBE_LIMIT)
                    size = len(pread(fd, want, self._offset + done))
                    if not size:
                        break
                    done += size
            except OSError as exc:
                if not done:
                    return exc
        return done

    def close(self) -> None:
        """Close the duplicate, also if it was never called."""
        self._file.close()


@final
@define(eq=False)
class PageCacheProbe:
    """Says how much of a batch can be sent without waiting for the disk."""

    # The batch is one message: it is sent whole, or not at all.
    _whole: bool = False
    # The range that was found not to be cached: descriptor, offset, count.
    _missing: tuple[int, int, int] = field(init=False, default=(-1, 0, 0))
    # What a thread has read: descriptor, start, end. It counts as cached even if the page cache has
    # dropped it meanwhile, so that the sender always goes on.
    _was_read: list[tuple[int, int, int]] = field(init=False, factory=list)

    def examine(self, core: BatchCore, most: int) -> bytes | int:
        """Return all of a small batch, joined; or as ready(), if it can't be had in that way.

        Most responses are some bytes and a small file. To join them takes the same system call that
        sending them does, and no more time, and leaves nothing to be probed. The batch stays as it
        is.
        """
        if core.left > JOIN_CACHED_LIMIT or core.left > most:
            return self.ready(core, most)
        entries: list[Any] = core.look()
        if core.releasable or (core.ranges and not _NOWAIT):
            return self.ready(core, most)
        if not core.ranges:
            return b"".join(entries)
        for index, entry in enumerate(entries):
            if type(entry) is tuple:
                fd, offset, count, _, _ = entry
                buffer = bytearray(count)
                try:
                    if _preadv(fd, (buffer,), offset, _NOWAIT) < count:
                        return most  # the sender finds the end of the file
                except OSError as exc:
                    if is_interruption(exc):
                        raise
                    if not isinstance(exc, BlockingIOError):
                        return most  # as in cached()
                    ready = self._known(fd, offset, count)
                    if not ready:
                        self._missing = entry[:3]
                    return sum(map(len, entries[:index])) + ready
                entries[index] = buffer
        return b"".join(entries)

    def ready(self, core: BatchCore, most: int) -> int:
        """Return how much of a batch, from its head on, can be sent without waiting for the disk.

        It is no more than `most`. It may be less than there is, but is 0 only if the head is not
        cached: then read_ahead() is next.
        """
        if not (core.ranges and _NOWAIT):
            return most
        size = 0
        for entry in core.look(None if self._whole else MAX_PROBED_ENTRIES):
            if type(entry) is tuple:
                fd, offset, count, _, _ = entry
                if count > most - size:
                    count = most - size
                ready = self._known(fd, offset, count) or cached(fd, offset, count)
                size += ready
                if ready < count:
                    self._missing = entry[:3]
                    break
            elif type(entry) is not Release:
                size += len(entry)
            if size >= most:
                return most
        return size

    def read_ahead(self) -> ReadAhead | None:
        """Return what reads the start of the range that is not cached.

        Returns:
            None: there is no descriptor to be had, so it has to be read by the sender; ready() says
            so next.

        """
        fd, offset, count = self._missing
        count = min(count, READ_AHEAD)
        try:
            return ReadAhead(FileIO(os.dup(fd)), offset, count)
        except OSError as exc:
            if is_interruption(exc):
                raise
            self.has_read(count)
            return None

    def has_read(self, count: int = READ_AHEAD) -> None:
        """Take note of what a ReadAhead has read, or that the sender has to read it."""
        fd, offset, most = self._missing
        if self._whole:
            count = most  # the rest can't be left for later
        else:
            self._was_read.clear()
        # At least 1, so that the sender reads at the end of a file, and learns that it is the end.
        self._was_read.append((fd, offset, offset + max(1, count)))

    def forget(self) -> None:
        """Forget what was read: when the next batch comes, the cache may have dropped it."""
        self._was_read.clear()

    def _known(self, fd: int, offset: int, count: int) -> int:
        """Return how much of a range a thread has read."""
        for its_fd, start, end in self._was_read:
            if its_fd == fd and start <= offset < end:
                return min(count, end - offset)
        return 0

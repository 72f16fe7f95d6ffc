"""Files that are not in the page cache: how a loop is told of them, and has a thread read them.

A read of such a file waits for the disk, and all that a loop serves waits with it.
"""

from __future__ import annotations

import os
from io import FileIO
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, final

from attrs import define, field

from iobatch._entries import Release, pread

if TYPE_CHECKING:
    import asyncio

    from iobatch._batch import IOBatch

# What a thread reads at a time, so that only what is soon sent is read.
STRIDE: Final = 512 * 1024
# The distance of the places in a range that are looked at: Linux reads half as much ahead.
EACH: Final = 256 * 1024
# A range up to here is looked at in one place.
MEDIUM: Final = 64 * 1024
# A batch up to here is read and joined: more would take longer to copy than to look at.
SHORT: Final = 20 * 1024
# The most entries that are looked at for a call: what it does not send is looked at again.
ENTRIES: Final = 256

_NOWAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0)
_preadv: Any = getattr(os, "preadv", None)
# Where the probes read to; nobody looks at it.
_BYTE: Final = (bytearray(1),)


def cached(fd: int, offset: int, count: int) -> int:
    """Return how much of a range, from its start on, can be read without waiting for the disk.

    Single bytes are read in that way: the last one, since files are read from their start, and of
    a long range the first one and one in each EACH. A shorter hole is overlooked: it costs a wait
    or two for the disk.

    Source: preadv2(2), RWF_NOWAIT.
    """
    ready = 0
    try:
        if count > MEDIUM:
            _preadv(fd, _BYTE, offset, _NOWAIT)
        while count - ready > EACH:
            _preadv(fd, _BYTE, offset + ready + EACH - 1, _NOWAIT)
            ready += EACH
        _preadv(fd, _BYTE, offset + count - 1, _NOWAIT)
    except BlockingIOError:
        return ready
    except OSError:
        # The file knows no such reads (EOPNOTSUPP, as on tmpfs), or the read itself will fail.
        pass
    return count


def joined(batch: IOBatch) -> bytes | None:
    """Return all of a small batch as `bytes`, if that can be had without waiting for the disk.

    Most responses are some bytes and a small file. This does for them what stage() would, with the
    same system call and in no more time, and leaves nothing to be looked at. The batch stays as it
    is; None: who looks closer, or reads it, finds out why.
    """
    if batch._left > SHORT or not (batch._joinable or _NOWAIT):
        return None
    pieces: list[bytes | bytearray] = []
    try:
        if batch._joinable:
            return b"".join(batch._queue)  # type: ignore[arg-type]
        for entry in batch._queue:
            if type(entry) is bytes:
                pieces.append(entry)
            elif type(entry) is tuple:
                fd, offset, count, _, _ = entry
                buffer = bytearray(count)
                if _preadv(fd, (buffer,), offset, _NOWAIT) < count:
                    return None
                pieces.append(buffer)
            else:
                return None
    except (OSError, RuntimeError, TypeError):  # or something else was added meanwhile
        return None
    return b"".join(pieces)


def _read(file: FileIO, offset: int, count: int) -> int | OSError:
    """Read a range into the page cache; return how much there was, or why there was nothing."""
    done = 0
    with file:
        fd = file.fileno()
        try:
            # So that the disk has all of it to do at once.
            os.posix_fadvise(fd, offset, count, os.POSIX_FADV_WILLNEED)
            while done < count:
                size = len(pread(fd, min(count - done, MEDIUM), offset + done))
                if not size:
                    break
                done += size
        except OSError as exc:
            if not done:
                return exc
    return done


@final
@define(eq=False)
class Guard:
    """Keeps the sender of a batch from reading what the disk would have to bring first."""

    # The batch is one message: it is sent whole, or not at all.
    _whole: bool = False
    # Where the batch that was looked at last is not in the cache: descriptor, offset, count.
    _cold: tuple[int, int, int] = field(init=False, default=(-1, 0, 0))
    # What a thread has read: descriptor, from where, up to where. It is not looked at again, so
    # that the sender goes on, whatever the cache keeps.
    _read: list[tuple[int, int, int]] = field(init=False, factory=list)

    def reach(self, batch: IOBatch, most: int) -> int:
        """Return how much of a batch, from its head on, can be sent without waiting for the disk.

        It is no more than `most`. It may be less than there is, but is 0 only if the head is cold.
        """
        if batch._joinable or not _NOWAIT:
            return most
        size = 0
        queue = batch._queue
        try:
            for entry in queue if self._whole else islice(queue, ENTRIES):
                if type(entry) is tuple:
                    fd, offset, count, _, _ = entry
                    if count > most - size:
                        count = most - size
                    ready = self._had(fd, offset, count) or cached(fd, offset, count)
                    size += ready
                    if ready < count:
                        self._cold = entry[:3]
                        break
                elif type(entry) is not Release:
                    size += len(entry)
                if size >= most:
                    return most
        except RuntimeError:
            # A signal handler, or the garbage collector by a finalizer, added an entry meanwhile.
            pass
        return size

    def fetch(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[int | OSError] | None:
        """Have a thread read the start of the range where it is cold.

        It gets a duplicate of the descriptor: whatever becomes of the original meanwhile, it never
        reads from another file.

        Returns:
            A future for fetched(); None: there is no thread or descriptor to be had, and it has to
            be read here.

        """
        fd, offset, count = self._cold
        count = min(count, STRIDE)
        try:
            file = FileIO(os.dup(fd))
            try:
                future = loop.run_in_executor(None, _read, file, offset, count)
            except BaseException:
                file.close()
                raise
        except (OSError, RuntimeError):
            self._note(count)
            return None
        # The thread closes it, too; but not if it is cancelled before its turn.
        future.add_done_callback(lambda _: file.close())
        return future

    def fetched(self, future: asyncio.Future[int | OSError]) -> OSError | None:
        """Note what a thread has read; return why it has not."""
        # It is cancelled where the executor was shut down: then it has to be read here.
        count = STRIDE if future.cancelled() else future.result()
        if isinstance(count, OSError):
            return count
        self._note(count)
        return None

    def _note(self, count: int) -> None:
        """Note how much need not be looked at again."""
        fd, offset, most = self._cold
        if self._whole:
            count = most  # the rest can't be left for later
        else:
            self._read.clear()
        # Who reads at the end of a file shall learn that it is the end.
        self._read.append((fd, offset, offset + max(1, count)))

    def forget(self) -> None:
        """Forget what was read: when the next batch comes, the cache may have dropped it."""
        self._read.clear()

    def _had(self, fd: int, offset: int, count: int) -> int:
        """Return how much of a range a thread has read."""
        for its_fd, start, end in self._read:
            if its_fd == fd and start <= offset < end:
                return min(count, end - offset)
        return 0

"""A fake page cache and disk, and the sizes of ranges that are read in different ways."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import COPY_LIMIT
from iobatch._pagecache import READ_AHEAD
from tests.support.batches import batch_of
from tests.support.fakes import patch_os
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iobatch import IOBatch

PAGE = 4096
SMALL = 3 * PAGE  # below JOIN_CACHED_LIMIT: read, and joined with its neighbours
MEDIUM = 6 * PAGE  # between JOIN_CACHED_LIMIT and COPY_LIMIT: read, and sent with its neighbours
LARGE = 3 * READ_AHEAD + 5  # above COPY_LIMIT, and read ahead in four pieces
MESSAGE = 20 * PAGE  # above COPY_LIMIT; two of them fit into one message of a local socket


class Disk:
    """Replaces preadv, pread and sendfile by a disk, and a page cache that lacks evicted pages.

    The loop's thread creates the Disk. Its reads of evicted pages don't block, and are recorded as
    stalls. Any other thread that reads blocks until the disk is `ready`. A read puts its pages into
    the cache.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.loop_thread = threading.get_ident()
        self.evicted: set[tuple[int, int]] = set()  # pages, as (inode, number)
        self.keeps_nothing = False  # reading a page doesn't put it into the cache
        self.ready = threading.Event()
        self.ready.set()
        self.probes = 0  # calls of preadv with RWF_NOWAIT
        self.stalls: list[tuple[int, int]] = []  # evicted pages that the loop's thread has read
        self.thread_reads: list[tuple[int, int]] = []  # reads of other threads, as (inode, size)
        self.broken_from: int | None = None  # reads from this offset on fail with EIO
        self.real = {name: getattr(os, name) for name in ("preadv", "pread", "sendfile")}
        for name in self.real:
            patch_os(patch, name, getattr(self, name))

    def evict(self, fd: int, first: int = 0, last: int | None = None) -> None:
        """Drop a file's pages from first to last (the end, if None) from the cache."""
        status = os.fstat(fd)
        if last is None:
            last = status.st_size // PAGE
        self.evicted |= {(status.st_ino, page) for page in range(first, last + 1)}

    def evicted_in(self, fd: int, offset: int, count: int) -> set[tuple[int, int]]:
        """Return the evicted pages of a range."""
        inode = os.fstat(fd).st_ino
        pages = range(offset // PAGE, (offset + count - 1) // PAGE + 1)
        return self.evicted & {(inode, page) for page in pages}

    def preadv(self, fd: int, buffers: Any, offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        self.probes += 1
        if self.evicted_in(fd, offset, sum(map(len, buffers))):
            raise BlockingIOError(errno.EAGAIN, "not in the cache")
        return self.real["preadv"](fd, buffers, offset)

    def load(self, fd: int, offset: int, count: int) -> int:
        """Bring a range into the cache; return how many of its bytes can be read."""
        in_loop = threading.get_ident() == self.loop_thread
        assert in_loop or self.ready.wait(PATIENCE)
        if self.broken_from is not None:
            count = min(count, self.broken_from - offset)
            if count <= 0:
                raise OSError(errno.EIO, "the disk is broken")
        evicted = self.evicted_in(fd, offset, count)
        if in_loop:
            self.stalls += evicted
        if not self.keeps_nothing:
            self.evicted -= evicted
        return count

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        count = self.load(fd, offset, count)
        piece: bytes = self.real["pread"](fd, count, offset)
        if threading.get_ident() != self.loop_thread:
            self.thread_reads.append((os.fstat(fd).st_ino, len(piece)))
        return piece

    def sendfile(self, out: int, fd: int, offset: int, count: int) -> int:
        count = self.load(fd, offset, count)
        sent: int = self.real["sendfile"](out, fd, offset, count)
        return sent


@contextmanager
def slow_disk() -> Iterator[Disk]:
    """Put a Disk below the library; on leaving, release the threads that wait for it."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        try:
            yield disk
        finally:
            disk.ready.set()


def batch_of_ranges(fd: int, content: bytes) -> tuple[IOBatch, bytes]:
    """Return a batch of buffers and of ranges of several sizes, and the bytes that it holds."""
    batch = batch_of(b"header")
    expected = [b"header"]
    for offset, count in (0, 1), (PAGE - 1, SMALL), (7, len(content) - 7), (5, COPY_LIMIT + 1):
        batch.addfile(fd, offset, count)
        batch.addbuf(b"between")
        expected += [content[offset : offset + count], b"between"]
    return batch, b"".join(expected)

"""Files that are not in the page cache until a thread has read them."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.fakes import patch_os

if TYPE_CHECKING:
    from collections.abc import Iterator


class Uncached:
    """Replaces preadv and pread: bytes that no other thread has read are not cached.

    The loop's thread creates it. Both functions make the real call first, which has the faults.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.loop_thread = threading.get_ident()
        self.end = 0  # bytes before this offset are cached
        self.preadv, self.pread = os.preadv, os.pread
        patch_os(patch, "preadv", self.probe)
        patch_os(patch, "pread", self.read)

    def probe(self, fd: int, buffers: Any, offset: int, _flags: int) -> int:
        count = self.preadv(fd, buffers, offset)
        if offset + count > self.end:
            raise BlockingIOError(errno.EAGAIN, "not in the cache")
        return count

    def read(self, fd: int, count: int, offset: int) -> bytes:
        piece = self.pread(fd, count, offset)
        if threading.get_ident() != self.loop_thread:
            self.end = max(self.end, offset + len(piece))
        return piece


@contextmanager
def uncached() -> Iterator[Uncached]:
    """Put an Uncached below the library."""
    with pytest.MonkeyPatch.context() as patch:
        yield Uncached(patch)

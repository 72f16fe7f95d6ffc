"""Batches in tests: seeded data, invariants, and reading a batch out."""

from __future__ import annotations

import mmap
import os
import random
from typing import TYPE_CHECKING

from iobatch import IOBatch, iob_write
from iobatch._batch import core_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

    MakeFile = Callable[[bytes], int]  # the fixture make_file

IOV_MAX = os.sysconf("SC_IOV_MAX")
MAX_BYTES = 2**63 - 1  # the most bytes in a batch, and the largest file offset
STAGE_LIMIT = 128 * 1024  # the most bytes of files that are read for one system call


def data(nbytes: int, seed: int = 0) -> bytes:
    """Return seeded random bytes: they have no period, which could hide a wrong offset."""
    return random.Random(seed).randbytes(nbytes)


def joined(pieces: Sequence[Buffer]) -> bytes:
    return b"".join(bytes(memoryview(piece).cast("B")) for piece in pieces)


def mmap_of(content: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(content))
    memory[:] = content
    return memory


def batch_of(*pieces: bytes) -> IOBatch:
    batch = IOBatch()
    for piece in pieces:
        batch.addbuf(piece)
    return batch


def check_invariants(batch: IOBatch) -> None:
    """Assert what is true of every batch between two calls."""
    core = core_of(batch)
    sizes: list[int | None] = []  # None: a hook
    for entry in core.queue:
        if isinstance(entry, bytes | memoryview):
            sizes.append(len(entry))
        else:  # a file range is a tuple: descriptor, offset, count, ...
            sizes.append(entry[2] if isinstance(entry, tuple) else None)
    assert sum(size or 0 for size in sizes) == batch.bytesleft, (
        "bytesleft is not the sum of the entries"
    )
    assert 0 not in sizes, "an entry is empty"
    assert sizes[:1] != [None], "a hook at the head has not run"
    assert 0 <= core.pinned <= (sizes[0] or 0 if sizes else 0), "the pin is longer than the head"
    assert not core.pinned or not isinstance(core.head, tuple), "a file range is pinned"
    kinds = [type(entry) for entry in core.queue]
    assert core.ranges == kinds.count(tuple), "the count of file ranges is wrong"
    releasable = len(kinds) - kinds.count(tuple) - kinds.count(bytes)
    assert core.releasable == releasable, "the count of views and hooks is wrong"
    assert not core.release_pending, "entries or hooks are still to be released"
    assert not core.activity, "a call is still in progress"
    assert batch.bytessent >= 0
    assert bool(batch) is (batch.bytesleft > 0)


def take(batch: IOBatch, nbytes: int | None = None) -> bytes:
    """Write nbytes of a batch, or all, by iob_write, and return the bytes."""
    taken = bytearray()

    def callback(_sock: None, view: memoryview) -> int:
        taken.extend(view)
        return len(view)

    total = batch.bytesleft if nbytes is None else nbytes
    while len(taken) < total:
        if iob_write(None, batch, callback, limit=total - len(taken)) < 0:
            raise AssertionError(batch.error)
        check_invariants(batch)
    return bytes(taken)


class Borrowed:
    """A file object that doesn't close its descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd

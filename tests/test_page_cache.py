"""Probing the page cache and reading ahead, without an event loop."""

from __future__ import annotations

import errno
import os
from io import FileIO
from typing import TYPE_CHECKING

import pytest

from iobatch import IOBatch
from iobatch._batch import core_of
from iobatch._pagecache import (
    JOIN_CACHED_LIMIT,
    MAX_PROBED_ENTRIES,
    PROBE_STRIDE,
    READ_AHEAD,
    SINGLE_PROBE_LIMIT,
    PageCacheProbe,
    ReadAhead,
    cached_count,
)
from tests.support.batches import batch_of, data
from tests.support.fakes import again, log_preads, patch_os
from tests.support.pagecache import LARGE, SMALL, slow_disk
from tests.support.sockets import fd_count

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


def log_probes(patch: pytest.MonkeyPatch) -> list[int]:
    """Have every byte count as cached; return a list that collects the offsets of probes."""
    offsets: list[int] = []

    def preadv(_fd: int, _buffers: object, offset: int, _flags: int) -> int:
        offsets.append(offset)
        return 1

    patch_os(patch, "preadv", preadv)
    return offsets


@pytest.mark.parametrize(
    ("count", "probed"),
    [
        (1, [0]),
        (SINGLE_PROBE_LIMIT, [SINGLE_PROBE_LIMIT - 1]),
        (SINGLE_PROBE_LIMIT + 1, [0, SINGLE_PROBE_LIMIT]),
        (PROBE_STRIDE, [0, PROBE_STRIDE - 1]),
        (PROBE_STRIDE + 1, [0, PROBE_STRIDE - 1, PROBE_STRIDE]),
        (2 * PROBE_STRIDE + 5, [0, PROBE_STRIDE - 1, 2 * PROBE_STRIDE - 1, 2 * PROBE_STRIDE + 4]),
    ],
)
def test_last_byte_of_each_stride_is_probed(
    count: int, probed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the first byte of a range that is not small."""
    offsets = log_probes(monkeypatch)
    assert cached_count(7, 1000, count) == count
    assert offsets == [1000 + offset for offset in probed]


def test_range_is_probed_up_to_the_last_byte_to_be_sent(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(b"ten bytes.")
    fd = make_file(data(35))
    batch.addfile(fd)
    batch.addfile(fd)
    offsets = log_probes(monkeypatch)
    assert PageCacheProbe().ready(core_of(batch), 30) == 30
    assert offsets == [19]


def test_small_cached_batch_is_joined(make_file: MakeFile) -> None:
    content = data(JOIN_CACHED_LIMIT + 1)
    fd = make_file(content)
    probe = PageCacheProbe()
    batch = batch_of(b"abc", b"def")
    assert probe.try_join_cached(core_of(batch), 6) == b"abcdef"
    assert probe.try_join_cached(core_of(batch), 5) == 5
    batch = batch_of(b"abc")
    batch.addfile(fd, 0, JOIN_CACHED_LIMIT - 3)
    joined = b"abc" + content[:-4]
    assert probe.try_join_cached(core_of(batch), JOIN_CACHED_LIMIT) == joined
    batch.addbuf(b"d")
    assert probe.try_join_cached(core_of(batch), LARGE) == JOIN_CACHED_LIMIT + 1


def test_one_call_probes_a_bounded_number_of_entries_except_those_of_a_message(
    make_file: MakeFile,
) -> None:
    """A message is sent whole."""
    fd = make_file(b"x")
    batch = IOBatch()
    for _ in range(MAX_PROBED_ENTRIES + 1):
        batch.addfile(fd)
    assert PageCacheProbe().ready(core_of(batch), LARGE) == MAX_PROBED_ENTRIES
    assert PageCacheProbe(whole=True).ready(core_of(batch), LARGE) == MAX_PROBED_ENTRIES + 1


def test_batch_with_a_hook_is_not_joined() -> None:
    """The hook must run when its bytes are sent."""
    batch = IOBatch()
    batch.addbuf(b"abc", on_release=[].clear)
    assert PageCacheProbe().try_join_cached(core_of(batch), 10) == 10


def test_file_whose_cache_cannot_be_probed_counts_as_cached(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "scripted")

    patch_os(monkeypatch, "preadv", refuse)
    batch = IOBatch()
    batch.addfile(make_file(data(SMALL)))
    assert PageCacheProbe().try_join_cached(core_of(batch), SMALL) == SMALL
    assert PageCacheProbe().ready(core_of(batch), SMALL) == SMALL


@pytest.mark.parametrize("whole", [True, False])
def test_range_of_a_message_counts_as_read_when_its_start_is_read(
    make_file: MakeFile, *, whole: bool
) -> None:
    """A message is sent whole, and a thread reads at most READ_AHEAD bytes at a time."""
    batch = IOBatch()
    fd = make_file(data(2 * READ_AHEAD))
    batch.addfile(fd)
    probe = PageCacheProbe(whole=whole)
    with slow_disk() as disk:
        disk.evict(fd)
        assert probe.ready(core_of(batch), 2 * READ_AHEAD) == 0
        probe.record_read()
        ready = probe.ready(core_of(batch), 2 * READ_AHEAD)
        assert ready == (2 * READ_AHEAD if whole else READ_AHEAD)


def test_read_ahead_asks_for_its_whole_range_and_reads_no_more(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the disk can read all of it at once."""
    advice: list[tuple[int, ...]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *args: advice.append(args))
    file = FileIO(os.dup(make_file(data(LARGE))))
    fd = file.fileno()
    count = READ_AHEAD - 5
    assert ReadAhead(file, 7, count)() == count
    assert advice == [(fd, 7, count, os.POSIX_FADV_WILLNEED)]


def test_read_ahead_returns_the_error_of_its_first_read(make_file: MakeFile) -> None:
    fd = make_file(data(LARGE))
    with slow_disk() as disk:
        disk.broken_from = LARGE - 5
        error = ReadAhead(FileIO(os.dup(fd)), LARGE - 5, 5)()
        assert isinstance(error, OSError)
        assert error.errno == errno.EIO
        assert ReadAhead(FileIO(os.dup(fd)), LARGE - 9, 9)() == 4


def test_read_ahead_reads_nothing_after_its_close(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of a pool may begin when nothing waits for it any longer."""
    probe = PageCacheProbe()
    probe.uncached = (make_file(data(LARGE)), 0, LARGE)
    read_ahead = probe.read_ahead()
    assert read_ahead is not None
    read_ahead.close()
    reads = log_preads(monkeypatch)
    assert read_ahead() == 0
    assert not reads


class Unclosable(FileIO):
    """A file whose close(2) fails; as on Linux, it is closed nevertheless."""

    def close(self) -> None:
        if not self.closed:
            super().close()
            raise OSError(errno.EIO, "scripted")


@pytest.mark.parametrize("called", [True, False])
def test_failed_close_of_the_duplicate_does_not_matter(
    make_file: MakeFile, *, called: bool
) -> None:
    """What was read is in the page cache."""
    file = Unclosable(os.dup(make_file(data(LARGE))))
    read_ahead = ReadAhead(file, 0, LARGE)
    if called:
        assert read_ahead() == LARGE
    read_ahead.close()
    assert file.closed


def test_failed_advice_does_not_matter(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """posix_fadvise(2) is missing from some kernels, and file systems may refuse it."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "scripted")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    assert ReadAhead(FileIO(os.dup(make_file(data(LARGE)))), 0, LARGE)() == LARGE


def test_read_that_must_be_repeated_is_left_to_the_send(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise again()

    patch_os(monkeypatch, "pread", refuse)
    assert ReadAhead(FileIO(os.dup(make_file(data(LARGE)))), 0, LARGE)() == 0


def test_duplicate_that_cannot_be_used_is_closed(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The send reads the range itself."""

    def refuse(_fd: int) -> None:
        raise OSError(errno.EBADF, "scripted")

    probe = PageCacheProbe()
    probe.uncached = (make_file(data(LARGE)), 0, LARGE)
    monkeypatch.setattr("iobatch._pagecache.FileIO", refuse)
    before = fd_count()
    assert probe.read_ahead() is None
    assert fd_count() == before

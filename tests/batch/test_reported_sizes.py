"""Reported sizes: without a count, a file is added only if its size can be believed."""

from __future__ import annotations

import errno
import mmap
import os
import select
from pathlib import Path
from stat import S_IFREG
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch
from tests.support.batches import data, take
from tests.support.fakes import log_preads, patch_os
from tests.support.interruptions import raise_from_handler

if TYPE_CHECKING:
    from tests.support.batches import MakeFile

PAGE = mmap.PAGESIZE
# The kernel makes their content while it is read: procfs reports 0 bytes, sysfs one page.
GENERATED = [
    "/proc/cpuinfo",
    "/proc/self/cmdline",
    "/proc/sys/kernel/hostname",
    "/sys/devices/system/cpu/online",
]


def report(patch: pytest.MonkeyPatch, size: int, blocks: int | None = 0) -> None:
    """Have fstat report a regular file of this size; None: on a system that reports no blocks."""
    status = SimpleNamespace(st_mode=S_IFREG, st_size=size)
    if blocks is not None:
        status.st_blocks = blocks
    patch_os(patch, "fstat", lambda _fd: status)


@pytest.mark.parametrize("path", GENERATED)
@pytest.mark.parametrize("kind", ["path", "bytes", "descriptor", "object", "owned"])
@pytest.mark.parametrize("offset", [0, 1, 2 * PAGE])
def test_generated_file_needs_a_count(path: str, kind: str, offset: int) -> None:
    batch = IOBatch()
    with Path(path).open("rb") as file:
        added: Any = {"path": path, "bytes": path.encode(), "descriptor": file.fileno()}
        add = batch.addfile_close if kind == "owned" else batch.addfile
        with pytest.raises(ValueError, match="count is required"):
            add(added.get(kind, file), offset)
        assert file.closed is (kind == "owned")
    assert not batch
    batch.addfile(path, 0, 1)
    assert take(batch) == Path(path).read_bytes()[:1]


@pytest.mark.parametrize("kind", ["path", "descriptor", "object"])
def test_empty_regular_file_is_allowed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "empty"
    path.touch()
    batch = IOBatch()
    with path.open("rb") as file:
        added: Any = {"path": path, "descriptor": file.fileno(), "object": file}[kind]
        batch.addfile(added)
        batch.addfile(added, 5)
        batch.addfile_close(path)
    assert not batch


@pytest.mark.parametrize("size", [PAGE, 2 * PAGE])
def test_sparse_file_without_blocks_is_sent_whole(make_file: MakeFile, size: int) -> None:
    fd = make_file(b"")
    os.truncate(fd, size)
    batch = IOBatch()
    batch.addfile(fd)
    assert take(batch) == bytes(size)


@pytest.mark.parametrize("size", [1, PAGE - 1, PAGE, PAGE + 1, 100_000])
def test_size_of_a_file_with_content_is_not_looked_at(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    fd = make_file(data(size))
    reads = log_preads(monkeypatch)
    monkeypatch.delattr(select, "poll")
    with IOBatch() as batch:
        batch.addfile(fd)
        assert batch.bytesleft == size
    assert reads == []


@pytest.mark.parametrize(("size", "content"), [(0, b"x"), (PAGE, b"x"), (PAGE, data(PAGE - 1))])
def test_wrong_size_is_recognized_in_a_file_without_blocks(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, size: int, content: bytes
) -> None:
    """Windows reports no blocks."""
    fd = make_file(content)
    for blocks in (8, None):
        with pytest.MonkeyPatch.context() as patch, IOBatch() as batch:
            report(patch, size, blocks)
            batch.addfile(fd)
            assert batch.bytesleft == size
    report(monkeypatch, size)
    with pytest.raises(ValueError, match=f"the reported {size} bytes"):
        IOBatch().addfile(fd)


def test_file_that_must_be_waited_for_needs_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As /proc/kmsg, whose reported size is 0: the look must not wait."""
    reading, writing = os.pipe()
    report(monkeypatch, 0)
    with pytest.raises(ValueError, match="count is required"):
        IOBatch().addfile(reading)
    os.close(reading)
    os.close(writing)


def test_read_that_fails_with_eagain_needs_a_count(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A BlockingIOError would be "again" if it left a callback of iob_write."""

    def pread(_fd: int, _count: int, _offset: int) -> bytes:
        raise BlockingIOError(errno.EAGAIN, "scripted")

    patch_os(monkeypatch, "pread", pread)
    with pytest.raises(ValueError, match="count is required"):
        IOBatch().addfile(make_file(b""))


def test_failed_look_raises_its_error(make_file: MakeFile, tmp_path: Path) -> None:
    make_file(b"")
    fd = os.open(tmp_path / "file0", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            IOBatch().addfile(fd)
    finally:
        os.close(fd)


def test_exception_of_a_signal_handler_during_the_look_propagates(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_os(monkeypatch, "pread", raise_from_handler)
    with pytest.raises(BlockingIOError, match="from a handler"):
        IOBatch().addfile(make_file(b""))

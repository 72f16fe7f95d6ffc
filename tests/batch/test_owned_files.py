"""Owned files: when they are closed, and how often."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING

import pytest

from iobatch import IOBatch
from tests.support.batches import take
from tests.support.sockets import fd_count

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.batches import MakeFile


def test_owned_descriptor_is_closed_after_its_last_byte(make_file: MakeFile) -> None:
    """Later entries are still unsent at that time."""
    fd = os.dup(make_file(b"0123456789"))
    batch = IOBatch()
    batch.addfile_close(fd, 0, 4)
    batch.addbuf(b"end")
    take(batch, 3)
    os.fstat(fd)
    take(batch, 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert batch.bytesleft == 3
    batch.reset()


def test_owned_file_object_is_closed_once_by_its_own_close(tmp_path: Path) -> None:
    closed = []

    class File(io.FileIO):
        def close(self) -> None:
            if not self.closed:
                closed.append(self.fileno())
            super().close()

    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    batch = IOBatch()
    file = File(path)
    fd = file.fileno()
    batch.addfile_close(file)
    assert take(batch, 9) == b"012345678"
    assert closed == []
    assert take(batch) == b"9"
    assert closed == [fd]


def test_addfile_close_opens_and_closes_a_path_as_addfile_does(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    before = fd_count()
    batch = IOBatch()
    batch.addfile_close(path, 1, 3)
    batch.addfile_close(str(path), 5)
    batch.addfile_close(os.fsencode(path), 9)
    assert fd_count() == before + 3
    assert take(batch) == b"123567899"
    assert fd_count() == before


@pytest.mark.parametrize("count", [4, 0, -1, None], ids=str)
def test_addfile_close_closes_an_open_file_that_also_has_a_path(
    tmp_path: Path, count: int | None
) -> None:
    """The object is taken as an open file, as by addfile(), and is closed on every path."""

    class File(io.FileIO):
        def __fspath__(self) -> str:
            raise AssertionError("the path of an open file is not used")

    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    file = File(path)
    with IOBatch() as batch:
        if count == -1:
            with pytest.raises(ValueError):
                batch.addfile_close(file, 0, count)
        else:
            batch.addfile_close(file, 0, count)
            assert take(batch) == b"0123456789"[:count]
        assert file.closed


def test_close_that_raises_is_unraisable_and_sending_goes_on(
    make_file: MakeFile, unraisable: list[BaseException | None]
) -> None:
    fd = make_file(b"0123456789")
    error = OSError(errno.EIO, "scripted")

    class File:
        def fileno(self) -> int:
            return fd

        def close(self) -> None:
            raise error

    batch = IOBatch()
    batch.addfile_close(File(), 0, 4)
    batch.addbuf(b"end")
    assert take(batch) == b"0123end"
    assert unraisable == [error]
    assert batch.error is None


def test_reset_closes_every_owned_file_and_no_other(tmp_path: Path, make_file: MakeFile) -> None:
    """A file that was sent in part is closed, too."""
    fd = make_file(b"0123456789")
    before = fd_count()
    batch = IOBatch()
    batch.addfile_close(os.dup(fd))
    batch.addfile(tmp_path / "file0")
    batch.addfile(fd)
    batch.addfile_close((tmp_path / "file0").open("rb"))
    take(batch, 5)
    batch.reset()
    assert fd_count() == before
    os.fstat(fd)

"""Refused files: what addfile() and addfile_close() raise."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch
from tests.support.batches import MAX_BYTES, Borrowed, check_invariants, take
from tests.support.sockets import fd_count

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


def without_fileno(closed: list[str], *, close_fails: bool) -> Any:
    """Return an object that has close(), but no fileno()."""

    class File:
        def close(self) -> None:
            closed.append("closed")
            if close_fails:
                raise OSError(errno.EIO, "close failed")

    return File()


BAD_RANGES: list[tuple[Any, Any, type[Exception]]] = [
    (-1, 5, ValueError),
    (0, -1, ValueError),
    (-1, None, ValueError),
    ("0", 5, TypeError),
    (1.0, 5, TypeError),
    (None, 5, TypeError),
    (0, "5", TypeError),
    (0, 5.0, TypeError),
    (MAX_BYTES, 1, OverflowError),
    (1, MAX_BYTES, OverflowError),
    (0, 2**63, OverflowError),
    (2**64, 2**64, OverflowError),
    (0, MAX_BYTES, OverflowError),  # the batch already has one byte
]


@pytest.mark.parametrize(("offset", "count", "error"), BAD_RANGES)
def test_bad_offset_or_count_is_refused_and_closes_only_owned_files(
    tmp_path: Path, make_file: MakeFile, offset: Any, count: Any, error: type[Exception]
) -> None:
    """Nothing else changes, and the hooks never run."""
    fd = make_file(b"0123456789")
    path = tmp_path / "file0"
    batch = IOBatch()
    batch.addbuf(b"1")
    before = fd_count()
    seen: list[int] = []
    with path.open("rb") as file:
        for file_or_path in (fd, file, path, str(path)):
            with pytest.raises(error):
                batch.addfile(file_or_path, offset, count)
            with pytest.raises(error):
                batch.addfile(file_or_path, offset, count, on_release=lambda: seen.append(1))
        assert not file.closed
        for file_or_path in (os.dup(fd), path, str(path)):
            with pytest.raises(error):
                batch.addfile_close(file_or_path, offset, count)
        with pytest.raises(error):
            batch.addfile_close(file, offset, count)
        assert file.closed
    os.fstat(fd)
    assert (fd_count(), seen) == (before, [])
    assert take(batch) == b"1"


@pytest.mark.parametrize(
    "bad",
    [bytearray(b"path"), None, 1.5, object(), io.BytesIO],
    ids=["bytearray", "None", "float", "object", "class"],
)
def test_object_that_is_no_file_is_refused(bad: Any) -> None:
    batch = IOBatch()
    for add in (batch.addfile, batch.addfile_close):
        with pytest.raises(TypeError):
            add(bad, 0, 5)
    assert not batch


@pytest.mark.parametrize("add", ["addfile", "addfile_close"])
def test_file_object_without_descriptor_is_refused(add: str) -> None:
    """addfile_close() closes the refused object."""
    file = io.BytesIO(b"0123456789")
    batch = IOBatch()
    with pytest.raises((TypeError, OSError)):
        getattr(batch, add)(file, 0, 5)
    assert not batch
    assert file.closed is (add == "addfile_close")


def test_negative_descriptor_is_refused() -> None:
    batch = IOBatch()
    for add in (batch.addfile, batch.addfile_close):
        for count in (None, 5):
            with pytest.raises((ValueError, OSError)):
                add(-1, 0, count)
    assert not batch


def test_closed_descriptor_without_count_is_refused_with_ebadf(make_file: MakeFile) -> None:
    """Without a count, addfile() calls fstat() for the size of the file."""
    fd = os.dup(make_file(b"x"))
    os.close(fd)
    for add in (IOBatch().addfile, IOBatch().addfile_close):
        with pytest.raises(OSError, match="Bad file descriptor"):
            add(fd)


def test_directory_is_refused(tmp_path: Path) -> None:
    """A descriptor is checked only without a count: with one, addfile() makes no system call."""
    batch = IOBatch()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for file_or_path in (tmp_path, str(tmp_path), fd):
            with pytest.raises(IsADirectoryError):
                batch.addfile(file_or_path)
        for file_or_path in (tmp_path, str(tmp_path)):
            with pytest.raises(IsADirectoryError):
                batch.addfile(file_or_path, 0, 5)
        with pytest.raises(IsADirectoryError):
            batch.addfile_close(os.dup(fd))
    finally:
        os.close(fd)
    assert not batch


def test_path_that_does_not_exist_raises_file_not_found_error(tmp_path: Path) -> None:
    batch = IOBatch()
    for add in (batch.addfile, batch.addfile_close):
        with pytest.raises(FileNotFoundError):
            add(tmp_path / "missing", 0, 5)
    assert not batch


def test_pipe_without_count_is_refused_and_closed_if_owned() -> None:
    """Only a regular file has a size."""
    out, into = os.pipe()
    os.close(into)
    batch = IOBatch()
    with pytest.raises(ValueError):
        batch.addfile(out)
    with pytest.raises(ValueError):
        batch.addfile_close(out)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(out)


def test_addfile_close_refuses_an_object_without_close() -> None:
    batch = IOBatch()
    with pytest.raises(TypeError):
        batch.addfile_close(Borrowed(0), 0, 1)  # type: ignore[arg-type]
    assert not batch


@pytest.mark.parametrize("close_fails", [False, True], ids=["close returns", "close raises"])
def test_addfile_close_closes_and_refuses_an_object_without_fileno(*, close_fails: bool) -> None:
    """The TypeError is raised even if close() fails."""
    closed: list[str] = []
    batch = IOBatch()
    with pytest.raises(TypeError):
        batch.addfile_close(without_fileno(closed, close_fails=close_fails), 0, 1)
    assert closed == ["closed"]
    assert not batch


def test_closed_file_object_raises_the_error_of_its_fileno() -> None:
    with Path(__file__).open("rb") as file:
        pass
    batch = IOBatch()
    for add in (batch.addfile, batch.addfile_close):
        with pytest.raises(ValueError, match="closed file"):
            add(file, 0, 1)
    assert not batch


@pytest.mark.parametrize("fd", [2**31, 2**63, Borrowed(2**31)], ids=["2**31", "2**63", "fileno"])
def test_descriptor_larger_than_a_c_int_is_refused(fd: Any) -> None:
    """No system call takes such a descriptor."""
    batch = IOBatch()
    with pytest.raises(OverflowError):
        batch.addfile(fd, 0, 10)
    assert not batch
    check_invariants(batch)

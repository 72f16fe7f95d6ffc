"""File ranges: addfile() of a descriptor, a file object or a path."""

from __future__ import annotations

import os
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import COPY_LIMIT, IOBatch
from iobatch._batch import core_of
from tests.support.batches import Borrowed, check_invariants, data, take
from tests.support.fakes import Scripted, bare_platform
from tests.support.sockets import fd_count

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


class BytesPath:
    """A path object whose path is bytes."""

    def __init__(self, path: Path) -> None:
        self.path = bytes(path)

    def __fspath__(self) -> bytes:
        return self.path


@pytest.mark.parametrize("size", [1, COPY_LIMIT, 3 * COPY_LIMIT])
def test_borrowed_descriptor_stays_open_and_keeps_its_position(
    make_file: MakeFile, size: int
) -> None:
    """The range is read at its own offset."""
    content = data(size + 20)
    fd = make_file(content)
    os.lseek(fd, 7, os.SEEK_SET)
    batch = IOBatch()
    batch.addfile(fd, 11, size)
    batch.addfile(fd, 0, 5)
    assert batch.bytesleft == size + 5
    assert take(batch) == content[11 : 11 + size] + content[:5]
    assert os.lseek(fd, 0, os.SEEK_CUR) == 7


def test_file_position_is_restored_where_there_is_no_pread(make_file: MakeFile) -> None:
    content = data(1000)
    fd = make_file(content)
    os.lseek(fd, 7, os.SEEK_SET)
    with bare_platform() as bare:
        batch = bare.IOBatch()
        batch.addfile(fd, 100, 800)
        batch.prefetch(100)
        sock = Scripted()
        with sock:
            assert bare.iob_send(sock, batch) == 800
        assert sock.taken == content[100:900]
        assert {call.flags for call in sock.calls} == {0}
    assert os.lseek(fd, 0, os.SEEK_CUR) == 7


def test_borrowed_file_object_is_referenced_until_released_and_stays_open(tmp_path: Path) -> None:
    """A file object that is collected closes its descriptor, whose number could then be reused."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    file = path.open("rb")
    try:
        batch = IOBatch()
        batch.addfile(file, 2, 5)
        assert take(batch) == b"23456"
        assert not file.closed
        batch.addfile(file)
        references = sys.getrefcount(file)
        batch.reset()
        assert not file.closed
        assert sys.getrefcount(file) < references
    finally:
        file.close()


def test_batch_keeps_a_file_object_alive_until_its_last_byte(make_file: MakeFile) -> None:
    content = data(100_000)
    file = Borrowed(make_file(content))
    reference = weakref.ref(file)
    batch = IOBatch()
    batch.addfile(file)
    del file
    assert take(batch, 1) == content[:1]
    assert reference() is not None
    assert take(batch) == content[1:]
    assert reference() is None


@pytest.mark.parametrize("kind", [str, os.fsencode, Path, BytesPath])
def test_path_is_opened_at_once_and_closed_after_its_last_byte(tmp_path: Path, kind: Any) -> None:
    """Child processes don't inherit the descriptor."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    before = fd_count()
    batch = IOBatch()
    batch.addfile(kind(path), 3, 4)
    path.unlink()
    batch.addbuf(b"end")
    assert fd_count() == before + 1
    fd = core_of(batch).head[0]
    assert not os.get_inheritable(fd)
    assert take(batch, 3) == b"345"
    assert fd_count() == before + 1
    assert take(batch, 1) == b"6"
    assert fd_count() == before
    assert take(batch) == b"end"


def test_on_release_of_a_path_runs_after_its_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    before = fd_count()
    seen = []
    batch = IOBatch()
    batch.addfile(path, on_release=lambda: seen.append(fd_count()))
    take(batch)
    assert seen == [before]


@pytest.mark.parametrize("kind", ["descriptor", "object", "path"])
def test_range_without_count_ends_at_the_file_size_at_the_time_of_addfile(
    tmp_path: Path, kind: str
) -> None:
    """Bytes that are appended later are not sent. An offset at or past the end adds nothing."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        added: Any = {"descriptor": file.fileno(), "object": file, "path": path}[kind]
        batch = IOBatch()
        batch.addfile(added)
        batch.addfile(added, 6)
        batch.addfile(added, 10)
        batch.addfile(added, 11)
        assert batch.bytesleft == 14
        with path.open("ab") as appending:
            appending.write(b"appended")
        assert take(batch) == b"01234567896789"


@pytest.mark.parametrize("count", [None, 0], ids=["empty file", "count of 0"])
def test_empty_range_is_dropped_and_its_owned_file_closed_at_once(
    tmp_path: Path, count: int | None
) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")
    before = fd_count()
    seen: list[int] = []
    batch = IOBatch()
    batch.addfile(path, 0, count, on_release=lambda: seen.append(1))
    fd = os.open(path, os.O_RDONLY)
    batch.addfile(fd, 0, count, on_release=lambda: seen.append(2))
    batch.addfile_close(fd, 0, count)
    assert (batch.bytesleft, seen, fd_count()) == (0, [1, 2], before)
    check_invariants(batch)

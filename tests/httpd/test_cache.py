"""The cache of open files."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from iobatch._files import file_version
from iobatch.httpd.cache import FRESH, MAX_OPEN, FileCache
from iobatch.httpd.files import Files
from tests.support.batches import data
from tests.support.httpd import MODIFIED
from tests.support.sockets import fd_count

if TYPE_CHECKING:
    from pathlib import Path


def test_unchanged_file_is_reused_while_fresh_and_its_path_walked_again_after(
    site: Path, tmp_path: Path
) -> None:
    """Then a directory that was replaced has its effect."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "1").write_bytes(b"another")
    files = FileCache(Files(site))
    first = files.get(b"/1", 0.0)
    site.rename(tmp_path / "old")
    (tmp_path / "other").rename(site)
    assert files.get(b"/1?query", FRESH / 2) is files.get(b"/1", FRESH / 2) is first
    second = files.get(b"/1", FRESH)
    assert (first.size, second.size) == (1, 7)
    assert os.pread(first.fd, 10, 0) == data(1, seed=1)
    files.close()


@pytest.mark.parametrize("changed", ["both.txt", "both.txt.br", "both.txt.gz"])
def test_change_of_a_file_or_a_sibling_opens_all_of_them_anew(site: Path, changed: str) -> None:
    for name in ("both.txt", "both.txt.br", "both.txt.gz"):
        (site / name).write_bytes(b"content")
        os.utime(site / name, (MODIFIED, MODIFIED))
    files = FileCache(Files(site))
    first = files.get(b"/both.txt", 0.0)
    assert files.get(b"/both.txt", 0.0) is first
    (site / changed).unlink()
    (site / changed).write_bytes(b"new")
    os.utime(site / changed, (MODIFIED, MODIFIED))
    second = files.get(b"/both.txt", 0.0)
    sizes = [second.size, second.siblings["br"].size, second.siblings["gzip"].size]
    assert sorted(sizes) == [3, 7, 7]
    files.close()


@pytest.mark.parametrize("changed", [0, 1, 2, "lost"], ids=["size", "mtime", "ctime", "lost"])
def test_change_of_the_size_or_of_one_time_opens_the_file_anew(
    site: Path, monkeypatch: pytest.MonkeyPatch, changed: Any
) -> None:
    """Not every file system changes all of them. One on a network may have lost the file."""
    files = FileCache(Files(site))
    first = files.get(b"/1", 0.0)

    def altered(fd: int) -> tuple[int, ...]:
        version = list(file_version(fd))
        if fd == first.fd:
            if changed == "lost":
                raise OSError(errno.ESTALE, "")
            version[changed] = -1
        return tuple(version)

    monkeypatch.setattr("iobatch.httpd.files.file_version", altered)
    second = files.get(b"/1", 0.0)
    assert second is not first
    assert files.get(b"/1", 0.0) is second
    files.close()


def test_content_is_kept_only_if_a_change_of_it_shows_in_the_times(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system's clock may not tick between two changes of a file."""
    changed = (site / "1").stat().st_ctime
    for now, kept in ((changed + 0.9, None), (changed + 1.1, data(1, seed=1))):
        monkeypatch.setattr("iobatch.httpd.files.time", lambda now=now: now)
        assert Files(site).open([b"1"]).content == kept


def test_all_spellings_of_a_path_share_one_open_file(site: Path) -> None:
    (site / "a b").write_bytes(b"blank")
    (site / "a%20b").write_bytes(b"percent")
    files = FileCache(Files(site))
    for targets in (
        (b"/1", b"//1", b"/%31", b"/1?x", b"http://x//1"),
        (b"/a%20b", b"/%61%20b", b"/a b"),
        (b"/a%2520b", b"/a%2520b?"),
        (b"/", b"//", b"http://x", b"http://x?/1"),
    ):
        assert len({id(files.get(target, 0.0)) for target in targets}) == 1
        assert len({id(files.get(target, 0.0)) for target in reversed(targets)}) == 1
    assert len(files) == 4
    assert os.pread(files.get(b"/a b", 0.0).fd, 10, 0) == b"blank"
    assert os.pread(files.get(b"/a%2520b", 0.0).fd, 10, 0) == b"percent"
    files.close()


def test_cache_keeps_max_open_files_and_sweep_closes_the_stale(site: Path) -> None:
    for i in range(MAX_OPEN + 50):
        (site / f"f{i}").touch()
    before = fd_count()
    files = FileCache(Files(site))
    kept = files.get(b"/1024", 0.0)
    for i in range(MAX_OPEN + 50):
        files.get(b"/f%d" % i, 0.5)
    assert len(files) == MAX_OPEN
    assert fd_count() == before + MAX_OPEN + 1
    assert os.pread(kept.fd, 2000, 0) == data(1024, seed=1024), (
        "a file in use stays open after it leaves the cache"
    )
    files.sweep(0.5 + FRESH / 2)
    assert len(files) == MAX_OPEN
    files.sweep(0.5 + FRESH)
    assert len(files) == 0
    assert fd_count() == before + 1
    files.close()


def test_cache_is_emptied_where_no_descriptor_is_left(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = FileCache(Files(site))
    files.get(b"/1", 0.0)

    real_open = os.open

    def opening(*args: Any, **kwargs: Any) -> int:
        if len(files):
            raise OSError(errno.EMFILE, "")
        return real_open(*args, **kwargs)

    monkeypatch.setattr(os, "open", opening)
    assert files.get(b"/1024", 0.0).size == 1024
    assert len(files) == 1
    files.close()


def test_file_opened_anew_is_the_newest_in_the_cache(site: Path) -> None:
    """The cache is oldest first: a sweep stops at the first file that is fresh."""
    files = FileCache(Files(site))
    files.get(b"/1", 0.0)
    files.get(b"/1024", FRESH / 2)
    files.get(b"/1", FRESH)
    files.sweep(FRESH + FRESH / 2)
    assert len(files) == 1
    assert files.get(b"/1", 0.0) is files.get(b"/1", FRESH)
    files.close()


def test_file_opened_anew_in_a_full_cache_evicts_no_other(site: Path) -> None:
    for i in range(MAX_OPEN):
        (site / f"f{i}").touch()
    files = FileCache(Files(site))
    oldest = files.get(b"/f0", 0.0)
    for i in range(1, MAX_OPEN):
        files.get(b"/f%d" % i, FRESH / 2)
    files.get(b"/f1", FRESH * 2)
    assert len(files) == MAX_OPEN
    assert files.get(b"/f0", 0.0) is oldest
    files.get(b"/1", 0.0)
    assert len(files) == MAX_OPEN
    assert files.get(b"/f0", 0.0) is not oldest, "another file evicts the oldest"
    files.close()

"""The walk from the served directory: links, and changes while it runs."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from iobatch.httpd.cache import FileCache
from iobatch.httpd.files import Files
from iobatch.httpd.walk import Root
from tests.support.batches import data
from tests.support.httpd import SECRET, Address, get, serving


@pytest.mark.parametrize(
    ("link", "result"),
    [
        ("1024", 200),
        ("./sub/../1024", 200),
        ("{site}/1024", 200),
        ("sub/back", 200),
        ("chain", 200),
        ("sub/absolute", 200),
        ("../secret", 403),
        ("{site}/../secret", 403),
        ("{site}-not/secret", 403),
        ("sub/../../secret", 403),
        ("/etc/passwd", 403),
        ("..", 403),
        ("sub", 301),
        (".", 301),
        ("{site}", 301),
        ("nothing", 404),
        ("1024/", 404),
        ("1024/.", 404),
        ("1024/../1024", 404),
        ("sub/", 301),
        (".hidden", 200),
        ("link", 404),
        ("pipe", 403),
    ],
)
def test_link_is_followed_only_inside_the_root(
    site: Path, address: Address, link: str, result: int
) -> None:
    """A FIFO is not opened. The target of a link may be hidden."""
    os.mkfifo(site / "pipe")
    (site / "sub" / "back").symlink_to("deep/../../1024")
    (site / "sub" / "absolute").symlink_to(site / "1024")
    (site / "chain").symlink_to("sub/back")
    (site / "link").symlink_to(link.format(site=site))
    response = get(address, "/link")
    assert response.status == result
    if result == 200:
        assert response.body == (SECRET if link == ".hidden" else data(1024, seed=1024))


def test_link_to_outer_directory_leads_to_no_file(site: Path, address: Address) -> None:
    (site / "out").symlink_to("..")
    assert get(address, "/out/secret").status == 403


def test_served_directory_may_be_named_by_a_link(site: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(site)
    (site / "link").symlink_to(site / "1")
    with serving(tmp_path / "alias") as (_, address):
        assert get(address, "/link").body == data(1, seed=1)


@pytest.mark.parametrize("moment", range(5))
@pytest.mark.parametrize("changed", ["sub", "sub/deep", "sub/deep/file", "pipe"])
def test_change_before_any_step_of_the_walk_never_leads_outside_or_to_a_fifo(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, moment: int
) -> None:
    outside = tmp_path / "outside"
    (outside / "sub" / "deep").mkdir(parents=True)
    (outside / "sub" / "deep" / "file").write_bytes(SECRET)
    real_open = os.open
    calls = 0

    def opening(*args: Any, **kwargs: Any) -> int:
        nonlocal calls
        if calls == moment:
            name = site / ("sub/deep/file" if changed == "pipe" else changed)
            name.rename(site / "old")
            if changed == "pipe":
                os.mkfifo(name)
            else:
                name.symlink_to(outside / changed)
        calls += 1
        return real_open(*args, **kwargs)

    files = FileCache(Files(site))
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", opening)
        try:
            file = files.get(b"/sub/deep/file", 0.0)
        except OSError as exc:
            assert exc.errno in {errno.EACCES, errno.ELOOP}  # noqa: PT017  # it may not raise
            assert moment < 4
        else:
            assert os.pread(file.fd, 100, 0) == b"deep"
            assert moment > 0
    assert calls <= 6, "four calls open the file, two look for its siblings"
    files.close()


def test_directory_without_search_permission_is_refused_at_once() -> None:
    """Otherwise each request would fail."""
    with TemporaryDirectory() as outer:  # only the owner may enter pytest's own directories
        Path(outer).chmod(0o755)
        (Path(outer) / "inner").mkdir(mode=0o600)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                Files(Path(outer) / "inner")
        finally:
            if is_root:
                os.seteuid(0)


def test_40_links_are_followed_and_41_are_too_many(site: Path) -> None:
    """The kernel has the same limit (path_resolution(7))."""
    (site / "link0").symlink_to("1")
    for i in range(1, 41):
        (site / f"link{i}").symlink_to(f"link{i - 1}")
    root = Root(site)
    with root.walk([b"link39"]) as place:
        assert os.path.samestat(os.fstat(place.fd), (site / "link39").stat())
    with pytest.raises(OSError) as caught, root.walk([b"link40"]):
        pass
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(OSError) as caught:
        (site / "link40").stat()
    assert caught.value.errno == errno.ELOOP
    root.close()

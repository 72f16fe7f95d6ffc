"""The walk from the served directory: links, and changes while it runs."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from iobatch.httpd.cache import FileCache
from iobatch.httpd.files import Files
from iobatch.httpd.walk import Root
from tests.support.batches import data
from tests.support.httpd import SECRET, Address, address_of, get, program, serving
from tests.support.sockets import fd_count

if TYPE_CHECKING:
    from collections.abc import Generator


def content(root: Root, *names: bytes) -> bytes:
    """Return the content of a file below a root."""
    with root.walk(names) as place:
        fd = os.open(place.name, os.O_RDONLY, dir_fd=place.parent)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


@contextmanager
def unprivileged() -> Generator[None]:
    """Give up the privileges of the superuser for a while."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("link", "result"),
    [
        ("1024", 200),
        ("./sub/../1024", 200),
        ("{site}/1024", 200),
        ("sub/back", 200),
        ("chain", 200),
        ("sub/absolute", 200),
        ("//{site}/1024", 200),
        ("{outer}/alias/1024", 200),
        ("{outer}/other/../site/1024", 200),
        ("/..{site}/1024", 200),
        ("../site/1024", 200),
        ("../alias/1024", 200),
        ("sub/../../alias/sub/../1024", 200),
        ("../../../../../../../../../..{site}/1024", 200),
        ("/proc/self/cwd{site}/1024", 404),
        ("../site", 301),
        ("../secret", 403),
        ("{site}/../secret", 403),
        ("../alias/../secret", 403),
        ("../other/1024", 403),
        ("{site}-not/secret", 403),
        ("sub/../../secret", 403),
        ("/etc/passwd", 403),
        ("/", 403),
        ("..", 403),
        ("../other", 403),
        ("../nothing", 404),
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
def test_link_is_judged_by_where_it_ends(
    site: Path, tmp_path: Path, address: Address, link: str, result: int
) -> None:
    """A FIFO is not opened. The target of a link may be hidden."""
    (tmp_path / "alias").symlink_to("site")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "1024").write_bytes(SECRET)
    os.mkfifo(site / "pipe")
    (site.parent / "site-not").mkdir()
    (site.parent / "site-not" / "secret").write_bytes(SECRET)
    (site / "sub" / "back").symlink_to("deep/../../1024")
    (site / "sub" / "absolute").symlink_to(site / "1024")
    (site / "chain").symlink_to("sub/back")
    (site / "link").symlink_to(link.format(site=site, outer=tmp_path))
    response = get(address, "/link")
    assert response.status == result
    if result == 200:
        assert response.body == (SECRET if link == ".hidden" else data(1024, seed=1024))


@pytest.mark.parametrize("name", ["secret", "nothing", "secret/more", "site/1024"])
def test_nothing_is_looked_up_below_a_link_that_ends_outside(
    site: Path, address: Address, name: str
) -> None:
    """The status would tell which files are there."""
    (site / "out").symlink_to("..")
    assert get(address, f"/out/{name}").status == 403


def test_served_directory_may_be_named_by_a_link(site: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(site)
    (site / "link").symlink_to(site / "1")
    (site / "aliased").symlink_to(tmp_path / "alias" / "1024")
    with serving(tmp_path / "alias") as (_, address):
        assert get(address, "/link").body == data(1, seed=1)
        assert get(address, "/aliased").body == data(1024, seed=1024)


def test_walk_begins_at_the_directory_that_has_the_path_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be replaced, missing for a while, or behind a link. The path may be relative."""
    for name in ("old", "new"):
        (tmp_path / "releases" / name / "dist").mkdir(parents=True)
        (tmp_path / "releases" / name / "dist" / "file").write_text(name)
    (tmp_path / "current").symlink_to("releases/old")
    monkeypatch.chdir(tmp_path)
    roots = [Root("current/dist"), Root("current/../old/dist"), Root(tmp_path / "current" / "dist")]
    monkeypatch.chdir("/")
    assert [content(root, b"file") for root in roots] == [b"old"] * 3
    (tmp_path / "link").symlink_to("releases/new")
    (tmp_path / "link").replace(tmp_path / "current")
    assert [content(root, b"file") for root in roots] == [b"new", b"old", b"new"]
    (tmp_path / "releases" / "new" / "dist").rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        content(roots[0], b"file")
    (tmp_path / "releases" / "new" / "dist").mkdir()
    (tmp_path / "releases" / "new" / "dist" / "file").write_text("third")
    assert content(roots[0], b"file") == b"third"


def test_root_of_the_file_system_can_be_served(site: Path) -> None:
    (site / "link").symlink_to("../../../../../../../../../../etc/passwd")
    expected = Path("/etc/passwd").read_bytes()[:100]
    assert content(Root("/"), *os.fsencode(site / "link").split(b"/")) == expected


def test_walk_opens_directories_so_that_automounts_are_mounted(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O_PATH alone finds the empty directory that an automount replaces; O_DIRECTORY mounts it.

    Source: follow_automount in Linux's fs/namei.c.
    """
    (site / "link").symlink_to("../site/sub")
    real_open = os.open
    opened: dict[bytes, list[bool]] = {}

    def opening(path: bytes, flags: int, **kwargs: int) -> int:
        opened.setdefault(path, []).append(bool(flags & os.O_DIRECTORY))
        assert flags & os.O_PATH
        return real_open(path, flags, **kwargs)

    root = Root(site)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", opening)
        with root.walk([b"link", b"deep", b"file"]):
            pass
    del opened[os.fsencode(site) + b"/."]
    assert opened == {
        b"link": [True, False],  # not a directory: a link
        b"..": [True],
        b"site": [True],
        b"sub": [True],
        b"deep": [True],
        b"file": [False],
    }


def test_directory_that_may_be_searched_but_not_read_is_passed(tmp_path: Path) -> None:
    with TemporaryDirectory() as outer:  # only the owner may enter pytest's own directories
        Path(outer).chmod(0o711)
        (Path(outer) / "inner").mkdir()
        (Path(outer) / "inner" / "file").write_bytes(b"content")
        (Path(outer) / "inner").chmod(0o311)
        with unprivileged():
            assert content(Root(outer), b"inner", b"file") == b"content"


@pytest.mark.parametrize("moment", range(8))
@pytest.mark.parametrize("changed", ["sub", "sub/deep", "sub/deep/file.txt", "pipe"])
def test_change_before_any_step_of_the_walk_never_leads_outside_or_to_a_fifo(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, moment: int
) -> None:
    outside = tmp_path / "outside"
    (outside / "sub" / "deep").mkdir(parents=True)
    (outside / "sub" / "deep" / "file.txt").write_bytes(SECRET)
    (site / "sub" / "deep" / "file.txt").write_bytes(b"deep")
    real_open = os.open
    calls = 0

    def opening(*args: Any, **kwargs: Any) -> int:
        nonlocal calls
        if calls == moment:
            name = site / ("sub/deep/file.txt" if changed == "pipe" else changed)
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
            file = files.get(b"/sub/deep/file.txt", 0.0)
        except OSError as exc:
            assert exc.errno in {errno.EACCES, errno.ELOOP}  # noqa: PT017  # it may not raise
            assert moment < 5
        else:
            assert os.pread(file.fd, 100, 0) == b"deep"
            assert moment > 1
    assert calls > moment, "five calls open the file, three look for its siblings"
    files.close()


def test_directory_without_search_permission_is_refused_at_once() -> None:
    """Otherwise each request would fail."""
    with TemporaryDirectory() as outer:  # only the owner may enter pytest's own directories
        Path(outer).chmod(0o755)
        (Path(outer) / "inner").mkdir(mode=0o600)
        with unprivileged(), pytest.raises(PermissionError):
            Files(Path(outer) / "inner")


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


def test_links_may_lead_anywhere_if_they_are_followed(site: Path, tmp_path: Path) -> None:
    """A name that a request has is hidden outside the root, too."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".more").write_bytes(SECRET)
    (tmp_path / "other" / "file").write_bytes(b"outside")
    (site / "out").symlink_to("../other")
    (site / "absolute").symlink_to(tmp_path / "other" / "file")
    (site / "shown").symlink_to("../other/.more")
    (site / "broken").symlink_to("../nothing")
    with serving(site, follow_links=True) as (_, address):
        assert get(address, "/out/file").body == b"outside"
        assert get(address, "/absolute").body == b"outside"
        assert get(address, "/shown").body == SECRET
        assert get(address, "/out").status == 301
        assert b'href="file"' in get(address, "/out/").body
        for target in ("/out/.more", "/broken", "/out/nothing"):
            assert get(address, target).status == 404
        for target in ("/../secret", "/out/../../secret"):
            assert get(address, target).status == 400
    with serving(site) as (_, address):
        assert get(address, "/absolute").status == 403


def test_listing_has_links_out_of_the_root_only_if_they_are_followed(
    site: Path, tmp_path: Path
) -> None:
    (site / "bare" / "out").symlink_to("../../secret")
    (site / "bare" / "broken").symlink_to("../../nothing")
    for follow_links in (False, True):
        with serving(site, follow_links=follow_links) as (_, address):
            page = get(address, "/bare/").body
            assert (b'href="out"' in page) is follow_links
            assert b"broken" not in page


def test_follow_links_option_is_passed_on(site: Path) -> None:
    (site / "out").symlink_to("../secret")
    with program(site, "--follow-links") as (_, url):
        assert get(address_of(url), "/out").body == SECRET


def test_failed_close_fails_no_walk_and_leaves_no_descriptor_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Linux close(2) closes the descriptor in any case."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    root = Root(tmp_path)
    before = fd_count()
    close = os.close

    def fail(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, "scripted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail)
        with root.walk([b"a", b"b"]):
            pass
    assert fd_count() == before

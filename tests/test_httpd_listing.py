"""The page of a directory: what it shows, what it hides, and that names can't break out of it."""

from __future__ import annotations

import os
import re
import tempfile
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urljoin

import pytest

from tests.helpers import fd_count
from tests.httpd_helpers import (
    MODIFIED,
    SECRET,
    browse,
    get,
    make_site,  # noqa: F401
    program,
    serve_site,  # noqa: F401
    serving,
)

# isort: split
from files import FRESH, Files
from listing import Entry, page, readable

if TYPE_CHECKING:
    from pathlib import Path

    from tests.httpd_helpers import Address

ODD_NAMES = [
    b"a b",
    b"a:b",
    b"a%20b",
    b"a?b#c",
    b"<script>alert(1)<",
    b"\"quoted\" 'twice'",
    b"&amp;",
    b"new\nline",
    b"\x1b[31mred",
    b"\xff\xfe",
    "日本語".encode(),
    "\u202egnp.exe".encode(),
    "\u2028".encode(),
    b"\\back",
    b"x" * 255,
]


class Page(HTMLParser):
    """What a page says, as a browser would read it."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.text = ""
        self._href = ""
        self.feed(content.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "a":
            self._href = dict(attrs)["href"] or ""
            self.links.append((self._href, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._href = ""

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._href:
            href, text = self.links[-1]
            self.links[-1] = (href, text + data)


def listed(content: bytes) -> list[str]:
    """Return the names that a page shows, without those of the way to it."""
    return [text for href, text in Page(content).links if not href.startswith("..")]


def test_page(site: Path, address: Address) -> None:
    """A directory without an index is shown, with links that lead to what is in it."""
    (site / "bare" / "inner").mkdir()
    (site / "bare" / "file.txt").write_bytes(b"content")
    response = get(address, "/bare/")
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["Content-Length"] == str(len(response.body))
    assert Page(response.body).links == [
        ("../", "Home"),
        ("inner/", "inner"),
        ("file.txt", "file.txt"),
    ]
    assert get(address, "/bare/file.txt").body == b"content"
    assert "This folder is empty." in Page(get(address, "/bare/inner/").body).text


def test_head(address: Address) -> None:
    """HEAD gives the same headers."""
    got, head = get(address, "/bare/"), get(address, "/bare/", "HEAD")
    assert {**got.headers, "Date": ""} == {**head.headers, "Date": ""}


def test_odd_names(site: Path, address: Address) -> None:
    """Every name is shown as text, and its link gives the file."""
    for i, name in enumerate(ODD_NAMES):
        (site / "bare" / os.fsdecode(name)).write_bytes(b"%d" % i)
    response = get(address, "/bare/")
    parsed = Page(response.body)
    links = [href for href, _ in parsed.links[1:]]
    assert sorted(unquote_to_bytes(href) for href in links) == sorted(ODD_NAMES)
    for href in links:
        target = urljoin("/bare/", href)
        assert target.startswith("/bare/")
        number = ODD_NAMES.index(unquote_to_bytes(href))
        assert get(address, target).body == b"%d" % number
    assert parsed.tags.count("script") == 1
    assert parsed.tags.count("tr") == 1 + len(ODD_NAMES)
    assert not re.search(rb"[\0-\x09\x0b-\x1f\x7f]", response.body)
    assert "new\ufffdline" in parsed.text


def test_hidden(site: Path, address: Address) -> None:
    """What isn't served isn't shown: dot files, pipes, links to the outside or to nothing."""
    bare = site / "bare"
    (bare / ".dot").touch()
    os.mkfifo(bare / "pipe")
    (bare / "outside").symlink_to("../../secret")
    (bare / "dangling").symlink_to("nothing")
    (bare / "loop").symlink_to("loop")
    (bare / "inside").symlink_to("../sub/deep/file")
    (bare / "folder").symlink_to("../sub")
    response = get(address, "/bare/")
    assert listed(response.body) == ["folder", "inside"]
    assert "4 B" in Page(response.body).text, "the size of what the link leads to"


def test_no_listing(site: Path) -> None:
    """Without listing a directory that has no index is forbidden."""
    with serving(site, listing=False) as (_, address):
        assert get(address, "/bare/").status == 403
        assert get(address, "/sub/").status == 200
    with program(site, "--no-listing") as (_, url):
        host, port = url.removeprefix("http://").rstrip("/").split(":")
        assert get((host, int(port)), "/bare/").status == 403


def test_links_outside_are_not_entered(site: Path, address: Address) -> None:
    """The page of a directory outside is not to be had by a link."""
    (site / "up").symlink_to("..")
    response = get(address, "/up/")
    assert response.status == 403
    assert SECRET not in response.body


def test_root(tmp_path: Path) -> None:
    """The folder itself is shown too, and its own address is the top."""
    (tmp_path / "one").write_bytes(b"1")
    with serving(tmp_path) as (_, address):
        content = get(address, "/").body
        assert Page(content).links == [("one", "one")]


def test_cached(site: Path, no_leaks: None) -> None:
    """A page is made once in a while, not for each request, and leaves nothing open."""
    before = fd_count()
    files = Files(site)
    first = files.get(b"/bare/", 0.0)
    (site / "bare" / "new").touch()
    assert files.get(b"/bare/", FRESH / 2) is first
    second = files.get(b"/bare/", FRESH)
    assert second.size > first.size
    assert listed(os.pread(second.fd, second.size, 0)) == ["new"]
    del first, second
    files.close()
    assert fd_count() == before


def test_no_disk(
    site: Path, tmp_path: Path, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page needs no place on a disk."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    assert get(address, "/bare/").status == 200


def test_order() -> None:
    """Folders come first; numbers go by their value, letters in whatever case."""
    names = [b"b10", b"B9", b"a", b"C", b"01", b"1", b"", b"\xff"]
    entries = [Entry(name, 1, 0.0, is_directory=False) for name in names]
    entries.append(Entry(b"zoo", 4096, 0.0, is_directory=True))
    assert listed(page([], entries)) == ["zoo", "", "01", "1", "a", "B9", "b10", "C", "\ufffd"]


def test_braces() -> None:
    """A name that looks like a place in the page's pattern is a name like others."""
    content = page([b"{crumbs}{title}"], []).decode()
    assert "<title>/{crumbs}{title}/</title>" in content
    assert content.count("{crumbs}{title}") == 2


def test_way_up() -> None:
    """Each step of the way is a link to it."""
    links = Page(page([b"a", b"<b>", b"c"], [])).links
    assert links == [("../../../", "Home"), ("../../", "a"), ("../", "<b>")]


@pytest.mark.parametrize("modified", [-1e20, -1.0, 0.0, 1e20])
def test_odd_dates(modified: float) -> None:
    """Times that no calendar has are shown as the nearest one."""
    text = Page(page([], [Entry(b"x", 1, modified, is_directory=False)])).text
    assert ("1970-01-01 00:00" if modified <= 0 else "9999-12-31 23:59") in text


def test_summary() -> None:
    """The end of the page says what all is together."""
    entries = [
        Entry(b"a", 1000, MODIFIED, is_directory=False),
        Entry(b"b", 1500, MODIFIED, is_directory=False),
        Entry(b"c", 4096, MODIFIED, is_directory=True),
    ]
    assert "1 folder, 2 files, 2.5 kB" in Page(page([], entries)).text
    assert "2023-11-14 22:13" in Page(page([], entries)).text


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9949, "9.9 kB"),
        (9950, "10 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (4_300_000_000, "4.3 GB"),
        (2**63 - 1, "9.2 EB"),
    ],
)
def test_readable(size: int, said: str) -> None:
    """Sizes have two or three digits."""
    assert readable(size) == said


SORTER = """<!DOCTYPE html>
<iframe src="../bare/"></iframe>
<script>
onload = () => {
  const page = frames[0].document, seen = [];
  const buttons = page.querySelectorAll("th button");
  const names = () => [...page.querySelectorAll("tbody a")].map(a => a.textContent).join("");
  for (const i of [0, 0, 1, 1, 2, 2]) { buttons[i].click(); seen.push(names()); }
  document.body.textContent = "seen: " + seen.join(" ");
};
</script>
"""


def test_sorting(site: Path, tmp_path: Path) -> None:
    """In a browser the headings sort, up and down, and folders stay on top."""
    for name, size, age in (("a", 30, 1), ("a1", 4, 4), ("b", 20, 3), ("c", 100, 2)):
        (site / "bare" / name).write_bytes(bytes(size))
        os.utime(site / "bare" / name, (MODIFIED - age, MODIFIED - age))
    (site / "bare" / "D").mkdir()
    (site / "sub" / "index.html").write_text(SORTER)
    with serving(site) as (_, (host, port)):
        result = browse(f"http://{host}:{port}/sub/", tmp_path / "profile")
    assert "seen: Daa1bc Dcba1a Da1bac Dcaba1 Da1bca Dacba1" in result

"""Listings of directories: their entries, order, links and text."""

from __future__ import annotations

import os
import re
import tempfile
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urljoin

import pytest

from iobatch.httpd.cache import FRESH, FileCache
from iobatch.httpd.files import Files
from iobatch.httpd.listing import ListingEntry, page, readable
from tests.support.httpd import MODIFIED, SECRET, Address, address_of, get, program, serving
from tests.support.sockets import fd_count

if TYPE_CHECKING:
    from pathlib import Path

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
    """The tags, links and text of a page."""

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
    """Return the names in a listing, without the links to the directories above."""
    return [text for href, text in Page(content).links if not href.startswith("..")]


def test_directory_without_index_is_listed_with_links_to_its_files(
    site: Path, address: Address
) -> None:
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


def test_head_of_a_listing_has_the_same_fields(address: Address) -> None:
    got, head = get(address, "/bare/"), get(address, "/bare/", "HEAD")
    assert {**got.headers, "Date": ""} == {**head.headers, "Date": ""}


def test_listing_of_the_root_has_no_link_upward(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1")
    with serving(tmp_path) as (_, address):
        content = get(address, "/").body
        assert Page(content).links == [("one", "one")]


def test_any_name_is_shown_as_text_and_its_link_leads_to_the_file(
    site: Path, address: Address
) -> None:
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


def test_files_that_are_not_served_are_not_listed(site: Path, address: Address) -> None:
    """Those are dot files, FIFOs, and links that lead outside or nowhere."""
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
    assert "4 B" in Page(response.body).text, "a link is listed with the size of its target"


def test_no_listing_option_answers_403_without_an_index(site: Path) -> None:
    with serving(site, listing=False) as (_, address):
        assert get(address, "/bare/").status == 403
        assert get(address, "/sub/").status == 200
    with program(site, "--no-listing") as (_, url):
        assert get(address_of(url), "/bare/").status == 403


def test_link_to_outer_directory_gets_no_listing(site: Path, address: Address) -> None:
    (site / "up").symlink_to("..")
    response = get(address, "/up/")
    assert response.status == 403
    assert SECRET not in response.body


def test_listing_is_made_once_while_fresh(site: Path) -> None:
    before = fd_count()
    files = FileCache(Files(site))
    first = files.get(b"/bare/", 0.0)
    (site / "bare" / "new").touch()
    assert files.get(b"/bare/", FRESH / 2) is first
    second = files.get(b"/bare/", FRESH)
    assert second.size > first.size
    assert listed(os.pread(second.fd, second.size, 0)) == ["new"]
    del first, second
    files.close()
    assert fd_count() == before


def test_listing_needs_no_temporary_directory(
    site: Path, tmp_path: Path, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    assert get(address, "/bare/").status == 200


def test_folders_come_first_and_names_are_ordered_by_number_and_letter_not_case() -> None:
    names = [b"b10", b"B9", b"a", b"C", b"01", b"1", b"", b"\xff"]
    entries = [ListingEntry(name, 1, 0.0, is_directory=False) for name in names]
    entries.append(ListingEntry(b"zoo", 4096, 0.0, is_directory=True))
    assert listed(page([], entries)) == ["zoo", "", "01", "1", "a", "B9", "b10", "C", "\ufffd"]


def test_name_that_looks_like_a_field_of_the_page_is_shown_as_it_is() -> None:
    content = page([b"{crumbs}{title}"], []).decode()
    assert "<title>/{crumbs}{title}/</title>" in content
    assert content.count("{crumbs}{title}") == 2


def test_each_directory_above_has_a_link() -> None:
    links = Page(page([b"a", b"<b>", b"c"], [])).links
    assert links == [("../../../", "Home"), ("../../", "a"), ("../", "<b>")]


@pytest.mark.parametrize("modified", [-1e20, -1.0, 0.0, 1e20])
def test_date_that_no_calendar_has_is_shown_as_the_nearest(modified: float) -> None:
    text = Page(page([], [ListingEntry(b"x", 1, modified, is_directory=False)])).text
    assert ("1970-01-01 00:00" if modified <= 0 else "9999-12-31 23:59") in text


def test_listing_ends_with_the_number_of_entries_and_their_size() -> None:
    entries = [
        ListingEntry(b"a", 1000, MODIFIED, is_directory=False),
        ListingEntry(b"b", 1500, MODIFIED, is_directory=False),
        ListingEntry(b"c", 4096, MODIFIED, is_directory=True),
    ]
    assert "1 folder, 2 files, 2.5 kB" in Page(page([], entries)).text
    assert "\n1 file, 1.0 kB\n" in Page(page([], entries[:1])).text
    assert "\n1 folder\n" in Page(page([], entries[2:])).text
    assert "2023-11-14 22:13" in Page(page([], entries)).text


@pytest.mark.parametrize(
    ("size", "shown"),
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
        (10**21, "1000 EB"),  # the sum of many sparse files
    ],
)
def test_size_has_two_or_three_digits(size: int, shown: str) -> None:
    assert readable(size) == shown

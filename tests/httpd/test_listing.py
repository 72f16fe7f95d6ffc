"""Listings of directories: their entries, order, links and text."""

from __future__ import annotations

import json
import os
import random
import re
import tempfile
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urljoin

import pytest

from iobatch.httpd import views
from iobatch.httpd.entries import RUN, Directory, Entry, read_directory
from iobatch.httpd.listing import html_page, readable
from iobatch.httpd.listingjson import json_page
from iobatch.httpd.views import View, view_of
from iobatch.httpd.walk import Root
from tests.support.httpd import MODIFIED, SECRET, Address, address_of, get, program, serving

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
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
    """Return the names in a listing."""
    return [text for href, text in Page(content).links if not href.startswith(("..", "./", "?"))]


def finish(steps: Generator[None, None, Any]) -> Any:
    """Return the result of all steps."""
    while True:
        try:
            next(steps)
        except StopIteration as exc:
            return exc.value


def make_page(names: Sequence[bytes], *entries: Entry) -> bytes:
    """Return the first page of a directory with these entries."""
    directory = Directory()
    directory.orders["name"] = list(entries)
    directory.folders = sum(not each.is_file for each in entries)
    directory.size = sum(each.size for each in entries)
    content: bytes = finish(html_page(names, directory, View()))
    return content


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
        ("?sort=-name", "Name"),
        ("?sort=size", "Size"),
        ("?sort=date", "Modified (UTC)"),
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
        assert Page(content).links[3:] == [("one", "one")]


def test_any_name_is_shown_as_text_and_its_link_leads_to_the_file(
    site: Path, address: Address
) -> None:
    for i, name in enumerate(ODD_NAMES):
        (site / "bare" / os.fsdecode(name)).write_bytes(b"%d" % i)
    response = get(address, "/bare/")
    parsed = Page(response.body)
    links = [href for href, _ in parsed.links[4:]]
    assert sorted(unquote_to_bytes(href) for href in links) == sorted(ODD_NAMES)
    for href in links:
        target = urljoin("/bare/", href)
        assert target.startswith("/bare/")
        number = ODD_NAMES.index(unquote_to_bytes(href))
        assert get(address, target).body == b"%d" % number
    assert parsed.tags.count("script") == 1, "no name adds one"
    assert parsed.tags.count("tr") == 1 + len(ODD_NAMES)
    assert not re.search(
        "[\\0-\x09\x0b-\x1f\x7f\u2028-\u202e\u2066-\u2069]", response.body.decode()
    )
    assert "\ufffdgnp.exe" in parsed.text, "the override of the direction has no effect"
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


def test_listing_needs_no_temporary_directory(
    site: Path, tmp_path: Path, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    assert get(address, "/bare/").status == 200


def test_folders_come_first_and_names_are_ordered_by_number_and_letter_not_case(
    tmp_path: Path,
) -> None:
    names = [b"b10", b"B9", b"a", b"C", b"01", b"1", b"b", b"b-1", b"b9x", b"\xff", b"9" * 255]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    (tmp_path / "zoo").mkdir()
    root = Root(tmp_path)
    directory: Directory = finish(read_directory(root, []))
    found = [each.name for each in directory.orders["name"]]
    expected = [*b"zoo 01 1".split(), b"9" * 255, *b"a b B9 b9x b10 b-1 C \xff".split()]
    assert found == expected


def test_directory_is_read_sorted_and_shown_in_steps_of_one_entry(tmp_path: Path) -> None:
    """No call takes longer for a larger directory: each sorts at most RUN entries."""
    rng = random.Random(5)
    names = [f"{rng.randrange(10**6)}" for _ in range(3 * RUN)]
    for name in names:
        (tmp_path / name).touch()
    root = Root(tmp_path)
    count = len(set(names))
    steps = read_directory(root, [])
    for _ in range(2 * count):
        next(steps)
    directory: Directory = finish(steps)
    assert [int(each.name) for each in directory.orders["name"]] == sorted(map(int, set(names)))
    for column in ("size", "name"):
        steps = html_page([], directory, View(column))
        for _ in range(min(count, views.PAGE) + count * (column == "size")):
            next(steps)
        assert len(listed(finish(steps))) == min(count, views.PAGE)
    steps = json_page([], directory, View())
    for _ in range(min(count, views.PAGE)):
        next(steps)
    assert len(json.loads(finish(steps))["entries"]) == min(count, views.PAGE)


def test_links_lead_through_all_pages_in_each_order(
    site: Path, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "PAGE", 2)
    for name, size, age in (("a", 30, 1), ("a1", 4, 4), ("b", 20, 3), ("c", 100, 2)):
        (site / "bare" / name).write_bytes(bytes(size))
        os.utime(site / "bare" / name, (MODIFIED - age, MODIFIED - age))
    for name in "DE":
        (site / "bare" / name).mkdir()
        os.utime(site / "bare" / name, (MODIFIED, MODIFIED))
    target, orders = "/bare/", {}
    for heading in ("Name", "Name", "Size", "Size", "Modified (UTC)", "Modified (UTC)"):
        links = {text: href for href, text in Page(get(address, target).body).links}
        target = urljoin("/bare/", links[heading])
        following: str | None = target
        while following:
            body = get(address, following).body
            orders[target] = orders.get(target, "") + "".join(listed(body))
            links = {text: href for href, text in Page(body).links}
            following = urljoin("/bare/", links["Next"]) if "Next" in links else None
        assert "Last" not in links
        assert [urljoin("/bare/", links["First"])] == [target], "the first page has no number"
    assert orders == {
        "/bare/?sort=-name": "EDcba1a",
        "/bare/": "DEaa1bc",
        "/bare/?sort=size": "DEa1bac",
        "/bare/?sort=-size": "EDcaba1",
        "/bare/?sort=date": "DEa1bca",
        "/bare/?sort=-date": "EDacba1",
    }


@pytest.mark.parametrize(
    ("query", "view"),
    [
        (b"", View()),
        (b"?", View()),
        (b"?page=2", View(number=2)),
        (b"?page=0", View()),
        (b"?page=-1", View()),
        (b"?page=1e3", View()),
        (b"?page=" + b"9" * 5000, View()),
        (b"?sort=size&page=3", View("size", number=3)),
        (b"?sort=-date", View("date", descending=True)),
        (b"?sort=-", View()),
        (b"?sort=owner", View()),
        (b"?sort=-owner&page=2", View(number=2)),
        (b"?\xff=%ff&sort=%73ize", View("size")),
    ],
)
def test_query_that_no_link_has_shows_the_first_page(query: bytes, view: View) -> None:
    assert view_of(query, b"") == view
    assert view_of(view.address.removeprefix("./").encode(), b"") == view


def test_page_after_the_last_is_the_last(
    site: Path, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "PAGE", 1)
    for name in "ab":
        (site / "bare" / name).touch()
    body = get(address, "/bare/?page=77").body
    assert listed(body) == ["b"]
    assert "Page 2 of 2" in Page(body).text


def test_heading_of_the_order_has_a_mark_and_dates_have_their_time_zone(
    site: Path, address: Address
) -> None:
    (site / "bare" / "file").touch()
    os.utime(site / "bare" / "file", (MODIFIED, MODIFIED))
    for query, marked in (
        ("", '<th aria-sort="ascending"><a href="?sort=-name">Name</a>'),
        ("?sort=-size", '<th aria-sort="descending"><a href="?sort=size">Size</a>'),
    ):
        body = get(address, f"/bare/{query}").body.decode()
        assert body.count("<th aria-sort") == 1
        assert marked in body
        assert "Modified (UTC)" in body
        assert '<time datetime="2023-11-14T22:13:20Z">2023-11-14 22:13</time>' in body


def test_filter_is_hidden_until_a_script_shows_it_and_says_if_it_filters_one_of_many_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(views, "PAGE", 1)
    files = [Entry(is_file=True, name=name, size=1, modified=MODIFIED) for name in (b"a", b"b")]
    for entries, label in ((files[:1], "Filter"), (files, "Filter this page")):
        content = make_page([], *entries).decode()
        assert f'<div role="search" hidden><input type="search" aria-label="{label}"' in content
    assert "<input" not in make_page([]).decode(), "an empty directory has no filter"


@pytest.mark.parametrize(("target", "status"), [("/nothing", 404), ("/.git/", 404), ("/out", 403)])
def test_page_of_an_error_has_a_link_to_the_root(
    site: Path, address: Address, target: str, status: int
) -> None:
    (site / "out").symlink_to("../secret")
    response = get(address, target)
    assert response.status == status
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert Page(response.body).links == [("/", "Home")]


def test_name_that_looks_like_a_field_of_the_page_is_shown_as_it_is() -> None:
    content = make_page([b"{crumbs}{title}"]).decode()
    assert "<title>/{crumbs}{title}/</title>" in content
    assert content.count("{crumbs}{title}") == 2


def test_each_directory_above_has_a_link() -> None:
    links = Page(make_page([b"a", b"<b>", b"c"])).links
    assert links == [("../../../", "Home"), ("../../", "a"), ("../", "<b>")]


@pytest.mark.parametrize("modified", [-1e20, -1.0, 0.0, 1e20])
def test_date_that_no_calendar_has_is_shown_as_the_nearest(modified: float) -> None:
    text = Page(make_page([], Entry(is_file=True, name=b"x", size=1, modified=modified))).text
    assert ("1970-01-01 00:00" if modified <= 0 else "9999-12-31 23:59") in text


def test_listing_ends_with_the_number_of_entries_and_their_size() -> None:
    folder = Entry(is_file=False, name=b"c", size=0, modified=MODIFIED)
    files = [Entry(is_file=True, name=b"x", size=size, modified=MODIFIED) for size in (1000, 1500)]
    assert "1 folder, 2 files, 2.5 kB" in Page(make_page([], folder, *files)).text
    assert "\n1 file, 1.0 kB\n" in Page(make_page([], files[0])).text
    assert "\n1 folder\n" in Page(make_page([], folder)).text


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

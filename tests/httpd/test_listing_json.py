"""Listings of directories as JSON, and which clients get them."""

from __future__ import annotations

import gzip
import json
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import pytest

from iobatch.httpd import directories, views
from iobatch.httpd.cache import FileCache
from iobatch.httpd.files import Files
from iobatch.httpd.views import HTML, JSON
from tests.support.httpd import MODIFIED, Address, get, listing_of, serving

if TYPE_CHECKING:
    from pathlib import Path


def get_json(address: Address, target: str) -> Any:
    """Return the listing at a target."""
    response = get(address, target, Accept="application/json")
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/json"
    return json.loads(response.body)


def test_json_has_path_name_type_size_and_time_of_each_entry(tmp_path: Path) -> None:
    folder = tmp_path / "a b\u00fc"
    (folder / "inner").mkdir(parents=True)
    (folder / "file.txt").write_bytes(bytes(1234))
    (folder / "link").symlink_to("inner")
    (folder / ".hidden").touch()
    for each in ("inner", "file.txt"):
        os.utime(folder / each, (MODIFIED, MODIFIED))
    with serving(tmp_path) as (_, address):
        found = get_json(address, "/a%20b%C3%BC/")
    modified = "2023-11-14T22:13:20Z"
    assert found == {
        "path": "/a b\u00fc/",
        "page": 1,
        "pages": 1,
        "next": None,
        "entries": [
            {"name": "inner", "href": "inner/", "type": "directory", "modified": modified},
            {"name": "link", "href": "link/", "type": "directory", "modified": modified},
            {
                "name": "file.txt",
                "href": "file.txt",
                "type": "file",
                "size": 1234,
                "modified": modified,
            },
        ],
    }


def test_href_leads_to_the_file_of_any_name_and_name_is_text(site: Path, address: Address) -> None:
    names = [b"a:b", b"a%20b?#", b"\xff\xfe", b"new\nline", b'"', "\u202e\u2028".encode()]
    for i, name in enumerate(names):
        (site / "bare" / os.fsdecode(name)).write_bytes(b"%d" % i)
    entries = get_json(address, "/bare/")["entries"]
    assert len(entries) == len(names)
    for each in entries:
        body = get(address, urljoin("/bare/", each["href"])).body
        assert each["name"] == names[int(body)].decode("utf-8", "replace")


def test_empty_directory_has_one_page_without_entries(address: Address) -> None:
    expected = {"path": "/bare/", "page": 1, "pages": 1, "next": None, "entries": []}
    assert get_json(address, "/bare/") == expected


def test_next_leads_through_all_pages_in_the_order_of_the_query(
    site: Path, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "PAGE", 2)
    for size in range(5):
        (site / "bare" / f"{size}").write_bytes(bytes(size))
    following, sizes, numbers = "?sort=-size", [], []
    while following:
        found = get_json(address, urljoin("/bare/", following))
        sizes += [each["size"] for each in found["entries"]]
        numbers.append((found["page"], found["pages"]))
        following = found["next"]
    assert sizes == [4, 3, 2, 1, 0]
    assert numbers == [(1, 3), (2, 3), (3, 3)]
    assert get_json(address, "/bare/?page=9")["page"] == 3


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, HTML),
        ("", HTML),
        ("*/*", HTML),
        ("application/json", JSON),
        ("application/json, text/plain, */*", JSON),
        ("application/json, text/html", HTML),
        ("application/json;q=0, */*;q=0", HTML),
        ("application/*, text/*", HTML),
        ("application/json, */*;q=0.9", JSON),
        ("application/*, text/*;q=0.5", JSON),
        ("application/json;q=0.5, text/html;q=0.4", JSON),
        ("application/json;q=0.5, text/html", HTML),
        ("text/html, application/xhtml+xml, application/xml;q=0.9, */*;q=0.8", HTML),
        ("image/png", HTML),
    ],
)
def test_client_that_prefers_json_to_html_gets_it_and_any_other_html(
    address: Address, accept: str | None, content_type: str
) -> None:
    headers = {} if accept is None else {"Accept": accept}
    response = get(address, "/bare/", **headers)
    assert response.headers["Content-Type"] == content_type
    assert response.headers["Vary"] == "Accept, Accept-Encoding"


def test_accept_changes_neither_a_file_nor_an_index_nor_an_error(
    site: Path, address: Address
) -> None:
    (site / "out").symlink_to("..")
    for target in ("/1", "/", "/bare", "/nothing/", "/out/"):
        plain = get(address, target)
        json_preferred = get(address, target, Accept="application/json")
        assert (json_preferred.status, json_preferred.body) == (plain.status, plain.body)
        assert "Accept," not in plain.headers.get("Vary", "")


def test_json_has_a_tag_ranges_and_codings_of_its_own(site: Path, address: Address) -> None:
    for i in range(100):
        (site / "bare" / f"{i}").touch()
    accept = {"Accept": "application/json"}
    html, plain = get(address, "/bare/"), get(address, "/bare/", **accept)
    coded = get(address, "/bare/", Accept_Encoding="gzip", **accept)
    assert gzip.decompress(coded.body) == plain.body
    assert len({each.headers["ETag"] for each in (html, plain, coded)}) == 3
    assert plain.headers["Vary"] == coded.headers["Vary"] == "Accept, Accept-Encoding"
    tag = plain.headers["ETag"]
    unchanged = get(address, "/bare/", If_None_Match=tag, **accept)
    assert unchanged.status == 304
    assert unchanged.headers["Vary"] == "Accept, Accept-Encoding"
    assert get(address, "/bare/", If_None_Match=tag).status == 200
    part = get(address, "/bare/", Range="bytes=2-5", **accept)
    assert (part.status, part.body) == (206, plain.body[2:6])


def test_uncompressed_listing_varies_only_with_accept(site: Path) -> None:
    with serving(site, compress=False) as (_, address):
        for accept in ("application/json", "text/html"):
            assert get(address, "/bare/", Accept=accept).headers["Vary"] == "Accept"


def test_forms_of_a_listing_share_one_reading_and_each_has_one_page(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Any] = []
    read = directories.read_directory

    def read_directory(root: Any, names: Any) -> Any:
        reads.append(names)
        return read(root, names)

    monkeypatch.setattr(directories, "read_directory", read_directory)
    files = FileCache(Files(site))
    accept = {b"accept": b"application/json"}
    html = listing_of(files, b"/bare/", 0.0)
    page = listing_of(files, b"/bare/", 0.0, accept)
    assert files.get(b"/bare/?page=1", 0.0, accept) is page is not html
    assert files.get(b"/bare/", 0.0) is html
    assert len(reads) == 1
    files.close()


class Untouched(dict[bytes, bytes]):
    """Header fields that nothing may look at."""

    def get(self, *args: object) -> Any:
        raise AssertionError(args)

    __getitem__ = __contains__ = get


def test_request_for_a_file_looks_at_no_header_field_to_find_it(site: Path) -> None:
    files = FileCache(Files(site))
    for _ in "12":
        assert files.get(b"/1", 0.0, Untouched()) is not None
    with pytest.raises(AssertionError):
        files.get(b"/bare/", 0.0, Untouched())
    files.close()

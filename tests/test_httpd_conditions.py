"""Conditional requests to the file server, precompressed files, and OPTIONS."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
from email.utils import formatdate
from time import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers import PATIENCE, data
from tests.httpd_helpers import (
    MODIFIED,
    TAG,
    exchange,
    get,
    make_site,  # noqa: F401
    serve_site,  # noqa: F401
    serving,
    split,
    tag_of,
    tagged,
    tool,
)

# isort: split
from codings import MIN_CODED
from conditions import http_date

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.httpd_helpers import Address

SINCE = formatdate(MODIFIED, usegmt=True)
BEFORE = formatdate(MODIFIED - 1, usegmt=True)
AFTER = formatdate(MODIFIED + 1, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If_None_Match": TAG}, 304),
        ({"If_None_Match": f"W/{TAG}"}, 304),
        ({"If_None_Match": "*"}, 304),
        ({"If_None_Match": f'"a", "b,c" ,{TAG}'}, 304),
        ({"If_None_Match": '"other"'}, 200),
        ({"If_None_Match": TAG.strip('"')}, 200),
        ({"If_None_Match": ""}, 200),
        ({"If_Modified_Since": SINCE}, 304),
        ({"If_Modified_Since": AFTER}, 304),
        ({"If_Modified_Since": BEFORE}, 200),
        ({"If_Modified_Since": "yesterday"}, 200),
        ({"If_Modified_Since": f"{SINCE}, {SINCE}"}, 200),
        ({"If_None_Match": '"other"', "If_Modified_Since": SINCE}, 200),
        ({"If_None_Match": TAG, "If_Modified_Since": BEFORE}, 304),
        ({"If_Match": TAG}, 200),
        ({"If_Match": "*"}, 200),
        ({"If_Match": f'"a", {TAG}'}, 200),
        ({"If_Match": f"W/{TAG}"}, 412),
        ({"If_Match": '"other"'}, 412),
        ({"If_Unmodified_Since": SINCE}, 200),
        ({"If_Unmodified_Since": BEFORE}, 412),
        ({"If_Unmodified_Since": "tomorrow"}, 200),
        ({"If_Match": TAG, "If_Unmodified_Since": BEFORE}, 200),
        ({"If_Match": '"other"', "If_None_Match": TAG}, 412),
        ({"If_Match": TAG, "If_None_Match": TAG}, 304),
        ({"If_Unmodified_Since": SINCE, "If_Modified_Since": SINCE}, 304),
    ],
)
def test_preconditions(site: Path, address: Address, headers: dict[str, str], status: int) -> None:
    """Conditions are looked at in the order of RFC 9110, section 13.2.2, for GET and HEAD."""
    for method in ("GET", "HEAD"):
        response = get(address, "/1024", method, **tagged(headers, site / "1024"))
        assert response.status == status
        if status == 304:
            assert response.headers.keys() == {"ETag", "Cache-Control", "Last-Modified", "Date"}
            assert response.headers["ETag"] == tag_of(site / "1024")
        elif status == 200 and method == "GET":
            assert response.body == data(1024, seed=1024)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If_None_Match": TAG}, 304),
        ({"If_Modified_Since": SINCE}, 304),
        ({"If_Unmodified_Since": BEFORE}, 412),
        ({"If_Range": TAG, "Range": "bytes=0-0"}, 206),
        ({"If_Range": SINCE, "Range": "bytes=0-0"}, 206),
    ],
)
def test_space(site: Path, address: Address, headers: dict[str, str], status: int) -> None:
    """The space around a value is no part of it (RFC 9112 5)."""
    headers = tagged(headers, site / "1024")
    spaced = {name: f"\t{value} \t " for name, value in headers.items()}
    assert get(address, "/1024", **spaced).status == status


def test_connection_goes_on(site: Path, address: Address) -> None:
    """Behind a 304, which has no body, come the other responses."""
    request = b"GET /1024 HTTP/1.1\r\nHost: x\r\nIf-None-Match: %s\r\n\r\n"
    tag = tag_of(site / "1024").encode()
    raw = exchange(address, request % tag + request % b'"x"' + request % b"*")
    assert [response.status for response in split(raw)] == [304, 200, 304]


def test_missing_file(address: Address) -> None:
    """A file that isn't there is told as such, whatever the conditions."""
    assert get(address, "/nothing", If_None_Match="*", Range="bytes=0-1").status == 404


def test_fresh_file(site: Path, address: Address) -> None:
    """A file that changed just now may change again in the same tick: its tag is weak."""
    (site / "new").write_bytes(b"new")
    os.utime(site / "new", (time() + 100, time() + 100))
    tag = get(address, "/new").headers["ETag"]
    assert re.fullmatch(r'W/"[0-9a-f]+-3"', tag)
    assert get(address, "/new", If_None_Match=tag).status == 304
    assert get(address, "/new", If_Match=tag).status == 412
    assert get(address, "/new", Range="bytes=0-0", If_Range=tag).status == 200


@pytest.mark.parametrize("in_place", [False, True])
def test_same_date(site: Path, *, in_place: bool) -> None:
    """Another file of the same size and date, as a reproducible build makes it, has another tag."""
    tags = set()
    for i in range(2):
        with serving(site) as (_, address):
            tags.add(get(address, "/1024").headers["ETag"])
        new = site / ("1024" if in_place else "new")
        while tag_of(site / "1024") in tags:  # until the file system's clock has gone on
            new.write_bytes(data(1024, seed=i))
            os.utime(new, (MODIFIED, MODIFIED))
            new.rename(site / "1024")
    assert len(tags) == 2
    assert not any(tag.startswith("W/") for tag in tags)


def test_page(site: Path, address: Address) -> None:
    """The page of a directory has a tag of its own, and no date, which it would have for itself."""
    first = get(address, "/bare/")
    assert "Last-Modified" not in first.headers
    assert get(address, "/bare/", If_None_Match=first.headers["ETag"]).status == 304
    assert get(address, "/bare/", If_Modified_Since=formatdate(usegmt=True)).status == 200


@pytest.mark.parametrize(
    "date",
    [
        "Tue, 14 Nov 2023 22:13:20 GMT",
        "Tuesday, 14-Nov-23 22:13:20 GMT",
        "Tue Nov 14 22:13:20 2023",
    ],
)
def test_dates(date: str) -> None:
    """All three forms of a date are known."""
    assert http_date(date.encode()) == MODIFIED


@pytest.mark.parametrize(
    "date", [b"", b"0", b"Tue, 14 Nov 2023 22:13:20 +0200", b"\xff", b"now" * 99]
)
def test_no_dates(date: bytes) -> None:
    """What is none of them is no date."""
    assert http_date(date) is None


# Codings


TEXT = b"All work and no play makes Jack a dull boy.\n" * 100


@pytest.fixture(name="texts")
def serve_texts(site: Path) -> Iterator[Address]:
    """Serve texts with compressed files beside them, which need not be what they say here."""
    for name, content in (
        ("both.txt", TEXT),
        ("both.txt.gz", b"gz of both" * 200),
        ("both.txt.br", b"br of both"),
        ("both.txt.zst", b"zst of both"),
        ("only.txt", TEXT),
        ("only.txt.gz", gzip.compress(TEXT)),
        ("stale.txt", TEXT),
        ("stale.txt.br", b"of an older text"),
        ("link.txt", TEXT),
        ("folder.txt", TEXT),
        ("small.txt", TEXT[: MIN_CODED - 1]),
        ("small.txt.br", b"br of small"),
        ("data.bin", b"some data"),
        ("data.bin.zst", b"zst of data"),
        ("plain.txt", TEXT),
    ):
        (site / name).write_bytes(content)
        os.utime(site / name, (MODIFIED, MODIFIED))
    os.utime(site / "stale.txt.br", (MODIFIED - 1, MODIFIED - 1))
    (site / "link.txt.br").symlink_to("../secret")
    (site / "folder.txt.br").mkdir()
    with serving(site) as (_, address):
        yield address


@pytest.mark.parametrize(
    ("name", "accept", "coding", "body"),
    [
        ("both.txt", "gzip, br, zstd", "br", b"br of both"),
        ("both.txt", "gzip, zstd", "zstd", b"zst of both"),
        ("both.txt", "gzip;q=1, *;q=0.5", "gzip", b"gz of both" * 200),
        ("both.txt", "identity", None, TEXT),
        ("both.txt", "br;q=0", None, TEXT),
        ("only.txt", "br, gzip", "gzip", gzip.compress(TEXT)),
        ("only.txt", "zstd, gzip", "gzip", gzip.compress(TEXT)),
        ("only.txt", "*", "gzip", gzip.compress(TEXT)),
        ("stale.txt", "br", None, TEXT),
        ("link.txt", "br", None, TEXT),
        ("folder.txt", "br", None, TEXT),
        ("small.txt", "br", "br", b"br of small"),
        ("small.txt", "gzip", None, TEXT[: MIN_CODED - 1]),
        ("data.bin", "zstd", "zstd", b"zst of data"),
        ("data.bin", "br, gzip", None, b"some data"),
    ],
)
def test_siblings(texts: Address, name: str, accept: str, coding: str | None, body: bytes) -> None:
    """A compressed file beside the file is sent as what it is the coding of, if it's not older.

    So it is for any type and size, and rather than what could be made on the fly.
    """
    text = name.endswith("txt")
    for version in ("1.1", "1.0"):
        response = get(texts, f"/{name}", version=version, Accept_Encoding=accept)
        assert response.headers.get("Content-Encoding") == coding
        assert response.headers["Content-Length"] == str(len(body))
        assert response.headers["Content-Type"].startswith("text/plain" if text else "application/")
        assert response.headers["Vary"] == "Accept-Encoding"
        assert response.body == body or gzip.decompress(response.body) == TEXT


def test_tags_differ(texts: Address) -> None:
    """Each representation has a tag of its own: a strong one, but for what is made on the fly."""
    tags = {}
    for name in ("both", "plain"):
        for accept in ("br", "gzip", "identity"):
            headers = {"Accept_Encoding": accept}
            response = get(texts, f"/{name}.txt", **headers)
            tag = response.headers["ETag"]
            on_the_fly = name == "plain" and accept == "gzip"
            assert tag.startswith("W/") is on_the_fly
            assert ("Accept-Ranges" in response.headers) is not on_the_fly
            tags[name, accept] = tag
            again = get(texts, f"/{name}.txt", If_None_Match=tag, **headers)
            assert again.status == 304
            assert again.headers["Vary"] == "Accept-Encoding"
            assert again.headers["ETag"] == tag
    assert tags["plain", "br"] == tags["plain", "identity"] != tags["plain", "gzip"]
    assert len({tags["both", coding] for coding in ("br", "gzip", "identity")}) == 3
    assert get(texts, "/both.txt", If_None_Match=tags["both", "br"]).status == 200


def test_ranges_of_codings(texts: Address) -> None:
    """A range is one of the file beside, or of the file itself, not of what is made on the fly.

    That a client wants a range makes no difference to what it is a range of (RFC 9110 14.2).
    """
    part: dict[str, Any] = {"Range": "bytes=3-9", "Accept_Encoding": "br, gzip"}
    response = get(texts, "/both.txt", **part)
    assert (response.status, response.body) == (206, b"of both")
    assert response.headers["Content-Encoding"] == "br"
    response = get(texts, "/plain.txt", Range="bytes=3-9", Accept_Encoding="identity")
    assert (response.status, response.body) == (206, TEXT[3:10])
    assert "Content-Encoding" not in response.headers
    assert response.headers["Vary"] == "Accept-Encoding"
    tag = response.headers["ETag"]
    assert get(texts, "/plain.txt", If_Match=tag).body == TEXT
    for method, headers in (
        ("GET", part),
        ("HEAD", part),
        ("GET", {**part, "Range": "foo=3-9"}),
        ("GET", {**part, "Accept_Encoding": "gzip, identity;q=0"}),
        ("GET", {"If_Match": "*", "Accept_Encoding": "gzip, identity;q=0"}),
    ):
        response = get(texts, "/plain.txt", method, **headers)
        assert response.status == 200
        assert response.headers["Content-Encoding"] == "gzip"
        assert method == "HEAD" or gzip.decompress(response.body) == TEXT


# OPTIONS, and a client that is not ours


@pytest.mark.parametrize("target", ["*", "/1024", "/nothing"])
def test_options(address: Address, target: str) -> None:
    """OPTIONS tells what is allowed, and the connection goes on."""
    raw = exchange(
        address,
        f"OPTIONS {target} HTTP/1.1\r\nHost: x\r\n\r\nGET /1 HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    )
    options, got = split(raw)
    assert options.status == 204
    assert options.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert "Content-Length" not in options.headers
    assert got.body == data(1, seed=1)


def test_curl(address: Address, tmp_path: Path) -> None:
    """Curl fetches a file again only when it has changed, by its date and by its tag."""
    curl = tool("curl", "curl")
    target = f"http://{address[0]}:{address[1]}/1024"

    def run(*options: str | Path) -> str:
        return subprocess.run(
            [curl, "-fsS", "-R", "-w", "%{http_code}", *options, "-o", tmp_path / "file", target],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        ).stdout

    tag = tmp_path / "tag"
    assert run("--etag-save", tag) == "200"
    assert (tmp_path / "file").read_bytes() == data(1024, seed=1024)
    assert run("--etag-compare", tag) == "304"
    assert run("-z", tmp_path / "file") == "304"
    os.utime(tmp_path / "file", (MODIFIED - 5, MODIFIED - 5))
    assert run("-z", tmp_path / "file") == "200"

"""Precompressed files beside a file: which one is sent, its tag and its ranges."""

from __future__ import annotations

import gzip
import os
from typing import TYPE_CHECKING, Any

import pytest

from iobatch.httpd.codings import MIN_CODED
from tests.support.httpd import MODIFIED, Address, address_of, get, program, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXT = b"All work and no play makes Jack a dull boy.\n" * 100


@pytest.fixture(name="texts")
def serve_texts(site: Path) -> Iterator[Address]:
    """Serve text files with compressed files beside them, some with a marker as their content."""
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
        ("backup.tar", TEXT),
        ("backup.tar.gz", b"another backup"),
        ("photo.jpg", TEXT),
        ("photo.jpg.br", b"of another photo"),
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
    ("name", "accept", "sent"),
    [
        ("both.txt", "gzip, br, zstd", "both.txt.br"),
        ("both.txt", "gzip, zstd", "both.txt.zst"),
        ("both.txt", "gzip;q=1, *;q=0.5", "both.txt.gz"),
        ("both.txt", "identity", "both.txt"),
        ("both.txt", "br;q=0", "both.txt"),
        ("only.txt", "br, gzip", "only.txt.gz"),
        ("only.txt", "zstd, gzip", "only.txt.gz"),
        ("only.txt", "*", "only.txt.gz"),
        ("stale.txt", "br", "stale.txt"),
        ("link.txt", "br", "link.txt"),
        ("folder.txt", "br", "folder.txt"),
        ("small.txt", "br", "small.txt.br"),
        ("small.txt", "gzip", "small.txt"),
    ],
)
def test_compressed_sibling_is_preferred_if_it_is_not_older(
    site: Path, texts: Address, name: str, accept: str, sent: str
) -> None:
    """It is sent for any size, and rather than a coding made on the fly."""
    coding = {"": None, ".br": "br", ".gz": "gzip", ".zst": "zstd"}[sent.removeprefix(name)]
    body = (site / sent).read_bytes()
    for version in ("1.1", "1.0"):
        response = get(texts, f"/{name}", version=version, Accept_Encoding=accept)
        assert response.headers.get("Content-Encoding") == coding
        assert response.headers["Content-Length"] == str(len(body))
        assert response.headers["Content-Type"].startswith("text/plain")
        assert response.headers["Vary"] == "Accept-Encoding"
        assert response.body == body


@pytest.mark.parametrize("name", ["backup.tar", "data.bin", "photo.jpg"])
def test_file_beside_one_of_a_type_that_is_not_compressed_is_another_file(
    site: Path, texts: Address, name: str
) -> None:
    response = get(texts, f"/{name}", Accept_Encoding="br, zstd, gzip")
    assert response.body == (site / name).read_bytes()
    assert "Content-Encoding" not in response.headers
    assert "Vary" not in response.headers


def test_no_compress_option_sends_every_file_as_it_is(site: Path) -> None:
    (site / "a.txt").write_bytes(TEXT)
    (site / "b.txt").write_bytes(TEXT)
    (site / "b.txt.gz").write_bytes(b"gz of b")
    for i in range(20):
        (site / "bare" / f"{i}").touch()
    with program(site, "--no-compress") as (_, url):
        for target in ("/a.txt", "/b.txt", "/bare/"):
            response = get(address_of(url), target, Accept_Encoding="gzip, br, zstd")
            assert "Content-Encoding" not in response.headers
            assert "Accept-Encoding" not in response.headers.get("Vary", "")
            assert len(response.body) > MIN_CODED
            assert response.headers["Content-Length"] == str(len(response.body))


def test_each_representation_has_its_own_tag_weak_only_if_made_on_the_fly(texts: Address) -> None:
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


def test_range_applies_to_sibling_or_file_and_in_place_of_a_coding_made_on_the_fly(
    texts: Address,
) -> None:
    """So a download can be resumed. Where no part is sent, the body is coded as without Range."""
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
    for more in ({}, {"If_Range": tag}, {"If_Match": tag}):
        same = get(texts, "/plain.txt", **part, **more)
        same.headers["Date"] = response.headers["Date"]
        assert same == response
    response = get(texts, "/plain.txt", **{**part, "Range": "bytes=99999-"})
    assert (response.status, response.headers["Content-Range"]) == (416, f"bytes */{len(TEXT)}")
    coded = get(texts, "/plain.txt", Accept_Encoding="gzip").headers["ETag"]
    for method, headers in (
        ("GET", {**part, "If_Range": coded}),
        ("GET", {**part, "If_Range": coded.removeprefix("W/")}),
        ("HEAD", part),
        ("HEAD", {**part, "If_None_Match": tag}),
        ("GET", {**part, "Range": "foo=3-9"}),
        ("GET", {**part, "Accept_Encoding": "gzip, *;q=0"}),
        ("GET", {**part, "Accept_Encoding": "gzip, identity;q=0"}),
        ("GET", {"If_Match": "*", "Accept_Encoding": "gzip, identity;q=0"}),
    ):
        response = get(texts, "/plain.txt", method, **headers)
        assert response.status == 200
        assert response.headers["ETag"] == coded
        assert response.headers["Content-Encoding"] == "gzip"
        assert method == "HEAD" or gzip.decompress(response.body) == TEXT

"""Media types: by suffix, and the same on every machine."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd.codings import MIN_CODED
from iobatch.httpd.mediatypes import content_type
from tests.support.httpd import Address, etag_of, get
from tests.support.programs import run_python

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        (b"index.html", "text/html; charset=utf-8"),
        (b"A.TXT", "text/plain; charset=utf-8"),
        (b"photo.jpeg", "image/jpeg"),
        (b"picture.svg", "image/svg+xml"),
        (b"picture.SVGZ", "image/svg+xml"),
        (b"data.json", "application/json"),
        (b"app.js.map", "application/json"),
        (b"feed.xml", "application/xml"),
        (b"module.mjs", "text/javascript; charset=utf-8"),
        (b"module.wasm", "application/wasm"),
        (b"app.webmanifest", "application/manifest+json"),
        (b"thing.jsonld", "application/ld+json"),
        (b"README.md", "text/markdown; charset=utf-8"),
        (b"meeting.ics", "text/calendar; charset=utf-8"),
        (b"captions.vtt", "text/vtt; charset=utf-8"),
        (b"f.woff2", "font/woff2"),
        (b"f.woff", "font/woff"),
        (b"f.ttf", "font/ttf"),
        (b"f.otf", "font/otf"),
        (b"song.m4a", "audio/mp4"),
        (b"song.ogg", "audio/ogg"),
        (b"song.opus", "audio/ogg"),
        (b"song.flac", "audio/flac"),
        (b"film.mkv", "video/matroska"),
        (b"film.webm", "video/webm"),
        (b"film.mp4", "video/mp4"),
        (b"segment1.ts", "video/mp2t"),
        (b"list.m3u8", "application/vnd.apple.mpegurl"),
        (b"i.webp", "image/webp"),
        (b"i.avif", "image/avif"),
        (b"favicon.ico", "image/vnd.microsoft.icon"),
        (b"book.epub", "application/epub+zip"),
        (b"archive.tar", "application/x-tar"),
        (b"archive.tar.gz", "application/gzip"),
        (b"archive.tar.bz2", "application/x-bzip2"),
        (b"page.html.zst", "application/zstd"),
        (b"unknown", "application/octet-stream"),
        (b"html", "application/octet-stream"),
        (b"unknown.xyzzy", "application/octet-stream"),
        (b"trailing.", "application/octet-stream"),
        (b"\xff\xfe.css", "text/css; charset=utf-8"),
        (b"new.\xff", "application/octet-stream"),
        (b"data:text/html,x", "application/octet-stream"),
        (b"http:x.png", "image/png"),
    ],
)
def test_content_type_follows_the_suffix_and_a_compressed_file_is_an_archive(
    name: bytes, media_type: str
) -> None:
    assert content_type(name) == media_type


def test_server_reads_no_table_of_the_machine() -> None:
    """The standard library's mimetypes reads such files."""
    result = run_python("import sys, iobatch.httpd.program; print('mimetypes' in sys.modules)")
    assert (result.stdout, result.stderr) == ("False\n", "")


@pytest.mark.parametrize("accept", ["gzip", "br", "identity"])
def test_compressed_svg_is_sent_as_it_is_with_its_coding(
    site: Path, address: Address, accept: str
) -> None:
    """No coding is applied to it again, on the fly or by a file beside it."""
    content = gzip.compress(b"<svg/>", mtime=0) + bytes(MIN_CODED)
    (site / "x.svgz").write_bytes(content)
    (site / "x.svgz.br").write_bytes(b"twice")
    response = get(address, "/x.svgz", Accept_Encoding=accept)
    assert response.body == content
    assert response.headers["Content-Type"] == "image/svg+xml"
    assert response.headers["Content-Encoding"] == "gzip"
    assert response.headers["ETag"].removeprefix("W/") == etag_of(site / "x.svgz")[:-1] + '-gzip"'
    assert "Vary" not in response.headers
    assert get(address, "/x.svgz", Range="bytes=1-2").headers["Content-Encoding"] == "gzip"

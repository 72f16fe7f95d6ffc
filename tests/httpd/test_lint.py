"""Responses, as a linter for HTTP sees them."""

from __future__ import annotations

import gzip
import os
from time import time
from typing import TYPE_CHECKING

import pytest
from httplint import HttpRequestLinter, HttpResponseLinter
from httplint.note import levels

from iobatch.httpd.authentication import Authentication
from iobatch.httpd.headerfields import HeaderFields, Rule
from iobatch.httpd.scrypt import new_hash
from tests.support.httpd import MODIFIED, Address, get, serving, show_headers

if TYPE_CHECKING:
    from pathlib import Path

TEXT = b"All work and no play makes Jack a dull boy.\n" * 500
# The linter misses a field that RFC 9110 15.3.7.2 forbids in a response of several parts.
FALSE_ALARM = "This response is partial, but doesn't have a Content-Range header."


def lint(
    address: Address, method: str, target: str, headers: dict[str, str]
) -> tuple[int, set[str]]:
    """Return the status of a response, and the linter's warnings and errors."""
    request = HttpRequestLinter()
    request.process_request_topline(method.encode(), b"http://here" + target.encode(), b"1.1")
    request.process_headers(
        [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    )
    request.finish_content(complete=True)
    started = time()
    response = get(address, target, method, **headers)
    linter = HttpResponseLinter(start_time=started)
    linter.request = request
    linter.base_uri = f"http://here{target}"
    linter.is_head_response = method == "HEAD"
    linter.process_response_topline(b"1.1", b"%d" % response.status)
    linter.process_headers(
        [(name.encode(), value.encode()) for name, value in response.headers.items()]
    )
    linter.feed_content(response.body)
    linter.finish_content(complete=True)
    assert any(note.level == levels.GOOD for note in linter.notes), (
        "the linter has read the response"
    )
    notes = [each for note in linter.notes for each in (note, *note.subnotes)]
    bad = {note.summary for note in notes if note.level in {levels.WARN, levels.BAD}}
    if "multipart" in response.headers.get("Content-Type", ""):
        bad -= {FALSE_ALARM}
    return response.status, bad


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        ("GET /1024", {}, 200),
        ("HEAD /1024", {}, 200),
        ("OPTIONS /1024", {}, 204),
        ("POST /1024", {}, 405),
        ("GET /1024", {"Range": "bytes=1-5"}, 206),
        ("GET /1024", {"Range": "bytes=1-5,7-9"}, 206),
        ("GET /1024", {"Range": "bytes=2000-"}, 416),
        ("GET /1024", {"If_None_Match": "*"}, 304),
        ("GET /1024", {"If_Match": '"other"'}, 412),
        ("GET /text.txt", {}, 200),
        ("GET /text.txt", {"Accept_Encoding": "br, gzip"}, 200),
        ("HEAD /text.txt", {"Accept_Encoding": "gzip"}, 200),
        ("GET /text.txt", {"Accept_Encoding": "zstd"}, 200),
        ("GET /text.txt", {"Accept_Encoding": "gzip", "If_None_Match": "*"}, 304),
        ("GET /text.txt", {"Range": "bytes=1-5"}, 206),
        ("GET /text.txt", {"Range": "bytes=1-5", "Accept_Encoding": "gzip"}, 206),
        ("GET /beside.txt", {"Accept_Encoding": "gzip"}, 200),
        ("GET /beside.txt", {"Accept_Encoding": "gzip", "Range": "bytes=1-5"}, 206),
        ("GET /", {}, 200),
        ("GET /bare/", {"Accept_Encoding": "gzip"}, 200),
        ("GET /bare/", {}, 200),
        ("GET /bare/", {"Accept": "application/json", "Accept_Encoding": "gzip"}, 200),
        ("HEAD /bare/", {"Accept": "application/json"}, 200),
        ("GET /bare/", {"Accept": "application/json", "If_None_Match": "*"}, 304),
        ("GET /bare", {}, 301),
        ("GET /nothing", {}, 404),
    ],
    ids=show_headers,
)
def test_linter_finds_no_fault_with_any_response(
    site: Path, address: Address, request_line: str, headers: dict[str, str], status: int
) -> None:
    for name, content in (
        ("text.txt", TEXT),
        ("beside.txt", TEXT),
        ("beside.txt.gz", gzip.compress(TEXT)),
        ("bare/file", b""),
    ):
        (site / name).write_bytes(content)
        os.utime(site / name, (MODIFIED, MODIFIED))
    method, target = request_line.split()
    assert lint(address, method, target, headers) == (status, set())


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        ("GET /users", {}, 200),
        ("HEAD /users", {"Accept": "text/html"}, 200),
        ("GET /users", {"Accept_Encoding": "gzip"}, 200),
        ("GET /users", {"If_None_Match": "*"}, 304),
        ("GET /users", {"Range": "bytes=1-5"}, 206),
        ("GET /nothing.js", {}, 404),
        ("HEAD /nothing.js", {}, 404),
        ("GET /nothing.js", {"Accept_Encoding": "gzip"}, 404),
        ("GET /nothing.js", {"Range": "bytes=1-5", "If_None_Match": "*"}, 404),
    ],
    ids=show_headers,
)
def test_linter_finds_no_fault_with_pages_for_what_is_not_there(
    site: Path, request_line: str, headers: dict[str, str], status: int
) -> None:
    for name in ("index.html", "404.html"):
        (site / name).write_bytes(TEXT)
        os.utime(site / name, (MODIFIED, MODIFIED))
    method, target = request_line.split()
    with serving(site, spa="index.html") as (_, address):
        assert lint(address, method, target, headers) == (status, set())


# Header fields as people add them.
FIELDS = HeaderFields(
    [
        Rule("", "Access-Control-Allow-Origin", "https://other.example"),
        Rule("", "Access-Control-Allow-Credentials", "true"),
        Rule("", "Content-Security-Policy", "default-src 'self'"),
        Rule("", "Cross-Origin-Embedder-Policy", "require-corp"),
        Rule("", "Cross-Origin-Opener-Policy", "same-origin"),
        Rule("", "Referrer-Policy", "no-referrer"),
        Rule("", "Vary", "Origin"),
        Rule("", "X-Content-Type-Options", "nosniff"),
        Rule("/1024", "Cache-Control", "max-age=31536000, immutable"),
    ]
)
PREFLIGHT = {
    "Origin": "https://other.example",
    "Access_Control_Request_Method": "GET",
    "Access_Control_Request_Headers": "authorization, range",
}


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        ("GET /1024", {}, 200),
        ("HEAD /1024", {}, 200),
        ("OPTIONS /1024", {}, 204),
        ("OPTIONS /1024", PREFLIGHT, 204),
        ("POST /1024", {}, 405),
        ("GET /1024", {"Range": "bytes=1-5"}, 206),
        ("GET /1024", {"Range": "bytes=1-5,7-9"}, 206),
        ("GET /1024", {"Range": "bytes=2000-"}, 416),
        ("GET /1024", {"If_None_Match": "*"}, 304),
        ("GET /text.txt", {"Accept_Encoding": "gzip"}, 200),
        ("GET /text.txt", {"Accept_Encoding": "gzip", "If_None_Match": "*"}, 304),
        ("GET /", {}, 200),
        ("GET /bare/", {}, 200),
        ("GET /bare", {}, 301),
        ("GET /nothing", {}, 404),
    ],
    ids=show_headers,
)
def test_linter_finds_no_fault_with_responses_that_have_configured_fields(
    site: Path, request_line: str, headers: dict[str, str], status: int
) -> None:
    (site / "text.txt").write_bytes(TEXT)
    method, target = request_line.split()
    with serving(site, header_fields=FIELDS) as (_, address):
        assert lint(address, method, target, headers) == (status, set())


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        ("GET /1024", {}, 401),
        ("HEAD /1024", {}, 401),
        ("OPTIONS /1024", {}, 401),
        ("OPTIONS /1024", PREFLIGHT, 204),
        ("GET /1024", {"Authorization": "Basic dTpx"}, 401),
        ("GET /1024", {"Authorization": "Basic dTpw"}, 200),
        ("GET /text.txt", {"Authorization": "Basic dTpw"}, 200),
        ("GET /nothing", {"Authorization": "Basic dTpw"}, 404),
    ],
    ids=show_headers,
)
def test_linter_finds_no_fault_with_responses_where_a_password_is_needed(
    site: Path, request_line: str, headers: dict[str, str], status: int
) -> None:
    (site / "text.txt").write_bytes(TEXT)
    method, target = request_line.split()
    checker = Authentication({b"u": new_hash(b"p")})
    with serving(site, authentication=checker, header_fields=FIELDS) as (_, address):
        assert lint(address, method, target, headers) == (status, set())

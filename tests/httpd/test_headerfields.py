"""Header fields that the command line adds to responses."""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, Any

import pytest

from iobatch.httpd import headerfields
from iobatch.httpd.headerfields import HeaderFields, Rule, parse_rule
from tests.support.http import Response, split
from tests.support.httpd import (
    Address,
    address_of,
    etag_of,
    exchange,
    get,
    program,
    run_httpd,
    serving,
)

if TYPE_CHECKING:
    from pathlib import Path

FOREVER = "public, max-age=31536000, immutable"


def fields_of(*arguments: str) -> HeaderFields:
    return HeaderFields([parse_rule(argument) for argument in arguments])


def lines_for(target: bytes, *arguments: str) -> list[bytes]:
    """Return the lines for a request target, without their ends."""
    return fields_of(*arguments).find(target).lines.splitlines()


@pytest.mark.parametrize(
    ("argument", "rule"),
    [
        ("X-Frame-Options: DENY", Rule("", "X-Frame-Options", "DENY")),
        ("/a/* Cache-Control: max-age=1, b", Rule("/a/*", "Cache-Control", "max-age=1, b")),
        ("x:y: z", Rule("", "x", "y: z")),
        ("!#$%&'*+-.^_`|~09: ", Rule("", "!#$%&'*+-.^_`|~09", "")),
        ("X: caf\xe9", Rule("", "X", "caf\xe9")),
    ],
)
def test_argument_has_a_name_a_value_and_a_pattern_if_it_begins_with_a_slash(
    argument: str, rule: Rule
) -> None:
    assert parse_rule(argument) == rule


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        *[
            (argument, "must be 'NAME: VALUE' or '/PATTERN NAME: VALUE'")
            for argument in (
                "",
                "X",
                "/a",
                "/a X",
                ": y",
                "/a : y",
                "/a  X: y",
                "a* X: y",
                "X : y",
                "\xdc: y",
                "X\n: y",
                "(X): y",
            )
        ],
        *[
            (f"X: {value}", "the value has a control character, or is not UTF-8")
            for value in ("y\r\nZ: 1", "\n", "a\tb", "\0", "\x7f", "\x85", "\udcff")
        ],
        *[
            (f"X:{value}", "the value has a space at its beginning or end")
            for value in ("  y", " y ", "y ", "  ")
        ],
        ("/a eTag: 1", "the server makes eTag itself"),
    ],
)
def test_argument_that_makes_no_field_is_quoted_with_the_reason(argument: str, reason: str) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        parse_rule(argument)
    assert str(caught.value) == f"{argument!r}: {reason}"


def test_fields_that_describe_a_response_or_its_connection_are_refused() -> None:
    for name in (
        "Accept-Ranges",
        "Allow",
        "Connection",
        "Content-Encoding",
        "Content-Length",
        "Content-Range",
        "Content-Type",
        "Date",
        "ETag",
        "Keep-Alive",
        "Last-Modified",
        "Location",
        "Retry-After",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "WWW-Authenticate",
    ):
        with pytest.raises(ArgumentTypeError, match=f"the server makes {name} itself"):
            parse_rule(f"{name}: 1")


def test_program_reports_an_argument_and_serves_with_others(site: Path) -> None:
    result = run_httpd(site, "--header", "Date: 1")
    assert result.returncode == 2
    reason = "argument --header: 'Date: 1': the server makes Date itself\n"
    assert result.stderr.endswith(reason)
    with program(site, "--header", "X-A: 1", "--header", "/sub/* X-B: \xe9") as (_, url):
        headers = get(address_of(url), "/sub/").headers
        assert (headers["X-A"], headers["X-B"]) == ("1", "\xe9".encode().decode("latin-1"))
        assert "X-B" not in get(address_of(url), "/1").headers


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("/a/*", [b"/a/", b"/a/b", b"/a/b/c.d", b"/a/%62?q", b"/x/../a/b"], [b"/a", b"/A/", b"/b"]),
        ("/a/*", [b"//a//b", b"http://host/a/b"], [b"/a/../b", b"/b?/a/", b"*", b"/a/%zz"]),
        ("/*.js", [b"/x.js", b"/a/b.js", b"/.js?v=1.css", b"/x%2ejs"], [b"/x.json", b"/x.JS"]),
        ("/[ab]?", [b"/a1", "/b\xfc".encode(), b"/b%C3%BC", b"/a%0a"], [b"/c1", b"/a", b"/abc"]),
        ("/a?b", [b"/a%20b", b"/a%FFb"], [b"/ab"]),
        ("/", [b"/", b"/.", b"http://host"], [b"/index.html"]),
        ("/\xfc", ["/\xfc".encode(), b"/%c3%bc"], [b"/\xfc"]),
    ],
)
def test_pattern_matches_the_decoded_path_without_dot_segments_and_query(
    pattern: str, matching: list[bytes], others: list[bytes]
) -> None:
    fields = fields_of(f"{pattern} X: y")
    assert all(fields.find(target).lines == b"X: y\r\n" for target in matching)
    assert not any(fields.find(target).lines for target in others)


def test_last_matching_field_of_a_name_counts() -> None:
    arguments = ("X-A: 1", "Y: 2", "/a x-a: 3", "/b X-A: 4")
    assert lines_for(b"/a", *arguments) == [b"x-a: 3", b"Y: 2"]
    assert lines_for(b"/b", *arguments) == [b"X-A: 4", b"Y: 2"]
    assert lines_for(b"/c", *arguments) == [b"X-A: 1", b"Y: 2"]
    assert lines_for(b"/a", *arguments, "X-A: 5") == [b"X-A: 5", b"Y: 2"]


def test_fields_for_a_target_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def fnmatchcase(path: str, pattern: str) -> bool:
        calls.append(path)
        return True

    monkeypatch.setattr(headerfields, "fnmatchcase", fnmatchcase)
    fields = fields_of("/a X: y")
    for _ in range(3):
        assert fields.find(b"/b").lines == b"X: y\r\n"
    assert calls == ["/b"]


def responses_of(address: Address, tag: str) -> dict[int, Response]:
    """Return a response of each status of which there is one, and the listing as 0."""
    found = [
        get(address, "/1024"),
        get(address, "/1024", Range="bytes=1-5"),
        get(address, "/bare"),
        get(address, "/1024", If_None_Match=tag),
        get(address, "/%zz"),
        get(address, "/out"),
        get(address, "/nothing"),
        get(address, "/1024", "POST"),
        get(address, "/1024", If_Match='"other"'),
        get(address, "/1024", Range="bytes=5000-"),
        get(address, "/1024", "OPTIONS"),
        get(address, "/1024", "BREW"),
    ]
    return {**{each.status: each for each in found}, 0: get(address, "/bare/")}


def test_response_of_every_status_has_the_field_and_only_files_the_cache_control(
    site: Path,
) -> None:
    """A script of another origin must be able to read errors, too."""
    (site / "out").symlink_to("../secret")
    fields = fields_of(
        "Access-Control-Allow-Origin: *", f"Cache-Control: {FOREVER}", "Vary: Origin"
    )
    with serving(site, header_fields=fields) as (_, address):
        found = responses_of(address, etag_of(site / "1024"))
        [malformed] = split(exchange(address, b"nonsense\r\n\r\n"))
    with serving(site) as (_, address):
        before = responses_of(address, etag_of(site / "1024"))
    assert len(found) == 13
    assert malformed.headers["Access-Control-Allow-Origin"] == "*"
    assert malformed.headers["Cache-Control"] == "no-store"
    for status, response in found.items():
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert response.headers["Vary"].split(", ")[-1] == "Origin"
        expected: str | None = FOREVER
        if status not in {200, 206, 304, 0}:
            expected = before[status].headers.get("Cache-Control")
            assert expected == (None if status == 204 else "no-store")
        assert response.headers.get("Cache-Control") == expected
        assert response.body == before[status].body


def test_vary_stands_beside_that_of_the_server(site: Path) -> None:
    (site / "text.txt").write_bytes(b"text " * 1000)
    with serving(site, header_fields=fields_of("Vary: Origin")) as (_, address):
        for coding in ("identity", "gzip"):
            headers = get(address, "/text.txt", Accept_Encoding=coding).headers
            assert headers["Vary"] == "Accept-Encoding, Origin"


def test_field_for_a_path_is_on_no_other_response(site: Path) -> None:
    """The head of a file is kept. One file may have several spellings of its path."""
    fields = fields_of(f"/sub/deep/* Cache-Control: {FOREVER}", "/1 X: y")
    with serving(site, header_fields=fields) as (_, address):
        for _ in range(2):
            for target, expected in (
                ("/sub/deep/file", (FOREVER, None)),
                ("/sub/./deep//f%69le", (FOREVER, None)),
                ("/1", ("no-cache", "y")),
                ("/%31?q", ("no-cache", "y")),
                ("/0", ("no-cache", None)),
            ):
                headers = get(address, target).headers
                assert (headers["Cache-Control"], headers.get("X")) == expected


def test_page_for_what_is_not_there_has_the_fields_for_the_path_of_the_request(
    site: Path,
) -> None:
    (site / "404.html").write_bytes(b"<p>Not here.")
    fields = fields_of("/app/* Cache-Control: max-age=5", "/index.html X-A: 1", "/app/* X-B: 2")
    with serving(site, spa="index.html", header_fields=fields) as (_, address):
        for target, status, expected in (
            ("/index.html", 200, ("no-cache", "1", None)),
            ("/app/users", 200, ("max-age=5", None, "2")),
            ("/app/users.js", 404, ("no-store", None, "2")),
        ):
            response = get(address, target)
            assert response.status == status
            found = tuple(response.headers.get(name) for name in ("Cache-Control", "X-A", "X-B"))
            assert found == expected


def preflight(address: Address, target: str = "/1", **headers: str) -> dict[str, str]:
    """Return the fields of the response to a preflight that no server has otherwise."""
    response = get(
        address,
        target,
        "OPTIONS",
        Origin="http://other",
        Access_Control_Request_Method="GET",
        **headers,
    )
    assert (response.status, response.body) == (204, b"")
    return {
        name: value
        for name, value in response.headers.items()
        if name.startswith("Access-Control-") or name == "Vary"
    }


METHODS = {"Access-Control-Allow-Methods": "GET, HEAD, OPTIONS"}
ORIGIN = {"Access-Control-Allow-Origin": "*"}


@pytest.mark.parametrize(
    ("requested", "allowed"),
    [
        ("x-a", True),
        ("authorization,range , X-B", True),
        ("x-a,", False),
        ("x a", False),
        ("x-\xe9", False),
        ("", False),
    ],
)
def test_preflight_is_allowed_the_methods_and_the_fields_that_it_names(
    site: Path, requested: str, *, allowed: bool
) -> None:
    with serving(site, header_fields=fields_of("Access-Control-Allow-Origin: *")) as (_, address):
        assert preflight(address) == ORIGIN | METHODS
        assert preflight(address, Access_Control_Request_Headers=requested) == ORIGIN | METHODS | (
            {
                "Access-Control-Allow-Headers": requested,
                "Vary": "Access-Control-Request-Headers",
            }
            if allowed
            else {}
        )


def test_fields_of_a_preflight_can_be_configured(site: Path) -> None:
    expected = {
        "Access-Control-Allow-Methods": "GET",
        "Access-Control-Allow-Headers": "range",
    }
    fields = fields_of(*(f"{name}: {value}" for name, value in expected.items()))
    with serving(site, header_fields=fields) as (_, address):
        assert preflight(address, Access_Control_Request_Headers="x-a") == expected


def test_options_request_that_is_no_preflight_is_answered_as_without_fields(site: Path) -> None:
    """It lacks a field, or the path has none that other origins need."""
    fields = fields_of("/sub/* Access-Control-Allow-Origin: *", "X-A: 1")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("/sub/", {"Origin": "http://other"}),
        ("/sub/", {"Access_Control_Request_Method": "GET"}),
        ("/1", {"Origin": "http://other", "Access_Control_Request_Method": "GET"}),
        ("*", {"Origin": "http://other", "Access_Control_Request_Method": "GET"}),
    ]
    with serving(site, header_fields=fields) as (_, address):
        for target, headers in cases:
            response = get(address, target, "OPTIONS", **headers)
            assert response.status == 204
            assert "Access-Control-Allow-Methods" not in response.headers
            assert response.headers["X-A"] == "1"
            assert response.headers["Allow"] == "GET, HEAD, OPTIONS"

"""Request lines: methods, protocols and versions, and the status of each refusal."""

from __future__ import annotations

import pytest

from iobatch.httpd.requests import MAX_HEAD
from tests.support.batches import data
from tests.support.http import split
from tests.support.httpd import SMALL, Address, exchange

REST = b" / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"PATCH", b"TRACE"])
def test_known_method_gets_405_with_the_allowed_ones_and_connection_stays_open(
    address: Address, method: bytes
) -> None:
    refused, got = split(exchange(address, method + REST + SMALL))
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    assert "Connection" not in refused.headers
    assert got.body == data(1, seed=1)


@pytest.mark.parametrize("target", [b"x:443", b"[::1]:443", b"/", b"http://x/"])
def test_connect_gets_405_and_connection_is_closed(address: Address, target: bytes) -> None:
    """The client may send the bytes for the tunnel with its request."""
    request = b"CONNECT %s HTTP/1.1\r\nHost: x:443\r\n\r\n" % target
    [refused] = split(exchange(address, request + SMALL))
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    assert refused.headers["Connection"] == "close"


@pytest.mark.parametrize(
    "method",
    [
        b"BREW",
        b"GETT",
        b"GE",
        b"get",
        b"Get",
        b"PROPFIND",
        b"MKCOL",
        b"M-SEARCH",
        b"SOURCE",
        b"DESCRIBE",
        b"PRI",
        b"X",
        b"0",
        b"!#$%&'*+-.^_`|~",
        pytest.param(b"A" * 9000, id="long"),
    ],
)
def test_unknown_method_gets_501(address: Address, method: bytes) -> None:
    """Any token is a method (RFC 9110 9.1)."""
    [refused] = split(exchange(address, method + REST + SMALL))
    assert refused.status == 501
    assert refused.headers["Connection"] == "close"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/3.0", 505),
        (b"GET / HTTP/0.9", 505),
        (b"GET / HTTP/5.6", 505),
        (b"PRI * HTTP/2.0", 505),
        (b"BREW / HTTP/2.0", 505),
        (b"GET / RTSP/1.0", 400),
        (b"GET / RTSP/1.1", 400),
        (b"OPTIONS * RTSP/1.0", 400),
        (b"DESCRIBE / RTSP/1.0", 400),
        (b"SOURCE / ICE/1.0", 400),
        (b"GET / ICE/1.0", 400),
        (b"GET / HTTPS/1.1", 400),
        (b"GET / http/1.1", 400),
        (b"GET / Http/1.1", 400),
        (b"GET / HTP/1.1", 400),
        (b"GET / HTTP/1", 400),
        (b"GET / HTTP/1.", 400),
        (b"GET / HTTP/.1", 400),
        (b"GET / HTTP/01.1", 400),
        (b"GET / HTTP/1.01", 400),
        (b"GET / HTTP/1.1.1", 400),
        (b"GET / HTTP/1.x", 400),
        (b"GET / HTTP 1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET / HTTP/1.1\t", 400),
        (b"GET / HTTP/1.1x", 400),
        (b"GET / ", 400),
        (b"GET /", 400),
        (b"GET", 400),
        (b"GET  HTTP/1.1", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET /  HTTP/1.1", 400),
        (b"GET\t/ HTTP/1.1", 400),
        (b"GET /\tHTTP/1.1", 400),
        (b"GET\x0b/ HTTP/1.1", 400),
        (b" GET / HTTP/1.1", 400),
        (b"\tGET / HTTP/1.1", 400),
        (b"GET / / HTTP/1.1", 400),
        (b"G ET / HTTP/1.1", 400),
        (b"G(T / HTTP/1.1", 400),
        (b'"GET" / HTTP/1.1', 400),
        (b"GET: / HTTP/1.1", 400),
        (b"GET, / HTTP/1.1", 400),
        (b"G\xc3\x89T / HTTP/1.1", 400),
        (b"GET /\x7f HTTP/1.1", 400),
        (b"GET /\x1f HTTP/1.1", 400),
        (b"GET /\r HTTP/1.1", 400),
        (b"GET / HTTP/1.1\r", 400),
        (b"\xef\xbb\xbfGET / HTTP/1.1", 400),
        (b" / HTTP/1.1", 400),
        (b"/ HTTP/1.1", 400),
        (b"HTTP/1.1 200 OK", 400),
        (b"EHLO x", 400),
        (b"PING", 400),
        (b"*1", 400),
        (b"SSH-2.0-OpenSSH_9.9", 400),
        (b"Host: x", 400),
    ],
)
def test_line_that_is_not_of_http_1_is_refused(address: Address, line: bytes, status: int) -> None:
    """RFC 9112, section 3. The answer doesn't wait for the header fields."""
    for request in (line + b"\r\n", line + b"\r\nHost: x\r\n\r\n" + SMALL):
        [refused] = split(exchange(address, request))
        assert refused.status == status
        assert refused.headers["Connection"] == "close"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET /\0",
    ],
)
def test_bytes_that_no_line_has_are_refused_at_once(address: Address, request_bytes: bytes) -> None:
    [refused] = split(exchange(address, request_bytes))
    assert refused.status == 400


@pytest.mark.parametrize("begin", [b"GET /", b"HEAD /", b"A"])
def test_line_that_does_not_end_is_refused(address: Address, begin: bytes) -> None:
    [refused] = split(exchange(address, begin.ljust(MAX_HEAD, b"x")), begin.split()[0].decode())
    assert refused.status == 414


@pytest.mark.parametrize("version", [b"1.1", b"1.2", b"1.9"])
def test_unknown_minor_version_is_treated_as_1_1(address: Address, version: bytes) -> None:
    """RFC 9110, section 2.5."""
    first, second = split(exchange(address, SMALL.replace(b"1.1", version) + SMALL))
    assert (first.status, second.status) == (200, 200)
    [refused] = split(exchange(address, b"GET /1 HTTP/%s\r\n\r\n" % version))
    assert refused.status == 400


def test_empty_lines_before_a_request_are_ignored(address: Address) -> None:
    """RFC 9112, section 2.2."""
    raw = exchange(address, b"\r\n" + SMALL + b"\r\n\r\n\r\n" + SMALL + b"\r\n")
    assert [response.status for response in split(raw)] == [200, 200]

"""Requests: how they are parsed, and the status of each refusal."""

from __future__ import annotations

import random
import re
import socket
from typing import TYPE_CHECKING

import pytest
from httptools import HttpParserCallbackError

from iobatch.httpd.cache import FileCache
from iobatch.httpd.connection import READ_SIZE, Connection
from iobatch.httpd.files import Files
from iobatch.httpd.requests import MAX_FIELDS, MAX_HEAD, MAX_TARGET, RequestParser
from iobatch.httpd.settings import Settings
from tests.support.batches import data
from tests.support.http import split
from tests.support.httpd import SMALL, Address, exchange, get, read_all
from tests.support.sockets import receive_all

if TYPE_CHECKING:
    from pathlib import Path

HOST = b"Host: x\r\n"
GOOD = b"HEAD /1 HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE"])
def test_other_method_gets_405_with_the_allowed_ones_and_connection_stays_open(
    address: Address, method: str
) -> None:
    response = get(address, "/1", method)
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    assert "Connection" not in response.headers


@pytest.mark.parametrize("target", ["*", "/1024", "/nothing"])
def test_options_names_allowed_methods_for_any_target_and_keeps_connection(
    address: Address, target: str
) -> None:
    raw = exchange(
        address,
        f"OPTIONS {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode() + SMALL,
    )
    options, got = split(raw)
    assert options.status == 204
    assert options.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert "Content-Length" not in options.headers
    assert got.body == data(1, seed=1)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET 1024 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST * 2 + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: me@x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: \xe9\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x:::[[\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: x/y\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b" folded: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: \0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\n" + HOST + b"\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length:\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\nx", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x1\r\n\r\nx", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 1, 1\r\n\r\nx", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 9" + b"9" * 30 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\n"
            + HOST
            + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            b"GET / HTTP/1.1\r\n"
            + HOST
            + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding:\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked, chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: \x0bchunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding : chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"\rTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: x\rTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: x\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"no colon\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
        (b"GET / HTTP/0.9\r\n\r\n", 505),
        pytest.param(
            b"GET /" + b"x" * MAX_TARGET + b" HTTP/1.1\r\n" + HOST + b"\r\n",
            414,
            id="too long a target",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"x" * (MAX_HEAD + 2 * READ_SIZE),
            431,
            id="too large a head",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\n" + HOST + b"A: x\r\n" * (MAX_FIELDS + 1) + b"\r\n",
            431,
            id="too many fields",
        ),
    ],
)
def test_malformed_or_too_large_request_is_refused_and_bytes_after_it_ignored(
    address: Address, request_bytes: bytes, status: int
) -> None:
    """The request before it is answered."""
    first, refused = split(exchange(address, GOOD + request_bytes + GOOD), "HEAD")
    assert first.status == 200
    assert refused.status == status
    assert refused.headers["Connection"] == "close"


@pytest.mark.parametrize(
    ("rest", "status"),
    [
        pytest.param(
            b"/" + b"x" * MAX_TARGET + b" HTTP/1.1\r\n" + HOST + b"\r\n",
            414,
            id="too long a target",
        ),
        pytest.param(
            b"/ HTTP/1.1\r\n" + HOST + b"A: " + b"x" * (MAX_HEAD + 2 * READ_SIZE),
            431,
            id="too large a head",
        ),
        pytest.param(
            b"/ HTTP/1.1\r\n" + HOST + b"A: x\r\n" * (MAX_FIELDS + 1) + b"\r\n",
            431,
            id="too many fields",
        ),
        (b"/ HTTP/1.1\r\n" + HOST + b"A: \0\r\n\r\n", 400),
        (b"/ HTTP/1.1\r\n\r\n", 400),
        (b"/ HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    ],
)
def test_refusal_of_head_has_no_body_even_before_its_head_is_complete(
    address: Address, rest: bytes, status: int
) -> None:
    """The HEAD before it makes no difference."""
    _, refused = split(exchange(address, GOOD + b"HEAD " + rest), "HEAD", "HEAD")
    assert refused.status == status
    _, refused = split(exchange(address, GOOD + b"BREW " + rest), "HEAD")
    assert refused.body == b"400 Bad Request\n"


def test_longest_target_and_largest_head_are_accepted(address: Address) -> None:
    target = "/1?" + "x" * (MAX_TARGET - 3)
    assert get(address, target).status == 200
    fields = (b"A: " + b"x" * (MAX_HEAD // 99 - 10) + b"\r\n") * 99
    [response] = split(exchange(address, b"GET /1 HTTP/1.1\r\n" + HOST + fields + b"\r\n"))
    assert response.status == 200


@pytest.mark.parametrize("host", ["", "x", "a-b.example:80", "[2001:db8::1]:8000", "%C3%A9"])
def test_host_field_may_be_any_name_or_address_or_empty(address: Address, host: str) -> None:
    request = f"GET /1 HTTP/1.1\r\nHost: {host} \r\n\r\n".encode()
    assert [response.status for response in split(exchange(address, request))] == [200]


def test_randomly_damaged_requests_raise_nothing_and_get_a_known_status(site: Path) -> None:
    rng = random.Random(1)
    requests = [
        SMALL,
        b"HEAD /sub HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"POST /%2e%2e HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"GET http://a/b?c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    parts = [b"\r\n", b"\0", b":", b" ", b"/", b"..", b"%00", b",", b"9" * 20, b"chunked", b"\xff"]
    files = FileCache(Files(site))
    statuses = set()
    for _ in range(3000):
        raw = bytearray().join(rng.choices(requests, k=3))
        for _ in range(rng.randrange(4)):
            start = rng.randrange(len(raw))
            raw[start : start + rng.randrange(3)] = rng.choice(parts)
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            connection = Connection(ours, files, Settings(), 60.0)
            theirs.sendall(raw)
            assert connection.step(0.0)
            connection.close()
            statuses |= set(re.findall(rb"HTTP/1\.1 (\d+)", receive_all(theirs)))
    files.close()
    assert {b"200", b"301", b"400", b"405"} <= statuses
    assert statuses <= {b"200", b"301", b"400", b"403", b"404", b"405", b"505"}


def test_requests_may_arrive_in_pieces_of_any_size(site: Path) -> None:
    raw = b"GET /sub/deep/file HTTP/1.1\r\nHost: x\r\n\r\nHEAD /1 HTTP/1.1\r\nHost: x\r\n\r\n"
    files = FileCache(Files(site))
    for size in (1, 2, 3, 7):
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            connection = Connection(ours, files, Settings(), 60.0)
            for i in range(0, len(raw), size):
                theirs.sendall(raw[i : i + size])
                assert connection.step(0.0)
            connection.close()
            deep, one = split(read_all(theirs), "GET", "HEAD")
            assert deep.body == b"deep"
            assert one.headers["Content-Length"] == "1"
    files.close()


def test_error_in_a_callback_of_the_parser_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the parser's own refusals become responses."""

    def failing(self: RequestParser, data: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(RequestParser, "on_url", failing)
    parser = RequestParser()
    with pytest.raises(HttpParserCallbackError) as caught:
        parser.feed(SMALL)
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    parser.close()

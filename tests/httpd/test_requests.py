"""Requests: how they are parsed, and the status of each refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from attrs import astuple
from httptools import HttpParserCallbackError

from iobatch.httpd.fields import MAX_FIELDS, Collector, parse_fields
from iobatch.httpd.requestline import MAX_TARGET
from iobatch.httpd.requests import MAX_HEAD, RequestParser
from tests.support.batches import data
from tests.support.http import split
from tests.support.httpd import SMALL, Address, exchange, get

if TYPE_CHECKING:
    from collections.abc import Iterable

HOST = b"Host: x\r\n"
GOOD = b"HEAD /1 HTTP/1.1\r\n" + HOST + b"\r\n"


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
        pytest.param(
            b"GET /" + b"x" * MAX_TARGET + b" HTTP/1.1\r\n" + HOST + b"\r\n",
            414,
            id="too long a target",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"x" * MAX_HEAD,
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
            b"/ HTTP/1.1\r\n" + HOST + b"A: " + b"x" * MAX_HEAD,
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
    _, refused = split(exchange(address, GOOD + b"GET " + rest), "HEAD")
    assert refused.body.startswith(b"%d " % status)


def test_longest_target_and_largest_head_are_accepted(address: Address) -> None:
    target = "/1?" + "x" * (MAX_TARGET - 3)
    assert get(address, target).status == 200
    begin = b"GET /1 HTTP/1.1\r\n" + HOST + b"A: x\r\n" * (MAX_FIELDS - 2) + b"A: "
    head = begin + b"x" * (MAX_HEAD - len(begin) - 4) + b"\r\n\r\n"
    for request, status in (
        (head, 200),
        (head.replace(b"A: x", b"A: xy", 1), 431),
    ):
        assert [each.status for each in split(exchange(address, request))] == [status]


def parsed(pieces: Iterable[bytes]) -> tuple[list[tuple[Any, ...]], bool, bytes]:
    """Return the requests that a parser makes of pieces, and what it does with further bytes."""
    parser = RequestParser()
    for piece in pieces:
        parser.feed(piece)
    return [astuple(each) for each in parser.requests], parser.ended, parser.unfinished


@pytest.mark.parametrize("size", [MAX_HEAD - 1, MAX_HEAD, MAX_HEAD + 1])
@pytest.mark.parametrize(
    "begin",
    [b"GET /", b"GET /\x7f", b"GET / HTTP/1.1\r\nHost: x\r\nA: ", b"\r\nGET /1 HTTP/1.1\r\nA: "],
)
@pytest.mark.parametrize("end", [b"\r\n\r\n", b" HTTP/1.1\r\n\r\n", b"xxxx"])
def test_size_at_the_limit_has_one_result_however_it_arrives(
    begin: bytes, size: int, end: bytes
) -> None:
    raw = begin.ljust(size - len(end), b"x") + end
    first, rest = raw[:-40], raw[-40:]
    assert parsed([first, *(rest[i : i + 1] for i in range(len(rest)))]) == parsed([raw])


def test_error_in_a_callback_of_the_parser_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the parser's own errors become responses."""

    def failing(self: Collector, name: bytes, value: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Collector, "on_header", failing)
    with pytest.raises(HttpParserCallbackError) as caught:
        parse_fields(b"No: cache\r\n\r\n", "1.1")
    assert isinstance(caught.value.__context__, ZeroDivisionError)

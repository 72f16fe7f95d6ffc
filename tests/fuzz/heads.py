"""Heads of requests, whole and in pieces, against the grammar of RFC 9112."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING
from unittest.mock import patch

from attrs import astuple

from iobatch.httpd import fields, requestline, requests
from iobatch.httpd.requests import RequestParser, parse_head
from tests.fuzz.pieces import pieces_of

if TYPE_CHECKING:
    from iobatch.httpd.requests import Request

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEAD = re.compile(
    rb"(%s) ([\x21-\x7e\x80-\xff]+) HTTP/([0-9]\.[0-9])\r\n"
    rb"((?:%s:[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n" % (_TOKEN, _TOKEN)
)
# RFC 3986 3.2.2, without the details of IPv6 addresses.
_HOST = re.compile(rb"(?:\[[\w:.~!$&'()*+,;=-]+\]|(?:[\w.~!$&'()*+,;=-]|%[\da-fA-F]{2})*)(?::\d*)?")
# The fields that say where a body ends, or that another protocol follows.
_FRAMING = {b"content-length", b"transfer-encoding", b"upgrade"}
STATUSES = {0, 400, 405, 414, 431, 501, 505}


def heads(data: bytes) -> None:
    """Assert that bytes make the requests of the grammar, and the same ones however they are cut.

    The limits are also tried where they are small, so that short input reaches them.
    """
    requests_of = _parse_whole_and_in_pieces(data)
    _check_against_grammar(data, requests_of)
    with ExitStack() as stack:
        stack.enter_context(patch.object(requests, "MAX_HEAD", 100))
        stack.enter_context(patch.object(requestline, "MAX_TARGET", 20))
        stack.enter_context(patch.object(fields, "MAX_FIELDS", 4))
        for cached in (parse_head, fields.parse_fields):
            cached.cache_clear()
            stack.callback(cached.cache_clear)
        _parse_whole_and_in_pieces(data)


def _parse_whole_and_in_pieces(data: bytes) -> list[Request]:
    parser = RequestParser()
    parser.feed(data)
    for pieces in pieces_of(data):
        other = RequestParser()
        for piece in pieces:
            other.feed(piece)
        assert _state(other) == _state(parser)
    assert len(parser.unfinished) < requests.MAX_HEAD
    return list(parser.requests)


def _state(parser: RequestParser) -> tuple[object, ...]:
    return [astuple(each) for each in parser.requests], parser.ended, parser.unfinished


def _check_against_grammar(data: bytes, found: list[Request]) -> None:
    position = 0
    for i, request in enumerate(found):
        assert request.refused in STATUSES
        assert request.keep_alive or i == len(found) - 1
        assert all(re.fullmatch(_TOKEN, name) for name in request.headers)
        while data.startswith(b"\r\n", position):
            position += 2
        head = _HEAD.match(data, position)
        if head is None:
            assert request.refused not in {0, 405}, "a malformed head is accepted"
            assert not request.keep_alive
            return
        position = head.end()
        _check_request(request, head)


def _check_request(request: Request, head: re.Match[bytes]) -> None:
    """Compare a request with the head that it was made of, where the head is not too large."""
    method, target, version, lines = head.groups()
    values: dict[bytes, list[bytes]] = {}
    for line in lines.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        values.setdefault(name.lower(), []).append(value.strip(b" \t"))
    if request.refused in {0, 405}:
        assert (request.method, request.target) == (method, target)
        assert request.version == version.decode()
        assert request.headers == {name: b", ".join(each) for name, each in values.items()}
        assert (method in {b"GET", b"HEAD", b"OPTIONS"}) is (request.refused == 0)
    hosts = values.get(b"host", [])
    hosts_are_valid = len(hosts) == 1 or (not hosts and version == b"1.0")
    if request.refused == 0:
        assert hosts_are_valid
        assert all(map(_HOST.fullmatch, hosts))
    if not version.startswith(b"1."):
        assert request.refused == 505
    elif _FRAMING.isdisjoint(values) and hosts_are_valid and re.fullmatch(rb"\w*", b"".join(hosts)):
        assert request.refused in {0, 405, 414, 431, 501}, "a valid head is refused"
        if request.refused == 0:
            assert request.keep_alive is _persists(version, values.get(b"connection", []))
    elif request.keep_alive:
        assert not any(size.strip(b"0") for size in values.get(b"content-length", []))
        assert b"transfer-encoding" not in values


def _persists(version: bytes, connection: list[bytes]) -> bool:
    """Return whether the connection persists (RFC 9112 9.3)."""
    options = {each.strip(b" \t").lower() for each in b",".join(connection).split(b",")}
    return b"close" not in options and (version != b"1.0" or b"keep-alive" in options)

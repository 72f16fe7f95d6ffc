"""Request lines (RFC 9112 3): the method, target and version of a request."""

from __future__ import annotations

import re
from typing import NamedTuple

METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})
# These are refused with 405, every other method with 501 (RFC 9110 9.1).
_NOT_ALLOWED = frozenset({b"POST", b"PUT", b"PATCH", b"DELETE", b"TRACE", b"CONNECT"})
# In bytes. RFC 9112, section 3, recommends to support at least 8000.
MAX_TARGET = 8000

# A method is a token (RFC 9110 5.6.2). Clients such as curl send bytes above 127 unencoded.
_LINE = re.compile(
    rb"([!#$%&'*+.^`|~\w-]+) ([\x21-\x7e\x80-\xff]+) HTTP/([0-9]\.[0-9])\r\n",
)
_NOT_IN_LINE = re.compile(rb"[^ \x21-\x7e\x80-\xff\r]|\r.")


class RequestLine(NamedTuple):
    """The parts of a request line."""

    method: bytes
    target: bytes
    # Digits: the major version, a dot, and the minor version.
    version: str
    # The status that refuses the request; 0: the line is valid.
    refused: int


def parse_line(line: bytes) -> RequestLine:
    """Parse a line, which ends with its line feed."""
    match = _LINE.fullmatch(line)
    if match is None:
        return refused_line(line, 400)
    method, target, version = match.groups()
    refused = 0
    if not version.startswith(b"1."):
        refused = 505
    elif len(target) > MAX_TARGET:
        refused = 414
    elif method not in METHODS and method not in _NOT_ALLOWED:
        refused = 501
    return RequestLine(method, target, version.decode(), refused)


def refused_line(line: bytes, status: int) -> RequestLine:
    """Return what is known of a line that is malformed or not complete.

    Only HEAD makes a difference: no body may follow its refusal.
    """
    return RequestLine(b"HEAD" if line.startswith(b"HEAD ") else b"", b"", "1.1", status)


def may_begin_line(data: bytes, old: int) -> bool:
    """Return whether bytes without a line feed can be the beginning of a request line.

    Args:
        data: the bytes.
        old: the number of them for which this is known.

    """
    return _NOT_IN_LINE.search(data, max(old - 1, 0)) is None

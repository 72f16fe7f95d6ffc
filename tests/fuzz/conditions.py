"""Conditional requests, against the order and the comparisons of RFC 9110 13."""

from __future__ import annotations

import re
from email.utils import formatdate, parsedate_to_datetime

from iobatch.httpd.conditions import http_date, precondition, range_applies

_TAGS = (b'"a"', b'W/"a"', b'"\x80,"')
_MODIFIED = (None, 0, 784111777)
_TAG = re.compile(rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_DATE = re.compile(
    rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), [0-3]\d "
    rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) (?!0000)\d{4} "
    rb"[0-2]\d:[0-5]\d:[0-5]\d GMT"
)
_NAMES = (b"if-match", b"if-unmodified-since", b"if-none-match", b"if-modified-since", b"if-range")


def conditions(data: bytes) -> None:
    """Assert that lines of header fields have the status of RFC 9110 13.2.2.

    A date is the same in its preferred format.
    """
    headers: dict[bytes, bytes] = {}
    for line in data.split(b"\n"):
        name, _, value = line.partition(b":")
        if name in _NAMES:
            headers[name] = value.strip(b" \t\r")
    for value in headers.values():
        _check_date(value)
    for etag in _TAGS:
        for modified in _MODIFIED:
            assert precondition(headers, etag, modified) == _status(headers, etag, modified)
            _check_if_range(headers, etag, modified)


def _check_date(value: bytes) -> None:
    seconds = http_date(value)
    if seconds is not None and seconds >= -59011459200:  # the year 100: formatdate has four digits
        assert http_date(formatdate(seconds, usegmt=True).encode()) == seconds
    if _DATE.fullmatch(value):
        try:
            expected = int(parsedate_to_datetime(value.decode()).timestamp())
        except ValueError:
            expected = None  # a day that its month has not, or an hour after 23
        assert seconds == expected


def _status(headers: dict[bytes, bytes], etag: bytes, modified: int | None) -> int:
    if b"if-match" in headers:
        if not _has(headers[b"if-match"], etag, weakly=False):
            return 412
    elif b"if-unmodified-since" in headers:
        date = http_date(headers[b"if-unmodified-since"])
        if None not in {date, modified} and not modified <= date:  # type: ignore[operator]
            return 412
    if b"if-none-match" in headers:
        return 304 if _has(headers[b"if-none-match"], etag, weakly=True) else 0
    if b"if-modified-since" in headers:
        date = http_date(headers[b"if-modified-since"])
        return 304 if None not in {date, modified} and modified <= date else 0  # type: ignore[operator]
    return 0


def _has(value: bytes, etag: bytes, *, weakly: bool) -> bool:
    """Return whether a list has a tag. Of a malformed list the beginning counts."""
    if value.strip() == b"*":
        return True
    position = 0
    while True:
        while position < len(value) and value[position] in b" \t,":
            position += 1
        match = _TAG.match(value, position)
        if match is None:
            return False
        position = match.end()
        while position < len(value) and value[position] in b" \t":
            position += 1
        if position < len(value) and value[position] != ord(","):
            return False
        if match[0].removeprefix(b"W/") == etag.removeprefix(b"W/") and (
            weakly or not (match[0] + etag).count(b"W/")
        ):
            return True


def _check_if_range(headers: dict[bytes, bytes], etag: bytes, modified: int | None) -> None:
    applies = range_applies(headers, etag, modified)
    value = headers.get(b"if-range")
    if value is None:
        assert applies
    elif applies:
        assert not etag.startswith(b"W/"), "a weak tag allows a part"
        assert value == etag or http_date(value) == modified is not None

"""Conditional requests (RFC 9110 13)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_ENTITY_TAG = re.compile(rb'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
# RFC 9110 5.6.7: the preferred format, and two obsolete ones that must be accepted.
_DATES = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y")


def precondition(headers: Mapping[bytes, bytes], etag: bytes, modified: float | None) -> int:
    """Return the status that answers a GET or HEAD without its content: 304, 412, or 0 for none.

    Args:
        headers: the request's.
        etag: of the selected representation, with quotes.
        modified: when it was last modified, in seconds since 1970; None: unknown.

    Source: RFC 9110, section 13.2.2.
    """
    if b"if-match" in headers:
        if not _matches(headers[b"if-match"], etag, weakly=False):
            return 412
    elif b"if-unmodified-since" in headers:
        date = http_date(headers[b"if-unmodified-since"])
        if date is not None and modified is not None and int(modified) > date:
            return 412
    if b"if-none-match" in headers:
        if _matches(headers[b"if-none-match"], etag, weakly=True):
            return 304
    elif b"if-modified-since" in headers:
        date = http_date(headers[b"if-modified-since"])
        if date is not None and modified is not None and int(modified) <= date:
            return 304
    return 0


def range_applies(
    headers: Mapping[bytes, bytes], etag: bytes, modified: float | None, now: float
) -> bool:
    """Return whether the Range of a request applies: If-Range is absent, or matches.

    Args:
        headers: the request's.
        etag: as for precondition.
        modified: as for precondition.
        now: seconds since 1970.

    Source: RFC 9110, section 13.1.5.
    """
    validator = headers.get(b"if-range")
    if validator is None:
        return True
    if validator.startswith((b'"', b"W/")):
        return validator == etag and not etag.startswith(b"W/")
    # A date is a strong validator only some time after it: the file could have changed twice in
    # the same second (RFC 9110 8.8.2.2).
    return modified is not None and http_date(validator) == int(modified) < now - 1


@lru_cache(maxsize=64)
def http_date(value: bytes) -> int | None:
    """Return a date in seconds since 1970; None: the value is not a date, and must be ignored."""
    for form in _DATES:
        try:
            date = datetime.strptime(value.decode("latin-1"), form).replace(tzinfo=UTC)
        except ValueError:
            continue
        return int(date.timestamp())
    return None


def _matches(value: bytes, etag: bytes, *, weakly: bool) -> bool:
    """Return whether a list of entity tags has this one, or is "*" (RFC 9110 8.8.3.2)."""
    if value.strip() == b"*":
        return True
    weak = etag.startswith(b"W/")
    if weak and not weakly:
        return False
    opaque = etag[2:] if weak else etag
    return any(
        found == opaque and (weakly or not prefix) for prefix, found in _ENTITY_TAG.findall(value)
    )

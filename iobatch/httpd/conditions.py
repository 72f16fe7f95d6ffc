"""Conditional requests (RFC 9110 13)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

# An entity tag in a list (RFC 9110 8.8.3). The W is case-sensitive.
_ENTITY_TAG = re.compile(rb'[ \t,]*(W/)?("[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?=,|$)')
# RFC 9110 5.6.7: the preferred format, and two obsolete ones that must be accepted.
_DATES = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y")


def file_tag(status: os.stat_result) -> str:
    """Return the opaque part of a file's entity tag.

    It depends on the time of the inode's last change: unlike st_mtime no program can set it back.
    The inode differs between files that were changed at the same time. Its number must not be
    revealed (CVE-2003-1418), so the tag is a hash. st_dev may differ after each mount.
    """
    version = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return blake2b(repr(version).encode(), digest_size=12).hexdigest()


def content_tag(content: bytes) -> str:
    """Return the opaque part of the entity tag of content that is no file's."""
    return blake2b(content, digest_size=12).hexdigest()


def precondition(headers: Mapping[bytes, bytes], etag: bytes, modified: int | None) -> int:
    """Return the status that answers a GET or HEAD without its content: 304, 412, or 0 for none.

    Args:
        headers: the request's.
        etag: of the selected representation, with quotes.
        modified: its Last-Modified, in seconds since 1970; None: it has none.

    Source: RFC 9110, section 13.2.2.
    """
    if b"if-match" in headers:
        if not _matches(headers[b"if-match"], etag, weakly=False):
            return 412
    elif b"if-unmodified-since" in headers:
        date = http_date(headers[b"if-unmodified-since"])
        if date is not None and modified is not None and modified > date:
            return 412
    if b"if-none-match" in headers:
        if _matches(headers[b"if-none-match"], etag, weakly=True):
            return 304
    elif b"if-modified-since" in headers:
        date = http_date(headers[b"if-modified-since"])
        if date is not None and modified is not None and modified <= date:
            return 304
    return 0


def range_applies(headers: Mapping[bytes, bytes], etag: bytes, modified: int | None) -> bool:
    """Return whether the Range of a request applies: If-Range is absent, or matches.

    Args:
        headers: the request's.
        etag: as for precondition.
        modified: as for precondition.

    Source: RFC 9110, section 13.1.5.
    """
    validator = headers.get(b"if-range")
    if validator is None:
        return True
    # A weak tag is one of a file that may change once more with the same tag. Then its date is weak
    # too (RFC 9110 8.8.2.2).
    if etag.startswith(b"W/"):
        return False
    return validator == etag or (modified is not None and http_date(validator) == modified)


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
    opaque = etag.removeprefix(b"W/")
    position = 0
    while match := _ENTITY_TAG.match(value, position):
        prefix, found = match.groups()
        if found == opaque and (weakly or not prefix):
            return True
        position = match.end()
    return False

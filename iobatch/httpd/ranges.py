"""Range requests (RFC 9110 14)."""

from __future__ import annotations

import re
from secrets import token_hex

# A request for more ranges, or for more bytes than the file has, gets the whole file: that is less
# work than a thousand ranges that overlap (CVE-2011-3192; RFC 9110 14.2).
MAX_RANGES = 32

_SPEC = re.compile(rb"([0-9]*)-([0-9]*)")

# An offset and a count.
Span = tuple[int, int]


def spans(value: bytes, size: int) -> list[Span] | None:
    """Return the parts of a file that a Range field requests, in its order.

    Args:
        value: the value of the field.
        size: of the file, in bytes.

    Returns:
        An empty list: no range is satisfiable. None: the field must be ignored, because it is
        invalid or requests too much.

    Source: RFC 9110, section 14.1.2.
    """
    unit, _, rest = value.partition(b"=")
    specs = [spec for each in rest.split(b",") if (spec := each.strip(b" \t"))]
    if unit.strip().lower() != b"bytes" or not specs or len(specs) > MAX_RANGES or not size:
        return None
    found: list[Span] = []
    for spec in specs:
        match = _SPEC.fullmatch(spec)
        if match is None:
            return None
        first, last = (number.lstrip(b"0") or number[:1] for number in match.groups())
        # Without leading zeros the longer number is the greater one.
        if not first + last or (first and last and (len(last), last) < (len(first), first)):
            return None
        start = _offset(first) if first else max(size - _offset(last), 0)
        stop = min(_offset(last) + 1, size) if first and last else size
        if start < size:
            found.append((start, stop - start))
    return found if sum(count for _, count in found) <= size else None


def _offset(digits: bytes) -> int:
    """Return a number, or one that no file's size exceeds: int() refuses thousands of digits."""
    return int(digits) if len(digits) < 20 else 10**19


def content_range(span: Span, size: int) -> bytes:
    """Return the Content-Range field of a part."""
    offset, count = span
    return b"Content-Range: bytes %d-%d/%d\r\n" % (offset, offset + count - 1, size)


def multipart(found: list[Span], size: int, content_type: str) -> tuple[bytes, list[bytes], bytes]:
    """Return the framing of a multipart/byteranges body (RFC 9110 14.6).

    Args:
        found: the parts.
        size: of the file, in bytes.
        content_type: of the file.

    Returns:
        The body's header fields, the bytes before each part, and the bytes after the last part.

    """
    # Random: no file can contain it on purpose.
    boundary = token_hex(16).encode()
    line = b"\r\n--%s\r\nContent-Type: %s\r\n" % (boundary, content_type.encode())
    leads = [line + content_range(span, size) + b"\r\n" for span in found]
    leads[0] = leads[0][2:]
    end = b"\r\n--%s--\r\n" % boundary
    length = sum(map(len, leads)) + sum(count for _, count in found) + len(end)
    headers = b"Content-Type: multipart/byteranges; boundary=%s\r\nContent-Length: %d\r\n" % (
        boundary,
        length,
    )
    return headers, leads, end

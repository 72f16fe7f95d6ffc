"""Header fields: parsed by httptools, and what they say about the request and its connection."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from attrs import define, field
from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from iobatch.httpd.targets import is_host

# Header fields of a request; browsers send fewer than 30.
MAX_FIELDS = 100


class Fields(NamedTuple):
    """The header fields of a request. Requests share them: the dict must not be changed."""

    # By their names in lower case. Fields of one name are joined by a comma and a space
    # (RFC 9110 5.3).
    headers: dict[bytes, bytes]
    # The next request on the connection begins after these fields.
    keep_alive: bool
    # The status that refuses the request; 0: it is not refused.
    refused: int


@define(eq=False)
class Collector:
    """What the callbacks of a parser have received."""

    headers: dict[bytes, bytes] = field(init=False, factory=dict[bytes, bytes])
    parser: HttpRequestParser = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.parser = HttpRequestParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header field."""
        name = name.lower()
        # The parser leaves white space after the value, which is not a part of it (RFC 9112 5).
        value = value.rstrip()
        headers = self.headers
        headers[name] = headers[name] + b", " + value if name in headers else value


@lru_cache(maxsize=64)
def parse_fields(lines: bytes, version: str) -> Fields:
    """Parse the field lines of a head, the empty line at its end included.

    Most requests of a client have the same fields, so the result is kept.

    Args:
        lines: the field lines.
        version: the request's: 1.0, or another one that is treated as 1.1 (RFC 9110 2.5).

    """
    if lines.count(b"\n") > MAX_FIELDS + 1:
        return Fields({}, keep_alive=False, refused=431)
    # The parser knows a fixed set of methods, and more protocols than HTTP: it never sees the
    # request line.
    line = b"GET / HTTP/1.0\r\n" if version == "1.0" else b"GET / HTTP/1.1\r\n"
    found = Collector()
    upgrades = False
    try:
        found.parser.feed_data(line + lines)
    except HttpParserUpgrade:  # the bytes of another protocol follow
        upgrades = True
    except HttpParserCallbackError:
        raise  # a callback's own error
    except HttpParserError:
        return Fields({}, keep_alive=False, refused=400)
    finally:
        del found.parser  # the cycle would need a collection
    headers = found.headers
    refused = _refusal(headers, version)
    # A body is not read, so the next request can't be found after it.
    ends = refused or upgrades or _has_body(headers) or not _persists(headers, version)
    return Fields(headers, keep_alive=not ends, refused=refused)


def _refusal(headers: dict[bytes, bytes], version: str) -> int:
    """Return the status that refuses a request for its header fields, or 0."""
    host = headers.get(b"host")  # RFC 9112 3.2; two are joined by a space, which is not a host's
    if version != "1.0" if host is None else not is_host(host):
        return 400
    # The parser refuses a list of codings that does not end with "chunked".
    unknown = headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked"
    return 501 if unknown else 0  # RFC 9112 6.1


def _persists(headers: dict[bytes, bytes], version: str) -> bool:
    """Return whether the client asks for a connection that persists (RFC 9112 9.3)."""
    options = {each.strip() for each in headers.get(b"connection", b"").lower().split(b",")}
    return b"close" not in options and (version != "1.0" or b"keep-alive" in options)


def _has_body(headers: dict[bytes, bytes]) -> bool:
    """Return whether a body follows the fields (RFC 9112 6)."""
    if b"content-length" in headers:
        # The parser accepts a number of any length, and int() does not.
        return headers[b"content-length"].strip(b"0 \t") != b""
    return b"transfer-encoding" in headers

"""Requests: parsed from a connection's bytes, and refused where they are malformed or too large."""

from __future__ import annotations

from collections import deque

from attrs import define, field
from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from iobatch.httpd.targets import is_host

METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})
# In bytes. RFC 9112, section 3, recommends to support at least 8000.
MAX_TARGET = 8000
# Of a request's head, in bytes. The head's end is looked for once in each piece that was read, so
# a head may be longer by the size of one read.
MAX_HEAD = 32 * 1024
# Header fields of a request; browsers send fewer than 30.
MAX_FIELDS = 100


@define(eq=False)
class Request:
    """The head of a request."""

    method: bytes
    target: bytes
    version: str
    # By their names in lower case. Fields of one name are joined by a comma (RFC 9110 5.3).
    headers: dict[bytes, bytes]
    # The connection stays open after the response.
    keep_alive: bool
    # The status that refuses the request, whatever its target is; 0: it is not refused.
    refused: int = 0


class _Refused(Exception):  # noqa: N818  # not an error of this program
    """Raised into the parser: a request is refused before its head is complete."""

    def __init__(self, status: int) -> None:
        self.status = status


@define(eq=False)
class RequestParser:
    """Turns the bytes of one connection into requests.

    httptools calls the methods on_url, on_header and on_headers_complete of this object.
    """

    # Parsed and not yet answered.
    requests: deque[Request] = field(init=False, factory=deque["Request"])
    # The last request was parsed: bytes after it are ignored.
    ended: bool = field(init=False, default=False)
    # The bytes received since the last complete head; 0: none of the next request.
    unfinished: int = field(init=False, default=0)
    # The status that refuses every request; 0: none.
    refuse_all: int = field(init=False, default=0)
    _parser: HttpRequestParser = field(init=False)
    # The head that is being parsed.
    _target: bytes = field(init=False, default=b"")
    _headers: dict[bytes, bytes] = field(init=False, factory=dict[bytes, bytes])
    _fields: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._parser = HttpRequestParser(self)

    def close(self) -> None:
        """Drop the parser, which refers to this object: the cycle would need a collection."""
        del self._parser

    def feed(self, data: bytes) -> None:
        """Parse received bytes. What is not a request becomes one that is refused."""
        self.unfinished += len(data)
        try:
            self._parser.feed_data(data)
            if not self.unfinished and (self._target or not data.endswith(b"\n")):
                self.unfinished = 1  # at least: the next request begins in this piece
            if self.unfinished > MAX_HEAD:
                raise _Refused(431)
        except _Refused as exc:
            self.refuse(exc.status)
        except HttpParserCallbackError as exc:
            if not isinstance(exc.__context__, _Refused):
                raise
            self.refuse(exc.__context__.status)
        except HttpParserError:
            self.refuse(400)
        except HttpParserUpgrade:
            pass  # on_headers_complete has ended the requests

    def refuse(self, status: int) -> None:
        """Refuse the request that is being parsed, and ignore everything after it."""
        # After the last request any bytes may follow.
        if not self.ended:
            self.ended = True
            # The method is known once the target is. A response to HEAD has no body.
            method = self._parser.get_method() if self._target else b""
            self.requests.append(Request(method, b"", "1.1", {}, keep_alive=False, refused=status))

    def on_url(self, data: bytes) -> None:
        """Add a part of the target."""
        self._target += data
        if len(self._target) > MAX_TARGET:
            raise _Refused(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header field."""
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise _Refused(431)
        name = name.lower()
        # The parser leaves white space after the value, which is not a part of it (RFC 9112 5).
        value = value.rstrip()
        headers = self._headers
        headers[name] = headers[name] + b", " + value if name in headers else value

    def on_headers_complete(self) -> None:
        """Add the request to those that wait for a response; its body is never read."""
        if self.ended:
            return
        parser = self._parser
        headers = self._headers
        keep_alive = parser.should_keep_alive()
        # Only HTTP/1.1 keeps the connection without a Connection field. Looking into the headers
        # is cheaper than asking the parser for the version.
        implicit = keep_alive and b"connection" not in headers
        version = "1.1" if implicit else parser.get_http_version()
        request = Request(parser.get_method(), self._target, version, headers, keep_alive)
        request.refused = self.refuse_all or _refusal(request)
        # Bodies and other protocols are not read, so the next request can't be found after them.
        if request.refused not in {0, 405} or parser.should_upgrade() or _has_body(request):
            request.keep_alive = False
        self.ended = not request.keep_alive
        self.requests.append(request)
        self._target = b""
        self._headers = {}
        self._fields = self.unfinished = 0


def _refusal(request: Request) -> int:
    """Return the status that refuses a request for its head, or 0."""
    headers = request.headers
    if request.version not in {"1.1", "1.0"}:
        return 505
    host = headers.get(b"host")  # RFC 9112 3.2; two are joined by a comma, which is not a host's
    if host is None:
        if request.version == "1.1":
            return 400
    elif not is_host(host):
        return 400
    # RFC 9112 6.3: without "chunked" as the last coding the body's end is undefined.
    if b"transfer-encoding" in headers and headers[b"transfer-encoding"].lower() != b"chunked":
        return 400
    return 0 if request.method in METHODS else 405


def _has_body(request: Request) -> bool:
    """Return whether a body follows a request's head (RFC 9112 6)."""
    headers = request.headers
    if b"content-length" in headers:
        # The parser accepts a number of any length, and int() does not.
        return headers[b"content-length"].strip(b"0 \t") != b""
    return b"transfer-encoding" in headers

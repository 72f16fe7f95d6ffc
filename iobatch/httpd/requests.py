"""Requests: parsed from a connection's bytes, and refused where they are malformed or too large."""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING

from attrs import Factory, define, evolve, field, frozen

from iobatch.httpd.fields import parse_fields
from iobatch.httpd.requestline import METHODS, may_begin_line, parse_line, refused_line

if TYPE_CHECKING:
    from iobatch.httpd.requestline import RequestLine

# Of a request's head, in bytes.
MAX_HEAD = 32 * 1024
# The header fields by which the response may differ from the whole file.
_CONDITIONAL = frozenset(
    {
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"range",
    }
)


@frozen(eq=False)
class Request:
    """The head of a request. Requests with the same head share it."""

    method: bytes
    target: bytes
    version: str
    # By their names in lower case. Other requests share the dict: it must not be changed.
    headers: dict[bytes, bytes]
    # The connection stays open after the response.
    keep_alive: bool
    # The status that refuses the request, whatever its target is; 0: it is not refused.
    refused: int = 0
    # The response may differ from the whole file.
    is_conditional: bool = field(
        init=False,
        default=Factory(
            lambda self: not _CONDITIONAL.isdisjoint(self.headers),
            takes_self=True,
        ),
    )


@lru_cache(maxsize=64)
def parse_head(head: bytes) -> Request:
    """Parse a head, the empty line at its end included.

    Clients on a persistent connection repeat heads, so the result is kept.
    """
    fields = head.index(b"\n") + 1
    line = parse_line(head[:fields])
    if line.refused:
        return _refused(line)
    method, target, version, _ = line
    headers, keep_alive, refused = parse_fields(head[fields:], version)
    if refused:
        keep_alive = False
    elif method not in METHODS:
        refused = 405
        # The client may have sent bytes for the tunnel already.
        keep_alive = keep_alive and method != b"CONNECT"
    return Request(method, target, version, headers, keep_alive, refused)


def _refused(line: RequestLine) -> Request:
    """Return the request of a line that is refused; bytes after it are ignored."""
    method, target, version, refused = line
    return Request(method, target, version, {}, keep_alive=False, refused=refused)


@define(eq=False)
class RequestParser:
    """Turns the bytes of one connection into requests.

    A request is parsed when its head is complete, and refused as soon as its line or its size
    allows no other result. So a request in pieces has the same result as a whole one.
    """

    # Parsed and not yet answered.
    requests: deque[Request] = field(init=False, factory=deque["Request"])
    # The last request was parsed: bytes after it are ignored.
    ended: bool = field(init=False, default=False)
    # The bytes of a head that is not complete.
    unfinished: bytes = field(init=False, default=b"")
    # The status that refuses every request; 0: none.
    refuse_all: int = field(init=False, default=0)

    def feed(self, data: bytes) -> None:
        """Parse received bytes. What is not a request becomes one that is refused."""
        old = len(self.unfinished)
        if old:
            data = self.unfinished + data
            self.unfinished = b""
        start = 0
        while start < len(data) and not self.ended:
            if data.startswith(b"\r\n", start):  # an empty line is ignored (RFC 9112 2.2)
                start += 2
                continue
            end = data.find(b"\r\n\r\n", start, start + MAX_HEAD) + 4
            if end < 4:
                self._receive_part(data[start:], max(old - start, 0))
                break
            self._add(parse_head(data[start:end]))
            start = end

    def refuse(self, status: int) -> None:
        """Refuse a request that can't be received, and ignore everything after it."""
        self._add(_refused(refused_line(b"", status)))

    def _receive_part(self, data: bytes, old: int) -> None:
        """Keep the beginning of a head, or refuse it; of it, `old` bytes are known already."""
        end = data.find(b"\n", 0, MAX_HEAD) + 1
        too_long = len(data) >= MAX_HEAD
        if end:
            line = parse_line(data[:end])
            if not line.refused and too_long:
                line = line._replace(refused=431)
        elif not may_begin_line(data[:MAX_HEAD], old):
            line = refused_line(data, 400)
        else:
            line = refused_line(data, 414 if too_long else 0)
        if line.refused:
            self._add(_refused(line))
        else:
            self.unfinished = data

    def _add(self, request: Request) -> None:
        """Add a request to those that wait for a response; its body is never read."""
        if self.refuse_all:
            request = evolve(request, keep_alive=False, refused=self.refuse_all)
        self.ended = not request.keep_alive
        self.requests.append(request)

"""Requests: parsed from a connection's bytes, and refused where they are malformed or too large."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from attrs import define, field

from iobatch.httpd.fields import parse_fields
from iobatch.httpd.requestline import METHODS, may_begin_line, parse_line, refused_line

if TYPE_CHECKING:
    from iobatch.httpd.requestline import RequestLine

# Of a request's head, in bytes.
MAX_HEAD = 32 * 1024


@define(eq=False)
class Request:
    """The head of a request."""

    method: bytes
    target: bytes
    version: str
    # By their names in lower case. Other requests share the dict: it must not be changed.
    headers: dict[bytes, bytes]
    # The connection stays open after the response.
    keep_alive: bool
    # The status that refuses the request, whatever its target is; 0: it is not refused.
    refused: int = 0


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
            fields = data.find(b"\n", start, start + MAX_HEAD) + 1
            if not fields:
                self._receive_line(data[start:], max(old - start, 0))
                break
            line = parse_line(data[start:fields])
            end = data.find(b"\r\n\r\n", fields - 2) + 4
            stop = end if end >= 4 else len(data)
            if line.refused:
                if data.startswith(b"\r\n", start):  # an empty line is ignored (RFC 9112 2.2)
                    stop = start + 2
                else:
                    self._refuse(line)
            elif stop - start > MAX_HEAD:
                self._refuse(line._replace(refused=431))
            elif stop == end:
                self._add(line, data[fields:end])
            else:
                self.unfinished = data[start:]
            start = stop

    def refuse(self, status: int) -> None:
        """Refuse a request that can't be received, and ignore everything after it."""
        self._refuse(refused_line(b"", status))

    def _refuse(self, line: RequestLine) -> None:
        self.ended = True
        method, target, version, refused = line
        self.requests.append(Request(method, target, version, {}, False, refused))

    def _receive_line(self, data: bytes, old: int) -> None:
        """Keep the beginning of a request line, or refuse it; `old` bytes are known already."""
        if not may_begin_line(data[:MAX_HEAD], old):
            self._refuse(refused_line(data, 400))
        elif len(data) >= MAX_HEAD:
            self._refuse(refused_line(data, 414))
        else:
            self.unfinished = data

    def _add(self, line: RequestLine, lines: bytes) -> None:
        """Add the request to those that wait for a response; its body is never read."""
        method, target, version, _ = line
        headers, keep_alive, refused = parse_fields(lines, version)
        refused = self.refuse_all or refused
        if refused:
            keep_alive = False
        elif method not in METHODS:
            refused = 405
            # The client may have sent bytes for the tunnel already.
            keep_alive = keep_alive and method != b"CONNECT"
        self.ended = not keep_alive
        self.requests.append(Request(method, target, version, headers, keep_alive, refused))

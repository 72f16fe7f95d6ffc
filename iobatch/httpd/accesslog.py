"""The access log, in the Common and Combined Log Formats."""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from time import gmtime, strftime, time
from typing import TYPE_CHECKING

from attrs import define, field

from iobatch.httpd.output import Output

if TYPE_CHECKING:
    from iobatch.httpd.requests import Request

# PIPE_BUF of Linux, in bytes: a write of up to this size to a pipe is atomic, so the lines of
# several workers don't mix.
MAX_WRITE = 4096
# The most bytes of each field that the client chooses: a line with three of them is one write.
MAX_FIELD = 1200

# Bytes that could end a line or a field, or control a terminal.
_UNSAFE = re.compile(rb'[\0-\x1f\x7f-\xff"\\]')
# An escape sequence that was cut.
_CUT = re.compile(rb"\\.{0,2}\Z")


@define(eq=False)
class AccessLog:
    """Writes a line for each response that was sent or cut off.

    Writing never waits: a reader that stops reading must not stop the server, and loses lines.
    """

    # Made from a descriptor.
    _output: Output = field(converter=Output)
    # The Combined format adds the referrer and the user agent to the Common one.
    _combined: bool
    _lines: list[bytes] = field(init=False, factory=list[bytes])
    _size: int = field(init=False, default=0)

    def add(self, peer: bytes, request: Request, status: bytes, size: int) -> None:
        """Add a line for a response.

        Args:
            peer: the client's address.
            request: the request that it answers.
            status: the three digits of the status line.
            size: the bytes of the body that were sent.

        """
        request_line = b"-"
        if request.target:
            request_line = b"%s %s HTTP/%s" % (
                request.method,
                _escape(request.target),
                request.version.encode(),
            )
        entry = b'%s - - [%s] "%s" %s %s' % (
            peer or b"-",
            _date(int(time())),
            request_line,
            status,
            b"%d" % size if size else b"-",
        )
        if self._combined:
            referrer = _escape(request.headers.get(b"referer", b"-"))
            entry += b' "%s" "%s"' % (referrer, _escape(request.headers.get(b"user-agent", b"-")))
        if self._size + len(entry) >= MAX_WRITE:
            self._end_write()
        self._lines.append(entry + b"\n")
        self._size += len(entry) + 1

    def __bool__(self) -> bool:
        return bool(self._lines or self._output)

    def flush(self) -> None:
        """Write all lines soon."""
        self._end_write()
        self._output.resume()

    def close(self) -> None:
        """Write all lines, if their reader takes them in time."""
        self._end_write()
        self._output.finish()

    def _end_write(self) -> None:
        if self._lines:
            self._output.write(b"".join(self._lines))
            self._lines.clear()
            self._size = 0


@define(eq=False)
class ConnectionLog:
    """Logs the responses of one connection when they are sent or cut off."""

    _log: AccessLog
    # The client's address.
    _peer: bytes
    # The responses that are not logged: the request, the status, and where the body begins and
    # ends among all bytes that the connection sends.
    _waiting: list[tuple[Request, bytes, int, int]] = field(
        init=False, factory=list[tuple["Request", bytes, int, int]]
    )

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, request: Request, status: bytes, size: int | None, end: int) -> None:
        """Add a response.

        Args:
            request: the request that it answers.
            status: the three digits of the status line.
            size: of the body, in bytes; None: unknown, because the body is coded.
            end: where the response ends, or its coded body begins.

        """
        start, end = (end, sys.maxsize) if size is None else (end - size, end)
        self._waiting.append((request, status, start, end))

    def write(self, sent: int) -> None:
        """Log all responses that were added; `sent` is the number of bytes that have left."""
        for request, status, start, end in self._waiting:
            self._log.add(self._peer, request, status, max(0, min(sent, end) - start))
        self._waiting.clear()


@lru_cache(maxsize=4)
def _date(second: int) -> bytes:
    return strftime("%d/%b/%Y:%H:%M:%S +0000", gmtime(second)).encode()


def _escape(value: bytes) -> bytes:
    escaped = _UNSAFE.sub(lambda match: b"\\x%02x" % match[0][0], value)
    return escaped if len(escaped) <= MAX_FIELD else _CUT.sub(b"", escaped[:MAX_FIELD])

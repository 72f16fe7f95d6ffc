"""The access log, in the Common and Combined Log Formats."""

from __future__ import annotations

import os
import re
from collections import deque
from functools import lru_cache
from select import POLLOUT, poll
from time import gmtime, strftime, time
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from iobatch.httpd.requests import Request

# PIPE_BUF of Linux, in bytes: a write of up to this size to a pipe is atomic, so the lines of
# several workers don't mix.
MAX_WRITE = 4096
# The most bytes of each field that the client chooses: a line with three of them is one write.
MAX_FIELD = 1200
# The most writes that wait for a slow reader.
MAX_WAITING = 256

# Bytes that could end a line or a field, or control a terminal.
_UNSAFE = re.compile(rb'[\0-\x1f\x7f-\xff"\\]')
# An escape sequence that was cut.
_CUT = re.compile(rb"\\.{0,2}\Z")


@define(eq=False)
class AccessLog:
    """Writes a line for each response when the response is queued.

    A response that is cut off later has the same line. Writing to a pipe never blocks: a reader
    that stops reading must not stop the server, and loses lines.
    """

    _fd: int
    # The Combined format adds the referrer and the user agent to the Common one.
    _combined: bool
    _lines: list[bytes] = field(init=False, factory=list[bytes])
    _size: int = field(init=False, default=0)
    # Each item is the data of one write: whole lines, or the rest of a partial write.
    _writes: deque[bytes] = field(init=False, factory=deque[bytes])
    _poll: poll = field(init=False, factory=poll)

    def __attrs_post_init__(self) -> None:
        self._poll.register(self._fd, POLLOUT)

    def add(self, peer: bytes, request: Request, status: bytes, size: int | None) -> None:
        """Add a line for a response.

        Args:
            peer: the client's address.
            request: the request that it answers.
            status: the three digits of the status line.
            size: of the body, in bytes; None: unknown.

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
            self.flush()
        self._lines.append(entry + b"\n")
        self._size += len(entry) + 1

    def __bool__(self) -> bool:
        return bool(self._lines or self._writes)

    def flush(self) -> None:
        """Write the lines that the output takes without waiting; after an error all are lost."""
        writes = self._writes
        if self._lines:
            if len(writes) < MAX_WAITING:
                writes.append(b"".join(self._lines))
            self._lines.clear()
            self._size = 0
        try:
            # A pipe that polls writable has room for PIPE_BUF bytes (pipe(7)).
            while writes and self._poll.poll(0):
                writes[0] = writes[0][os.write(self._fd, writes[0]) :]
                if not writes[0]:
                    writes.popleft()
        except OSError:
            writes.clear()


@lru_cache(maxsize=4)
def _date(second: int) -> bytes:
    return strftime("%d/%b/%Y:%H:%M:%S +0000", gmtime(second)).encode()


def _escape(value: bytes) -> bytes:
    escaped = _UNSAFE.sub(lambda match: b"\\x%02x" % match[0][0], value)
    return escaped if len(escaped) <= MAX_FIELD else _CUT.sub(b"", escaped[:MAX_FIELD])

"""The access log, in the formats that programs for such logs know."""

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
    from responses import Request

# PIPE_BUF: so many bytes are written to a pipe as one piece, whatever other workers write.
MAX_WRITE = 4096
# So much of each field that the client chooses: so even a line of three is one piece.
MAX_FIELD = 1200
# So many pieces wait for a reader that is slow.
MAX_WAITING = 256

# What could end a line or a field, or move a terminal's cursor.
_UNSAFE = re.compile(rb'[\0-\x1f\x7f-\xff"\\]')
# The rest of what was written for such a byte, where it was cut.
_CUT = re.compile(rb"\\.{0,2}\Z")


@define(eq=False)
class AccessLog:
    """Writes a line for each response, when it is made ready: how it ended is not known then.

    It never waits: a reader that has stopped is not to stop the server. Lines are lost then.
    """

    _fd: int
    # With the referrer and the user agent: the Combined format. Without: Common.
    _combined: bool
    _lines: list[bytes] = field(init=False, factory=list)
    _size: int = field(init=False, default=0)
    # Lines that are one write, or what is left of them.
    _pieces: deque[bytes] = field(init=False, factory=deque)
    _writable: poll = field(init=False, factory=poll)

    def __attrs_post_init__(self) -> None:
        self._writable.register(self._fd, POLLOUT)

    def add(self, peer: bytes, request: Request, status: bytes, size: int | None) -> None:
        """Note a response.

        Args:
            peer: the client's address.
            request: what it answers.
            status: as the status line has it.
            size: of its content in bytes; None: not known.

        """
        line = b"-"
        if request.target:
            line = b"%s %s HTTP/%s" % (
                request.method,
                _escape(request.target),
                request.version.encode(),
            )
        entry = b'%s - - [%s] "%s" %s %s' % (
            peer or b"-",
            _date(int(time())),
            line,
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
        return bool(self._lines or self._pieces)

    def flush(self) -> None:
        """Write what was noted, as far as it is taken; what can't be written is lost."""
        pieces = self._pieces
        if self._lines:
            if len(pieces) < MAX_WAITING:
                pieces.append(b"".join(self._lines))
            self._lines.clear()
            self._size = 0
        try:
            # A pipe that is writable has room for one piece.
            while pieces and self._writable.poll(0):
                pieces[0] = pieces[0][os.write(self._fd, pieces[0]) :]
                if not pieces[0]:
                    pieces.popleft()
        except OSError:
            pieces.clear()


@lru_cache(maxsize=4)
def _date(second: int) -> bytes:
    return strftime("%d/%b/%Y:%H:%M:%S +0000", gmtime(second)).encode()


def _escape(value: bytes) -> bytes:
    escaped = _UNSAFE.sub(lambda match: b"\\x%02x" % match[0][0], value)
    return escaped if len(escaped) <= MAX_FIELD else _CUT.sub(b"", escaped[:MAX_FIELD])

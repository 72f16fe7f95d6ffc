"""The access log, in the formats that programs for such logs know."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from time import gmtime, strftime, time
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from responses import Request

# PIPE_BUF: so many bytes are written to a pipe as one piece, whatever other workers write.
MAX_WRITE = 4096

# What could end a line or a field, or move a terminal's cursor.
_UNSAFE = re.compile(rb'[\0-\x1f\x7f-\xff"\\]')


@define(eq=False)
class AccessLog:
    """Writes a line for each response, when it is made ready: how it ended is not known then."""

    _fd: int
    # With the referrer and the user agent: the Combined format. Without: Common.
    _combined: bool
    _lines: list[bytes] = field(init=False, factory=list)
    _size: int = field(init=False, default=0)

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
        return bool(self._lines)

    def flush(self) -> None:
        """Write what was noted; what can't be written is lost."""
        if self._lines:
            left = b"".join(self._lines)
            self._lines.clear()
            self._size = 0
            try:
                while left:
                    left = left[os.write(self._fd, left) :]
            except OSError:
                return


@lru_cache(maxsize=4)
def _date(second: int) -> bytes:
    return strftime("%d/%b/%Y:%H:%M:%S +0000", gmtime(second)).encode()


def _escape(value: bytes) -> bytes:
    return _UNSAFE.sub(lambda match: b"\\x%02x" % match[0][0], value)

"""The access log, in the Common and Combined Log Formats."""

from __future__ import annotations

import re
from functools import lru_cache
from time import gmtime, strftime, time
from typing import TYPE_CHECKING

from attrs import define, field

from iobatch.httpd.authentication import parse_basic

if TYPE_CHECKING:
    from iobatch.httpd.output import Output
    from iobatch.httpd.proxies import TrustedProxies
    from iobatch.httpd.requests import Request

# PIPE_BUF of Linux, in bytes: a write of up to this size to a pipe is atomic, so the lines of
# several workers don't mix.
MAX_WRITE = 4096
# The most bytes of each field that the client chooses: a line with four of them is one write.
MAX_FIELD = 900

# Bytes that could end a line or a field, or control a terminal.
_UNSAFE = re.compile(rb'[\0-\x1f\x7f-\xff"\\]')
# As above, for a field without quotes.
_UNSAFE_WORD = re.compile(rb'[\0- \x7f-\xff"\\]')
# An escape sequence that was cut.
_CUT = re.compile(rb"\\.{0,2}\Z")


@define(eq=False)
class AccessLog:
    """Writes a line for each response that was sent or cut off.

    Writing never waits: a reader that stops reading must not stop the server, and loses lines.
    """

    _output: Output
    # The Combined format adds the referrer and the user agent to the Common one.
    _combined: bool
    # A request that is not refused has credentials that were verified, or none.
    _authenticated: bool = False
    # None: the log shows the peers' addresses.
    proxies: TrustedProxies | None = None
    _lines: list[bytes] = field(init=False, factory=list[bytes])
    _size: int = field(init=False, default=0)

    def add(self, client: bytes, request: Request, status: bytes, size: int) -> None:
        """Add a line for a response.

        Args:
            client: its address.
            request: the request that it answers.
            status: the three digits of the status line.
            size: the bytes of the body that were sent.

        """
        request_line = b"-"
        if request.target:
            request_line = b"%s HTTP/%s" % (
                _escape(b"%s %s" % (request.method, request.target)),
                request.version.encode(),
            )
        user = b""
        if self._authenticated and not request.refused:
            user = _user(request.headers.get(b"authorization", b""))
        entry = b'%s - %s [%s] "%s" %s %s' % (
            client or b"-",
            user or b"-",
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

    def reopen(self) -> None:
        """Open the log's file anew, after all lines that were added are written."""
        self._end_write()
        self._output.reopen()

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
    # The peer's address.
    _peer: bytes
    # None: the peer is the client, and not a trusted proxy.
    _proxies: TrustedProxies | None = field(init=False, default=None)
    # The responses that are not logged: the request, the head, and the size of the body in bytes.
    # None: the body is coded, so its size is unknown; such a response is the last.
    _waiting: list[tuple[Request, bytes, int | None]] = field(
        init=False, factory=list[tuple["Request", bytes, "int | None"]]
    )

    def __attrs_post_init__(self) -> None:
        proxies = self._log.proxies
        if proxies is not None and proxies.trusts(self._peer):
            self._proxies = proxies

    def add(self, request: Request, head: bytes, size: int | None) -> None:
        """Add a response.

        Args:
            request: the request that it answers.
            head: of the response.
            size: of the body, in bytes; None: the body is coded, and sent after all others.

        """
        self._waiting.append((request, head, size))

    def write_sent(self, coded: int) -> None:
        """Log the responses that were added, which are sent.

        Args:
            coded: the size of the coded body.

        """
        for request, head, size in self._waiting:
            self._write(request, _status(head), coded if size is None else size)
        self._waiting.clear()

    def write_cut_off(self, left: int, held: int, coded: int) -> None:
        """Log the responses that were added, of which the last bytes are not sent.

        Args:
            left: the bytes of heads and uncoded bodies that no filter has taken.
            held: the bytes that filters hold. What chunked coding and TLS have added to them is
                counted as a part of bodies, so a size in the log may be too small by this.
            coded: the size of the coded body, as far as it is coded.

        """
        unsent = left + held
        lines: list[tuple[Request, bytes, int]] = []
        for request, head, size in reversed(self._waiting):
            whole = coded if size is None else size
            lines.append((request, _status(head), max(0, whole - unsent)))
            if size is not None or coded:  # else neither the head is in `held`
                unsent = max(0, unsent - whole - len(head))
        for request, status, size in reversed(lines):
            self._write(request, status, size)
        self._waiting.clear()

    def _write(self, request: Request, status: bytes, size: int) -> None:
        client = self._peer
        if self._proxies is not None:
            client = self._proxies.client_of(request.headers, client)
        self._log.add(client, request, status, size)


def _status(head: bytes) -> bytes:
    return head[9:12]  # after "HTTP/1.1 "


@lru_cache(maxsize=4)
def _date(second: int) -> bytes:
    return strftime("%d/%b/%Y:%H:%M:%S +0000", gmtime(second)).encode()


def _user(authorization: bytes) -> bytes:
    """Return the user of Basic credentials as the log shows it; b"": there is none."""
    user, _, _ = (parse_basic(authorization) or b"").partition(b":")
    return _escape(user, _UNSAFE_WORD)


def _escape(value: bytes, unsafe: re.Pattern[bytes] = _UNSAFE) -> bytes:
    escaped = unsafe.sub(lambda match: b"\\x%02x" % match[0][0], value)
    return escaped if len(escaped) <= MAX_FIELD else _CUT.sub(b"", escaped[:MAX_FIELD])

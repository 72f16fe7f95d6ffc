"""One connection: bytes come in, requests are parsed out of them, and batches go out."""

from __future__ import annotations

import socket
from collections import deque
from selectors import EVENT_READ, EVENT_WRITE
from ssl import SSLError
from time import time
from typing import TYPE_CHECKING

from attrs import define, field
from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
)

import responses
from codings import CODINGS
from files import split_path, split_target
from iobatch import IOB_ERROR, IOBatch, iob_send
from outlet import Meter, Outlet, can_encode
from responses import Request, head_end
from secure import secure

if TYPE_CHECKING:
    from files import Files, OpenFile
    from iobatch.filters import Filter
    from secure import Secure
    from settings import Settings

READ_SIZE = 16 * 1024
# RFC 9112 3: at least 8000 should be supported.
MAX_TARGET = 8000
# Of one request's head. As only what still has no end is counted, up to READ_SIZE more may pass.
MAX_HEAD = 32 * 1024
# Header fields of one request: browsers send less than 30.
MAX_FIELDS = 100
# What step returns besides events.
REST = 1 << 8
# So many responses are made ready at once: pipelined requests hold no more open files than that.
MAX_ANSWERS = 16
# When the last response is sent, what still comes in is thrown away, up to so many bytes and
# seconds: closing at once would reset the connection, and the client might never see the response
# (RFC 9112 9.6).
LINGER_BYTES = 8 * 1024 * 1024
LINGER_SECONDS = 5.0


class Refused(Exception):  # noqa: N818  # the client's fault, not ours
    """What comes in is not going to become a request."""

    def __init__(self, status: int) -> None:
        """Say what to answer."""
        self.status = status


@define(eq=False)
class Connection:
    """A client's connection. It reads, or sends, or waits for the client to close; never two.

    While responses are unsent nothing is read. So what a client can make us hold is one piece of
    input, and the batch made of a few of the requests in it.

    It is itself what httptools calls back: on_url, on_header and on_headers_complete.
    """

    sock: socket.socket
    _files: Files
    _settings: Settings
    # When it is given up (time.monotonic): only progress puts it off. Progress is a response, or
    # a part of one, that the client took; not the next byte of a request that never ends.
    deadline: float
    # The client's address.
    _peer: bytes = b""
    _parser: HttpRequestParser = field(init=False)
    _batch: IOBatch = field(init=False, factory=IOBatch)
    # The open files that the batch refers to by their descriptors.
    _held: list[OpenFile] = field(init=False, factory=list)
    # None: the batch goes straight to the socket, as it is.
    _outlet: Outlet | None = field(init=False, default=None)
    _tls: Secure | None = field(init=False, default=None)
    # What limits the rate; None: it isn't limited.
    _meter: Meter | None = field(init=False, default=None)
    # Parsed and not yet answered.
    _requests: deque[Request] = field(init=False, factory=deque)
    # Not everything that was parsed is answered and sent.
    _sending: bool = field(init=False, default=False)
    # The status that any request is refused with; 0: they are heard.
    _refusal: int = field(init=False, default=0)
    # No further request is answered.
    _last: bool = field(init=False, default=False)
    # Everything was sent and thrown away since: how many bytes. -1: not there yet.
    _drained: int = field(init=False, default=-1)
    # The request that is being parsed, and how many bytes were read since the last one's head.
    _target: bytes = field(init=False, default=b"")
    _headers: dict[bytes, bytes] = field(init=False, factory=dict)
    _fields: int = field(init=False, default=0)
    _unfinished: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._parser = HttpRequestParser(self)
        settings = self._settings
        if settings.rate is not None:
            self._meter = Meter(settings.rate)
            self._outlet = Outlet(self.sock, self._batch, None, self._meter)
        if settings.tls is not None:
            self._tls = secure(settings.tls, self._meter)
            self._outlet = Outlet(self.sock, self._batch, self._tls.filter, self._meter)

    def close(self) -> None:
        """Close the socket, and let go what was to be sent."""
        if self._tls is not None and not self._sending:
            self._tls.end(self.sock)
        self._batch.reset()
        if self._outlet is not None:
            self._outlet.close()
        self.sock.close()
        del self._parser  # it refers to this object

    def step(self, now: float) -> int:  # noqa: PLR0912 # a return for each state
        """Go on as far as the socket is ready for it.

        Args:
            now: time.monotonic().

        Returns:
            What to wait for: EVENT_READ or EVENT_WRITE. REST: for a while. 0: it is over; close it.

        """
        if self._sending:
            return self._send(now)
        try:
            data = self.sock.recv(READ_SIZE)
        except BlockingIOError:
            return EVENT_READ
        except OSError:
            return 0
        if not data:
            return 0
        if self._drained >= 0:
            self._drained += len(data)
            return EVENT_READ if self._drained < LINGER_BYTES else 0
        if self._tls is not None:
            try:
                data = self._tls.receive(data)
            except SSLError as exc:
                if getattr(exc, "reason", None) != "HTTP_REQUEST":  # close_notify has no reason
                    return 0
                self._tls = self._outlet = None  # so that the client can read the answer
                self._refuse(400)
                return self._send(now)
            if not data:
                return self._shake_hands(self._tls.filter)
        self._feed(data)
        if self._tls is not None and self._tls.ended:
            self._last = True
        if self._requests:
            return self._send(now)
        if self._last:
            return 0
        if self._unfinished == len(data):  # the first of a request
            self.deadline = min(self.deadline, now + self._settings.header_timeout)
        return EVENT_READ

    def turn_away(self, now: float) -> None:
        """Be one too many: answer only that, and not for long."""
        self._refusal = 503
        self.deadline = now + LINGER_SECONDS

    def finish(self) -> bool:
        """Take no more requests; tell whether there is nothing to be waited for."""
        self._last = True
        return not self._sending and self._drained < 0

    def _send(self, now: float) -> int:  # noqa: PLR0912 # a step for each thing that may wait
        batch = self._batch
        requests = self._requests
        meter = self._meter
        if meter is not None and now < meter.rest_until:
            self._sending = True
            return REST
        if not (self._sending and batch) and (self._outlet is None or not self._outlet.coding):
            self._held.clear()
            room = MAX_ANSWERS
            while room and requests and self._answer(requests.popleft(), now):
                room -= 1
        outlet = self._outlet
        if outlet is None:
            nbytes = iob_send(self.sock, batch)
            left = batch.bytesleft > 0
        else:
            outlet.ending = self._last and not requests and self._tls is not None
            held = outlet.held
            nbytes = outlet.send()
            left = bool(outlet)
            if outlet.held < held:  # taken before, and sent now: a slow client is no dead one
                self.deadline = now + self._settings.timeout
        if nbytes == IOB_ERROR:
            return 0
        if nbytes > 0:
            self.deadline = now + self._settings.timeout
        if meter is not None:
            # It goes on while filters that are full take nothing.
            self.deadline = max(self.deadline, meter.rest_until + self._settings.timeout)
        if left or requests:
            # Even if it could take more now: the others come first.
            self._sending = True
            if meter is not None and now < meter.rest_until:
                return REST
            return EVENT_WRITE
        self._sending = False
        if self._unfinished:  # Behind the last request the next one has begun.
            self.deadline = min(self.deadline, now + self._settings.header_timeout)
        self._held.clear()
        if self._tls is None and meter is None:
            self._outlet = None
        if self._last:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                return 0
            self._drained = 0
            self.deadline = now + LINGER_SECONDS
        return EVENT_READ

    def _answer(self, request: Request, now: float) -> bool:
        """Add the response to the batch; tell whether another one may follow at once."""
        batch = self._batch
        end = head_end(int(time()), request.version, request.keep_alive)
        try:
            if request.refused:
                head, body = responses.error(request.refused)
            elif request.method == b"OPTIONS":
                head, body = responses.OPTIONS, b""
            else:
                return self._answer_file(request, end, now)
        except IsADirectoryError:
            path, query = split_target(request.target)
            head, body = responses.redirect(split_path(path), query)
        except OSError as exc:
            head, body = responses.error(responses.status_of(exc))
        if request.method == b"HEAD":
            body = b""
        batch.addbuf(head + end + body)
        self._note(request, head, len(body))
        return True

    def _answer_file(self, request: Request, end: bytes, now: float) -> bool:
        batch = self._batch
        file = self._files.get(request.target, now)
        coding = ""
        if file.varies:
            file, coding = responses.negotiate(request.headers, request.version, file)
            if coding and not can_encode():
                coding = ""
        if not responses.CONDITIONAL.isdisjoint(request.headers):
            reply = responses.conditional(request, file, coding, time())
            if reply is not None:
                batch.addbuf(reply.head + end)
                before = batch.bytesleft
                for lead, (offset, count) in reply.parts:
                    batch.addbuf(lead)
                    batch.addfile(file.fd, offset, count)
                    self._held.append(file)
                if request.method == b"GET":
                    batch.addbuf(reply.end)
                self._note(request, reply.head, batch.bytesleft - before)
                return True
        head = (file.heads.get(coding) or responses.file_head(file, coding, time())) + end
        if request.method == b"HEAD":
            batch.addbuf(head)
            self._note(request, head, 0)
            return True
        if coding:
            self._encode(head, file, coding)
            self._note(request, head, None)
            return False
        if file.content is not None:
            batch.addbuf(head + file.content)
        else:
            batch.addbuf(head)
            # By its number, since an object takes longer. So it has to be kept open.
            batch.addfile(file.fd, 0, file.size)
            self._held.append(file)
        self._note(request, head, file.size)
        return True

    def _note(self, request: Request, head: bytes, size: int | None) -> None:
        if self._settings.log is not None:
            self._settings.log.add(self._peer, request, head[9:12], size)

    def _encode(self, head: bytes, file: OpenFile, coding: str) -> None:
        """Let a file go out through a content coding, behind what is in the batch."""
        if self._outlet is None:
            self._outlet = Outlet(self.sock, self._batch)
        body = IOBatch()
        body.addfile(file, 0, file.size)
        self._outlet.encode(head, body, CODINGS[coding]())

    def _shake_hands(self, tls: Filter) -> int:
        """Send what TLS has to say by itself."""
        if tls.drain(self.sock) == IOB_ERROR:
            return 0
        self._sending = tls.bytesleft > 0
        return EVENT_WRITE if self._sending else EVENT_READ

    # Parsing

    def _feed(self, data: bytes) -> None:
        """Parse what was read; what is no request becomes one that is refused."""
        self._unfinished += len(data)
        try:
            self._parser.feed_data(data)
            if not self._unfinished and (self._target or not data.endswith(b"\n")):
                self._unfinished = 1  # or more: the next request has begun
            if self._unfinished > MAX_HEAD:
                raise Refused(431)
        except Refused as exc:
            self._refuse(exc.status)
        except HttpParserCallbackError as exc:
            if not isinstance(exc.__context__, Refused):
                raise
            self._refuse(exc.__context__.status)
        except HttpParserError:
            self._refuse(400)
        except HttpParserUpgrade:
            pass  # That request was the last one.

    def _refuse(self, status: int) -> None:
        # Behind the last request anything may come.
        if not self._last:
            self._last = True
            # The method stands in front of the target. After HEAD the answer has no body.
            method = self._parser.get_method() if self._target else b""
            self._requests.append(Request(method, b"", "1.1", {}, keep_alive=False, refused=status))

    def on_url(self, data: bytes) -> None:
        """Take a part of the target; mostly it is the whole."""
        self._target += data
        if len(self._target) > MAX_TARGET:
            raise Refused(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise Refused(431)
        name = name.lower()
        # What is behind a value is no part of it (RFC 9112 5); the parser leaves it there.
        value = value.rstrip()
        headers = self._headers
        headers[name] = headers[name] + b", " + value if name in headers else value

    def on_headers_complete(self) -> None:
        """Take a request: its head is all that matters."""
        if self._last:
            return
        parser = self._parser
        headers = self._headers
        keep_alive = parser.should_keep_alive()
        # Who keeps the connection without a word speaks HTTP/1.1. To ask the parser takes longer.
        tacit = keep_alive and b"connection" not in headers
        version = "1.1" if tacit else parser.get_http_version()
        request = Request(parser.get_method(), self._target, version, headers, keep_alive)
        request.refused = self._refusal or responses.refusal(request)
        # Neither a body nor another protocol is understood, so nothing behind them is either.
        if (
            request.refused not in {0, 405}
            or parser.should_upgrade()
            or responses.has_body(request)
        ):
            request.keep_alive = False
        self._last = not request.keep_alive
        self._requests.append(request)
        self._target = b""
        self._headers = {}
        self._fields = self._unfinished = 0

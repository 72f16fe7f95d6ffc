"""The response queue of a connection: requests become responses in a batch."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING

from attrs import define, evolve, field

from iobatch import IOBatch
from iobatch.httpd import responses
from iobatch.httpd.codings import CODINGS
from iobatch.httpd.cors import is_preflight, preflight_lines
from iobatch.httpd.errors import status_of
from iobatch.httpd.fallbacks import find_fallback
from iobatch.httpd.sink import ResponseSink, can_encode
from iobatch.httpd.targets import split_path, split_target

if TYPE_CHECKING:
    import socket
    from collections import deque

    from iobatch.filters import Filter
    from iobatch.httpd.accesslog import ConnectionLog
    from iobatch.httpd.authentication import Authentication
    from iobatch.httpd.cache import FileCache
    from iobatch.httpd.directories import Names
    from iobatch.httpd.files import ServedFile
    from iobatch.httpd.headerfields import HeaderFields
    from iobatch.httpd.requests import Request
    from iobatch.httpd.throttle import Throttle

# The most responses in one batch: it bounds the files that a client keeps open by pipelining.
MAX_RESPONSES = 16


@define(eq=False)
class ResponseQueue:
    """The responses of a connection that are not sent, and what they need until they are.

    A queue is true while it holds something to send.
    """

    _sock: socket.socket
    _files: FileCache
    # None: responses are not logged.
    _log: ConnectionLog | None = None
    _tls: Filter | None = None
    # None: the rate is not limited.
    _throttle: Throttle | None = None
    # None: responses have only the server's own header fields.
    _fields: HeaderFields | None = None
    # None: requests need no credentials.
    _authentication: Authentication | None = None
    batch: IOBatch = field(init=False, factory=IOBatch)
    # The directory whose listing the first request waited for when `fill` returned last; None: it
    # waited for its password to be verified, or for nothing.
    awaited: Names | None = field(init=False, default=None)
    # None: the batch goes to the socket by iob_send.
    sink: ResponseSink | None = field(init=False, default=None)
    # The files whose descriptors the batch refers to.
    _batch_files: list[ServedFile] = field(init=False, factory=list["ServedFile"])

    def __attrs_post_init__(self) -> None:
        if self._tls is not None or self._throttle is not None:
            self.sink = ResponseSink(self._sock, self.batch, self._tls, self._throttle)

    def __bool__(self) -> bool:
        return bool(self.batch if self.sink is None else self.sink)

    def close(self) -> None:
        """Drop unsent bytes, and log how much of each response was sent."""
        sink = self.sink
        if self._log is not None:
            held, coded = (0, 0) if sink is None else (sink.held_bytes, sink.coded_bytes)
            self._log.write_cut_off(self.batch.bytesleft, held, coded)
        self.batch.reset()
        self._batch_files.clear()
        if sink is not None:
            sink.close()

    def leave_tls(self) -> None:
        """Send the following responses as plain text, and as fast as the socket takes them."""
        self._tls = self._throttle = self.sink = None

    def fill(self, requests: deque[Request], now: float) -> None:
        """Answer requests, up to MAX_RESPONSES or the first whose response no other may follow.

        Call it when the queue is false.

        Args:
            requests: those that are answered are removed. If the first must wait for a listing, or
                for its password to be verified, none is.
            now: time.monotonic().

        """
        self.release_sent()
        for _ in range(MAX_RESPONSES):
            if not requests or not self._answer(requests, now):
                break

    def release_sent(self) -> None:
        """Log what was added, which is sent, and release its files."""
        if self._log is not None:
            self._log.write_sent(0 if self.sink is None else self.sink.coded_bytes)
        self._batch_files.clear()
        if self._tls is None and self._throttle is None:
            self.sink = None

    def _answer(self, requests: deque[Request], now: float) -> bool:
        """Add the response to the first request; return whether another may follow it."""
        request = requests[0]
        if self._authentication is not None and not request.refused:
            status = self._verify(self._authentication, request)
            if status is None:
                self.awaited = None
                return False
            if status:
                request = evolve(request, refused=status)
        head_end = responses.head_end(int(time()), request.version, request.keep_alive)
        try:
            if request.refused:
                head, body = responses.error(request.refused)
            elif request.method == b"OPTIONS":
                head, body = self._options_head(request), b""
            else:
                file = self._files.get(request.target, now, request.headers)
                if file is None:
                    path, _ = split_target(request.target)
                    self.awaited = tuple(split_path(path)[:-1])
                    return False
                requests.popleft()
                return self._add_file(request, file, head_end)
        except IsADirectoryError:
            path, query = split_target(request.target)
            head, body = responses.redirect(split_path(path), query)
        except OSError as exc:
            file = find_fallback(self._files, request, exc, now)
            if file is not None:
                requests.popleft()
                return self._add_file(request, file, head_end)
            head, body = responses.error(status_of(exc))
        requests.popleft()
        if request.method == b"HEAD":
            body = b""
        head = self._whole_head(request, head, head_end)
        self.batch.addbuf(head + body)
        self._add_to_log(request, head, len(body))
        return True

    def _verify(self, authentication: Authentication, request: Request) -> int | None:
        """Return the status that refuses a request for its credentials, or 0; None: it must wait.

        Browsers send preflights without credentials. With credentials the log has their user.
        """
        authorization = request.headers.get(b"authorization")
        if authorization is not None:
            return authentication.check(authorization)
        fields = self._fields
        is_exempt = fields is not None and is_preflight(request, fields.find(request.target))
        return 0 if is_exempt else 401

    def _options_head(self, request: Request) -> bytes:
        """Return the head of the response to OPTIONS, without what head_end adds."""
        if self._fields is not None:
            fields = self._fields.find(request.target)
            if is_preflight(request, fields):
                return responses.OPTIONS + preflight_lines(request.headers, fields)
        return responses.OPTIONS

    def _add_file(self, request: Request, file: ServedFile, head_end: bytes) -> bool:
        """Add a response with a file; return as _answer does."""
        batch = self.batch
        coding = ""
        if file.vary:
            file, coding = responses.negotiate(request.headers, request.version, file)
            if coding and not can_encode():
                coding = ""
        if request.is_conditional and (reply := responses.conditional(request, file, coding)):
            self._add_reply(request, reply, head_end, file)
            return True
        head = file.heads.get(coding) or responses.file_head(file, coding)
        head = self._whole_head(request, head, head_end)
        size: int | None = file.size
        if request.method == b"HEAD":
            batch.addbuf(head)
            size = 0
        elif coding:
            self._encode(head, file, coding)
            size = None
        elif file.content is not None:
            batch.addbuf(head + file.content)
        else:
            batch.addbuf(head)
            # A descriptor costs less than an object. _batch_files keeps it open.
            batch.addfile(file.fd, 0, file.size)
            self._batch_files.append(file)
        if self._log is not None:
            self._log.add(request, head, size)
        return size is not None

    def _add_reply(
        self, request: Request, reply: responses.Reply, head_end: bytes, file: ServedFile
    ) -> None:
        """Add a response that has parts of a file, or no file at all."""
        batch = self.batch
        head = self._whole_head(request, reply.head, head_end)
        batch.addbuf(head)
        before = batch.bytesleft
        for lead, (offset, count) in reply.parts:
            batch.addbuf(lead)
            batch.addfile(file.fd, offset, count)
            self._batch_files.append(file)
        if request.method == b"GET":
            batch.addbuf(reply.body_end)
        self._add_to_log(request, head, batch.bytesleft - before)

    def _encode(self, head: bytes, file: ServedFile, coding: str) -> None:
        """Queue a file to be sent through a content coding after the batch."""
        if self.sink is None:
            self.sink = ResponseSink(self._sock, self.batch)
        body = IOBatch()
        body.addfile(file, 0, file.size)
        self.sink.encode(head, body, CODINGS[coding]())

    def _whole_head(self, request: Request, head: bytes, head_end: bytes) -> bytes:
        """Return a head with the configured fields and what head_end adds."""
        if self._fields is not None:
            head = self._fields.find(request.target).add_to(head)
        return head + head_end

    def _add_to_log(self, request: Request, head: bytes, size: int) -> None:
        if self._log is not None:
            self._log.add(request, head, size)

"""A connection: received bytes become requests, and their responses a batch that is sent."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from enum import Enum
from select import EPOLLIN, EPOLLOUT
from ssl import SSLError
from typing import TYPE_CHECKING

from attrs import define, field

from iobatch import IOB_ERROR, iob_send
from iobatch.httpd.accesslog import ConnectionLog
from iobatch.httpd.requests import RequestParser
from iobatch.httpd.responsequeue import ResponseQueue
from iobatch.httpd.throttle import Throttle
from iobatch.httpd.tls import new_tls

if TYPE_CHECKING:
    from iobatch.httpd.cache import FileCache
    from iobatch.httpd.directories import Names
    from iobatch.httpd.settings import Settings
    from iobatch.httpd.tls import ConnectionTLS

READ_SIZE = 16 * 1024
# step() returns this if the connection is over. It and the next three are no events of epoll.
CLOSE = -1
# step() returns this if the connection pauses to keep its rate limit, or until a password is
# verified.
WAITING = -2
# step() returns this before work that takes long: to code a body, or to shake hands. The next call
# does a part of the work.
DEFERRED = -3
# step() returns this if the connection waits until a page of the listing `awaited` is made.
BUILDING = -4
# After the last response, input is read and discarded: closing at once would reset the connection,
# and the client could lose the response (RFC 9112 9.6). This is the most that is discarded, in
# bytes.
LINGER_BYTES = 8 * 1024 * 1024
# Input is discarded for at most this number of seconds.
LINGER_SECONDS = 5.0
# The option of a socket whose close resets the connection (socket(7)).
_RESET = struct.pack("ii", 1, 0)


class State(Enum):
    """What a connection is doing."""

    READING = "waits for requests"
    RESPONDING = "sends responses or TLS messages, and reads nothing"
    LINGERING = "has sent the last response, and discards input until the client closes"


READING, RESPONDING, LINGERING = State


@define(eq=False)
class Connection:
    """A client's connection.

    It reads nothing while it sends. So a client can't make the server hold more than one piece of
    input and the batch for some of its requests.
    """

    sock: socket.socket
    _files: FileCache
    _settings: Settings
    # When the connection is given up (time.monotonic). Bytes of a response that the socket accepts
    # postpone it, and so does a pause of the throttle; bytes of a request that never ends don't.
    deadline: float
    # The client's address, for the log.
    _peer_address: bytes = b""
    # What epoll waits for on behalf of the connection; 0: it is not in the server's epoll set.
    watched: int = field(init=False, default=0)
    _state: State = field(init=False, default=READING)
    _parser: RequestParser = field(init=False, factory=RequestParser)
    _responses: ResponseQueue = field(init=False)
    _tls: ConnectionTLS | None = field(init=False, default=None)
    # None: the rate is not limited.
    _throttle: Throttle | None = field(init=False, default=None)
    # The last step returned DEFERRED.
    _deferred: bool = field(init=False, default=False)
    # Bytes discarded while lingering.
    _discarded: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        settings = self._settings
        if settings.rate is not None:
            self._throttle = Throttle(settings.rate)
        if settings.tls is not None:
            self._tls = new_tls(settings.tls, self._throttle)
        log = None if settings.log is None else ConnectionLog(settings.log, self._peer_address)
        tls = None if self._tls is None else self._tls.filter
        self._responses = ResponseQueue(
            self.sock,
            self._files,
            log,
            tls,
            self._throttle,
            settings.header_fields,
            settings.authentication,
        )

    def close(self) -> None:
        """Close the socket, and drop unsent bytes.

        TLS is ended by close_notify, if no response is cut off and the socket takes it.
        """
        if self._tls is not None and self._state is not RESPONDING:
            self._tls.end(self.sock)
        self._responses.close()
        self.sock.close()

    def give_up(self) -> None:
        """Close as `close` does, but reset the connection if a response is cut off.

        The kernel drops what it holds of the response, which may be megabytes. Otherwise it would
        hold it until it gives up too, and hold as much again for the client's next connection.
        """
        if self._state is RESPONDING:
            with suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()

    def step(self, now: float) -> int:
        """Read or send what is possible without waiting.

        Args:
            now: time.monotonic().

        Returns:
            What to wait for: EPOLLIN, EPOLLOUT, WAITING, DEFERRED or BUILDING. CLOSE: the
            connection is over.

        """
        if self._state is RESPONDING:
            return self._send(now)
        if self._tls is not None and not self._tls.is_established and self._postpone():
            return DEFERRED
        try:
            data = self.sock.recv(READ_SIZE)
        except BlockingIOError:
            return EPOLLIN
        except OSError:
            return CLOSE
        if not data:
            return CLOSE
        if self._state is LINGERING:
            self._discarded += len(data)
            return EPOLLIN if self._discarded < LINGER_BYTES else CLOSE
        if self._tls is not None:
            return self._receive_tls(self._tls, data, now)
        return self._receive(data, now)

    def turn_away(self, now: float) -> None:
        """Answer every request with 503, and close the connection soon.

        Args:
            now: time.monotonic().

        """
        self._parser.refuse_all = 503
        self.deadline = now + LINGER_SECONDS

    def finish(self) -> bool:
        """Accept no more requests; return whether the connection can be closed at once."""
        self._parser.ended = True
        return self._state is READING

    @property
    def awaited(self) -> Names | None:
        """The directory whose listing the last step waited for, if it returned BUILDING."""
        return self._responses.awaited

    @property
    def is_idle(self) -> bool:
        """Whether the next request has not begun to arrive, as far as input was read."""
        return (
            self._state is READING
            and not self._parser.unfinished
            and not self._parser.refuse_all
            and (self._tls is None or not self._tls.is_shaking_hands)
        )

    @property
    def has_input(self) -> bool:
        """Whether the socket has input that was not read; its end and an error are input, too."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def _postpone(self) -> bool:
        """Postpone work that takes long: return True in one step, and False in the next."""
        self._deferred = not self._deferred
        return self._deferred

    # Reading

    def _receive_tls(self, tls: ConnectionTLS, data: bytes, now: float) -> int:
        try:
            data = tls.receive(data)
        except SSLError as exc:
            if exc.reason != "HTTP_REQUEST":
                return CLOSE
            self._tls = None  # a client that speaks plain HTTP gets a plain answer
            self._responses.leave_tls()
            self._parser.refuse(400)
            return self._send(now)
        if not data:
            return self._send_tls_messages(tls)
        return self._receive(data, now)

    def _send_tls_messages(self, tls: ConnectionTLS) -> int:
        """Send the TLS messages that carry no data: a part of the handshake, or a key update."""
        if tls.filter.drain(self.sock) == IOB_ERROR:
            return CLOSE
        if tls.filter.bytesleft:
            self._state = RESPONDING
            return EPOLLOUT
        return EPOLLIN

    def _receive(self, data: bytes, now: float) -> int:
        parser = self._parser
        continued = bool(parser.unfinished)
        parser.feed(data)
        if self._tls is not None and self._tls.ended:
            parser.ended = True
        if parser.requests:
            return self._send(now)
        if parser.ended:
            return CLOSE
        if parser.unfinished and not continued:
            self._expect_head(now)
        return EPOLLIN

    def _expect_head(self, now: float) -> None:
        """Limit the time for the rest of a head that has begun."""
        self.deadline = min(self.deadline, now + self._settings.header_timeout)

    # Sending

    def _send(self, now: float) -> int:
        """Answer requests, and send what the socket takes of the responses."""
        throttle, responses, requests = self._throttle, self._responses, self._parser.requests
        if throttle is not None and throttle.pauses(now):
            self._state = RESPONDING
            return WAITING
        sink = responses.sink
        if not (responses.batch if sink is None else sink):
            responses.fill(requests, now)
            sink = responses.sink
            if requests and not responses:
                # A listing is being made, or a password verified, which is not counted against the
                # client.
                self._state = RESPONDING
                self.deadline = now + self._settings.timeout
                return WAITING if responses.awaited is None else BUILDING
        if sink is not None and sink.has_coded_body and self._postpone():
            self._state = RESPONDING
            return DEFERRED
        if self._send_some(now) == IOB_ERROR:
            return CLOSE
        if requests or (responses.batch if sink is None else sink):
            # Even if the socket takes more: the other connections come first.
            self._state = RESPONDING
            return EPOLLOUT if throttle is None or not throttle.pauses(now) else WAITING
        return self._end_sending(now)

    def _send_some(self, now: float) -> int:
        """Send what the socket takes; return as iob_send does."""
        responses, timeout = self._responses, self._settings.timeout
        sink = responses.sink
        if sink is None:
            nbytes = iob_send(self.sock, responses.batch)
        else:
            sink.ending = self._tls is not None and self._parser.ended and not self._parser.requests
            held_before = sink.held_bytes
            nbytes = sink.send()
            if sink.held_bytes < held_before:  # the client reads what a filter took earlier
                self.deadline = now + timeout
        if nbytes > 0:
            self.deadline = now + timeout
        if self._throttle is not None:
            # The pause of the throttle is not counted against the client.
            self.deadline = max(self.deadline, self._throttle.resume_at + timeout)
        return nbytes

    def _end_sending(self, now: float) -> int:
        """Everything is sent: read on, or linger after the last response."""
        self._state = READING
        if self._parser.unfinished:
            self._expect_head(now)
        self._responses.release_sent()
        if self._parser.ended:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                return CLOSE
            self._state = LINGERING
            self.deadline = now + LINGER_SECONDS
        return EPOLLIN

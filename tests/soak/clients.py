"""Clients that reset, close, stop and stall at any point of a request or response."""

from __future__ import annotations

import json
import re
import socket
from collections import Counter, deque
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING

from attrs import Factory, define

from tests.soak.site import STEADY, decoded
from tests.support.sockets import PATIENCE, reset

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from http.client import HTTPResponse
    from random import Random

    from tests.soak.site import Site
    from tests.support.httpd import Address

# Seconds after which a client gives up: the server may have no descriptor for it.
IMPATIENCE = 0.5
# The connections that a client leaves without reading from them.
STALLED = 8
FULL = {200, 206, 301, 304, 404, 416, 503}
# A listing is kept in a file in memory, which the limit of files' sizes prevents: EFBIG.
LISTED = {*FULL, 500}


@define
class Client:
    """One of several clients in their own threads."""

    address: Address
    site: Site
    random: Random
    trust: ssl.SSLContext | None
    # The responses that were received in full, by their status, and what went wrong otherwise.
    seen: Counter[str] = Factory(Counter)
    _stalled: deque[socket.socket] = Factory(deque)

    def act(self) -> None:
        """Do one thing; an error of the connection is an expected end."""
        action = self.random.choice(
            (self.get_all, self.get_all, self.leave_request, self.leave_response, self.stall)
        )
        if self.random.random() < 0.5:
            self.site.change()
        try:
            action()
        except (OSError, HTTPException) as exc:
            self.seen["timeout" if isinstance(exc, TimeoutError) else "cut off"] += 1

    def close(self) -> None:
        while self._stalled:
            self._stalled.pop().close()

    def get_all(self) -> None:
        """Receive some responses in full over one connection, and check each of them."""
        connection = self._new_connection(IMPATIENCE)
        try:
            for _ in range(self.random.randrange(1, 6)):
                path = self.random.choice(self.site.paths)
                fields = self._fields()
                method = self.random.choice(("GET", "GET", "GET", "HEAD"))
                connection.request(method, path, headers=fields)
                response = connection.getresponse()
                body = response.read()
                self.seen[str(response.status)] += 1
                listed = path.endswith("/")
                assert response.status in (LISTED if listed else FULL), (response.status, path)
                if method == "GET":
                    self._check(path, response, body, fields)
        finally:
            connection.close()

    def get_steady(self) -> None:
        """Get a file that never changes, from a server that must answer."""
        connection = self._new_connection(PATIENCE)
        try:
            connection.request("GET", STEADY)
            response = connection.getresponse()
            assert response.status == 200, f"{response.status} for an ordinary client"
            assert response.read() == self.site.steady
        finally:
            connection.close()

    def leave_request(self) -> None:
        """Send a part of a request, or of a TLS handshake, and go."""
        asked = self._request()
        with self._connection(plain=self.random.random() < 0.5) as sock:
            sock.sendall(asked[: self.random.randrange(len(asked))])
            self._leave(sock)

    def leave_response(self) -> None:
        """Receive a part of the responses to some requests, and go."""
        with self._connection() as sock:
            sock.sendall(b"".join(self._request() for _ in range(self.random.randrange(1, 20))))
            left = self.random.choice((1, 100, 10_000, 300_000))
            while left > 0 and (piece := sock.recv(min(left, 1 << 16))):
                left -= len(piece)
            self._leave(sock)

    def stall(self) -> None:
        """Read nothing, and stay for a while."""
        sock = self._connect()
        self._stalled.append(sock)
        sock.sendall(self._request() * 10)
        if len(self._stalled) > STALLED:
            self._leave(self._stalled.popleft())

    def _leave(self, sock: socket.socket) -> None:
        leave = self.random.choice((reset, reset, socket.socket.close, _shut_and_close))
        leave(sock)

    @contextmanager
    def _connection(self, *, plain: bool = False) -> Iterator[socket.socket]:
        sock = self._connect(plain=plain)
        try:
            yield sock
        finally:
            sock.close()

    def _connect(self, *, plain: bool = False) -> socket.socket:
        sock = socket.socket()
        sock.settimeout(IMPATIENCE)
        if self.random.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            sock.connect(self.address)
            if self.trust is None or plain:
                return sock
            return self.trust.wrap_socket(sock, server_hostname=self.address[0])
        except BaseException:
            sock.close()
            raise

    def _new_connection(self, timeout: float) -> HTTPConnection:
        host, port = self.address
        if self.trust is None:
            return HTTPConnection(host, port, timeout=timeout)
        return HTTPSConnection(host, port, timeout=timeout, context=self.trust)

    def _request(self) -> bytes:
        lines = [f"{name}: {value}\r\n" for name, value in self._fields().items()]
        path = self.random.choice(self.site.paths)
        return f"GET {path} HTTP/1.1\r\nHost: x\r\n{''.join(lines)}\r\n".encode()

    def _fields(self) -> dict[str, str]:
        fields = {"Accept": "application/json"}
        if self.random.random() < 0.6:
            fields["Accept-Encoding"] = "gzip"
        if self.random.random() < 0.2:
            start = self.random.randrange(40_000)
            fields["Range"] = f"bytes={start}-{start + self.random.randrange(40_000)}"
        return fields

    def _check(
        self, path: str, response: HTTPResponse, body: bytes, fields: dict[str, str]
    ) -> None:
        """Check the content of a response that was received in full."""
        if response.status == 200 and not path.endswith("/"):
            plain = decoded(response.headers["Content-Encoding"], body)
            assert self.site.is_version(path, plain), f"not a version of {path}"
        elif response.status == 200:
            listing = json.loads(decoded(response.headers["Content-Encoding"], body))
            assert {entry["name"] for entry in listing["entries"]} <= self.site.names
        elif response.status == 206 and not path.endswith("/"):
            match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers["Content-Range"])
            assert match, response.headers["Content-Range"]
            start, last, total = map(int, match.groups())
            assert len(body) == last + 1 - start
            assert self.site.is_part(path, body, start, total), f"not a part of {path}"


def _shut_and_close(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
    sock.close()

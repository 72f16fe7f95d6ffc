"""Users of the file server with passwords, and their requests."""

from __future__ import annotations

from base64 import b64encode
from threading import Event
from typing import TYPE_CHECKING, Any

from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from iobatch.httpd.authentication import Authentication


class Password:
    """Stands for the hash of a password, with a gate that a test opens."""

    def __init__(self, password: bytes, *, is_open: bool = True) -> None:
        self._password = password
        self.gate = Event()
        if is_open:
            self.gate.set()
        # The passwords that were compared, and exceptions to raise instead.
        self.compared: list[bytes] = []
        self.errors: list[Exception] = []

    def matches(self, password: bytes) -> bool:
        self.compared.append(password)
        assert self.gate.wait(PATIENCE)
        if self.errors:
            raise self.errors.pop()
        return password == self._password


def users(*passwords: Password) -> Any:
    """Return users u0, u1, ... with these passwords."""
    return {b"u%d" % i: password for i, password in enumerate(passwords)}


def basic(credentials: str) -> str:
    return f"Basic {b64encode(credentials.encode()).decode()}"


def request(credentials: str, target: str = "/1") -> bytes:
    line = f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {basic(credentials)}\r\n\r\n"
    return line.encode()


def verify(users: Authentication, credentials: str) -> int | None:
    """Return the result for credentials, after the thread has ended."""
    value = basic(credentials).encode()
    status = users.check(value)
    if status is None:
        users._thread.join(PATIENCE)
        status = users.check(value)
    return status

"""The file server: several clients, one of which meets the fault.

The server runs in this thread. Before each epoll_wait(2) of its loop the clients, whose calls have
no faults, read what has arrived and send their next requests. After each fault:

- each response that a client gets whole is right: the content of the file or range, in the coding
  that its head names, or the page of an error that the fault explains, for one request at most;
- at most one connection ends early;
- the next client gets everything byte-identical;
- the log has whole lines;
- the server stops when it is asked to.
"""

from __future__ import annotations

import errno
import gzip
import re
import socket
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from iobatch.httpd import output, server as httpd_server
from iobatch.httpd.accesslog import AccessLog
from iobatch.httpd.output import Output, open_log
from tests.faults.harness import Run, scenario
from tests.faults.tls import TLSClient, contexts
from tests.support.batches import data
from tests.support.http import Response, split
from tests.support.httpd import Epoll, new_server, prose
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    from iobatch.httpd.server import Server

# The seconds of a tick of the server, which usually are one.
TICK = 0.02
# The clients give up when the loop has waited this number of times in vain.
MAX_IDLE = 100

FILES = {
    "/small.bin": data(100, 1),
    "/medium.bin": data(20_000, 2),
    "/large.bin": data(600_000, 3),
    "/text.txt": prose(30_000),
    "/both.txt": prose(5_000, 1),
    "/folder/inner.txt": prose(500, 2),
}
LINE = re.compile(rb'127\.0\.0\.1 - - \[[^\]]+\] "[^"]*" \d{3} (\d+|-)')


def make_site(folder: Path) -> Path:
    """Make the served directory, once."""
    site = folder / "site"
    if not site.exists():
        for target, content in FILES.items():
            path = site / target[1:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (site / "both.txt.gz").write_bytes(gzip.compress(FILES["/both.txt"]))
        (site / "link.bin").symlink_to("small.bin")
    return site


class Client:
    """A client that sends its requests one after the other on one connection."""

    def __init__(self, address: Any, requests: list[tuple[str, str]], *, tls: bool) -> None:
        self.sock = socket.create_connection(address, PATIENCE)
        self.sock.setblocking(False)
        self.requests = requests
        self.sent = 0
        self.received = bytearray()
        self.responses: list[Response] = []
        self.ended = False
        self.tls = TLSClient(alpn=True) if tls else None

    def step(self) -> bool:
        """Do what can be done; return whether that is anything."""
        acted = False
        while not self.ended:
            try:
                piece = self.sock.recv(1 << 17)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            acted = True
            if not piece:
                self.ended = True
            elif self.tls is None:
                self.received += piece
            else:
                self.received += self.tls.decrypt(piece)
        if not self.ended:
            with suppress(OSError):
                acted |= self._send()
        return acted

    @property
    def done(self) -> bool:
        return self.ended or len(self.responses) == len(self.requests)

    def _send(self) -> bool:
        """Take a whole response, and send the next request after it."""
        if self.sent > len(self.responses) and self._take():
            return True
        raw = b""
        if self.sent == len(self.responses) and self.sent < len(self.requests):
            target, headers = self.requests[self.sent]
            raw = f"GET {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()
        if self.tls is not None:
            raw = self.tls.send(raw)
        if not raw:
            return False
        self.sent += self.tls is None or self.tls.established
        self.sock.send(raw)
        return True

    def _take(self) -> bool:
        ...

"""The file server: several clients, one of which meets the fault.

The server runs in this thread, by a clock that moves only when a wait ends without an event. Before
each epoll_wait(2) the clients, whose calls have no faults, read what has arrived and send their
next requests. After each fault:

- each response that a client gets whole is right: the content of the file, range or listing, in the
  coding that its head names, or one page of an error;
- at most one connection ends early, and none waits for ever;
- the next client gets everything right, and then the server stops as it was asked to;
- an error has the status that reports the errno of the fault;
- the log has exactly one line for each response, and at most one for a connection that ended early.
  Lines are missing only if the log could not be written.
"""

from __future__ import annotations

import gzip
import os
import socket
import ssl
import zlib
from collections import Counter
from contextlib import suppress
from functools import partial
from signal import SIGTERM
from time import time
from typing import TYPE_CHECKING, Any

import pytest

from iobatch.httpd.accesslog import AccessLog
from iobatch.httpd.output import STDERR, Output, open_log
from tests.faults.delivery import is_permanent
from tests.faults.harness import EVERY, Run, scenario
from tests.faults.shim import SIGNALS
from tests.faults.tls import TLSClient, contexts
from tests.support.batches import data
from tests.support.http import Response, split
from tests.support.httpd import Epoll, new_server, prose
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from iobatch.httpd.server import Server

# The most waits that end without an event, of a second each.
MAX_IDLE = 90

FILES = {
    "small.bin": data(100, 1),
    "medium.bin": data(20_000, 2),
    "large.bin": data(600_000, 3),
    "text.txt": prose(30_000),
    "both.txt": prose(5_000, 1),
    "folder/inner.txt": prose(500, 2),
}
GZIP = "Accept-Encoding: gzip\r\n"
# The target, more header fields, and the content; None: it is that of a clean run.
Request = tuple[str, str, bytes | None]
REQUESTS: list[Request] = [
    ("/small.bin", "", FILES["small.bin"]),
    ("/medium.bin", "", FILES["medium.bin"]),
    ("/large.bin", "", FILES["large.bin"]),
    ("/text.txt", GZIP, FILES["text.txt"]),
    ("/both.txt", GZIP, FILES["both.txt"]),
    ("/large.bin", "Range: bytes=1000-99999\r\n", FILES["large.bin"][1000:100_000]),
    ("/link.bin", "", FILES["small.bin"]),
    ("/", "", None),
    ("/folder/", GZIP, None),
    ("/folder/inner.txt", "", FILES["folder/inner.txt"]),
]
LINE = '127.0.0.1 - - [01/Jan/1970:00:00:00 +0000] "GET {} HTTP/1.1" {} {}\n'
# The statuses that report errors of the file system; 500 reports the others.
STATUS_OF_ERROR = {"EINVAL": 400, "EMFILE": 503}

# The handlers of the program raise nothing.
HANDLERS = tuple((None, kind) for kind in SIGNALS)

# The bodies of a clean run that FILES does not have.
clean_bodies: dict[str, bytes] = {}


def make_site(folder: Path) -> Path:
    """Make the served directory, once; return it."""
    site = folder / "site"
    if not site.exists():
        for name, content in FILES.items():
            path = site / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (site / "both.txt.gz").write_bytes(gzip.compress(FILES["both.txt"]))
        (site / "link.bin").symlink_to("small.bin")
    return site


class Client:
    """A client that sends its requests one after the other on one connection."""

    def __init__(self, address: Any, requests: list[Request], *, tls: bool = False) -> None:
        self.sock = socket.create_connection(address, PATIENCE)
        self.sock.setblocking(False)
        self.requests = requests
        self.responses: list[Response] = []
        self.ended = False
        self._sent = 0
        self._received = bytearray()
        self._tls = TLSClient() if tls else None
        self._begin()

    @property
    def done(self) -> bool:
        """Whether nothing more is to be expected."""
        return self.ended or len(self.responses) == len(self.requests)

    def step(self) -> bool:
        """Read what has arrived, and send what that allows; return whether anything arrived."""
        arrived = False
        while not self.ended:
            try:
                piece = self.sock.recv(1 << 18)
            except BlockingIOError:
                break
            except ConnectionResetError:
                piece = b""
            arrived = True
            self.ended = not piece
            self._received += piece if self._tls is None else self._tls.decrypt(piece)
        if arrived:
            self._take()
        if not self.ended:
            self._begin()
        return arrived

    def _take(self) -> None:
        """Take a response that has arrived whole."""
        with suppress(AssertionError, ValueError):  # it is incomplete
            [response] = split(bytes(self._received))
            self.responses.append(response)
            self._received.clear()

    def _begin(self) -> None:
        """Send the next request if the response before has arrived, and what TLS has to send."""
        raw = b""
        if self._sent == len(self.responses) < len(self.requests):
            target, fields, _ = self.requests[self._sent]
            raw = f"GET {target} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode()
        if self._tls is None:
            self._sent += bool(raw)
        else:
            with suppress(ssl.SSLWantReadError):
                self._sent += bool(self._tls.tls.write(raw)) if raw else 0
            raw = self._tls.outgoing.read()
        with suppress(ConnectionError):
            self.sock.send(raw)

    @property
    def lines(self) -> list[str]:
        """The lines of the log for the responses, and for one that was cut off after its head."""
        lines = [
            LINE.format(target, response.status, len(response.body) or "-")
            for (target, _, _), response in zip(self.requests, self.responses, strict=False)
        ]
        return lines + self._cut() if self._received else lines

    @property
    def lines_without_head(self) -> list[str]:
        """The line for a response that was cut off before its head, if it was begun at all."""
        return [] if self._received else self._cut()

    def _cut(self) -> list[str]:
        if not self.ended or len(self.responses) == len(self.requests):
            return []
        target, fields, _ = self.requests[len(self.responses)]
        _, _, body = bytes(self._received).partition(b"\r\n\r\n")
        return [LINE.format(target, 206 if "Range" in fields else 200, len(body) or "-")]

    def check(self, *, failed: int, clean: bool) -> set[str]:
        """Check the responses; return the targets of those that are errors, and "" for a cut.

        Args:
            failed: the status of an error.
            clean: listings are complete: an entry that can't be examined is left out.

        """
        troubles = {""} if self.ended else set()
        for (target, fields, content), response in zip(self.requests, self.responses, strict=False):
            if response.status == failed:
                troubles.add(target)
                continue
            assert response.status == (206 if "Range" in fields else 200)
            body = response.body
            coding = response.headers.get("Content-Encoding")
            if coding is not None:
                assert (coding, fields) == ("gzip", GZIP)
                body = zlib.decompress(body, wbits=31)
            expected = clean_bodies.setdefault(target, body) if content is None else content
            if content is None and not clean and len(body) < len(expected):
                assert body.endswith(b"</html>\n")
                continue
            assert body == expected, f"{target}: {len(body)} bytes in place of {len(expected)}"
        return troubles


class Stage(Epoll):
    """The clients and the clock, which the server's loop runs before it waits."""

    def __init__(
        self, run: Run, server: Server, script: Iterator[list[Client]], log: Output
    ) -> None:
        super().__init__(server)
        self.run = run
        self.script = script
        self.outputs = (log, STDERR)
        self.clients: list[Client] = next(script)
        self.now = 1000.0
        self.idle = 0

    def monotonic(self) -> float:
        return self.now

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        for each in self.outputs:
            if each._thread.is_alive():
                each._thread.join(PATIENCE)
        with self.run.paused():
            acted = any([client.step() for client in self.clients])  # noqa: C419 # all of them act
            if all(client.done for client in self.clients):
                self.clients = next(self.script, [])
        if acted or timeout == 0:
            return super().poll(0)
        # The kernel may delay a segment without TCP_NODELAY by up to 40 milliseconds.
        events = super().poll(0.05)
        if not events:
            self.idle += 1
            assert self.idle < MAX_IDLE, "a client waits for ever"
            self.now += timeout or 1
        return events


def serve(run: Run, requests: list[Request], *, tls: bool = False) -> None:
    """Serve several clients, then one more, and stop."""
    path = run.folder / "log"
    path.unlink(missing_ok=True)
    fd = open_log(str(path))
    log = Output(fd, str(path))
    settings = {"tls": contexts()[0]} if tls else {}
    with new_server(make_site(run.folder), log=AccessLog(log, combined=False), **settings) as (
        server,
        address,
        ours,
    ):
        new_client = partial(Client, address, tls=tls)
        first: list[Client] = []
        last: list[Client] = []
        was_met = False

        def script() -> Iterator[list[Client]]:
            nonlocal was_met
            first.extend(map(new_client, (requests, requests[::-1])))
            yield first
            was_met = run.shim.met > 0
            stage.now += 2  # nothing that is cached is fresh
            last.append(new_client(requests[::3]))
            yield last
            ours.send(bytes([SIGTERM]))

        stage = Stage(run, server, script(), log)
        with pytest.MonkeyPatch.context() as patch:
            for module in ("server", "directories"):
                patch.setattr(f"iobatch.httpd.{module}.monotonic", stage.monotonic)
            patch.setattr("iobatch.httpd.output.RETRY_DELAY", 0)
            patch.setattr("iobatch.httpd.accesslog.time", lambda: 0)
            # A file that was changed within a second is read for each use.
            patch.setattr("iobatch.httpd.files.time", lambda: time() + 10)
            with run.counting():
                run_server(run, server)
                server.close()
    os.close(fd)
    for client in first + last:
        client.sock.close()
    check(run, first, last, path.read_text(), was_met=was_met)


def run_server(run: Run, server: Server) -> None:
    """Run the server; run it again if the epoll_wait(2) of its loop fails."""
    while True:
        try:
            server.run()
        except OSError as exc:
            if not (run.is_fault(exc) and run.fault and run.fault.call == "epoll_wait"):
                raise
        else:
            break


def check(run: Run, first: list[Client], last: list[Client], log: str, *, was_met: bool) -> None:
    """Check all responses and the log.

    Args:
        run: the run.
        first: clients during which the fault usually happens.
        last: the client after them.
        log: the content of the log.
        was_met: whether the fault happened before the last client.

    """
    clean = run.fault is None
    failed = STATUS_OF_ERROR.get(run.fault.kind, 500) if run.fault else 0
    troubles = set().union(*(client.check(failed=failed, clean=clean) for client in first))
    later = set().union(*(client.check(failed=failed, clean=clean or was_met) for client in last))
    assert len(troubles | later) <= (not clean), f"requests have failed: {troubles | later}"
    assert not (was_met and later), f"requests after the fault have failed: {later}"
    assert sum(client.ended for client in first) <= 1
    found = Counter(log.splitlines(keepends=True))
    expected = Counter(line for client in first + last for line in client.lines)
    optional = Counter(line for client in first + last for line in client.lines_without_head)
    wrong = found - expected - optional
    assert not wrong, f"lines of the log are wrong: {wrong}"
    lost = run.fault is not None and run.fault.call == "write" and is_permanent(run.fault)
    must = last if was_met and lost else [] if lost else first + last
    missing = Counter(line for client in must for line in client.lines) - found
    assert not missing, f"lines of the log are missing: {missing}"


# A failed close(2) loses nothing that is served.
@scenario(silent=EVERY, spared=HANDLERS)
def serve_plain(run: Run) -> None:
    serve(run, REQUESTS)


# Below TLS files are found and logged in the same way.
@scenario(
    silent=EVERY,
    spared=(
        *HANDLERS,
        *((call, None) for call in ("open", "fstat", "getdents", "dup", "write", "ioctl")),
    ),
)
def serve_tls(run: Run) -> None:
    serve(run, REQUESTS[::3], tls=True)

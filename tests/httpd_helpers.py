"""What the tests of the file server share: a folder to serve, and ways to ask for its files."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.helpers import PATIENCE, ROOT, data, receive

HTTPD = ROOT / "examples" / "httpd"
sys.path.insert(0, str(HTTPD))

# The server's modules see each other as siblings, and so they are seen here.
import outlet  # noqa: E402
from connection import REST  # noqa: E402
from files import Files  # noqa: E402
from server import REST_TICK, Server, listen  # noqa: E402
from settings import Settings  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from connection import Connection

    Address = tuple[str, int]

SECRET = b"not for you"
MODIFIED = 1_700_000_000


class Response(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


# Setting up


@pytest.fixture(name="site")
def make_site(tmp_path: Path) -> Path:
    """Make a folder to serve, with a secret beside it."""
    (tmp_path / "secret").write_bytes(SECRET)
    root = tmp_path / "site"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "bare").mkdir()
    (root / ".git").mkdir()
    (root / ".git" / "config").write_bytes(SECRET)
    (root / ".hidden").write_bytes(SECRET)
    (root / "index.html").write_bytes(b"<h1>home</h1>")
    (root / "sub" / "index.html").write_bytes(b"<h1>sub</h1>")
    (root / "sub" / "deep" / "file").write_bytes(b"deep")
    (root / "a b\xfc?.txt").write_bytes(b"odd")
    for size in (0, 1, 1024, 32768, 65536, 1 << 20):
        (root / str(size)).write_bytes(data(size, seed=size))
        os.utime(root / str(size), (MODIFIED, MODIFIED))
    return root


@contextmanager
def serving(
    directory: Path, *, listing: bool = True, **settings: Any
) -> Iterator[tuple[Server, Address]]:
    """Run a server in a thread."""
    files = Files(directory, listing=listing)
    listener = listen("127.0.0.1", 0)
    told, stop = socket.socketpair()
    server = Server(listener, files, Settings(**settings), stop)
    address = listener.getsockname()
    thread = Thread(target=server.run)
    thread.start()
    try:
        yield server, address
    finally:
        told.send(b"\0\0")  # at once
        thread.join(PATIENCE)
        assert not thread.is_alive()
        server.close()
        told.close()
        files.close()


@pytest.fixture(name="address")
def serve_site(site: Path) -> Iterator[Address]:
    """Serve the folder."""
    with serving(site) as (_, address):
        yield address


@contextmanager
def program(
    directory: Path, *options: str, **kwargs: object
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the server as a program of its own; give the process and the address it says."""
    with subprocess.Popen(
        [sys.executable, HTTPD, directory, "--port", "0", *options],
        stdout=subprocess.PIPE,
        text=True,
        **kwargs,
    ) as process:
        try:
            assert process.stdout is not None
            match = re.search(r" on (\S+) \(", process.stdout.readline())
            assert match
            yield process, match[1]
        finally:
            process.terminate()


class Clock:
    """The time by which rates are kept."""

    now = 1000.0


@pytest.fixture(name="clock")
def make_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let the time of rates stand still."""
    clock = Clock()
    monkeypatch.setattr(outlet, "monotonic", lambda: clock.now)
    return clock


def keeps_rate(connection: Connection, theirs: socket.socket, clock: Clock, rate: int) -> None:
    """Take what a connection sends in some time, and see that it is what the rate allows."""
    theirs.setblocking(False)
    received = []
    for i in range(1, 1 + int(min(100, 800_000 / rate) / REST_TICK)):
        assert connection.step(clock.now) == REST
        assert connection.deadline > clock.now
        received.append(0)
        with suppress(BlockingIOError):
            received[-1] = len(theirs.recv(1 << 20))
        clock.now += REST_TICK
        # A burst more, as it began with one.
        assert sum(received) <= rate * (i * REST_TICK + 2 * outlet.BURST) + 1
    assert max(received) <= 2 * outlet.BURST * rate
    # A burst less, as a handshake may just have used one up.
    assert sum(received) >= rate * (i * REST_TICK - outlet.BURST)


def address_of(url: str) -> Address:
    """Return the address in what the program says."""
    match = re.fullmatch(r"https?://(.+):(\d+)/", url)
    assert match
    return match[1].strip("[]"), int(match[2])


def browse(url: str, profile: Path) -> str:
    """Let a browser load a page, and return what it has become."""
    chromium = tool("chromium", "chromium")
    result = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            f"--user-data-dir={profile}",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return result.stdout


def tool(name: str, package: str) -> str:
    """Return the path of a program, or skip the test."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is missing: install {package}")
    return path


def split(raw: bytes, *methods: str) -> list[Response]:
    """Cut what a server sent into responses, to GET if not said otherwise."""
    found = []
    while raw:
        head, end, raw = raw.partition(b"\r\n\r\n")
        assert end, f"cut off: {head!r}"
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        method = methods[len(found)] if len(found) < len(methods) else "GET"
        if method == "HEAD" or status.split()[1] in {"204", "304"}:
            body = b""
        elif headers.get("Transfer-Encoding") == "chunked":
            body, raw = unchunk(raw)
        else:
            size = int(headers["Content-Length"])
            assert len(raw) >= size, "cut off"
            body, raw = raw[:size], raw[size:]
        found.append(Response(int(status.split()[1]), headers, body))
    return found


def unchunk(raw: bytes) -> tuple[bytes, bytes]:
    """Return the content of chunks, and what is behind them."""
    content = bytearray()
    while True:
        line, end, raw = raw.partition(b"\r\n")
        assert end, "cut off"
        size = int(line, 16)
        assert raw[size : size + 2] == b"\r\n", "cut off"
        content += raw[:size]
        raw = raw[size + 2 :]
        if not size:
            return bytes(content), raw


def tag_of(path: Path) -> str:
    """Return the entity tag of a file."""
    status = path.stat()
    return f'"{status.st_ctime_ns:x}-{status.st_size:x}"'


# In headers it stands for the tag of a file that isn't there yet.
TAG = '"TAG"'


def tagged(headers: dict[str, str], path: Path) -> dict[str, str]:
    """Put a file's tag where it is meant."""
    tag = tag_of(path).strip('"')
    return {name: value.replace("TAG", tag) for name, value in headers.items()}


def exchange(address: Address, request: bytes) -> bytes:
    """Send requests, say that there are no more, and return all that comes back."""
    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    """Read up to a clean end: a reset raises."""
    received = bytearray()
    while piece := sock.recv(1 << 16):
        received += piece
    return bytes(received)


def fills_until_reset(sock: socket.socket, piece: bytes = bytes(1000)) -> bool:
    """Send without reading; tell whether the other side ended that."""
    try:
        for _ in range(10_000):
            sock.sendall(piece * 1000)
    except ConnectionError:
        return True
    return False


def receive_head(sock: socket.socket) -> bytes:
    """Read the head of a response, and no more."""
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        head += receive(sock, 1)
    return bytes(head)


def get(
    address: Address, target: str, method: str = "GET", version: str = "1.1", **headers: str
) -> Response:
    """Send one request with a target as it is; a header's name may have "_" for "-"."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    request = f"{method} {target} HTTP/{version}\r\nHost: here\r\n{lines}\r\n"
    [response] = split(exchange(address, request.encode("latin-1")), method)
    return response


def run_httpd(*args: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, HTTPD, *args],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **kwargs,
    )

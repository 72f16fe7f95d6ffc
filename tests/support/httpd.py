"""The file server in tests: run in a thread or as a program, and asked for files."""

from __future__ import annotations

import fcntl
import os
import random
import re
import socket
import ssl
import struct
import subprocess
import sys
import termios
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM
from threading import Thread
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from iobatch.httpd.cache import FileCache
from iobatch.httpd.conditions import file_tag
from iobatch.httpd.connection import DEFERRED, Connection
from iobatch.httpd.fallbacks import page_names
from iobatch.httpd.files import Files
from iobatch.httpd.listeners import listen
from iobatch.httpd.process import SWITCH_INTERVAL
from iobatch.httpd.server import Server
from iobatch.httpd.settings import Settings
from tests.support.http import Response, split
from tests.support.programs import environment
from tests.support.sockets import PATIENCE, receive, stream_pair

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import trustme
    from typing_extensions import Buffer

    from iobatch.httpd.files import ServedFile

Address = tuple[str, int]

# Runs the server as a program.
COMMAND = (sys.executable, "-m", "iobatch.httpd")
# The content of files that must not be served.
SECRET = b"not for you"
# When the files of the served directory were last modified, in seconds since 1970.
MODIFIED = 1_700_000_000
# Requests for a file of one byte, and for one of 1 MiB.
SMALL = b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = b"GET /1048576 HTTP/1.1\r\nHost: x\r\n\r\n"


@contextmanager
def new_server(
    directory: Path,
    *,
    listing: bool = True,
    compress: bool = True,
    clean_urls: bool = False,
    follow_links: bool = False,
    dot_files: bool = False,
    spa: str = "",
    **settings: Any,
) -> Iterator[tuple[Server, Address, socket.socket]]:
    """Yield a server that does not run, its address, and the socket that signals it."""
    served = Files(
        directory,
        listing=listing,
        compress=compress,
        clean_urls=clean_urls,
        follow_links=follow_links,
        dot_files=dot_files,
    )
    files = FileCache(served, page_names(served, spa) if spa else ())
    listener = listen("127.0.0.1", 0)
    ours, stop = socket.socketpair()
    server = Server(listener, files, Settings(**settings), stop)
    try:
        yield server, listener.getsockname(), ours
    finally:
        server.close()
        ours.close()
        files.close()


@contextmanager
def serving(directory: Path, **settings: Any) -> Iterator[tuple[Server, Address]]:
    """Run a server in a thread; yield the server and its address. Arguments: as for new_server."""
    with new_server(directory, **settings) as (server, address, ours):
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL)
        thread = Thread(target=server.run)
        thread.start()
        try:
            yield server, address
        finally:
            sys.setswitchinterval(interval)
            ours.send(bytes([SIGTERM, SIGTERM]))  # the second one stops the server at once
            thread.join(PATIENCE)
            assert not thread.is_alive()


class Epoll:
    """Replaces a server's epoll object, which it calls."""

    def __init__(self, server: Server) -> None:
        self._epoll = server._epoll
        server._epoll = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        return self._epoll.poll(timeout)

    def register(self, fd: int, events: int) -> None:
        self._epoll.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)


def listing_of(
    files: FileCache,
    target: bytes,
    now: float,
    headers: Mapping[bytes, bytes] = MappingProxyType({}),
) -> ServedFile:
    """Return the listing for a request, after all work on it."""
    page = files.get(target, now, headers)
    while page is None:
        files.listings.build(now)
        page = files.get(target, now, headers)
    return page


class _Client(socket.socket):
    """A client whose bytes have arrived at its peer, which reads none meanwhile, after sendall().

    TCP may deliver them later than that, even over loopback.
    """

    peer: socket.socket

    def sendall(self, data: Buffer, flags: int = 0, /) -> None:
        expected = self._count_unread() + memoryview(data).nbytes
        super().sendall(data, flags)
        while self._count_unread() < expected:
            os.sched_yield()

    def _count_unread(self) -> int:
        """Return the number of bytes in the peer's receive buffer."""
        return int(struct.unpack("i", fcntl.ioctl(self.peer, termios.FIONREAD, bytes(4)))[0])


@contextmanager
def open_connection(
    directory: Path, kind: str = "unix", *, now: float = 0.0, **settings: Any
) -> Iterator[tuple[Connection, socket.socket]]:
    """Yield a connection that no server runs, and its client's blocking socket.

    Args:
        directory: the directory to serve.
        kind: of the sockets, as for stream_pair; "small buffers": TCP with small buffers.
        now: the time at which the connection begins.
        settings: fields of Settings.

    """
    files = FileCache(Files(directory))
    configured = Settings(**settings)
    small = kind == "small buffers"
    with stream_pair("tcp4" if small else kind, buffers=4096 if small else None) as (ours, theirs):
        ours.setblocking(False)
        connection = Connection(ours, files, configured, now + configured.timeout)
        with _Client(fileno=theirs.detach()) as client:
            client.peer = ours
            try:
                yield connection, client
            finally:
                connection.close()
                files.close()


def run_step(connection: Connection, now: float) -> int:
    """Run a step of a connection, and the work that it defers; return the result."""
    while (events := connection.step(now)) == DEFERRED:
        pass
    return events


@contextmanager
def program(
    directory: Path, *options: str, **kwargs: object
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the server as a program; yield its process and the URL that it prints.

    If the standard output is the log, the URL is on the standard error output.
    """
    streams = {"stdout": subprocess.PIPE}
    log_is_output = "--log" in options and not {"none", "--log-file"} & {*options}
    if log_is_output:
        streams["stderr"] = subprocess.PIPE
    with subprocess.Popen(
        [*COMMAND, directory, "--port", "0", *options], text=True, **{**streams, **kwargs}
    ) as process:
        try:
            output = process.stderr if log_is_output else process.stdout
            assert output is not None
            match = re.search(r" on (\S+) \(", output.readline())
            assert match
            yield process, match[1]
        finally:
            process.terminate()


def run_httpd(*args: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run the server as a program that ends by itself."""
    return subprocess.run(
        [*COMMAND, *args],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **{"env": environment(), **kwargs},
    )


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def started_workers(process: subprocess.Popen[Any], number: int) -> list[int]:
    """Return the process ids of a server's workers when all have started.

    The URL is printed, and the first worker serves, before the last one is forked.
    """
    while len(workers := children(process.pid)) < number:
        assert process.poll() is None
        os.sched_yield()
    assert len(workers) == number
    return workers


def address_of(url: str) -> Address:
    """Return the address in a URL."""
    match = re.fullmatch(r"https?://(.+):(\d+)/", url)
    assert match
    return match[1].strip("[]"), int(match[2])


class Keys:
    """A certificate for 127.0.0.1 and its key, in files."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        self._authority = authority
        issued = authority.issue_cert("127.0.0.1")
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"
        for blob in issued.cert_chain_pems:
            blob.write_to_path(self.certificate, append=True)
        issued.private_key_pem.write_to_path(self.key)

    @property
    def client(self) -> ssl.SSLContext:
        """A new context of a client that trusts the certificate."""
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        return context


def prose(nbytes: int, seed: int = 0) -> bytes:
    """Return text that gzip compresses to a third to a half of its size."""
    words = [random.Random(i).randbytes(3).hex().encode() for i in range(500)]
    rng = random.Random(seed)
    text = b" ".join(rng.choices(words, k=nbytes // 7 + 1))
    return text[:nbytes]


def etag_of(path: Path) -> str:
    """Return the entity tag of a file."""
    return f'"{file_tag(path.stat())}"'


# Stands for a file's entity tag in the parameters of a test, which exist before the file does.
TAG = '"TAG"'


def replace_tag(headers: dict[str, str], path: Path) -> dict[str, str]:
    """Return header fields with TAG replaced by a file's entity tag."""
    tag = etag_of(path).strip('"')
    return {name: value.replace("TAG", tag) for name, value in headers.items()}


def show_headers(value: object) -> str | None:
    """Return the id of a test's parameter that is a dict of header fields; None: the default."""
    if not isinstance(value, dict):
        return None
    return ", ".join(f"{name.replace('_', '-')}: {content}" for name, content in value.items())


@contextmanager
def slow_client(address: Address) -> Iterator[socket.socket]:
    """Connect with a small receive buffer: a large response waits until the client reads."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(PATIENCE)
        sock.connect(address)
        yield sock


def get(
    address: Address, target: str, method: str = "GET", version: str = "1.1", **headers: str
) -> Response:
    """Send one request, and return its response.

    Args:
        address: the server's.
        target: the request target, sent unchanged.
        method: of the request.
        version: of HTTP.
        headers: header fields; a name has "_" in place of "-".

    """
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    request = f"{method} {target} HTTP/{version}\r\nHost: here\r\n{lines}\r\n"
    [response] = split(exchange(address, request.encode("latin-1")), method)
    return response


def exchange(address: Address, request: bytes) -> bytes:
    """Send requests and the end of stream, and return everything that the server sends."""
    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    """Read up to the end of stream; a reset raises ConnectionResetError."""
    received = bytearray()
    while piece := sock.recv(1 << 16):
        received += piece
    return bytes(received)


def receive_head(sock: socket.socket) -> bytes:
    """Read the head of a response, and nothing after it."""
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        head += receive(sock, 1)
    return bytes(head)


def send_until_reset(sock: socket.socket, piece: bytes = bytes(1000)) -> bool:
    """Send without reading; return whether the server ends the connection."""
    try:
        for _ in range(10_000):
            sock.sendall(piece * 1000)
    except ConnectionError:
        return True
    return False

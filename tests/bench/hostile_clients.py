"""The attacks of tests/bench/hostile.py: clients that cost a server more than they spend.

Each function runs in a process of its own until it is killed, and counts what it does. A connection
that the server closes is replaced by a new one.
"""

from __future__ import annotations

import os
import selectors
import socket
import ssl
from collections import deque
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from itertools import count, cycle
from random import Random
from threading import Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from tests.bench.httpd_processes import HOST, TIMEOUT
from tests.support.sockets import reset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.sharedctypes import Synchronized
    from pathlib import Path

KIB = 1024
# The smallest receive buffer: the server's kernel holds what a slow client doesn't read.
SMALL_BUFFER = 2 * KIB
# The depth of the directory that the links lead to.
DEPTH = 30
LINK_FOLDERS = 10


@frozen
class Target:
    """What is attacked.

    Attributes:
        port: the server's.
        home: the folder that holds the link `files` to the served directory.
        actions: the number of requests, connections or bytes of the attack so far.

    """

    port: int
    home: Path
    actions: Synchronized[int]

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        """Return a new connection."""
        sock = socket.socket()
        sock.settimeout(TIMEOUT)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            sock.connect((HOST, self.port))
        except OSError:
            sock.close()
            raise
        return sock

    def add(self, actions: int = 1) -> None:
        """Count actions."""
        with self.actions:
            self.actions.value += actions


def paced(rate: float) -> Iterator[int]:
    """Count from 0, at most `rate` numbers per second."""
    start = monotonic()
    for number in count():
        sleep(max(0, start + number / rate - monotonic()))
        yield number


def request(path: str, *fields: str) -> bytes:
    """Return a GET request."""
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: x", *fields, "", "")).encode()


# Many connections.


def slow_heads(target: Target, number: int) -> None:
    """Send a byte of a head that never ends each second, on each of many connections."""
    start = request("/small").rstrip() + b"\r\nX: "
    connections: dict[int, tuple[socket.socket, Iterator[int]]] = {}
    for turn in paced(number):
        with suppress(OSError):
            if turn % number not in connections:
                endless = (*start, *b"x" * 10_000)
                connections[turn % number] = target.connect(), iter(endless)
            sock, rest = connections.pop(turn % number)
            sock.send(bytes([next(rest)]))
            connections[turn % number] = sock, rest
            target.add()


def slow_readers(target: Target, number: int, asked: bytes, size: int) -> None:
    """Read a few bytes each second, on each of many connections."""
    connections: dict[int, socket.socket] = {}
    for turn in paced(number):
        with suppress(OSError):
            sock = connections.pop(turn % number, None)
            if sock is None:
                sock = target.connect(SMALL_BUFFER)
                sock.send(asked)
            if sock.recv(size):
                connections[turn % number] = sock
                target.add()


def resets(target: Target) -> None:
    """Open connections and reset each at once."""
    while True:
        with suppress(OSError):
            reset(target.connect())
            target.add()


def unread_pipelines(target: Target, number: int) -> None:
    """Pipeline requests until nothing more is taken, and read no answer."""
    asked = request("/small") * 1000
    stuck: deque[socket.socket] = deque(maxlen=number)
    while True:
        with suppress(OSError):
            sock = target.connect()
            stuck.append(sock)  # the oldest is closed, and reset as its answers are unread
            sock.settimeout(0.02)
            while True:
                target.add(sock.send(asked) * 1000 // len(asked))


@define(eq=False)
class _Stream:
    """Payloads that are sent again and again."""

    _payloads: Iterator[bytes] = field(converter=cycle)
    _rest: memoryview = field(init=False, default=memoryview(b""))

    def send(self, sock: socket.socket) -> int:
        """Send what the socket takes; return the number of payloads that this completes."""
        self._rest = self._rest or memoryview(next(self._payloads))
        self._rest = self._rest[sock.send(self._rest) :]
        return not self._rest


def flood(target: Target, number: int, payloads: Sequence[bytes]) -> None:
    """Send payloads without a pause on some connections, and discard all answers."""
    buffer = bytearray(256 * KIB)
    with selectors.DefaultSelector() as selector:

        def begin() -> None:
            sock = target.connect()
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, _Stream(payloads))

        for _ in range(number):
            begin()
        while True:
            for key, events in selector.select():
                sock = key.fileobj
                try:
                    if events & selectors.EVENT_READ and not sock.recv_into(
                        buffer, len(buffer), socket.MSG_TRUNC
                    ):
                        raise ConnectionResetError
                    if events & selectors.EVENT_WRITE:
                        target.add(key.data.send(sock))
                except BlockingIOError:
                    pass
                except OSError:
                    selector.unregister(sock)
                    sock.close()
                    begin()


def half_handshakes(target: Target, number: int, kept: int) -> None:
    """Begin TLS handshakes, some at a time, and stop each after the server's first messages."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=HOST)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    stopped: deque[socket.socket] = deque(maxlen=kept)
    with selectors.DefaultSelector() as selector:

        def begin() -> None:
            sock = target.connect()
            sock.send(hello)
            selector.register(sock, selectors.EVENT_READ)

        for _ in range(number):
            begin()
        while True:
            for key, _ in selector.select():
                selector.unregister(key.fileobj)
                stopped.append(key.fileobj)
                target.add()
                begin()


# Requests.


def ask_in_loop(target: Target, number: int, paths: Sequence[str]) -> None:
    """Ask for paths again and again on some connections, each in its own order."""

    def ask(seed: int) -> None:
        random = Random(seed)
        while True:
            connection = HTTPConnection(HOST, target.port, timeout=TIMEOUT)
            with suppress(OSError, HTTPException):
                while True:
                    path = random.choice(paths)
                    connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
                    connection.getresponse().read()
                    target.add()
            connection.close()

    threads = [Thread(target=ask, args=[seed]) for seed in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def change_tree(target: Target, number: int) -> None:
    """Change the served tree all the time, and ask for what changes."""
    names = [f"{i}.txt" for i in range(50)]
    paths = [f"/changing-{letter}/{name}" for letter in "ab" for name in ("", *names)]
    Thread(target=_change, args=[target.home, names]).start()
    ask_in_loop(target, number, paths)


def _change(home: Path, names: Sequence[str]) -> None:
    random = Random(1)
    content = random.randbytes(40 * KIB).hex().encode()
    link, folder, other = home / "link", home / "files/changing-a", home / "files/changing-b"
    trees = cycle(("tree-b", "tree-a"))

    def any_file() -> Path:
        return folder / random.choice(names)

    def switch_root() -> None:
        link.symlink_to(next(trees))
        link.rename(home / "files")

    def rename_folders() -> None:
        (folder if folder.exists() else other).rename(other if folder.exists() else folder)

    def replace() -> None:
        new = folder / ".new"
        new.write_bytes(content[: random.randrange(len(content))])
        new.rename(any_file())

    changes: Sequence[Callable[[], object]] = (
        replace,
        lambda: any_file().write_bytes(content),
        lambda: os.truncate(any_file(), random.randrange(len(content))),
        lambda: any_file().unlink(),
        rename_folders,
        switch_root,
    )
    for _ in paced(2000):
        with suppress(OSError):
            random.choice(changes)()


# Payloads.


def many_ranges(path: str) -> list[bytes]:
    """Return requests for hundreds of ranges, overlapping ones, and the most that is granted."""
    values = (
        ",".join(f"{i}-{i}" for i in range(0, 1000, 2)),
        ",".join(["0-"] * 500),
        ",".join(f"{i}-{i + 4000}" for i in range(0, 32_000, 1000)),
        ",".join(f"{i}-{i}" for i in range(0, 64, 2)),
    )
    return [request(path, f"Range: bytes={value}") for value in (*values, *[values[-1]] * 20)]


def huge_heads() -> list[bytes]:
    """Return heads as large as they may be, and larger ones."""
    fields = [f"X-{i}: {'x' * 250}" for i in range(97)]
    longest = request("/small", *fields)
    return [
        *[longest] * 4,
        request("/" + "a/" * 3900),
        request("/small", *(f"X-{i}: x" for i in range(1000))),
        longest[:-2] + b"Y: " + b"y" * (32 * KIB),
        b"GET /" + b"a" * (64 * KIB),
    ]


def garbage() -> list[bytes]:
    """Return bytes that are no requests."""
    random = Random(2)
    sizes = (1, 100, 10_000, 100_000)
    return [start + random.randbytes(n) for n in sizes for start in (b"", b"GET /", b"\r\n" * 99)]

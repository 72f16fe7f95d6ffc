"""What many clients at once cost the file server in memory."""

from __future__ import annotations

import re
import resource
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers import PATIENCE, data, receive
from tests.httpd_helpers import address_of, make_site, program, receive_head  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.httpd_helpers import Address


@pytest.fixture(name="descriptors")
def raise_limit() -> Iterator[int]:
    """Let this process have as many descriptors as it may; give how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident(pid: int) -> int:
    """Return how much memory a process has, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024


def connect(address: Address, request: bytes, number: int = 0, buffer: int = 0) -> socket.socket:
    """Ask for something, from one of a few addresses, as each has less than 30,000 ports."""
    sock = socket.socket()
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.settimeout(PATIENCE)
    sock.bind((f"127.0.0.{1 + number % 4}", 0))
    sock.connect(address)
    sock.sendall(request)
    return sock


def test_idle(site: Path, descriptors: int) -> None:
    """10,000 clients that have been served and stay connected take less than 8 KiB each."""
    request, content = b"GET /1024 HTTP/1.1\r\nHost: x\r\n\r\n", data(1024, seed=1024)
    count = min(descriptors // 2, 10_000)  # the server leaves the other half for files
    with program(site) as (process, url), ExitStack() as stack:
        address = address_of(url)
        before = 0
        for number in range(count):
            sock = stack.enter_context(connect(address, request, number))
            received = b""
            while not received.endswith(content):
                piece = sock.recv(4096)
                assert piece
                received += piece
            before = before or resident(process.pid)
        assert (resident(process.pid) - before) / count < 8 * 1024
        sock.sendall(request)
        assert sock.recv(12) == b"HTTP/1.1 200", "they are still served"


@pytest.mark.usefixtures("descriptors")
def test_slow_readers(site: Path) -> None:
    """500 clients that slowly read a large file take no more memory with time, and little."""
    with (site / "big").open("wb") as file:
        file.truncate(1 << 30)
    request = b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n"
    with program(site) as (process, url), ExitStack() as stack:
        address = address_of(url)
        clients = [
            stack.enter_context(connect(address, request, number, 1 << 16)) for number in range(500)
        ]
        sizes = []
        for _ in range(10):
            for sock in clients:
                receive(sock, 1 << 16)
            sizes.append(resident(process.pid))
        assert max(sizes) < 64 << 20
        assert max(sizes) - sizes[0] < 1 << 20


def test_few_descriptors(site: Path) -> None:
    """Clients never take the descriptors that files need."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))

    def ask(sock: socket.socket, name: str) -> bytes:
        sock.sendall(f"HEAD /{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return receive_head(sock)[:12]

    with program(site, preexec_fn=limit) as (_, url), ExitStack() as stack:
        address = address_of(url)
        clients = [stack.enter_context(connect(address, b"")) for _ in range(160)]
        answers = [ask(sock, "1") for sock in clients]
        assert answers == [b"HTTP/1.1 200"] * 150 + [b"HTTP/1.1 503"] * 10
        for name in ("0", "1024", "32768", "65536", "1048576", "index.html"):
            assert ask(clients[0], name) == b"HTTP/1.1 200"

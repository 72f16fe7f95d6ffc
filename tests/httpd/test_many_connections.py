"""The memory and descriptors that many connections take."""

from __future__ import annotations

import re
import resource
import socket
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.batches import data
from tests.support.httpd import Address, address_of, program, receive_head
from tests.support.sockets import PATIENCE, receive

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(name="descriptors")
def raise_limit() -> Iterator[int]:
    """Raise the soft limit of this process's descriptors to the hard one, and give the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident(pid: int) -> int:
    """Return the resident memory of a process, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024


def connect(address: Address) -> socket.socket:
    """Connect; closing the socket is a reset, after which its port is free at once."""
    sock = socket.create_connection(address, PATIENCE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return sock


def test_10000_idle_connections_take_less_than_8_kib_each(site: Path, descriptors: int) -> None:
    request, content = b"GET /1024 HTTP/1.1\r\nHost: x\r\n\r\n", data(1024, seed=1024)
    count = min(descriptors // 2, 10_000)  # the server leaves the other half for files
    with program(site) as (process, url), ExitStack() as stack:
        address = address_of(url)
        before = 0
        for _ in range(count):
            sock = stack.enter_context(connect(address))
            sock.sendall(request)
            received = b""
            while not received.endswith(content):
                piece = sock.recv(4096)
                assert piece
                received += piece
            before = before or resident(process.pid)
        assert (resident(process.pid) - before) / count < 8 * 1024
        sock.sendall(request)
        assert sock.recv(12) == b"HTTP/1.1 200", "an idle connection is still served"


@pytest.mark.usefixtures("descriptors")
def test_memory_of_500_slow_readers_is_bounded_and_does_not_grow(
    site: Path, tmp_path: Path
) -> None:
    """The clients use a Unix socket.

    Of TCP's memory, which all programs share, the loopback's large segments would take 2 MiB for
    each client.
    """
    with (site / "big").open("wb") as file:
        file.truncate(1 << 30)
    path = str(tmp_path / "socket")
    with program(site, "--unix", path) as (process, _), ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(500)]
        for sock in clients:
            sock.connect(path)
            sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        sizes = []
        for _ in range(10):
            for sock in clients:
                receive(sock, 1 << 16)
            sizes.append(resident(process.pid))
        assert max(sizes) < 64 << 20
        assert max(sizes) - sizes[0] < 1 << 20


@pytest.mark.parametrize(("descriptors", "served"), [(300, 150), (40, 20)])
def test_connections_never_take_the_descriptors_that_files_need(
    site: Path, descriptors: int, served: int
) -> None:
    """The connections that get 503 don't, either. No client is idle: each has begun a request."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    def ask(sock: socket.socket, name: str) -> bytes:
        sock.sendall(f"{name} HTTP/1.1\r\nHost: x\r\n\r\nHEAD /".encode())
        return receive_head(sock)[:12]

    with program(site, preexec_fn=limit) as (_, url), ExitStack() as stack:
        address = address_of(url)
        clients = []
        for _ in range(2 * served):
            clients.append(stack.enter_context(connect(address)))
            clients[-1].sendall(b"HEAD /")
        refused = served // 4
        answers = [ask(sock, "1") for sock in clients[: served + refused]]
        assert answers == [b"HTTP/1.1 200"] * served + [b"HTTP/1.1 503"] * refused
        for name in ("0", "1024", "32768", "65536", "1048576", "index.html"):
            assert ask(clients[0], name) == b"HTTP/1.1 200"

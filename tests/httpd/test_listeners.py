"""Listening sockets: addresses, Unix sockets, and their errors."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd import listeners
from iobatch.httpd.listeners import listen, urls
from tests.support.batches import data
from tests.support.httpd import LARGE, SMALL, address_of, get, program, run_httpd, started_workers
from tests.support.sockets import PATIENCE, receive

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def ipv6() -> None:
    """Skip the test if this machine has no IPv6 loopback."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6 loopback: enable it (net.ipv6.conf.lo)")


def test_url_names_an_address_that_a_browser_can_open() -> None:
    for host, shown in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "localhost")):
        with listen(host, 0) as sock:
            port = sock.getsockname()[1]
            assert urls(sock, secure=False)[0] == f"http://{shown}:{port}/"


def test_urls_of_all_addresses_are_those_of_the_local_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def found(*, ipv6: bool) -> list[str]:
        return ["192.0.2.2", "fd00::2"] if ipv6 else ["192.0.2.2"]

    monkeypatch.setattr(listeners, "network_addresses", found)
    with listen("127.0.0.1", 0) as sock:
        assert len(urls(sock, secure=False)) == 1
    with listen("0.0.0.0", 0) as sock:
        port = sock.getsockname()[1]
        assert urls(sock, secure=True)[1:] == [f"https://192.0.2.2:{port}/"]

    class AllOfIPv6:
        family = socket.AF_INET6

        def getsockname(self) -> tuple[str, int, int, int]:
            return "::", 8000, 0, 0

    assert urls(AllOfIPv6(), secure=False) == [
        "http://localhost:8000/",
        "http://192.0.2.2:8000/",
        "http://[fd00::2]:8000/",
    ]


def test_url_names_the_zone_of_an_ipv6_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zone is a number if its interface is gone."""

    class LinkLocal:
        family = socket.AF_INET6

        def getsockname(self) -> tuple[str, int, int, int]:
            return "fe80::1", 8000, 0, 1

    name = socket.if_indextoname(1)
    assert urls(LinkLocal(), secure=False) == [f"http://[fe80::1%25{name}]:8000/"]

    def no_interface(number: int) -> str:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

    monkeypatch.setattr(socket, "if_indextoname", no_interface)
    assert urls(LinkLocal(), secure=True) == ["https://[fe80::1%251]:8000/"]


@pytest.mark.usefixtures("ipv6")
def test_server_listens_on_ipv6(site: Path) -> None:
    with program(site, "--bind", "::1") as (_, url):
        assert url.startswith("http://[::1]:")
        assert get(address_of(url), "/1").status == 200


@pytest.mark.usefixtures("ipv6")
def test_all_addresses_of_ipv6_include_ipv4_and_log_names_it_so(site: Path) -> None:
    with program(site, "--bind", "::", "--log", "common", "--workers", "2") as (process, url):
        host, port = address_of(url)
        assert host == "localhost"
        for each in ("127.0.0.1", "::1"):
            assert get((each, port), "/1024").body == data(1024, seed=1024)
        process.terminate()
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        assert {line.partition(" ")[0] for line in lines} == {"127.0.0.1", "::1"}


@pytest.mark.parametrize("workers", ["1", "3"])
def test_unix_socket_replaces_an_unserved_one_and_is_removed_at_the_end(
    site: Path, tmp_path: Path, curl: str, workers: str
) -> None:
    """The socket of a running server is not replaced."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(os.fspath(path))
    with program(site, "--unix", str(path), "--workers", workers) as (process, url):
        assert url == f"http+unix:{path}"
        if workers != "1":
            started_workers(process, int(workers))
        result = subprocess.run(
            [curl, "-fsS", "-H", "Connection: close", "--unix-socket", path]
            + ["http://x/1024"] * 10,
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
        assert result.stdout == data(1024, seed=1024) * 10
        second = run_httpd(site, "--unix", path)
        assert second.returncode == 1
        assert second.stderr == f"iobatch.httpd: {path}: Address already in use\n"
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert not path.exists()


def test_ending_server_leaves_the_unix_socket_of_its_successor(site: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"

    def connect(stack: ExitStack) -> socket.socket:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.settimeout(PATIENCE)
        sock.connect(os.fspath(path))
        return sock

    with ExitStack() as stack, program(site, "--unix", str(path)) as (first, _):
        slow, idle = connect(stack), connect(stack)
        slow.sendall(LARGE * 20)
        receive(slow, 1)
        first.terminate()
        assert idle.recv(1) == b"", "the server has read the signal"
        with program(site, "--unix", str(path)) as (second, _):
            slow.close()
            assert first.wait(PATIENCE) == 0
            client = connect(stack)
            client.sendall(SMALL)
            assert receive(client, 12) == b"HTTP/1.1 200"
            second.terminate()
            assert second.wait(PATIENCE) == 0
    assert not path.exists()


def test_unix_socket_whose_backlog_is_full_is_in_use(site: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with ExitStack() as stack:
        listener, *clients = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in "1234")
        listener.bind(os.fspath(path))
        listener.listen(0)
        for sock in clients:
            sock.setblocking(False)
        while not clients.pop().connect_ex(os.fspath(path)):
            assert clients, "the backlog is full"
        result = run_httpd(site, "--unix", path)
    assert result.returncode == 1
    assert result.stderr == f"iobatch.httpd: {path}: Address already in use\n"


def test_file_that_is_no_socket_is_not_replaced(site: Path) -> None:
    result = run_httpd(site, "--unix", site / "1024")
    assert result.returncode == 1
    assert (site / "1024").read_bytes() == data(1024, seed=1024)


def test_address_that_cannot_be_bound_is_reported_in_one_line(site: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = str(sock.getsockname()[1])
        result = run_httpd(site, "--port", port)
        assert result.returncode == 1
        assert result.stderr == f"iobatch.httpd: 127.0.0.1 port {port}: Address already in use\n"
    for option, value in (("--bind", "192.0.2.1"), ("--bind", "x" * 64), ("--unix", "/x" * 100)):
        result = run_httpd(site, option, value, "--port", "0")
        assert result.returncode == 1
        assert re.fullmatch(rf"iobatch\.httpd: {value}( port 0)?: \w+ [\w ]+\n", result.stderr)

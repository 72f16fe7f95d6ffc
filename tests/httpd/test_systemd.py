"""The service manager: its listening socket, and notifications, by the variables that it sets."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd.systemd import inherited_listener, notify
from tests.support.httpd import (
    COMMAND,
    SMALL,
    address_of,
    get,
    program,
    receive_head,
    slow_client,
    started_workers,
)
from tests.support.programs import environment
from tests.support.sockets import PATIENCE, receive

if TYPE_CHECKING:
    from collections.abc import Iterator

# Passes a descriptor on to a program, in the same process, as the service manager does. The
# arguments are the descriptor, the number of sockets, and the command.
MANAGER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[2], LISTEN_FDNAMES="http")
os.execv(sys.argv[3], sys.argv[3:])
"""


def activation(sock: socket.socket, *args: str | Path, count: str = "1") -> list[str | Path]:
    """Return the command of a program that inherits a socket."""
    manager = [sys.executable, "-c", MANAGER, str(sock.fileno()), count]
    return [*manager, *COMMAND, *args]


@contextmanager
def activated(
    sock: socket.socket, *args: str | Path
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a program that inherits a socket; yield its process and the URL that it prints."""
    with subprocess.Popen(
        activation(sock, *args),
        pass_fds=[sock.fileno()],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        try:
            assert process.stdout is not None
            match = re.search(r" on (\S+) \(", process.stdout.readline())
            assert match
            yield process, match[1]
        finally:
            process.terminate()


def refusal(sock: socket.socket, *args: str | Path, count: str = "1") -> tuple[int, str]:
    """Return the status and the diagnostics of a program that refuses a socket."""
    result = subprocess.run(
        activation(sock, *args, count=count),
        pass_fds=[sock.fileno()],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=environment(),
    )
    return result.returncode, result.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_inherited_socket_is_served(site: Path, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
        with activated(sock, site, "--workers", workers) as (process, url):
            assert address_of(url) == address
            for _ in range(20):
                assert get(address, "/1").status == 200
            if workers == "2":
                started_workers(process, 2)
            process.terminate()
            assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("name", ["path", "abstract"])
def test_inherited_unix_socket_is_served_and_not_removed(
    site: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(path) if name == "path" else "")
        sock.listen()
        with activated(sock, site) as (process, url):
            shown = path if name == "path" else "@" + sock.getsockname()[1:].decode()
            assert url == f"http+unix:{shown}"
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect(sock.getsockname())
                client.sendall(SMALL)
                assert receive(client, 12) == b"HTTP/1.1 200"
                receive_head(client)
            process.terminate()
            assert process.wait(PATIENCE) == 0
    assert path.exists() is (name == "path")


def test_inherited_socket_neither_blocks_nor_is_passed_on_to_other_programs(site: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as sock,
        activated(sock, site) as (process, _),
    ):
        # Linux shows the flags of a descriptor and of the open file in one number (proc(5)).
        info = Path(f"/proc/{process.pid}/fdinfo/3").read_text()
        match = re.search(r"^flags:\s*(\d+)$", info, re.MULTILINE)
        assert match
        flags = int(match[1], 8)
        assert flags & os.O_CLOEXEC
        assert flags & os.O_NONBLOCK


@pytest.mark.parametrize("pid", ["1", "", "own"])
def test_variables_for_another_process_are_ignored_and_all_are_removed(
    pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid == "own" else pid)
    monkeypatch.setenv("LISTEN_FDS", "0" if pid == "own" else "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "http")
    assert inherited_listener() is None
    assert not any(name.startswith("LISTEN_") for name in os.environ)


@pytest.mark.parametrize("option", ["--bind", "--port", "--unix"])
def test_option_for_the_address_is_refused_with_an_inherited_socket(
    site: Path, option: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        status, message = refusal(sock, site, option, "0")
    assert (status, message) == (2, f"iobatch.httpd: {option}: not allowed with LISTEN_FDS\n")


def test_several_inherited_sockets_are_refused(site: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        status, message = refusal(sock, site, count="2")
    expected = "iobatch.httpd: LISTEN_FDS: one socket is expected, not several\n"
    assert (status, message) == (2, expected)


@pytest.mark.parametrize("kind", ["connected", "datagram", "not listening"])
def test_inherited_socket_that_does_not_listen_is_refused(site: Path, kind: str) -> None:
    family = socket.AF_UNIX if kind == "connected" else socket.AF_INET
    type_ = socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM
    with socket.socket(family, type_) as sock:
        status, message = refusal(sock, site)
    expected = "iobatch.httpd: LISTEN_FDS: not a listening stream socket\n"
    assert (status, message) == (2, expected)


def test_inherited_descriptor_that_is_no_socket_is_refused(site: Path) -> None:
    with (site / "1").open() as file, socket.socket() as sock:
        os.dup2(file.fileno(), sock.fileno())
        status, message = refusal(sock, site)
    expected = "iobatch.httpd: LISTEN_FDS: Socket operation on non-socket\n"
    assert (status, message) == (2, expected)


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """Yield the socket that receives notifications."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.bind(address)
        yield sock


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("name", ["path", "abstract"])
def test_readiness_and_the_beginning_of_a_stop_are_notified_once(
    site: Path, tmp_path: Path, workers: str, name: str
) -> None:
    """A client is accepted when the program is ready, and one is waited for when it stops."""
    path = os.fspath(tmp_path / "notify")
    shown = path if name == "path" else f"@{path}"
    with manager(path if name == "path" else f"\0{path}") as sock:
        variables = environment(NOTIFY_SOCKET=shown)
        with program(site, "--workers", workers, env=variables, stderr=subprocess.DEVNULL) as (
            process,
            url,
        ):
            assert sock.recv(100) == b"READY=1"
            with slow_client(address_of(url)) as client:
                client.sendall(b"GET /1048576 HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
                receive(client, 1)
                process.terminate()
                assert sock.recv(100) == b"STOPPING=1"
                assert process.poll() is None
            assert process.wait(PATIENCE) == 0
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(100)


def test_notification_that_nobody_receives_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in (os.fspath(tmp_path / "nothing"), "x" * 200, "vsock:2:1"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1")
    path = os.fspath(tmp_path / "notify")
    with manager(path) as sock:
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        for _ in range(10_000):  # its queue is full; none waits
            notify("READY=1")
        assert sock.recv(100) == b"READY=1"

"""The example programs as processes, and standard clients for the servers among them."""

from __future__ import annotations

import re
import resource
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.programs import ROOT, environment, tool
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXAMPLES = ROOT / "examples"
# What a server may report after a client has reset its connection.
RESET = r"connection lost: (\[Errno 104\]|ConnectionResetError\(104,) '?Connection reset by peer.*"


def line_count(program: str) -> int:
    return len((EXAMPLES / program).read_text().splitlines())


@contextmanager
def running(
    program: str,
    *arguments: str | Path,
    reports: str = RESET,
    status: int = -signal.SIGTERM,
    cwd: Path = ROOT,
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a server; give its process and its port, which ends the first line that it prints.

    SIGTERM must end it, with `status`. It may write nothing to stderr except lines that match
    `reports`.
    """
    with subprocess.Popen(
        [sys.executable, EXAMPLES / program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(),
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            port = re.fullmatch(r"listening on .*127\.0\.0\.1\D+(\d+)\)?\n", line)
            assert port, line
            yield process, int(port[1])
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=PATIENCE)
        assert [line for line in errors.splitlines() if not re.fullmatch(reports, line)] == []
        assert process.returncode == status


@contextmanager
def no_free_descriptors(pid: int) -> Iterator[None]:
    """Let a process open no descriptor. It keeps those that are open."""
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def check_curl_gets_a_file_thrice_over_one_connection(program: str, path: Path) -> None:
    """Run a server of one file, and check what curl gets from it."""
    curl = tool("curl", "curl")
    with running(program, path, "0") as (_, port):
        url = f"http://127.0.0.1:{port}/"
        result = subprocess.run(
            [curl, "-sS", "-w", "%{stderr}%{num_connects}", url, url, url],
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
    assert (result.stdout, result.stderr) == (path.read_bytes() * 3, b"100")


def check_httpx_gets_a_file_while_another_client_does_not_read(program: str, path: Path) -> None:
    """Run a server of one file, and check what httpx gets from it."""
    httpx = pytest.importorskip("httpx", reason="httpx is missing: install it (pip install httpx)")
    with (
        running(program, path, "0") as (_, port),
        socket.create_connection(("127.0.0.1", port), PATIENCE) as slow,
    ):
        slow.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
            for _ in range(2):
                response = client.get(f"http://127.0.0.1:{port}/")
                assert (response.status_code, response.content) == (200, path.read_bytes())

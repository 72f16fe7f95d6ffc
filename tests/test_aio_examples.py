"""The servers for asyncio and trio run as they stand, and serve to curl and httpx."""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.helpers import PATIENCE, ROOT, data

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = data(3_000_000)


@contextmanager
def running(name: str, path: Path) -> Iterator[str]:
    """Run an example, and give its address."""
    if name == "trio_server.py" and not importlib.util.find_spec("trio"):
        pytest.skip("trio is missing: install it (pip install trio)")
    with subprocess.Popen(
        [sys.executable, ROOT / "examples" / name, path, "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            match = re.search(r"\('127\.0\.0\.1', (\d+)\)", process.stdout.readline())
            assert match
            yield f"127.0.0.1:{match[1]}"
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=PATIENCE)
        assert not errors.replace("connection lost: [Errno 104] Connection reset by peer\n", "")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    return file


SERVERS = pytest.mark.parametrize("name", ["asyncio_server.py", "trio_server.py"])


@SERVERS
def test_length(name: str) -> None:
    """Each has under 60 lines."""
    assert len((ROOT / "examples" / name).read_text().splitlines()) < 60


@SERVERS
def test_curl(name: str, path: Path) -> None:
    """Curl gets the file, several times over one connection."""
    if not shutil.which("curl"):
        pytest.skip("curl is missing: install it (Debian: apt-get install curl)")
    with running(name, path) as address:
        url = f"http://{address}/"
        result = subprocess.run(
            ["curl", "-sS", "-w", "%{stderr}%{num_connects}", url, url, url],
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
    assert (result.stdout, result.stderr) == (CONTENT * 3, b"100")


@SERVERS
def test_httpx(name: str, path: Path) -> None:
    """So does httpx, while another client has asked, but does not read."""
    httpx = pytest.importorskip("httpx", reason="httpx is missing: install it (pip install httpx)")
    with running(name, path) as address:
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), PATIENCE) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
            with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
                for _ in range(2):
                    response = client.get(f"http://{address}/")
                    assert (response.status_code, response.content) == (200, CONTENT)

"""The small programs under examples/ run as they stand. The file server has tests of its own."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.helpers import PATIENCE, ROOT, data, receive_all

if TYPE_CHECKING:
    from pathlib import Path

LOOP = ROOT / "examples" / "selectors_loop.py"


def test_selectors_loop_is_short() -> None:
    """The smallest complete sender has under 40 lines."""
    assert len(LOOP.read_text().splitlines()) < 40


def test_selectors_loop(tmp_path: Path) -> None:
    """It sends a whole file to everyone who connects, to a slow one and behind it to a fast one."""
    path = tmp_path / "file"
    content = data(4 << 20)
    path.write_bytes(content)
    expected = f"Here is {path}:\n".encode() + content
    with subprocess.Popen(
        [sys.executable, LOOP, path, "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            match = re.search(r"\('127\.0\.0\.1', (\d+)\)", process.stdout.readline())
            assert match
            address = ("127.0.0.1", int(match[1]))
            with (
                socket.create_connection(address, PATIENCE) as slow,
                socket.create_connection(address, PATIENCE) as fast,
            ):
                assert receive_all(fast) == expected
                assert receive_all(slow) == expected
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == -signal.SIGTERM

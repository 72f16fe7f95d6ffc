"""selectors_loop.py: a file to every client, by one thread."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.examples import line_count, running
from tests.support.sockets import PATIENCE, receive_all

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = "selectors_loop.py"


def test_selectors_loop_has_fewer_than_45_lines() -> None:
    """It is the shortest complete sender."""
    assert line_count(PROGRAM) < 45


def test_selectors_loop_sends_all_to_a_fast_client_while_a_slow_one_waits(large_file: Path) -> None:
    expected = f"Here is {large_file}:\n".encode() + large_file.read_bytes()
    with (
        running(PROGRAM, large_file, "0") as (_, port),
        socket.create_connection(("127.0.0.1", port), PATIENCE) as slow,
        socket.create_connection(("127.0.0.1", port), PATIENCE) as fast,
    ):
        assert receive_all(fast) == expected
        assert receive_all(slow) == expected


def fetch(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        return receive_all(sock)


@pytest.mark.parametrize("kind", ["missing", "directory", "device"])
def test_selectors_loop_tells_its_clients_that_there_is_no_file_and_goes_on(
    tmp_path: Path, kind: str
) -> None:
    """The file may be there for the next client."""
    path = tmp_path / "file"
    reason = b"No such file"
    if kind == "directory":
        path.mkdir()
        reason = b"Is a directory"
    elif kind == "device":
        path.symlink_to("/dev/null")
        reason = b"not a regular file"
    with running(PROGRAM, path, "0") as (_, port):
        for _ in range(3):
            first, told = fetch(port).splitlines()
            assert first == f"Here is {path}:".encode()
            assert reason in told
        if kind == "directory":
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(b"content")
        assert fetch(port) == f"Here is {path}:\ncontent".encode()

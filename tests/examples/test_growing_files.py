"""A file that grows keeps the length that its response announces."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.batches import data
from tests.support.examples import EXAMPLES, running
from tests.support.http import split
from tests.support.sockets import PATIENCE, receive_all

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = data(100_000)

# Runs a program whose file grows between the announcement and the addition of the range, and again
# before the batch is sent.
GROWING = """
import runpy, sys
import iobatch

class Growing(iobatch.IOBatch):
    def adds(self, text):
        super().adds(text)
        grow()
    def addfile(self, *args):
        super().addfile(*args)
        grow()
    def addfile_close(self, *args):
        super().addfile_close(*args)
        grow()

def grow():
    with open({path!r}, "ab") as file:
        file.write(b"grown" * 1000)

iobatch.IOBatch = Growing
sys.argv[0] = {program!r}
runpy.run_path({program!r}, run_name="__main__")
"""


@pytest.mark.parametrize("program", ["http_server.py", "asyncio_server.py", "trio_server.py"])
def test_server_keeps_the_announced_length_while_its_file_grows(
    tmp_path: Path, program: str
) -> None:
    if program == "trio_server.py":
        pytest.importorskip("trio", reason="trio is missing: install it (pip install trio)")
    path = tmp_path / "site" / "index.html"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    script = tmp_path / "growing.py"
    script.write_text(GROWING.format(path=str(path), program=str(EXAMPLES / program)))
    argument = path.parent if program == "http_server.py" else path
    with (
        running(str(script), argument, "0") as (_, port),
        socket.create_connection(("127.0.0.1", port), PATIENCE) as sock,
    ):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        sock.shutdown(socket.SHUT_WR)
        first, second = split(receive_all(sock))
    assert first.body == CONTENT
    assert second.body[:100_000] == CONTENT
    assert len(second.body) % 5000 == 0
    assert len(second.body) > 100_000
    assert path.stat().st_size > len(second.body)

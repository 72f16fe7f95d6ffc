"""Lost peers: SIGPIPE, broken pipes and connections that were reset."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_ERROR, IOBatch, iob_send
from tests.support.batches import data
from tests.support.programs import run_python
from tests.support.send import LARGE
from tests.support.sockets import PATIENCE, stream_pair

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


SIGPIPE_PROGRAM = """
import signal, socket, sys, tempfile
from iobatch import IOBatch, iob_send
kind, size, header, target = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
if kind == "socketpair":
    one, other = socket.socketpair()
else:
    listener = socket.create_server(("127.0.0.1", 0))
    one = socket.create_connection(listener.getsockname())
    other, _ = listener.accept()
with tempfile.TemporaryFile() as file, IOBatch() as batch:
    file.write(bytes(size))
    file.flush()
    other.close()
    for _ in range(1000):  # TCP accepts bytes until the peer's reset arrives
        batch.addbuf(header.encode())
        batch.addfile(file)
        while (n := iob_send(one if target == "socket" else one.fileno(), batch)) > 0:
            pass
        if n == -3:
            break
    print(type(batch.error).__name__)
"""


@pytest.mark.parametrize("size", [100, 10_000_000])
@pytest.mark.parametrize("header", ["", "header"])
@pytest.mark.parametrize("kind", ["socketpair", "tcp"])
def test_lost_peer_is_an_error_while_sigpipe_is_at_sig_dfl(
    kind: str, size: int, header: str
) -> None:
    """Without MSG_NOSIGNAL the signal would end the process."""
    done = run_python(SIGPIPE_PROGRAM, kind, str(size), header, "socket")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("BrokenPipeError", "ConnectionResetError")


def test_descriptor_raises_sigpipe_as_write_does() -> None:
    """At SIG_DFL the signal ends the process."""
    done = run_python(SIGPIPE_PROGRAM, "socketpair", "100", "", "descriptor")
    assert done.returncode == -signal.SIGPIPE


@pytest.mark.parametrize("size", [100, LARGE])
def test_closed_peer_is_broken_pipe_error(step: Any, make_file: MakeFile, size: int) -> None:
    """Python ignores SIGPIPE by default."""
    batch = IOBatch()
    batch.addfile(make_file(data(size)))
    with stream_pair() as (one, other):
        other.close()
        assert step(one, batch) == IOB_ERROR
    assert isinstance(batch.error, BrokenPipeError)
    assert batch.bytesleft == size


@pytest.mark.parametrize("size", [100, LARGE])
def test_reset_connection_is_connection_reset_error(
    step: Any, make_file: MakeFile, size: int
) -> None:
    batch = IOBatch()
    batch.addfile(make_file(data(size)))
    with stream_pair("tcp4") as (one, other):
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        other.close()
        poll = select.poll()
        poll.register(one, 0)  # errors are always reported
        assert poll.poll(PATIENCE * 1000)
        assert step(one, batch) == IOB_ERROR
    assert isinstance(batch.error, ConnectionResetError)
    assert batch.bytesleft == size


def test_pipe_without_reader_is_broken_pipe_error() -> None:
    source, target = os.pipe()
    os.close(source)
    batch = IOBatch()
    batch.addbuf(b"hello")
    try:
        assert iob_send(target, batch) == IOB_ERROR
    finally:
        os.close(target)
    assert isinstance(batch.error, BrokenPipeError)

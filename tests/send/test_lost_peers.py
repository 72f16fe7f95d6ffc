"""Lost peers: SIGPIPE, broken pipes and connections that were reset."""

from __future__ import annotations

import errno
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import COPY_LIMIT, IOB_ERROR, IOBatch, iob_send
from tests.support.batches import IOV_MAX, batch_of, data
from tests.support.drivers import pump
from tests.support.fakes import SYSTEM_CALLS, Scripted, patch_os, script_sendfile
from tests.support.programs import run_python
from tests.support.send import LARGE, failing_sendfile, get_cork, make_response, send_repeatedly
from tests.support.sockets import reset, stream_pair, wait_for_error

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
    while batch.error is None:  # TCP accepts bytes until the peer's reset arrives
        batch.addbuf(header.encode())
        batch.addfile(file)
        while iob_send(one if target == "socket" else one.fileno(), batch) > 0:
            pass
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
        reset(other)
        wait_for_error(one)
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


def ignore(_number: int, _frame: object) -> None:
    """Do what a handler does that only interrupts system calls."""


@pytest.mark.parametrize("size", [100, COPY_LIMIT + 1, LARGE])
@pytest.mark.parametrize("header", [b"", b"header"])
@pytest.mark.parametrize("trailer", [b"", b"trailer"])
def test_socket_object_never_runs_a_sigpipe_handler(
    make_file: MakeFile, size: int, header: bytes, trailer: bytes
) -> None:
    """A descriptor does, as with write(2)."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _frame: numbers.append(number))
    try:
        with stream_pair() as (one, other):
            other.close()
            for target in (one, one.fileno()):
                batch = batch_of(header)
                batch.addfile(make_file(data(size)))
                batch.addbuf(trailer)
                assert iob_send(target, batch) == IOB_ERROR
                assert isinstance(batch.error, BrokenPipeError)
                assert numbers == ([] if target is one else [signal.SIGPIPE])
    finally:
        signal.signal(signal.SIGPIPE, before)


@pytest.mark.parametrize("handler", [ignore, None, signal.SIG_DFL], ids=["Python", "C", "SIG_DFL"])
def test_large_range_arrives_whatever_handles_sigpipe(
    tcp: tuple[socket.socket, socket.socket],
    make_file: MakeFile,
    monkeypatch: pytest.MonkeyPatch,
    handler: Any,
) -> None:
    """signal.getsignal returns None for a handler that was not installed from Python.

    sendfile could run the handler, so it is not called.
    """
    monkeypatch.setattr("iobatch._send.getsignal", lambda _number: handler)
    patch_os(monkeypatch, "sendfile", failing_sendfile(errno.EPIPE))
    batch, wanted = make_response(make_file)
    one, other = tcp
    one.setblocking(False)
    assert pump(iob_send, one, other, batch) == wanted
    assert get_cork(one) == 0


def test_large_range_goes_by_sendfile_while_sigpipe_is_ignored(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is Python's default."""
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
    batch, wanted = make_response(make_file)
    with Scripted() as sock:
        counts = script_sendfile(monkeypatch, sock)
        send_repeatedly(sock, batch)
        assert (counts, sock.taken) == ([LARGE], wanted)


def test_error_after_a_part_comes_with_the_next_call_without_a_system_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel reports a reset once: later calls would get another error."""
    calls = 0

    def send_and_reset(_sock: object, piece: Any, _flags: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ConnectionResetError(errno.ECONNRESET, "scripted")
        return len(piece)

    monkeypatch.setattr(socket.socket, "send", send_and_reset)
    monkeypatch.setattr(SYSTEM_CALLS, "send", send_and_reset)
    batch = batch_of(*[b"17 bytes of these"] * (IOV_MAX + 1))
    with socket.socket() as sock:
        assert iob_send(sock, batch) == 17 * IOV_MAX
        assert iob_send(sock, batch) == IOB_ERROR
    assert isinstance(batch.error, ConnectionResetError)
    assert calls == 2

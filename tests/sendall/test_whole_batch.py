"""iob_sendall sends a whole batch, and waits where that is needed."""

from __future__ import annotations

import os
import selectors
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch, iob_send, iob_sendall
from tests.support.batches import batch_of, data
from tests.support.fakes import Scripted, again
from tests.support.sockets import PATIENCE, clog, receive_all, stream_pair
from tests.support.tls import tls_contexts

if TYPE_CHECKING:
    from pathlib import Path

    import trustme

    from tests.support.batches import MakeFile


CALLBACKS: dict[str, Any] = {"iob_send": None, "iob_write": socket.socket.send}


@pytest.mark.parametrize("callback", CALLBACKS.values(), ids=CALLBACKS)
@pytest.mark.parametrize("mode", [None, 0.0, 0.01])
@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_whole_batch_is_sent_and_the_blocking_mode_kept(
    make_file: MakeFile, callback: Any, mode: float | None, timeout: float | None
) -> None:
    """The count returned doesn't include bytes sent before the call."""
    content = data(4_000_000)
    steps: list[int] = []
    with stream_pair("tcp4", buffers=50_000) as (one, other), ThreadPoolExecutor(1) as pool:
        one.settimeout(mode)
        batch = IOBatch()
        batch.addbuf(b"before")
        assert iob_send(one, batch) == 6
        batch.addbuf(b"header")
        batch.addfile(make_file(content))
        batch.addbuf(b"trailer")
        reader = pool.submit(receive_all, other)
        sent = iob_sendall(one, batch, callback, timeout=timeout, progress=steps.append)
        assert sent == 4_000_013 == sum(steps)
        assert min(steps) > 0
        assert batch.bytessent == 4_000_019
        assert one.gettimeout() == mode
        one.shutdown(socket.SHUT_WR)
        assert reader.result(PATIENCE) == b"beforeheader" + content + b"trailer"


def test_count_does_not_depend_on_a_reset_during_the_send() -> None:
    batch = batch_of(b"earlier", b"first", b"dropped")

    def replace_the_rest(_nbytes: int) -> None:
        if batch.bytesleft == len(b"dropped"):
            batch.reset()
            batch.addbuf(b"new")

    with Scripted() as sock:
        assert iob_send(sock, batch, limit=7) == 7
        assert iob_sendall(sock, batch, limit=5, progress=replace_the_rest) == 8
        assert sock.taken == b"earlierfirstnew"


def test_empty_batch_returns_0_without_progress() -> None:
    steps: list[int] = []
    with Scripted() as sock:
        assert iob_sendall(sock, IOBatch(), progress=steps.append) == 0
        assert iob_sendall(sock, IOBatch(), lambda _sock, _view: 1, timeout=0) == 0
    assert steps == []


def test_again_is_waited_for_until_all_is_sent() -> None:
    """EAGAIN and the socket's own timeout are both waited for."""
    batch = batch_of(b"hello")
    with Scripted(again(), TimeoutError("timed out"), 2, again(), again()) as sock:
        assert iob_sendall(sock, batch) == 5
        assert sock.taken == b"hello"


@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize("by", ["descriptor", "object", "callback"])
def test_regular_file_is_never_waited_for(
    tmp_path: Path, make_file: MakeFile, by: str, timeout: float | None
) -> None:
    """epoll_ctl(2) refuses regular files with EPERM."""
    content = data(3_000_000)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(make_file(content))
    path = tmp_path / "copy"
    with path.open("wb", buffering=0) as file:
        target: Any = file if by == "object" else file.fileno()
        callback: Any = os.write if by == "callback" else None
        assert iob_sendall(target, batch, callback, timeout=timeout) == 3_000_006
    assert path.read_bytes() == b"header" + content


def test_sock_may_be_any_object_if_it_is_never_waited_for() -> None:
    taken = bytearray()

    def callback(sock: str, view: memoryview) -> int:
        assert sock == "any object"
        taken.extend(view)
        return len(view)

    assert iob_sendall("any object", batch_of(b"he", b"llo"), callback) == 5
    assert taken == b"hello"


def test_ssl_socket_without_a_callback_is_refused() -> None:
    """The blocking mode of the socket is kept."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with (
        stream_pair() as (one, _other),
        context.wrap_socket(one, do_handshake_on_connect=False) as secure,
    ):
        for timeout in (None, 5):
            with pytest.raises(TypeError):
                iob_sendall(secure, batch_of(b"secret"), timeout=timeout)
        assert secure.gettimeout() is None


def test_wait_is_for_reading_after_ssl_want_read_error() -> None:
    wanted = []
    with stream_pair() as (one, other):
        clog(one)  # so that it is readable only

        def callback(sock: socket.socket, view: memoryview) -> int:
            if not wanted:
                wanted.append(batch.wants)
                other.send(b"?")
                raise ssl.SSLWantReadError
            wanted.append(sock.recv(1))
            return len(view)

        batch = batch_of(b"hello")
        assert iob_sendall(one, batch, callback, timeout=PATIENCE) == 5
    assert wanted == [selectors.EVENT_WRITE, b"?"]


def test_wait_follows_wants_from_step_to_step() -> None:
    outcomes: list[Exception] = [
        ssl.SSLWantReadError(),
        ssl.SSLWantWriteError(),
        ssl.SSLWantReadError(),
    ]
    with stream_pair() as (one, other):

        def callback(_sock: socket.socket, view: memoryview) -> int:
            if not outcomes:
                return len(view)
            if isinstance(outcomes[0], ssl.SSLWantReadError):
                other.send(b"?")
            else:
                one.recv(1)
            raise outcomes.pop(0)

        assert iob_sendall(one, batch_of(b"hello"), callback, timeout=PATIENCE) == 5


def test_large_file_arrives_over_blocking_tls(make_file: MakeFile, authority: trustme.CA) -> None:
    server, client = tls_contexts(authority)
    content = data(3_000_000)

    def read(sock: socket.socket) -> bytes:
        with client.wrap_socket(sock, server_hostname="localhost") as peer:
            return receive_all(peer)

    for timeout in (None, PATIENCE):
        with stream_pair("tcp4", buffers=50_000) as (one, other), ThreadPoolExecutor(1) as pool:
            reader = pool.submit(read, other)
            with server.wrap_socket(one, server_side=True) as conn, IOBatch() as batch:
                batch.addbuf(b"header")
                batch.addfile(make_file(content))
                assert iob_sendall(conn, batch, ssl.SSLSocket.send, timeout=timeout) == 3_000_006
                conn.shutdown(socket.SHUT_WR)
                assert reader.result(PATIENCE) == b"header" + content

"""iob_sendall: a batch driven to its end."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from iobatch import (
    IOB_AGAIN,
    IOB_DONE,
    IOB_ERROR,
    IOBatch,
    TruncatedFileError,
    iob_send,
    iob_sendall,
)
from tests.helpers import (
    PATIENCE,
    Scripted,
    again,
    check_invariants,
    clog,
    data,
    receive,
    receive_all,
    stream_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    MakeFile = Callable[[bytes], int]

pytestmark = pytest.mark.usefixtures("no_leaks")

CALLBACKS: dict[str, Any] = {"iob_send": None, "iob_write": socket.socket.send}


def batch_of(*pieces: bytes) -> IOBatch:
    batch = IOBatch()
    for piece in pieces:
        batch.addbuf(bytearray(piece))
    return batch


def patch_clock(patch: pytest.MonkeyPatch) -> list[float]:
    """Let time stand still but for what is appended to the list."""
    real, passed = time.monotonic, [0.0]
    for module in [m for name, m in sys.modules.items() if name.startswith("iobatch.")]:
        for name, value in list(vars(module).items()):
            if value is real:
                patch.setattr(module, name, lambda: sum(passed))
    patch.setattr(time, "monotonic", lambda: sum(passed))
    return passed


@pytest.mark.parametrize("callback", CALLBACKS.values(), ids=CALLBACKS)
@pytest.mark.parametrize("mode", [None, 0.0, 0.01])
@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_everything_is_sent(
    make_file: MakeFile, callback: Any, mode: float | None, timeout: float | None
) -> None:
    """Blocking, non-blocking or with a timeout: all is sent, and the mode is as before."""
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


def test_empty_batch() -> None:
    """An empty batch is sent at once: 0, without progress."""
    steps: list[int] = []
    with Scripted() as sock:
        assert iob_sendall(sock, IOBatch(), progress=steps.append) == 0
        assert iob_sendall(sock, IOBatch(), lambda _sock, _view: 1, timeout=0) == 0
    assert steps == []


def test_again_is_waited_for() -> None:
    """EAGAIN and a socket's own timeout are waited for, whatever the socket says."""
    batch = batch_of(b"hello")
    with Scripted(again(), TimeoutError("timed out"), 2, again(), again()) as sock:
        assert iob_sendall(sock, batch) == 5
        assert sock.taken == b"hello"


def test_error_is_raised() -> None:
    """The batch's error is raised, after what was sent; again without another system call."""
    batch = batch_of(b"hello")
    with Scripted(2, OSError(errno.EPIPE, "scripted")) as sock:
        for _ in range(2):
            with pytest.raises(BrokenPipeError, match="scripted") as caught:
                iob_sendall(sock, batch)
            assert caught.value.errno == errno.EPIPE
            assert isinstance(batch.error, BrokenPipeError)
            assert (batch.bytessent, batch.bytesleft) == (2, 3)
        assert len(sock.calls) == 2
    check_invariants(batch)


def test_truncated_file_is_raised_with_its_attributes(make_file: MakeFile) -> None:
    """A TruncatedFileError says the same when it is raised."""
    fd = make_file(data(100))
    batch = IOBatch()
    batch.addfile(fd)
    os.ftruncate(fd, 40)
    with Scripted() as sock, pytest.raises(TruncatedFileError) as caught:
        iob_sendall(sock, batch)
    error = caught.value
    assert (error.fd, error.offset, error.missing) == (fd, 40, 60)
    batch.reset()


def test_raised_error_keeps_no_frames_alive() -> None:
    """What was raised leaves no traceback in batch.error: a failed batch is freed at once."""
    seen: list[str] = []
    batch = IOBatch()
    batch.addbuf(b"hello", on_release=lambda: seen.append("released"))
    with Scripted(OSError(errno.EPIPE, "scripted")) as sock:
        with suppress(BrokenPipeError):
            iob_sendall(sock, batch)
        assert isinstance(batch.error, BrokenPipeError)
        assert batch.error.__traceback__ is None
        del batch
    assert seen == ["released"]


def test_buffer_is_free_after_an_error() -> None:
    """After an error and reset() a buffer can be resized, even where the error is handled."""
    buffer = bytearray(b"hello")
    batch = IOBatch()
    batch.addbuf(buffer)
    with Scripted(2, OSError(errno.EPIPE, "scripted")) as sock:
        try:
            iob_sendall(sock, batch)
        except BrokenPipeError:
            batch.reset()
            buffer.append(0)
    assert buffer == b"hello\0"


def test_what_the_callback_raises_propagates() -> None:
    """An exception of the callback that is no OSError propagates; the batch goes on."""
    outcomes: list[Any] = [2, KeyError("scripted")]

    def callback(_sock: object, view: memoryview) -> int:
        outcome = outcomes.pop(0) if outcomes else len(view)
        if isinstance(outcome, Exception):
            raise outcome
        return int(outcome)

    batch = batch_of(b"hello")
    with pytest.raises(KeyError):
        iob_sendall(None, batch, callback)
    assert batch.bytessent == 2
    assert iob_sendall(None, batch, callback) == 3


# Time


@pytest.mark.parametrize("mode", [None, 0.0, 5.0])
@pytest.mark.parametrize("callback", CALLBACKS.values(), ids=CALLBACKS)
@pytest.mark.parametrize("timeout", [0, 0.01])
def test_timeout(callback: Any, mode: float | None, timeout: float) -> None:
    """A TimeoutError leaves what was sent in bytessent, and the batch can go on."""
    content = data(3_000_000)
    with stream_pair() as (one, other):
        one.settimeout(mode)
        batch = batch_of(content)
        with pytest.raises(TimeoutError) as caught:
            iob_sendall(one, batch, callback, timeout=timeout)
        assert caught.value.errno is None
        assert batch.error is None
        assert 0 < batch.bytessent < 3_000_000
        assert one.gettimeout() == mode
        check_invariants(batch)
        received = receive(other, batch.bytessent)
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(receive_all, other)
            left = batch.bytesleft
            assert iob_sendall(one, batch, callback, timeout=PATIENCE) == left
            one.shutdown(socket.SHUT_WR)
            assert received + reader.result(PATIENCE) == content


def test_timeout_before_the_first_byte() -> None:
    """A full socket gives TimeoutError with nothing sent."""
    with stream_pair() as (one, _other):
        clog(one)
        one.setblocking(True)
        batch = batch_of(b"hello")
        with pytest.raises(TimeoutError):
            iob_sendall(one, batch, timeout=0.01)
        assert batch.bytessent == 0
        assert one.gettimeout() is None


def test_timeout_is_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that takes a byte now and then does not stretch the timeout."""
    passed = patch_clock(monkeypatch)

    def callback(_sock: object, _view: memoryview) -> int:
        passed.append(1.0)
        return 1

    batch = batch_of(b"0123456789")
    with Scripted() as sock:
        with pytest.raises(TimeoutError):
            iob_sendall(sock, batch, callback, timeout=3.5)
        assert batch.bytessent == 4
        assert iob_sendall(sock, batch, callback, timeout=6.5) == 6


def test_no_timeout_once_all_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is complete is complete, however long it took."""
    passed = patch_clock(monkeypatch)

    def callback(_sock: object, view: memoryview) -> int:
        passed.append(100.0)
        return len(view)

    with Scripted() as sock:
        assert iob_sendall(sock, batch_of(b"hello"), callback, timeout=1) == 5


def test_negative_timeout() -> None:
    """A negative timeout is a ValueError, and nothing is sent."""
    batch = batch_of(b"hello")
    with Scripted() as sock:
        with pytest.raises(ValueError):
            iob_sendall(sock, batch, timeout=-1)
        assert sock.calls == []


@pytest.mark.parametrize("how", ["error", "exception"])
def test_mode_is_restored_in_any_case(how: str) -> None:
    """The socket's mode comes back after an error, and after an exception of progress."""

    def progress(_nbytes: int) -> None:
        raise KeyError

    with stream_pair() as (one, other):
        one.settimeout(7.0)
        if how == "error":
            other.close()
            with pytest.raises(BrokenPipeError):
                iob_sendall(one, batch_of(b"hello"), timeout=5)
        else:
            batch = batch_of(b"hello")
            with pytest.raises(KeyError):
                iob_sendall(one, batch, timeout=5, progress=progress)
            assert batch.bytessent == 5
            check_invariants(batch)
        assert one.gettimeout() == 7.0


def test_during_the_call_the_socket_is_non_blocking() -> None:
    """With a timeout the socket is non-blocking while it is sent to, else it is as it was."""
    seen = []

    def callback(sock: socket.socket, view: memoryview) -> int:
        seen.append(sock.gettimeout())
        return len(view)

    with socket.socket() as sock:
        sock.settimeout(3.0)
        iob_sendall(sock, batch_of(b"x"), callback, timeout=5)
        iob_sendall(sock, batch_of(b"x"), callback)
        assert sock.gettimeout() == 3.0
    assert seen == [0.0, 3.0]


def test_socket_closed_meanwhile() -> None:
    """A socket that its callback closes can't be restored, and that is no error."""
    with stream_pair() as (one, _other):

        def callback(sock: socket.socket, view: memoryview) -> int:
            sock.close()
            return len(view)

        assert iob_sendall(one, batch_of(b"x"), callback, timeout=5) == 1


@pytest.mark.parametrize("blocking", [True, False])
def test_descriptor(*, blocking: bool) -> None:
    """A descriptor's O_NONBLOCK is set during the call with a timeout, and restored."""
    source, target = os.pipe()
    content = data(1_000_000)
    try:
        os.set_blocking(target, blocking)
        batch = batch_of(content)
        with pytest.raises(TimeoutError):
            iob_sendall(target, batch, timeout=0.01)
        assert os.get_blocking(target) is blocking
        received = receive(source, batch.bytessent)
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(receive, source, batch.bytesleft)
            iob_sendall(target, batch)
            assert received + reader.result(PATIENCE) == content
    finally:
        os.close(source)
        os.close(target)


@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize("by", ["descriptor", "object", "callback"])
def test_regular_file(tmp_path: Path, make_file: MakeFile, by: str, timeout: float | None) -> None:
    """A regular file is never waited for: epoll would refuse it."""
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


def test_any_object_will_do_that_need_not_be_waited_for() -> None:
    """With a callback that takes everything sock may be any object."""
    taken = bytearray()

    def callback(sock: str, view: memoryview) -> int:
        assert sock == "any object"
        taken.extend(view)
        return len(view)

    assert iob_sendall("any object", batch_of(b"he", b"llo"), callback) == 5
    assert taken == b"hello"


# TLS


def test_ssl_socket_without_a_callback() -> None:
    """Without a callback an SSLSocket is refused, as by iob_send; its mode is as before."""
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


def test_it_waits_for_reading_where_tls_wants_to_read() -> None:
    """After SSLWantReadError it waits until the socket is readable, not writable."""
    wanted = []
    with stream_pair() as (one, other):
        clog(one)  # never writable

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


def test_it_waits_for_writing_after_waiting_for_reading() -> None:
    """What it waits for follows batch.wants from step to step."""
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


def test_real_tls(make_file: MakeFile) -> None:
    """Over a blocking TLS connection a large file arrives byte-identical."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
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


# Filters


class Drained:
    """Looks like a Filter: a callback that keeps what it gets, and a drain with a script."""

    def __init__(self, *script: int) -> None:
        self.script = list(script)
        self.drains: list[Any] = []
        self.error: OSError | None = None
        self.wants = selectors.EVENT_WRITE
        self.bytesleft = 0

    def __call__(self, _sock: object, view: memoryview) -> int:
        assert not self.drains, "nothing is drained before all was written"
        self.bytesleft += len(view)
        return len(view)

    def drain(self, sock: object) -> int:
        self.drains.append(sock)
        code = self.script.pop(0) if self.script else IOB_DONE
        if code == IOB_DONE:
            self.bytesleft = 0
        return code

    def finish(self, sock: object) -> int:
        raise AssertionError("finish is the caller's")


def test_filter_is_drained() -> None:
    """A callback with drain is drained until it says 0; what it counts is not counted."""
    steps: list[int] = []
    with stream_pair() as (one, _other):
        callback = Drained(7, IOB_AGAIN, 3, IOB_AGAIN, IOB_AGAIN)
        sent = iob_sendall(one, batch_of(b"hello"), callback, progress=steps.append)
        assert (sent, sum(steps)) == (5, 5)
        assert callback.drains == [one] * 6


def test_filter_is_drained_though_the_batch_is_empty() -> None:
    """What a filter holds from before is drained as well."""
    with stream_pair() as (one, _other):
        callback = Drained(7)
        assert iob_sendall(one, IOBatch(), callback) == 0
        assert callback.drains == [one] * 2


def test_filter_that_fails() -> None:
    """The filter's own error is raised where its drain fails."""
    with stream_pair() as (one, _other):
        callback = Drained(IOB_ERROR)
        callback.error = ConnectionResetError(errno.ECONNRESET, "scripted")
        with pytest.raises(ConnectionResetError):
            iob_sendall(one, batch_of(b"hello"), callback)


def test_filter_that_wants_to_read() -> None:
    """While it drains, it waits for what the filter wants."""
    with stream_pair() as (one, other):
        clog(one)
        other.send(b"?")
        callback = Drained(IOB_AGAIN)
        callback.wants = selectors.EVENT_READ
        assert iob_sendall(one, batch_of(b"hello"), callback, timeout=PATIENCE) == 5


@pytest.mark.parametrize("held", [0, 100])
def test_filter_that_is_never_drained(held: int) -> None:
    """The timeout is for the drain too, whatever number of bytes the filter says it holds."""
    with stream_pair() as (one, _other):
        clog(one)
        callback = Drained(*[IOB_AGAIN] * 1000, IOB_ERROR)
        callback.error = OSError("the timeout was not kept")
        batch = batch_of(b"hello")
        callback.bytesleft = held
        with pytest.raises(TimeoutError):
            iob_sendall(one, batch, callback, timeout=0.01)
        assert batch.bytessent == 5


@pytest.mark.parametrize("timeout", [float("nan"), -1.0])
def test_timeout_is_a_number_of_seconds(timeout: float) -> None:
    """A timeout that is no length of time is refused before anything is sent."""
    batch = IOBatch()
    batch.addbuf(b"x")
    with Scripted() as sock, pytest.raises(ValueError):
        iob_sendall(sock, batch, timeout=timeout)
    assert batch.bytesleft == 1


@pytest.mark.parametrize("timeout", [float("inf"), 1e300])
def test_timeout_may_be_endless(timeout: float) -> None:
    """Longer than a selector can wait in one call is no error when the socket is full."""
    with stream_pair(buffers=4096) as (one, other), ThreadPoolExecutor(1) as pool:
        wanted = data(300_000)
        batch = IOBatch()
        batch.addbuf(wanted)
        reader = pool.submit(receive, other, len(wanted))
        assert iob_sendall(one, batch, timeout=timeout) == len(wanted)
        assert reader.result(PATIENCE) == wanted


def test_an_error_that_can_not_be_copied_is_raised_itself() -> None:
    """A callback's own class of OSError comes through, whatever its arguments are."""

    class OddError(OSError):
        def __init__(self, a: int, b: int, c: int) -> None:
            super().__init__(errno.EIO, "odd")
            self.all = (a, b, c)

    def callback(_sock: None, _view: memoryview) -> int:
        raise OddError(1, 2, 3)

    batch = IOBatch()
    batch.addbuf(b"x")
    with pytest.raises(OddError) as caught:
        iob_sendall(None, batch, callback)
    assert caught.value.all == (1, 2, 3)

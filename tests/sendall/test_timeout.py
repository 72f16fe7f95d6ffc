"""The timeout of iob_sendall, and the blocking mode of the socket meanwhile."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from iobatch import IOBatch, iob_sendall
from tests.support.batches import batch_of, check_invariants, data
from tests.support.fakes import Scripted
from tests.support.sockets import PATIENCE, clog, receive, receive_all, stream_pair

CALLBACKS: dict[str, Any] = {"iob_send": None, "iob_write": socket.socket.send}


def patch_clock(patch: pytest.MonkeyPatch) -> list[float]:
    """Stop the clock; the returned list holds the seconds that have passed."""
    real, passed = time.monotonic, [0.0]
    for module in [m for name, m in sys.modules.items() if name.startswith("iobatch.")]:
        for name, value in list(vars(module).items()):
            if value is real:
                patch.setattr(module, name, lambda: sum(passed))
    patch.setattr(time, "monotonic", lambda: sum(passed))
    return passed


@pytest.mark.parametrize("mode", [None, 0.0, 5.0])
@pytest.mark.parametrize("callback", CALLBACKS.values(), ids=CALLBACKS)
@pytest.mark.parametrize("timeout", [0, 0.01])
def test_after_a_timeout_the_batch_has_the_rest_and_can_go_on(
    callback: Any, mode: float | None, timeout: float
) -> None:
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


def test_timeout_on_a_full_socket_sends_nothing() -> None:
    with stream_pair() as (one, _other):
        clog(one)
        one.setblocking(True)
        batch = batch_of(b"hello")
        with pytest.raises(TimeoutError):
            iob_sendall(one, batch, timeout=0.01)
        assert batch.bytessent == 0
        assert one.gettimeout() is None


def test_timeout_is_for_the_whole_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte sent each second doesn't extend the timeout."""
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


def test_call_ends_when_its_timeout_has_just_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = patch_clock(monkeypatch)
    with Scripted() as sock:
        with pytest.raises(TimeoutError):
            iob_sendall(sock, batch_of(b"0123456789"), limit=4, timeout=5, progress=passed.append)
        assert passed == [0.0, 4, 4]
        passed[:] = [0.0]
        with pytest.raises(TimeoutError):
            iob_sendall(sock, batch_of(b"0123456789"), limit=5, timeout=5, progress=passed.append)
        assert passed == [0.0, 5]


def test_late_but_complete_send_is_no_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = patch_clock(monkeypatch)

    def callback(_sock: object, view: memoryview) -> int:
        passed.append(100.0)
        return len(view)

    with Scripted() as sock:
        assert iob_sendall(sock, batch_of(b"hello"), callback, timeout=1) == 5


def test_negative_timeout_is_refused_before_a_system_call() -> None:
    batch = batch_of(b"hello")
    with Scripted() as sock:
        with pytest.raises(ValueError):
            iob_sendall(sock, batch, timeout=-1)
        assert sock.calls == []


@pytest.mark.parametrize("timeout", [float("nan"), -1.0])
def test_timeout_that_is_no_duration_is_refused(timeout: float) -> None:
    batch = IOBatch()
    batch.addbuf(b"x")
    with Scripted() as sock, pytest.raises(ValueError):
        iob_sendall(sock, batch, timeout=timeout)
    assert batch.bytesleft == 1


@pytest.mark.parametrize("timeout", [float("inf"), 1e300])
def test_timeout_may_exceed_what_a_selector_can_wait(timeout: float) -> None:
    with stream_pair(buffers=4096) as (one, other), ThreadPoolExecutor(1) as pool:
        wanted = data(300_000)
        batch = IOBatch()
        batch.addbuf(wanted)
        reader = pool.submit(receive, other, len(wanted))
        assert iob_sendall(one, batch, timeout=timeout) == len(wanted)
        assert reader.result(PATIENCE) == wanted


@pytest.mark.parametrize("cause", ["error", "exception"])
def test_blocking_mode_is_restored_after_an_error_or_exception(cause: str) -> None:
    def progress(_nbytes: int) -> None:
        raise KeyError

    with stream_pair() as (one, other):
        one.settimeout(7.0)
        if cause == "error":
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


def test_timeout_of_a_socket_is_restored_if_its_mode_cannot_be_changed() -> None:
    """A socket object has the new timeout even if ioctl(2) fails or a signal handler raises."""

    class Refusing(socket.socket):
        def setblocking(self, *flag: bool) -> None:
            super().setblocking(*flag)
            raise OSError(errno.EIO, "refused")

    with Refusing() as sock:
        sock.settimeout(7.0)
        batch = batch_of(b"hello")
        with pytest.raises(OSError, match="refused"):
            iob_sendall(sock, batch, timeout=5)
        assert (sock.gettimeout(), batch.bytesleft) == (7.0, 5)


def test_socket_is_nonblocking_only_during_a_call_with_a_timeout() -> None:
    timeouts = []

    def callback(sock: socket.socket, view: memoryview) -> int:
        timeouts.append(sock.gettimeout())
        return len(view)

    with socket.socket() as sock:
        sock.settimeout(3.0)
        iob_sendall(sock, batch_of(b"x"), callback, timeout=5)
        iob_sendall(sock, batch_of(b"x"), callback)
        assert sock.gettimeout() == 3.0
    assert timeouts == [0.0, 3.0]


def test_socket_that_its_callback_closes_is_not_restored() -> None:
    with stream_pair() as (one, _other):

        def callback(sock: socket.socket, view: memoryview) -> int:
            sock.close()
            return len(view)

        assert iob_sendall(one, batch_of(b"x"), callback, timeout=5) == 1


@pytest.mark.parametrize("blocking", [True, False])
def test_o_nonblock_of_a_descriptor_is_restored(*, blocking: bool) -> None:
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


# Whoever shares the open file is given EAGAIN meanwhile: iob_sendall(3) says how to avoid that.
WRITE_TO_STDOUT = """
import os
try:
    os.write(1, b"x" * 100)
except BlockingIOError:
    os.write(2, b"EAGAIN")
"""


@pytest.mark.parametrize("reopened", [False, True])
def test_only_a_descriptor_opened_again_keeps_others_blocking(*, reopened: bool) -> None:
    """O_NONBLOCK belongs to the open file, which a child process shares (open(2))."""
    source, shared = os.pipe()
    target = os.open(f"/proc/self/fd/{shared}", os.O_WRONLY) if reopened else shared
    modes = []
    try:
        batch = batch_of(data(1_000_000))
        with pytest.raises(TimeoutError):
            iob_sendall(
                target,
                batch,
                timeout=0.01,
                progress=lambda _: modes.append(os.get_blocking(shared)),
            )
        assert set(modes) == {reopened}
        assert os.get_blocking(shared)
        # The pipe is full. So a child that shares a non-blocking open file would get EAGAIN.
        os.set_blocking(target, False)
        with subprocess.Popen(
            [sys.executable, "-c", WRITE_TO_STDOUT], stdout=shared, stderr=subprocess.PIPE
        ) as child:
            if reopened:  # the child waits until the pipe is read
                receive(source, batch.bytessent + 100)
            _, errors = child.communicate(timeout=PATIENCE)
        assert errors == (b"" if reopened else b"EAGAIN")
    finally:
        for fd in {source, shared, target}:
            os.close(fd)

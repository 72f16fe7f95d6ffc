"""Signal handlers that run at a chosen point of the library's code.

CPython runs a signal handler where a function begins, after a call, and where a loop jumps back.
It calls a profile function at the first two of these, with the interrupted frame as for a handler,
and the profile function can raise, too. So a test tries these points in turn, and needs no signal
that hits one of them by chance.
"""

from __future__ import annotations

import errno
import gc
import os
import re
import signal
import socket
import sys
import threading
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_send, iob_write
from tests.support.fakes import patch_os
from tests.support.forms import pure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    Step = Callable[[socket.socket, IOBatch], int]

# System calls or the interpreter raise most of these, too. The library must not handle a handler's
# exception as one of theirs.
KINDS = (
    ZeroDivisionError,
    TimeoutError,
    BlockingIOError,
    BrokenPipeError,
    RuntimeError,
    BufferError,
)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
# Sizes of file ranges: iob_send reads SMALL bytes, and sends LARGE bytes by sendfile.
SMALL = 1000
LARGE = 40_000


@contextmanager
def handler_at(point: int, action: Callable[[], object]) -> Iterator[list[bool]]:
    """Run an action once, at the nth point; give a list that is not empty once it has run."""
    reached: list[bool] = []
    passed = 0

    def handler(frame: FrameType, event: str, _arg: object) -> None:
        nonlocal passed
        module: str = frame.f_globals.get("__name__", "")
        if event not in {"call", "c_return"} or not module.startswith("iobatch"):
            return
        if not is_in_finalizer(frame):
            passed += 1
            if passed == point:
                sys.setprofile(None)
                reached.append(True)
                action()

    gc.disable()  # the garbage of other tests has finalizers, and closes generators
    sys.setprofile(handler)
    try:
        yield reached
    finally:
        sys.setprofile(None)
        gc.enable()


@contextmanager
def handler_that_raises(point: int, kind: type[Exception]) -> Iterator[list[Exception]]:
    """Raise an exception once, at the nth point; give a list that then contains it."""
    raised: list[Exception] = []

    def action() -> None:
        raised.append(kind("from a handler"))
        raise raised[0]

    with handler_at(point, action):
        yield raised


@contextmanager
def untraced() -> Iterator[None]:
    """Stop a tracer, such as coverage's, which makes objects between any two lines."""
    trace = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(trace)


def is_in_finalizer(frame: FrameType | None) -> bool:
    """Return whether a finalizer is running: an exception never leaves a finalizer."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


class ReleaseLog:
    """Lists the hooks that run and the descriptors that os.close closes, in order."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.entries: list[object] = []
        self._close = os.close
        patch_os(patch, "close", self.close)

    def hook(self, name: str) -> Callable[[], object]:
        """Return a hook that is written in C, so that no handler can interrupt it."""
        return partial(self.entries.append, name)

    def close(self, fd: int) -> None:
        self.entries.append(fd)
        self._close(fd)


def make_steps(send: Callable[..., int], write: Callable[..., int]) -> tuple[Step, ...]:
    """Return the ways to send once, with one form of iob_send and of iob_write."""

    def send_to_descriptor(sock: socket.socket, batch: IOBatch) -> int:
        return send(sock.fileno(), batch)

    def write_by_socket_send(sock: socket.socket, batch: IOBatch) -> int:
        return write(sock, batch, socket.socket.send, limit=3000)

    def write_by_function(sock: socket.socket, batch: IOBatch) -> int:
        return write(sock, batch, lambda sock, view: sock.send(view))

    return send, send_to_descriptor, write_by_socket_send, write_by_function


STEPS = make_steps(iob_send, iob_write)
PURE_STEPS = make_steps(pure(iob_send), pure(iob_write))


def send_all(
    step: Step, sock: socket.socket, peer: socket.socket, batch: IOBatch
) -> tuple[bytes, list[Exception]]:
    """Call `step` until the batch is empty or has failed, whatever a handler raises.

    Returns:
        The bytes that arrived, and the exceptions that left the calls.

    """
    received = bytearray()
    caught: list[Exception] = []
    code = IOB_AGAIN
    while code not in {IOB_DONE, IOB_ERROR}:
        try:
            code = step(sock, batch)
        except KINDS as exc:
            caught.append(exc)
            assert repr(batch)
        received += drain(peer)
    return bytes(received), caught


def drain(peer: socket.socket) -> bytes:
    """Read the bytes that have arrived at a non-blocking socket."""
    received = bytearray()
    with suppress(BlockingIOError):
        while True:
            received += peer.recv(1 << 20)
    return bytes(received)


@contextmanager
def alarm(handler: Callable[[int, FrameType | None], None], sock: socket.socket) -> Iterator[None]:
    """Have SIGALRM arrive once the block waits in a system call on a socket."""
    before = signal.signal(signal.SIGALRM, handler)
    ended = threading.Event()
    thread = threading.get_ident()
    # The number of the system call that a thread waits in, and its arguments; or "running".
    state = Path(f"/proc/self/task/{threading.get_native_id()}/syscall")
    waits = re.compile(rf"\d+ {sock.fileno():#x} ")

    def send_signal() -> None:
        while not ended.is_set():
            if waits.match(state.read_text()):
                signal.pthread_kill(thread, signal.SIGALRM)
                return
            os.sched_yield()

    sender = threading.Thread(target=send_signal)
    sender.start()
    try:
        yield
    finally:
        ended.set()
        sender.join()
        signal.signal(signal.SIGALRM, before)


def interrupted_by(handler: Callable[[int, FrameType | None], None]) -> Callable[..., Any]:
    """Return a stand-in for a function; a signal handler runs during its call."""

    def call(*_args: object) -> Any:
        before = signal.signal(signal.SIGALRM, handler)
        try:
            signal.raise_signal(signal.SIGALRM)
        finally:
            signal.signal(signal.SIGALRM, before)

    return call


def raise_blocking_io_error(_number: int, _frame: object) -> None:
    """Handle a signal by raising what a full socket raises."""
    raise BlockingIOError(errno.EAGAIN, "from a handler")


raise_from_handler = interrupted_by(raise_blocking_io_error)

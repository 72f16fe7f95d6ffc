"""Scripted sockets and system calls."""

from __future__ import annotations

import errno
import importlib
import os
import socket
import sys
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from iobatch._forms import speedups

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

    from typing_extensions import Buffer

    Action = int | BaseException


def again() -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, "scripted")


class Call(NamedTuple):
    """A call of a fake: its name, buffers and flags."""

    name: str
    pieces: tuple[bytes, ...]
    flags: int


class Scripted(socket.socket):
    """A stream socket whose calls follow a script; after its end they accept all bytes.

    A number in the script is the most bytes that a call accepts; an exception is raised. The
    accepted bytes are in `taken`. The socket is not connected, and nothing reaches the network.

    The pure form calls the methods. The compiled form makes system calls, as for each plain socket,
    and SYSTEM_CALLS leads them to the methods.
    """

    def __init__(self, *script: Action) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self.script = deque(script)
        self.calls: list[Call] = []
        self.taken = bytearray()
        SYSTEM_CALLS.add(self)

    def close(self) -> None:
        SYSTEM_CALLS.remove(self)
        super().close()

    def _take(self, name: str, pieces: Iterable[Buffer], flags: int) -> int:
        call = Call(name, tuple(bytes(piece) for piece in pieces), flags)
        self.calls.append(call)
        offered = b"".join(call.pieces)
        action = self.script.popleft() if self.script else len(offered)
        if isinstance(action, BaseException):
            try:
                raise action
            finally:
                del action  # its traceback refers to this frame
        accepted = offered[:action]
        self.taken += accepted
        return len(accepted)

    def send(self, buffer: Buffer, flags: int = 0, /) -> int:
        return self._take("send", (buffer,), flags)

    def sendmsg(
        self,
        buffers: Iterable[Buffer],
        _ancdata: Iterable[Any] = (),
        flags: int = 0,
        _address: Any = None,
        /,
    ) -> int:
        return self._take("sendmsg", buffers, flags)

    @property
    def sizes(self) -> list[int]:
        """The number of bytes offered to each call."""
        return [sum(map(len, call.pieces)) for call in self.calls]


def patch_os(
    patch: pytest.MonkeyPatch,
    name: str,
    replacement: object,
    more_modules: Iterable[ModuleType] = (),
) -> None:
    """Replace a function of os, and each name of the library's modules that refers to it.

    Args:
        patch: undoes this.
        name: the name of the function.
        replacement: the function that replaces it.
        more_modules: those of a second copy of the library.

    """
    real = getattr(os, name)
    for module in (*library_modules().values(), *more_modules):
        for attribute, value in list(vars(module).items()):
            if value is real:
                patch.setattr(module, attribute, replacement)
    patch.setattr(os, name, replacement)
    if name in SYSTEM_CALLS.NAMES:
        patch.setattr(SYSTEM_CALLS, name, replacement)


class SystemCalls:
    """The system calls of the compiled form, which calls no method and no function of os.

    An attribute is the function that stands for a system call; None: the system's own.
    """

    NAMES = ("send", "sendmsg", "sendfile", "pread", "preadv")

    def __init__(self) -> None:
        self.sockets: dict[int, Scripted] = {}
        for name in self.NAMES:
            setattr(self, name, None)
        if speedups is not None:
            speedups.script_socket(Scripted)

    def __setattr__(self, name: str, function: object) -> None:
        object.__setattr__(self, name, function)
        if speedups is not None and name in self.NAMES:
            speedups.script_call(name, function)

    def add(self, sock: Scripted) -> None:
        self.sockets[sock.fileno()] = sock
        self.send, self.sendmsg = self._send, self._sendmsg

    def remove(self, sock: Scripted) -> None:
        if self.sockets.pop(sock.fileno(), None) and not self.sockets:
            self.send = self.sendmsg = None

    def _send(self, fd: int, data: bytes, flags: int) -> int:
        sock = self.sockets.get(fd)
        return NotImplemented if sock is None else sock.send(data, flags)

    def _sendmsg(self, fd: int, pieces: list[bytes], flags: int) -> int:
        sock = self.sockets.get(fd)
        return NotImplemented if sock is None else sock.sendmsg(pieces, (), flags)


SYSTEM_CALLS = SystemCalls()


class Read(NamedTuple):
    """A pread that succeeded: the descriptor, the offset, and the number of bytes read."""

    fd: int
    offset: int
    size: int


def log_preads(patch: pytest.MonkeyPatch, log: list[Any] | None = None) -> list[Any]:
    """Append a Read to a log for every pread that succeeds; return the log."""
    reads: list[Any] = [] if log is None else log
    pread = os.pread

    def logged(fd: int, nbytes: int, offset: int) -> bytes:
        piece = pread(fd, nbytes, offset)
        reads.append(Read(fd, offset, len(piece)))
        return piece

    patch_os(patch, "pread", logged)
    return reads


def script_sendfile(patch: pytest.MonkeyPatch, sock: Scripted) -> list[int]:
    """Have os.sendfile send to a scripted socket; return a list that collects its counts."""
    counts: list[int] = []
    pread = os.pread

    def sendfile(_out: int, fd: int, offset: int, count: int) -> int:
        counts.append(count)
        return sock._take("sendfile", (pread(fd, count, offset),), 0)

    patch_os(patch, "sendfile", sendfile)
    return counts


@contextmanager
def second_copy() -> Iterator[None]:
    """Have the block import the library anew; the first copy is in its place again afterwards."""
    saved = {name: sys.modules.pop(name) for name in library_modules()}
    try:
        yield
    finally:
        for name in library_modules():
            del sys.modules[name]
        sys.modules.update(saved)


def library_modules() -> dict[str, ModuleType]:
    """Return the modules of the library that are loaded."""
    return {name: sys.modules[name] for name in sys.modules if name.split(".")[0] == "iobatch"}


@contextmanager
def bare_platform() -> Iterator[ModuleType]:
    """Import a second copy of the library as on a system without the optional functions."""
    with second_copy():
        with pytest.MonkeyPatch.context() as patch:
            for name in ("sendfile", "pread", "posix_fadvise", "sysconf"):
                patch.delattr(os, name)
            for name in ("MSG_NOSIGNAL", "MSG_MORE", "TCP_CORK"):
                patch.delattr(socket, name)
            copy = importlib.import_module("iobatch")
        yield copy


def pure_copy() -> dict[str, ModuleType]:
    """Import a second copy of the library in its pure form; return its modules."""
    with second_copy(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("IOBATCH_PURE", "1")
        importlib.import_module("iobatch")
        return library_modules()

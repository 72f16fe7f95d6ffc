"""What the tests share: seeded data, scripted fakes, real pairs of sockets, invariants."""

from __future__ import annotations

import importlib
import os
import random
import select
import socket
import subprocess
import sys
from collections import deque
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import iobatch
from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_send, iob_write
from iobatch._batch import core_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import ModuleType

    from typing_extensions import Buffer

    Step = Callable[[Any, IOBatch], int]
    Action = int | BaseException

ROOT = Path(__file__).parent.parent
IOV_MAX = os.sysconf("SC_IOV_MAX")
STAGE_LIMIT = 128 * 1024  # the most bytes of files that one system call may stage
PATIENCE = 20.0  # seconds after which what does not come is taken as lost


def data(nbytes: int, seed: int = 0) -> bytes:
    """Return bytes without a period, so that a wrong offset can't go unseen."""
    return random.Random(seed).randbytes(nbytes)


def fd_count() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# The batch


def check_invariants(batch: IOBatch) -> None:
    """Check what must hold of a batch between any two calls; the one place that looks inside."""
    core = core_of(batch)
    sizes: list[int | None] = []  # None: a hook
    for entry in core.queue:
        if isinstance(entry, bytes | memoryview):
            sizes.append(len(entry))
        else:  # a file range is a tuple: descriptor, offset, count, ...
            sizes.append(entry[2] if isinstance(entry, tuple) else None)
    assert sum(size or 0 for size in sizes) == batch.bytesleft, "the total is what is left"
    assert 0 not in sizes, "no entry is empty"
    assert sizes[:1] != [None], "what was sent is released"
    assert 0 <= core.pinned <= (sizes[0] or 0 if sizes else 0), "the pin is inside the head"
    assert not core.pinned or not isinstance(core.head, tuple), "the pinned is in memory"
    kinds = [type(entry) for entry in core.queue]
    assert core.ranges == kinds.count(tuple), "the ranges are counted"
    assert core.releasable == len(kinds) - kinds.count(tuple) - kinds.count(bytes)
    assert not core.unsettled, "what was accepted is removed"
    assert not core.activity, "nothing is in progress"
    assert batch.bytessent >= 0
    assert bool(batch) is (batch.bytesleft > 0)


def take(batch: IOBatch, nbytes: int | None = None) -> bytes:
    """Take exactly nbytes, or all, out of a batch by iob_write, and return them."""
    taken = bytearray()

    def callback(_sock: None, view: memoryview) -> int:
        taken.extend(view)
        return len(view)

    wanted = batch.bytesleft if nbytes is None else nbytes
    while len(taken) < wanted:
        if iob_write(None, batch, callback, limit=wanted - len(taken)) < 0:
            raise AssertionError(batch.error)
        check_invariants(batch)
    return bytes(taken)


class Borrowed:
    """A file object that does not own its descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd


# Scripted fakes


def again() -> BlockingIOError:
    return BlockingIOError(11, "scripted")


class Call(NamedTuple):
    """A system call that a fake saw, with what it was given."""

    name: str
    pieces: tuple[bytes, ...]
    flags: int


class Scripted(socket.socket):
    """A stream socket that takes of each call what its script says, then everything.

    A number in the script is how many bytes a call takes at most; an exception is raised.
    """

    def __init__(self, *script: Action) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self.script = deque(script)
        self.calls: list[Call] = []
        self.taken = bytearray()

    def _take(self, name: str, pieces: Iterable[Buffer], flags: int) -> int:
        call = Call(name, tuple(bytes(piece) for piece in pieces), flags)
        self.calls.append(call)
        everything = b"".join(call.pieces)
        action = self.script.popleft() if self.script else len(everything)
        if isinstance(action, BaseException):
            raise action
        accepted = everything[:action]
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
        """The bytes given to each call."""
        return [sum(map(len, call.pieces)) for call in self.calls]


def patch_os(patch: pytest.MonkeyPatch, name: str, replacement: object) -> None:
    """Replace a function of os, also where the library keeps it under a name of its own."""
    real = getattr(os, name)
    for module in [module for key, module in sys.modules.items() if key.startswith("iobatch.")]:
        for attribute, value in list(vars(module).items()):
            if value is real:
                patch.setattr(module, attribute, replacement)
    patch.setattr(os, name, replacement)


class Read(NamedTuple):
    """A pread that took place."""

    fd: int
    offset: int
    size: int


def log_preads(patch: pytest.MonkeyPatch, log: list[Any] | None = None) -> list[Any]:
    """Note every pread in a log."""
    reads: list[Any] = [] if log is None else log
    pread = os.pread

    def logged(fd: int, nbytes: int, offset: int) -> bytes:
        piece = pread(fd, nbytes, offset)
        reads.append(Read(fd, offset, len(piece)))
        return piece

    patch_os(patch, "pread", logged)
    return reads


def script_sendfile(patch: pytest.MonkeyPatch, sock: Scripted) -> list[int]:
    """Let sendfile give to a scripted socket; return the list that gets the counts asked for."""
    counts: list[int] = []
    pread = os.pread

    def sendfile(_out: int, fd: int, offset: int, count: int) -> int:
        counts.append(count)
        return sock._take("sendfile", (pread(fd, count, offset),), 0)

    patch_os(patch, "sendfile", sendfile)
    return counts


@contextmanager
def bare_platform() -> Iterator[ModuleType]:
    """Import a second copy of the library, where the system has nothing that is optional."""
    names = [name for name in sys.modules if name.split(".")[0] == "iobatch"]
    saved = {name: sys.modules.pop(name) for name in names}
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("sendfile", "pread", "posix_fadvise", "sysconf"):
                patch.delattr(os, name)
            for name in ("MSG_NOSIGNAL", "MSG_MORE", "TCP_CORK"):
                patch.delattr(socket, name)
            copy = importlib.import_module("iobatch")
        yield copy
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "iobatch"]:
            del sys.modules[name]
        sys.modules.update(saved)


# Drivers: the same contract, by different ways out


DRIVERS = (
    "send",
    "send without sendfile",
    "send without sendmsg",
    "send by the portable path",
    "send to a descriptor",
    "send to a descriptor by the portable path",
    "write by socket.send",
    "write by os.write",
)
SEND_DRIVERS = DRIVERS[:4]


@contextmanager
def driver(name: str) -> Iterator[Step]:
    """Give a function that makes one step: it sends what a socket takes of a batch."""
    with pytest.MonkeyPatch.context() as patch:
        if "without sendfile" in name or "portable" in name:
            patch.setattr("iobatch._send._sendfile", None)
        if "without sendmsg" in name or "portable" in name:
            patch.setattr("iobatch._send._sendmsg", False)
        if name.startswith("send to a descriptor"):
            yield lambda sock, batch: iob_send(sock.fileno(), batch)
        elif name.startswith("send"):
            yield iob_send
        elif name == "write by socket.send":
            yield lambda sock, batch: iob_write(sock, batch, socket.socket.send)
        else:
            yield lambda sock, batch: iob_write(sock.fileno(), batch, os.write)


# Real sockets


FAMILIES = ("tcp4", "tcp6", "unix", "socketpair")


@contextmanager
def stream_pair(
    kind: str = "socketpair", *, buffers: int | None = None, maxseg: int | None = None
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give two connected stream sockets, blocking, if wanted with small buffers."""
    if kind == "tcp6" and not _has_ipv6():
        pytest.skip("this machine has no IPv6 loopback: enable it (net.ipv6.conf.lo)")
    if kind == "socketpair":
        one, other = socket.socketpair()
    else:
        family = {
            "tcp4": socket.AF_INET,
            "tcp6": socket.AF_INET6,
            "unix": socket.AF_UNIX,
        }[kind]
        with socket.socket(family) as listener:
            if maxseg:
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, maxseg)
                # With TCP_NODELAY Linux cuts a frame where the window ends: it shall never end.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            if buffers:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            # An empty name makes Linux choose one in the abstract namespace.
            listener.bind({"tcp4": ("127.0.0.1", 0), "tcp6": ("::1", 0)}.get(kind, ""))
            listener.listen(1)
            one = socket.socket(family)
            one.connect(listener.getsockname())
            other, _ = listener.accept()
        if kind != "unix":
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with one, other:
        if buffers:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        yield one, other


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def receive(peer: Any, nbytes: int) -> bytes:
    """Read exactly nbytes from a socket or descriptor; they must come by themselves."""
    fd = peer if isinstance(peer, int) else peer.fileno()
    received = bytearray()
    while len(received) < nbytes:
        readable, _, _ = select.select([fd], [], [], PATIENCE)
        assert readable, f"only {len(received)} of {nbytes} bytes came"
        piece = os.read(fd, min(nbytes - len(received), 1 << 20))
        assert piece, f"the end came after {len(received)} of {nbytes} bytes"
        received += piece
    return bytes(received)


def receive_all(peer: socket.socket) -> bytes:
    """Read up to the end; for a thread of its own."""
    received = bytearray()
    with suppress(ConnectionResetError):
        while piece := peer.recv(1 << 20):
            received += piece
    return bytes(received)


def is_silent(peer: socket.socket) -> bool:
    """Tell whether nothing has arrived."""
    return not select.select([peer], [], [], 0)[0]


def clog(sock: socket.socket) -> int:
    """Make a socket non-blocking, and fill it until it takes no more; tell how much it took."""
    sock.setblocking(False)
    count = 0
    filler = bytes(4096)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                count += sock.send(filler[:size])
    return count


def pump(step: Step, sock: Any, peer: Any, batch: IOBatch) -> bytes:
    """Step until the batch is empty, reading whenever no more is taken; return what came."""
    fd = peer if isinstance(peer, int) else peer.fileno()
    start = batch.bytessent
    received = bytearray()
    for _ in range(1_000_000):
        nbytes = step(sock, batch)
        check_invariants(batch)
        if nbytes == IOB_ERROR:
            raise AssertionError(batch.error)
        if nbytes == IOB_DONE:
            break
        if nbytes == IOB_AGAIN:
            assert select.select([fd], [], [], PATIENCE)[0], "again, but nothing is on its way"
            received += os.read(fd, 1 << 16)
    assert not batch.bytesleft
    received += receive(peer, batch.bytessent - start - len(received))
    return bytes(received)


def run_python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own; its imports see the library."""
    place = str(Path(iobatch.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": place},
    )


def joined(pieces: Sequence[Buffer]) -> bytes:
    return b"".join(bytes(memoryview(piece).cast("B")) for piece in pieces)

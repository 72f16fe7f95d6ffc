"""Building and controlling the library that makes a system call fail: see shim.c."""

from __future__ import annotations

import ctypes
import errno
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).with_name("shim.c")
SHORT = -1  # the enum of shim.c
NO_FAULT = 0
# More calls than any run makes that is never counted: of a clean run.
NO_LIMIT = 1_000_000
MOST_RESULTS = 1024
SIGNAL = signal.SIGUSR1

ERRORS = (
    "EAGAIN",
    "EINTR",
    "EPIPE",
    "ECONNRESET",
    "ENOBUFS",
    "ENOMEM",
    "EIO",
    "EINVAL",
    "ENOSYS",
    "EBADF",
    "ETIMEDOUT",
    "EMSGSIZE",
    "ENOSPC",
    "EMFILE",
    "ESTALE",
)
# What else happens: see Fault.
SHORTS = ("short", "signal+short")
SIGNALS = ("signal", "signal+EINTR", "signal+short")
KINDS = (*ERRORS, "short", *SIGNALS)
# The calls that transfer bytes, and so can return short.
TRANSFERS = frozenset(
    ("send", "sendto", "sendmsg", "sendfile", "pread", "preadv2", "write", "writev")
)
# The calls that scenarios must meet, and others that the library makes.
CALLS = (
    *("send", "sendto", "sendmsg", "sendfile", "pread", "preadv2", "write", "writev"),
    *("setsockopt", "getsockopt", "fstat", "open", "dup", "poll"),
    *("epoll_ctl", "epoll_wait", "close"),
)
OTHERS = ("epoll_create", "lseek", "ioctl", "posix_fadvise", "accept", "getdents")


class Fault(NamedTuple):
    """What happens at the nth call of a name: `send:3:EIO`.

    `kind` is the name of an errno; "short"; or "signal", "signal+EINTR" or "signal+short": a signal
    arrives during the call, which has done all, nothing or a part of its work.
    """

    call: str
    nth: int
    kind: str

    def __str__(self) -> str:
        return f"{self.call}:{self.nth}:{self.kind}"

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Return the fault of its str().

        Raises:
            ValueError: the text is none.

        """
        call, nth, kind = text.split(":")
        if call not in (*CALLS, *OTHERS) or kind not in KINDS:
            raise ValueError(text)
        return cls(call, int(nth), kind)

    @property
    def signal(self) -> bool:
        """Whether a signal arrives."""
        return self.kind.startswith("signal")

    @property
    def number(self) -> int:
        """The errno, SHORT or NO_FAULT."""
        kind = self.kind.removeprefix("signal").removeprefix("+")
        if kind == "short":
            return SHORT
        return getattr(errno, kind) if kind else NO_FAULT


class _State(ctypes.Structure):
    """`shim_state` of shim.c up to its counts."""

    _fields_ = (
        ("counting", ctypes.c_int),
        ("call", ctypes.c_int),
        ("fault", ctypes.c_int),
        ("signal", ctypes.c_int),
        ("nth", ctypes.c_long),
        ("part", ctypes.c_long),
        ("limit", ctypes.c_long),
        ("met", ctypes.c_long),
        ("bad_closes", ctypes.c_long),
        ("total", ctypes.c_long),
    )


class Shim:
    """The shim that this process was started with."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        names = (ctypes.c_char_p * 64).in_dll(library, "shim_names")
        self.names: list[str] = []
        for name in names:
            if name is None:
                break
            self.names.append(name.decode())
        self._state = _State.in_dll(library, "shim_state")
        address = ctypes.addressof(self._state) + ctypes.sizeof(_State)
        self._counts = (ctypes.c_long * len(self.names)).from_address(address)
        address += ctypes.sizeof(self._counts)
        self._results = (ctypes.c_long * MOST_RESULTS * len(self.names)).from_address(address)

    def arm(self, fault: Fault | None = None, limit: int = NO_LIMIT, part: int = 0) -> None:
        """Set the counts to zero, and have a fault happen; None: calls are counted only.

        Args:
            fault: what happens, once.
            limit: the process aborts at the next call after this number of calls.
            part: the number of bytes that a short call transfers.

        """
        state = self._state
        state.counting = 0
        ctypes.memset(self._counts, 0, ctypes.sizeof(self._counts))
        state.met = state.total = 0
        state.limit, state.part = limit, part
        state.call = -1 if fault is None else self.names.index(fault.call)
        if fault is not None:
            state.nth = fault.nth
            state.fault = fault.number
            state.signal = SIGNAL if fault.signal else 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the calls of the block, of all threads; the fault can happen only there."""
        before = self._state.counting
        self.start()
        try:
            yield
        finally:
            self._state.counting = before

    def start(self) -> None:
        """Begin to count."""
        self._state.counting = 1

    def stop(self) -> None:
        """Count no longer."""
        self._state.counting = 0

    @property
    def met(self) -> int:
        """How often the fault has happened since arm()."""
        return self._state.met

    @property
    def bad_closes(self) -> int:
        """How often a closed descriptor was closed again, ever."""
        return self._state.bad_closes

    def results(self) -> dict[str, list[int]]:
        """Return what the calls of each name since arm() have returned: a negative errno if -1."""
        return {
            name: results[:count]
            for name, count, results in zip(self.names, self._counts, self._results, strict=True)
            if count
        }


def build(folder: Path) -> Path:
    """Compile the shim; return the library to preload."""
    library = folder / "shim.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, SOURCE, "-ldl"],
        check=True,
    )
    return library

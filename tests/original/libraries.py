"""libowfat's iob functions and iobatch under one interface, that of libowfat."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    # It is called with the socket's descriptor and an offer. It returns how much it takes, or a
    # negative code and an errno.
    Callback = Callable[[int, bytes], int | tuple[int, int]]

AGAIN = (-1, errno.EAGAIN)
BROKEN = (-3, errno.EIO)


class Library(Protocol):
    """The functions of a library; a batch is whatever new() returns."""

    name: str

    def new(self) -> Any: ...
    def addbuf(self, batch: Any, piece: bytes) -> None: ...
    def adds(self, batch: Any, text: str) -> None: ...
    def addfile(self, batch: Any, fd: int, offset: int, count: int) -> None: ...
    def addfile_close(self, batch: Any, fd: int, offset: int, count: int) -> None: ...
    def prefetch(self, batch: Any, nbytes: int) -> None: ...
    def bytesleft(self, batch: Any) -> int: ...
    def reset(self, batch: Any) -> None: ...
    def free(self, batch: Any) -> None: ...
    def register(self, fd: int) -> None: ...
    def send(self, fd: Any, batch: Any) -> int: ...
    def write(self, fd: Any, batch: Any, callback: Callback) -> int: ...
    def errno(self, batch: Any) -> int: ...


class Libowfat:
    """The C library. A function that adds returns 1; anything else raises AssertionError."""

    name = "libowfat"
    POINTER, INT, INT64, UINT64 = (
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_int64,
        ctypes.c_uint64,
    )
    CALLBACK = ctypes.CFUNCTYPE(INT64, INT64, POINTER, UINT64, use_errno=True)
    SIGNATURES: ClassVar[dict[str, tuple[Any, ...]]] = {
        "iob_new": (POINTER, INT),
        "iob_addbuf": (INT, POINTER, POINTER, UINT64),
        "iob_addbuf_munmap": (INT, POINTER, POINTER, UINT64),
        "iob_adds": (INT, POINTER, ctypes.c_char_p),
        "iob_addfile": (INT, POINTER, INT64, UINT64, UINT64),
        "iob_addfile_close": (INT, POINTER, INT64, UINT64, UINT64),
        "iob_prefetch": (None, POINTER, UINT64),
        "iob_bytesleft": (UINT64, POINTER),
        "iob_reset": (None, POINTER),
        "iob_free": (None, POINTER),
        "iob_send": (INT64, INT64, POINTER),
        "iob_write": (INT64, INT64, POINTER, CALLBACK),
        "io_fd": (INT, INT64),
        "io_setcookie": (None, INT64, POINTER),
        "io_getcookie": (POINTER, INT64),
    }

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libowfat.so", use_errno=True)
        for function, (result, *arguments) in self.SIGNATURES.items():
            getattr(self.library, function).restype = result
            getattr(self.library, function).argtypes = arguments
        self.held: list[object] = []  # libowfat keeps pointers to them

    def hold(self, piece: bytes) -> ctypes.Array[ctypes.c_char]:
        memory = ctypes.create_string_buffer(piece, max(len(piece), 1))
        self.held.append(memory)
        return memory

    def new(self) -> Any:
        return self.library.iob_new(10)

    def addbuf(self, batch: Any, piece: bytes) -> None:
        assert self.library.iob_addbuf(batch, self.hold(piece), len(piece)) == 1

    def adds(self, batch: Any, text: str) -> None:
        assert self.library.iob_adds(batch, self.hold(text.encode() + b"\0")) == 1

    def addfile(self, batch: Any, fd: int, offset: int, count: int) -> None:
        assert self.library.iob_addfile(batch, fd, offset, count) == 1

    def addfile_close(self, batch: Any, fd: int, offset: int, count: int) -> None:
        assert self.library.iob_addfile_close(batch, fd, offset, count) == 1

    def prefetch(self, batch: Any, nbytes: int) -> None:
        self.library.iob_prefetch(batch, nbytes)

    def bytesleft(self, batch: Any) -> int:
        return int(self.library.iob_bytesleft(batch))

    def reset(self, batch: Any) -> None:
        self.library.iob_reset(batch)

    def free(self, batch: Any) -> None:
        self.library.iob_free(batch)

    def register(self, fd: int) -> None:
        """Make a descriptor known to libowfat's event loop."""
        assert self.library.io_fd(fd) == 1

    def send(self, fd: Any, batch: Any) -> int:
        ctypes.set_errno(0)
        return int(self.library.iob_send(descriptor(fd), batch))

    def write(self, fd: Any, batch: Any, callback: Callback) -> int:
        def call(sock: int, address: int, count: int) -> int:
            result = callback(sock, ctypes.string_at(address, count))
            code, number = result if isinstance(result, tuple) else (result, 0)
            ctypes.set_errno(number)
            return code

        ctypes.set_errno(0)
        return int(self.library.iob_write(descriptor(fd), batch, self.CALLBACK(call)))

    def errno(self, _batch: Any) -> int:
        """Return the errno of the last call; it means something only after -1 and -3."""
        return ctypes.get_errno()


class Iobatch:
    """One form of iobatch.

    Attributes:
        module: the package iobatch, or its pure copy.

    """

    def __init__(self, name: str, module: Any) -> None:
        self.name = name
        self.module = module

    def new(self) -> Any:
        return self.module.IOBatch()

    def addbuf(self, batch: Any, piece: bytes) -> None:
        batch.addbuf(piece)

    def adds(self, batch: Any, text: str) -> None:
        batch.adds(text)

    def addfile(self, batch: Any, fd: int, offset: int, count: int) -> None:
        batch.addfile(fd, offset, count)

    def addfile_close(self, batch: Any, fd: int, offset: int, count: int) -> None:
        batch.addfile_close(fd, offset, count)

    def prefetch(self, batch: Any, nbytes: int) -> None:
        batch.prefetch(nbytes)

    def bytesleft(self, batch: Any) -> int:
        return int(batch.bytesleft)

    def reset(self, batch: Any) -> None:
        batch.reset()

    def free(self, batch: Any) -> None:
        batch.reset()

    def register(self, fd: int) -> None:
        """Do nothing: iobatch has no event loop."""

    def send(self, fd: Any, batch: Any) -> int:
        return int(self.module.iob_send(fd, batch))

    def write(self, fd: Any, batch: Any, callback: Callback) -> int:
        def call(sock: int, view: memoryview) -> int:
            result = callback(sock, bytes(view))
            return result[0] if isinstance(result, tuple) else result

        return int(self.module.iob_write(descriptor(fd), batch, call))

    def errno(self, batch: Any) -> int:
        return int(batch.error.errno or 0) if batch.error else 0


def descriptor(fd: Any) -> int:
    return fd if isinstance(fd, int) else int(fd.fileno())


def signal_name(number: int) -> str:
    return signal.Signals(number).name


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True

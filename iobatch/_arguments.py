"""What callers give, checked and normalised: descriptors, offsets, limits, flags, buffers."""

from __future__ import annotations

import errno
import os
from operator import index
from pickle import PickleBuffer
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import Protocol

    from typing_extensions import Buffer

    class HasFileno(Protocol):
        """A file or socket object."""

        def fileno(self) -> int:
            """Return its descriptor."""

    class OpenFile(HasFileno, Protocol):
        """A file object that can be closed."""

        def close(self) -> object:
            """Close it."""


MAX_BYTES: Final = 2**63 - 1  # the largest off_t
MAX_INT: Final = 2**31 - 1  # the largest int of C: a descriptor, flags


def as_byte_view(data: Buffer) -> bytes | memoryview:
    """Return bytes as they are, and any other buffer as a one-dimensional view of its bytes.

    Raises:
        TypeError: data has no buffer.
        BufferError: data is not C-contiguous.

    """
    if type(data) is bytes:
        return data
    view = memoryview(data)
    if not view.c_contiguous:
        raise BufferError("a C-contiguous buffer is required")
    if view.format == "B" and view.ndim == 1:
        return view
    # memoryview.cast refuses some formats and an empty dimension; PickleBuffer takes them all.
    # It exports `view`, not `data`: a memoryview that the caller gave stays free to be released.
    return PickleBuffer(view).raw()


def check_nonnegative(number: int, name: str) -> int:
    """Return an int that is not negative."""
    number = index(number)
    if number < 0:
        raise ValueError(f"{name} must not be negative: {number}")
    return number


def check_limit(limit: int | None) -> int:
    """Return a limit in bytes, MAX_BYTES for None."""
    if limit is None:
        return MAX_BYTES
    limit = index(limit)
    if limit < 1:
        raise ValueError(f"limit must be at least 1: {limit}")
    return limit


def check_flags(flags: int) -> int:
    """Return MSG_* flags as a plain int that C can take."""
    flags = index(flags)
    if not -MAX_INT <= flags <= MAX_INT:
        raise OverflowError(f"flags must fit an int of C: {flags}")
    return flags


def fileno(file: object) -> int:
    """Return the descriptor that an int or a file object stands for."""
    if isinstance(file, int):
        fd = file
    elif hasattr(file, "fileno"):
        fd = file.fileno()
    else:
        raise TypeError(
            f"a descriptor or an object with fileno() is required, not {type(file).__name__!r}"
        )
    fd = check_nonnegative(fd, "a file descriptor")
    if fd > MAX_INT:
        raise OverflowError(f"no file descriptor is as large as {fd}")
    return fd


def file_size(fd: int) -> int:
    """Return where a regular file ends now."""
    status = os.fstat(fd)
    if S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not S_ISREG(status.st_mode):
        raise ValueError("count is required: only a regular file has an end")
    return status.st_size

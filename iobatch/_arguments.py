"""Arguments, checked and normalised: descriptors, offsets, limits, timeouts, flags, buffers."""

from __future__ import annotations

import errno
import os
from math import inf
from operator import index
from pickle import PickleBuffer
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from typing import Protocol

    from typing_extensions import Buffer

    class HasFileno(Protocol):
        """A file or socket object."""

        def fileno(self) -> int:
            """Return the descriptor of the object."""

    class OpenFile(HasFileno, Protocol):
        """A file object that can be closed."""

        def close(self) -> object:
            """Close the file."""


MAX_BYTES: Final = 2**63 - 1  # the largest off_t
MAX_INT: Final = 2**31 - 1  # the largest C int, the type of descriptors and flags


def as_byte_view(data: Buffer) -> bytes | memoryview:
    """Return bytes as they are, and any other buffer as a one-dimensional view of its bytes.

    Raises:
        TypeError: data does not support the buffer protocol.
        BufferError: data is not C-contiguous.

    """
    if type(data) is bytes:
        return data
    view = memoryview(data)
    if not view.c_contiguous:
        raise BufferError("data must be a C-contiguous buffer")
    if view.format == "B" and view.ndim == 1:
        return view
    # memoryview.cast refuses some formats and an empty dimension; PickleBuffer accepts them all. It
    # exports `view`, not `data`: if `data` is a memoryview, its owner can still release it.
    return PickleBuffer(view).raw()


def check_nonnegative(number: int, name: str) -> int:
    """Return the number as an int.

    Raises:
        TypeError: number is not an int.
        ValueError: number is negative.

    """
    number = index(number)
    if number < 0:
        raise ValueError(f"{name} must not be negative: {number}")
    return number


def check_limit(limit: int | None) -> int:
    """Return a limit in bytes as an int, and MAX_BYTES for None.

    Raises:
        TypeError: limit is neither an int nor None.
        ValueError: limit is below 1.

    """
    if limit is None:
        return MAX_BYTES
    limit = index(limit)
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    return limit


def check_flags(flags: int) -> int:
    """Return MSG_* flags as a plain int.

    Raises:
        TypeError: flags is not an int.
        OverflowError: flags does not fit a C int.

    """
    flags = index(flags)
    if not -MAX_INT <= flags <= MAX_INT:
        raise OverflowError(f"flags must fit a C int, not {flags}")
    return flags


def fileno(file: object) -> int:
    """Return the descriptor of a file object, or a descriptor itself.

    Raises:
        TypeError: file is neither, or fileno() returned no int.
        ValueError: the descriptor is negative.
        OverflowError: the descriptor does not fit a C int.

    """
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
        raise OverflowError(f"a file descriptor must fit a C int, not {fd}")
    return fd


def file_size(fd: int) -> int:
    """Return the current size of a regular file in bytes.

    Raises:
        IsADirectoryError: fd is a directory.
        ValueError: fd is neither a regular file nor a directory.
        OSError: fstat(2) failed.

    """
    status = os.fstat(fd)
    if S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not S_ISREG(status.st_mode):
        raise ValueError("count is required: file is not a regular file")
    return status.st_size


def check_timeout(seconds: Any) -> float | None:
    """Return a timeout as a float; None: no bound.

    Raises:
        TypeError: seconds is not a number, or one that can't be added to a loop's time.
        OverflowError: seconds doesn't fit a float.
        ValueError: seconds is negative or NaN.

    """
    if seconds is None:
        return None
    try:
        number = 0.0 + seconds
    except TypeError:
        kind = type(seconds).__name__
        raise TypeError(f"a timeout must be a number of seconds or None, not {kind!r}") from None
    if not number >= 0:  # NaN included
        raise ValueError(f"a timeout must not be negative or NaN: {seconds}")
    return None if number == inf else number

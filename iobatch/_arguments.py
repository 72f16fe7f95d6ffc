"""Arguments, checked and normalised: descriptors, offsets, limits, timeouts, flags, buffers."""

from __future__ import annotations

import collections.abc
from abc import abstractmethod
from math import inf
from operator import index
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any, Final, Protocol

from iobatch._errors import is_interruption

if TYPE_CHECKING:
    from collections.abc import Iterable

    import typing_extensions

    Buffer = typing_extensions.Buffer
else:
    # Python 3.11 has no Buffer. Type checkers have it everywhere; typing.get_type_hints() gives
    # `object` there.
    Buffer = getattr(collections.abc, "Buffer", object)


class HasFileno(Protocol):
    """A file or socket object."""

    @abstractmethod
    def fileno(self) -> int:
        """Return the descriptor of the object."""


class OpenFile(HasFileno, Protocol):
    """A file object that can be closed."""

    @abstractmethod
    def close(self) -> object:
        """Close the file."""


MAX_BYTES: Final = 2**63 - 1  # the largest off_t
MAX_INT: Final = 2**31 - 1  # the largest C int, the type of descriptors and flags

# What memoryview() raises for an object: ValueError if it is a released view.
_BUFFER_ERRORS: Final = (TypeError, BufferError, ValueError)


def as_byte_view(data: Buffer) -> bytes | memoryview:
    """Return bytes as they are, and any other buffer as a one-dimensional view of its bytes.

    Raises:
        TypeError: data does not support the buffer protocol.
        BufferError: data is not C-contiguous.
        ValueError: data is a view that was released.

    """
    if type(data) is bytes:
        return data
    view = memoryview(data)
    if not view.c_contiguous:
        view.release()  # else the traceback would hold it
        raise BufferError("data must be a C-contiguous buffer")
    if view.format == "B" and view.ndim == 1:
        return view
    # memoryview.cast refuses some formats and an empty dimension; PickleBuffer accepts them all. It
    # exports `view`, not `data`: if `data` is a memoryview, its owner can still release it.
    return PickleBuffer(view).raw()


def as_byte_views(buffers: list[Buffer]) -> list[bytes | memoryview]:
    """Return all buffers as as_byte_view() does.

    Raises:
        TypeError, BufferError, ValueError: as for as_byte_view(). The message has the position.

    """
    views: list[bytes | memoryview] = []
    try:
        views.extend(map(as_byte_view, buffers))
    except BaseException as exc:
        release_views(views)
        if type(exc) not in _BUFFER_ERRORS or is_interruption(exc):
            raise
        raise type(exc)(f"buffers[{len(views)}]: {exc}") from exc
    return views


def release_views(entries: Iterable[object]) -> None:
    """Release those of some refused entries that are views."""
    for entry in entries:
        if type(entry) is memoryview:
            entry.release()


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
    """Return a limit in bytes as an int of at most MAX_BYTES, which None stands for.

    Raises:
        TypeError: limit is neither an int nor None.
        ValueError: limit is below 1.

    """
    if limit is None:
        return MAX_BYTES
    limit = index(limit)
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    return min(limit, MAX_BYTES)


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


def fileno(file: Any) -> int:
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

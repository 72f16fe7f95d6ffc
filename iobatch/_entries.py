"""What stands in a batch's queue, and how what callers give becomes it."""

from __future__ import annotations

import errno
import os
from copy import copy
from operator import index
from pickle import PickleBuffer
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Final, final

from attrs import define

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol, Self

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
MAX_FD: Final = 2**31 - 1  # the largest int


class TruncatedFileError(OSError):
    """A file ended before the range that was to be sent from it did.

    Attributes:
        fd: the file's descriptor.
        offset: where the file ended: the offset of the first byte that is missing.
        missing: how many bytes of the range are missing.

    """

    def __init__(self, fd: int, offset: int, missing: int) -> None:
        """Say which file ended, where, and how many bytes too early."""
        super().__init__(
            errno.EIO,
            f"file descriptor {fd} ended at offset {offset}, {missing} bytes before its range",
        )
        self.fd = fd
        self.offset = offset
        self.missing = missing

    def __reduce__(self) -> tuple[type[Self], tuple[int, int, int]]:
        return type(self), (self.fd, self.offset, self.missing)


@final
@define(eq=False)
class Release:
    """Stands behind the entry that it belongs to, and runs when it comes to the head."""

    run: Callable[[], object]
    # It closes a file that the batch owns.
    closes: bool = False


# A file range: the descriptor, the offset, the count, the object that the descriptor came from
# (while it lives, its number is not reused), and whether sendfile refused the file. A tuple, since
# an object of a class takes five times as long to make, and most responses need one.
FileRange = tuple[int, int, int, object, bool]
# Three kinds of thing stand in the queue. Bytes to be written are plain `bytes`, or a
# one-dimensional memoryview of unsigned bytes that belongs to the batch; a FileRange will become
# bytes or go by sendfile; a Release is no bytes at all. No entry is empty, and a Release is never
# at the head, except for the moment in which `_advance` takes it off.
Entry = bytes | memoryview | FileRange | Release
Releases = tuple[Release, ...]


def describe(entry: Entry) -> str:
    """Return what repr says of an entry."""
    if type(entry) is tuple:
        fd, offset, count, _, _ = entry
        return f"{count} bytes of descriptor {fd} from offset {offset}"
    return f"a buffer of {len(entry)} bytes"  # type: ignore[arg-type]  # never a Release


def flatten(data: Buffer) -> bytes | memoryview:
    """Return what stands for a buffer in the queue: itself, or a view of single bytes."""
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


def hooks(on_release: Callable[[], object] | None) -> Releases:
    """Return what stands behind an entry in the queue to call on_release."""
    if on_release is None:
        return ()
    if not callable(on_release):
        raise TypeError(f"on_release must be callable, not {type(on_release).__name__!r}")
    return (Release(on_release),)


@define(eq=False)
class _Unraisable:
    """Raises where the interpreter calls sys.unraisablehook: nobody else can make its argument."""

    exc: BaseException

    def __del__(self) -> None:
        try:
            raise self.exc
        finally:
            # Its traceback refers to this frame now.
            del self.exc


def report_unraisable(exc: BaseException) -> None:
    """Hand an exception to sys.unraisablehook."""
    _Unraisable(exc)
    del exc  # as above


def copied(error: OSError) -> OSError:
    """Copy an error that is to be raised: what keeps it shall not refer to frames by it."""
    try:
        return copy(error)
    except Exception:  # noqa: BLE001 # a callback's own class: it may not be made for it
        return error


def natural(number: int, name: str) -> int:
    """Return an int that is not negative."""
    number = index(number)
    if number < 0:
        raise ValueError(f"{name} must not be negative: {number}")
    return number


def positive(limit: int | None) -> int:
    """Return a limit in bytes, where None is none."""
    if limit is None:
        return MAX_BYTES
    limit = index(limit)
    if limit < 1:
        raise ValueError(f"limit must be at least 1: {limit}")
    return limit


def fileno(file: object) -> int:
    """Return the descriptor of a file object."""
    if isinstance(file, int):
        fd = file
    elif hasattr(file, "fileno"):
        fd = file.fileno()
    else:
        raise TypeError(
            f"a descriptor or an object with fileno() is required, not {type(file).__name__!r}"
        )
    fd = natural(fd, "a file descriptor")
    if fd > MAX_FD:
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


def _seek_and_read(fd: int, nbytes: int, offset: int) -> bytes:
    """Do what pread does where there is none (Windows): the position is put back."""
    position = os.lseek(fd, 0, os.SEEK_CUR)
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, nbytes)
    finally:
        os.lseek(fd, position, os.SEEK_SET)


pread = getattr(os, "pread", _seek_and_read)

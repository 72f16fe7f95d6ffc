"""Files: opening a path, the size of a file, and reads at an offset."""

from __future__ import annotations

import errno
import os
import select
from io import FileIO
from mmap import PAGESIZE
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Final, TypeVar

from iobatch._errors import is_interruption
from iobatch._forms import compiled

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeGuard

_Owner = TypeVar("_Owner")

# With O_NONBLOCK open(2) does not wait for the writer of a FIFO, or for the end of a lease. With
# O_NOCTTY a terminal does not become the controlling terminal of the process. Windows has neither,
# but has O_BINARY. os.open adds O_CLOEXEC.
_NONBLOCK: Final[int] = getattr(os, "O_NONBLOCK", 0)
_OPEN_FLAGS: Final[int] = (
    os.O_RDONLY | _NONBLOCK | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
)

# The sizes that file systems report for files whose content is made while it is read: procfs and
# most others 0, sysfs and configfs one page. Such files have no blocks.
_DOUBTFUL_SIZES: Final = (0, PAGESIZE)


@compiled
def file_version(fd: int) -> tuple[int, int, int]:
    """Return what differs between two versions of an open file.

    Returns:
        The size in bytes, and when the content and when the inode was changed last, in nanoseconds
        since 1970.

    Raises:
        OSError: fstat(2) failed.

    """
    return version_of(os.fstat(fd))


def version_of(status: os.stat_result) -> tuple[int, int, int]:
    """Return the part of a file's status that file_version returns."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_path(
    file: object,
) -> TypeGuard[str | bytes | os.PathLike[str] | os.PathLike[bytes]]:
    """Return whether a file is given as a path. An object with fileno() is an open file."""
    # hasattr first: it takes a third of the time of isinstance.
    return not hasattr(file, "fileno") and isinstance(file, str | bytes | os.PathLike)


def open_file(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> FileIO:
    """Open a path for reading at an offset, without waiting.

    Raises:
        IsADirectoryError: the path is a directory.
        ValueError: the file has no offsets (a FIFO, a terminal); or the path has a null character.
        OSError: the file can't be opened. EBUSY: another process holds a lease on it.

    """
    try:
        # An assignment from map() stores the result of the call in one step, so no signal handler
        # can raise an exception between the two, and the descriptor always has an owner.
        [fd] = map(os.open, (path,), (_OPEN_FLAGS,))
    except BlockingIOError as exc:
        if is_interruption(exc):
            raise
        # A BlockingIOError is "again" to the functions that send: in a callback, they would wait
        # for the socket. EBUSY states that the file is in use. The kernel has asked the holder to
        # end the lease, so a later attempt succeeds.
        raise OSError(errno.EBUSY, "another process holds a lease on the file", path) from exc
    try:
        _check_seekable(fd)
        if _NONBLOCK:
            # It was for open(2). A read that fails with EAGAIN would be taken for a full socket.
            os.set_blocking(fd, True)
        [file] = map(FileIO, (fd,))
    except BaseException as exc:
        os.close(fd)
        if type(exc) is IsADirectoryError:
            exc.filename = path  # FileIO knows the descriptor only
        raise
    return file


def duplicate(fd: int, own: Callable[[int], _Owner]) -> _Owner:
    """Return an object that owns a duplicate of a descriptor.

    Args:
        fd: the descriptor.
        own: called with the duplicate; returns its owner.

    Raises:
        OSError: no descriptor is available.

    """
    # As in open_file(), no signal handler runs before the descriptor has an owner.
    [copied] = map(os.dup, (fd,))
    try:
        [owner] = map(own, (copied,))
    except BaseException:
        os.close(copied)
        raise
    return owner


def file_size(fd: int) -> int:
    """Return the current size of a regular file in bytes.

    Raises:
        IsADirectoryError: fd is a directory.
        ValueError: fd is neither a regular file nor a directory, or its reported size is wrong.
        OSError: fstat(2) failed; or a read failed that checks a reported size.

    """
    status = os.fstat(fd)
    if S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not S_ISREG(status.st_mode):
        raise ValueError("count is required: file is not a regular file")
    size = status.st_size
    # Windows reports no blocks, and has no such files.
    if size in _DOUBTFUL_SIZES and not getattr(status, "st_blocks", 1) and not _ends_at(fd, size):
        raise ValueError(f"count is required: the length of file is not the reported {size} bytes")
    return size


def _check_seekable(fd: int) -> None:
    """Check that a file has offsets; pread(2) fails otherwise.

    Raises:
        ValueError: it has none.

    """
    try:
        os.lseek(fd, 0, os.SEEK_CUR)
    except OSError as exc:
        if is_interruption(exc):
            raise
        raise ValueError("file must have offsets: it is a FIFO, a terminal or the like") from exc


def _ends_at(fd: int, size: int) -> bool:
    """Return whether a look at the content confirms the size of a file.

    A file that would have to be waited for, as /proc/kmsg, confirms nothing.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(0):
        return False
    try:
        # The last byte exists, or an empty file has no first byte.
        return len(pread(fd, 1, max(size - 1, 0))) == min(size, 1)
    except BlockingIOError as exc:
        if is_interruption(exc):
            raise
        return False


def _seek_and_read(fd: int, nbytes: int, offset: int) -> bytes:
    """Read as pread(2) does, on systems without it (Windows); restore the file position."""
    position = os.lseek(fd, 0, os.SEEK_CUR)
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, nbytes)
    finally:
        os.lseek(fd, position, os.SEEK_SET)


pread = getattr(os, "pread", _seek_and_read)

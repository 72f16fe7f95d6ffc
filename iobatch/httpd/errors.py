"""Errors of the file system, and the statuses that report them to clients."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

# Other errors are the server's fault: 500.
_STATUS_OF_ERRNO = {
    errno.ENOENT: 404,
    errno.ENOTDIR: 404,
    errno.ENAMETOOLONG: 404,
    errno.ELOOP: 404,
    errno.EACCES: 403,
    errno.EPERM: 403,
    errno.EINVAL: 400,
    errno.EMFILE: 503,
    errno.ENFILE: 503,
}


def os_error(number: int) -> OSError:
    """Return the exception for an errno, as a failed system call raises it."""
    return OSError(number, os.strerror(number))


def close_descriptor(fd: int) -> None:
    """Close a descriptor that was only read from: the failure of close(2) loses nothing."""
    with suppress(OSError):
        os.close(fd)


def status_of(error: OSError) -> int:
    """Return the status of the response to a request whose file could not be opened."""
    return _STATUS_OF_ERRNO.get(error.errno or 0, 500)

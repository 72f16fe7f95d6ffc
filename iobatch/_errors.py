"""Errors: what is raised, what means "again", and what is kept without the frames it came through.

is_again() is the one place that tells "try again later" from a permanent error.
"""

from __future__ import annotations

import errno
from copy import copy
from ssl import SSLWantReadError, SSLWantWriteError
from typing import TYPE_CHECKING, Final, final

from attrs import define

if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Self


# EWOULDBLOCK is EAGAIN on Linux; POSIX allows two numbers.
_AGAIN: Final = (errno.EAGAIN, errno.EWOULDBLOCK)


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


def is_again(exc: OSError) -> bool:
    """Tell whether a call that raised this took nothing, and may be repeated later.

    Python makes a BlockingIOError of EAGAIN and EWOULDBLOCK, and of EINPROGRESS and EALREADY, which
    a connection that is still being made gives (MSG_FASTOPEN). A callback may raise one without
    errno. A TimeoutError without errno is the socket's own timeout; with ETIMEDOUT it is the end of
    the connection. Any other errno is permanent.
    """
    if isinstance(exc, BlockingIOError | SSLWantReadError | SSLWantWriteError):
        return True
    return exc.errno in _AGAIN or (isinstance(exc, TimeoutError) and exc.errno is None)


def is_interruption(exc: BaseException) -> bool:
    """Tell whether an exception is not that of the call that was being made.

    A signal handler can raise anything, OSError included, after a system call has sent bytes and
    before they are counted: that must never be taken for the call's own error. Only a handler (and
    a trace function, for which the same holds) is called with the frame that it interrupts. The
    handler of Ctrl-C has no frame, but no call raises by itself what is no Exception.
    """
    return not isinstance(exc, Exception) or is_from_handler(exc)


def is_from_handler(exc: BaseException) -> bool:
    """Tell whether a signal handler written in Python raised an exception.

    It is known by its second argument, so one that deletes or replaces that is not.
    """
    traceback = exc.__traceback__
    frame: FrameType | None = None
    while traceback is not None:
        interrupted, frame = frame, traceback.tb_frame
        if interrupted is not None and _was_given(frame, interrupted):
            return True
        traceback = traceback.tb_next
    return False


def _was_given(frame: FrameType, interrupted: FrameType) -> bool:
    for value in frame.f_locals.values():
        # A tuple: of def handler(*args).
        if any(each is interrupted for each in (value if type(value) is tuple else (value,))):
            return True
    return False


@final
class suppress_own:  # noqa: N801 # it is used as contextlib.suppress is
    """Suppress exceptions as contextlib.suppress does, except those of a signal handler."""

    def __init__(self, *kinds: type[BaseException]) -> None:
        """Say which exceptions to suppress."""
        self._kinds = kinds

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> bool:
        return isinstance(exc, self._kinds) and not is_interruption(exc)


def forget_frames(exc: OSError) -> None:
    """Remove the traceback, whose frames hold views and batches, from an error that is kept."""
    exc.__traceback__ = exc.__context__ = exc.__cause__ = None


def copy_to_raise(error: OSError) -> OSError:
    """Return a copy to raise, so that the stored error never gains a traceback."""
    try:
        return copy(error)
    except Exception:  # noqa: BLE001 # a class of the caller's may not be made to be copied
        return error


@define(eq=False)
class _Unraisable:
    """Raises in its finalizer: only the interpreter can make sys.unraisablehook's argument."""

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

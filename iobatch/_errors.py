"""Exceptions: TruncatedFileError, how exceptions are classified, and how a batch stores errors.

is_again() is the only place that tells "try again later" from a permanent error. is_interruption()
tells an exception of a signal handler from the error of the call that the handler interrupted.
"""

from __future__ import annotations

import errno
from copy import copy
from ssl import SSLError, SSLWantReadError, SSLWantWriteError
from typing import TYPE_CHECKING, Final, Self, TypeVar, cast, final

from attrs import define

if TYPE_CHECKING:
    from types import FrameType, TracebackType

Raised = TypeVar("Raised", bound=Exception)
RaisedSSL = TypeVar("RaisedSSL", bound=SSLError)

# EAGAIN and EWOULDBLOCK are the same number on Linux; POSIX allows two numbers.
_AGAIN: Final = (errno.EAGAIN, errno.EWOULDBLOCK)


class TruncatedFileError(OSError):
    """A file ended before the end of the range to send.

    Attributes:
        fd: the descriptor of the file.
        offset: the offset in bytes at which the file ended.
        missing: the number of bytes of the range that are missing.

    """

    def __init__(self, fd: int, offset: int, missing: int) -> None:
        """Make an error with errno EIO and these attributes."""
        super().__init__(
            errno.EIO,
            f"file descriptor {fd} ended at offset {offset}, {missing} bytes before its range ends",
        )
        self.fd = fd
        self.offset = offset
        self.missing = missing

    def __reduce__(self) -> tuple[type[Self], tuple[int, int, int]]:
        return type(self), (self.fd, self.offset, self.missing)


def ssl_error(kind: type[RaisedSSL], number: int, message: str) -> RaisedSSL:
    """Return an SSLError with `library` and `reason`, which only the ssl module's own errors have.

    Args:
        kind: its class.
        number: its errno, one of ssl.SSL_ERROR_*.
        message: its text.

    """
    error = kind(number, message)
    error.__dict__.update(library=None, reason=None)
    return error


def is_again(exc: OSError) -> bool:
    """Return whether the call that raised this exception took nothing and can be repeated later.

    Python raises BlockingIOError for EAGAIN and EWOULDBLOCK, and for EINPROGRESS and EALREADY,
    which a connection in progress gives (MSG_FASTOPEN). A callback may raise a BlockingIOError
    without errno. A TimeoutError without errno is the socket's own timeout; a TimeoutError with
    ETIMEDOUT is the end of the connection. Any other errno is permanent.
    """
    if isinstance(exc, BlockingIOError | SSLWantReadError | SSLWantWriteError):
        return True
    return exc.errno in _AGAIN or (isinstance(exc, TimeoutError) and exc.errno is None)


def is_interruption(exc: BaseException) -> bool:
    """Return whether an exception interrupted a call, rather than being raised by the call.

    A signal handler can raise any exception, OSError included, after a system call has sent bytes
    and before they are counted. Such an exception must not be treated as the error of the call.
    is_from_handler() recognizes the exceptions of handlers written in Python. Python's own handler
    of SIGINT is written in C and has no frame. Its KeyboardInterrupt is not an Exception, and a
    call by itself raises only Exceptions.
    """
    return not isinstance(exc, Exception) or is_from_handler(exc)


def is_from_handler(exc: BaseException) -> bool:
    """Return whether a signal handler written in Python raised an exception.

    A signal handler is called with the interrupted frame as its second argument. The only other
    functions that are called with this frame are trace functions, whose exceptions interrupt a call
    in the same way. A handler that deletes or replaces this argument is not recognized.
    """
    traceback = exc.__traceback__
    frame: FrameType | None = None
    while traceback is not None:
        interrupted, frame = frame, traceback.tb_frame
        if interrupted is not None and _holds_frame(frame, interrupted):
            return True
        traceback = traceback.tb_next
    return False


def _holds_frame(frame: FrameType, interrupted: FrameType) -> bool:
    for value in frame.f_locals.values():
        # The value is a tuple in a handler defined with *args.
        values = cast("tuple[object, ...]", value if type(value) is tuple else (value,))
        if any(each is interrupted for each in values):
            return True
    return False


@final
class suppress_call_error:  # noqa: N801 # it is used as contextlib.suppress is
    """Suppress exceptions as contextlib.suppress does, except those of a signal handler."""

    def __init__(self, *kinds: type[BaseException]) -> None:
        """Make a context manager that suppresses these kinds of exceptions."""
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


def drop_traceback(exc: OSError) -> None:
    """Remove traceback, context and cause from an error to be stored.

    The frames of a traceback hold references to views and batches.
    """
    exc.__traceback__ = exc.__context__ = exc.__cause__ = None


def copy_to_raise(error: Raised) -> Raised:
    """Return a copy to raise, so that the traceback of the stored error does not grow.

    Frames in that traceback would refer to the object that stores the error, and keep it alive.
    """
    try:
        raised = copy(error)
    except Exception:  # noqa: BLE001 # a class of the caller may raise anything when copied
        raised = error
    raised.__cause__ = error.__cause__
    return raised.with_traceback(error.__traceback__)


@define(eq=False)
class _Unraisable:
    """Raise an exception in a finalizer, so that the interpreter calls sys.unraisablehook.

    Only the interpreter can make the argument of the hook.
    """

    exc: BaseException

    def __del__(self) -> None:
        if not hasattr(self, "exc"):
            return  # the exception of a signal handler has stopped __init__
        try:
            raise self.exc
        finally:
            # The traceback of the exception refers to this frame: break the cycle.
            del self.exc


def report_unraisable(exc: BaseException) -> None:
    """Report an exception through sys.unraisablehook."""
    _Unraisable(exc)
    del exc  # as in _Unraisable.__del__

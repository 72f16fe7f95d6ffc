"""The callback path: batches written through a function that behaves like write(2)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from operator import index
from selectors import EVENT_WRITE
from typing import Final, TypeVar

from iobatch._arguments import check_limit
from iobatch._batch import IOBatch, core_of
from iobatch._core import (
    COUNT_UNKNOWN,
    IDLE,
    IOB_AGAIN,
    IOB_DONE,
    IOB_ERROR,
    SENDING,
    BatchCore,
)
from iobatch._errors import is_interruption
from iobatch._forms import compiled

Sock = TypeVar("Sock")
# A function like write(2); iob_write documents it.
WriteCallback = Callable[[Sock, memoryview], int | None]

# The most bytes that one call offers, four TLS records, so that the caller's event loop regains
# control.
WRITE_LIMIT: Final = 64 * 1024


@compiled
def iob_write(
    sock: Sock,
    batch: IOBatch,
    callback: WriteCallback[Sock],
    *,
    limit: int | None = WRITE_LIMIT,
) -> int:
    """Write a batch through a callback: TLS, compression, or any function like write(2).

    The callback is called with sock and with a read-only view that is valid only during the call.
    Its return value or exception means:

    - `n > 0`: it took the first n bytes of the view.
    - `-1` or None, or BlockingIOError, SSLWantWriteError, SSLWantReadError, any OSError whose errno
      is EAGAIN or EWOULDBLOCK, or a TimeoutError without errno: "again". A BlockingIOError means
      this whatever its errno. If its characters_written is positive, this number of bytes counts as
      taken.
    - `0`: the other side takes no more bytes.
    - `-3`, or any other OSError: a permanent error.

    So ssl.SSLSocket.send, socket.socket.send and os.write are callbacks as they are. An SSLSocket
    requires ssl.SSLSocket.send: socket.socket.send would send plain text.

    After "again" the next call offers the same number of the same bytes, whatever its limit. An
    offer may span entries: a callback must not rely on their boundaries.

    Args:
        sock: any object; passed to the callback.
        batch: the batch to write.
        callback: the function that takes the bytes, as above.
        limit: the most bytes to offer in this call, so that an event loop regains control; None: no
            limit.

    Returns:
        n > 0: n bytes were taken; call again.
        IOB_DONE (0): the batch is empty.
        IOB_AGAIN (-1): nothing was taken; wait until sock is ready for batch.wants and call again.
        IOB_ERROR (-3): nothing was taken, and no later call takes anything until reset():
            batch.error is the permanent error (BrokenPipeError for a callback's 0).
            batch.bytessent counts the bytes taken before the error; the rest is still in the batch,
            and extend() of another batch can move it.

    Raises:
        ValueError: limit is below 1; or the callback returned a number that is greater than the
            length of the view, or below -1 and not -3.
        TypeError: batch is not an IOBatch, limit is not an int, or the callback returned neither an
            int nor None.
        RuntimeError: a call on the batch is in progress, as during its hooks and callbacks.
        Exception: any other exception of the callback. After an exception that the callback caused,
            the batch is as it was before that call of the callback; bytes taken by its earlier
            calls are counted in batch.bytessent.
        BaseException: a MemoryError, or the exception of a signal handler. If batch.error is None,
            another call can continue. If not, the number of bytes taken is unknown, and the batch
            has failed.

    Source: write(2), SSL_write(3).
    """
    if limit is not WRITE_LIMIT:
        limit = check_limit(limit)
    core = core_of(batch)
    while core.activity or core.release_pending:  # no call follows the last test: see rule 2
        core.check_idle()
    if core.error is not None:
        return IOB_ERROR
    if not core.left:
        return IOB_DONE
    written = 0
    core.activity = SENDING
    core.wants = EVENT_WRITE
    pin_before = core.pinned
    try:
        while core.left and written < limit:
            view = core.pin_head(limit - written)
            offered = len(view)
            nbytes = _offer(callback, sock, view, core)
            if nbytes < 0:
                break
            pin_before = 0
            core.consume(nbytes)
            written += nbytes
            if nbytes < offered:
                break
    except BaseException as exc:
        code = core.call_raised(exc)
        if code is None:
            # A batch that has failed has no pin: see BatchCore.fail(). _offer() sets `error`.
            failed = core.error is COUNT_UNKNOWN  # pyright: ignore[reportUnnecessaryComparison]
            core.pinned = 0 if failed else pin_before
            raise
        return written or code
    finally:
        core.activity = IDLE
    return written or IOB_AGAIN


def _offer(
    callback: WriteCallback[Sock],
    sock: Sock,
    view: memoryview,
    core: BatchCore,
) -> int:
    """Offer a view to a callback once; return the number of bytes it took, or IOB_AGAIN.

    Raises:
        OSError: raised by the callback, or made from its return code.
        ValueError, TypeError: the callback returned an invalid value.
        Exception: any other exception of the callback.

    """
    offered = len(view)
    core.error = COUNT_UNKNOWN
    try:
        answer = callback(sock, view)
    except Exception as exc:  # noqa: BLE001 # count_taken() raises it again
        answer = count_taken(exc, offered, core)
    finally:
        release(view)
    return check_answer(answer, offered, core)


def count_taken(exc: Exception, offered: int, core: BatchCore) -> int:
    """Return how many bytes a callback took that raised an exception; raise it again for none."""
    if isinstance(exc, BlockingIOError):
        # A full io.BufferedWriter reports in characters_written how many bytes it took.
        taken: int = getattr(exc, "characters_written", 0)
        if 0 < taken <= offered and not is_interruption(exc):
            return taken
    elif isinstance(exc, RecursionError) and not is_interruption(exc):
        # The callback's own, as any other exception of it. After the callback has returned, it is
        # the interpreter's, and the count is unknown. A MemoryError can come after the callback's
        # own system call.
        core.error = None
    try:
        raise exc
    finally:
        # The traceback of the exception refers to this frame: break the cycle.
        del exc


def release(view: memoryview) -> None:
    """Release a view after its offer."""
    try:
        view.release()
    except BufferError as exc:
        # A callback that keeps an export of the view (for example a PickleBuffer) breaks its
        # contract; release() then fails.
        if is_interruption(exc):
            raise


def check_answer(answer: int | None, offered: int, core: BatchCore) -> int:
    """Return the number of bytes that a callback took, or IOB_AGAIN.

    Raises:
        OSError: made from the return code.
        ValueError, TypeError: the answer is invalid.

    """
    nbytes = IOB_AGAIN if answer is None else index(answer)
    if not (-1 <= nbytes <= offered or nbytes == IOB_ERROR):
        raise ValueError(f"the callback returned {nbytes} when {offered} bytes were offered")
    if nbytes == 0:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    if nbytes == IOB_ERROR:
        raise OSError(errno.EIO, "the callback reported a permanent error")
    if nbytes == IOB_AGAIN:
        core.error = None
    return nbytes

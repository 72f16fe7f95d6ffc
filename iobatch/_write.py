"""The callback path: batches driven through a function that behaves like write(2)."""

from __future__ import annotations

import errno
import os
from operator import index
from selectors import EVENT_WRITE
from typing import TYPE_CHECKING, Final, TypeVar

from iobatch._arguments import check_limit
from iobatch._batch import core_of
from iobatch._core import (
    COUNT_UNKNOWN,
    IDLE,
    IOB_AGAIN,
    IOB_ERROR,
    SENDING,
    BatchCore,
)
from iobatch._errors import is_interruption

if TYPE_CHECKING:
    from collections.abc import Callable

    from iobatch._batch import IOBatch

Sock = TypeVar("Sock")

# What one call offers, so that a state machine gets control back: four TLS records.
WRITE_LIMIT: Final = 64 * 1024


def iob_write(
    sock: Sock,
    batch: IOBatch,
    callback: Callable[[Sock, memoryview], int | None],
    *,
    limit: int | None = WRITE_LIMIT,
) -> int:
    """Write a batch through a callback: TLS, compression, or any function like write(2).

    The callback gets sock as it is and a read-only view that is valid during the call only. It
    returns how many bytes of it were taken; -1 or None, or BlockingIOError, SSLWantWriteError,
    SSLWantReadError or a TimeoutError without errno raised, say "again" (a BlockingIOError with
    characters_written says how many were taken all the same); 0 says that the other side takes no
    more; -3, or any other OSError raised, is a permanent error. So
    ssl.SSLSocket.send, socket.socket.send and os.write are callbacks as they stand. (For an
    SSLSocket it must be ssl.SSLSocket.send: socket.socket.send would send plain text.)

    After "again" the same bytes are offered again, in the same length, whatever the limit. An
    offer may span entries: a callback must not count on their boundaries.

    Args:
        sock: any object; handed to the callback.
        batch: what to write.
        callback: see above.
        limit: the most bytes to offer in this call; None: as many as are taken.

    Returns:
        n > 0: n bytes were taken; call again.
        IOB_DONE (0): the batch is empty.
        IOB_AGAIN (-1): nothing was taken; wait until sock is ready for batch.wants and call again.
        IOB_ERROR (-3): nothing was taken, now or later: batch.error says why (BrokenPipeError for
            a callback's 0). What was taken before is in batch.bytessent, what was not is still in
            the batch.

    Raises:
        ValueError: limit is below 1, or the callback returned another number.
        TypeError: the callback returned no number.
        RuntimeError: this is a hook or callback of the batch itself.
        Exception: what else the callback raises. After these the batch is as it was before that
            callback; what earlier callbacks of this call took is in batch.bytessent.
        BaseException: a signal handler's exception. If it is unknown how many bytes were taken,
            batch.error says so, and the batch has failed.

    Source: write(2), SSL_write(3).
    """
    if limit is not WRITE_LIMIT:
        limit = check_limit(limit)
    core = core_of(batch)
    if core.activity or core.unsettled or core.error is not None or not core.left:
        code = core.why_not()
        if code is not None:
            return code
    written = 0
    core.activity = SENDING
    core.wants = EVENT_WRITE
    pinned = core.pinned
    try:
        while core.left and written < limit:
            pinned = core.pinned
            view = core.pin(limit - written)
            offered = len(view)
            nbytes = _call(callback, sock, view, core)
            if nbytes < 0:
                break
            pinned = 0
            core.consume(nbytes)
            written += nbytes
            if nbytes < offered:
                break
    except BaseException as exc:
        code = core.call_raised(exc)
        if code is None:
            core.pinned = pinned
            raise
        return written or code
    finally:
        core.activity = IDLE
    return written or IOB_AGAIN


def _call(
    callback: Callable[[Sock, memoryview], int | None],
    sock: Sock,
    view: memoryview,
    core: BatchCore,
) -> int:
    """Offer a view to a callback once; return how many bytes it took, or IOB_AGAIN.

    Raises:
        OSError: the callback's own; or what stands for its code.
        ValueError, TypeError: the callback returned what it may not.
        Exception: what else the callback raised.

    """
    offered = len(view)
    core.error = COUNT_UNKNOWN
    try:
        nbytes = callback(sock, view)
    except BlockingIOError as exc:
        # A buffered file that is full says how much of it it took.
        taken = getattr(exc, "characters_written", 0)
        if not 0 < taken <= offered or is_interruption(exc):
            raise
        nbytes = taken
    finally:
        try:
            view.release()
        except BufferError as exc:
            # What the callback took a buffer of, against the contract, can't be released.
            if is_interruption(exc):
                raise
    nbytes = IOB_AGAIN if nbytes is None else index(nbytes)
    if not (-1 <= nbytes <= offered or nbytes == IOB_ERROR):
        raise ValueError(f"the callback returned {nbytes} when {offered} bytes were offered")
    if nbytes == 0:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    if nbytes == IOB_ERROR:
        raise OSError(errno.EIO, "the callback reported a permanent error")
    if nbytes == IOB_AGAIN:
        core.error = None
    return nbytes

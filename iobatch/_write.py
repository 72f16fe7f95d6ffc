"""The callback path: batches driven through a function that behaves like write(2)."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from operator import index
from selectors import EVENT_READ, EVENT_WRITE
from ssl import SSLWantReadError, SSLWantWriteError
from typing import TYPE_CHECKING, Final, TypeVar

from iobatch._batch import IDLE, IOB_AGAIN, IOB_DONE, IOB_ERROR, SENDING, IOBatch
from iobatch._entries import positive
from iobatch._stage import offer

if TYPE_CHECKING:
    from collections.abc import Callable

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

    Source: write(2), SSL_write(3).
    """
    if limit is not WRITE_LIMIT:
        limit = positive(limit)
    batch._refuse_if_busy()
    if batch._error is not None:
        return IOB_ERROR
    if not batch._left:
        return IOB_DONE
    written = 0
    batch._busy = SENDING
    batch._wants = EVENT_WRITE
    try:
        while batch._left and written < limit:
            nbytes, offered = _offer(sock, batch, callback, limit - written)
            if nbytes < 0:
                return written or nbytes
            written += nbytes
            if nbytes < offered:
                break
        return written
    finally:
        batch._busy = IDLE


def _offer(
    sock: Sock, batch: IOBatch, callback: Callable[[Sock, memoryview], int | None], room: int
) -> tuple[int, int]:
    """Offer the head of a batch once; return what was taken, or a code, and what was offered."""
    pin = batch._pin
    offered = 0
    try:
        view = offer(batch, room)
        offered = len(view)
        try:
            nbytes = callback(sock, view)
        finally:
            # What the callback took a buffer of, against the contract, can't be released.
            with suppress(BufferError):
                view.release()
        nbytes = IOB_AGAIN if nbytes is None else index(nbytes)
        if not (-1 <= nbytes <= offered or nbytes == IOB_ERROR):
            raise ValueError(f"the callback returned {nbytes} when {offered} bytes were offered")
        if nbytes == 0:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        if nbytes == IOB_ERROR:
            raise OSError(errno.EIO, "the callback reported a permanent error")
    except SSLWantReadError:
        batch._wants = EVENT_READ
        nbytes = IOB_AGAIN
    except (BlockingIOError, SSLWantWriteError) as exc:
        # A buffered file that is full tells so how much it took all the same.
        nbytes = getattr(exc, "characters_written", 0)
        if not 0 < nbytes <= offered:
            nbytes = IOB_AGAIN
    except OSError as exc:
        if exc.errno is None and isinstance(exc, TimeoutError):
            nbytes = IOB_AGAIN
        else:
            batch._fail(exc)
            nbytes = IOB_ERROR
    except BaseException:
        batch._pin = pin
        raise
    if nbytes > 0:
        batch._pin = 0
        batch._advance(nbytes)
    return nbytes, offered

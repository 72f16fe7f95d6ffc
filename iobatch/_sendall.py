"""The blocking path: whole batches, for programs without an event loop."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import partial
from selectors import EVENT_READ, DefaultSelector
from ssl import SSL_ERROR_WANT_READ, SSLWantReadError
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from iobatch._arguments import check_limit, fileno
from iobatch._batch import IOBatch  # noqa: TC001 # for typing.get_type_hints
from iobatch._core import IOB_AGAIN, IOB_ERROR
from iobatch._errors import copy_to_raise, ssl_error, suppress_call_error
from iobatch._send import SEND_LIMIT, iob_send
from iobatch._write import WRITE_LIMIT, WriteCallback, iob_write

if TYPE_CHECKING:
    from collections.abc import Generator

# The longest wait of one select(), a day: epoll_wait(2) takes milliseconds as a C int.
_MAX_WAIT: Final = 86_400.0


def iob_sendall(
    sock: Any,
    batch: IOBatch,
    callback: WriteCallback[Any] | None = None,
    *,
    timeout: float | None = None,
    limit: int | None = SEND_LIMIT,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Send a whole batch, and wait for as long as that takes.

    After an exception batch.bytessent has grown by the bytes that were sent, and the rest is still
    in the batch. Bytes that a filter has taken count as sent.

    Args:
        sock: as for iob_send, or with a callback as for iob_write. Waiting requires a descriptor
            or an object with fileno().
        batch: the batch to send.
        callback: write through this callback with iob_write. A Filter (any object with drain, and
            with bytesleft, error and wants as on a batch) is drained too. finish() is left to the
            caller.
        timeout: seconds for the whole call, during which sock is non-blocking; its mode is restored
            at the end. None: no bound, whatever the socket's own timeout. O_NONBLOCK belongs to the
            open file: other processes that share it see it too.
        limit: the most bytes of one step, after which progress is called; None: no limit. With a
            callback a step has at most WRITE_LIMIT bytes.
        progress: called after each step that sent bytes of the batch, with their number.

    Returns:
        The number of bytes sent by this call.

    Raises:
        OSError: a copy of batch.error, or of the callback's error: the batch or the filter has
            failed, and no call continues. Or sock can't be made non-blocking for the timeout, for
            example because it is closed; then nothing was sent.
        TimeoutError: the timeout has expired. Another call can continue with the batch.
        SSLWantReadError: a filter must read before it can send, and a filter does not read (TLS
            during its handshake). Another call can continue after the filter was given the bytes
            that the peer has sent. A callback without drain reads by itself, and is waited for.
        ValueError: timeout is negative or NaN, or limit is below 1. Nothing was sent.
        Exception: any exception of iob_send, iob_write and progress. Another call can continue if
            batch.error is None.
        BaseException: as for iob_send.

    """
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout must be at least 0 seconds, not {timeout}")
    limit = step_limit(limit, callback)
    sent = 0
    deadline = None if timeout is None else monotonic() + timeout
    with ExitStack() as stack:
        if timeout is not None:
            stack.enter_context(_nonblocking(sock))
        selector = None
        for call, source in sending_calls(sock, batch, callback):
            while nbytes := call(limit):
                check_code(nbytes, source, callback)
                if nbytes > 0 and source is batch:
                    sent += nbytes
                    if progress is not None:
                        progress(nbytes)
                remaining = None if deadline is None else deadline - monotonic()
                if (
                    remaining is not None
                    and remaining <= 0
                    and (source.bytesleft or nbytes == IOB_AGAIN)
                ):
                    raise TimeoutError(f"{source.bytesleft} bytes were left after {timeout} s")
                if nbytes == IOB_AGAIN:
                    # Only after IOB_AGAIN: epoll refuses regular files, which never block.
                    if selector is None:
                        selector = stack.enter_context(DefaultSelector())
                        selector.register(sock, source.wants)
                    selector.modify(sock, source.wants)
                    selector.select(None if remaining is None else min(remaining, _MAX_WAIT))
    return sent


def step_limit(limit: int | None, callback: object) -> int:
    """Return the most bytes of one step; with a callback at most WRITE_LIMIT.

    Raises:
        ValueError: limit is below 1.

    """
    limit = check_limit(limit)
    return limit if callback is None else min(limit, WRITE_LIMIT)


def sending_calls(
    sock: Any, batch: IOBatch, callback: WriteCallback[Any] | None
) -> list[tuple[Callable[[int], int], Any]]:
    """Return the calls that send a whole batch: each in turn is repeated until it returns 0.

    Returns:
        Pairs: a function of the most bytes to send, and the batch or filter whose `error`, `wants`
        and `bytesleft` go with it.

    """
    if callback is None:
        return [(lambda limit: iob_send(sock, batch, limit=limit), batch)]
    calls: list[tuple[Callable[[int], int], Any]] = [
        (lambda limit: iob_write(sock, batch, callback, limit=limit), batch)
    ]
    drain: Callable[[Any], int] | None = getattr(callback, "drain", None)
    if drain is not None:
        calls.append((lambda _: drain(sock), callback))
    return calls


def check_code(code: int, source: Any, callback: Any) -> None:
    """Raise the error that a call of sending_calls() has met, if it can't be repeated.

    Raises:
        OSError: a copy of the error of its batch or filter.
        SSLWantReadError: a filter must read before it can send.

    """
    if code == IOB_ERROR:
        raise copy_to_raise(source.error)
    if code == IOB_AGAIN and source.wants == EVENT_READ:
        _check_reader(callback)


def _check_reader(callback: Any) -> None:
    """Check that the callback which wants to read reads by itself, as ssl.SSLSocket.send does.

    A filter does not read: the wait for its bytes would end at once, again and again. After a
    pipeline of filters there may be a callback that reads.

    Raises:
        SSLWantReadError: a filter wants to read.

    """
    last = callback
    while hasattr(getattr(last, "then", None), "drain"):
        last = last.then
    # The last filter holds bytes if the callback after it has refused them. A filter wants to read
    # only when no filter holds bytes: the peer answers what it has received.
    if hasattr(last, "drain") and not last.bytesleft:
        raise ssl_error(
            SSLWantReadError,
            SSL_ERROR_WANT_READ,
            "a filter must read before it can send, and this call does not read",
        )


@contextmanager
def _nonblocking(sock: Any) -> Generator[None]:
    """Make a socket or descriptor non-blocking, and restore its mode at the end."""
    if hasattr(sock, "gettimeout"):
        change = sock.setblocking
        restore = partial(sock.settimeout, sock.gettimeout())
    else:
        fd = fileno(sock)
        change = partial(os.set_blocking, fd)
        restore = partial(change, os.get_blocking(fd))
    try:
        # Inside the block: a call that fails, or after which a signal handler raises, may have
        # changed the timeout of a socket object.
        change(False)
        yield
    finally:
        # A socket that was closed meanwhile has no mode to restore.
        with suppress_call_error(OSError):
            restore()

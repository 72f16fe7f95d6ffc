"""The blocking path: a batch driven to its end, for programs without a loop."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from functools import partial
from selectors import DefaultSelector
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from iobatch._arguments import fileno
from iobatch._core import IOB_AGAIN, IOB_ERROR
from iobatch._errors import copy_to_raise, suppress_own
from iobatch._send import iob_send
from iobatch._write import iob_write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from iobatch._batch import IOBatch

# Selectors can't wait forever in one call: this is a day.
_LONG: Final = 86_400.0


def iob_sendall(
    sock: Any,
    batch: IOBatch,
    callback: Callable[[Any, memoryview], int | None] | None = None,
    *,
    timeout: float | None = None,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Send a whole batch, waiting as long as it takes.

    Args:
        sock: as for iob_send, or with a callback as for iob_write. To be waited for it must be a
            descriptor or have fileno().
        batch: what to send.
        callback: write through it, by iob_write. A Filter (anything with drain, and bytesleft,
            error and wants as a batch has them) is drained too; its finish is the caller's.
        timeout: seconds for all of it, in which sock is non-blocking; None: no bound, whatever
            the socket's own timeout.
        progress: called with the number of bytes after each step that sent some.

    Returns:
        The bytes sent by this call.

    Raises:
        OSError: a copy of batch.error, or of the callback's error. What was sent is in
            batch.bytessent, what was not is still in the batch.
        TimeoutError: the time is over. The batch can go on from there.
        ValueError: timeout is negative.
        Exception: what iob_send, iob_write and progress raise.

    """
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout must be a number of seconds, and not negative: {timeout}")
    start = batch.bytessent
    deadline = None if timeout is None else monotonic() + timeout
    drain = getattr(callback, "drain", None)

    def send() -> int:
        return iob_send(sock, batch) if callback is None else iob_write(sock, batch, callback)

    steps: list[tuple[Callable[[], int], Any]] = [(send, batch)]
    if drain is not None:
        steps.append((lambda: drain(sock), callback))
    with ExitStack() as stack:
        if timeout is not None:
            stack.enter_context(_nonblocking(sock))
        selector = None
        for step, source in steps:
            while nbytes := step():
                if nbytes == IOB_ERROR:
                    raise copy_to_raise(source.error)
                if nbytes > 0 and progress is not None and source is batch:
                    progress(nbytes)
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0 and (source.bytesleft or nbytes == IOB_AGAIN):
                    raise TimeoutError(f"{source.bytesleft} bytes were left after {timeout} s")
                if nbytes == IOB_AGAIN:
                    # Not before: what never says "again", as a regular file, can't be waited for.
                    if selector is None:
                        selector = stack.enter_context(DefaultSelector())
                        selector.register(sock, source.wants)
                    else:
                        selector.modify(sock, source.wants)
                    selector.select(None if left is None else min(left, _LONG))
    return batch.bytessent - start


@contextmanager
def _nonblocking(sock: Any) -> Iterator[None]:
    """Make a socket or descriptor non-blocking for a while."""
    if hasattr(sock, "gettimeout"):
        restore = partial(sock.settimeout, sock.gettimeout())
        sock.setblocking(False)
    else:
        fd = fileno(sock)
        restore = partial(os.set_blocking, fd, os.get_blocking(fd))
        os.set_blocking(fd, False)
    try:
        yield
    finally:
        # Where it was closed meanwhile there is nothing to restore.
        with suppress_own(OSError):
            restore()

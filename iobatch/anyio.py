"""Batches under trio, and under anyio on asyncio and uvloop: send_batch.

It needs anyio: `pip install 'iobatch[anyio]'`. A program on trio calls it as it is.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial
from selectors import EVENT_READ
from typing import TYPE_CHECKING, Any, Final

from anyio import BusyResourceError, ClosedResourceError, to_thread, wait_readable, wait_writable
from anyio.lowlevel import checkpoint

from iobatch._batch import IOBatch, core_of
from iobatch._core import IOB_AGAIN, IOB_DONE
from iobatch._errors import copy_to_raise, is_interruption, suppress_call_error
from iobatch._files import duplicate
from iobatch._pagecache import PageCacheProbe
from iobatch._send import SEND_LIMIT
from iobatch._sendall import check_code, sending_calls, step_limit
from iobatch._write import WriteCallback  # noqa: TC001 # for typing.get_type_hints

if TYPE_CHECKING:
    from collections.abc import Generator

    from iobatch._core import BatchCore

__all__ = ["send_batch"]

# The identities of the sockets over which a batch is being sent.
_in_use: Final[set[int]] = set()


async def send_batch(
    sock: Any,
    batch: IOBatch,
    callback: WriteCallback[Any] | None = None,
    *,
    limit: int | None = SEND_LIMIT,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Send a whole batch, while other tasks run.

    A file range that is not in the page cache is read by a thread first. Each call that is not
    refused is a checkpoint, also with an empty batch, and after each `limit` bytes it is one again.
    A timeout is the caller's: anyio.fail_after, trio.move_on_after.

    Args:
        sock: a non-blocking socket.socket, or a trio.socket, in whose place the callback gets a
            socket.socket; or any other object with fileno() that iob_send, or the callback, takes.
            Before another task closes a socket.socket, it must call anyio.notify_closing. A
            trio.socket needs no such call.
        batch: the batch to send. Entries that are added during the call are sent, too.
        callback: write through this callback with iob_write. A Filter is drained, too, and so is
            any object with drain, and with bytesleft, error and wants as on a batch. finish() is
            left to the caller.
        limit: the most bytes of one step, after which other tasks run; None: no limit. With a
            callback a step has at most WRITE_LIMIT bytes.
        progress: called after each step that sent bytes of the batch, with their number.

    Returns:
        The number of bytes sent by this call.

    Raises:
        trio.Cancelled, asyncio.CancelledError: the task was cancelled. The call does not wait for a
            thread that reads.
        OSError: a copy of batch.error, or of the callback's error.
        anyio.BusyResourceError: another task is in send_batch with sock, or waits until sock is
            writable.
        anyio.ClosedResourceError: sock is closed, or another task has called anyio.notify_closing.
        SSLWantReadError: a filter must read before it can send, and a filter does not read (TLS
            during its handshake). Another call can continue after the filter was given the bytes
            that the peer has sent. A callback without drain reads by itself, and is waited for.
        TypeError: sock has no fileno(), or iob_send refuses it, such as a TLS socket; or batch is
            not an IOBatch.
        ValueError: sock is not non-blocking, or limit is below 1.
        Exception: any exception of iob_send, iob_write and progress.

    After each of them batch.bytessent has grown by the bytes that were sent, and the rest is still
    in the batch. If batch.error is None, another call can continue.

    Source: trio's rules for checkpoints and cancellation; preadv2(2), RWF_NOWAIT.
    """
    most = step_limit(limit, callback)
    core = core_of(batch)
    sent = 0
    with _only_sender(sock), _as_socket(sock) as target:
        await checkpoint()
        probe = PageCacheProbe()
        left = most  # until the next checkpoint
        for call, source in sending_calls(target, batch, callback):
            while True:
                if source.bytesleft:
                    _check_open(sock)
                ready = probe.ready(core, left) if source is batch else left
                if not ready:
                    await _read_ahead(probe, core)
                    continue
                code = call(ready)
                if code == IOB_DONE:
                    break
                check_code(code, source, callback)
                if code == IOB_AGAIN:
                    _check_open(sock)  # the callback may have closed it
                    await (wait_readable if source.wants == EVENT_READ else wait_writable)(sock)
                    left = most
                    continue
                left -= code
                if source is batch:
                    sent += code
                    if progress is not None:
                        progress(code)
                if left <= 0:
                    await checkpoint()
                    left = most
    return sent


def _check_open(sock: Any) -> None:
    """Refuse a closed socket, whose number may be that of another file.

    Raises:
        ClosedResourceError: it is closed.

    """
    fd = -1
    with suppress(ValueError):  # raised by a closed file object
        fd = sock.fileno()
    if fd < 0:
        raise ClosedResourceError


@contextmanager
def _only_sender(sock: Any) -> Generator[None]:
    """Refuse another send over a socket: its bytes could come between those of the first.

    Raises:
        BusyResourceError: a send is in progress.

    """
    key = id(sock)
    if key in _in_use:
        raise BusyResourceError("sending over")
    try:
        _in_use.add(key)
        yield
    finally:
        _in_use.discard(key)


@contextmanager
def _as_socket(sock: Any) -> Generator[Any]:
    """Yield a duplicate of a trio.socket, as a socket.socket, and any other object itself.

    Raises:
        TypeError: sock has no fileno().
        ValueError: sock is not non-blocking.

    """
    if not hasattr(sock, "fileno"):
        hint = ": pass its socket" if hasattr(sock, "socket") else ""
        raise TypeError(f"sock must be a socket, not {type(sock).__name__}{hint}")
    _check_open(sock)
    # A socket object with a timeout waits in its own send, although its descriptor doesn't block.
    if sock.gettimeout() != 0 if hasattr(sock, "gettimeout") else os.get_blocking(sock.fileno()):
        raise ValueError("sock must be non-blocking")
    trio_socket = sys.modules.get("trio.socket")
    if trio_socket is None or not isinstance(sock, trio_socket.SocketType):
        yield sock
        return
    # A hook or callback can close the trio.socket, and then its number can become another file's.
    target = duplicate(sock.fileno(), partial(socket.socket, sock.family, sock.type, sock.proto))
    try:
        target.setblocking(False)  # it begins with socket.getdefaulttimeout()
        yield target
    finally:
        # A failed close loses nothing: the connection is that of the trio.socket.
        with suppress_call_error(OSError):
            target.close()


async def _read_ahead(probe: PageCacheProbe, core: BatchCore) -> None:
    """Have a thread read the range that the probe has found not cached.

    Raises:
        OSError: a copy of the error that the thread has met; the batch has failed.

    """
    uncached = probe.uncached
    read_ahead = probe.read_ahead()
    if read_ahead is None:
        await checkpoint()
        return
    try:
        result = await to_thread.run_sync(read_ahead, abandon_on_cancel=True)
    except RuntimeError as exc:
        if is_interruption(exc):
            raise
        probe.record_read()  # no thread can be started: the send must read
        return
    finally:
        read_ahead.close()
    if not isinstance(result, OSError):
        probe.record_read(result)
    # Another task may have changed the batch meanwhile, so that it has no such range.
    elif not probe.ready(core, 1) and probe.uncached == uncached:
        core.fail(result)
        raise copy_to_raise(result)

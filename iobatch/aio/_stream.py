"""Batches over somebody else's stream: for programs that own no socket."""

from __future__ import annotations

import asyncio
import errno
import os
from asyncio import SendfileNotAvailableError
from io import FileIO
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, Final

from iobatch._arguments import MAX_BYTES
from iobatch._batch import core_of
from iobatch._core import COUNT_UNKNOWN, IDLE, SENDING, STAGE_LIMIT
from iobatch._errors import TruncatedFileError, copy_to_raise, is_interruption
from iobatch._pagecache import PageCacheProbe
from iobatch._send import SEND_LIMIT
from iobatch.aio._readahead import finish_reading, start_reading

if TYPE_CHECKING:
    from collections.abc import Callable

    from iobatch._batch import IOBatch
    from iobatch._core import BatchCore


# A range up to here is read: the loop's sendfile takes longer before it sends anything (70 us where
# to read and write 128 KiB takes 33; both ways of each size, in turn, are even above 512 KiB).
READ_LIMIT: Final = 512 * 1024
# How often to look whether somebody has closed the transport, in seconds.
_GLANCE: Final = 1.0


async def send_to_stream(writer: asyncio.StreamWriter, batch: IOBatch) -> int:
    """Send a whole batch over a stream of asyncio or uvloop, TLS included.

    Buffers and file ranges up to 512 KiB are written, a piece at a time, with a drain after each. A
    larger range goes by the loop's sendfile, if the loop has one for this transport, else it is
    read and written like a small one. What is not in the page cache is read by a thread first.
    Nobody else may write to the stream meanwhile: it would come in between, and while it sends a
    file asyncio lets nobody write (RuntimeError).

    Args:
        writer: the stream.
        batch: what to send. It may be added to meanwhile; what is added is sent, too.

    Returns:
        The bytes that the stream has taken. It may hold some of them still.

    Raises:
        OSError: as batch.error: of a file, or of the stream. What was taken before is in
            batch.bytessent, what was not is still in the batch. But where this stops the loop's
            sendfile it is unknown how much of its range was sent, and nothing of that is counted:
            then the transport is aborted, for nothing may follow a truncated body.
        asyncio.CancelledError: the task was cancelled; likewise.
        RuntimeError: this is a hook of the batch itself, or the batch is being sent; or the
            transport is sending somebody else's file.

    Source: StreamWriter.drain, loop.sendfile.
    """
    core = core_of(batch)
    core.check_idle()
    start = core.sent
    read_limit = READ_LIMIT
    probe = PageCacheProbe()
    turn = start
    core.activity = SENDING
    core.pinned = 0
    try:
        while core.error is None and core.left:
            if core.sent - turn >= SEND_LIMIT:
                # With a reader that is fast enough drain() never waits, and nothing else would run.
                turn = core.sent
                await asyncio.sleep(0)
            if writer.is_closing():
                raise BrokenPipeError(errno.EPIPE, "the stream is closed")
            head = core.head
            large = type(head) is tuple and head[2] > read_limit
            ready = probe.examine(core, SEND_LIMIT if large else STAGE_LIMIT)
            if not ready:
                await _read_ahead(probe)
            elif isinstance(ready, bytes):
                _give(writer.write, ready, core, len(ready))
                await writer.drain()
            elif large:
                if not await _loop_send_range(writer.transport, core, ready):
                    read_limit = MAX_BYTES  # all is read from now on
            else:
                buffers, size = core.stage(ready, read_limit)
                # A transport may keep what it is given, so it gets nothing that could change.
                pieces = [buffer if type(buffer) is bytes else bytes(buffer) for buffer in buffers]
                _give(writer.writelines, pieces, core, size)
                _recheck_high_water(writer.transport)
                await writer.drain()
    except OSError as exc:
        if is_interruption(exc):
            raise
        core.fail(exc)
    finally:
        core.activity = IDLE
    if core.error is not None:
        raise copy_to_raise(core.error)
    return core.sent - start


def _give(write: Callable[[Any], None], data: Any, core: BatchCore, size: int) -> None:
    """Give data to a transport, and account for it."""
    core.error = COUNT_UNKNOWN
    try:
        write(data)
    except BaseException as exc:
        if not is_interruption(exc):
            core.error = None
        raise
    core.consume(size)


async def _read_ahead(probe: PageCacheProbe) -> None:
    """Wait for a thread to read what is not cached; the loop goes on meanwhile."""
    future = start_reading(asyncio.get_running_loop(), probe)
    if future is not None:
        # Not the future itself: it is not to be cancelled with this task.
        await asyncio.wait((future,))
        error = finish_reading(probe, future)
        if error is not None:
            raise error


def _recheck_high_water(transport: asyncio.WriteTransport) -> None:
    """Let a transport see that its buffer is full, so that drain() waits.

    Its writelines() does not look in CPython 3.12.0 to 3.12.8, 3.13.0 and 3.13.1 (gh-127655).
    """
    low, high = transport.get_write_buffer_limits()
    transport.set_write_buffer_limits(high, low)


async def _loop_send_range(transport: asyncio.WriteTransport, core: BatchCore, most: int) -> bool:
    """Have the loop send the range at the head, or most bytes of it.

    Returns:
        False: this loop, transport or file has no sendfile.

    """
    fd, offset, count, *_ = core.head  # type: ignore[misc]
    core.error = COUNT_UNKNOWN
    try:
        nbytes = await _loop_sendfile(transport, fd, offset, min(count, most))
        if not nbytes:
            raise TruncatedFileError(fd, offset, count)
        core.consume(nbytes)
    except BaseException as exc:
        if isinstance(exc, asyncio.CancelledError) or not is_interruption(exc):
            core.error = None  # nothing of it is counted
            if isinstance(exc, RuntimeError):
                return False
        raise
    return True


async def _loop_sendfile(
    transport: asyncio.WriteTransport, fd: int, offset: int, count: int
) -> int:
    """Have the loop send a range of a file; return how much of it went out: 0 at the file's end.

    Where it stops part-way it is unknown how much was sent, and the transport is aborted.

    Raises:
        RuntimeError: it can't be done for this loop, transport or file; nothing was sent.

    """
    if not S_ISREG(os.fstat(fd).st_mode):
        raise SendfileNotAvailableError
    try:
        # The loop moves the position of the file that it is given, so that has to be another one
        # than the caller's: a descriptor that is opened anew, not a duplicate.
        file = FileIO(f"/proc/self/fd/{fd}")
    except OSError as exc:
        raise SendfileNotAvailableError from exc
    with file:
        loop = asyncio.get_running_loop()
        sending = asyncio.ensure_future(
            loop.sendfile(transport, file, offset, count, fallback=False)
        )
        try:
            # Where somebody closes the transport meanwhile, the loop leaves it unfinished for ever.
            while not (await asyncio.wait((sending,), timeout=_GLANCE))[0]:
                if transport.is_closing():
                    raise BrokenPipeError(errno.EPIPE, "the stream was closed")
            return sending.result()
        except BaseException as exc:
            if isinstance(exc, OSError) or is_interruption(exc):
                transport.abort()
            raise
        finally:
            if sending.cancel():
                await asyncio.wait((sending,))

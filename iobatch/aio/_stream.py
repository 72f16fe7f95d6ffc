"""Batches over a stream of asyncio or uvloop, for programs that don't own the socket."""

from __future__ import annotations

import asyncio
import errno
import os
from asyncio import SendfileNotAvailableError
from io import FileIO
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, Final

from iobatch._arguments import MAX_BYTES
from iobatch._batch import IOBatch, core_of
from iobatch._core import COUNT_UNKNOWN, IDLE, SENDING, STAGE_LIMIT
from iobatch._errors import TruncatedFileError, is_interruption
from iobatch._pagecache import PageCacheProbe
from iobatch._send import SEND_LIMIT
from iobatch.aio._readahead import finish_read_ahead, start_read_ahead

if TYPE_CHECKING:
    from collections.abc import Callable

    from iobatch._core import BatchCore


# A range up to this length is read: the loop's sendfile takes 70 us before it sends anything, while
# reading and writing 128 KiB takes 33 us. Above 512 KiB sendfile costs no more than reading.
READ_LIMIT: Final = 512 * 1024
# Seconds between checks whether the transport was closed during sendfile.
_CLOSE_CHECK_INTERVAL: Final = 1.0


async def send_to_stream(writer: asyncio.StreamWriter, batch: IOBatch) -> int:
    """Send a whole batch over a stream of asyncio or uvloop, with or without TLS.

    Buffers, and file ranges of at most 512 KiB, are written a piece at a time, with a drain() of
    the stream after each. A longer range goes by loop.sendfile if the loop supports it for this
    transport; otherwise it is read and written like a short one. A range that is not in the page
    cache is first read by a thread. Nothing else may write to the stream during the call: other
    bytes would come in between, and while asyncio sends a file, every other write raises
    RuntimeError.

    Args:
        writer: the stream.
        batch: the batch to send. Entries that are added during the call are sent, too. It must not
            be sent or reset during the call.

    Returns:
        The number of bytes that the stream has taken. It may still hold some of them.

    Raises:
        OSError: a copy of batch.error, which is an error of the stream, such as
            ConnectionResetError, or of a file.
        BrokenPipeError: as OSError: the stream is closed, or was closed during the call. asyncio
            closes a stream whose connection is lost, so a reset may be reported in this way.
        TruncatedFileError: as OSError: a file ended before its range did.
        asyncio.CancelledError: the task was cancelled.
        RuntimeError: a call on the batch is in progress, as during its hooks and callbacks; or the
            transport is sending a file for another caller.
        TypeError: batch is not an IOBatch; or writer is not a StreamWriter, but a transport, for
            example.

    After each of them batch.bytessent counts the bytes that the stream has taken, and the rest is
    still in the batch. If batch.error is None, another call can continue. There is one exception:
    if an error or a cancellation stops loop.sendfile, it is unknown how many bytes were sent of
    the part (at most 2 MiB of a range) that was being sent. The batch counts the parts before it,
    and no byte of this one; and the transport is aborted: nothing may follow a truncated body.

    Source: StreamWriter.drain, loop.sendfile.
    """
    core = core_of(batch)
    is_tls = _has_tls(writer)
    read_limit = READ_LIMIT
    probe = PageCacheProbe()
    while core.activity or core.release_pending:  # no call follows the last test: see rule 2
        core.check_idle()
    start = turn_start = core.sent
    core.activity = SENDING
    core.pinned = 0
    try:
        while core.error is None and core.left:
            if core.sent - turn_start >= SEND_LIMIT:
                # With a fast reader drain() never waits, and no other task would run.
                turn_start = core.sent
                await asyncio.sleep(0)
            if writer.is_closing():
                raise BrokenPipeError(errno.EPIPE, "the stream is closed")
            head = core.head
            large = type(head) is tuple and head[2] > read_limit
            ready = probe.try_join_cached(core, SEND_LIMIT if large else STAGE_LIMIT)
            if not ready:
                await _wait_for_read_ahead(probe)
            elif isinstance(ready, bytes):
                _write_to_transport(writer.write, ready, core, len(ready))
                await _drain(writer, is_tls=is_tls)
            elif large:
                if not await _loop_send_range(writer.transport, core, ready):
                    read_limit = MAX_BYTES  # every range is read from here on
            else:
                buffers, size = core.stage(ready, read_limit)
                # A transport may keep its arguments, so it gets only bytes, which can't change.
                pieces = [buffer if type(buffer) is bytes else bytes(buffer) for buffer in buffers]
                _write_to_transport(writer.writelines, pieces, core, size)
                _recheck_high_water(writer.transport)
                await _drain(writer, is_tls=is_tls)
    except OSError as exc:
        if is_interruption(exc):
            raise
        core.fail(exc)
    finally:
        core.activity = IDLE
    batch.raise_for_error()
    return core.sent - start


def _has_tls(writer: asyncio.StreamWriter) -> bool:
    """Return whether the transport of a stream is one of TLS.

    Raises:
        TypeError: writer is not a StreamWriter.

    """
    if not hasattr(writer, "drain"):
        raise TypeError(f"writer must be a StreamWriter, not {type(writer).__name__!r}")
    return writer.get_extra_info("sslcontext") is not None


async def _drain(writer: asyncio.StreamWriter, *, is_tls: bool) -> None:
    """Wait while the stream is full.

    Raises:
        OSError: the connection is lost.

    """
    if is_tls:
        # A TLS transport learns in the next turn of the loop that its connection is lost. Until
        # then it drops what is written, without an error.
        await asyncio.sleep(0)
    await writer.drain()


def _write_to_transport(
    write: Callable[[Any], None], data: Any, core: BatchCore, size: int
) -> None:
    """Write data to a transport, and account for it."""
    core.error = COUNT_UNKNOWN
    try:
        write(data)
    except BaseException as exc:
        if not is_interruption(exc):
            core.error = None
        raise
    core.consume(size)


async def _wait_for_read_ahead(probe: PageCacheProbe) -> None:
    """Wait until a thread has read the range that is not cached; the loop goes on meanwhile."""
    future = start_read_ahead(asyncio.get_running_loop(), probe)
    if future is not None:
        # wait(): if this task is cancelled while it awaits the future directly, the future is
        # cancelled too.
        await asyncio.wait((future,))
        error = finish_read_ahead(probe, future)
        if error is not None:
            raise error


def _recheck_high_water(transport: asyncio.WriteTransport) -> None:
    """Make a transport compare its buffer with the high-water mark, so that drain() waits.

    writelines() does not compare them in CPython 3.12.0 to 3.12.8, 3.13.0 and 3.13.1 (gh-127655).
    """
    low, high = transport.get_write_buffer_limits()
    transport.set_write_buffer_limits(high, low)


async def _loop_send_range(
    transport: asyncio.WriteTransport, core: BatchCore, max_bytes: int
) -> bool:
    """Have the loop send the range at the head, at most max_bytes of it.

    Returns:
        True: bytes were sent. False: the loop, transport or file does not support sendfile.

    """
    head: Any = core.head
    fd, offset, count, _, _ = head
    core.error = COUNT_UNKNOWN
    try:
        nbytes = await _loop_sendfile(transport, fd, offset, min(count, max_bytes))
        if not nbytes:
            raise TruncatedFileError(fd, offset, count)
        core.consume(nbytes)
    except BaseException as exc:
        if isinstance(exc, asyncio.CancelledError) or not is_interruption(exc):
            core.error = None  # none of the range's bytes are counted
            if isinstance(exc, RuntimeError):
                return False
        raise
    return True


async def _loop_sendfile(
    transport: asyncio.WriteTransport, fd: int, offset: int, count: int
) -> int:
    """Have the loop send a range of a file; return the number of bytes sent, 0 at the file's end.

    If sendfile stops part-way, the number of bytes sent is unknown, and the transport is aborted.

    Raises:
        RuntimeError: the loop, transport or file does not support sendfile; nothing was sent.

    """
    if not S_ISREG(os.fstat(fd).st_mode):
        raise SendfileNotAvailableError
    try:
        # The loop moves the file's position, which a duplicate shares with the caller's descriptor.
        # So the file is opened anew.
        file = FileIO(f"/proc/self/fd/{fd}")
    except OSError as exc:
        raise SendfileNotAvailableError from exc
    try:
        return await _watched_sendfile(transport, file, offset, count)
    finally:
        try:
            file.close()
        except OSError as exc:
            # A failed close of a file that was only read from loses nothing.
            if is_interruption(exc):
                raise


async def _watched_sendfile(
    transport: asyncio.WriteTransport, file: FileIO, offset: int, count: int
) -> int:
    """Have the loop send a range of a file, and check that the transport stays open meanwhile."""
    loop = asyncio.get_running_loop()
    sending = asyncio.ensure_future(loop.sendfile(transport, file, offset, count, fallback=False))
    cut_off = False
    try:
        # If the transport is closed meanwhile, the loop never completes its sendfile.
        while not (await asyncio.wait((sending,), timeout=_CLOSE_CHECK_INTERVAL))[0]:
            if transport.is_closing():
                raise BrokenPipeError(errno.EPIPE, "the stream was closed")
        return sending.result()
    except BaseException as exc:
        cut_off = isinstance(exc, OSError) or is_interruption(exc)
        raise
    finally:
        try:
            if sending.cancel():
                await asyncio.wait((sending,))
        finally:
            if cut_off:
                # The task has removed the socket from the selector. If abort() closed the socket
                # before that, its number would stay there, and the loop could not watch the next
                # socket that gets it.
                transport.abort()

"""Batches over somebody else's stream: for programs that own no socket."""

from __future__ import annotations

import asyncio
import errno
import os
from asyncio import SendfileNotAvailableError
from io import FileIO
from stat import S_ISREG
from typing import TYPE_CHECKING, Final

from iobatch._cold import Guard, joined
from iobatch._entries import MAX_BYTES, TruncatedFileError, copied
from iobatch._send import SEND_LIMIT
from iobatch._stage import STAGE_LIMIT, stage

if TYPE_CHECKING:
    from iobatch._batch import IOBatch


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
            sendfile nobody knows how much it has sent of its range, and nothing of that is counted:
            then the transport is aborted, for nothing may follow a truncated body.
        asyncio.CancelledError: the task was cancelled; likewise.
        RuntimeError: this is a hook of the batch itself, or the batch is being sent; or the
            transport is sending somebody else's file.

    Source: StreamWriter.drain, loop.sendfile.
    """
    batch._refuse_if_busy()
    start = batch.bytessent
    small = READ_LIMIT
    guard = Guard()
    turn = start
    batch._busy = True
    batch._pin = 0
    try:
        while batch.error is None and batch.bytesleft:
            if batch.bytessent - turn >= SEND_LIMIT:
                # With a reader that is fast enough drain() would never wait, and nobody else run.
                turn = batch.bytessent
                await asyncio.sleep(0)
            if writer.is_closing():
                raise BrokenPipeError(errno.EPIPE, "the stream is closed")
            data = joined(batch)
            if data is not None:
                writer.write(data)
                batch._advance(len(data))
                await writer.drain()
                continue
            first = batch._queue[0]
            large = type(first) is tuple and first[2] > small
            reach = guard.reach(batch, SEND_LIMIT if large else STAGE_LIMIT)
            if not reach:
                await _load(guard)
            elif large:
                if TYPE_CHECKING:
                    assert type(first) is tuple
                fd, offset, count, *_ = first
                try:
                    nbytes = await _sendfile(writer.transport, fd, offset, min(count, reach))
                except RuntimeError:
                    # There is none for this loop, transport or file: from now on, all is read.
                    small = MAX_BYTES
                    continue
                if not nbytes:
                    raise TruncatedFileError(fd, offset, count)
                batch._advance(nbytes)
            else:
                pieces, size, _ = stage(batch, reach, small)
                # A transport may keep what it is given, so it gets nothing that could change.
                writer.writelines(
                    piece if type(piece) is bytes else bytes(piece) for piece in pieces
                )
                _press(writer.transport)
                batch._advance(size)
                await writer.drain()
    except OSError as exc:
        batch._fail(exc)
    finally:
        batch._busy = False
    if batch.error is not None:
        raise copied(batch.error)
    return batch.bytessent - start


async def _load(guard: Guard) -> None:
    """Wait for a thread to read what the disk has to bring first; the loop goes on meanwhile."""
    future = guard.fetch(asyncio.get_running_loop())
    if future is not None:
        # Not the future itself: it is not to be cancelled with this task.
        await asyncio.wait((future,))
        error = guard.fetched(future)
        if error is not None:
            raise error


def _press(transport: asyncio.WriteTransport) -> None:
    """Let a transport see that its buffer is full, so that drain() waits.

    Its writelines() does not look in CPython 3.12.0 to 3.12.8, 3.13.0 and 3.13.1 (gh-127655).
    """
    low, high = transport.get_write_buffer_limits()
    transport.set_write_buffer_limits(high, low)


async def _sendfile(transport: asyncio.WriteTransport, fd: int, offset: int, count: int) -> int:
    """Have the loop send a range of a file; return how much of it went out: 0 at the file's end.

    Where it stops in the midst, nobody knows how much it has sent, and the transport is aborted.

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
        except (asyncio.CancelledError, OSError):
            transport.abort()
            raise
        finally:
            if sending.cancel():
                await asyncio.wait((sending,))

"""Staging: what is at the head of a batch turned into bytes, each of them read and joined once."""

from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING, Final

from iobatch._entries import MAX_BYTES, TruncatedFileError, pread

if TYPE_CHECKING:
    from iobatch._batch import IOBatch

# One system call takes no more buffers than IOV_MAX (writev(2): EINVAL; sendmsg(2): EMSGSIZE).
IOV_MAX: Final = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16
# The most bytes that are made ready in front of a file range that is read: so one system call
# reads no more of files than this, and neither does a slow reader's batch hold more of them.
STAGE_LIMIT: Final = 128 * 1024
# Up to here copying neighbours into one offer costs less than the record or the system call that
# it saves.
OFFER_LIMIT: Final = 32 * 1024


def stage(
    batch: IOBatch, room: int, small: int = MAX_BYTES, *, whole: bool = False, alike: bool = False
) -> tuple[list[bytes | memoryview], int, bool]:
    """Turn what is at the head into buffers for one system call.

    A file range of at most `small` bytes (or one that sendfile refused) is read, and what was
    read takes its place in the queue, so that it is never read again. A larger range ends the
    run; if it is at the head, there are no buffers.

    A fault of a file, and its end before the end of the range, shows only when the range is
    at the head: what stands in front of it is sent first, whatever the sizes.

    Args:
        batch: not empty.
        room: the most bytes to give.
        small: the longest range that is read.
        whole: for one message: as many buffers as there are, and any fault shows at once.
        alike: only neighbours that can be joined: nothing but `bytes`, nothing to be released
            between them.

    Returns:
        The buffers, how many bytes they have, and whether they are plain: `bytes` up to the end of
        the batch or IOV_MAX of them, with nothing to be released between them.

    Raises:
        OSError: the range at the head can't be read.
        TruncatedFileError: its file has ended.

    """
    queue = batch._queue
    pieces: list[bytes | memoryview] = []
    releases = size = 0
    plain = True
    entries = queue if len(queue) <= IOV_MAX or whole else islice(queue, IOV_MAX)
    try:
        for entry in entries:
            if type(entry) is bytes:
                pieces.append(entry)
                size += len(entry)
            elif type(entry) is tuple:
                fd, offset, count, file, refused = entry
                if count > small and not refused:
                    break
                want = (room if whole or room < STAGE_LIMIT else STAGE_LIMIT) - size
                if want >= count:
                    want = count
                elif want <= 0:
                    break
                try:
                    data = pread(fd, want, offset)
                    if not data:
                        raise TruncatedFileError(fd, offset, count)
                except OSError:
                    if pieces and not whole:
                        break
                    raise
                index = len(pieces) + releases
                pieces.append(data)
                got = len(data)
                size += got
                if got < count:
                    # No call in between, where a signal's handler could interrupt.
                    queue[index] = (fd, offset + got, count - got, file, refused)
                    queue.insert(index, data)
                    break
                # Unlike an insertion, an assignment leaves the iterator valid.
                queue[index] = data
            elif alike:
                break
            elif type(entry) is memoryview:
                pieces.append(entry)
                size += len(entry)
                plain = False
            else:
                releases += 1
                plain = False
            if size >= room:
                break
        else:
            return pieces, size, plain
    except RuntimeError:
        # A signal handler, or the garbage collector by a finalizer, added an entry meanwhile. What
        # was gathered so far is right.
        if not pieces:
            return stage(batch, room, small, whole=whole, alike=alike)
    if size > room:
        pieces[-1] = memoryview(pieces[-1])[: room - size]
        size = room
    return pieces, size, False


def head(batch: IOBatch, room: int) -> bytes | memoryview:
    """Make one buffer of what is at the head, for what takes no more at a time.

    Args:
        batch: not empty.
        room: the most bytes to read; a buffer that was there may be longer.

    Raises: as for stage.
    """
    queue = batch._queue
    first = queue[0]
    if type(first) is bytes and len(first) < OFFER_LIMIT:
        # No more of a file than can be joined; its rest comes by itself.
        room = min(room, OFFER_LIMIT)
    elif type(first) is not tuple:
        return first  # type: ignore[return-value]  # never a Release
    pieces, _, _ = stage(batch, room, alike=True)
    if type(pieces[-1]) is memoryview:
        pieces.pop()  # cut off for want of room: it stays as it is
    if len(pieces) > 1:
        joined = b"".join(pieces)
        for _ in pieces:
            queue.popleft()
        queue.appendleft(joined)
    return queue[0]  # type: ignore[return-value]  # it is a buffer now


def offer(batch: IOBatch, room: int) -> memoryview:
    """Give what to offer to a callback, and pin it.

    Raises: as for stage.
    """
    if not batch._pin:
        batch._pin = min(len(head(batch, room)), room)
    return memoryview(batch._queue[0])[: batch._pin].toreadonly()  # type: ignore[arg-type]

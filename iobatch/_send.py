"""iob_send and iob_sendmsg: send batches by send, sendmsg and sendfile; read ranges by pread."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from iobatch._arguments import MAX_BYTES, Buffer, HasFileno, check_flags, check_limit
from iobatch._batch import IOBatch, core_of
from iobatch._core import COUNT_UNKNOWN, IDLE, IOB_AGAIN, IOB_DONE, IOB_ERROR, SENDING
from iobatch._entries import IOV_MAX
from iobatch._errors import TruncatedFileError, is_interruption
from iobatch._forms import compiled
from iobatch._target import (
    MORE,
    NOSIGNAL,
    Descriptor,
    as_target,
    can_cork,
    check_more,
    cork,
    socket_class,
    uncork,
)

if TYPE_CHECKING:
    from iobatch._core import BatchCore

# The most bytes that one call sends by default, so that one fast peer can't keep an event loop busy
# (as nginx's sendfile_max_chunk).
SEND_LIMIT: Final = 2 * 1024 * 1024
# A range of up to this number of bytes is read and sent with its neighbours in one sendmsg; a
# longer range is sent by sendfile. `python -m tests.bench kernel` sends the same files both ways in
# turn on loopback. For a header and one file on an idle connection both ways cost the same at 16
# KiB, and reading costs an eighth more at 32 KiB. If an acknowledgement arrives between the two
# calls that sendfile needs, the header leaves in a segment of its own, and reading saves a sixth at
# 32 KiB, as it does for two to eight files in a batch.
COPY_LIMIT: Final = 32 * 1024
# Buffers that are all `bytes` are joined for the system call if their total is up to JOIN_LIMIT
# bytes, or their mean up to JOIN_MEAN_LIMIT: copying them costs less than the work of sendmsg on a
# list. Sent both ways in turn on loopback, they cost the same at a mean of 1.5 to 2 KiB, of 4 KiB
# if there are two or four. (That is the compiled form's figure; the pure form's is 6 KiB.) The
# compiled form does not count the bytes of ranges, which it reads to where they are joined.
JOIN_LIMIT: Final = 16 * 1024
JOIN_MEAN_LIMIT: Final = 1536
# MAX_RW_COUNT: the most bytes that Linux transfers in one call (write(2), sendfile(2)).
_MAX_CALL_BYTES: Final = 0x7FFFF000

# The errors of sendfile(2) for a kind of file or socket that it does not support.
_SENDFILE_REFUSED: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EOVERFLOW)

# signal.getsignal makes an Enum member of its result, which takes half a microsecond.
getsignal: Callable[[int], object] = import_module("_signal").getsignal
# A plain int, as the results of getsignal are.
_SIG_IGN: Final = int(signal.SIG_IGN)
_sendfile: Any = getattr(os, "sendfile", None)
_ONLY_BYTES: Final = frozenset((bytes,))
_HAS_SENDMSG: Final = hasattr(socket.socket, "sendmsg")


@compiled
def iob_send(
    sock: socket.socket | int | HasFileno,
    batch: IOBatch,
    *,
    flags: int = 0,
    limit: int | None = SEND_LIMIT,
) -> int:
    """Send as many bytes of a batch as a socket or descriptor accepts, up to limit.

    Call iob_send whenever sock is writable, until it returns IOB_DONE or IOB_ERROR. With a blocking
    socket the call blocks, as send does. On a socket with a timeout, send waits up to the timeout,
    and sendfile does not wait. If nothing was sent, iob_send returns IOB_AGAIN in both cases. Use
    iob_sendmsg to send one message to a datagram or seqpacket socket, and iob_write for TLS.

    All exceptions except the last are raised before a byte is sent. The batch is unchanged then,
    and another call can continue.

    Args:
        sock: a socket; an int descriptor, which is written to as by write(2), including SIGPIPE; or
            an object with fileno(), whose descriptor is used in the same way.
        batch: the batch to send.
        flags: MSG_* flags for every send(2); only for a socket.
        limit: the most bytes to send in this call; None: as many as sock accepts.

    Returns:
        n > 0: n bytes were sent; call again.
        IOB_DONE (0): the batch is empty.
        IOB_AGAIN (-1): nothing was sent; wait until sock is writable and call again.
        IOB_ERROR (-3): nothing was sent, and batch.error is the permanent error. batch.bytessent
            counts the bytes sent before the error; the rest is still in the batch, and extend() of
            another batch can move it.

    Raises:
        TypeError: sock is a TLS socket or a file object of one (its descriptor would send plain
            text), or belongs to an asyncio transport; sock is neither a descriptor nor an object
            with fileno(); or another argument has a wrong type.
        ValueError: limit is below 1; the descriptor is negative; or flags are given and sock is not
            a socket object.
        OverflowError: flags or the descriptor does not fit a C int.
        OSError: EOPNOTSUPP: MSG_MORE is among the flags, and sock is a message socket that would
            ignore it and send two messages: one outside AF_INET, AF_INET6 and AF_ALG.
        RuntimeError: a call on the batch is in progress, as during its hooks and callbacks.
        BaseException: a MemoryError, or the exception of a signal handler. If batch.error is None,
            batch.bytessent counts the bytes sent, and another call can continue. If not, the number
            of bytes sent is unknown, and the batch has failed.

    Source: sendmsg(2), sendfile(2), tcp(7).
    """
    target: Any = sock if type(sock) is socket_class else as_target(sock, flags)
    if limit is not SEND_LIMIT:
        limit = check_limit(limit)
    if flags:
        flags = check_flags(flags)
        check_more(target, flags)
    core = core_of(batch)
    while core.activity or core.release_pending:  # no call follows the last test: see rule 2
        core.check_idle()
    if core.error is not None:
        return IOB_ERROR
    if not core.left:
        return IOB_DONE
    core.activity = SENDING
    try:
        size = core.left
        if not (core.ranges or core.releasable) and size <= JOIN_LIMIT and size <= limit:
            buffers: list[Any] = core.snapshot()
            if core.left == size:  # else a handler or finalizer has added entries
                return send_joined(target, core, b"".join(buffers), flags)
        return _send_in_steps(target, core, flags, limit)
    finally:
        core.activity = IDLE


def _send_in_steps(  # noqa: PLR0912 # a handler may raise where a function begins: see `finally`
    target: Any, core: BatchCore, flags: int, limit: int
) -> int:
    """Send at most limit bytes of a batch, by as many system calls as that needs.

    The caller has stored `activity = SENDING`. Returns and Raises: as for iob_send.
    """
    stage = core.stage if _HAS_SENDMSG else partial(_stage_single, core)
    # sendfile takes no flags, so with flags all ranges are read. _stage_single() always reads them.
    copy_limit = MAX_BYTES if flags or not (_sendfile and _HAS_SENDMSG) else COPY_LIMIT
    sent = 0
    more_pending = False  # the last bytes were sent with a MSG_MORE that this function added
    corked: bool | None = None  # whether this function corks target; None: not needed yet
    core.pinned = 0
    try:
        while True:
            buffers, size = stage(limit if limit < _MAX_CALL_BYTES else _MAX_CALL_BYTES, copy_limit)
            if buffers:
                more = size < core.left and size < limit
                send_flags = flags | MORE if more else flags
                nbytes = _send_buffers(target, core, buffers, size, send_flags)
                more_pending = more and not flags & MORE
            else:
                if size > limit or size > _MAX_CALL_BYTES:
                    size = min(limit, _MAX_CALL_BYTES)
                more = size < core.left and size < limit
                if more and corked is None:
                    # Stored before the option is set, so that it is removed in any case.
                    corked = can_cork(target)
                    if corked:
                        cork(target)
                nbytes = _send_range(target, core, size)
                if nbytes < 0:  # sendfile was refused: stage() reads the range next
                    continue
                more_pending = False
            core.consume(nbytes)
            sent += nbytes
            if nbytes < size or not more:
                # If all sends returned 0, return IOB_AGAIN: 0 would mean IOB_DONE.
                return sent or IOB_AGAIN
            limit -= nbytes
    except BaseException as exc:
        code = core.call_raised(exc)
        if code is None:
            raise
        return sent or code
    finally:
        if more_pending or corked:
            removed = False
            try:
                removed = uncork(target, corked=bool(corked))
            finally:
                # Again after an error, or after the exception of a signal handler: the next call
                # takes a cork that stays for the caller's, and never removes it.
                if not removed:
                    uncork(target, corked=bool(corked))


def iob_sendmsg(
    sock: socket.socket,
    batch: IOBatch,
    ancdata: Iterable[tuple[int, int, Buffer]] = (),
    flags: int = 0,
    address: Any = None,
) -> int:
    """Send a whole batch as one message, with ancillary data such as descriptors.

    A datagram or seqpacket socket sends the message whole or not at all. A stream socket may send a
    part of it, and the rest stays in the batch. In that case the ancillary data has been sent with
    the first byte: don't pass it again. File ranges are read into memory.

    Args:
        sock: a socket object.
        batch: the message. An empty batch sends nothing.
        ancdata: as for socket.sendmsg: (level, type, data), for example SCM_RIGHTS.
        flags: MSG_* flags.
        address: the destination, for a socket that is not connected. A host name is looked up
            during the call, which waits for the answer.

    Returns:
        n > 0: n bytes were sent; the whole batch, except on a stream socket.
        IOB_DONE (0): the batch is empty.
        IOB_AGAIN (-1): nothing was sent; wait until sock is writable and call again.
        IOB_ERROR (-3): nothing was sent, and batch.error is the permanent error (EMSGSIZE: the
            message is too long). The batch keeps its entries; extend() of another batch can move
            them.

    Raises:
        TypeError: sock is not a socket object, or is a TLS socket; or another argument has a wrong
            type.
        OverflowError: flags, or a number in ancdata or address, is out of range.
        OSError: EOPNOTSUPP: as for iob_send.
        RuntimeError: a call on the batch is in progress, as during its hooks and callbacks.
        BaseException: as for iob_send.

    Source: sendmsg(2), unix(7).
    """
    if type(sock) is not socket_class:
        if not isinstance(sock, socket_class):
            raise TypeError(f"sock must be a socket object, not {type(sock).__name__!r}")
        as_target(sock, 0)  # refuses a TLS socket
    if flags:
        flags = check_flags(flags)
        check_more(sock, flags)
    core = core_of(batch)
    while core.activity or core.release_pending:
        core.check_idle()
    if core.error is not None:
        return IOB_ERROR
    if not core.left:
        return IOB_DONE
    core.activity = SENDING
    core.pinned = 0
    try:
        if sock.type == socket.SOCK_STREAM:
            buffers, _ = core.stage(_MAX_CALL_BYTES)
        else:
            buffers = _stage_message(sock, core)
        core.error = COUNT_UNKNOWN
        nbytes = sock.sendmsg(buffers, ancdata, NOSIGNAL | flags, address)
        core.consume(nbytes)
        return nbytes or IOB_AGAIN
    except BaseException as exc:
        code = core.call_raised(exc)
        if code is None:
            raise
        return code
    finally:
        core.activity = IDLE


def send_joined(target: Any, core: BatchCore, data: bytes, flags: int = 0) -> int:
    """Send data, a copy of the first bytes of a batch, by one send(2).

    The caller has stored `activity = SENDING`. Returns and Raises: as for iob_send.
    """
    core.pinned = 0
    try:
        core.error = COUNT_UNKNOWN
        nbytes: int = target.send(data, NOSIGNAL | flags)
        core.consume(nbytes)
        return nbytes or IOB_AGAIN
    except BaseException as exc:
        code = core.call_raised(exc)
        if code is None:
            raise
        return code


def _stage_single(
    core: BatchCore, max_bytes: int, _copy_limit: int
) -> tuple[list[bytes | memoryview], int]:
    """Stage one buffer, as stage() does, on a system without sendmsg; all ranges are read."""
    buffer = core.coalesce_head(max_bytes)
    if len(buffer) > max_bytes:
        buffer = memoryview(buffer)[:max_bytes]
    return [buffer], len(buffer)


def _stage_message(sock: socket.socket, core: BatchCore) -> list[bytes | memoryview]:
    """Stage a whole batch as one message.

    Raises:
        OSError: EMSGSIZE: the batch is longer than any message can be; or as for stage().

    """
    # No message is longer than the send buffer of the socket, except on UDP, where none is longer
    # than 64 KiB. The check comes first, so that a range that is too long is not read.
    if core.left > max(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), 0xFFFF):
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    while True:
        buffers, size = core.stage(core.left, whole=True)
        if size == core.left:  # else a read was short
            return buffers if len(buffers) <= IOV_MAX else [b"".join(buffers)]


def _send_buffers(
    target: Any, core: BatchCore, buffers: list[bytes | memoryview], size: int, flags: int
) -> int:
    """Send buffers by one system call, joined if this costs less; return the number of bytes."""
    if len(buffers) == 1:
        core.error = COUNT_UNKNOWN
        return target.send(buffers[0], NOSIGNAL | flags)  # type: ignore[no-any-return]
    # Only `bytes` are joined: reading a view of a truncated mmap causes SIGBUS, while sendmsg fails
    # with EFAULT.
    if (size <= JOIN_LIMIT or size <= JOIN_MEAN_LIMIT * len(buffers)) and (
        not core.releasable or _ONLY_BYTES.issuperset(map(type, buffers))
    ):
        data = b"".join(buffers)  # a MemoryError must not make the count unknown
        core.error = COUNT_UNKNOWN
        return target.send(data, NOSIGNAL | flags)  # type: ignore[no-any-return]
    core.error = COUNT_UNKNOWN
    return target.sendmsg(buffers, (), NOSIGNAL | flags)  # type: ignore[no-any-return]


def _send_range(target: Any, core: BatchCore, size: int) -> int:
    """Send the first `size` bytes of the range at the head by sendfile.

    Returns:
        The number of bytes sent. -1: sendfile can't send this range, which is marked to be read.

    Raises:
        TruncatedFileError: the file has ended.
        OSError: the error of sendfile.

    """
    head: Any = core.head
    fd, offset, count, _, _ = head
    # sendfile has no MSG_NOSIGNAL. So unless SIGPIPE is ignored, as Python does by default, the
    # range is read and sent by send: the signal would end the process, or call a handler. For a
    # descriptor SIGPIPE is part of the contract.
    if type(target) is not Descriptor and getsignal(signal.SIGPIPE) != _SIG_IGN:
        core.refuse_sendfile()
        return -1
    try:
        core.error = COUNT_UNKNOWN
        nbytes: int = _sendfile(target.fileno(), fd, offset, size)
    except OSError as exc:
        if exc.errno not in _SENDFILE_REFUSED or is_interruption(exc):
            raise
        core.refuse_sendfile()
        return -1
    if not nbytes:
        raise TruncatedFileError(fd, offset, count)
    return nbytes

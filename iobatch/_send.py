"""The kernel path: batches sent by sendmsg, sendfile and pread."""

from __future__ import annotations

import errno
import os
import signal
import socket

# signal's own makes a member of an Enum of what it finds, which takes half a microsecond.
from _signal import getsignal  # type: ignore[import-not-found]
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from attrs import define

from iobatch._arguments import MAX_BYTES, check_flags, check_limit, fileno
from iobatch._batch import core_of
from iobatch._core import COUNT_UNKNOWN, IDLE, IOB_AGAIN, IOB_DONE, IOB_ERROR, SENDING
from iobatch._entries import IOV_MAX
from iobatch._errors import TruncatedFileError, is_interruption, suppress_own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from typing_extensions import Buffer

    from iobatch._arguments import HasFileno
    from iobatch._batch import IOBatch
    from iobatch._core import BatchCore

# What one call may send, so that a fast peer can't hold a loop (as nginx's sendfile_max_chunk).
SEND_LIMIT: Final = 2 * 1024 * 1024
# A range up to here is read and goes out with its neighbours in one sendmsg, a longer one goes by
# sendfile. The crossing point was found by sending the same files both ways, in turn, on loopback
# (`python -m tests.bench kernel`): it is at 16 KiB for a header and a file, and at 40 KiB for eight
# files in a batch. In between, at 32 KiB, to read costs a tenth more for the one and saves a fifth
# for the eight.
COPY_LIMIT: Final = 32 * 1024
# Buffers that are all `bytes` are joined for the system call up to this size together, or this one
# in the mean: copying them costs less than sendmsg's work on its list.
JOIN_LIMIT: Final = 16 * 1024
JOIN_MEAN: Final = 1536
# MAX_RW_COUNT: Linux moves no more in a call (write(2), sendfile(2)).
_MAX_CALL: Final = 0x7FFFF000

# Plain ints: `|` on socket's IntFlags takes longer than the rest of a small send.
_NOSIGNAL: Final = int(getattr(socket, "MSG_NOSIGNAL", 0))
_MORE: Final = int(getattr(socket, "MSG_MORE", 0))
_CORK: Final = int(getattr(socket, "TCP_CORK", 0))
_UDP_CORK: Final = 1  # udp(7); socket has no name for it
# The file's or the socket's kind is not one that sendfile(2) knows.
_REFUSED: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EOVERFLOW)

# Also a plain int, as what _signal's functions return is.
_SIG_DFL: Final = int(signal.SIG_DFL)
_sendfile: Callable[[int, int, int, int], int] | None = getattr(os, "sendfile", None)
_socket_class: Final = socket.socket
_ONLY_BYTES: Final = frozenset((bytes,))
_sendmsg = hasattr(socket.socket, "sendmsg")


def iob_send(
    sock: socket.socket | int | HasFileno,
    batch: IOBatch,
    *,
    flags: int = 0,
    limit: int | None = SEND_LIMIT,
) -> int:
    """Send what a socket or descriptor takes of a batch; call it whenever it is writable.

    A blocking socket blocks, as its send does. A socket with a timeout may be waited for that long
    by a send, but not by sendfile; either way IOB_AGAIN is returned. For one message to a datagram
    or seqpacket socket there is iob_sendmsg, for TLS iob_write.

    Args:
        sock: a socket, an int descriptor (written to as write(2) does, SIGPIPE included), or an
            object with fileno(), whose descriptor is used in the same way.
        batch: what to send.
        flags: MSG_* flags for every send(2); only for a socket.
        limit: the most bytes to send in this call; None: as many as are accepted.

    Returns:
        n > 0: n bytes were sent; call again.
        IOB_DONE (0): the batch is empty.
        IOB_AGAIN (-1): nothing was sent; wait until sock is writable and call again.
        IOB_ERROR (-3): nothing was sent, now or later: batch.error says why. What was sent before
            the error is in batch.bytessent, what was not is still in the batch.

    Raises:
        TypeError: sock is a TLS socket (its descriptor would send plain text), or neither a
            descriptor nor an object that has one.
        ValueError: limit is below 1, or flags are given for what is no socket object.
        RuntimeError: this is a hook of the batch itself.
        BaseException: a signal handler's exception. If it is unknown how many bytes were sent,
            batch.error says so, and the batch has failed.

    Source: sendmsg(2), sendfile(2), tcp(7).
    """
    target: Any = sock if type(sock) is _socket_class else _target(sock, flags)
    if limit is not SEND_LIMIT:
        limit = check_limit(limit)
    if flags:
        flags = check_flags(flags)
    core = core_of(batch)
    # why_not() once more: each batch ends with a call that finds it empty, at four fifths the cost.
    if core.activity or core.unsettled:
        core.check_idle()
    if core.error is not None:
        return IOB_ERROR
    if not core.left:
        return IOB_DONE
    core.activity = SENDING
    try:
        size = core.left
        if not (core.ranges or core.releasable) and size <= JOIN_LIMIT and size <= limit:
            buffers: list[Any] = core.look()
            if core.left == size:  # else something else was added meanwhile
                return send_joined(target, core, b"".join(buffers), flags)
        return _send_in_steps(target, core, flags, limit)
    finally:
        core.activity = IDLE


def _send_in_steps(target: Any, core: BatchCore, flags: int, room: int) -> int:
    """Send a batch by as many system calls as it takes; otherwise as send_joined."""
    stage = core.stage if _sendmsg else partial(_stage_one, core)
    # sendfile takes no flags, so with flags all ranges are read; and where there is no sendmsg.
    copy_limit = MAX_BYTES if flags or not (_sendfile and _sendmsg) else COPY_LIMIT
    sent = 0
    more_pending = False  # bytes went out with MSG_MORE, and none followed yet
    corked: bool | None = None  # None: not tried
    core.pinned = 0
    try:
        while True:
            buffers, size = stage(room if room < _MAX_CALL else _MAX_CALL, copy_limit)
            if buffers:
                more = size < core.left and size < room
                send_flags = flags | _MORE if more else flags
                nbytes = _send_buffers(target, core, buffers, size, send_flags)
                more_pending = more and not flags & _MORE
            else:
                if size > room or size > _MAX_CALL:
                    size = min(room, _MAX_CALL)
                more = size < core.left and size < room
                if more and corked is None:
                    corked = _cork(target)
                nbytes = _send_range(target, core, size)
                if nbytes < 0:  # sendfile was refused, so the range is read from now on
                    continue
                more_pending = False
            core.consume(nbytes)
            sent += nbytes
            if nbytes < size or not more:
                # A send that took nothing and raised nothing is not the end of the batch.
                return sent or IOB_AGAIN
            room -= nbytes
    except BaseException as exc:
        code = core.call_raised(exc)
        if code is None:
            raise
        return sent or code
    finally:
        if more_pending or corked:
            _release_frames(target, corked=bool(corked))


def iob_sendmsg(
    sock: socket.socket,
    batch: IOBatch,
    ancdata: Iterable[tuple[int, int, Buffer]] = (),
    flags: int = 0,
    address: Any = None,
) -> int:
    """Send a whole batch as one message, with ancillary data if wanted.

    On a datagram or seqpacket socket it is sent whole or not at all. On a stream socket it may be
    sent in part, and the rest stays in the batch; ancdata went with the first byte then, so don't
    pass it again with the rest. File ranges are read into memory.

    Args:
        sock: a socket object.
        batch: the message. An empty batch sends nothing.
        ancdata: as for socket.sendmsg: (level, type, data), for example SCM_RIGHTS.
        flags: MSG_* flags.
        address: where to, for a socket that is not connected.

    Returns:
        n > 0: n bytes were sent; all of the batch, except on a stream socket.
        IOB_DONE (0): the batch is empty.
        IOB_AGAIN (-1): nothing was sent; wait until sock is writable and call again.
        IOB_ERROR (-3): nothing was sent; batch.error says why (EMSGSIZE: the message is too long)
            and the batch still holds everything, to be moved on by extend().

    Raises:
        TypeError: sock is no socket object, or a TLS socket; ancdata or address is of a wrong
            type.
        RuntimeError: this is a hook of the batch itself.

    Source: sendmsg(2), unix(7).
    """
    if type(sock) is not _socket_class and type(_target(sock, 0)) is _Descriptor:
        raise TypeError(f"a socket object is required, not {type(sock).__name__!r}")
    core = core_of(batch)
    code = core.why_not()
    if code is not None:
        return code
    core.activity = SENDING
    core.pinned = 0
    try:
        if sock.type == socket.SOCK_STREAM:
            buffers, _ = core.stage(_MAX_CALL)
        else:
            buffers = _stage_message(sock, core)
        core.error = COUNT_UNKNOWN
        nbytes = sock.sendmsg(buffers, ancdata, _NOSIGNAL | int(flags), address)
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
    """Send what was joined from the first bytes of a batch by one call.

    The caller has stored `activity = SENDING`. Otherwise as iob_send.
    """
    core.pinned = 0
    try:
        core.error = COUNT_UNKNOWN
        nbytes: int = target.send(data, _NOSIGNAL | flags)
        core.consume(nbytes)
        return nbytes or IOB_AGAIN
    except BaseException as exc:
        code = core.call_raised(exc)
        if code is None:
            raise
        return code


@define
class _Descriptor:
    """Writes to a descriptor as to a socket. write(2) knows no flags."""

    fd: int

    def fileno(self) -> int:
        return self.fd

    def send(self, data: Buffer, _flags: int) -> int:
        return os.write(self.fd, data)

    def sendmsg(self, buffers: Sequence[Buffer], _ancdata: tuple[()], _flags: int) -> int:
        return os.writev(self.fd, buffers)

    def getsockopt(self, _level: int, _option: int) -> int:
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))


def _target(sock: Any, flags: int) -> Any:
    """Return what has send, sendmsg and fileno for sock."""
    # ssl.SSLSocket and pyOpenSSL's Connection: their descriptor carries what is encrypted.
    if hasattr(sock, "do_handshake"):
        raise TypeError("a TLS socket's batch is sent by iob_write, with its send as the callback")
    if isinstance(sock, _socket_class):
        return sock
    descriptor = _Descriptor(fileno(sock))
    if flags:
        raise ValueError("flags are for socket objects")
    return descriptor


def _stage_one(
    core: BatchCore, room: int, _copy_limit: int
) -> tuple[list[bytes | memoryview], int]:
    """Stage a single buffer, where the system has no sendmsg: all ranges are read."""
    buffer = core.stage_one(room)
    if len(buffer) > room:
        buffer = memoryview(buffer)[:room]
    return [buffer], len(buffer)


def _stage_message(sock: socket.socket, core: BatchCore) -> list[bytes | memoryview]:
    """Stage all of a batch, as one message.

    Raises:
        OSError: EMSGSIZE: it is longer than any message can be; or as for stage.

    """
    # No message is longer than the socket's buffer, except on UDP, which has a limit of its own. So
    # a range that is too long for any is not read first.
    if core.left > max(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), 0xFFFF):
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    size = 0
    while size < core.left:  # a read may be short
        buffers, size = core.stage(core.left, whole=True)
    return buffers if len(buffers) <= IOV_MAX else [b"".join(buffers)]


def _send_buffers(
    target: Any, core: BatchCore, buffers: list[bytes | memoryview], size: int, flags: int
) -> int:
    """Send buffers by one system call, joined where that costs less."""
    core.error = COUNT_UNKNOWN
    if len(buffers) == 1:
        return target.send(buffers[0], _NOSIGNAL | flags)  # type: ignore[no-any-return]
    # Only bytes: joining views of a truncated mmap would raise SIGBUS, where sendmsg gives EFAULT.
    if (size <= JOIN_LIMIT or size <= JOIN_MEAN * len(buffers)) and (
        not core.releasable or _ONLY_BYTES.issuperset(map(type, buffers))
    ):
        return target.send(b"".join(buffers), _NOSIGNAL | flags)  # type: ignore[no-any-return]
    return target.sendmsg(buffers, (), _NOSIGNAL | flags)  # type: ignore[no-any-return]


def _send_range(target: Any, core: BatchCore, size: int) -> int:
    """Send the first bytes of the range at the head by sendfile.

    Returns:
        How many; -1: sendfile can't be used for this range, which is to be read instead.

    Raises:
        TruncatedFileError: the file has ended.
        OSError: sendfile's.

    """
    fd, offset, count, _, _ = core.head  # type: ignore[misc]
    # sendfile can't suppress SIGPIPE (send has MSG_NOSIGNAL). Where that would end the process, the
    # range is read. A Windows form of this function would call TransmitFile.
    if type(target) is not _Descriptor and getsignal(signal.SIGPIPE) == _SIG_DFL:
        core.refuse_sendfile()
        return -1
    try:
        core.error = COUNT_UNKNOWN
        nbytes = _sendfile(target.fileno(), fd, offset, size)  # type: ignore[misc]
    except OSError as exc:
        if exc.errno not in _REFUSED or is_interruption(exc):
            raise
        core.refuse_sendfile()
        return -1
    if not nbytes:
        raise TruncatedFileError(fd, offset, count)
    return nbytes


def _cork(sock: Any) -> bool:
    """Hold back partial frames. Return False if the caller has done it, or if it isn't TCP."""
    with suppress_own(OSError):
        if not sock.getsockopt(socket.IPPROTO_TCP, _CORK):
            sock.setsockopt(socket.IPPROTO_TCP, _CORK, 1)
            return True
    return False


def _release_frames(sock: Any, *, corked: bool) -> None:
    """Have the kernel send what a cork of ours, or MSG_MORE with nothing after it, holds back."""
    # UDP holds a datagram back in the same way. Removing a cork sends what waits, also where there
    # was none.
    for level, option in ((socket.IPPROTO_TCP, _CORK), (socket.IPPROTO_UDP, _UDP_CORK)):
        with suppress_own(OSError):
            if corked or not sock.getsockopt(level, option):
                sock.setsockopt(level, option, 0)
            return

"""The kernel path: batches sent by sendmsg, sendfile and pread."""

from __future__ import annotations

import errno
import os
import signal
import socket

# signal's own makes a member of an Enum of what it finds, which takes half a microsecond.
from _signal import getsignal  # type: ignore[import-not-found]
from contextlib import suppress
from selectors import EVENT_WRITE
from typing import TYPE_CHECKING, Any, Final

from attrs import define

from iobatch._batch import IDLE, IOB_AGAIN, IOB_DONE, IOB_ERROR, SENDING, IOBatch
from iobatch._entries import MAX_BYTES, TruncatedFileError, fileno, positive
from iobatch._stage import IOV_MAX, head, stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from typing_extensions import Buffer

    from iobatch._entries import HasFileno

# What one call may send, so that a fast peer can't hold a loop (as nginx's sendfile_max_chunk).
SEND_LIMIT: Final = 2 * 1024 * 1024
# A range up to here is read and goes out with its neighbours in one sendmsg, a longer one goes by
# sendfile. The crossing point was found by sending the same files both ways, in turn, on loopback
# (`python -m tests.bench kernel`): it is at 16 KiB for a header and a file, and at 40 KiB for eight
# files in a batch. In between, at 32 KiB, to read costs a tenth more for the one and saves a fifth
# for the eight.
COPY_LIMIT: Final = 32 * 1024
# Buffers that are `bytes` and have no more together, or in the mean, are joined for the system
# call: copying them costs less than sendmsg's work on its list.
JOIN_LIMIT: Final = 16 * 1024
JOIN_MEAN: Final = 1536
# MAX_RW_COUNT: Linux moves no more in a call (write(2), sendfile(2)).
_MAX_CALL: Final = 0x7FFFF000

# Plain ints: `|` on socket's IntFlags takes longer than the rest of a small send.
_NOSIGNAL: Final = int(getattr(socket, "MSG_NOSIGNAL", 0))
_MORE: Final = int(getattr(socket, "MSG_MORE", 0))
_CORK: Final = int(getattr(socket, "TCP_CORK", 0))
_UDP_CORK: Final = 1  # udp(7); socket has no name for it
_AGAIN: Final = (errno.EAGAIN, errno.EWOULDBLOCK)
# The file's or the socket's kind is not one that sendfile(2) knows.
_REFUSED: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EOVERFLOW)

# Also a plain int, as what _signal's functions return is.
_DEFAULT: Final = int(signal.SIG_DFL)
_sendfile: Callable[[int, int, int, int], int] | None = getattr(os, "sendfile", None)
_socket_class: Final = socket.socket
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

    Source: sendmsg(2), sendfile(2), tcp(7).
    """
    to: Any = sock if type(sock) is _socket_class else _sender(sock, flags)
    if limit is not SEND_LIMIT:
        limit = positive(limit)
    if batch._busy:
        batch._refuse_if_busy()
    if batch._error is not None:
        return IOB_ERROR
    if not batch._left:
        return IOB_DONE
    # sendfile takes no flags, so with flags all ranges are read; and where there is no sendmsg.
    how = _NOSIGNAL | flags
    small = MAX_BYTES if flags or not (_sendfile and _sendmsg) else COPY_LIMIT
    room = limit
    sent = 0
    nbytes: int
    whole: bool  # it is all that there is, and nothing is to be released with it
    entries: int  # so many that are all `bytes`; 0: nobody knows
    held = False  # sent with MSG_MORE, and nothing sent behind it yet
    corked: bool | None = None  # None: not tried
    batch._busy = SENDING
    batch._pin = 0
    try:
        while True:
            if batch._joinable and batch._left <= JOIN_LIMIT and batch._left <= room:
                try:
                    data = b"".join(batch._queue)  # type: ignore[arg-type]
                except TypeError:  # a finalizer has added something else meanwhile
                    continue
                size = len(data)
                more = False
                whole = True
                entries = 0
                nbytes = to.send(data, how)
                held = False
            elif type(first := batch._queue[0]) is tuple and first[2] > small and not first[4]:
                if type(to) is not _Descriptor and getsignal(signal.SIGPIPE) == _DEFAULT:
                    # sendfile knows no MSG_NOSIGNAL either.
                    small = MAX_BYTES
                    continue
                fd, offset, size, file, _ = first
                if size > room:
                    size = room
                if size > _MAX_CALL:
                    size = _MAX_CALL
                more = size < batch._left and size < room
                if more and corked is None:
                    corked = _cork(to)
                try:
                    nbytes = _sendfile(to.fileno(), fd, offset, size)  # type: ignore[misc]
                except OSError as exc:
                    if exc.errno not in _REFUSED:
                        raise
                    batch._queue[0] = (fd, offset, first[2], file, True)  # to be read
                    continue
                if not nbytes:
                    raise TruncatedFileError(fd, offset, first[2])
                held = whole = False
                entries = 0
            else:
                if _sendmsg:
                    most = room if room < _MAX_CALL else _MAX_CALL
                    pieces, size, plain = stage(batch, most, small)
                    entries = len(pieces) if plain else 0
                    whole = entries == len(batch._queue)
                else:
                    piece = head(batch, min(room, _MAX_CALL))
                    size = min(len(piece), room, _MAX_CALL)
                    pieces = [piece if size == len(piece) else memoryview(piece)[:size]]
                    whole = False
                    entries = 0
                more = size < batch._left and size < room
                with_more = how | _MORE if more else how
                if len(pieces) == 1:
                    nbytes = to.send(pieces[0], with_more)
                elif entries and (size <= JOIN_LIMIT or size <= JOIN_MEAN * entries):
                    nbytes = to.send(b"".join(pieces), with_more)
                else:
                    nbytes = to.sendmsg(pieces, (), with_more)
                held = more and not flags & _MORE
            sent += nbytes
            if whole and nbytes == batch._left:
                # All is gone and nothing is to be released: the usual end takes no call.
                batch._left = 0
                batch._sent += nbytes
                # Not behind the call, where a signal's handler may add what can't be joined.
                batch._joinable = True
                batch._queue.clear()
                return sent
            batch._advance(nbytes, entries if nbytes == size else 0)
            if nbytes < size or not more:
                # A send that took nothing and had no error is not the end of the batch.
                return sent or IOB_AGAIN
            room -= nbytes
    except OSError as exc:
        code = _ended(batch, exc)
        return sent or code
    finally:
        batch._busy = IDLE
        if held or corked:
            _push(to, corked=bool(corked))


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
        n > 0: n bytes were sent; all of the batch, but on a stream socket.
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
    if type(sock) is not _socket_class and type(_sender(sock, 0)) is _Descriptor:
        raise TypeError(f"a socket object is required, not {type(sock).__name__!r}")
    batch._refuse_if_busy()
    if batch._error is not None:
        return IOB_ERROR
    if not batch._left:
        return IOB_DONE
    batch._busy = SENDING
    batch._pin = 0
    try:
        if sock.type == socket.SOCK_STREAM:
            pieces, size, _ = stage(batch, _MAX_CALL)
        else:
            # No message is longer than the socket's buffer, but for UDP: that ends by itself. So a
            # range that is too long for any is not read first.
            if batch._left > max(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), 0xFFFF):
                raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
            size = 0
            while size < batch._left:  # a read may be short
                pieces, size, _ = stage(batch, batch._left, whole=True)
            if len(pieces) > IOV_MAX:
                pieces = [b"".join(pieces)]
        nbytes = sock.sendmsg(pieces, ancdata, _NOSIGNAL | int(flags), address)
        batch._advance(nbytes)
        return nbytes or IOB_AGAIN
    except OSError as exc:
        return _ended(batch, exc)
    finally:
        batch._busy = IDLE


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


def _sender(sock: Any, flags: int) -> Any:
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


def _ended(batch: IOBatch, exc: OSError) -> int:
    """Tell "again" from a permanent error, and keep the error."""
    # A TimeoutError without errno is the socket's own timeout; ETIMEDOUT is the connection's end.
    if exc.errno in _AGAIN or (exc.errno is None and isinstance(exc, TimeoutError)):
        batch._wants = EVENT_WRITE
        return IOB_AGAIN
    batch._fail(exc)
    return IOB_ERROR


def _cork(sock: Any) -> bool:
    """Hold back partial frames; tell whether it was done, and is to be undone.

    It is not where the caller has done it already, and where this is not TCP.
    """
    with suppress(OSError):
        if not sock.getsockopt(socket.IPPROTO_TCP, _CORK):
            sock.setsockopt(socket.IPPROTO_TCP, _CORK, 1)
            return True
    return False


def _push(sock: Any, *, corked: bool) -> None:
    """Let go what a cork of ours, or MSG_MORE with nothing behind it, holds back."""
    # UDP holds a datagram back in the same way. To remove a cork sends what waits, also where there
    # was none.
    for level, option in ((socket.IPPROTO_TCP, _CORK), (socket.IPPROTO_UDP, _UDP_CORK)):
        with suppress(OSError):
            if corked or not sock.getsockopt(level, option):
                sock.setsockopt(level, option, 0)
            return

"""Connections whose peers read, stall, reset, close and shut down at random."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from iobatch import TruncatedFileError
from tests.support.sockets import PATIENCE, reset, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.soak.batches import Batches

# The most bytes that the peer of a connection reads at once.
READ = 1 << 18


class Connection:
    """Two connected non-blocking sockets, and what one of them was given to send."""

    def __init__(
        self, kind: str, batches: Batches, decode: Callable[[bytes], bytes] = bytes
    ) -> None:
        """Connect two sockets; `decode` returns what each piece that arrives stands for."""
        self.batches = batches
        self.random = batches.random
        self.truncations = batches.truncations
        self.decode = decode
        if kind == "seqpacket":
            self.sock, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        else:
            with stream_pair(kind, buffers=self.random.choice((4096, None, None))) as sockets:
                self.sock, self.peer = (each.dup() for each in sockets)
        self.sock.setblocking(False)
        self.peer.setblocking(False)
        # What the peer has not received yet, and the number of bytes that it has received.
        self.given = bytearray()
        self.received = 0
        # The peer reads no more.
        self.lost = False
        # The whole stream was accepted.
        self.complete = True

    def close(self) -> None:
        """Close the sockets, and check that all has arrived."""
        with self.peer:
            self.sock.close()
            if not self.lost:
                self.peer.settimeout(PATIENCE)
                while self._read(READ):
                    pass
        if self.complete and not self.lost:
            assert not self.given, f"{len(self.given)} bytes did not arrive"

    @property
    def given_bytes(self) -> int:
        """The number of bytes that were given so far."""
        return self.received + len(self.given)

    def give(self, content: bytes) -> None:
        """Take note of bytes that are sent next."""
        self.given += content

    def withdraw(self, start: int, end: int) -> None:
        """Take note that the bytes between two offsets in the stream are not sent."""
        if end > start:
            del self.given[start - self.received : end - self.received]

    def fail(self, exc: BaseException) -> None:
        """Take note of an error of the connection, a file or a message; raise all others."""
        if not isinstance(exc, TruncatedFileError):
            assert isinstance(exc, OSError)
            too_long = exc.errno == errno.EMSGSIZE and self.peer.type == socket.SOCK_SEQPACKET
            lost = isinstance(exc, ConnectionError) or exc.errno == errno.ENOTCONN
            if not (too_long or (lost and self.lost)):
                raise exc
        self.complete = False

    def turn(self) -> None:
        """Let the peer do something, or nothing."""
        chance = self.random.random()
        if self.lost or chance < 0.2:
            return
        if chance < 0.96:
            self._read(self.random.choice((100, 10_000, READ, READ)))
        elif chance < 0.97:
            self.lost = True
            self.random.choice((self._reset, self.peer.close, self._shut_reading, self._shut))()

    def _read(self, nbytes: int) -> bool:
        try:
            piece = self.peer.recv(READ if self.peer.type == socket.SOCK_SEQPACKET else nbytes)
        except BlockingIOError:
            return False
        if plain := self.decode(piece):
            given = self.given[: len(plain)]
            if plain != given:
                assert self.batches.truncations > self.truncations, "other bytes have arrived"
                assert is_zeroed(given, plain), "other bytes have arrived, even for cut files"
            del self.given[: len(plain)]
            self.received += len(plain)
        return bool(piece)

    def _reset(self) -> None:
        reset(self.peer)

    def _shut_reading(self) -> None:
        self.peer.shutdown(socket.SHUT_RD)

    def _shut(self) -> None:
        self.peer.shutdown(socket.SHUT_RDWR)


def is_zeroed(given: bytes | bytearray, got: bytes) -> bool:
    """Return whether bytes are the same as others, except that zeros are in place of some.

    sendfile(2) does not copy: what waits in a socket's buffer is still the page of the file. If the
    file is truncated within this page, the kernel sets the rest of the page to zero.
    """
    return len(got) == len(given) and all(
        new in (old, 0) for old, new in zip(given, got, strict=True)
    )

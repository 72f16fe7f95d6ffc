"""The sockets that the machines send over, and how many bytes each has accepted."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from contextlib import ExitStack, suppress
from copy import copy
from typing import TYPE_CHECKING, Any

from tests.support.fakes import Scripted, again, script_sendfile
from tests.support.sockets import receive, stream_pair

if TYPE_CHECKING:
    import pytest

WIRES = ("scripted", "unix", "tcp4")
SIOCOUTQ = termios.TIOCOUTQ
# The offset of tcpi_bytes_acked in struct tcp_info (linux/tcp.h).
BYTES_ACKED = 120


class Wire:
    """A stream socket, the bytes that it has accepted, and those that have arrived."""

    def __init__(self, kind: str, patch: pytest.MonkeyPatch) -> None:
        self.kind = kind
        self.received = bytearray()
        self._stack = ExitStack()
        self._patch = patch
        self._base = 0
        self._open()

    def _open(self) -> None:
        self.sock: Any
        if self.kind == "scripted":
            self.sock = self.peer = self._stack.enter_context(Scripted())
            script_sendfile(self._patch, self.sock)
        else:
            self.sock, self.peer = self._stack.enter_context(stream_pair(self.kind))
            # As small as the kernel allows: most calls are partial writes. A small receive buffer
            # would make TCP drop segments, and wait long before it repeats them.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            self.peer.setblocking(False)
        self.sock.setblocking(False)
        self._base = -self.accepted

    @property
    def scripted(self) -> bool:
        return self.kind == "scripted"

    def script(self, actions: list[Any]) -> None:
        """Have each of the next calls accept n bytes, or raise: None means "again"."""
        if self.scripted:
            self.sock.script.clear()
            # Copies: the traceback of an exception that was raised would hold the batch.
            self.sock.script.extend(again() if each is None else copy(each) for each in actions)

    @property
    def accepted(self) -> int:
        """The number of bytes that the socket has accepted."""
        if self.scripted:
            return len(self.sock.taken)
        if self.kind == "unix":
            return self._base + len(self.received) + _ioctl(self.peer, termios.FIONREAD)
        while True:
            acked = self._acked()
            unacked = _ioctl(self.sock, SIOCOUTQ)
            if self._acked() == acked:
                return self._base + acked + unacked

    def _acked(self) -> int:
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_ACKED + 8)
        return int(struct.unpack_from("Q", info, BYTES_ACKED)[0])

    def read(self, nbytes: int) -> None:
        """Read up to this number of the bytes that have arrived."""
        if self.scripted:
            self.received[:] = self.sock.taken
        else:
            with suppress(BlockingIOError):
                self.received += self.peer.recv(nbytes)

    def read_all(self) -> None:
        """Read each byte that was accepted."""
        if self.scripted:
            self.read(0)
        else:
            self.received += receive(self.peer, self.accepted - len(self.received))

    def close(self) -> None:
        self._stack.close()


def _ioctl(sock: socket.socket, request: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock, request, bytes(4)))[0])

"""Pairs of connected sockets, and reading from them."""

from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 20.0  # the seconds that a test waits for an event before it fails
# glibc reads these when a thread first returns memory to the system, or needs an arena. This thread
# may be one that was joined: it frees memory after that, at its end.
READ_BY_GLIBC = ("/proc/sys/vm/overcommit_memory", "/sys/devices/system/cpu/online")
KINDS = ("tcp4", "tcp6", "unix", "socketpair")


@contextmanager
def stream_pair(
    kind: str = "socketpair", *, buffers: int | None = None, maxseg: int | None = None
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield two connected, blocking stream sockets; on TCP the first has TCP_NODELAY.

    Args:
        kind: one of KINDS.
        buffers: SO_SNDBUF of the first and SO_RCVBUF of the second socket; None: the default.
        maxseg: TCP_MAXSEG, with a large receive window.

    """
    if kind == "tcp6" and not _has_ipv6():
        pytest.skip(
            "this machine has no IPv6 loopback: enable it (net.ipv6.conf.lo.disable_ipv6=0)"
        )
    if kind == "socketpair":
        one, other = socket.socketpair()
    else:
        family = {
            "tcp4": socket.AF_INET,
            "tcp6": socket.AF_INET6,
            "unix": socket.AF_UNIX,
        }[kind]
        with socket.socket(family) as listener:
            if maxseg:
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, maxseg)
                # With TCP_NODELAY Linux ends a segment at the window's end, so the window is large.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            if buffers:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            # Linux binds an empty name to an unused abstract address (unix(7), autobind).
            listener.bind({"tcp4": ("127.0.0.1", 0), "tcp6": ("::1", 0)}.get(kind, ""))
            listener.listen(1)
            one = socket.socket(family)
            one.connect(listener.getsockname())
            other, _ = listener.accept()
        if kind != "unix":
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with one, other:
        if buffers:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        yield one, other


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@contextmanager
def refusing_udp() -> Iterator[socket.socket]:
    """Yield a UDP socket to whose address datagrams are refused, and which keeps the port taken."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())  # takes datagrams from itself only
        yield sock


def receive(peer: Any, nbytes: int) -> bytes:
    """Read exactly nbytes; fail if no further byte arrives within PATIENCE seconds."""
    fd = peer if isinstance(peer, int) else peer.fileno()
    received = bytearray()
    while len(received) < nbytes:
        readable, _, _ = select.select([fd], [], [], PATIENCE)
        assert readable, f"only {len(received)} of {nbytes} bytes arrived"
        piece = os.read(fd, min(nbytes - len(received), 1 << 20))
        assert piece, f"end of stream after {len(received)} of {nbytes} bytes"
        received += piece
    return bytes(received)


def receive_all(peer: socket.socket) -> bytes:
    """Read up to the end of stream or a reset; to be run in a thread."""
    received = bytearray()
    with suppress(ConnectionResetError):
        while piece := peer.recv(1 << 20):
            received += piece
    return bytes(received)


def reset(sock: socket.socket) -> None:
    """Close a TCP socket so that its connection is reset; close another one as usual."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def wait_for_error(sock: socket.socket) -> None:
    """Wait until a reset of the connection, or an ICMP error, has arrived."""
    poll = select.poll()
    poll.register(sock, 0)  # POLLERR and POLLHUP are always reported
    assert poll.poll(PATIENCE * 1000), "no error has arrived"


def is_silent(peer: socket.socket) -> bool:
    """Return whether neither bytes nor an end of stream have arrived."""
    return not select.select([peer], [], [], 0)[0]


def clog(sock: socket.socket) -> int:
    """Make a socket non-blocking and fill its buffers; return how many bytes it accepted.

    They stay full until the peer reads. TCP accepts more bytes whenever earlier ones are
    acknowledged, which may be 40 ms later, so its buffers are filled until the peer's window is
    closed.
    """
    sock.setblocking(False)
    count = 0
    filler = bytes(4096)
    while True:
        is_final = takes_no_more(sock)
        for size in (4096, 1):
            with suppress(BlockingIOError):
                while True:
                    count += sock.send(filler[:size])
        if is_final:
            return count
        os.sched_yield()


def takes_no_more(sock: socket.socket) -> bool:
    """Return whether nothing leaves a socket's send buffer until the peer reads."""
    if sock.family == socket.AF_UNIX:
        return True
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    # struct tcp_info (linux/tcp.h): tcpi_unacked and tcpi_snd_wnd.
    return struct.unpack_from("=I200xI", info, 24) == (0, 0)


def open_descriptors() -> set[int]:
    """Return the open descriptors of this process, except those of glibc's own files."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile, as that of the folder
            if str(link.readlink()) not in READ_BY_GLIBC:
                found.add(int(link.name))
    return found


def fd_count() -> int:
    return len(open_descriptors())


@contextmanager
def without_standard_input() -> Iterator[None]:
    """Close descriptor 0, so that the next descriptor gets this number."""
    saved = os.dup(0)
    os.close(0)
    try:
        yield
    finally:
        os.dup2(saved, 0)
        os.close(saved)

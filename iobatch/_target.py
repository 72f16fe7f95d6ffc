"""What iob_send sends to: sockets and descriptors, and the socket options that it sets."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any, Final

from attrs import define

from iobatch._arguments import Buffer, fileno
from iobatch._errors import suppress_call_error

if TYPE_CHECKING:
    from collections.abc import Sequence

socket_class: Final = socket.socket
# Plain ints: `|` on the IntFlags of socket takes longer than the rest of a small send.
NOSIGNAL: Final = int(getattr(socket, "MSG_NOSIGNAL", 0))
MORE: Final = int(getattr(socket, "MSG_MORE", 0))
_CORK: Final = int(getattr(socket, "TCP_CORK", 0))
_UDP_CORK: Final = 1  # UDP_CORK of udp(7), which socket does not define
# The families in which MSG_MORE joins the data of two sends to one message: udp(7), raw(7), and the
# kernel's documentation of AF_ALG. In the others Linux ignores the flag.
_JOINING_FAMILIES: Final = frozenset(
    int(getattr(socket, name))
    for name in ("AF_INET", "AF_INET6", "AF_ALG")
    if hasattr(socket, name)
)
# The modules whose classes stand for the socket of a transport: TransportSocket and PseudoSocket.
_TRANSPORT_MODULES: Final = ("asyncio.trsock", "uvloop.loop")


@define
class Descriptor:
    """A descriptor with the methods of a socket. write(2) and writev(2) take no flags."""

    fd: int

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.fd

    def send(self, data: Buffer, _flags: int) -> int:
        """Write data; return the number of bytes written."""
        return os.write(self.fd, data)

    def sendmsg(self, buffers: Sequence[Buffer], _ancdata: tuple[()], _flags: int) -> int:
        """Write buffers; return the number of bytes written."""
        return os.writev(self.fd, buffers)

    def getsockopt(self, _level: int, _option: int) -> int:
        """Raise ENOTSOCK: the options of a socket that is given by its descriptor stay alone."""
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))


def as_target(sock: Any, flags: int) -> Any:
    """Return an object with send, sendmsg and fileno for sock: a socket, or a Descriptor.

    Raises:
        TypeError: sock is a TLS socket, a file object on one, or the socket of a transport; or sock
            is neither a descriptor nor an object with fileno().
        ValueError: flags are given and sock is not a socket object.

    """
    # ssl.SSLSocket and pyOpenSSL's Connection have do_handshake; their descriptors carry encrypted
    # bytes.
    if hasattr(sock, "do_handshake"):
        raise TypeError(
            "sock must not be a TLS socket: use iob_write, as in "
            "iob_write(sock, batch, ssl.SSLSocket.send)"
        )
    if isinstance(sock, socket_class):
        return sock
    if not isinstance(sock, int):
        _check_wrapper(sock)
    descriptor = Descriptor(fileno(sock))
    if flags:
        raise ValueError("flags require a socket object")
    return descriptor


def _check_wrapper(wrapper: Any) -> None:
    """Check that an object which isn't a socket doesn't stand for a socket with encrypted bytes.

    Raises:
        TypeError: it is a file object on a TLS socket, or it is the socket of a transport.

    """
    # Whether TLS runs over a transport is unknown here, and a transport may hold bytes that must go
    # out first. asyncio prohibits sending on these objects, too.
    if type(wrapper).__module__ in _TRANSPORT_MODULES:
        raise TypeError(
            "sock must not be the socket of a transport: write to the transport, as "
            "iobatch.aio.send_to_stream does"
        )
    # The results of makefile("w"), makefile("wb") and makefile("wb", buffering=0), and wfile of a
    # socketserver.StreamRequestHandler: each refers to the next, and the last to the socket.
    inner = wrapper
    for name in ("buffer", "raw", "_sock"):
        inner = getattr(inner, name, inner)
    if inner is not wrapper and hasattr(inner, "do_handshake"):
        raise TypeError("sock must not be a file object of a TLS socket: use iob_write")


def check_more(sock: socket.socket, flags: int) -> None:
    """Check that a socket does not ignore MSG_MORE, if it is among the flags.

    On a stream socket the flag never matters to the reader. On a message socket that ignores it,
    two messages would go out instead of one.

    Raises:
        OSError: EOPNOTSUPP, as WSASend fails with WSAEOPNOTSUPP for MSG_PARTIAL.

    """
    # The flags are tested first: `type` and `family` make members of an Enum, half a microsecond
    # each.
    if flags & MORE and sock.type != socket.SOCK_STREAM and sock.family not in _JOINING_FAMILIES:
        raise OSError(errno.EOPNOTSUPP, "this kind of message socket ignores MSG_MORE")


def can_cork(sock: Any) -> bool:
    """Return whether sock is a TCP socket on which the caller has not set TCP_CORK."""
    with suppress_call_error(OSError):
        return not sock.getsockopt(socket.IPPROTO_TCP, _CORK)
    return False


def cork(sock: Any) -> None:
    """Set TCP_CORK, which holds back partial frames."""
    with suppress_call_error(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, _CORK, 1)


def uncork(sock: Any, *, corked: bool) -> bool:
    """Make the kernel send the bytes it holds back for cork(), or for MSG_MORE on the last send.

    A cork that the caller has set is not removed.

    Returns:
        False: the kernel has refused to remove the cork, which sock may still have.

    """
    # UDP holds back a datagram in the same way. Setting the option to 0 sends the bytes held back,
    # even if the option was not set. The first option that the socket has is the right one.
    for level, option in ((socket.IPPROTO_TCP, _CORK), (socket.IPPROTO_UDP, _UDP_CORK)):
        with suppress_call_error(OSError):
            if corked or not sock.getsockopt(level, option):
                sock.setsockopt(level, option, 0)
            return True
    return not corked

"""Listening sockets."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from iobatch.httpd.addresses import network_addresses

BACKLOG = 1024


def listen_for_workers(host: str, port: int, workers: int) -> list[socket.socket]:
    """Return a socket for each worker, as `listen` does.

    Raises:
        OSError: the address does not exist or is in use.

    """
    if workers > 1:
        # SO_REUSEPORT would share the port with the workers of another server, without an error.
        listen(host, port).close()
    listeners: list[socket.socket] = []
    for _ in range(workers):
        listeners.append(listen(host, port, shared=workers > 1))
        port = listeners[0].getsockname()[1]
    return listeners


def share(listener: socket.socket, workers: int) -> list[socket.socket]:
    """Return a listening socket for each worker; they have one backlog."""
    return [listener, *(listener.dup() for _ in range(workers - 1))]


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a non-blocking socket that listens on an address.

    Args:
        host: an address or name of this machine.
        port: 0: the system chooses a free one.
        shared: other sockets listen on the same port, and the kernel spreads the connections.

    Raises:
        OSError: the address does not exist or is in use.

    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except UnicodeError as exc:  # a label is longer than IDNA allows
        raise OSError(errno.EINVAL, "not the name of a host") from exc
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" also means all IPv4 addresses, whatever the system's default is.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def listen_unix(path: str) -> socket.socket:
    """Return a non-blocking socket that listens at a path.

    A socket at the path that no server listens on is replaced.

    Raises:
        OSError: the path can't be used.

    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if Path(path).is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.setblocking(False)
                try:
                    probe.connect(path)
                except BlockingIOError:
                    pass  # a server listens, and its backlog is full
                except ConnectionRefusedError:
                    Path(path).unlink()
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def unlink_unix(path: str, created: int) -> None:
    """Remove a Unix socket's path, unless another server has replaced it.

    Args:
        path: of the socket.
        created: a descriptor of the file that this server created there (O_PATH). While it is
            open, no other file can have the same inode number.

    """
    with suppress(OSError):
        if os.path.samestat(Path(path).stat(), os.fstat(created)):
            Path(path).unlink()
    os.close(created)


def is_local(listener: socket.socket) -> bool:
    """Return whether only clients on this machine can connect."""
    if listener.family == socket.AF_UNIX:
        return True
    address = ip_address(listener.getsockname()[0])
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    return address.is_loopback


def urls(listener: socket.socket, *, secure: bool) -> list[str]:
    """Return the URLs to open in a browser; those after the first are for other machines."""
    scheme = "https" if secure else "http"
    if listener.family == socket.AF_UNIX:
        name = listener.getsockname()
        path = name if isinstance(name, str) else "@" + os.fsdecode(name[1:])  # an abstract one
        return [f"{scheme}+unix:{path}"]
    host, port, *more = listener.getsockname()
    hosts = [host]
    if host in {"0.0.0.0", "::"}:  # noqa: S104  # a comparison: nothing is bound here
        hosts = ["localhost", *network_addresses(ipv6=host == "::")]
    elif more and more[1]:
        hosts = [f"{host}%25{_zone(more[1])}"]  # RFC 6874
    return [f"{scheme}://{f'[{each}]' if ':' in each else each}:{port}/" for each in hosts]


def _zone(number: int) -> str:
    """Return the name of an IPv6 zone: its interface, or its number if that is gone."""
    try:
        return socket.if_indextoname(number)
    except OSError:
        return str(number)

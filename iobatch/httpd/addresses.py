"""The addresses under which other machines in the local network reach this one."""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

# The requests of ioctl(2) for an interface's flags, and for its IPv4 address (netdevice(7)).
_SIOCGIFFLAGS = 0x8913
_SIOCGIFADDR = 0x8915
_IFF_UP = 1
# struct ifreq: a name and a union.
_IFREQ = struct.Struct("16s24x")
# A global or unique-local address in if_inet6 has this scope.
_GLOBAL = 0
# IPv6 addresses that are temporary, duplicate, deprecated or tentative (linux/if_addr.h).
_UNUSABLE = 0x01 | 0x08 | 0x20 | 0x40


def network_addresses(*, ipv6: bool) -> list[str]:
    """Return the addresses of all interfaces that are up, as far as they can be found.

    Those of the loopback interface and link-local ones are left out.

    Args:
        ipv6: IPv6 addresses follow those of IPv4.

    """
    found: list[str] = []
    with suppress(OSError):
        found += _ipv4_addresses()
    if ipv6:
        with suppress(OSError):
            found += _ipv6_addresses()
    return found


def _ipv4_addresses() -> list[str]:
    """Return the first address of each interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        found = [_ipv4_address(sock, name) for _, name in socket.if_nameindex()]
    return [str(each) for each in found if each and not (each.is_loopback or each.is_link_local)]


def _ipv4_address(sock: socket.socket, name: str) -> IPv4Address | None:
    """Return an interface's address; None: it is down or has none."""
    request = _IFREQ.pack(name.encode())
    with suppress(OSError):
        (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)
        if flags & _IFF_UP:
            # The union is a struct sockaddr_in: a family and a port precede the address.
            return IPv4Address(fcntl.ioctl(sock, _SIOCGIFADDR, request)[20:24])
    return None


def _ipv6_addresses() -> list[str]:
    found: list[str] = []
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        digits, _, _, scope, flags, _ = line.split()
        if int(scope, 16) == _GLOBAL and not int(flags, 16) & _UNUSABLE:
            found.append(str(IPv6Address(bytes.fromhex(digits))))
    return found

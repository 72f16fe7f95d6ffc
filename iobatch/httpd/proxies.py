"""The addresses of clients whose requests come through trusted proxies."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TYPE_CHECKING, NamedTuple

from attrs import define

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# The peers of a Unix socket, or addresses.
Proxy = str | IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

UNIX = "unix"
# Longer clients are malformed, so those that are kept take little memory. In bytes.
MAX_NODE = 100
# The bits that all IPv4-mapped addresses share (RFC 4291 2.5.5.2).
_MAPPED_BITS = 96

# A parameter of Forwarded (RFC 7239 4).
_PAIR = rb"""([!#$%&'*+.^_`|~\w-]++)=([!#$%&'*+.^_`|~\w-]++|"(?:[^"\\]|\\.)*+")"""
_PARAMETER = re.compile(_PAIR)
# An element, which may be empty (RFC 9110 5.6.1).
_ELEMENT = re.compile(rb"[ \t]*+(?P<element>%s(?:;%s)*+)?[ \t]*+" % (_PAIR, _PAIR))
_QUOTED_PAIR = re.compile(rb"\\(.)")
# An address, or a name in its place, with a port if there is one (RFC 7239 6).
_NODE = re.compile(
    r"(?:\[(?P<ipv6>[\da-f:.]+)\]|(?P<ipv4>[\d.]+)|(?P<name>unknown|_[\w.-]{1,63}))"
    r"(?::(?:\d{1,5}|_[\w.-]+))?",
    re.ASCII | re.IGNORECASE,
)


class Node(NamedTuple):
    """A proxy's client."""

    # As in the log; b"": malformed.
    name: bytes
    # None: only a name is known.
    address: Address | None


_MALFORMED = Node(b"", None)


def parse_proxy(text: str) -> Proxy:
    """Return the peers that an option's value means.

    Raises:
        ValueError: it is neither an address, nor a network, nor UNIX.

    """
    if text == UNIX:
        return UNIX
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:  # peers with such an address are compared by the IPv4 one
            return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


@define(frozen=True)
class TrustedProxies:
    """The proxies whose word on their clients is taken."""

    _proxies: Sequence[Proxy]

    def trusts(self, peer: bytes) -> bool:
        """Return whether a peer, as in the log, is one of them."""
        if peer == UNIX.encode():
            return UNIX in self._proxies
        address, _, _ = peer.partition(b"%")  # a link-local one has the zone after it
        return self._has(_parse_node(address).address)

    def _has(self, address: Address | None) -> bool:
        return address is not None and any(
            address in each for each in self._proxies if not isinstance(each, str)
        )

    def client_of(self, headers: Mapping[bytes, bytes], peer: bytes) -> bytes:
        """Return the address of a request's client, or the name that stands for it.

        Each proxy adds its own client at the end. So it is the last one that is no trusted proxy;
        what precedes it may be forged. If all are trusted, it is the first one.

        Args:
            headers: the request's.
            peer: the trusted proxy that sends the request. It is returned if the field is missing
                or malformed.

        """
        client = peer
        for each in _nodes(headers):
            node = _parse_node(each) if len(each) <= MAX_NODE else _MALFORMED
            if not node.name:
                return peer
            client = node.name
            if not self._has(node.address):
                break
        return client


def _nodes(headers: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """Yield the clients that proxies have added, the last one first; b"": malformed."""
    if b"x-forwarded-for" in headers:
        for element in reversed(headers[b"x-forwarded-for"].split(b",")):
            if element.strip():
                yield element.strip()
        return
    forwarded = headers.get(b"forwarded", b"")
    # From its end: what a client has sent can't make the element that a proxy adds malformed.
    end = comma = len(forwarded)
    while comma >= 0:
        comma = forwarded.rfind(b",", 0, comma)
        # If it is in a quoted string, the element begins after an earlier one.
        if found := _ELEMENT.fullmatch(forwarded, comma + 1, end):
            end = comma
            if found["element"]:
                yield _forwarded_for(found["element"])
    if end >= 0:
        yield b""


def _forwarded_for(element: bytes) -> bytes:
    """Return the client in an element of Forwarded; b"": it is not there once."""
    values = [value for name, value in _PARAMETER.findall(element) if name.lower() == b"for"]
    if len(values) != 1:
        return b""
    [value] = values
    return _QUOTED_PAIR.sub(rb"\1", value[1:-1]) if value.startswith(b'"') else value


@lru_cache(maxsize=1024)
def _parse_node(text: bytes) -> Node:
    """Parse an address, or a name in its place, with a port if there is one."""
    host = text.decode("latin-1")
    if found := _NODE.fullmatch(host):
        if found["name"]:
            return Node(found["name"].encode(), None)
        host = found["ipv6"] or found["ipv4"]
    elif "%" in host:  # a zone is known to the proxy only, and may have any characters
        return _MALFORMED
    try:
        address = ip_address(host)
    except ValueError:
        return _MALFORMED
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    return Node(str(address).encode(), address)

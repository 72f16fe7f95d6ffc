"""The addresses in the local network."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from pathlib import Path

import pytest

from iobatch.httpd.addresses import network_addresses
from tests.support.httpd import program

UP, DOWN = 1, 0
# The flags and the address of each interface; None: it has no address.
INTERFACES = {
    "lo": (UP, "127.0.0.1"),
    "eth0": (UP, "192.0.2.2"),
    "eth1": (DOWN, "198.51.100.1"),
    "eth2": (UP, "169.254.1.1"),
    "tun0": (UP, None),
    "wlan-with-a-name": (UP, "10.1.2.3"),
}
# As in /proc/net/if_inet6: loopback, unique-local, link-local, temporary and tentative addresses.
INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
fd000000000000000000000000000002 04 40 00 82     eth0
fe8000000000000000fc00fffe000001 04 40 20 80     eth0
20010db8000000000000000000000001 04 40 00 00     eth0
20010db8000000000000000000000002 04 40 00 01     eth0
20010db8000000000000000000000003 04 40 00 40     eth0
"""


def fail(*args: object) -> None:
    raise OSError(errno.EAFNOSUPPORT, "not supported")


@pytest.fixture
def _interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(sock: socket.socket, request: int, argument: bytes) -> bytes:
        name = argument[:16].rstrip(b"\0").decode()
        flags, address = INTERFACES[name]
        if request == 0x8913:
            return argument[:16] + struct.pack("H22x", flags)
        assert request == 0x8915
        if address is None:
            raise OSError(errno.EADDRNOTAVAIL, "no address")
        return argument[:16] + struct.pack("HH4s16x", socket.AF_INET, 0, socket.inet_aton(address))

    monkeypatch.setattr(socket, "if_nameindex", lambda: list(enumerate(INTERFACES, 1)))
    monkeypatch.setattr(fcntl, "ioctl", ioctl)

    def read_text(path: Path) -> str:
        return INET6

    monkeypatch.setattr(Path, "read_text", read_text)


@pytest.mark.usefixtures("_interfaces")
def test_addresses_are_those_that_other_machines_reach() -> None:
    ipv4 = ["192.0.2.2", "10.1.2.3"]
    assert network_addresses(ipv6=False) == ipv4
    assert network_addresses(ipv6=True) == [*ipv4, "fd00::2", "2001:db8::1"]


@pytest.mark.usefixtures("_interfaces")
def test_addresses_that_cannot_be_found_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(socket, "if_nameindex", fail)
        assert network_addresses(ipv6=True) == ["fd00::2", "2001:db8::1"]
    monkeypatch.setattr(Path, "read_text", fail)
    assert network_addresses(ipv6=True) == ["192.0.2.2", "10.1.2.3"]


def test_each_address_that_the_system_reports_is_its_own() -> None:
    """The loopback interface shows that the system's structures are read correctly."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("is_loopback", "is_link_local"):
            patch.setattr(f"ipaddress.IPv4Address.{name}", property(lambda self: False))
        assert "127.0.0.1" in network_addresses(ipv6=False)
    for address in network_addresses(ipv6=True):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as sock:
            sock.bind((address, 0))


def test_start_prints_the_urls_for_other_machines_each_on_a_line(site: Path) -> None:
    with program(site, "--bind", "0.0.0.0") as (process, url):
        port = url.rpartition(":")[2]
        process.terminate()
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    assert lines == [
        f"  and on http://{address}:{port}" for address in network_addresses(ipv6=False)
    ]

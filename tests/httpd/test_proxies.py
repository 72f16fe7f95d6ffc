"""The client's address in the log, where a trusted proxy names it."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
from http.client import HTTPConnection
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd.proxies import TrustedProxies, parse_proxy
from tests.support.httpd import address_of, get, program
from tests.support.programs import tool
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

PROXIES = TrustedProxies(
    [parse_proxy(each) for each in ("10.0.0.0/8", "2001:db8::1", "fe80::1", "unix")]
)
PEER = b"10.0.0.1"

# Its workers keep the user, to whom the folder belongs.
NGINX = """\
daemon off;
user {user};
worker_processes 1;
pid {home}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://unix:{home}/socket;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}
}}
"""


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        (b"10.255.0.1", True),
        (b"11.0.0.1", False),
        (b"2001:db8::1", True),
        (b"2001:db8::2", False),
        (b"fe80::1%eth0", True),
        (b"fe80::2%eth0", False),
        (b"unix", True),
        (b"", False),
    ],
)
def test_proxy_is_trusted_by_its_address_or_network(peer: bytes, *, trusted: bool) -> None:
    assert PROXIES.trusts(peer) is trusted


@pytest.mark.parametrize(
    ("proxy", "same"),
    [
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
    ],
)
def test_ipv4_mapped_proxy_is_that_of_ipv4(proxy: str, same: str) -> None:
    assert parse_proxy(proxy) == parse_proxy(same)
    assert TrustedProxies([parse_proxy(proxy)]).trusts(b"10.0.0.1")
    assert TrustedProxies([parse_proxy(proxy)]).trusts(b"::ffff:10.0.0.1")


@pytest.mark.parametrize("proxy", ["::/0", "::fffe:0:0/95", "::/96"])
def test_network_that_is_not_all_mapped_is_one_of_ipv6(proxy: str) -> None:
    assert str(parse_proxy(proxy)) == str(ip_network(proxy))


def test_peers_of_unix_sockets_are_trusted_only_if_named() -> None:
    assert not TrustedProxies([parse_proxy("0.0.0.0/0")]).trusts(b"unix")


@pytest.mark.parametrize(
    ("field", "client"),
    [
        (b"192.0.2.1", b"192.0.2.1"),
        (b"192.0.2.1:4711", b"192.0.2.1"),
        (b"192.0.2.9, 192.0.2.1", b"192.0.2.1"),
        (b"192.0.2.9,192.0.2.1 , 10.1.1.1,\t2001:DB8::1", b"192.0.2.1"),
        (b"10.2.2.2, 10.1.1.1", b"10.2.2.2"),
        (b"2001:DB8::0:2", b"2001:db8::2"),
        (b"[2001:db8::2]", b"2001:db8::2"),
        (b"[2001:db8::2]:80", b"2001:db8::2"),
        (b"::ffff:192.0.2.1", b"192.0.2.1"),
        (b"192.0.2.1, ::ffff:10.0.0.2", b"192.0.2.1"),
        (b"192.0.2.1, unknown", b"unknown"),
        (b"x, 192.0.2.1", b"192.0.2.1"),
        (b"192.0.2.1, ,", b"192.0.2.1"),
        (b"", PEER),
        (b"x", PEER),
        (b"192.0.2.1, x, 10.1.1.1", PEER),
        (b"192.0.2.256", PEER),
        (b"[192.0.2.1", PEER),
        (b"2001:db8::2]", PEER),
        (b"fe80::1%eth0", PEER),
        (b"unix", PEER),
        (b"192.0.2.1 192.0.2.2", PEER),
        (b"\xb9.0.0.1", PEER),
        (b"1" * 200, PEER),
    ],
)
def test_client_in_x_forwarded_for_is_the_last_that_is_no_trusted_proxy(
    field: bytes, client: bytes
) -> None:
    """What a client has sent itself, before it, can't change the result."""
    assert PROXIES.client_of({b"x-forwarded-for": field}, PEER) == client


@pytest.mark.parametrize(
    ("field", "client"),
    [
        (b"for=192.0.2.1", b"192.0.2.1"),
        (b"For=192.0.2.1;proto=http;by=203.0.113.43", b"192.0.2.1"),
        (b'proto=https ; for="192.0.2.1:80"', PEER),
        (b'proto=https;for="192.0.2.1:80"', b"192.0.2.1"),
        (b'for="[2001:db8:cafe::17]:4711"', b"2001:db8:cafe::17"),
        (b'for="192.0.2.1:_port"', b"192.0.2.1"),
        (b'for="192.0\\.2.1"', b"192.0.2.1"),
        (b"for=192.0.2.9, for=192.0.2.1, for=10.1.1.1", b"192.0.2.1"),
        (b'for=10.3.3.3, for="[2001:db8::1]"', b"10.3.3.3"),
        (b"for=192.0.2.1,, for=10.1.1.1 ,", b"192.0.2.1"),
        (b"for=192.0.2.1, for=unknown", b"unknown"),
        (b"for=192.0.2.1, for=_hidden.1", b"_hidden.1"),
        (b'for=192.0.2.1;by="a, for=192.0.2.2;for=x"', b"192.0.2.1"),
        (b'for="192.0.2.9, for=192.0.2.1', b"192.0.2.1"),
        (b'for="192.0.2.9, for="[2001:db8::2]"', b"2001:db8::2"),
        (b"", PEER),
        (b"proto=http", PEER),
        (b"for=192.0.2.1;for=192.0.2.2", PEER),
        (b"for=192.0.2.1:80", PEER),
        (b"for=", PEER),
        (b'for=""', PEER),
        (b"192.0.2.1", PEER),
        (b"for=_" + b"x" * 64, PEER),
        (b"for=192.0.2.1, nonsense", PEER),
        (b"for=192.0.2.1, nonsense, for=10.1.1.1", PEER),
    ],
)
def test_client_in_forwarded_is_the_last_that_is_no_trusted_proxy(
    field: bytes, client: bytes
) -> None:
    assert PROXIES.client_of({b"forwarded": field}, PEER) == client


def test_x_forwarded_for_counts_where_both_fields_are_there() -> None:
    both = {b"forwarded": b"for=192.0.2.1", b"x-forwarded-for": b"192.0.2.2"}
    assert PROXIES.client_of(both, PEER) == b"192.0.2.2"
    assert PROXIES.client_of({}, PEER) == PEER


def test_log_names_the_clients_of_trusted_proxies_only(site: Path) -> None:
    for proxy, clients in (
        ("127.0.0.0/8", ["192.0.2.1", "127.0.0.1", "2001:db8::2"]),
        ("192.0.2.0/24", ["127.0.0.1"] * 3),
    ):
        options = "--trusted-proxy", "10.0.0.1", "--trusted-proxy", proxy, "--log", "common"
        with program(site, *options) as (process, url):
            address = address_of(url)
            get(address, "/1", X_Forwarded_For="192.0.2.1")
            get(address, "/1")
            get(address, "/1", Forwarded='for="[2001:db8::2]"')
            process.terminate()
            assert process.stdout is not None
            lines = process.stdout.read().splitlines()
        assert [line.split()[0] for line in lines] == clients


def test_log_names_the_client_that_nginx_passes_on_to_a_unix_socket(
    site: Path, tmp_path: Path
) -> None:
    """The client pretends to be a proxy itself."""
    nginx = tool("nginx", "nginx-light")
    options = "--unix", str(tmp_path / "socket"), "--trusted-proxy", "unix", "--log", "common"
    with (
        program(site, *options) as (process, _),
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        address = listener.getsockname()
        user = pwd.getpwuid(os.getuid()).pw_name
        (tmp_path / "conf").write_text(NGINX.format(home=tmp_path, port=address[1], user=user))
        with subprocess.Popen(
            [nginx, "-p", tmp_path, "-e", tmp_path / "errors", "-c", tmp_path / "conf"],
            pass_fds=[listener.fileno()],
            env={**os.environ, "NGINX": f"{listener.fileno()};"},
            stderr=subprocess.DEVNULL,  # it announces that the socket is inherited
        ) as proxy:
            try:
                host, port = address
                client = HTTPConnection(
                    host, port, timeout=PATIENCE, source_address=("127.0.0.2", 0)
                )
                client.request("GET", "/1", headers={"X-Forwarded-For": "192.0.2.1"})
                assert client.getresponse().status == 200
                client.close()
            finally:
                proxy.terminate()
        process.terminate()
        assert process.stdout is not None
        assert process.stdout.read().startswith("127.0.0.2 - - ")

"""The file server over TLS, by curl, by Python's own client, and by clients that misbehave."""

from __future__ import annotations

import filecmp
import http.client
import os
import re
import socket
import ssl
import subprocess
from contextlib import suppress
from selectors import EVENT_READ
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests.helpers import PATIENCE, data, stream_pair
from tests.httpd_helpers import (
    Clock,
    address_of,
    exchange,
    keeps_rate,
    make_clock,  # noqa: F401
    make_site,  # noqa: F401
    program,
    read_all,
    run_httpd,
    serving,
    split,
    tool,
)

# isort: split
from connection import Connection
from files import Files
from secure import tls_context
from server import REST_TICK
from settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.httpd_helpers import Address

SIZES = (0, 1, 1024, 32768, 65536, 1 << 20)


class Keys:
    """A certificate for 127.0.0.1, in files, and who believes it."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"
        for blob in issued.cert_chain_pems:
            blob.write_to_path(self.certificate, append=True)
        issued.private_key_pem.write_to_path(self.key)
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def secure(site: Path, keys: Keys, capfd: pytest.CaptureFixture[str]) -> Iterator[Address]:
    """Serve the folder over TLS, with nothing that nobody has thought of."""
    with serving(site, tls=tls_context(str(keys.certificate), str(keys.key))) as (_, address):
        yield address
    assert capfd.readouterr().err == ""


def connect(address: Address, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Connect; an end without close_notify will raise SSLEOFError."""
    return context.wrap_socket(
        socket.create_connection(address, PATIENCE),
        server_hostname="127.0.0.1",
        suppress_ragged_eofs=False,
    )


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_files(secure: Address, keys: Keys, version: ssl.TLSVersion) -> None:
    """Files of all sizes come whole over one connection of either version."""
    keys.client.maximum_version = version
    client = http.client.HTTPSConnection(*secure, timeout=PATIENCE, context=keys.client)
    for size in SIZES * 2:
        for method in ("GET", "HEAD"):
            client.request(method, f"/{size}")
            response = client.getresponse()
            assert response.status == 200
            assert response.read() == (data(size, seed=size) if method == "GET" else b"")
    client.close()
    keys.client.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED


def test_pipelined(secure: Address, keys: Keys) -> None:
    """Requests that come together are answered in order; the end is TLS's own end."""
    with connect(secure, keys.client) as sock:
        for size in SIZES * 5:
            sock.sendall(f"GET /{size} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        sock.sendall(b"GET /1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = split(read_all(sock))
    assert [len(answer.body) for answer in answers] == [*SIZES * 5, 1]
    assert all(answer.body == data(len(answer.body), len(answer.body)) for answer in answers)


def test_slow_reader(secure: Address, keys: Keys) -> None:
    """A client with small buffers gets everything."""
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.settimeout(PATIENCE)
        plain.connect(secure)
        with keys.client.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
            request = b"GET /1048576 HTTP/1.1\r\nHost: x\r\n"
            sock.sendall(request + b"\r\n" + request + b"Connection: close\r\n\r\n")
            first, second = split(read_all(sock))
    assert first.body == second.body == data(1 << 20, seed=1 << 20)


def test_plain_request(secure: Address, keys: Keys) -> None:
    """Who speaks plain HTTP is told so in plain HTTP, and others are served."""
    refused, *_ = split(exchange(secure, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2))
    assert refused.status == 400
    assert refused.headers["Connection"] == "close"
    assert exchange(secure, b"nonsense" * 10) == b""
    with connect(secure, keys.client) as sock:
        sock.sendall(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(12) == b"HTTP/1.1 200"


def test_max_connections(site: Path, keys: Keys) -> None:
    """Who comes beyond the limit finds nobody, for less than a handshake would cost."""
    context = tls_context(str(keys.certificate), str(keys.key))
    with (
        serving(site, tls=context, max_connections=1) as (server, address),
        connect(address, keys.client) as first,
    ):
        with pytest.raises(OSError):  # a reset, or an end
            connect(address, keys.client)
        first.sendall(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert first.recv(12) == b"HTTP/1.1 200"
        assert len(server._connections) == 1


def test_broken_record(secure: Address, keys: Keys) -> None:
    """What can't be decrypted is answered by an alert."""
    with connect(secure, keys.client) as sock:
        # Behind the back of TLS: application data that nobody has encrypted.
        os.write(sock.fileno(), b"\x17\x03\x03\x00\x40" + bytes(64))
        with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
            sock.recv(1)


def test_client_says_goodbye(secure: Address, keys: Keys) -> None:
    """A client's close_notify is answered by ours."""
    with connect(secure, keys.client) as sock:
        sock.sendall(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(12) == b"HTTP/1.1 200"
        while sock.pending() != 0:
            sock.recv(1000)
        plain = sock.unwrap()  # it raises if the other side just goes
        assert plain.recv(1) == b""
        plain.close()


class Memory:
    """A client whose TLS is apart from its socket."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="127.0.0.1")

    def drive(self, step: Callable[[], Any], size: int) -> Any:
        """Do a step of TLS, in as many round trips as it needs, with sends of the given size."""
        while True:
            try:
                result, done = step(), True
            except ssl.SSLWantReadError:
                result, done = None, False
            told = self.outgoing.read()
            for i in range(0, len(told), size):
                self.sock.sendall(told[i : i + size])
            if done:
                return result
            received = self.sock.recv(1 << 16)
            assert received, "the end"
            self.incoming.write(received)

    def read_all(self) -> bytes:
        """Read up to the other side's close_notify."""
        received = bytearray()
        with suppress(ssl.SSLZeroReturnError):  # so it is if both sides have sent one
            while piece := self.drive(lambda: self.tls.read(1 << 14), 1 << 16):
                received += piece
        return bytes(received)


@pytest.mark.parametrize("rate", [1000, 80_000])
def test_rate(site: Path, keys: Keys, clock: Clock, rate: int) -> None:
    """A limited rate is that of what TLS makes, from the handshake on."""
    files = Files(site)
    settings = Settings(
        tls=tls_context(str(keys.certificate), str(keys.key)), rate=rate, timeout=5.0
    )
    with stream_pair("tcp4") as (ours, theirs):
        ours.setblocking(False)
        connection = Connection(ours, files, settings, clock.now + 5.0)
        client = Memory(theirs, keys.client)
        while True:
            with suppress(ssl.SSLWantReadError):
                client.tls.do_handshake()
                break
            theirs.sendall(client.outgoing.read())
            while connection.step(clock.now) != EVENT_READ:
                clock.now += REST_TICK
            client.incoming.write(theirs.recv(1 << 16))
        client.tls.write(b"GET /1048576 HTTP/1.1\r\nHost: x\r\n\r\n")
        theirs.sendall(client.outgoing.read())
        keeps_rate(connection, theirs, clock, rate)
        connection.close()
    files.close()


def test_handshake_in_pieces(secure: Address, keys: Keys) -> None:
    """A handshake and a request may come byte by byte."""
    with socket.create_connection(secure, PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Memory(sock, keys.client)
        client.drive(client.tls.do_handshake, 1)
        request = b"GET /1024 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        client.drive(lambda: client.tls.write(request), 1)
        [answer] = split(client.read_all())
    assert answer.body == data(1024, seed=1024)


@pytest.mark.parametrize("sizes", [(), (1,), (0, 1 << 20, 1024)])
def test_end_behind_requests(secure: Address, keys: Keys, sizes: tuple[int, ...]) -> None:
    """A close_notify that comes together with requests ends the connection behind the answers."""
    with socket.create_connection(secure, PATIENCE) as sock:
        client = Memory(sock, keys.client)
        client.drive(client.tls.do_handshake, 1 << 16)
        for size in sizes:
            client.tls.write(f"GET /{size} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()
        sock.sendall(client.outgoing.read())
        answers = split(client.read_all())
        assert [answer.body for answer in answers] == [data(size, seed=size) for size in sizes]
        assert sock.recv(1) == b"", "it has gone by itself"


def test_idle(site: Path, keys: Keys) -> None:
    """Clients that have been idle for too long are told that this is the end."""
    context = tls_context(str(keys.certificate), str(keys.key))
    with serving(site, tls=context, timeout=0.01) as (_, address):
        with connect(address, keys.client) as sock:
            assert sock.recv(1) == b""
        with socket.create_connection(address, PATIENCE) as sock:
            assert sock.recv(1) == b"", "not even a handshake was begun"


def test_stop(site: Path, keys: Keys) -> None:
    """When the server stops, idle clients are told so."""
    options = ("--tls", str(keys.certificate), str(keys.key))
    with (
        program(site, *options) as (process, url),
        connect(address_of(url), keys.client) as fresh,
        connect(address_of(url), keys.client) as served,
    ):
        served.sendall(b"HEAD /1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert served.recv(4096).startswith(b"HTTP/1.1 200")
        process.terminate()
        assert fresh.recv(1) == served.recv(1) == b""
        assert process.wait(PATIENCE) == 0


def test_curl(site: Path, keys: Keys, tmp_path: Path) -> None:
    """Curl fetches a hundred files over one connection, and others compressed."""
    curl = tool("curl", "curl")
    text = b"All work and no play makes Jack a dull boy.\n" * 5000
    (site / "text.txt").write_bytes(text)
    with program(site, "--tls", str(keys.certificate), str(keys.key)) as (_, address):
        assert re.fullmatch(r"https://127\.0\.0\.1:\d+/", address)
        targets = [f"{address}{SIZES[i % 6]}" for i in range(100)]
        outputs = [f"-o{tmp_path}/{i}" for i in range(100)]
        pairs = [word for pair in zip(targets, outputs, strict=True) for word in pair]
        result = subprocess.run(
            [curl, "-kfsSv", *pairs], capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        assert result.stderr.count("Re-using existing connection") == 99
        for i in range(100):
            assert filecmp.cmp(tmp_path / str(i), site / str(SIZES[i % 6]), shallow=False)
        options = ["-kfsS", "--compressed", "-w", "%{size_download} %{num_connects}\n"]
        result = subprocess.run(
            [curl, *options, *[f"{address}text.txt", f"-o{tmp_path}/text"] * 100],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        sizes, connects = zip(*map(str.split, result.stdout.splitlines()), strict=True)
        assert connects == ("1", *["0"] * 99), "each response has its own coding; TLS goes on"
        assert max(map(int, sizes)) < len(text) / 10
        assert (tmp_path / "text").read_bytes() == text


def test_bad_keys(site: Path, keys: Keys, tmp_path: Path) -> None:
    """Files that are missing, or no keys, are told in one line."""
    (tmp_path / "text").write_bytes(b"text")
    for pair in (
        (tmp_path / "nothing", keys.key),
        (keys.certificate, tmp_path / "text"),
        (keys.certificate, tmp_path),
    ):
        result = run_httpd(site, "--tls", *pair)
        assert result.returncode == 2
        assert re.fullmatch(r"httpd: --tls [^\n]+: [\w ,]+\n", result.stderr)


def test_alpn(secure: Address, keys: Keys) -> None:
    """A client that offers HTTP/2 as well is told that it is HTTP/1.1."""
    keys.client.set_alpn_protocols(["h2", "http/1.1"])
    with connect(secure, keys.client) as sock:
        assert sock.selected_alpn_protocol() == "http/1.1"

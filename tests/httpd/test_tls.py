"""TLS: files over it, ends of streams, and clients that break it."""

from __future__ import annotations

import filecmp
import http.client
import os
import re
import socket
import ssl
import subprocess
from contextlib import suppress
from select import EPOLLIN, EPOLLOUT
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd.connection import CLOSE
from iobatch.httpd.output import STDERR
from iobatch.httpd.tls import tls_context
from tests.support.batches import data
from tests.support.http import split
from tests.support.httpd import (
    LARGE,
    SMALL,
    Address,
    Keys,
    address_of,
    exchange,
    open_connection,
    program,
    read_all,
    run_step,
    serving,
    slow_client,
)
from tests.support.sockets import PATIENCE
from tests.support.tls import MemoryClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZES = (0, 1, 1024, 32768, 65536, 1 << 20)


@pytest.fixture
def secure(site: Path, keys: Keys, capfd: pytest.CaptureFixture[str]) -> Iterator[Address]:
    """Serve the directory over TLS; assert that the server prints no error."""
    with serving(site, tls=tls_context(str(keys.certificate), str(keys.key))) as (_, address):
        yield address
    STDERR.finish()
    assert capfd.readouterr().err == ""


def connect(address: Address, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Connect; an end of stream without close_notify raises SSLEOFError."""
    return context.wrap_socket(
        socket.create_connection(address, PATIENCE),
        server_hostname="127.0.0.1",
        suppress_ragged_eofs=False,
    )


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_files_of_all_sizes_arrive_over_either_version(
    secure: Address, keys: Keys, version: ssl.TLSVersion
) -> None:
    context = keys.client
    context.maximum_version = version
    client = http.client.HTTPSConnection(*secure, timeout=PATIENCE, context=context)
    for size in SIZES * 2:
        for method in ("GET", "HEAD"):
            client.request(method, f"/{size}")
            response = client.getresponse()
            assert response.status == 200
            assert response.read() == (data(size, seed=size) if method == "GET" else b"")
    client.close()


def test_pipelined_requests_are_answered_in_order_before_close_notify(
    secure: Address, keys: Keys
) -> None:
    with connect(secure, keys.client) as sock:
        for size in SIZES * 5:
            sock.sendall(f"GET /{size} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        sock.sendall(b"GET /1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = split(read_all(sock))
    assert [len(answer.body) for answer in answers] == [*SIZES * 5, 1]
    assert all(answer.body == data(len(answer.body), len(answer.body)) for answer in answers)


def test_client_with_small_buffers_gets_all_bytes(secure: Address, keys: Keys) -> None:
    with (
        slow_client(secure) as plain,
        keys.client.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        request = b"GET /1048576 HTTP/1.1\r\nHost: x\r\n"
        sock.sendall(request + b"\r\n" + request + b"Connection: close\r\n\r\n")
        first, second = split(read_all(sock))
    assert first.body == second.body == data(1 << 20, seed=1 << 20)


def test_plain_http_gets_a_plain_400(secure: Address, keys: Keys) -> None:
    """Other bytes that are not TLS get nothing."""
    refused, *_ = split(exchange(secure, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2))
    assert refused.status == 400
    assert refused.headers["Connection"] == "close"
    assert exchange(secure, b"nonsense" * 10) == b""
    with connect(secure, keys.client) as sock:
        sock.sendall(SMALL)
        assert sock.recv(12) == b"HTTP/1.1 200"


def test_connection_beyond_the_limit_is_closed_without_a_handshake(site: Path, keys: Keys) -> None:
    """A handshake costs more than the answer."""
    context = tls_context(str(keys.certificate), str(keys.key))
    with (
        serving(site, tls=context, max_connections=1) as (server, address),
        connect(address, keys.client) as first,
    ):
        first.sendall(SMALL[:1])
        with pytest.raises(OSError):  # a reset, or an end of stream
            connect(address, keys.client)
        first.sendall(SMALL[1:])
        assert first.recv(12) == b"HTTP/1.1 200"
        assert len(server._connections) == 1


def test_record_that_cannot_be_decrypted_is_answered_by_an_alert(
    secure: Address, keys: Keys
) -> None:
    with connect(secure, keys.client) as sock:
        # A record of application data that is not encrypted, sent past the client's TLS.
        os.write(sock.fileno(), b"\x17\x03\x03\x00\x40" + bytes(64))
        with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
            sock.recv(1)


def test_close_notify_is_answered_by_close_notify(secure: Address, keys: Keys) -> None:
    with connect(secure, keys.client) as sock:
        sock.sendall(SMALL)
        assert sock.recv(12) == b"HTTP/1.1 200"
        while sock.pending() != 0:
            sock.recv(1000)
        plain = sock.unwrap()  # raises if the server closes without close_notify
        assert plain.recv(1) == b""
        plain.close()


def test_handshake_and_request_may_arrive_byte_by_byte(secure: Address, keys: Keys) -> None:
    with socket.create_connection(secure, PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = MemoryClient(sock, keys.client)
        client.drive(client.tls.do_handshake, 1)
        request = b"GET /1024 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        client.drive(lambda: client.tls.write(request), 1)
        [answer] = split(client.read_all())
    assert answer.body == data(1024, seed=1024)


@pytest.mark.parametrize("sizes", [(), (1,), (0, 1 << 20, 1024)])
def test_close_notify_in_the_piece_of_requests_ends_after_their_responses(
    secure: Address, keys: Keys, sizes: tuple[int, ...]
) -> None:
    with socket.create_connection(secure, PATIENCE) as sock:
        client = MemoryClient(sock, keys.client)
        client.drive(client.tls.do_handshake, 1 << 16)
        for size in sizes:
            client.tls.write(f"GET /{size} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()
        sock.sendall(client.outgoing.read())
        answers = split(client.read_all())
        assert [answer.body for answer in answers] == [data(size, seed=size) for size in sizes]
        assert sock.recv(1) == b"", "the server closes the connection"


def test_idle_client_gets_close_notify_after_the_timeout(site: Path, keys: Keys) -> None:
    context = tls_context(str(keys.certificate), str(keys.key))
    with serving(site, tls=context) as (server, address), connect(address, keys.client) as sock:
        [connection] = server._connections
        while not connection.is_idle:  # the server may not have the end of the handshake
            os.sched_yield()
        connection.deadline = 0.0
        assert sock.recv(1) == b""
    with (
        serving(site, tls=context, timeout=0.01) as (_, address),
        socket.create_connection(address, PATIENCE) as sock,
    ):
        assert sock.recv(1) == b"", "also before a handshake"


def test_idle_client_gets_close_notify_when_the_server_stops(site: Path, keys: Keys) -> None:
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


def test_client_that_offers_http_2_gets_http_1_1(secure: Address, keys: Keys) -> None:
    context = keys.client
    context.set_alpn_protocols(["h2", "http/1.1"])
    with connect(secure, context) as sock:
        assert sock.selected_alpn_protocol() == "http/1.1"


def test_curl_fetches_a_hundred_files_over_one_connection_also_compressed(
    site: Path, curl: str, keys: Keys, tmp_path: Path
) -> None:
    text = b"All work and no play makes Jack a dull boy.\n" * 5000
    (site / "text.txt").write_bytes(text)
    with program(site, "--tls", str(keys.certificate), str(keys.key)) as (_, url):
        assert re.fullmatch(r"https://127\.0\.0\.1:\d+/", url)
        targets = [f"{url}{SIZES[i % 6]}" for i in range(100)]
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
            [curl, *options, *[f"{url}text.txt", f"-o{tmp_path}/text"] * 100],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        sizes, connects = zip(*map(str.split, result.stdout.splitlines()), strict=True)
        assert connects == ("1", *["0"] * 99), (
            "each response has its own compressor, and TLS continues"
        )
        assert max(map(int, sizes)) < len(text) / 10
        assert (tmp_path / "text").read_bytes() == text


def test_close_notify_after_an_unfinished_request_closes_the_connection(
    secure: Address, keys: Keys
) -> None:
    with socket.create_connection(secure, PATIENCE) as sock:
        client = MemoryClient(sock, keys.client)
        client.drive(client.tls.do_handshake, 1 << 16)
        client.tls.write(SMALL[:10])
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()
        sock.sendall(client.outgoing.read())
        assert client.read_all() == b""


def test_client_that_closes_during_the_handshake_ends_the_connection(
    site: Path, keys: Keys
) -> None:
    context = tls_context(str(keys.certificate), str(keys.key))
    with open_connection(site, tls=context) as (connection, theirs):
        client = MemoryClient(theirs, keys.client)
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        theirs.sendall(client.outgoing.read())
        theirs.close()
        assert run_step(connection, 0.0) == CLOSE


def test_response_that_is_cut_off_is_not_followed_by_close_notify(site: Path, keys: Keys) -> None:
    """Otherwise the client could not see that it is incomplete (RFC 9112, section 9.8)."""
    context = tls_context(str(keys.certificate), str(keys.key))
    with open_connection(site, "tcp4", tls=context) as (connection, theirs):
        client = MemoryClient(theirs, keys.client)
        while True:
            with suppress(ssl.SSLWantReadError):
                client.tls.do_handshake()
                break
            theirs.sendall(client.outgoing.read())
            assert run_step(connection, 0.0) == EPOLLIN
            client.incoming.write(theirs.recv(1 << 16))
        client.tls.write(LARGE)
        theirs.sendall(client.outgoing.read())
        assert run_step(connection, 0.0) == EPOLLOUT
        client.incoming.write(theirs.recv(1 << 20))  # so that the socket could take close_notify
        client.sock = theirs.dup()
    with client.sock:
        client.incoming.write(read_all(client.sock))
    assert client.tls.read(12) == b"HTTP/1.1 200"
    assert not client.has_received_close_notify()

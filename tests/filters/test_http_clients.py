"""HTTP responses through gzip, chunked coding and TLS, read by curl and openssl."""

from __future__ import annotations

import gzip
import socket
import ssl
import subprocess
import threading
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from iobatch import iob_sendall
from iobatch.filters import TLS, Chunked, Filter
from tests.support.batches import batch_of, data
from tests.support.filters import BODY, run_program, step_when_writable
from tests.support.http import unchunk
from tests.support.sockets import PATIENCE
from tests.support.tls import TLS_VERSIONS, tls_contexts

if TYPE_CHECKING:
    from collections.abc import Callable

    import trustme


def answer(recv: Callable[[int], bytes], response: Callable[[bytes], None]) -> None:
    """Call response with each request until the end of the stream."""
    requests = b""
    while piece := recv(65536):
        *complete, requests = (requests + piece).split(b"\r\n\r\n")
        for request in complete:
            response(request)


def respond(sock: socket.socket, body: bytes, next_filter: Filter | None) -> None:
    """Send a response in gzip and chunked coding; next_filter stays open."""
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = Filter(Chunked(), next_filter)
    coded = Filter(zlib.compressobj(wbits=31), chunked)
    iob_sendall(sock, batch_of(head), next_filter, timeout=PATIENCE)
    iob_sendall(sock, batch_of(body), coded, timeout=PATIENCE)
    step_when_writable(lambda: coded.finish(sock, until=next_filter), sock, coded)


class Server(threading.Thread):
    """A server of one HTTPS connection: gzip and chunked coding for each response, over its TLS."""

    def __init__(self, authority: trustme.CA, version: ssl.TLSVersion) -> None:
        super().__init__()
        self.context, _ = tls_contexts(authority, version)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE)
        self.port = self.listener.getsockname()[1]
        self.requests: list[bytes] = []

    def run(self) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        sslobject = self.context.wrap_bio(incoming, outgoing, server_side=True)
        tls = TLS(sslobject, incoming, outgoing)
        pipeline = Filter(tls)
        with self.listener, self.listener.accept()[0] as sock:
            sock.settimeout(PATIENCE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def recv(_: int) -> bytes:
                while True:
                    plain = tls.receive(sock.recv(65536))
                    step_when_writable(lambda: pipeline.drain(sock), sock, pipeline)
                    if plain:
                        return plain

            def response(request: bytes) -> None:
                self.requests.append(request.split()[1])
                respond(sock, body_of(self.requests[-1]), pipeline)
                if request.startswith(b"LAST"):
                    step_when_writable(lambda: pipeline.finish(sock), sock, pipeline)

            with suppress(OSError):  # the client sends close_notify, or resets the connection
                answer(recv, response)


def body_of(path: bytes) -> bytes:
    """Return the body for a path: all are different, some are large, and that of /0 is empty."""
    number = int(path.strip(b"/"))
    return data(number * 5000, number) if number % 9 == 0 else BODY[number : number * 20]


def test_curl_decodes_gzip_in_chunked_coding(curl: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as sock:
                answer(sock.recv, lambda _: respond(sock, BODY, None))

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        got = run_program(curl, "-sS", "--compressed", "--max-time", "20", url)
        thread.join(PATIENCE)
    assert got == BODY


@pytest.mark.parametrize("version", TLS_VERSIONS, ids=lambda version: version.name)
def test_curl_gets_100_responses_over_one_tls_connection(
    curl: str, version: ssl.TLSVersion, authority: trustme.CA
) -> None:
    """Each response has filters of its own above the connection's TLS."""
    server = Server(authority, version)
    server.start()
    got = run_program(
        *(curl, "-sSk", "--compressed", "--http1.1", "--max-time", "30"),
        f"https://127.0.0.1:{server.port}/[1-100]",
    )
    server.join(PATIENCE)
    paths = [b"/%d" % number for number in range(1, 101)]
    assert server.requests == paths
    assert got == b"".join(map(body_of, paths))


@pytest.mark.parametrize("version", TLS_VERSIONS, ids=lambda version: version.name)
def test_openssl_gets_100_responses_to_100_pipelined_requests(
    openssl: str, version: ssl.TLSVersion, authority: trustme.CA
) -> None:
    """The requests arrive at once; close_notify follows the last response."""
    paths = [b"/%d" % number for number in range(100)]
    requests = b"".join(b"GET %b HTTP/1.1\r\n\r\n" % path for path in paths[:-1])
    requests += b"LAST /99 HTTP/1.1\r\n\r\n"
    server = Server(authority, version)
    server.start()
    got = run_program(
        *(openssl, "s_client", "-quiet", "-connect", f"127.0.0.1:{server.port}"), stdin=requests
    )
    server.join(PATIENCE)
    for path in paths:
        head, _, got = got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        body, end, got = got.partition(b"\r\n0\r\n\r\n")
        # None of these compressed bodies contains the bytes of a last chunk.
        assert gzip.decompress(unchunk(body + end)) == body_of(path)
    assert not got


def test_requested_key_update_is_sent_before_the_response(
    openssl: str, authority: trustme.CA
) -> None:
    """The request after the key update can still be read."""
    server = Server(authority, ssl.TLSVersion.TLSv1_3)
    server.start()
    with subprocess.Popen(
        [openssl, "s_client", "-msg", "-connect", f"127.0.0.1:{server.port}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stderr is not None
        # K at the start of a read is a command: update the keys, and request an update in return.
        client.stdin.write(b"K\n")
        client.stdin.flush()
        while client.stderr.readline() != b"KEYUPDATE\n":
            assert client.poll() is None
        client.stdin.write(b"LAST /5 HTTP/1.1\r\n\r\n")
        client.stdin.flush()
        got = client.stdout.read()  # until the server closes the connection
    server.join(PATIENCE)
    update = got.index(b"<<< TLS 1.3, Handshake [length 0005], KeyUpdate")
    assert update < got.index(b"HTTP/1.1 200 OK")
    assert b"<<< TLS 1.3, Alert [length 0002], warning close_notify" in got

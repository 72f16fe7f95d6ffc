"""asyncio_tls_server.py: a directory over HTTP and TLS, on asyncio, read by several clients."""

from __future__ import annotations

import gzip
import signal
import socket
import ssl
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support.batches import data
from tests.support.examples import EXAMPLES, RESET, line_count, no_free_descriptors, running
from tests.support.http import Response, split
from tests.support.httpd import prose, read_all, slow_client
from tests.support.sockets import PATIENCE, is_silent, reset
from tests.support.tls import TLS_VERSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.httpd import Keys

PROGRAM = "asyncio_tls_server.py"
HOST = "127.0.0.1"
TEXT = prose(300_000)
# More than the buffers of a connection's two sockets hold, also after gzip.
LARGE = data(8_000_000)
GET = b"GET /text HTTP/1.1\r\nHost: a\r\n\r\n"
GET_LARGE = b"GET /large HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n"
LAST = b"GET /text HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

versions = pytest.mark.parametrize("version", TLS_VERSIONS, ids=lambda version: version.name)

# Runs the program with timeouts of a tenth of a second. That of the handshake ends at SIGUSR1.
IMPATIENT = """
import asyncio, functools, runpy, signal, sys
import iobatch.aio

def until_signal():
    limit, loop = timeout(None), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: limit.reschedule(loop.time()))
    return limit

timeout = asyncio.timeout
BatchWriter = iobatch.aio.BatchWriter
if {name!r} == "stall":
    iobatch.aio.BatchWriter = lambda *args, **options: BatchWriter(
        *args, **{{**options, "stall_timeout": 0.1}}
    )
elif {name!r} == "handshake":
    asyncio.timeout = lambda delay: until_signal() if delay == {delay} else timeout(delay)
else:
    asyncio.timeout = lambda delay: timeout(0.1 if delay == {delay} else delay)
sys.argv[0] = {program!r}
runpy.run_path({program!r}, run_name="__main__")
"""


@contextmanager
def serving(
    folder: Path, keys: Keys, program: str = PROGRAM, reports: str = RESET
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the server for a site in a folder; give its process and its port."""
    site = folder / "site"
    site.mkdir(parents=True)
    (site / "index.html").write_bytes(b"<h1>home</h1>")
    (site / "text").write_bytes(TEXT)
    (site / "large").write_bytes(LARGE)
    (site / "empty").touch()
    (folder / "secret").write_bytes(b"secret")
    (site / "link").symlink_to(folder / "secret")
    (site / "loop").symlink_to("loop")
    arguments = (keys.certificate, keys.key, site, "0")
    with running(program, *arguments, reports=reports) as (process, port):
        yield process, port


class Client:
    """A client whose messages of TLS are sent when a test says so."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.conn = context.wrap_bio(self.incoming, self.outgoing, server_hostname=HOST)
        self.started = False

    def shake_hands(self) -> None:
        """Do the handshake, except that the last message is not sent."""
        while True:
            try:
                self.conn.do_handshake()
            except ssl.SSLWantReadError:
                self.send()
                self.incoming.write(self.sock.recv(1 << 16))
            else:
                return

    def end(self) -> None:
        """Write close_notify."""
        with suppress(ssl.SSLWantReadError):
            self.conn.unwrap()

    def send(self) -> None:
        self.sock.sendall(self.outgoing.read())

    def read(self, method: str = "GET") -> list[Response]:
        """Read responses, the first of them to this method, up to close_notify, which must come."""
        self.incoming.write(read_all(self.sock))
        self.incoming.write_eof()
        plain = bytearray()
        with suppress(ssl.SSLZeroReturnError):  # raised if both sides have sent close_notify
            while piece := self.conn.read(1 << 16):
                plain += piece
        return split(bytes(plain), method)


@contextmanager
def connected(port: int, keys: Keys) -> Iterator[Client]:
    """Connect a client, and do all of its handshake except its last message."""
    with socket.create_connection((HOST, port), PATIENCE) as sock:
        client = Client(sock, keys.client)
        client.shake_hands()
        yield client


def ask(port: int, keys: Keys, request: bytes) -> list[Response]:
    """Send requests and close_notify with the last message of the handshake; read the answers."""
    with connected(port, keys) as client:
        client.conn.write(request)
        client.end()
        client.send()
        return client.read(request.split(b" ")[0].decode())


def test_asyncio_tls_server_has_fewer_than_150_lines() -> None:
    assert line_count(PROGRAM) < 150


@versions
@pytest.mark.parametrize("coding", ["gzip", ""], ids=["compressed", "plain"])
def test_asyncio_tls_server_sends_curl_two_files_over_one_connection(
    curl: str, tmp_path: Path, keys: Keys, version: ssl.TLSVersion, coding: str
) -> None:
    number = "1.2" if version is ssl.TLSVersion.TLSv1_2 else "1.3"
    with serving(tmp_path, keys) as (_, port):
        result = subprocess.run(
            [
                *(curl, "-sS", "--insecure"),  # httpx verifies the certificate
                *(f"--tlsv{number}", "--tls-max", number, *(["--compressed"] if coding else [])),
                *("-w", "%{stderr}%{num_connects} %header{content-encoding}\n"),
                *(f"https://{HOST}:{port}/text", f"https://{HOST}:{port}/large"),
            ],
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
    assert result.stdout == TEXT + LARGE
    assert result.stderr.decode() == f"1 {coding}\n0 {coding}\n"


@versions
def test_asyncio_tls_server_answers_openssl_with_a_request_on_its_input(
    openssl: str, tmp_path: Path, keys: Keys, version: ssl.TLSVersion
) -> None:
    with serving(tmp_path, keys) as (_, port):
        result = subprocess.run(
            [
                *(openssl, "s_client", "-quiet", "-connect", f"{HOST}:{port}"),
                f"-tls{'1_2' if version is ssl.TLSVersion.TLSv1_2 else '1_3'}",
            ],
            input=GET + LAST,
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
    assert [response.body for response in split(result.stdout)] == [TEXT] * 2


def test_asyncio_tls_server_answers_httpx_while_other_clients_do_nothing(
    tmp_path: Path, keys: Keys
) -> None:
    """One has not finished its handshake, one has sent nothing at all, and one does not read.

    The server may give up the handshakes of the first two, after 10 seconds.
    """
    reports = rf"{RESET}|connection lost: TimeoutError\(.*\)"
    with (
        serving(tmp_path, keys, reports=reports) as (_, port),
        socket.create_connection((HOST, port), PATIENCE),
        connected(port, keys),
        slow_client((HOST, port)) as sock,
        httpx.Client(verify=keys.client, trust_env=False, timeout=PATIENCE) as http,
    ):
        stalled = Client(sock, keys.client)
        stalled.shake_hands()
        stalled.conn.write(GET_LARGE * 2 + LAST)
        stalled.send()
        for path, content in (("/large", LARGE), ("/text", TEXT), ("/empty", b"")):
            response = http.get(f"https://{HOST}:{port}{path}")
            assert response.content == content
            assert response.headers.get("content-encoding") == ("gzip" if content else None)
        response = http.head(f"https://{HOST}:{port}/text")
        assert (response.status_code, response.headers["content-encoding"]) == (200, "gzip")
        one, two, last = stalled.read()
        assert gzip.decompress(one.body) == gzip.decompress(two.body) == LARGE
        assert last.body == TEXT


def test_client_that_ends_its_direction_with_its_request_gets_the_answer(
    tmp_path: Path, keys: Keys
) -> None:
    with serving(tmp_path, keys) as (_, port):
        [response] = ask(port, keys, GET_LARGE)
    assert gzip.decompress(response.body) == LARGE
    assert response.headers["Connection"] == "close"


@pytest.mark.parametrize("shut", [False, True], ids=["close_notify", "close_notify and FIN"])
def test_client_that_ends_its_direction_during_the_answer_gets_all_of_it(
    tmp_path: Path, keys: Keys, *, shut: bool
) -> None:
    with serving(tmp_path, keys) as (_, port), connected(port, keys) as client:
        client.conn.write(GET_LARGE)
        client.send()
        begin = client.sock.recv(1000)
        client.end()
        client.send()
        client.incoming.write(begin)  # unwrap() would refuse it
        if shut:
            client.sock.shutdown(socket.SHUT_WR)
        [response] = client.read()
    assert gzip.decompress(response.body) == LARGE


def test_client_of_tls_1_2_that_ends_an_idle_connection_gets_close_notify(
    tmp_path: Path, keys: Keys
) -> None:
    context = keys.client
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        serving(tmp_path, keys) as (_, port),
        socket.create_connection((HOST, port), PATIENCE) as sock,
        context.wrap_socket(sock, server_hostname=HOST, suppress_ragged_eofs=False) as conn,
    ):
        conn.unwrap()


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (b"HEAD /text HTTP/1.1\r\nHost: a\r\n\r\n", [200]),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" + GET, [405, 200]),
        (b"nonsense\r\n\r\n", [400]),
        (GET + b"nonsense\r\n\r\n", [200, 400]),
        (LAST + b"nonsense\r\n\r\n", [200]),
        (b"GET /text HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\nbinary", [200]),
        (b"GET /a", []),
        (b"", []),
        *(
            (b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path, [404])
            for path in (b"/link", b"/../secret", b"//etc/passwd", b"/%00", b"/loop", b"/a" * 9000)
        ),
    ],
)
def test_asyncio_tls_server_answers_each_request_until_the_last(
    tmp_path: Path, keys: Keys, request_bytes: bytes, statuses: list[int]
) -> None:
    with serving(tmp_path, keys) as (_, port):
        responses = ask(port, keys, request_bytes)
    assert [response.status for response in responses] == statuses
    assert b"secret" not in [response.body for response in responses]


@pytest.mark.parametrize(
    ("field", "coding"),
    [
        ("gzip", "gzip"),
        ("br, GZIP;q=0.5, *", "gzip"),
        ("br,gzip;q=0", None),
        ("gzip; q=0.000", None),
        ("gzipped, x-gzip", None),
        ("identity", None),
    ],
)
def test_body_is_coded_only_for_clients_that_accept_gzip(
    tmp_path: Path, keys: Keys, field: str, coding: str | None
) -> None:
    request = f"GET /text HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {field}\r\n\r\n".encode()
    with serving(tmp_path, keys) as (_, port):
        one, two = ask(port, keys, request + GET)
        [old] = ask(port, keys, request.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert one.headers.get("Content-Encoding") == coding
    assert (gzip.decompress(one.body) if coding else one.body) == TEXT
    assert two.body == old.body == TEXT


def test_asyncio_tls_server_survives_clients_that_reset_their_connections(
    tmp_path: Path, keys: Keys
) -> None:
    with serving(tmp_path, keys) as (_, port):
        for request in (b"", GET_LARGE):
            with connected(port, keys) as client:
                if request:
                    client.conn.write(request)
                    client.send()
                    assert client.sock.recv(100)
                reset(client.sock)
        [response] = ask(port, keys, GET)
    assert response.body == TEXT


def test_asyncio_tls_server_survives_clients_that_speak_no_tls(tmp_path: Path, keys: Keys) -> None:
    reports = r"connection lost: SSLError\(.*HTTP_REQUEST.*"
    with serving(tmp_path, keys, reports=reports) as (_, port):
        with socket.create_connection((HOST, port), PATIENCE) as sock:
            sock.sendall(GET)
            assert read_all(sock) == b""
        [response] = ask(port, keys, GET)
    assert response.body == TEXT


def test_asyncio_tls_server_goes_on_after_running_out_of_descriptors(
    tmp_path: Path, keys: Keys
) -> None:
    """The connection that can't be accepted waits."""
    with serving(tmp_path, keys) as (process, port), connected(port, keys) as first:
        with (
            no_free_descriptors(process.pid),
            socket.create_connection((HOST, port), PATIENCE) as second,
        ):
            first.conn.write(GET)
            first.end()
            first.send()
            assert len(first.read()) == 1
            assert is_silent(second)
        [response] = ask(port, keys, GET)
    assert response.body == TEXT


@pytest.mark.parametrize(("name", "delay"), [("handshake", 10), ("idle", 60), ("stall", 30)])
def test_asyncio_tls_server_ends_a_connection_after_a_timeout(
    tmp_path: Path, keys: Keys, name: str, delay: int
) -> None:
    script = tmp_path / "impatient.py"
    script.write_text(IMPATIENT.format(program=str(EXAMPLES / PROGRAM), name=name, delay=delay))
    reports = "" if name == "idle" else r"connection lost: TimeoutError\(.*\)"
    with (
        serving(tmp_path, keys, str(script), reports) as (process, port),
        slow_client((HOST, port)) as sock,
    ):
        client = Client(sock, keys.client)
        client.shake_hands()
        if name == "handshake":
            process.send_signal(signal.SIGUSR1)
            assert read_all(sock) == b""
        elif name == "idle":
            client.send()
            assert client.read() == []
        else:
            client.conn.write(GET_LARGE)
            client.send()
            assert process.stderr is not None
            assert "TimeoutError" in process.stderr.readline()

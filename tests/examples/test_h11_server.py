"""h11_server.py: a directory over HTTP, by threads, read by curl and httpx."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest

from iobatch import COPY_LIMIT
from tests.support.batches import data
from tests.support.examples import EXAMPLES, RESET, line_count, running
from tests.support.http import split
from tests.support.httpd import (
    children,
    exchange,
    read_all,
    receive_head,
    send_until_reset,
    slow_client,
)
from tests.support.programs import environment, tool
from tests.support.sockets import PATIENCE, receive, receive_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = "h11_server.py"
HOST = "127.0.0.1"
HOME = b"<h1>home</h1>"
# More than the buffers of a connection's two sockets hold.
LARGE = data(8_000_000)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_LARGE = b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
# What the server may report after a client has closed its connection early.
LOST = rf"{RESET}|connection lost: \[Errno (32|107)\] (Broken pipe|Transport .* is not connected)"

# What it may report in addition if its timeouts are short.
LATE = rf"{LOST}|connection lost: timed out"

# Runs the program; its first thread does not start.
WITHOUT_THREAD = """
import runpy, sys, threading

start = threading.Thread.start

def refuse(thread):
    threading.Thread.start = start
    raise RuntimeError("can't start new thread")

threading.Thread.start = refuse
sys.argv[0] = {program!r}
runpy.run_path({program!r}, run_name="__main__")
"""


def make_site(folder: Path) -> Path:
    """Make a directory to serve; a secret file is beside it."""
    site = folder / "site"
    (site / "sub").mkdir(parents=True)
    (site / "index.html").write_bytes(HOME)
    (site / "a b\xfc?").write_bytes(b"odd")
    (site / "empty").touch()
    (site / "large").write_bytes(LARGE)
    (folder / "secret").write_bytes(b"secret")
    (site / "link").symlink_to(folder / "secret")
    (site / "loop").symlink_to("loop")
    os.mkfifo(site / "fifo")
    return site


@contextmanager
def serving(
    folder: Path, program: str = PROGRAM, reports: str = LOST
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the server for a site in a folder; give its process and its port."""
    with running(program, make_site(folder), "0", reports=reports) as (process, port):
        yield process, port


def impatient(folder: Path, *, receives: bool = True) -> str:
    """Return the path of a copy of the program whose timeouts are a tenth of a second.

    If not `receives`, only that of sending is.
    """
    pattern = r"\b60\b" if receives else r"(?<=timeout=)60\b"
    source, count = re.subn(pattern, "0.1", (EXAMPLES / PROGRAM).read_text())
    assert count == (3 if receives else 1)
    script = folder / "impatient.py"
    script.write_text(source.replace(" / 100_000", " / 1e9"))
    return str(script)


def test_h11_server_has_fewer_than_110_lines() -> None:
    assert line_count(PROGRAM) < 110


def test_h11_server_sends_curl_three_files_over_one_connection(curl: str, tmp_path: Path) -> None:
    with serving(tmp_path) as (_, port):
        url = f"http://{HOST}:{port}/"
        result = subprocess.run(
            [
                *(curl, "-sS", "-w", "%{stderr}%{num_connects}"),
                *(url, f"{url}large", f"{url}a%20b%C3%BC%3F?query"),
            ],
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
    assert (result.stdout, result.stderr) == (HOME + LARGE + b"odd", b"100")


def test_h11_server_sends_a_file_that_is_its_argument(large_file: Path) -> None:
    with running(PROGRAM, large_file, "0") as (_, port):
        found, missing = split(exchange((HOST, port), GET + GET_LARGE))
    assert (found.status, found.body) == (200, large_file.read_bytes())
    assert missing.status == 404


def test_h11_server_answers_httpx_while_another_client_does_not_read(tmp_path: Path) -> None:
    with (
        serving(tmp_path) as (_, port),
        slow_client((HOST, port)) as slow,
        httpx.Client(
            base_url=f"http://{HOST}:{port}",
            trust_env=False,
            timeout=PATIENCE,
            limits=httpx.Limits(max_connections=1),
        ) as client,
    ):
        slow.sendall(GET_LARGE * 2)
        slow.shutdown(socket.SHUT_WR)
        for path, content in (("/large", LARGE), ("/", HOME), ("/empty", b"")):
            response = client.get(path)
            assert (response.status_code, response.content) == (200, content)
            head = client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["Content-Length"] == str(len(content))
        assert [response.body for response in split(receive_all(slow))] == [LARGE] * 2


def test_h11_server_answers_pipelined_requests_in_order(tmp_path: Path) -> None:
    requests = (
        GET_LARGE
        + b"HEAD /large HTTP/1.1\r\nHost: a\r\n\r\n"
        + b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n"
        + CHUNKED
        + b"3\r\nabc\r\n0\r\n\r\n"
        + b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"
        + b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: b\r\n\r\n"
        + LAST
        + GET
    )
    with serving(tmp_path) as (_, port):
        responses = split(exchange((HOST, port), requests), "GET", "HEAD")
    assert [(response.status, response.body) for response in responses] == [
        *((200, LARGE), (200, b""), (404, b""), (405, b""), (405, b""), (200, HOME), (200, HOME)),
    ]
    assert responses[1].headers["Content-Length"] == str(len(LARGE))
    assert responses[3].headers["Allow"] == "GET, HEAD"
    assert [response.headers.get("Connection") for response in responses] == [None] * 6 + ["close"]


@pytest.mark.parametrize(
    "path",
    [
        *("/link", "/../secret", "/%2e%2e/secret", "/sub/../../secret", "//etc/passwd"),
        *("/sub/", "/none", "/large/none", "/fifo", "/loop", "/%00", "/%FF", "/" + "a" * 9000),
    ],
)
def test_h11_server_answers_404_outside_the_directory_or_without_a_file(
    tmp_path: Path, path: str
) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    with serving(tmp_path) as (_, port):
        responses = split(exchange((HOST, port), request + GET))
    assert [response.status for response in responses] == [404, 200]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /part", 400),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1_000_000, 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %s\r\n\r\n" % (b"9" * 5000), 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (CHUNKED + b"3\r\nabcde0\r\n\r\n", 400),
        (CHUNKED + b"3\r\nabc\r\nx\r\n" + LARGE, 400),
    ],
    ids=[
        *("nonsense", "TLS", "no Host", "partial head", "long head", "partial body", "long length"),
        *("unknown coding", "chunk without end", "chunk without size"),
    ],
)
def test_error_of_the_protocol_is_answered_by_its_status_and_ends_the_connection(
    tmp_path: Path, error: bytes, status: int
) -> None:
    """The answer arrives, also if the client has sent more than the server reads."""
    with serving(tmp_path) as (_, port):
        first, last = split(exchange((HOST, port), GET + error))
        assert (first.status, last.status, last.body) == (200, status, b"")
        assert last.headers["Connection"] == "close"
        assert [response.body for response in split(exchange((HOST, port), GET))] == [HOME]


def test_client_that_waits_for_100_continue_gets_it_before_it_sends_its_body(
    tmp_path: Path,
) -> None:
    head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\nExpect: 100-continue\r\n\r\n"
    with (
        serving(tmp_path) as (_, port),
        socket.create_connection((HOST, port), PATIENCE) as sock,
    ):
        sock.sendall(head)
        assert receive_head(sock).startswith(b"HTTP/1.1 100 ")
        sock.sendall(LARGE + LAST)
        refused, last = split(read_all(sock))
    assert (refused.status, last.status, last.body) == (405, 200, HOME)


def test_client_of_http_1_0_gets_one_response(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, port):
        [response] = split(exchange((HOST, port), b"GET /large HTTP/1.0\r\n\r\n" * 2))
    assert response.body == LARGE


def test_h11_server_sends_a_large_file_by_sendfile(tmp_path: Path) -> None:
    """It reads only the end of the file, if at most COPY_LIMIT bytes are left for one call."""
    strace = tool("strace", "strace")
    site, log = make_site(tmp_path), tmp_path / "log"
    with subprocess.Popen(
        [strace, "-fyqo", log, "-e", "trace=%desc", sys.executable, EXAMPLES / PROGRAM, site, "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        try:
            [response] = split(exchange((HOST, port), GET_LARGE))
        finally:
            for server in children(process.pid):
                os.kill(server, signal.SIGTERM)
    assert response.body == LARGE
    calls = log.read_text()
    sent = re.findall(r" sendfile.* = (\d+)$", calls, re.MULTILINE)
    # strace shows the path of each descriptor.
    read = re.findall(rf"read\w*\(\d+<{site}/large>.* = (\d+)$", calls, re.MULTILINE)
    assert sum(map(int, sent)) >= len(LARGE) - COPY_LIMIT
    assert sum(map(int, read)) <= COPY_LIMIT


def test_file_that_grows_keeps_the_announced_length(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, port), slow_client((HOST, port)) as sock:
        sock.sendall(GET_LARGE + LAST)
        begin = receive(sock, 1000)
        with (tmp_path / "site" / "large").open("ab") as file:
            file.write(b"more")
        assert [each.body for each in split(begin + read_all(sock))] == [LARGE, HOME]


def test_file_that_shrinks_closes_the_connection_before_the_announced_length(
    tmp_path: Path,
) -> None:
    with (
        serving(tmp_path, reports="connection lost: .*") as (process, port),
        slow_client((HOST, port)) as sock,
    ):
        sock.sendall(GET_LARGE)
        assert receive_head(sock).endswith(b"Content-Length: 8000000\r\n\r\n")
        os.truncate(tmp_path / "site" / "large", 0)
        body = receive_all(sock)
        assert len(body) < len(LARGE)
        assert LARGE.startswith(body)
        assert process.stderr is not None
        assert "ends" in process.stderr.readline()
        assert [response.body for response in split(exchange((HOST, port), GET))] == [HOME]


def test_h11_server_survives_clients_that_close_their_connections_early(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, port):
        for request in (b"", b"GET", GET, GET_LARGE, GET_LARGE * 1000, CHUNKED + b"3\r\na"):
            with socket.create_connection((HOST, port), PATIENCE) as sock:
                sock.sendall(request)
        [response] = split(exchange((HOST, port), GET))
    assert response.body == HOME


def test_h11_server_without_free_descriptors_answers_503_and_accepts_clients_later(
    tmp_path: Path,
) -> None:
    with (
        serving(tmp_path) as (process, port),
        socket.create_connection((HOST, port), PATIENCE) as first,
    ):
        first.sendall(GET)
        assert receive_head(first).startswith(b"HTTP/1.1 200 ")
        assert receive(first, len(HOME)) == HOME
        limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        with (
            # An accept(2) that waits already has a descriptor, which this connection takes.
            socket.create_connection((HOST, port), PATIENCE),
            socket.create_connection((HOST, port), PATIENCE) as later,
        ):
            later.sendall(LAST)
            for _ in range(100):
                first.sendall(GET)
                assert receive_head(first).startswith(b"HTTP/1.1 503 ")
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
            assert [response.body for response in split(read_all(later))] == [HOME]


def test_h11_server_goes_on_after_running_out_of_threads(tmp_path: Path) -> None:
    script = tmp_path / "without_thread.py"
    script.write_text(WITHOUT_THREAD.format(program=str(EXAMPLES / PROGRAM)))
    with serving(tmp_path, str(script)) as (_, port):
        with socket.create_connection((HOST, port), PATIENCE) as sock:
            assert read_all(sock) == b""
        [response] = split(exchange((HOST, port), GET))
    assert response.body == HOME


@pytest.mark.parametrize("begin", [b"", b"GET /", CHUNKED], ids=["nothing", "head", "body"])
def test_client_that_stops_sending_is_disconnected(tmp_path: Path, begin: bytes) -> None:
    with (
        serving(tmp_path, impatient(tmp_path), LATE) as (_, port),
        socket.create_connection((HOST, port), PATIENCE) as sock,
    ):
        sock.sendall(begin)
        assert receive_all(sock) == b""


@pytest.mark.parametrize("end", [b"", LAST + GET], ids=["in a request", "after the last one"])
def test_client_that_sends_without_end_is_disconnected(tmp_path: Path, end: bytes) -> None:
    with (
        serving(tmp_path, impatient(tmp_path), LATE) as (_, port),
        socket.create_connection((HOST, port), PATIENCE) as sock,
    ):
        sock.sendall(end + CHUNKED)
        assert send_until_reset(sock, b"1\r\na\r\n" * 100)


def test_client_that_stops_reading_is_disconnected(tmp_path: Path) -> None:
    reports = r"connection lost: \d+ bytes were left after \S+ s"
    with (
        serving(tmp_path, impatient(tmp_path, receives=False), reports) as (process, port),
        slow_client((HOST, port)) as sock,
    ):
        sock.sendall(GET_LARGE)
        assert process.stderr is not None
        assert re.fullmatch(reports, process.stderr.readline().rstrip())
        assert len(receive_all(sock)) < len(LARGE)

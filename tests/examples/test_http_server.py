"""http_server.py: a directory over HTTP, on selectors, read by curl and httpx."""

from __future__ import annotations

import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support.batches import data
from tests.support.examples import line_count, no_free_descriptors, running
from tests.support.http import split
from tests.support.httpd import exchange, receive_head
from tests.support.programs import tool
from tests.support.sockets import PATIENCE, is_silent, receive, receive_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = "http_server.py"
HOST = "127.0.0.1"
# More than the buffers of a connection's two sockets hold.
LARGE = data(8_000_000)
HOME = b"<h1>home</h1>"


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the server for a site in a folder; give its process and its port."""
    site = folder / "site"
    (site / "sub").mkdir(parents=True)
    (site / "index.html").write_bytes(HOME)
    (site / "large").write_bytes(LARGE)
    (folder / "secret").write_bytes(b"secret")
    (site / "link").symlink_to(folder / "secret")
    (site / "loop").symlink_to("loop")
    (site / "archive.tar.gz").write_bytes(b"packed")
    with running(PROGRAM, site, "0") as (process, port):
        yield process, port


def test_http_server_has_fewer_than_125_lines() -> None:
    assert line_count(PROGRAM) < 125


def test_http_server_sends_curl_two_files_over_one_connection(tmp_path: Path) -> None:
    curl = tool("curl", "curl")
    with serving(tmp_path) as (_, port):
        result = subprocess.run(
            [
                *(curl, "-sS", "--write-out", "%{stderr}%{num_connects} %{content_type}\n"),
                *(f"http://{HOST}:{port}/", f"http://127.0.0.1:{port}/large"),
            ],
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
    assert result.stdout == HOME + LARGE
    assert result.stderr == b"1 text/html\n0 application/octet-stream\n"


def test_http_server_answers_others_while_a_client_does_not_read(tmp_path: Path) -> None:
    with (
        serving(tmp_path) as (_, port),
        socket.create_connection((HOST, port), PATIENCE) as stalled,
        httpx.Client(base_url=f"http://{HOST}:{port}", trust_env=False, timeout=PATIENCE) as client,
    ):
        stalled.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
        assert client.get("/large").content == LARGE
        head = client.head("/large")
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(LARGE)))
        stalled.shutdown(socket.SHUT_WR)
        assert [each.body for each in split(receive_all(stalled))] == [LARGE] * 3


@pytest.mark.parametrize(
    "path",
    [
        *("/link", "/../secret", "/%2e%2e/secret", "//etc/passwd"),
        *("/sub/", "/none", "/%00", "/loop"),
    ],
)
def test_http_server_answers_404_outside_the_directory_or_without_a_file(
    tmp_path: Path, path: str
) -> None:
    with serving(tmp_path) as (_, port):
        request = f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        [response] = split(exchange((HOST, port), request))
        assert (response.status, response.body) == (404, b"")


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n",
            [405, 200],
        ),
        (b"nonsense\r\n\r\n", [400]),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n", [404]),
        (b"GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\n\r\n", [200]),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\nnonsense\r\n\r\n", [200]),
        (b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\nbinary", [200]),
    ],
    ids=["POST", "nonsense", "long target", "HTTP/1.0", "bytes after close", "upgrade"],
)
def test_http_server_answers_each_request_until_the_last(
    tmp_path: Path, request_bytes: bytes, statuses: list[int]
) -> None:
    with serving(tmp_path) as (_, port):
        responses = split(exchange((HOST, port), request_bytes))
        assert [response.status for response in responses] == statuses


def test_http_server_sends_a_packed_file_as_it_is(tmp_path: Path) -> None:
    """With the type of its content and no Content-Encoding it could not be read."""
    with serving(tmp_path) as (_, port):
        [response] = split(exchange((HOST, port), b"GET /archive.tar.gz HTTP/1.1\r\n\r\n"))
        assert response.headers["Content-Type"] == "application/octet-stream"
        assert response.body == b"packed"


def test_http_server_goes_on_after_running_out_of_descriptors(tmp_path: Path) -> None:
    """The connection that can't be accepted waits."""
    request = b"GET / HTTP/1.1\r\n\r\n"
    with (
        serving(tmp_path) as (process, port),
        socket.create_connection((HOST, port), PATIENCE) as first,
    ):
        first.sendall(request)
        receive_head(first)
        receive(first, len(HOME))
        with (
            no_free_descriptors(process.pid),
            socket.create_connection((HOST, port), PATIENCE) as second,
        ):
            second.sendall(request)
            for _ in range(10):
                first.sendall(request)
                assert receive_head(first)
            assert is_silent(second)
        [response] = split(exchange((HOST, port), request))
        assert response.body == HOME


def test_http_server_survives_a_client_that_resets_its_connection(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, port):
        for _ in range(3):
            with socket.create_connection((HOST, port), PATIENCE) as sock:
                sock.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
                assert sock.recv(100)
        [response] = split(exchange((HOST, port), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
        assert response.body == HOME

"""asgi_server.py: bodies of requests."""

from __future__ import annotations

import socket
import subprocess
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from tests.support.asgi import FAULTS, HELLO, HOST, LARGE, body, client, script, serving, start
from tests.support.http import split
from tests.support.httpd import exchange, read_all, receive_head
from tests.support.sockets import PATIENCE, is_silent, receive

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("coding", ["Content-Length: 8000000", "Transfer-Encoding: chunked"])
def test_body_of_a_request_is_sent_back_while_it_arrives(
    curl: str, folder: Path, coding: str
) -> None:
    with serving("asgi_raw") as (_, port):
        result = subprocess.run(
            [curl, "-sS", "-H", coding, "-T", folder / "large", f"http://{HOST}:{port}/echo"],
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
    assert result.stdout == LARGE


def test_part_of_a_body_reaches_the_application_before_the_next_is_sent(folder: Path) -> None:
    with (
        serving("asgi_raw") as (_, port),
        socket.create_connection((HOST, port), PATIENCE) as sock,
    ):
        sock.sendall(b"PUT /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(10):
            sock.sendall(b"1\r\n%d\r\n" % number)
            if not number:
                receive_head(sock)
            assert receive(sock, 6) == b"1\r\n%d\r\n" % number
        sock.sendall(b"0\r\nTrailer: dropped\r\n\r\n" + HELLO)
        assert receive(sock, 5) == b"0\r\n\r\n"
        sock.shutdown(socket.SHUT_WR)
        [response] = split(read_all(sock))
        assert response.body == b"hello"


def test_no_part_of_a_body_is_lost_if_the_application_cancels_receive(folder: Path) -> None:
    with serving("asgi_raw") as (_, port), client(port) as http:
        assert http.put("/digest", content=LARGE).content == sha256(LARGE).digest()


@pytest.mark.parametrize("size", [0, 5, 100_000, 8_000_000])
def test_body_that_is_not_received_does_not_stop_the_connection(folder: Path, size: int) -> None:
    request = script(start(), body("hello"), method="POST", fields=f"Content-Length: {size}\r\n")
    with serving("asgi_raw") as (_, port):
        responses = split(exchange((HOST, port), (request + bytes(size)) * 2 + HELLO))
    assert [response.body for response in responses] == [b"hello"] * 3


def test_response_arrives_though_the_request_is_not_read_to_its_end(folder: Path) -> None:
    """To close the socket before the client has sent all would reset the connection."""
    fields = "Connection: close\r\nContent-Length: 8000000\r\n"
    with serving("asgi_raw", FAULTS) as (_, port), client(port) as http:
        raw = exchange((HOST, port), script("raise", method="POST", fields=fields) + LARGE)
        assert raw.startswith(b"HTTP/1.1 500 ")
        path = script(start(401, connection="close"), body("no")).split()[1].decode()
        response = http.post(path, content=LARGE)
        assert (response.status_code, response.content) == (401, b"no")


def test_client_is_told_to_send_its_body_when_the_application_wants_it(folder: Path) -> None:
    fields = b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    with (
        serving("asgi_raw") as (_, port),
        socket.create_connection((HOST, port), PATIENCE) as sock,
    ):
        sock.sendall(b"PUT /echo HTTP/1.1\r\n" + fields)
        assert receive_head(sock) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert is_silent(sock)
        sock.sendall(b"hello")
        receive_head(sock)
        assert receive(sock, 15) == b"5\r\nhello\r\n0\r\n\r\n"
        # A body that has arrived already is not asked for.
        sock.sendall(b"PUT /echo HTTP/1.1\r\n" + fields + b"hello")
        assert receive_head(sock).startswith(b"HTTP/1.1 200 ")
        assert receive(sock, 15) == b"5\r\nhello\r\n0\r\n\r\n"
        # A call that does not want the body: only the end of the connection tells where it ends.
        sock.sendall(HELLO[:-2] + fields)
        [response] = split(read_all(sock))
        assert (response.body, response.headers["Connection"]) == (b"hello", "close")


def test_client_of_http_1_0_is_never_told_to_send_its_body(folder: Path) -> None:
    """It doesn't know responses that are not final (RFC 9110, 10.1.1)."""
    request = b"PUT /echo HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    with (
        serving("asgi_raw") as (_, port),
        socket.create_connection((HOST, port), PATIENCE) as sock,
    ):
        sock.sendall(request)
        assert exchange((HOST, port), HELLO)  # now the application waits for the body
        sock.sendall(b"hello")
        raw = read_all(sock)
    assert raw.startswith(b"HTTP/1.1 200 OK\r\n")
    assert raw.endswith(b"\r\n\r\nhello")


def test_curl_waits_for_100_continue(curl: str, folder: Path) -> None:
    with serving("asgi_raw") as (_, port):
        result = subprocess.run(
            [
                *(curl, "-sSv", "-H", "Expect: 100-continue", "--expect100-timeout", "60"),
                *("-T", folder / "large", f"http://{HOST}:{port}/echo"),
            ],
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
    assert result.stdout == LARGE
    assert b"< HTTP/1.1 100 Continue" in result.stderr

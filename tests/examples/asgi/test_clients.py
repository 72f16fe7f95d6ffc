"""asgi_server.py: clients that leave, and clients that do not read."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from tests.support.asgi import FAULTS, HELLO, HOST, serving
from tests.support.asgi_raw import PART, PARTS, part
from tests.support.examples import no_free_descriptors
from tests.support.http import split
from tests.support.httpd import exchange, read_all, receive_head, slow_client
from tests.support.sockets import PATIENCE, is_silent, receive, reset


def resident(pid: int) -> int:
    """Return the most memory that a process has had, in bytes."""
    [kib] = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(kib) * 1024


@pytest.mark.parametrize("how", ["end", "reset"])
def test_application_learns_that_its_client_has_left(folder: Path, how: str) -> None:
    with serving("asgi_raw") as (process, port):
        assert process.stdout is not None
        with socket.create_connection((HOST, port), PATIENCE) as sock:
            sock.sendall(b"GET /wait HTTP/1.1\r\n\r\n")
            assert process.stdout.readline() == "http.request\n"
            if how == "reset":
                reset(sock)
        expected = ["http.disconnect\n", "http.disconnect\n", "OSError\n"]
        assert [process.stdout.readline() for _ in expected] == expected
        [response] = split(exchange((HOST, port), HELLO))
        assert response.body == b"hello"


def test_application_waits_for_a_client_that_does_not_read(folder: Path) -> None:
    with serving("asgi_raw") as (process, port), slow_client((HOST, port)) as sock:
        before = resident(process.pid)
        sock.sendall(b"GET /many HTTP/1.1\r\nConnection: close\r\n\r\n")
        receive_head(sock)
        counts = []
        for _ in range(3):
            [response] = split(exchange((HOST, port), b"GET /count HTTP/1.1\r\n\r\n"))
            counts.append(int(response.body))
        assert 0 < counts[0] == counts[1] == counts[2] < PARTS / 2
        assert read_all(sock) == b"".join(map(part, range(PARTS)))
        assert resident(process.pid) - before < PART * PARTS / 4


def test_connection_goes_on_while_its_last_call_still_receives(folder: Path) -> None:
    request = b"GET /listen HTTP/1.1\r\n\r\n"
    with (
        serving("asgi_raw") as (process, port),
        socket.create_connection((HOST, port), PATIENCE) as sock,
    ):
        assert process.stdout is not None
        for number in range(3):
            sock.sendall(request)
            receive_head(sock)
            assert receive(sock, 15) == b"5\r\nhello\r\n0\r\n\r\n"
            if number:
                assert process.stdout.readline() == "http.disconnect\n"


@pytest.mark.parametrize("count", [1, 10, 1000])
def test_application_learns_that_a_client_has_left_behind_requests(
    folder: Path, count: int
) -> None:
    """A client that sends very many of them is as one that has left."""
    with serving("asgi_raw", FAULTS) as (process, port):
        assert process.stdout is not None
        with socket.create_connection((HOST, port), PATIENCE) as sock:
            sock.sendall(b"GET /wait HTTP/1.1\r\n\r\n" + HELLO)
            assert process.stdout.readline() == "http.request\n"
            sock.sendall(HELLO * count)
            if count == 1000:
                assert process.stdout.readline() == "http.disconnect\n"
        if count < 1000:
            assert process.stdout.readline() == "http.disconnect\n"
        assert process.stdout.readline() == "http.disconnect\n"
        assert process.stdout.readline() == "OSError\n"


def test_client_that_resets_its_connection_ends_only_its_call(folder: Path) -> None:
    with serving("asgi_raw") as (_, port):
        for _ in range(3):
            with socket.create_connection((HOST, port), PATIENCE) as sock:
                sock.sendall(b"GET /many HTTP/1.1\r\n\r\n")
                assert sock.recv(100)
        [response] = split(exchange((HOST, port), HELLO))
        assert response.body == b"hello"


def test_server_goes_on_after_running_out_of_descriptors(folder: Path) -> None:
    """The connection that can't be accepted waits; asyncio reports it, and tries again later."""
    with (
        serving("asgi_raw", FAULTS) as (process, port),
        socket.create_connection((HOST, port), PATIENCE) as first,
    ):
        first.sendall(HELLO)
        receive_head(first)
        receive(first, 15)
        with (
            no_free_descriptors(process.pid),
            socket.create_connection((HOST, port), PATIENCE) as second,
        ):
            second.sendall(HELLO)
            assert process.stderr is not None
            assert process.stderr.readline() == "socket.accept() out of system resource\n"
            assert is_silent(second)
        [response] = split(exchange((HOST, port), HELLO))
        assert response.body == b"hello"

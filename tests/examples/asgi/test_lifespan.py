"""asgi_server.py: the lifespan of an application, and the end of the server."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.asgi import HELLO, HOST, PROGRAM, client, serving, serving_impatiently
from tests.support.examples import EXAMPLES
from tests.support.http import unchunk
from tests.support.httpd import read_all, receive_head
from tests.support.programs import environment
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


def test_sigterm_stops_a_server_that_was_started_in_the_background(folder: Path) -> None:
    """A shell starts such a program with SIGINT ignored."""
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, EXAMPLES / PROGRAM]
    with subprocess.Popen(
        [*command, "tests.support.asgi_raw:app", "--port", "0"],
        stdout=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"listening on ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_lifespan_begins_before_the_requests_and_ends_after_them(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("ASGI_LIFESPAN", "")
    program = [sys.executable, EXAMPLES / PROGRAM, "tests.support.asgi_lifespan:app", "--port=0"]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "startup\n"
        port = int(process.stdout.readline().rpartition(":")[2])
        with client(port) as http:
            assert http.get("/a").json() == {"count": 1, "shared": ["/a"]}
            assert http.get("/b").json() == {"count": 1, "shared": ["/a", "/b"]}
            process.send_signal(number)
            assert process.communicate(timeout=PATIENCE) == ("shutdown\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("phase", ["startup", "shutdown"])
def test_lifespan_that_fails_ends_the_program_with_its_message(
    monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    monkeypatch.setenv("ASGI_LIFESPAN", f"{phase}.failed")
    program = [sys.executable, EXAMPLES / PROGRAM, "tests.support.asgi_lifespan:app", "--port=0"]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "startup\n"
        if phase == "shutdown":
            assert process.stdout.readline().startswith("listening on ")
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
    assert errors == f"{phase} failed: no database\n"
    assert process.returncode == 1


def test_second_signal_ends_the_program_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASGI_LIFESPAN", "shutdown.hangs")
    program = [sys.executable, EXAMPLES / PROGRAM, "tests.support.asgi_lifespan:app", "--port=0"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "startup\n"
        assert process.stdout.readline().startswith("listening on ")
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "shutdown\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == -signal.SIGTERM


def test_exchange_in_progress_is_completed_when_the_server_is_stopped(folder: Path) -> None:
    with (
        serving("asgi_raw") as (process, port),
        socket.create_connection((HOST, port), PATIENCE) as idle,
        socket.create_connection((HOST, port), PATIENCE) as busy,
    ):
        idle.sendall(HELLO)
        receive_head(idle)
        busy.sendall(b"PUT /echo HTTP/1.1\r\nContent-Length: 10\r\n\r\nhello")
        receive_head(busy)
        process.send_signal(signal.SIGTERM)
        assert read_all(idle).endswith(b"0\r\n\r\n")
        busy.sendall(b"hello")
        assert unchunk(read_all(busy)) == b"hellohello"
        assert process.wait(PATIENCE) == 0


def test_call_that_does_not_end_is_cancelled_when_the_server_is_stopped(folder: Path) -> None:
    with (
        serving_impatiently(folder, "asgi_raw") as (process, port),
        socket.create_connection((HOST, port), PATIENCE) as sock,
    ):
        sock.sendall(b"GET /wait HTTP/1.1\r\n\r\n")
        assert process.stdout is not None
        assert process.stdout.readline() == "http.request\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0

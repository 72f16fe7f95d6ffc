"""Stopping: signals, the time of grace, and its end."""

from __future__ import annotations

import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.batches import data
from tests.support.http import split
from tests.support.httpd import (
    LARGE,
    SMALL,
    address_of,
    program,
    read_all,
    receive_head,
    run_httpd,
    slow_client,
)
from tests.support.programs import environment
from tests.support.sockets import PATIENCE, receive

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("inherited", ["default", "ignored", "blocked"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_signal_stops_the_program_with_status_0_while_a_connection_is_open(
    site: Path, number: int, inherited: str, workers: str
) -> None:
    """The program may have inherited that this signal, and SIGCHLD, are ignored or blocked."""

    def inherit() -> None:
        if inherited == "blocked":
            signal.pthread_sigmask(signal.SIG_BLOCK, [number, signal.SIGCHLD])
        elif inherited == "ignored":
            signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    with program(site, "--workers", workers, preexec_fn=inherit, stderr=subprocess.PIPE) as (
        process,
        url,
    ):
        with socket.create_connection(address_of(url), PATIENCE) as sock:
            sock.sendall(SMALL)
            assert receive(sock, 12) == b"HTTP/1.1 200"
            process.send_signal(number)
            assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def connect_until_refused(address: tuple[str, int]) -> None:
    """Connect until all workers have closed their listening sockets."""
    while True:
        with socket.create_connection(address, PATIENCE) as late:
            assert late.recv(1) == b"", (
                "a client that connects while the server stops is not served"
            )


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_server_finishes_responses_and_closes_idle_connections(
    site: Path, number: int, workers: str
) -> None:
    with (
        program(site, "--workers", workers) as (process, url),
        slow_client(address_of(url)) as sock,
    ):
        with socket.create_connection(address_of(url), PATIENCE) as idle:
            idle.sendall(SMALL)
            assert receive(idle, 12) == b"HTTP/1.1 200"
            receive_head(idle)
            receive(idle, 1)
            sock.sendall(LARGE * 20)
            first_byte = receive(sock, 1)
            process.send_signal(number)
            assert idle.recv(1) == b"", "an idle connection is closed at once"
        with pytest.raises(ConnectionError):
            connect_until_refused(address_of(url))
        answers = split(first_byte + read_all(sock))
        assert len(answers) == 20
        assert all(answer.body == data(1 << 20, seed=1 << 20) for answer in answers)
        sock.close()
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(("grace", "signals"), [("1000", 2), ("0", 1)])
def test_second_signal_or_end_of_grace_cuts_responses_off(
    site: Path, grace: str, signals: int
) -> None:
    """The server says that it waits, if it does."""
    with (
        program(site, "--grace", grace, stderr=subprocess.PIPE) as (process, url),
        # Accepted before the other client, since it connects first.
        socket.create_connection(address_of(url), PATIENCE) as idle,
        slow_client(address_of(url)) as sock,
    ):
        sock.sendall(LARGE * 20)
        receive(sock, 1)
        process.send_signal(signal.SIGINT)
        assert idle.recv(1) == b"", "the server has read the signal"
        if signals == 2:
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        waiting = "waiting for 1 client, at most 1000 seconds; Ctrl-C again cuts them off"
        assert process.stderr.read() == f"iobatch.httpd: {waiting}\n" * (signals - 1)


def test_signal_before_the_server_can_be_stopped_ends_the_program_without_a_traceback(
    site: Path, tmp_path: Path
) -> None:
    """Modules are being imported then, of which one is replaced here."""
    for number in (signal.SIGINT, signal.SIGTERM):
        (tmp_path / "httptools.py").write_text(f"import os; os.kill(os.getpid(), {number:d})")
        path = environment()["PYTHONPATH"]
        result = run_httpd(site, env=environment(PYTHONPATH=f"{tmp_path}:{path}"))
        assert result.returncode == -number
        assert (result.stdout, result.stderr) == ("", "")

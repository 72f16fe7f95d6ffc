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
    slow_client,
)
from tests.support.sockets import PATIENCE, receive

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("inherited", [signal.SIG_DFL, signal.SIG_IGN])
def test_signal_stops_the_program_with_status_0_while_a_connection_is_open(
    site: Path, number: int, inherited: signal.Handlers
) -> None:
    """The program may have inherited a disposition that ignores the signal."""
    with program(
        site,
        preexec_fn=lambda: signal.signal(number, inherited),
        stderr=subprocess.PIPE,
    ) as (process, url):
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
    with (
        program(site, "--grace", grace) as (process, url),
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

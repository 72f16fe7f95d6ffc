"""Requests to a server that needs passwords, and the user in its log."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from base64 import b64encode
from contextlib import ExitStack
from signal import SIGTERM
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd.accesslog import MAX_WRITE, AccessLog
from iobatch.httpd.authentication import Authentication
from iobatch.httpd.connection import WAITING
from iobatch.httpd.headerfields import HeaderFields, Rule
from iobatch.httpd.output import Output
from iobatch.httpd.requests import Request
from iobatch.httpd.server import WAIT_TICK
from tests.support.batches import data
from tests.support.http import split
from tests.support.httpd import (
    SMALL,
    Address,
    address_of,
    exchange,
    get,
    new_server,
    open_connection,
    program,
    receive_head,
    serving,
    started_workers,
)
from tests.support.passwords import Password, basic, request, users, verify
from tests.support.sockets import PATIENCE, is_silent, receive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PREFLIGHT = {"Origin": "http://other", "Access_Control_Request_Method": "GET"}
CORS = HeaderFields([Rule("", "Access-Control-Allow-Origin", "*")])


def test_connection_waits_for_the_result_which_is_not_counted_against_the_client(
    site: Path, gated: Password
) -> None:
    checker = Authentication(users(gated))
    with open_connection(site, authentication=checker) as (connection, theirs):
        theirs.sendall(request("u0:secret") + request("u0:wrong"))
        for now in (0.0, 1000.0):
            assert connection.step(now) == WAITING
            assert connection.deadline == now + 60
            assert is_silent(theirs)
        gated.gate.set()
        for status in (b"200", b"401"):
            checker._thread.join(PATIENCE)
            connection.step(1000.0)
            assert receive_head(theirs)[9:12] == status
            if status == b"200":
                assert receive(theirs, 1) == data(1, seed=1)


def test_clients_whose_passwords_wait_take_no_turn_from_another(
    site: Path, gated: Password
) -> None:
    """The other client gets its response in its first step, and the loop sleeps meanwhile."""
    other = Password(b"other")
    checker = Authentication(users(gated, other))
    assert verify(checker, "u1:other") == 0
    with ExitStack() as stack:
        server, address, _ = stack.enter_context(new_server(site, authentication=checker))
        clients = [stack.enter_context(socket.create_connection(address)) for _ in range(11)]
        server._accept(0.0)
        for i, client in enumerate(clients[:-1]):
            client.sendall(request(f"u0:{i}"))
        clients[-1].sendall(request("u1:other"))
        for fd, _ in server._epoll.poll():
            server._step(server._watched[fd], 0.0)
        assert receive_head(clients[-1])[9:12] == b"200"
        assert len(server._waiting) == 10
        assert server._timeout() == WAIT_TICK
        server._resume_waiting(0.0)
        turn = server._epoll.poll()
        assert len(turn) == 10
        for fd, _ in turn:
            server._step(server._watched[fd], 0.0)
        assert server._epoll.poll(0) == []
        assert server._resume_at == WAIT_TICK


def test_server_that_is_stopped_answers_a_request_that_waits(site: Path, gated: Password) -> None:
    checker = Authentication(users(gated))
    with new_server(site, authentication=checker) as (server, address, stop):
        thread = Thread(target=server.run)
        thread.start()
        with socket.create_connection(address, PATIENCE) as sock:
            sock.sendall(request("u0:secret"))
            while not server._waiting:
                os.sched_yield()
            stop.send(bytes([SIGTERM]))
            while server._stop_at is None:
                os.sched_yield()
            gated.gate.set()
            assert receive_head(sock)[9:12] == b"200"
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture(name="guarded")
def serve_guarded(site: Path) -> Iterator[Address]:
    """Serve the directory to the user u0 with the password "p", and to any other origin."""
    checker = Authentication(users(Password(b"p")))
    with serving(site, authentication=checker, header_fields=CORS) as (_, address):
        yield address


def test_every_request_needs_credentials(guarded: Address) -> None:
    for method in ("GET", "HEAD", "OPTIONS"):
        for target in ("/1", "/nothing", "/bare", "/bare/", "/%zz", "*"):
            for headers in ({}, {"Authorization": basic("u0:q")}, {"Authorization": "Bearer x"}):
                response = get(guarded, target, method, **headers)
                assert response.status == 401
                challenge = 'Basic realm="files", charset="UTF-8"'
                assert response.headers["WWW-Authenticate"] == challenge
                assert response.headers["Cache-Control"] == "no-store"
                assert response.headers["Access-Control-Allow-Origin"] == "*"
                assert response.body == b"" if method == "HEAD" else b"401 Unauthorized\n"
    statuses = {
        target: get(guarded, target, Authorization=basic("u0:p")).status
        for target in ("/1", "/nothing", "/bare", "/bare/", "/%zz")
    }
    assert statuses == {"/1": 200, "/nothing": 404, "/bare": 301, "/bare/": 200, "/%zz": 400}


def test_request_that_is_refused_anyway_needs_no_credentials(guarded: Address) -> None:
    assert get(guarded, "/1", "POST").status == 405
    assert get(guarded, "/1", "BREW").status == 501
    assert get(guarded, "/" + "x" * 9000).status == 414
    assert get(guarded, "/1", Host="a b").status == 400
    assert get(guarded, "/1", **{f"X{i}": "" for i in range(101)}).status == 431


def test_preflight_needs_no_credentials_but_they_must_be_right(guarded: Address) -> None:
    assert get(guarded, "/1", "OPTIONS", **PREFLIGHT).status == 204
    assert get(guarded, "/1", **PREFLIGHT).status == 401
    for credentials, status in (("u0:p", 204), ("u0:q", 401)):
        headers = {**PREFLIGHT, "Authorization": basic(credentials)}
        assert get(guarded, "/1", "OPTIONS", **headers).status == status


def test_preflight_needs_credentials_where_no_other_origin_is_allowed(site: Path) -> None:
    with serving(site, authentication=Authentication(users(Password(b"p")))) as (_, address):
        assert get(address, "/1", "OPTIONS", **PREFLIGHT).status == 401


def test_each_request_of_a_connection_has_its_own_result(guarded: Address) -> None:
    wanted = ["u0:p", "u0:q", "u1:p", "u0:p"]
    received = exchange(guarded, b"".join(map(request, wanted)) + SMALL)
    assert [each.status for each in split(received)] == [200, 401, 401, 200, 401]


def test_log_has_the_user_of_a_request_whose_password_was_right(site: Path) -> None:
    credentials = ["a b:p", "a b:q", '\xfc"\\:p']
    with program(site, "--auth", "a b:p", "--log", "common") as (process, url):
        for each in credentials:
            exchange(address_of(url), request(each))
        exchange(address_of(url), request("a b:p").replace(b"GET", b"POST"))
        exchange(address_of(url), SMALL)
        process.terminate()
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    found = [re.fullmatch(r"127\.0\.0\.1 - (\S+) \[.*\] .* (\d+) \d+", line) for line in lines]
    assert [each and each.groups() for each in found] == [
        (r"a\x20b", "200"),
        ("-", "401"),
        ("-", "401"),
        ("-", "405"),
        ("-", "401"),
    ]


@pytest.mark.parametrize("authenticated", [False, True])
def test_name_of_a_user_in_the_log_is_one_field_of_printable_ascii(*, authenticated: bool) -> None:
    reading, writing = os.pipe()
    log = AccessLog(Output(writing), combined=True, authenticated=authenticated)
    name = bytes(range(256)).replace(b":", b"") * 9
    headers = {
        b"authorization": b"Basic " + b64encode(name + b":p"),
        b"referer": name,
        b"user-agent": name,
    }
    log.add(b"::1", Request(b"GET", b"x" * 8000, "1.1", headers, keep_alive=True), b"200", 0)
    log.close()
    os.close(writing)
    line = os.read(reading, 1 << 16)
    os.close(reading)
    assert len(line) <= MAX_WRITE
    user = rb"(?:\\x[0-9a-f]{2}|[!-~])+" if authenticated else rb"-"
    assert re.match(rb"::1 - " + user + rb" \[", line)
    assert (b"\\x00\\x01" in line.partition(b"[")[0]) == authenticated


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
def test_curl_fetches_a_file_with_the_right_password_only(
    site: Path, curl: str, tmp_path: Path, options: tuple[str, ...]
) -> None:
    command = [curl, "-sS", "-o", f"{tmp_path}/file", "-w", "%{http_code}"]
    with program(site, "--auth", "J\xfcrgen:p:\xe4", *options) as (process, url):
        for credentials, status in (("J\xfcrgen:p:\xe4", "200"), ("J\xfcrgen:p", "401")):
            result = subprocess.run(
                [*command, "-u", credentials, f"{url}1024"],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=True,
            )
            assert result.stdout == status
            if status == "200":
                assert (tmp_path / "file").read_bytes() == data(1024, seed=1024)
        started_workers(process, 2 if options else 0)


WARNING = "iobatch.httpd: warning: passwords go over plain HTTP, which others can read; see --tls\n"


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        (("--bind", "0.0.0.0"), WARNING),
        (("--bind", "0.0.0.0", "--workers", "2"), WARNING),
        (("--bind", "::ffff:127.0.0.1"), ""),
        (("--bind", "0.0.0.0", "--self-signed"), ""),
        ((), ""),
        (("--unix", "socket"), ""),
    ],
)
def test_passwords_over_plain_http_beyond_this_machine_are_warned_of(
    site: Path, tmp_path: Path, options: tuple[str, ...], warning: str
) -> None:
    with program(site, "--auth", "u:p", *options, stderr=subprocess.PIPE, cwd=tmp_path) as (
        process,
        _,
    ):
        process.terminate()
        assert process.stderr is not None
        assert process.stderr.read() == warning


def test_program_without_passwords_warns_of_nothing(site: Path) -> None:
    with program(site, "--bind", "0.0.0.0", stderr=subprocess.PIPE) as (process, _):
        process.terminate()
        assert process.stderr is not None
        assert process.stderr.read() == ""

"""asgi_server.py: scopes, connections, and the framing of responses."""

from __future__ import annotations

import re
import socket
import subprocess
from ast import literal_eval
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.asgi import FAULTS, HELLO, HOST, body, script, serving, start
from tests.support.http import split, unchunk
from tests.support.httpd import exchange, read_all
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query"),
    [
        ("/scope?a=%C3%A4&b", "/scope", b"/scope", b"a=%C3%A4&b"),
        ("/sc%6Fpe", "/scope", b"/sc%6Fpe", b""),
        ("http://a/scope?", "/scope", b"/scope", b""),
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.usefixtures("folder")
def test_scope_has_what_the_specification_wants(
    target: str, path: str, raw_path: bytes, query: bytes, version: str
) -> None:
    fields = "Host: b\r\nX: 1\r\nx: \xe4\r\n"
    request = f"OPTIONS {target} HTTP/{version}\r\n{fields}\r\n".encode("latin-1")
    with (
        serving("asgi_raw") as (_, port),
        socket.create_connection((HOST, port), PATIENCE) as sock,
    ):
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        answer = read_all(sock).partition(b"\r\n\r\n")[2]
        scope = literal_eval((answer if version == "1.0" else unchunk(answer)).decode())
        assert scope == {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "http_version": version,
            "method": "OPTIONS",
            "scheme": "http",
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": [(b"host", b"b"), (b"x", b"1"), (b"x", b"\xe4")],
            "client": sock.getsockname(),
            "server": (HOST, port),
            "state": {},
            "extensions": {"http.response.pathsend": {}, "http.response.zerocopysend": {}},
        }


def test_field_after_a_body_does_not_belong_to_the_next_request(folder: Path) -> None:
    request = b"POST /script?[] HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nEvil: 1\r\n\r\n"
    request = request.replace(b"/script?[]", HELLO.split()[1])
    with serving("asgi_raw") as (_, port):
        _, response = split(
            exchange((HOST, port), request + b"GET /scope HTTP/1.1\r\nA: b\r\n\r\n")
        )
    assert literal_eval(response.body.decode())["headers"] == [(b"a", b"b")]


def test_upgrade_is_declined_and_ends_the_connection(folder: Path) -> None:
    request = script(start(), body("hello"), fields="Upgrade: a\r\nConnection: Upgrade\r\n")
    with serving("asgi_raw") as (_, port):
        [response] = split(exchange((HOST, port), request))
    assert (response.headers["Connection"], response.body) == ("close", b"hello")


def test_pipelined_requests_are_answered_in_order_in_one_connection(folder: Path) -> None:
    names = [str(number) for number in range(200)]
    requests = b"".join(script(start(), body(name)) for name in names)
    with serving("asgi_raw") as (_, port):
        responses = split(exchange((HOST, port), requests))
    assert [response.body.decode() for response in responses] == names


def test_curl_reuses_its_connection_after_each_kind_of_response(curl: str, folder: Path) -> None:
    url = HELLO.split()[1].decode()
    with serving("asgi_raw") as (_, port):
        urls = [f"http://{HOST}:{port}{url}" for _ in range(5)]
        result = subprocess.run(
            [curl, "-sS", "-w", "%{stderr}%{num_connects}", *urls],
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
    assert (result.stdout, result.stderr) == (b"hello" * 5, b"10000")


@pytest.mark.parametrize(
    ("version", "fields", "head", "expected"),
    [
        ("1.1", "", {}, None),
        ("1.1", "Connection: close\r\n", {}, "close"),
        ("1.1", "", {"connection": "close"}, "close"),
        ("1.0", "", {"content_length": "5"}, "close"),
        ("1.0", "", {}, "close"),
        ("1.0", "Connection: keep-alive\r\n", {"content_length": "5"}, "keep-alive"),
        ("1.0", "Connection: keep-alive\r\n", {}, "close"),
    ],
)
def test_connection_stays_open_if_both_sides_can_find_the_end_of_the_response(
    folder: Path, version: str, fields: str, head: dict[str, str], expected: str | None
) -> None:
    request = script(start(**head), body("hello"), fields=fields, version=version)
    with serving("asgi_raw") as (_, port):
        raw = exchange((HOST, port), request + HELLO)
    head_lines, _, content = raw.partition(b"\r\n\r\n")
    connection = re.findall(rb"\r\nConnection: (.*)", head_lines)
    assert connection == ([] if expected is None else [expected.encode()])
    assert raw.count(b"HTTP/1.1 200") == (1 if expected == "close" else 2)
    if version == "1.0":
        assert b"chunked" not in head_lines
        assert content.startswith(b"hello")


@pytest.mark.parametrize(
    ("method", "head", "expected"),
    [
        ("HEAD", start(content_length="1234"), {"Content-Length": "1234"}),
        ("HEAD", start(), {}),
        ("GET", start(204), {}),
        ("GET", start(204, content_length="0"), {}),
        ("GET", start(304, content_length="1234"), {"Content-Length": "1234"}),
    ],
)
def test_response_without_a_body_has_none_whatever_the_application_sends(
    folder: Path, method: str, head: dict[str, Any], expected: dict[str, str]
) -> None:
    request = script(head, body("dropped", more=True), body("too"), method=method)
    with serving("asgi_raw") as (_, port):
        first, second = split(exchange((HOST, port), request + HELLO), method)
    assert second.body == b"hello"
    del first.headers["Date"]
    assert first.headers == expected


def test_fields_of_the_application_keep_their_order_and_number(folder: Path) -> None:
    head = {
        "type": "http.response.start",
        "status": 299,
        "headers": [
            *(("set-cookie", "a=1"), ("x", "y"), ("set-cookie", "b=2"), ("date", "then")),
            *(("transfer-encoding", "gzip"), ("connection", "keep-alive"), ("X", "z")),
        ],
    }
    with serving("asgi_raw") as (_, port):
        raw = exchange((HOST, port), script(head, body("hello")))
    head_lines, _, content = raw.partition(b"\r\n\r\n")
    assert head_lines.split(b"\r\n") == [
        *(b"HTTP/1.1 299 ", b"set-cookie: a=1", b"x: y", b"set-cookie: b=2", b"date: then"),
        *(b"x: z", b"Transfer-Encoding: chunked"),
    ]
    assert unchunk(content) == b"hello"


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (b"nonsense\r\n\r\n", [400]),
        (HELLO + b"nonsense\r\n\r\n", [200, 400]),
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", [400]),
        (
            b"GET / HTTP/1.1\r\nA: b\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            [400],
        ),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
        (b"CONNECT a:80 HTTP/1.1\r\n\r\n", [400]),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 100_000, [400]),
        (b"GET /" + b"a" * 100_000, [400]),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100_000, [400]),
        (
            script(start(), body("hello"), fields="Connection: close\r\n") + b"nonsense\r\n\r\n",
            [200],
        ),
        (
            script(start(), body("hello"), fields="Upgrade: a\r\nConnection: Upgrade\r\n") + b"\0",
            [200],
        ),
        (
            script(start(), fields="Upgrade: a\r\nConnection: Upgrade\r\nContent-Length: 1\r\n"),
            [400],
        ),
        (HELLO.replace(b"/script", b"http://a/script"), [200]),
        (b"GET / HTTP/1.1\r\n", []),
        (b"", []),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_malformed_request_is_answered_with_400(
    folder: Path, request_bytes: bytes, statuses: list[int]
) -> None:
    with serving("asgi_raw") as (_, port):
        raw = exchange((HOST, port), request_bytes)
    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", raw)] == statuses


@pytest.mark.parametrize("chunks", [b"x\r\n", b"1\r\naXX", b"1;" + b"a" * 100_000], ids=len)
def test_malformed_body_is_a_lost_client_for_the_application(folder: Path, chunks: bytes) -> None:
    with (
        serving("asgi_raw", FAULTS) as (process, port),
        socket.create_connection((HOST, port), PATIENCE) as sock,
    ):
        sock.sendall(b"POST /wait HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n")
        assert process.stdout is not None
        assert process.stdout.readline() == "http.request\n"
        sock.sendall(chunks)
        if chunks.startswith(b"1\r\na"):
            assert process.stdout.readline() == "http.request\n"
        assert process.stdout.readline() == "http.disconnect\n"


def test_malformed_body_is_answered_with_400_if_the_application_gives_up(folder: Path) -> None:
    with serving("asgi_raw", FAULTS) as (_, port):
        request = b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"
        [response] = split(exchange((HOST, port), request))
        assert response.status == 400
        # An application that does not want the body has answered, and no other answer may follow.
        request = script(start(), body("hello"), fields="Transfer-Encoding: chunked\r\n") + b"x\r\n"
        [response] = split(exchange((HOST, port), request))
        assert response.body == b"hello"

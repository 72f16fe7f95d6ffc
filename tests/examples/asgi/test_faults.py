"""asgi_server.py: faults of applications."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.asgi import FAULTS, HELLO, HOST, body, pathsend, script, serving, start, zerocopy
from tests.support.http import split
from tests.support.httpd import exchange, receive_head, slow_client
from tests.support.sockets import PATIENCE, receive_all

BEFORE = [
    ["raise"],
    ["cancel"],
    ["exit"],
    [],
    [start(), "raise"],
    [start()],
    [body("hello")],
    [start(), start(), body("hello")],
    [start(), {"type": "http.response.push"}],
    [start(103), body()],
    [start(x="a\r\nb: c"), body()],
    [start(content_length="four"), body("four")],
    [start(content_length="3"), body("four")],
    [start(content_length="5"), body("four")],
    [start(), {"type": "http.response.body", "body": 5}],
    [start(), pathsend(Path("/nowhere/file"))],
    [start(), pathsend(Path("/"))],
    [start(), zerocopy(offset=-1)],
]
AFTER = [
    [start(), body("hello", more=True), "raise"],
    [start(), body("hello", more=True), "cancel"],
    [start(), body("hello", more=True)],
    [start(content_length="6"), body("hello", more=True), body()],
    [start(content_length="6"), body("hello", more=True), body("hello", more=True)],
    [start(), body("hello", more=True), pathsend(Path("/etc/passwd"))],
    [start(), body("hello", more=True), start()],
]


@pytest.mark.parametrize("steps", BEFORE, ids=str)
def test_fault_before_the_first_byte_is_answered_with_500(folder: Path, steps: list[Any]) -> None:
    with serving("asgi_raw", FAULTS) as (process, port):
        [response] = split(exchange((HOST, port), script(*steps)))
        assert (response.status, response.body) == (500, b"")
        [response] = split(exchange((HOST, port), HELLO))
        assert response.body == b"hello"
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert process.stderr.read()


@pytest.mark.parametrize("steps", AFTER, ids=str)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_fault_after_the_first_byte_resets_the_connection(
    folder: Path, steps: list[Any], version: str
) -> None:
    """In HTTP/1.0 nothing else shows that the response is truncated."""
    with (
        serving("asgi_raw", FAULTS) as (_, port),
        socket.create_connection((HOST, port), PATIENCE) as sock,
    ):
        sock.sendall(script(*steps, version=version) + HELLO)
        receive_head(sock)
        content = bytearray()
        with pytest.raises(ConnectionResetError):  # noqa: PT012 # what was sent comes first
            while True:
                content += sock.recv(1000)
        assert content.strip(b"5\r\n") == b"hello"
        [response] = split(exchange((HOST, port), HELLO))
        assert response.body == b"hello"


def test_part_whose_sending_is_cancelled_ends_the_response(folder: Path) -> None:
    """Nothing may follow a truncated part."""
    with serving("asgi_raw", FAULTS) as (process, port), slow_client((HOST, port)) as sock:
        sock.sendall(script(start(), "give up", body("hello")))
        receive_head(sock)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("call ended: OSError(")
        assert b"hello" not in receive_all(sock)


@pytest.mark.parametrize(
    "steps", [[body("more")], [body("more", more=True), start()], ["raise"], ["cancel"], ["exit"]]
)
@pytest.mark.parametrize("head", [start(), start(content_length="5")], ids=["chunked", "length"])
def test_connection_goes_on_whatever_a_call_does_after_its_response(
    folder: Path, head: dict[str, Any], steps: list[Any]
) -> None:
    request = script(head, body("hello"), *steps)
    with serving("asgi_raw", FAULTS) as (_, port):
        responses = split(exchange((HOST, port), request * 3))
    assert [response.body for response in responses] == [b"hello"] * 3

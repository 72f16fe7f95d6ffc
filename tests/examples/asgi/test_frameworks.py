"""asgi_server.py under Starlette and FastAPI, read by curl and httpx."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.examples import line_count
from tests.support.httpd import receive_head
from tests.support.sockets import PATIENCE, receive

if TYPE_CHECKING:
    from collections.abc import Iterator

from tests.support.asgi import HOST, LARGE, PROGRAM, SMALL, client, serving, serving_impatiently


@pytest.mark.parametrize("program", [PROGRAM, "asgi_calls.py"])
def test_asgi_server_has_fewer_than_200_lines(program: str) -> None:
    assert line_count(program) < 200


def test_asgi_server_sends_curl_two_files_of_starlette_over_one_connection(
    curl: str, folder: Path
) -> None:
    with serving("asgi_starlette") as (_, port):
        result = subprocess.run(
            [
                *(curl, "-sS", "--write-out", "%{stderr}%{num_connects} %{http_code}\n"),
                *(f"http://{HOST}:{port}/file/large", f"http://{HOST}:{port}/index.html"),
            ],
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
    assert result.stdout == LARGE + b"<h1>home</h1>"
    assert result.stderr == b"1 200\n0 200\n"


def test_asgi_server_runs_what_starlette_does_with_files(folder: Path) -> None:
    with serving("asgi_starlette") as (_, port), client(port) as http:
        assert http.get("/file/large").content == LARGE
        part = http.get("/file/large", headers={"Range": "bytes=1000000-6999999"})
        assert (part.status_code, part.content) == (206, LARGE[1_000_000:7_000_000])
        assert part.headers["Content-Range"] == "bytes 1000000-6999999/8000000"
        parts = http.get("/file/small", headers={"Range": "bytes=0-99,5000-5099"})
        assert SMALL[:100] in parts.content
        assert SMALL[5000:5100] in parts.content
        assert len(parts.content) == int(parts.headers["Content-Length"])
        whole = http.get("/small")
        assert whole.content == SMALL
        unchanged = http.get("/small", headers={"If-None-Match": whole.headers["ETag"]})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        head = http.head("/file/large")
        assert (head.status_code, head.headers["Content-Length"]) == (200, "8000000")
        assert http.get("/none").status_code == 404
        assert http.get("/small", headers={"Range": "bytes=99999-"}).status_code == 416


def test_asgi_server_runs_what_starlette_does_with_streams(folder: Path) -> None:
    def parts() -> Iterator[bytes]:
        for index in range(0, len(LARGE), 100_000):
            yield LARGE[index : index + 100_000]

    with serving("asgi_starlette") as (_, port), client(port) as http:
        lines = http.get("/stream", params={"count": 1000})
        assert lines.headers["Transfer-Encoding"] == "chunked"
        assert lines.text == "".join(f"{number}\n" for number in range(1000))
        for content in (LARGE, parts()):
            answer = http.put("/upload?a=%C3%A4", content=content).json()
            assert answer == {
                "size": len(LARGE),
                "host": HOST,
                "url": f"http://{HOST}:{port}/upload?a=%C3%A4",
            }


def test_asgi_server_takes_the_next_request_while_a_background_task_runs(folder: Path) -> None:
    """The task never ends, so the server is stopped while it runs."""
    with (
        serving_impatiently(folder, "asgi_starlette") as (_, port),
        socket.create_connection((HOST, port), PATIENCE) as sock,
    ):
        for _ in range(2):
            sock.sendall(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n")
            receive_head(sock)
            assert receive(sock, 10) == b'"answered"'


def test_asgi_server_runs_a_fastapi_application() -> None:
    with serving("asgi_fastapi") as (_, port), client(port) as http:
        item = {"name": "tea", "price": 2.5}
        assert http.post("/items/7", json=item).json() == {"number": 7, **item}
        assert http.post("/items/x", json=item).status_code == 422
        assert http.put("/upload", content=LARGE).json() == len(LARGE)
        assert http.get("/self").content == Path("tests/support/asgi_fastapi.py").read_bytes()
        assert http.get("/openapi.json").json()["info"]["title"] == "FastAPI"

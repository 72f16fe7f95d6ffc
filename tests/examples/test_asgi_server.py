"""asgi_server.py: applications of Starlette, FastAPI and by hand, read by curl and httpx."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from ast import literal_eval
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest

from tests.support.asgi_raw import PART, PARTS, part
from tests.support.batches import data
from tests.support.examples import EXAMPLES, line_count, no_free_descriptors, running
from tests.support.http import split, unchunk
from tests.support.httpd import children, exchange, read_all, receive_head, slow_client
from tests.support.programs import environment, tool
from tests.support.sockets import PATIENCE, is_silent, receive, receive_all

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = "asgi_server.py"
HOST = "127.0.0.1"
# More than the buffers of a connection's two sockets hold.
LARGE = data(8_000_000)
SMALL = data(10_000)
FAULTS = r"(?s).*"
# What the server reports of a call whose client has left.
LOST = r"call ended: (OSError|ConnectionResetError|BrokenPipeError|ClientDisconnect)\(.*\)"


@contextmanager
def serving(app: str, reports: str = LOST) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the server for an application; give its process and its port."""
    with running(PROGRAM, f"tests.support.{app}:app", "--port", "0", reports=reports, status=0) as (
        process,
        port,
    ):
        yield process, port


# Serves with little time for the exchanges that are in progress when the server is stopped.
IMPATIENT = """
import asyncio, pkgutil, sys
sys.path[:1] = {examples!r}, ""  # the tests are in the current directory
import asgi_server
asgi_server.GRACE = 0.1
asyncio.run(asgi_server.serve(pkgutil.resolve_name(sys.argv[1]), 0))
"""


@contextmanager
def serving_impatiently(
    folder: Path, app: str, reports: str = r"call ended: CancelledError\(.*\)"
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the server as above; it gives exchanges a tenth of a second when it is stopped."""
    program = folder / "impatient.py"
    program.write_text(IMPATIENT.format(examples=str(EXAMPLES)))
    argument = f"tests.support.{app}:app"
    with running(str(program), argument, reports=reports, status=0) as (process, port):
        yield process, port


@pytest.fixture(name="folder")
def make_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the files that the applications serve."""
    (tmp_path / "large").write_bytes(LARGE)
    (tmp_path / "small").write_bytes(SMALL)
    (tmp_path / "index.html").write_bytes(b"<h1>home</h1>")
    monkeypatch.setenv("ASGI_FOLDER", str(tmp_path))
    monkeypatch.setenv("ASGI_FILE", str(tmp_path / "small"))
    return tmp_path


@contextmanager
def client(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{HOST}:{port}", trust_env=False, timeout=PATIENCE) as http:
        yield http


def script(*steps: object, method: str = "GET", fields: str = "", version: str = "1.1") -> bytes:
    """Return a request for a call that sends messages, or does what a word says."""
    query = quote(json.dumps(steps))
    return f"{method} /script?{query} HTTP/{version}\r\nHost: a\r\n{fields}\r\n".encode()


def start(status: int = 200, **fields: str) -> dict[str, Any]:
    headers = [(name.replace("_", "-"), value) for name, value in fields.items()]
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(content: str = "", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


def zerocopy(**keys: int) -> dict[str, Any]:
    return {"type": "http.response.zerocopysend", "file": "", **keys}


def pathsend(path: Path) -> dict[str, Any]:
    return {"type": "http.response.pathsend", "path": str(path)}


HELLO = script(start(), body("hello"))


@pytest.mark.parametrize("program", [PROGRAM, "asgi_calls.py"])
def test_asgi_server_has_fewer_than_200_lines(program: str) -> None:
    assert line_count(program) < 200


# Starlette and FastAPI


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


# Files


@pytest.mark.parametrize("size", [0, 1, 10_000, 8_000_000])
def test_pathsend_sends_a_file_as_it_is(tmp_path: Path, folder: Path, size: int) -> None:
    """Without a Content-Length it is one chunk, and in HTTP/1.0 its end is the connection's."""
    path = tmp_path / "file"
    path.write_bytes(data(size))
    counted = start(content_length=str(size))
    with serving("asgi_raw") as (_, port):
        first, second, head, third = split(
            exchange(
                (HOST, port),
                script(counted, pathsend(path))
                + script(start(), pathsend(path))
                + script(counted, pathsend(path), method="HEAD")
                + script(counted, pathsend(path)),
            ),
            *("GET", "GET", "HEAD"),
        )
        old = exchange((HOST, port), script(start(), pathsend(path), version="1.0"))
    assert first.body == second.body == third.body == old.partition(b"\r\n\r\n")[2] == data(size)
    assert second.headers["Transfer-Encoding"] == "chunked"
    assert head.headers["Content-Length"] == str(size)


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        # The application has read 10 bytes of the file object, and offset does not move it.
        ([{}], SMALL[10:]),
        ([{"count": 50}], SMALL[10:60]),
        ([{"offset": 5}], SMALL[5:]),
        ([{"offset": 5, "count": 7}], SMALL[5:12]),
        ([{"offset": 0, "count": 0}], b""),
        ([{"count": 100}, {"count": 100}, {"offset": 0, "count": 3}, {"count": 4}], None),
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [False, True], ids=["chunked", "Content-Length"])
def test_zerocopysend_sends_a_range_from_its_offset_or_the_position_of_the_file(
    folder: Path,
    ranges: list[dict[str, int]],
    expected: bytes | None,
    length: bool,  # noqa: FBT001
) -> None:
    if expected is None:
        expected = SMALL[10:210] + SMALL[:3] + SMALL[210:214]
    steps = [zerocopy(**keys, more_body=True) for keys in ranges]
    head = start(content_length=str(len(expected) + 6)) if length else start()
    request = script(head, body("<<<", more=True), *steps, body(">>>"))
    with serving("asgi_raw") as (_, port):
        [response] = split(exchange((HOST, port), request))
    assert response.body == b"<<<" + expected + b">>>"


def test_large_file_goes_by_sendfile_and_is_never_read(tmp_path: Path, folder: Path) -> None:
    """A look at single bytes finds out that it is cached. A small response is one system call."""
    strace = tool("strace", "strace")
    log = tmp_path / "log"
    calls = "trace=/^(read|pread|send)"
    program = (sys.executable, EXAMPLES / PROGRAM, "tests.support.asgi_raw:app", "--port", "0")
    length = start(content_length=str(len(LARGE)))
    with subprocess.Popen(
        [strace, "-s", "500", "-qo", log, "-e", calls, *program],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        [server] = children(process.pid)
        requests = script(length, pathsend(folder / "large")) + HELLO
        large, small = split(exchange((HOST, port), requests))
        os.kill(server, signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert (large.body, small.body) == (LARGE, b"hello")
    [answers] = re.findall(r"^send.*HTTP/1.1 200(?s:.*)", log.read_text(), re.MULTILINE)
    head, *others = answers.splitlines()
    assert "MSG_MORE" in head
    ends = [number for number, line in enumerate(others) if line.startswith("sendfile")]
    files = [others[number] for number in ends if "EAGAIN" not in others[number]]
    assert sum(int(line.rpartition("= ")[2]) for line in files) == len(LARGE)
    for line in others[: ends[-1]]:
        assert re.match(r"sendfile|preadv2\(.*iov_len=1}", line)
    [small_call] = [line for line in others if line.startswith("send") and "HTTP/1.1" in line]
    assert "hello" in small_call


@pytest.mark.parametrize("call", ["pathsend", "zerocopysend"])
def test_connection_ends_early_if_a_file_became_shorter(folder: Path, call: str) -> None:
    head = start(content_length="8000000")
    step = pathsend(folder / "large") if call == "pathsend" else zerocopy(offset=0, count=8_000_000)
    os.environ["ASGI_FILE"] = str(folder / "large")
    with (
        serving("asgi_raw", r"call ended: TruncatedFileError\(.*\)") as (_, port),
        slow_client((HOST, port)) as sock,
    ):
        sock.sendall(script(head, step) + HELLO)
        receive_head(sock)
        os.truncate(folder / "large", 7_000_000)
        content = receive_all(sock)
        assert content == LARGE[: len(content)]
        assert len(content) <= 7_000_000
        [response] = split(exchange((HOST, port), HELLO))
        assert response.body == b"hello"


def test_fifo_is_no_file_to_send_and_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    with serving("asgi_raw", FAULTS) as (_, port):
        [response] = split(exchange((HOST, port), script(start(), pathsend(folder / "fifo"))))
        assert response.status == 500


def test_file_is_closed_when_it_is_sent_and_when_its_client_has_left(folder: Path) -> None:
    def is_open(pid: int) -> bool:
        links = []
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # a socket that was closed meanwhile
                links.append(link.readlink())
        return folder / "large" in links

    request = script(start(), pathsend(folder / "large"))
    with serving("asgi_raw") as (process, port):
        exchange((HOST, port), request * 5)
        assert not is_open(process.pid)
        with slow_client((HOST, port)) as sock:
            sock.sendall(request)
            receive_head(sock)
            assert is_open(process.pid)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("call ended: ")
        assert not is_open(process.pid)


# The protocol


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


# Bodies of requests


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


# Faults of applications

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


# Clients that leave, and clients that do not read


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
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
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


# Lifespan and the end


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

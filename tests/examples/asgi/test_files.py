"""asgi_server.py: files that an application sends by pathsend and zerocopysend."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.asgi import (
    FAULTS,
    HELLO,
    HOST,
    LARGE,
    PROGRAM,
    SMALL,
    body,
    pathsend,
    script,
    serving,
    start,
    zerocopy,
)
from tests.support.batches import data
from tests.support.examples import EXAMPLES
from tests.support.http import split
from tests.support.httpd import children, exchange, receive_head, slow_client
from tests.support.programs import environment, open_files, tool
from tests.support.sockets import PATIENCE, receive_all

if TYPE_CHECKING:
    from pathlib import Path


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
    request = script(start(), pathsend(folder / "large"))
    with serving("asgi_raw") as (process, port):
        exchange((HOST, port), request * 5)
        assert folder / "large" not in open_files(process.pid)
        with slow_client((HOST, port)) as sock:
            sock.sendall(request)
            receive_head(sock)
            assert folder / "large" in open_files(process.pid)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("call ended: ")
        assert folder / "large" not in open_files(process.pid)

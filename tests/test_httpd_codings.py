"""Content codings of the file server: who gets which one, and that it can be decoded."""

from __future__ import annotations

import gzip
import http.client
import random
import select
import socket
import subprocess
from selectors import EVENT_WRITE
from typing import TYPE_CHECKING

import pytest

from tests.helpers import PATIENCE, data, stream_pair
from tests.httpd_helpers import (
    exchange,
    make_site,  # noqa: F401
    receive_head,
    serving,
    split,
    tool,
)

# isort: split
import outlet
from codings import AVAILABLE, MIN_CODED, choose, compressible
from connection import Connection
from files import Files
from settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.httpd_helpers import Address


def prose(nbytes: int, seed: int = 0) -> bytes:
    """Return text that can be compressed, but not by much."""
    words = [random.Random(i).randbytes(3).hex().encode() for i in range(500)]
    rng = random.Random(seed)
    text = b" ".join(rng.choices(words, k=nbytes // 7 + 1))
    return text[:nbytes]


@pytest.fixture(name="address")
def serve_text(site: Path) -> Iterator[Address]:
    """Serve the folder, with texts in it."""
    for size in (0, MIN_CODED - 1, MIN_CODED, 100_000, 3 << 20):
        (site / f"{size}.txt").write_bytes(prose(size, seed=size))
    (site / "100000.png").write_bytes(prose(100_000))
    (site / "100000.svg").write_bytes(prose(100_000))
    with serving(site) as (_, address):
        yield address


def fetch(
    address: Address, target: str, accept: str | None, method: str = "GET"
) -> tuple[http.client.HTTPMessage, bytes]:
    client = http.client.HTTPConnection(*address, timeout=PATIENCE)
    client.putrequest(method, target, skip_accept_encoding=True)
    if accept is not None:
        client.putheader("Accept-Encoding", accept)
    client.endheaders()
    response = client.getresponse()
    body = response.read()
    client.close()
    return response.headers, body


@pytest.mark.parametrize("size", [MIN_CODED, 100_000, 3 << 20])
def test_gzip(address: Address, size: int) -> None:
    """A text is coded for who takes that, in chunks, and is what it was when it is decoded."""
    headers, body = fetch(address, f"/{size}.txt", "gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert headers["Transfer-Encoding"] == "chunked"
    assert "Content-Length" not in headers
    assert headers["Vary"] == "Accept-Encoding"
    assert len(body) < size
    assert gzip.decompress(body) == prose(size, seed=size)


def test_slow_is_not_stuck(site: Path) -> None:
    """Who takes a little of what the codings hold puts the deadline off, who takes nothing not."""
    (site / "text.txt").write_bytes(prose(3 << 20))
    files = Files(site)
    with stream_pair("tcp4", buffers=4096) as (ours, theirs):
        ours.setblocking(False)
        connection = Connection(ours, files, Settings(timeout=10.0), 10.0)
        theirs.sendall(b"GET /text.txt HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n")
        now = 0.0
        while select.select([], [ours], [], 0)[1]:
            assert connection.step(now) == EVENT_WRITE
        for _ in range(30):
            now += 9.0
            while not select.select([], [ours], [], 0)[1]:
                theirs.recv(1000)
            assert connection.step(now) == EVENT_WRITE
            assert connection.deadline == now + 10.0
        while select.select([], [ours], [], 0)[1]:
            assert connection.step(now) == EVENT_WRITE
        assert connection.step(now + 5.0) == EVENT_WRITE
        assert connection.deadline == now + 10.0
        connection.close()
    files.close()


@pytest.mark.parametrize("size", [MIN_CODED, 100_000, 3 << 20])
def test_zstd(address: Address, size: int) -> None:
    """Zstandard is preferred where it is there."""
    zstandard = pytest.importorskip("zstandard", reason="install zstandard")
    headers, body = fetch(address, f"/{size}.txt", "gzip, deflate, br, zstd")
    assert headers["Content-Encoding"] == "zstd"
    assert len(body) < size
    assert zstandard.ZstdDecompressor().decompressobj().decompress(body) == prose(size, seed=size)


@pytest.mark.parametrize(
    ("target", "varies"),
    [
        ("/0.txt", False),
        (f"/{MIN_CODED - 1}.txt", False),
        (f"/{MIN_CODED}.txt", True),
        ("/100000.svg", True),
        ("/100000.png", False),
        ("/65536", False),
    ],
)
def test_what_is_coded(address: Address, target: str, *, varies: bool) -> None:
    """Small files and types that don't become smaller go as they are, to everybody."""
    for accept in ("gzip", None):
        headers, _ = fetch(address, target, accept)
        assert headers["Vary"] == ("Accept-Encoding" if varies else None)
        assert headers["Content-Encoding"] == ("gzip" if varies and accept else None)


@pytest.mark.parametrize("accept", ["gzip", "identity", "zstd", None])
def test_head(address: Address, accept: str | None) -> None:
    """HEAD has the same headers as GET."""
    got = {**fetch(address, "/100000.txt", accept)[0], "Date": ""}
    headers, body = fetch(address, "/100000.txt", accept, "HEAD")
    assert {**headers, "Date": ""} == got
    assert body == b""


def test_http_1_0(address: Address) -> None:
    """HTTP/1.0 knows no chunks: it gets the text as it is, with its length."""
    answer = exchange(address, b"GET /100000.txt HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nContent-Length: 100000\r\n" in head
    assert b"\r\nVary: Accept-Encoding\r\n" in head
    assert b"Content-Encoding" not in head
    assert body == prose(100_000, seed=100_000)


def test_one_after_another(address: Address) -> None:
    """Coded and other responses keep their order on one connection, also when all are asked for."""
    plan = [("/100000.txt", "gzip"), ("/1", "gzip"), ("/1024.txt", "gzip"), ("/65536", "gzip")] * 10
    requests = [
        f"GET {target} HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {accept}\r\n\r\n".encode()
        for target, accept in plan
    ]
    answers = split(exchange(address, b"".join(requests)))
    for (target, _), answer in zip(plan, answers, strict=True):
        size, _, text = target[1:].partition(".")
        if text:
            assert gzip.decompress(answer.body) == prose(int(size), seed=int(size))
        else:
            assert answer.body == data(int(size), seed=int(size))


def test_slow_reader(address: Address) -> None:
    """What is coded comes whole to a client with small buffers."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(PATIENCE)
        sock.connect(address)
        sock.sendall(b"GET /3145728.txt HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n")
        response = http.client.HTTPResponse(sock)
        response.begin()
        assert gzip.decompress(response.read()) == prose(3 << 20, seed=3 << 20)


def test_bounded(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """While slow clients hold all the compressors there may be, others get what needs none."""
    monkeypatch.setattr(outlet, "MAX_CODERS", 2)
    request = b"GET /3145728.txt HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n"
    for _ in "12":
        with socket.socket() as one, socket.socket() as two:
            for sock in (one, two):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.connect(address)
                sock.sendall(request)
                assert b"\r\nContent-Encoding: gzip\r\n" in receive_head(sock)
            headers, body = fetch(address, "/3145728.txt", "gzip")
            assert "Content-Encoding" not in headers
            assert body == prose(3 << 20, seed=3 << 20)
        assert any(
            fetch(address, "/3145728.txt", "gzip")[0]["Content-Encoding"] for _ in range(1000)
        )


def test_curl(address: Address, tmp_path: Path) -> None:
    """Curl decodes a hundred responses that come over one connection."""
    curl = tool("curl", "curl")
    url = f"http://{address[0]}:{address[1]}/100000.txt"
    options = ["-fsS", "--compressed", "-w", "%{size_download} %{num_connects}\n"]
    result = subprocess.run(
        [curl, *options, *[url, f"-o{tmp_path}/text"] * 100],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    sizes, connects = zip(*map(str.split, result.stdout.splitlines()), strict=True)
    assert connects == ("1", *["0"] * 99)
    assert max(map(int, sizes)) < 60_000
    assert (tmp_path / "text").read_bytes() == prose(100_000, seed=100_000)


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        (b"", ""),
        (b"gzip", "gzip"),
        (b"GZip", "gzip"),
        (b"br", "br"),
        (b"gzip, zstd", "zstd"),
        (b"gzip;q=1.0, zstd;q=0.9", "gzip"),
        (b"gzip ; Q=0.5 , zstd;q=0.1", "gzip"),
        (b"gzip;q=0", ""),
        (b"gzip; q = 0", ""),
        (b"x-gzip", "gzip"),
        (b"gzip;q=0.001", "gzip"),
        (b"gzip;q=0.5, identity", ""),
        (b"gzip;q=0.5, identity;q=0.5", "gzip"),
        (b"*", "br"),
        (b"*;q=0", ""),
        (b"br;q=0, *", "zstd"),
        (b"identity;q=1, *;q=0", ""),
        (b"gzip;q=nan", ""),
        (b"gzip;q=2", ""),
        (b"gzip;q=x, zstd;q=-1", ""),
        (b"gzip;q=", ""),
        (b",,gzip,", "gzip"),
        (b"x-unknown, deflate", ""),
        (b"\xff\xfe;q=\xff", ""),
    ],
)
def test_choice(accept: bytes, coding: str) -> None:
    """The greatest weight wins, then our preference; what is malformed is not wanted."""
    assert choose(accept, ("br", "zstd", "gzip")) == coding


def test_available() -> None:
    """Gzip can always be made."""
    assert "gzip" in AVAILABLE


@pytest.mark.parametrize(
    ("media_type", "result"),
    [
        ("text/html; charset=utf-8", True),
        ("application/json", True),
        ("application/ld+json", True),
        ("image/svg+xml", True),
        ("text/javascript", True),
        ("image/png", False),
        ("application/gzip", False),
        ("application/octet-stream", False),
    ],
)
def test_compressible(media_type: str, *, result: bool) -> None:
    """Text becomes smaller, pictures and archives don't."""
    assert compressible(media_type) is result

"""The static file server, by raw sockets, by clients that are not ours, and piece by piece."""

from __future__ import annotations

import errno
import filecmp
import http.client
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers import PATIENCE, clog, data, fd_count, receive, receive_all, stream_pair
from tests.httpd_helpers import (
    HTTPD,
    MODIFIED,
    SECRET,
    browse,
    exchange,
    fills_until_reset,
    get,
    make_site,  # noqa: F401
    program,
    read_all,
    receive_head,
    run_httpd,
    serve_site,  # noqa: F401
    serving,
    split,
    tag_of,
    tool,
)

# isort: split
import responses
from connection import (
    LINGER_BYTES,
    MAX_ANSWERS,
    MAX_FIELDS,
    MAX_HEAD,
    MAX_TARGET,
    READ_SIZE,
    Connection,
)
from files import FRESH, MAX_OPEN, Files, OpenFile, content_type, split_path, split_target
from server import listen, url
from settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.httpd_helpers import Address


# Files


@pytest.mark.parametrize("size", [0, 1, 1024, 32768, 65536, 1 << 20])
def test_get_and_head(site: Path, address: Address, size: int) -> None:
    """GET gives a file's bytes, HEAD the same headers and no body, on one connection."""
    client = http.client.HTTPConnection(*address, timeout=PATIENCE)
    headers = []
    for method in ("GET", "HEAD", "GET"):
        client.request(method, f"/{size}")
        response = client.getresponse()
        assert response.status == 200
        assert response.read() == (data(size, seed=size) if method == "GET" else b"")
        headers.append({**response.headers, "Date": ""})
        date = parsedate_to_datetime(response.headers["Date"])
        assert date.timestamp() > MODIFIED
    assert headers[0] == headers[1] == headers[2]
    assert headers[0] == {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(size),
        "Accept-Ranges": "bytes",
        "ETag": tag_of(site / str(size)),
        "Last-Modified": formatdate(MODIFIED, usegmt=True),
        "Cache-Control": "no-cache",
        "Date": "",
    }
    client.close()


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/", b"<h1>home</h1>"),
        ("/index.html", b"<h1>home</h1>"),
        ("/sub/", b"<h1>sub</h1>"),
        ("//sub///index.html", b"<h1>sub</h1>"),
        ("/sub/deep/file?query=/../../x", b"deep"),
        ("/sub/%64eep/file", b"deep"),
        ("/a%20b%C3%BC%3f.txt", b"odd"),
        ("http://elsewhere/sub/deep/file", b"deep"),
        ("HTTPS://elsewhere", b"<h1>home</h1>"),
        ("http://elsewhere?x=/y", b"<h1>home</h1>"),
    ],
)
def test_targets(address: Address, target: str, body: bytes) -> None:
    """A target is decoded, its query is left aside, a directory gives its index."""
    response = get(address, target)
    assert (response.status, response.body) == (200, body)


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/sub", "/sub/"),
        ("/bare", "/bare/"),
        ("//sub", "/sub/"),
        ("///sub//deep", "/sub/deep/"),
        ("/sub?a=b&c", "/sub/?a=b&c"),
        ("http://elsewhere/sub", "/sub/"),
        ("/%5cevil.example", "/%5Cevil.example/"),
        ("/with%0d%0aline", "/with%0D%0Aline/"),
    ],
)
def test_redirect(site: Path, address: Address, target: str, location: str) -> None:
    """A directory's own address ends in a slash, and it is always on this server."""
    (site / "\\evil.example").mkdir()
    (site / "with\r\nline").mkdir()
    response = get(address, target)
    assert (response.status, response.headers["Location"]) == (301, location)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/nothing", 404),
        ("/sub/nothing/more", 404),
        ("/1024/", 404),
        ("/1024/more", 404),
        ("/" + "x" * 300, 404),
        ("/.hidden", 404),
        ("/.git/config", 404),
        ("/%2egit/config", 404),
        ("/../secret", 400),
        ("/sub/../../secret", 400),
        ("/sub/../1024", 400),
        ("/./1024", 400),
        ("/%2e%2e/secret", 400),
        ("/.%2E/secret", 400),
        ("/..%2fsecret", 400),
        ("/sub%2f..%2f..%2fsecret", 400),
        ("/%2e%2e%5csecret", 404),
        ("/..%5csecret", 404),
        ("/%252e%252e/secret", 404),
        ("/%c0%ae%c0%ae/secret", 404),
        ("/1024%00.html", 400),
        ("/%00", 400),
        ("http://x/../secret", 400),
        ("file:///etc/passwd", 400),
        ("http:///1024", 400),
        ("http://:80/1024", 400),
        ("http://me@x/1024", 400),
        ("*", 400),
    ],
)
def test_no_way_out(address: Address, target: str, status: int) -> None:
    """What is no name of a file in the folder is refused, and the connection goes on."""
    refused, served = split(
        exchange(
            address,
            f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\nGET /1 HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        )
    )
    assert refused.status == status
    assert SECRET not in refused.body
    assert served.body == data(1, seed=1)


def test_absolute_path(site: Path, address: Address) -> None:
    """An absolute file name behind the host's slash stays below the folder."""
    assert get(address, f"/{site.parent}/secret").status == 404
    assert get(address, f"/%2f{site.parent}/secret").status == 400


@pytest.mark.parametrize(
    ("link", "result"),
    [
        ("1024", 200),
        ("./sub/../1024", 200),
        ("{site}/1024", 200),
        ("sub/back", 200),
        ("chain", 200),
        ("sub/absolute", 200),
        ("../secret", 403),
        ("{site}/../secret", 403),
        ("{site}-not/secret", 403),
        ("sub/../../secret", 403),
        ("/etc/passwd", 403),
        ("..", 403),
        ("sub", 301),
        (".", 301),
        ("{site}", 301),
        ("nothing", 404),
        ("1024/", 404),
        ("1024/.", 404),
        ("1024/../1024", 404),
        ("sub/", 301),
        (".hidden", 200),
        ("link", 404),
        ("pipe", 403),
    ],
)
def test_links(site: Path, address: Address, link: str, result: int) -> None:
    """A link is followed as long as it stays inside, step by step; a pipe is not opened.

    Where it leads to may be hidden: then it is the link that shows it.
    """
    os.mkfifo(site / "pipe")
    (site / "sub" / "back").symlink_to("deep/../../1024")
    (site / "sub" / "absolute").symlink_to(site / "1024")
    (site / "chain").symlink_to("sub/back")
    (site / "link").symlink_to(link.format(site=site))
    response = get(address, "/link")
    assert response.status == result
    if result == 200:
        assert response.body == (SECRET if link == ".hidden" else data(1024, seed=1024))


def test_well_known(site: Path, address: Address) -> None:
    """What is to be found at a well-known place is not hidden (RFC 8615)."""
    (site / ".well-known").mkdir()
    (site / ".well-known" / "security.txt").write_bytes(b"Contact")
    (site / ".well-known" / ".more").write_bytes(SECRET)
    assert get(address, "/.well-known/security.txt").body == b"Contact"
    assert get(address, "/.well-known/.more").status == 404
    assert get(address, "/.well-knowns").status == 404


def test_directory_link_outside(site: Path, address: Address) -> None:
    """Nothing is reached through a directory that is a link to the outside."""
    (site / "out").symlink_to("..")
    assert get(address, "/out/secret").status == 403


def test_folder_given_by_a_link(site: Path, tmp_path: Path) -> None:
    """The folder itself may be named by a link."""
    (tmp_path / "alias").symlink_to(site)
    (site / "link").symlink_to(site / "1")
    with serving(tmp_path / "alias") as (_, address):
        assert get(address, "/link").body == data(1, seed=1)


@pytest.mark.parametrize("moment", range(5))
@pytest.mark.parametrize("changed", ["sub", "sub/deep", "sub/deep/file", "pipe"])
def test_race(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, moment: int
) -> None:
    """A tree that changes before any step of the way never leads outside, nor into a pipe."""
    outside = tmp_path / "outside"
    (outside / "sub" / "deep").mkdir(parents=True)
    (outside / "sub" / "deep" / "file").write_bytes(SECRET)
    real_open = os.open
    calls = 0

    def opening(*args: Any, **kwargs: Any) -> int:
        nonlocal calls
        if calls == moment:
            name = site / ("sub/deep/file" if changed == "pipe" else changed)
            name.rename(site / "old")
            if changed == "pipe":
                os.mkfifo(name)
            else:
                name.symlink_to(outside / changed)
        calls += 1
        return real_open(*args, **kwargs)

    files = Files(site)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", opening)
        try:
            file = files.get(b"/sub/deep/file", 0.0)
        except OSError as exc:
            assert exc.errno in {errno.EACCES, errno.ELOOP}  # noqa: PT017
            assert moment < 4
        else:
            assert os.pread(file.fd, 100, 0) == b"deep"
            assert moment > 0
    assert calls <= 6, "four to open it, two to look beside it"
    files.close()


@pytest.mark.parametrize(
    ("number", "status"),
    [(errno.EACCES, 403), (errno.EMFILE, 503), (errno.ENFILE, 503), (errno.EIO, 500)],
)
def test_failures(
    address: Address, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    """What the file system refuses becomes a status, and the server lives on."""

    def failing(*args: object, **kwargs: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        assert get(address, "/1").status == status
    assert get(address, "/1").status == 200


# The cache


def test_cache(site: Path) -> None:
    """For a while the same open file is given, then what the name stands for by then."""
    files = Files(site)
    first = files.get(b"/1", 0.0)
    (site / "new").write_bytes(b"another")
    (site / "new").replace(site / "1")
    assert files.get(b"/1?query", FRESH / 2) is files.get(b"/1", FRESH / 2) is first
    second = files.get(b"/1", FRESH)
    assert (first.size, second.size) == (1, 7)
    assert os.pread(first.fd, 10, 0) == data(1, seed=1)
    files.close()


def test_cache_knows_each_file_once(site: Path) -> None:
    """However a path is written, it leads to the same open file, and to no other file."""
    (site / "a b").write_bytes(b"blank")
    (site / "a%20b").write_bytes(b"percent")
    files = Files(site)
    for ways in (
        (b"/1", b"//1", b"/%31", b"/1?x", b"http://x//1"),
        (b"/bare/", b"/bare//", b"/b%61re/?"),
        (b"/a%20b", b"/%61%20b", b"/a b"),
        (b"/a%2520b", b"/a%2520b?"),
        (b"/", b"//", b"http://x", b"http://x?/1"),
    ):
        assert len({id(files.get(way, 0.0)) for way in ways}) == 1
        assert len({id(files.get(way, 0.0)) for way in reversed(ways)}) == 1
    assert len(files) == 5
    assert os.pread(files.get(b"/a b", 0.0).fd, 10, 0) == b"blank"
    assert os.pread(files.get(b"/a%2520b", 0.0).fd, 10, 0) == b"percent"
    files.close()


def test_cache_is_bounded(site: Path, no_leaks: None) -> None:
    """Only so many files stay open, those that nobody sends are closed when their time is over."""
    for i in range(MAX_OPEN + 50):
        (site / f"f{i}").touch()
    before = fd_count()
    files = Files(site)
    kept = files.get(b"/1024", 0.0)
    for i in range(MAX_OPEN + 50):
        files.get(b"/f%d" % i, 0.5)
    assert len(files) == MAX_OPEN
    assert fd_count() == before + 1 + MAX_OPEN + 1
    assert os.pread(kept.fd, 2000, 0) == data(1024, seed=1024), "it left the cache, and is open"
    files.sweep(0.5 + FRESH / 2)
    assert len(files) == MAX_OPEN
    files.sweep(0.5 + FRESH)
    assert len(files) == 0
    assert fd_count() == before + 2
    files.close()


def test_cache_gives_way(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When no descriptor is to be had, those of the cache are given back."""
    files = Files(site)
    files.get(b"/1", 0.0)

    real_open = os.open

    def opening(*args: Any, **kwargs: Any) -> int:
        if len(files):
            raise OSError(errno.EMFILE, "")
        return real_open(*args, **kwargs)

    monkeypatch.setattr(os, "open", opening)
    assert files.get(b"/1024", 0.0).size == 1024
    assert len(files) == 1
    files.close()


def test_truncated_file(site: Path) -> None:
    """A file that shrinks while it is sent ends the connection: no other bytes take its place."""
    with serving(site) as (_, address), socket.create_connection(address, PATIENCE) as sock:
        request = b"GET /1048576 HTTP/1.1\r\nHost: x\r\n\r\n"
        sock.sendall(request)
        receive_head(sock)
        receive(sock, 1 << 20)
        os.truncate(site / "1048576", 1000)
        sock.sendall(request)
        rest = read_all(sock)
        assert rest.endswith(data(1 << 20, seed=1 << 20)[:1000])
        assert f"Content-Length: {1 << 20}\r\n".encode() in rest


# Requests


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE"])
def test_methods(address: Address, method: str) -> None:
    """What isn't GET, HEAD or OPTIONS is not allowed, and the answer says what is."""
    response = get(address, "/1", method)
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    assert "Connection" not in response.headers


HOST = b"Host: x\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET 1024 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST * 2 + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: me@x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: \xe9\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x:::[[\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: x/y\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b" folded: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: \0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\n" + HOST + b"\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length:\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\nx", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x1\r\n\r\nx", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 1, 1\r\n\r\nx", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 9" + b"9" * 30 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\n"
            + HOST
            + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            b"GET / HTTP/1.1\r\n"
            + HOST
            + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding:\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked, chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: \x0bchunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding : chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"\rTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: x\rTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: x\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"no colon\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
        (b"GET / HTTP/0.9\r\n\r\n", 505),
        (b"GET /" + b"x" * MAX_TARGET + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"x" * (MAX_HEAD + 2 * READ_SIZE), 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: x\r\n" * (MAX_FIELDS + 1) + b"\r\n", 431),
    ],
)
def test_bad_requests(address: Address, request_bytes: bytes, status: int) -> None:
    """What is before a bad request is answered, then it is refused, and nothing behind it heard."""
    good = b"HEAD /1 HTTP/1.1\r\n" + HOST + b"\r\n"
    first, refused = split(exchange(address, good + request_bytes + good), "HEAD")
    assert first.status == 200
    assert refused.status == status
    assert refused.headers["Connection"] == "close"


@pytest.mark.parametrize(
    ("rest", "status"),
    [
        (b"/" + b"x" * MAX_TARGET + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"/ HTTP/1.1\r\n" + HOST + b"A: " + b"x" * (MAX_HEAD + 2 * READ_SIZE), 431),
        (b"/ HTTP/1.1\r\n" + HOST + b"A: x\r\n" * (MAX_FIELDS + 1) + b"\r\n", 431),
        (b"/ HTTP/1.1\r\n" + HOST + b"A: \0\r\n\r\n", 400),
        (b"/ HTTP/1.1\r\n\r\n", 400),
        (b"/ HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    ],
)
def test_bad_head_requests(address: Address, rest: bytes, status: int) -> None:
    """What refuses a request has no content if its method was HEAD, however early it was refused.

    The HEAD before it is another matter.
    """
    good = b"HEAD /1 HTTP/1.1\r\n" + HOST + b"\r\n"
    _, refused = split(exchange(address, good + b"HEAD " + rest), "HEAD", "HEAD")
    assert refused.status == status
    _, refused = split(exchange(address, good + b"BREW " + rest), "HEAD")
    assert refused.body == b"400 Bad Request\n"


def test_longest_target(address: Address) -> None:
    """A target of the greatest length, and a head of the greatest size, are no reason to refuse."""
    target = "/1?" + "x" * (MAX_TARGET - 3)
    assert get(address, target).status == 200
    fields = (b"A: " + b"x" * (MAX_HEAD // 99 - 10) + b"\r\n") * 99
    [response] = split(exchange(address, b"GET /1 HTTP/1.1\r\n" + HOST + fields + b"\r\n"))
    assert response.status == 200


@pytest.mark.parametrize(
    ("version", "header", "answer", "goes_on"),
    [
        ("1.1", b"", None, True),
        ("1.1", b"Connection: close\r\n", "close", False),
        ("1.0", b"", "close", False),
        ("1.0", b"Connection: keep-alive\r\n", "keep-alive", True),
        ("1.1", b"Content-Length: 0\r\n", None, True),
        # More digits than int() takes from a string.
        ("1.1", b"Content-Length: " + b"0" * 4301 + b"\r\n", None, True),
        ("1.1", b"Content-Length: 5\r\n", "close", False),
        ("1.1", b"Transfer-Encoding: chunked\r\n", "close", False),
        ("1.1", b"Connection: Upgrade\r\nUpgrade: h2c\r\n", "close", False),
    ],
)
def test_keep_alive(
    address: Address, version: str, header: bytes, answer: str | None, *, goes_on: bool
) -> None:
    """The connection goes on if both sides can, and if nothing but a request can come next."""
    request = b"GET /1 HTTP/%s\r\n" % version.encode() + HOST + header + b"\r\n"
    responses = split(exchange(address, request + request))
    assert len(responses) == 1 + goes_on
    assert {response.status for response in responses} == {200}
    assert responses[0].headers.get("Connection") == answer


@pytest.mark.parametrize("host", ["", "x", "a-b.example:80", "[2001:db8::1]:8000", "%C3%A9"])
def test_host(address: Address, host: str) -> None:
    """A host may be any name or address, or even none; it makes no difference."""
    request = f"GET /1 HTTP/1.1\r\nHost: {host} \r\n\r\n".encode()
    assert [response.status for response in split(exchange(address, request))] == [200]


def test_upload(address: Address) -> None:
    """A client that sends all of a large body first still gets the answer that refuses it."""
    client = http.client.HTTPConnection(*address, timeout=PATIENCE)
    client.request("POST", "/1", body=bytes(LINGER_BYTES // 2))
    response = client.getresponse()
    assert response.status == 405
    assert response.read() == b"405 Method Not Allowed\n"
    client.close()


def test_endless_upload(address: Address) -> None:
    """A body without an end is not read without end."""
    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(b"POST /1 HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999\r\n\r\n")
        assert fills_until_reset(sock)


def test_garbage(site: Path) -> None:
    """Requests cut, spoiled and mixed at random raise nothing, and get one of the statuses."""
    rng = random.Random(1)
    wholes = [
        b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HEAD /sub HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"POST /%2e%2e HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"GET http://a/b?c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    parts = [b"\r\n", b"\0", b":", b" ", b"/", b"..", b"%00", b",", b"9" * 20, b"chunked", b"\xff"]
    files = Files(site)
    statuses = set()
    for _ in range(3000):
        raw = bytearray().join(rng.choices(wholes, k=3))
        for _ in range(rng.randrange(4)):
            place = rng.randrange(len(raw))
            raw[place : place + rng.randrange(3)] = rng.choice(parts)
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            connection = Connection(ours, files, Settings(), 60.0)
            theirs.sendall(raw)
            assert connection.step(0.0)
            connection.close()
            statuses |= set(re.findall(rb"HTTP/1\.1 (\d+)", receive_all(theirs)))
    files.close()
    assert {b"200", b"301", b"400", b"405"} <= statuses
    assert statuses <= {b"200", b"301", b"400", b"403", b"404", b"405", b"505"}


# Pipelining and partial transfers


def test_byte_by_byte(site: Path) -> None:
    """Requests may come in pieces of any size."""
    raw = b"GET /sub/deep/file HTTP/1.1\r\nHost: x\r\n\r\nHEAD /1 HTTP/1.1\r\nHost: x\r\n\r\n"
    files = Files(site)
    for size in (1, 2, 3, 7):
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            connection = Connection(ours, files, Settings(), 60.0)
            for i in range(0, len(raw), size):
                theirs.sendall(raw[i : i + size])
                assert connection.step(0.0)
            connection.close()
            deep, one = split(read_all(theirs), "GET", "HEAD")
            assert deep.body == b"deep"
            assert one.headers["Content-Length"] == "1"
    files.close()


def test_pipelining(address: Address) -> None:
    """Any number of requests may be under way; the answers come in their order."""
    targets = ("/1", "/nothing", "/32768", "/sub", "/0", "/1024", "/65536", "/")
    requests = [f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for target in targets]
    expected = [exchange(address, request) for request in requests]
    with socket.create_connection(address, PATIENCE) as sock:
        sender = Thread(target=sock.sendall, args=(b"".join(requests) * 100,))
        sender.start()
        received = split(receive(sock, sum(map(len, expected)) * 100))
        sender.join(PATIENCE)
    bodies = [answer.body for raw in expected for answer in split(raw)]
    assert [answer.body for answer in received] == bodies * 100


def test_slow_reader(site: Path) -> None:
    """From a client that doesn't read nothing is read, and little is held for it."""
    with serving(site) as (server, address), socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(address)
        request = b"GET /1048576 HTTP/1.1\r\nHost: x\r\n\r\n"
        sock.sendall(request * 1000)
        receive(sock, 12)
        # Others are served meanwhile, so the server has done all it can for this one.
        assert get(address, "/1").status == 200
        [connection] = [each for each in server._connections if each._sending]
        assert 0 < connection._batch.bytesleft < (MAX_ANSWERS + 1) << 20
        assert 0 < len(connection._requests) < READ_SIZE / len(request)


def test_slow_reader_gets_everything(site: Path) -> None:
    """What goes out in many pieces, through small buffers, comes whole and in order."""
    targets = [b"/1048576", b"/1024", b"/65536", b"/nothing", b"/1048576"]
    with serving(site) as (_, address), socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(address)
        for target in targets:
            sock.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % target)
        sock.shutdown(socket.SHUT_WR)
        bodies = [response.body for response in split(read_all(sock))]
    sizes = (1 << 20, 1024, 65536, None, 1 << 20)
    assert bodies == [
        b"404 Not Found\n" if size is None else data(size, seed=size) for size in sizes
    ]


# Timeouts and limits


def test_idle_client(site: Path, no_leaks: None) -> None:
    """Who sends nothing, or never the end of a request, is left."""
    with serving(site, timeout=0.01) as (_, address), ExitStack() as stack:
        clients = []
        for sent in (b"", b"\r\n", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost"):
            sock = stack.enter_context(socket.create_connection(address, PATIENCE))
            sock.sendall(sent)
            clients.append(sock)
        for sock in clients:
            assert sock.recv(1) == b""


def test_deadline(site: Path) -> None:
    """What is taken puts the deadline off, what only comes in does not."""
    files = Files(site)
    with stream_pair("tcp4", buffers=4096) as (ours, theirs):
        ours.setblocking(False)
        connection = Connection(ours, files, Settings(timeout=10.0), 10.0)
        theirs.sendall(b"GET /1048576 HTTP/1.1\r\n")
        assert connection.step(5.0) == EVENT_READ
        assert connection.deadline == 10.0
        theirs.sendall(b"Host: x\r\n\r\n")
        assert connection.step(6.0) == EVENT_WRITE
        assert connection.deadline == 16.0
        clog(ours)
        assert connection.step(7.0) == EVENT_WRITE
        assert connection.deadline == 16.0
        connection.close()
    files.close()


def test_stuck_client(site: Path) -> None:
    """Who asks and takes nothing of the answer is left."""
    with serving(site, timeout=0.01) as (_, address), socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(PATIENCE)
        sock.connect(address)
        # More requests than are read before the first answers: so the end is a reset, which shows
        # here without any reading.
        assert fills_until_reset(sock, b"GET /1048576 HTTP/1.1\r\nHost: x\r\n\r\n")


def test_no_descriptors(site: Path) -> None:
    """When no connection can be had, those that wait are accepted later."""
    refused = Event()

    def accept(self: socket.socket) -> None:
        refused.set()
        raise OSError(errno.EMFILE, "")

    with serving(site) as (_, address):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket.socket, "accept", accept)
            sock = socket.create_connection(address, PATIENCE)
            assert refused.wait(PATIENCE)
        with sock:
            sock.sendall(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert receive(sock, 12) == b"HTTP/1.1 200"


def test_nodelay(site: Path) -> None:
    """Nagle's algorithm is off."""
    with serving(site) as (server, address), socket.create_connection(address) as sock:
        sock.sendall(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
        receive(sock, 10)
        [connection] = server._connections
        assert connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# The pieces


def test_head_end() -> None:
    """The same bytes serve for a second; an HTTP/1.0 client is told when the connection stays."""
    assert responses.head_end(MODIFIED, "1.1", True) is responses.head_end(MODIFIED, "1.1", True)
    date = b"Date: Tue, 14 Nov 2023 22:13:20 GMT\r\n"
    assert responses.head_end(MODIFIED, "1.1", True) == date + b"\r\n"
    assert responses.head_end(MODIFIED, "1.0", True) == date + b"Connection: keep-alive\r\n\r\n"
    assert responses.head_end(MODIFIED, "1.0", False) == date + b"Connection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("modified", "said"), [(5.7, 5), (-(2.0**40), 0), (2.0**40, MODIFIED), (MODIFIED, MODIFIED)]
)
def test_last_modified(modified: float, said: int) -> None:
    """Nothing was modified in the future, and odd times make no error."""
    file = OpenFile(os.open(os.devnull, os.O_RDONLY), 7, modified, "text/css", 0.0, "tag")
    head = responses.file_head(file, "", MODIFIED).decode()
    assert f"Last-Modified: {formatdate(said, usegmt=True)}\r\n" in head


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        (b"index.html", "text/html; charset=utf-8"),
        (b"A.TXT", "text/plain; charset=utf-8"),
        (b"photo.jpeg", "image/jpeg"),
        (b"picture.svg", "image/svg+xml"),
        (b"data.json", "application/json"),
        (b"archive.tar.gz", "application/gzip"),
        (b"archive.tar.bz2", "application/x-bzip2"),
        (b"unknown", "application/octet-stream"),
        (b"unknown.xyzzy", "application/octet-stream"),
        (b"\xff\xfe.css", "text/css; charset=utf-8"),
        (b"data:text/html,x", "application/octet-stream"),
        (b"http:x.png", "image/png"),
    ],
)
def test_content_type(name: bytes, media_type: str) -> None:
    """A type comes from the end of a name; what is compressed is named as such."""
    assert content_type(name) == media_type


def test_paths() -> None:
    """A target is split before it is decoded: an encoded separator separates nothing."""
    assert split_target(b"/a%3Fb?c?d") == (b"/a%3Fb", b"?c?d")
    assert split_path(b"/a%3Fb//c%20d/") == [b"a?b", b"c d"]
    with pytest.raises(OSError, match="Invalid"):
        split_path(b"/a%2Fb")


# The program


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("inherited", [signal.SIG_DFL, signal.SIG_IGN])
def test_signals(site: Path, number: int, inherited: signal.Handlers) -> None:
    """SIGINT and SIGTERM stop it with exit status 0, also while connections are open."""
    with program(
        site,
        preexec_fn=lambda: signal.signal(number, inherited),
        stderr=subprocess.PIPE,
    ) as (process, address):
        host, port = address.removeprefix("http://").rstrip("/").split(":")
        with socket.create_connection((host, int(port)), PATIENCE) as sock:
            sock.sendall(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert receive(sock, 12) == b"HTTP/1.1 200"
            process.send_signal(number)
            assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_bad_directory(site: Path) -> None:
    """A directory that is none is told in one line."""
    for path, reason in (("nothing", "No such file or directory"), ("1", "Not a directory")):
        result = run_httpd(site / path)
        assert result.returncode == 2
        assert result.stderr == f"httpd: {site / path}: {reason}\n"


def test_no_permission() -> None:
    """A directory that may not be entered is told at once, not to each client."""
    with TemporaryDirectory() as outer:  # pytest's own folders are closed to others
        Path(outer).chmod(0o755)
        (Path(outer) / "inner").mkdir(mode=0o600)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                Files(Path(outer) / "inner")
        finally:
            if is_root:
                os.seteuid(0)


@pytest.mark.parametrize("output", [">/dev/full", "| true", ">&-"])
def test_odd_output(site: Path, output: str) -> None:
    """An output that takes nothing is no reason not to serve."""
    folder = os.fsencode(site / "bare") + b"\xff"
    Path(os.fsdecode(folder)).mkdir()
    command = f'"$@" {output}'
    with subprocess.Popen(
        ["sh", "-c", command, "sh", sys.executable, HTTPD, folder, "--unix", site / "socket"],
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            while client.connect_ex(os.fspath(site / "socket")):
                assert process.poll() is None
                os.sched_yield()
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert receive(client, 12) == b"HTTP/1.1 200"
        os.killpg(process.pid, signal.SIGTERM)
        assert process.stderr is not None
        assert process.stderr.read().replace(b"Terminated\n", b"") == b""


def test_odd_name(site: Path) -> None:
    """A directory's name is said as it is, whatever bytes it has."""
    folder = os.fsencode(site / "bare") + b"\xff"
    Path(os.fsdecode(folder)).mkdir()
    with subprocess.Popen(
        [sys.executable, HTTPD, folder, "--port", "0"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"Serving " + folder + b" on http://")
        process.terminate()


def test_nothing_to_log_to(site: Path) -> None:
    """A log that nobody could get is told in one line."""
    result = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", sys.executable, HTTPD, site, "--log", "common"],
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
        check=False,
    )
    assert (result.returncode, result.stderr) == (2, b"httpd: --log: there is no output\n")


@pytest.mark.parametrize("arguments", [("",), (".", "--unix", "")])
def test_no_path(arguments: tuple[str, ...]) -> None:
    """Nothing is no path."""
    result = run_httpd(*arguments)
    assert result.returncode == 2
    assert result.stderr.endswith(": a path is needed\n")


def test_few_descriptors(site: Path) -> None:
    """The soft limit of descriptors is no limit; the hard one is told in one line."""

    def limit(soft: int, hard: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    with program(site, "--workers", "30", preexec_fn=limit(20, 200)) as (_, url):
        assert url
    for few in (5, 6):
        result = run_httpd(site, "--port", "0", preexec_fn=limit(few, few))
        assert result.returncode == 1
        assert result.stderr == "httpd: 127.0.0.1 port 0: Too many open files\n"


def test_missing_package(site: Path, tmp_path: Path) -> None:
    """A package that is missing is told in one line, with what installs it."""
    (tmp_path / "httptools.py").write_text("raise ModuleNotFoundError('none', name='httptools')")
    result = run_httpd(site, env={**os.environ, "PYTHONPATH": os.fspath(tmp_path)})
    assert result.returncode == 1
    assert result.stderr == "httpd: httptools is missing: pip install 'iobatch[httpd]'\n"


def test_bad_addresses(site: Path) -> None:
    """A port in use, or an address that can't be had, is told in one line."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = str(sock.getsockname()[1])
        result = run_httpd(site, "--port", port)
        assert result.returncode == 1
        assert result.stderr == f"httpd: 127.0.0.1 port {port}: Address already in use\n"
    for option, place in (("--bind", "192.0.2.1"), ("--bind", "x" * 64), ("--unix", "/x" * 100)):
        result = run_httpd(site, option, place, "--port", "0")
        assert result.returncode == 1
        assert re.fullmatch(rf"httpd: {place}( port 0)?: \w+ [\w ]+\n", result.stderr)
    result = run_httpd(site, "--port", "65536")
    assert result.returncode == 2
    assert "from 0 to 65535" in result.stderr


def test_help() -> None:
    """--help names all there is."""
    result = run_httpd("--help")
    assert result.returncode == 0
    for word in ("directory", "--bind", "--port"):
        assert word in result.stdout


def test_url() -> None:
    """The address that is said is one to open."""
    for host, said in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "localhost")):
        with listen(host, 0) as sock:
            assert url(sock, secure=False) == f"http://{said}:{sock.getsockname()[1]}/"


# Clients that are not ours


def test_curl(site: Path, tmp_path: Path) -> None:
    """Curl fetches files of all sizes as they are, over one connection."""
    curl = tool("curl", "curl")
    (site / "104857600").write_bytes(data(100 << 20))
    names = ("0", "1", "1024", "32768", "65536", "1048576", "104857600")
    with serving(site) as (_, (host, port)):
        result = subprocess.run(
            [curl, "-fsSv", "--remote-name-all", *(f"http://{host}:{port}/{n}" for n in names)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    assert result.stderr.count("Re-using existing connection") == len(names) - 1
    for name in names:
        assert filecmp.cmp(tmp_path / name, site / name, shallow=False)


def test_sparse_file(site: Path) -> None:
    """A file of more than 4 GiB has its length, and goes by in pieces as any other."""
    with (site / "big").open("wb") as file:
        file.truncate(5 << 30)
    with serving(site) as (_, address), socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        assert f"Content-Length: {5 << 30}\r\n".encode() in receive_head(sock)
        assert receive(sock, 10 << 20) == bytes(10 << 20)


def test_curl_upload(address: Address, tmp_path: Path) -> None:
    """curl, which waits for 100 (Continue) before it sends a large body, is answered without."""
    curl = tool("curl", "curl")
    (tmp_path / "body").write_bytes(bytes(4 << 20))
    result = subprocess.run(
        [curl, "-sS", "-T", tmp_path / "body", f"http://{address[0]}:{address[1]}/1"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert result.stdout == "405 Method Not Allowed\n"


def test_wrk(address: Address) -> None:
    """Wrk with 64 connections sees no error."""
    wrk = tool("wrk", "wrk")
    result = subprocess.run(
        [wrk, "-t1", "-c64", "-d1s", f"http://{address[0]}:{address[1]}/1024"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert re.search(r"[1-9]\d* requests in", result.stdout)
    assert "errors" not in result.stdout
    assert "Non-2xx" not in result.stdout


def test_system_calls(site: Path, tmp_path: Path) -> None:
    """A small file on a connection that stays takes one wait, one recv, and one send.

    One that is not so small takes one pread more, and a large one is not read.
    """
    strace = tool("strace", "strace")
    log = tmp_path / "log"
    with subprocess.Popen(
        [strace, "-qo", log, sys.executable, HTTPD, site, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            for size in (1024,) * 5 + (32768,) * 5 + (1 << 20,) * 5:
                sock.sendall(f"GET /{size} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                receive_head(sock)
                receive(sock, size)
        os.kill(int(children), signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    # What was called between a wait that brought a request and the next wait.
    turns = [
        tuple(call.partition("(")[0] for call in turn.splitlines()[1:])
        for turn in log.read_text().split("epoll_wait(")
        if "GET /" in turn
    ]
    assert len(turns) == 15
    # The first opens the file, and when its time is over so does another.
    assert turns[:5].count(("recvfrom", "sendto")) >= 3
    assert turns[5:10].count(("recvfrom", "pread64", "sendmsg")) >= 3
    # Where the socket doesn't take all of a large file at once, the rest waits for another turn.
    large = turns[10:]
    at_once = large.count(("recvfrom", "sendto", "sendfile"))
    assert at_once + large.count(("recvfrom", "sendto", "sendfile", "epoll_ctl")) >= 3


PAGE = """<!DOCTYPE html>
<html><head><link rel="stylesheet" href="style.css"><title>Page</title></head><body>
<img src="red.svg"><img src="sub/blue%20square.svg">
<script src="script.js"></script></body></html>
"""
SQUARE = """<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64">
<rect width="64" height="64" fill="{}"/></svg>
"""


def test_chromium(site: Path, tmp_path: Path) -> None:
    """A browser loads a page with its style sheet, script and images, all of their types."""
    (site / "index.html").write_text(PAGE)
    (site / "style.css").write_text("body { margin-left: 7px }")
    (site / "script.js").write_text(
        """addEventListener("load", () => {
            const widths = Array.from(document.images, image => image.naturalWidth);
            const margin = getComputedStyle(document.body).marginLeft;
            document.body.textContent = "seen: " + widths + " " + margin;
        });"""
    )
    (site / "red.svg").write_text(SQUARE.format("red"))
    (site / "sub" / "blue square.svg").write_text(SQUARE.format("blue"))
    with serving(site) as (_, (host, port)):
        page = browse(f"http://{host}:{port}/", tmp_path / "profile")
    assert "seen: 64,64 7px" in page

"""Content codings made on the fly: which client gets which, and how."""

from __future__ import annotations

import gzip
import http.client
import socket
import zlib
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd import sink
from iobatch.httpd.codings import (
    AVAILABLE,
    CODINGS,
    GZIP_LEVEL,
    MIN_CODED,
    accepts_identity,
    choose,
    compressible,
)
from tests.support.batches import data
from tests.support.filters import ZSTD
from tests.support.http import split
from tests.support.httpd import Address, exchange, prose, receive_head, serving, slow_client
from tests.support.programs import run_python
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(name="address")
def serve_text(site: Path) -> Iterator[Address]:
    """Serve the directory, with text files in it; the largest does not fit into a send buffer."""
    for size in (0, MIN_CODED - 1, MIN_CODED, 100_000, 3 << 20):
        (site / f"{size}.txt").write_bytes(prose(size, seed=size))
    (site / "100000.png").write_bytes(prose(100_000))
    (site / "100000.svg").write_bytes(prose(100_000))
    with serving(site) as (server, address):
        # Accepted sockets inherit it.
        server._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        yield address


def fetch(
    address: Address, target: str, accept: str | None, method: str = "GET"
) -> tuple[http.client.HTTPMessage, bytes]:
    """Return the header fields and the body, as it was sent, of a response."""
    client = http.client.HTTPConnection(*address, timeout=PATIENCE)
    client.putrequest(method, target, skip_accept_encoding=True)
    if accept is not None:
        client.putheader("Accept-Encoding", accept)
    client.endheaders()
    response = client.getresponse()
    body = response.read()
    client.close()
    return response.headers, body


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
        (b"x-gzip, gzip;q=0", "gzip"),
        (b"gzip;q=0.5, x-gzip;q=0", "gzip"),
        (b"x-br, x-*, x-identity", ""),
        (b"gzip;q=0.001", "gzip"),
        (b"gzip;q=0.5, identity", ""),
        (b"gzip;q=0.5, identity;q=0.5", "gzip"),
        (b"*", "br"),
        (b"*;q=0", ""),
        (b"br;q=0, *", "zstd"),
        (b"identity;q=1, *;q=0", ""),
        (b"gzip;q=nan", ""),
        (b"gzip;q=2", ""),
        (b"gzip;q=1e-1", ""),
        (b"gzip;q=0_1", ""),
        (b"gzip;q=.5", ""),
        (b"gzip;q=1.001", ""),
        (b"gzip;q=1.000", "gzip"),
        (b"gzip;q=x, zstd;q=-1", ""),
        (b"gzip;q=", ""),
        (b"gzip;q=\x1d1", ""),
        (b"gzip\xa0, br\x85", ""),
        (b"\tgzip\t;\tq =\t1\t", "gzip"),
        (b",,gzip,", "gzip"),
        (b"gzip;q=0.5, gzip;q=0", "gzip"),
        (b"gzip;level=1", "gzip"),
        (b"gzip;level=1;q=0", ""),
        (b"x-unknown, deflate", ""),
        (b"\xff\xfe;q=\xff", ""),
    ],
)
def test_coding_of_the_greatest_weight_is_chosen_and_among_equals_the_first(
    accept: bytes, coding: str
) -> None:
    """An invalid weight is 0."""
    assert choose(accept, ("br", "zstd", "gzip")) == coding


@pytest.mark.parametrize(
    ("accept", "result"),
    [
        (b"", True),
        (b"gzip", True),
        (b"identity;q=0.1", True),
        (b"identity;q=0", False),
        (b"*;q=0", False),
        (b"*;q=0, identity", True),
        (b"*, identity;q=0", False),
    ],
)
def test_identity_is_accepted_unless_it_or_everything_else_is_refused(
    accept: bytes, *, result: bool
) -> None:
    """Source: RFC 9110, section 12.5.3."""
    assert accepts_identity(accept) is result


def test_gzip_is_always_available() -> None:
    assert "gzip" in AVAILABLE


def test_without_optional_modules_only_gzip_is_made_on_the_fly() -> None:
    """None in sys.modules makes an import fail as that of a missing module does."""
    result = run_python(
        f"import sys; sys.modules[{ZSTD!r}] = sys.modules['isal'] = None\n"
        "from iobatch.httpd.codings import CODINGS\n"
        "print(*CODINGS, type(CODINGS['gzip']()).__module__)"
    )
    assert (result.stdout, result.stderr) == ("gzip zlib\n", "")


def test_gzip_is_made_by_isal_and_has_about_the_size_that_zlib_makes() -> None:
    isal_zlib = pytest.importorskip("isal.isal_zlib", reason="install isal")
    coder = CODINGS["gzip"]()
    assert type(coder) is type(isal_zlib.compressobj())
    text = prose(1 << 20)
    coded = bytes(coder.compress(text)) + bytes(coder.flush())
    assert gzip.decompress(coded) == text
    assert len(coded) < 1.1 * len(zlib.compress(text, GZIP_LEVEL))


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
def test_text_is_compressible_and_pictures_and_archives_are_not(
    media_type: str, *, result: bool
) -> None:
    assert compressible(media_type) is result


@pytest.mark.parametrize("size", [MIN_CODED, 100_000, 3 << 20])
def test_text_in_gzip_is_sent_in_chunks_and_decodes_to_the_file(
    address: Address, size: int
) -> None:
    headers, body = fetch(address, f"/{size}.txt", "gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert headers["Transfer-Encoding"] == "chunked"
    assert "Content-Length" not in headers
    assert headers["Vary"] == "Accept-Encoding"
    assert len(body) < size
    assert gzip.decompress(body) == prose(size, seed=size)


@pytest.mark.parametrize("size", [MIN_CODED, 100_000, 3 << 20])
def test_zstandard_is_preferred_and_decodes_to_the_file(address: Address, size: int) -> None:
    zstd = pytest.importorskip(ZSTD, reason=f"install {ZSTD}")
    headers, body = fetch(address, f"/{size}.txt", "gzip, deflate, br, zstd")
    assert headers["Content-Encoding"] == "zstd"
    assert len(body) < size
    assert zstd.decompress(body) == prose(size, seed=size)


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
def test_only_large_files_of_compressible_types_are_coded_and_vary(
    address: Address, target: str, *, varies: bool
) -> None:
    for accept in ("gzip", None):
        headers, _ = fetch(address, target, accept)
        assert headers["Vary"] == ("Accept-Encoding" if varies else None)
        assert headers["Content-Encoding"] == ("gzip" if varies and accept else None)


@pytest.mark.parametrize("accept", ["gzip", "identity", "zstd", None])
def test_head_has_the_same_fields_as_get_in_each_coding(
    address: Address, accept: str | None
) -> None:
    got = {**fetch(address, "/100000.txt", accept)[0], "Date": ""}
    headers, body = fetch(address, "/100000.txt", accept, "HEAD")
    assert {**headers, "Date": ""} == got
    assert body == b""


def test_http_1_0_gets_the_uncoded_file_with_its_length(address: Address) -> None:
    """HTTP/1.0 has no chunked coding."""
    answer = exchange(address, b"GET /100000.txt HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nContent-Length: 100000\r\n" in head
    assert b"\r\nVary: Accept-Encoding\r\n" in head
    assert b"Content-Encoding" not in head
    assert body == prose(100_000, seed=100_000)


def test_coded_and_other_pipelined_responses_keep_their_order(address: Address) -> None:
    targets = ["/100000.txt", "/1", "/1024.txt", "/65536"] * 10
    requests = [
        f"GET {target} HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n".encode()
        for target in targets
    ]
    answers = split(exchange(address, b"".join(requests)))
    for target, answer in zip(targets, answers, strict=True):
        size, _, text = target[1:].partition(".")
        if text:
            assert gzip.decompress(answer.body) == prose(int(size), seed=int(size))
        else:
            assert answer.body == data(int(size), seed=int(size))


def test_client_with_small_buffers_gets_the_whole_coded_body(address: Address) -> None:
    with slow_client(address) as sock:
        sock.sendall(b"GET /3145728.txt HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n")
        response = http.client.HTTPResponse(sock)
        response.begin()
        assert gzip.decompress(response.read()) == prose(3 << 20, seed=3 << 20)


def is_coded_and_forgotten(address: Address) -> bool:
    """Return whether a response is coded, and no compressor is in use after the next response.

    The client can read the last byte of a response before the server has dropped its compressor.
    """
    headers, _ = fetch(address, "/3145728.txt", "gzip")
    fetch(address, "/3145728.txt", "identity")
    return "Content-Encoding" in headers and not sink._coders


def test_responses_go_uncoded_while_slow_clients_hold_all_compressors(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "MAX_CODERS", 2)
    request = b"GET /3145728.txt HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n"
    for _ in "12":
        with slow_client(address) as one, slow_client(address) as two:
            for sock in (one, two):
                sock.sendall(request)
                assert b"\r\nContent-Encoding: gzip\r\n" in receive_head(sock)
            headers, body = fetch(address, "/3145728.txt", "gzip")
            assert "Content-Encoding" not in headers
            assert body == prose(3 << 20, seed=3 << 20)
        assert any(is_coded_and_forgotten(address) for _ in range(1000))

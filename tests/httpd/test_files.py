"""Files: whole, in their sizes and types, and the errors of the file system."""

from __future__ import annotations

import errno
import http.client
import os
import socket
from email.utils import formatdate, parsedate_to_datetime
from typing import TYPE_CHECKING

import pytest

from tests.support.batches import data
from tests.support.httpd import (
    LARGE,
    MODIFIED,
    SECRET,
    Address,
    etag_of,
    get,
    read_all,
    receive_head,
    serving,
)
from tests.support.sockets import PATIENCE, receive

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("size", [0, 1, 1024, 32768, 65536, 1 << 20])
def test_get_gives_the_file_and_head_the_same_fields(
    site: Path, address: Address, size: int
) -> None:
    """All responses come over one connection."""
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
        "ETag": etag_of(site / str(size)),
        "Last-Modified": formatdate(MODIFIED, usegmt=True),
        "Cache-Control": "no-cache",
        "Date": "",
    }
    client.close()


def test_file_of_more_than_4_gib_is_sent_in_pieces(site: Path) -> None:
    with (site / "big").open("wb") as file:
        file.truncate(5 << 30)
    with serving(site) as (_, address), socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        assert f"Content-Length: {5 << 30}\r\n".encode() in receive_head(sock)
        assert receive(sock, 10 << 20) == bytes(10 << 20)


def test_file_that_shrinks_while_sent_ends_the_connection(site: Path) -> None:
    """No other bytes take the place of the missing ones."""
    with serving(site) as (_, address), socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(LARGE)
        receive_head(sock)
        receive(sock, 1 << 20)
        os.truncate(site / "1048576", 1000)
        sock.sendall(LARGE)
        rest = read_all(sock)
        assert rest.endswith(data(1 << 20, seed=1 << 20)[:1000])
        assert f"Content-Length: {1 << 20}\r\n".encode() in rest


@pytest.mark.parametrize(
    ("number", "status"),
    [(errno.EACCES, 403), (errno.EMFILE, 503), (errno.ENFILE, 503), (errno.EIO, 500)],
)
def test_error_of_the_file_system_becomes_a_status(
    address: Address, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    """The next request is answered."""

    def failing(*args: object, **kwargs: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        assert get(address, "/1").status == status
    assert get(address, "/1").status == 200


def test_well_known_directory_is_served_though_it_begins_with_a_dot(
    site: Path, address: Address
) -> None:
    """Hidden names in it stay hidden. Source: RFC 8615."""
    (site / ".well-known").mkdir()
    (site / ".well-known" / "security.txt").write_bytes(b"Contact")
    (site / ".well-known" / ".more").write_bytes(SECRET)
    assert get(address, "/.well-known/security.txt").body == b"Contact"
    assert get(address, "/.well-known/.more").status == 404
    assert get(address, "/.well-knowns").status == 404


def test_file_that_grows_while_opened_has_the_size_that_it_had(
    site: Path, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread = os.pread

    def grow(fd: int, nbytes: int, offset: int) -> bytes:
        with (site / "1").open("ab") as file:
            file.write(b"more")
        return pread(fd, nbytes, offset)

    monkeypatch.setattr(os, "pread", grow)
    response = get(address, "/1")
    assert (response.headers["Content-Length"], response.body) == ("1", data(1, seed=1))

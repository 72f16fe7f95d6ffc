"""Files: whole, in their sizes and types, and the errors of the file system."""

from __future__ import annotations

import errno
import http.client
import io
import os
import socket
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path

import pytest

from iobatch.httpd import files
from tests.support.batches import data
from tests.support.httpd import (
    MODIFIED,
    SECRET,
    SMALL,
    Address,
    address_of,
    etag_of,
    get,
    program,
    read_all,
    receive_head,
    serving,
    slow_client,
)
from tests.support.sockets import PATIENCE, fd_count, receive


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
    with (site / "big").open("wb") as file:
        file.truncate(1 << 30)
    with serving(site) as (_, address), slow_client(address) as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" + SMALL)
        assert f"Content-Length: {1 << 30}\r\n".encode() in receive_head(sock)
        os.truncate(site / "big", 1000)
        assert not read_all(sock).strip(b"\0")


@pytest.mark.parametrize(
    ("before", "after"), [(10_000, 20_000), (20_000, 10_000), (10, 4096), (4096, 4096), (4096, 0)]
)
def test_file_rewritten_in_place_is_sent_as_it_is_at_the_next_request(
    site: Path, address: Address, before: int, after: int
) -> None:
    """So it is if its date is the old one."""
    file = site / "file"
    file.write_bytes(data(before, seed=1))
    os.utime(file, (MODIFIED, MODIFIED))
    first = get(address, "/file")
    assert first.body == data(before, seed=1)
    changed = file.stat().st_ctime_ns
    while file.stat().st_ctime_ns == changed:  # until the file system's clock ticks
        file.write_bytes(data(after, seed=2))
        os.utime(file, (MODIFIED, MODIFIED))
    second = get(address, "/file", If_None_Match=first.headers["ETag"])
    assert (second.status, second.body) == (200, data(after, seed=2))


@pytest.mark.parametrize("name", ["1", "65536"])
@pytest.mark.parametrize("moved", [False, True])
def test_file_that_is_gone_is_not_found_at_the_next_request(
    site: Path, address: Address, name: str, *, moved: bool
) -> None:
    assert get(address, f"/{name}").status == 200
    if moved:
        (site / name).rename(site / "new")
    else:
        (site / name).unlink()
    assert get(address, f"/{name}").status == 404


def test_directory_without_its_index_is_listed_at_the_next_request(
    site: Path, address: Address
) -> None:
    assert get(address, "/sub/").body == b"<h1>sub</h1>"
    (site / "sub" / "index.html").unlink()
    assert b"deep" in get(address, "/sub/").body


@pytest.mark.parametrize(
    "path", ["/proc/version", "/proc/self/environ", "/sys/devices/system/cpu/online"]
)
@pytest.mark.parametrize("kept", [4096, 100])
def test_file_that_reports_a_wrong_size_is_sent_to_its_end(
    monkeypatch: pytest.MonkeyPatch, path: str, kept: int
) -> None:
    """Files of procfs report no bytes, those of sysfs a page, which may have 64 KiB."""
    monkeypatch.setattr(files, "MAX_KEPT_CONTENT", kept)
    folder, _, name = path.rpartition("/")
    content = Path(path).read_bytes()
    assert Path(path).stat().st_size != len(content)
    with serving(Path(folder)) as (_, address):
        whole = get(address, f"/{name}")
        assert (whole.status, whole.body) == (200, content)
        assert whole.headers["Content-Length"] == str(len(content))
        assert "Last-Modified" not in whole.headers
        assert get(address, f"/{name}", Range="bytes=1-2").body == content[1:3]
        assert get(address, f"/{name}", If_None_Match=whole.headers["ETag"]).status == 304


@pytest.mark.parametrize(("excess", "status"), [(0, 200), (1, 500)])
def test_file_that_reports_a_wrong_size_is_refused_beyond_a_bound(
    monkeypatch: pytest.MonkeyPatch, excess: int, status: int
) -> None:
    """Such a file may have no end."""
    size = len(Path("/proc/version").read_bytes())
    monkeypatch.setattr(files, "MAX_UNSIZED_CONTENT", size - excess)
    with serving(Path("/proc")) as (_, address):
        assert get(address, "/version").status == status


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


def test_dot_files_option_serves_and_lists_hidden_names(site: Path) -> None:
    (site / "bare" / ".env").write_bytes(SECRET)
    for options, shown in (((), False), (("--dot-files",), True)):
        with program(site, *options) as (_, url):
            address = address_of(url)
            for target in ("/.hidden", "/.git/config", "/bare/.env"):
                assert (get(address, target).body == SECRET) is shown
            assert (get(address, "/.git").status == 301) is shown
            assert (b'href=".env"' in get(address, "/bare/").body) is shown


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


@pytest.mark.parametrize("call", range(4), ids=["root", "walk", "open", "file"])
def test_file_that_a_network_file_system_loses_leaves_no_descriptor_open(
    site: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    examine = os.fstat
    left = iter([True] * call)

    def lose(fd: int) -> os.stat_result:
        if next(left, False):
            return examine(fd)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    served = files.Files(site)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", lose)
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            served.open([b"1024"])


@pytest.mark.parametrize("name", ["write", "file_version"])
def test_content_in_memory_that_cannot_be_made_leaves_no_descriptor_open(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "scripted")

    class Full(io.FileIO):
        def write(self, _data: object) -> int:
            raise OSError(errno.ENOSPC, "scripted")

    if name == "write":
        monkeypatch.setattr(os, "fdopen", lambda fd, _mode, closefd: Full(fd, "w", closefd=closefd))
    else:
        monkeypatch.setattr(f"iobatch.httpd.files.{name}", fail)
    before = fd_count()
    with pytest.raises(OSError, match="scripted"):
        files.in_memory(b"content", "tag", "text/plain")
    assert fd_count() == before

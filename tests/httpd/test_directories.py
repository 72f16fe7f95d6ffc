"""Listings: made in slices between requests, once for all who wait, and shared by their readers."""

from __future__ import annotations

import errno
import gzip
import os
import socket
import weakref
from collections import Counter
from contextlib import ExitStack
from select import EPOLLIN, EPOLLOUT
from signal import SIGTERM
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from iobatch.httpd import directories
from iobatch.httpd.cache import FileCache
from iobatch.httpd.codings import AVAILABLE
from iobatch.httpd.connection import BUILDING, Connection
from iobatch.httpd.directories import FRESH, MAX_LISTINGS, MAX_PAGES, REUSE, SLICE
from iobatch.httpd.files import Files
from iobatch.httpd.settings import Settings
from tests.support.batches import data
from tests.support.http import split
from tests.support.httpd import (
    Address,
    exchange,
    get,
    listing_of,
    new_server,
    open_connection,
    receive_head,
    serving,
)
from tests.support.sockets import PATIENCE, fd_count, stream_pair

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LISTING = b"GET /bare/ HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(name="files")
def open_files(site: Path) -> Iterator[FileCache]:
    """Give the files of a directory, in which `bare` has 100 files."""
    for i in range(100):
        (site / "bare" / f"{i}").touch()
    files = FileCache(Files(site))
    yield files
    files.close()


class Clock:
    """The clock of the builds: each look at it takes a tenth of a slice."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.looks * SLICE / 10


@pytest.fixture(name="clock")
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock of the builds."""
    clock = Clock()
    monkeypatch.setattr(directories, "monotonic", clock)
    return clock


@pytest.fixture(name="reads")
def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that gains the path of each directory that is read."""
    reads: list[Any] = []
    read = directories.read_directory

    def read_directory(root: Any, names: Any) -> Any:
        reads.append(names)
        return read(root, names)

    monkeypatch.setattr(directories, "read_directory", read_directory)
    return reads


def test_server_answers_other_requests_while_a_listing_is_made(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = Event()
    read = directories.read_directory

    def read_slowly(root: Any, names: Any) -> Any:
        while not release.is_set():
            yield
        return (yield from read(root, names))

    monkeypatch.setattr(directories, "read_directory", read_slowly)
    statuses: list[int] = []
    with serving(site) as (_, address):
        threads = [
            Thread(target=lambda: statuses.append(get(address, "/bare/").status)) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for _ in range(20):
            assert get(address, "/1").body == data(1, seed=1)
        assert not statuses
        release.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert statuses == [200] * 3


def test_work_on_a_listing_ends_after_a_slice(files: FileCache, clock: Clock) -> None:
    """Each entry is read, merged and shown in a step, and a slice has 9 steps."""
    assert files.get(b"/bare/", 0.0) is None
    slices = 1
    while files.listings.build(0.0) is None:
        slices += 1
        looks = clock.looks
    assert 300 / 9 < slices < 330 / 9
    assert clock.looks - looks <= 11
    assert files.get(b"/bare/", 0.0) is not None


def test_small_directory_is_not_behind_a_large_one(
    files: FileCache, site: Path, clock: Clock
) -> None:
    (site / "sub" / "deep" / "inner").mkdir()
    for target in (b"/bare/", b"/sub/deep/"):
        assert files.get(target, 0.0) is None
    while files.listings.build(0.0) is None:
        pass
    assert files.get(b"/sub/deep/", 0.0) is not None
    assert files.get(b"/bare/", 0.0) is None


def test_requests_for_a_directory_share_one_reading_of_it(
    files: FileCache, reads: list[Any], clock: Clock
) -> None:
    for target in (b"/bare/", b"/bare//?x", b"/bare/?sort=-size", b"/bare/?page=2"):
        assert files.get(target, 0.0) is None
        assert len(files.listings.builds) == 1
    first = listing_of(files, b"/bare/", 0.0)
    assert files.get(b"/b%61re/", 0.0) is files.get(b"/bare//?page=1", 0.0) is first
    assert listing_of(files, b"/bare/?sort=-size", 0.0) is not first
    assert listing_of(files, b"/bare/?page=2", 0.0) is first, "the directory has one page"
    assert len(reads) == 1


def test_listing_is_used_again_for_a_second_or_a_multiple_of_the_time_that_it_took(
    files: FileCache, site: Path, reads: list[Any], clock: Clock
) -> None:
    listing_of(files, b"/bare/", 0.0)
    files.get(b"/bare/", FRESH * 0.99)
    assert len(reads) == 1
    for i in range(2000):
        (site / "bare" / f"more{i}").touch()
    clock.looks = 0
    listing_of(files, b"/bare/", FRESH)
    assert len(reads) == 2
    # The clock also goes on once between two slices, which is a tenth.
    reuse = REUSE * clock()
    assert reuse > 2 * FRESH
    for now, is_fresh in ((FRESH + reuse * 0.9, True), (FRESH + reuse, False)):
        files.sweep(now)
        assert (files.get(b"/bare/", now) is not None) is is_fresh


def test_equal_pages_are_one_and_freed_with_their_last_reader(files: FileCache, site: Path) -> None:
    before = fd_count()
    page = listing_of(files, b"/bare/", 0.0)
    again = listing_of(files, b"/bare/", FRESH)
    assert again is page
    coded = page.siblings["gzip"]
    (site / "bare" / "new").touch()
    changed = listing_of(files, b"/bare/", FRESH * 2)
    assert changed is not page
    (site / "bare" / "new").unlink()
    files.sweep(FRESH * 3)
    assert len(files) == 0
    assert fd_count() == before + 2 * (1 + len(AVAILABLE))
    del page, again, changed
    assert fd_count() == before + 1
    assert listing_of(files, b"/bare/", FRESH * 3).siblings["gzip"] is coded
    files.sweep(FRESH * 4)
    del coded
    assert fd_count() == before


def test_connection_frees_its_page_when_it_is_closed(site: Path) -> None:
    """The server may refer to the closed connection until another one is ready."""
    for i in range(500):
        (site / "bare" / f"{i:0250}").touch()
    files = FileCache(Files(site))
    with stream_pair("tcp4", buffers=4096) as (ours, theirs):
        ours.setblocking(False)
        connection = Connection(ours, files, Settings(), 60.0)
        theirs.sendall(LISTING)
        assert connection.step(0.0) == BUILDING
        page = weakref.ref(listing_of(files, b"/bare/", 0.0))
        assert connection.step(0.0) == EPOLLOUT
        files.close()
        assert page() is not None
        connection.close()
        assert page() is None


def test_listing_is_coded_once_with_a_length_ranges_and_a_strong_tag(
    files: FileCache, address: Address
) -> None:
    plain = get(address, "/bare/", Accept_Encoding="identity")
    coded = get(address, "/bare/", Accept_Encoding="gzip")
    assert gzip.decompress(coded.body) == plain.body
    assert coded.headers["Content-Length"] == str(len(coded.body))
    assert coded.headers["ETag"].endswith('-gzip"')
    assert not coded.headers["ETag"].startswith("W/")
    assert coded.headers["Vary"] == plain.headers["Vary"] == "Accept, Accept-Encoding"
    part = get(address, "/bare/", Accept_Encoding="gzip", Range="bytes=5-9")
    assert (part.status, part.body) == (206, coded.body[5:10])


def test_pipelined_listings_are_answered_in_order(files: FileCache, address: Address) -> None:
    sequence = (b"GET /1", b"HEAD /bare/", b"GET /bare/", b"GET /1024", b"GET /bare/?sort=size")
    requests = b"".join(b"%s HTTP/1.1\r\nHost: x\r\n\r\n" % each for each in sequence)
    methods = [each.split()[0].decode() for each in sequence]
    responses = split(exchange(address, requests), *methods)
    assert [each.status for each in responses] == [200] * 5
    assert responses[0].body == data(1, seed=1)
    assert responses[1].headers["ETag"] == responses[2].headers["ETag"]
    assert responses[3].body == data(1024, seed=1024)
    assert b"/bare/" in responses[2].body
    assert responses[4].body != responses[2].body


def test_client_that_waits_for_a_listing_is_not_late(site: Path) -> None:
    with open_connection(site, timeout=60.0) as (connection, theirs):
        theirs.sendall(LISTING)
        for now in (0.0, 50.0, 100.0):
            assert connection.step(now) == BUILDING
            assert connection.deadline == now + 60.0
        listing_of(connection._files, b"/bare/", 100.0)
        assert connection.step(100.0) == EPOLLIN
        theirs.settimeout(PATIENCE)
        assert receive_head(theirs).startswith(b"HTTP/1.1 200 OK\r\n")


def test_failure_to_read_a_directory_answers_all_who_wait(
    files: FileCache, reads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: object) -> None:
        raise OSError(errno.EIO, "")

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", failing)
        assert files.get(b"/bare/", 0.0) is None
        assert files.listings.build(0.0) == (b"bare",)
        errors = []
        for _ in "12":
            with pytest.raises(OSError) as caught:
                files.get(b"/bare/", 0.0)
            errors.append(caught.value)
        assert [each.errno for each in errors] == [errno.EIO] * 2
        assert errors[0] is not errors[1], "their tracebacks are of one request each"
    assert len(reads) == 1
    assert listing_of(files, b"/bare/", FRESH).size > 0


def test_pages_after_the_last_are_one_page(files: FileCache) -> None:
    """Clients may ask for a thousand million of them, and each page is work."""
    last = listing_of(files, b"/bare/?page=2", 0.0)
    assert files.get(b"/bare/?page=3", 0.0) is last
    assert files.get(b"/bare/", 0.0) is last, "the directory has one page"


def test_listing_that_is_made_resumes_only_those_who_wait_for_it(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise n clients that ask for n directories would take a time of n squared."""
    steps: Counter[Connection] = Counter()
    step = Connection.step

    def counted(connection: Connection, now: float) -> int:
        steps[connection] += 1
        return step(connection, now)

    monkeypatch.setattr(Connection, "step", counted)
    for i in range(20):
        (site / f"d{i}").mkdir()
    with serving(site) as (_, address), ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(address)) for _ in range(20)]
        for i, sock in enumerate(socks):
            sock.sendall(b"GET /d%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % i)
        for sock in socks:
            sock.settimeout(PATIENCE)
            assert receive_head(sock).startswith(b"HTTP/1.1 200 OK\r\n")
        assert max(steps.values()) <= 3


def test_connection_that_waits_for_a_listing_can_be_closed(site: Path) -> None:
    """The others that wait for it go on."""
    with new_server(site) as (server, address, _), ExitStack() as stack:
        for _ in range(2):
            sock = stack.enter_context(socket.create_connection(address))
            sock.sendall(LISTING)
        server._accept(monotonic())
        first, second = server._connections
        for connection in (first, second):
            server._step(connection, monotonic())
        server._drop(first)
        assert server._building == {(b"bare",): {second}}
        server._drop(second)
        assert not server._building


def test_clients_whose_listing_is_dropped_ask_for_it_again(site: Path) -> None:
    """As it is where no descriptor is left."""
    with new_server(site) as (server, address, stop), socket.create_connection(address) as sock:
        sock.settimeout(PATIENCE)
        sock.sendall(LISTING)
        server._accept(monotonic())
        [connection] = server._connections
        server._step(connection, monotonic())
        assert server._building == {(b"bare",): {connection}}
        server._tick(connection.deadline)
        assert not server._deferred, "the time of a listing is not counted against its client"
        server._files.close()
        thread = Thread(target=server.run)
        thread.start()
        assert receive_head(sock).startswith(b"HTTP/1.1 200 OK\r\n")
        stop.send(bytes([SIGTERM] * 2))
        thread.join(PATIENCE)


def test_few_listings_and_pages_are_kept(
    files: FileCache, site: Path, reads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iobatch.httpd.views.PAGE", 10)
    for i in range(MAX_LISTINGS + 1):
        (site / f"d{i}").mkdir()
        listing_of(files, b"/d%d/" % i, 0.0)
    assert len(files) == MAX_LISTINGS
    assert files.get(b"/d1/", 0.0) is not None
    for i in range(MAX_PAGES + 1):
        listing_of(files, b"/bare/?page=%d" % (i + 1), 0.0)
    assert files.get(b"/bare/?page=2", 0.0) is not None
    assert files.get(b"/bare/", 0.0) is None
    assert len(reads) == MAX_LISTINGS + 2
    assert files.get(b"/d0/", 0.0) is None


def test_end_of_the_server_ends_unfinished_work(site: Path, clock: Clock) -> None:
    before = fd_count()
    files = FileCache(Files(site))
    for i in range(50):
        (site / "bare" / f"{i}").touch()
    assert files.get(b"/bare/", 0.0) is None
    assert files.listings.build(0.0) is None
    files.close()
    assert fd_count() == before

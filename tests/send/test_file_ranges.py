"""File ranges: large offsets, and files that shrink, grow or can't be read."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_DONE, IOB_ERROR, IOBatch, TruncatedFileError, iob_send
from tests.support.batches import check_invariants, data
from tests.support.drivers import pump
from tests.support.send import LARGE
from tests.support.sockets import is_silent, receive, stream_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.batches import MakeFile

    Send = Callable[..., int]
    Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Yield a sparse file of slightly more than 4 GiB, with data around 2 GiB and 4 GiB."""
    path = tmp_path_factory.mktemp("sparse") / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, data(200_000, seed=2), 2**31 - 100_000)
    os.pwrite(fd, data(200_000, seed=4), 2**32 - 100_000)
    yield fd
    os.close(fd)
    path.unlink()


def test_offsets_past_2_and_4_gib_are_exact(step: Any, pair: Pair, sparse: int) -> None:
    one, other = pair
    one.setblocking(False)
    around_2, around_4 = data(200_000, seed=2), data(200_000, seed=4)
    batch = IOBatch()
    batch.addfile(sparse)
    assert batch.bytesleft == 2**32 + 100_000
    batch.reset()
    batch.addfile(sparse, 2**31 - 50, 100)
    batch.addfile(sparse, 2**32 - 50, 100)
    batch.addfile(sparse, 2**31 - 100_000, 200_000)
    batch.addfile(sparse, 2**32 - 100_000)
    batch.addfile(sparse, 2**32 + 99_990)
    assert pump(step, one, other, batch) == (
        around_2[99_950:100_050] + around_4[99_950:100_050] + around_2 + around_4 + around_4[-10:]
    )


@pytest.mark.parametrize("size", [1000, LARGE])
@pytest.mark.parametrize("end", [0, 1, 999])
def test_file_truncated_before_the_send_is_an_error_after_its_bytes(
    step: Any, pair: Pair, make_file: MakeFile, size: int, end: int
) -> None:
    """0 is never returned. The error has the offset at which the file ended."""
    one, other = pair
    one.setblocking(False)
    content = data(size + 10)
    fd = make_file(content)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(fd, 10, size)
    batch.addbuf(b"trailer")
    os.ftruncate(fd, 10 + end)
    results = []
    received = b""
    while not results or results[-1] not in (IOB_DONE, IOB_ERROR):
        results.append(step(one, batch))
        check_invariants(batch)
        received += receive(other, max(0, results[-1]))
        assert len(results) < 100
    assert results[-1] == IOB_ERROR
    assert received == b"header" + content[10 : 10 + end]
    error = batch.error
    assert isinstance(error, TruncatedFileError)
    assert (error.fd, error.offset, error.missing) == (fd, 10 + end, size - end)
    assert batch.bytesleft == size - end + 7
    assert step(one, batch) == IOB_ERROR


@pytest.mark.parametrize("size", [20_000, LARGE])
@pytest.mark.parametrize("end", [0, 9_000, 19_000])
def test_file_truncated_during_the_send_is_an_error_and_not_sigbus(
    send: Send, make_file: MakeFile, size: int, end: int
) -> None:
    content = data(size)
    fd = make_file(content)
    batch = IOBatch()
    batch.addfile(fd)
    with stream_pair() as (one, other):
        one.setblocking(False)
        assert send(one, batch, limit=10_000) == 10_000
        # Received before the truncation, since what sendfile sent is still the file's own pages.
        received = receive(other, 10_000)
        os.ftruncate(fd, end)
        for _ in range(100):
            nbytes = send(one, batch)
            if nbytes == IOB_ERROR:
                break
            received += receive(other, nbytes)
        error = batch.error
        assert isinstance(error, TruncatedFileError)
        assert received == content[: len(received)]
        assert (error.offset, error.missing) == (len(received), size - len(received))
        # No byte past the new end goes out after the truncation.
        assert len(received) <= max(10_000, end)


@pytest.mark.parametrize("size", [1000, LARGE])
def test_bytes_appended_after_addfile_are_not_sent(
    send: Send, make_file: MakeFile, size: int
) -> None:
    content = data(size)
    fd = make_file(content)
    batch = IOBatch()
    batch.addfile(fd)
    batch.addbuf(b"end")
    with stream_pair() as (one, other):
        one.setblocking(False)
        os.pwrite(fd, b"growing", size)
        assert send(one, batch, limit=500) == 500
        os.pwrite(fd, b"and growing", size + 7)
        received = receive(other, 500) + pump(send, one, other, batch)
        assert received == content + b"end"
        assert is_silent(other)


def test_empty_file_between_buffers_adds_nothing(step: Any, make_file: MakeFile) -> None:
    batch = IOBatch()
    batch.addbuf(b"be")
    batch.addfile(make_file(b""))
    batch.addbuf(b"fore")
    with stream_pair() as (one, other):
        assert pump(step, one, other, batch) == b"before"


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("target", ["tcp4", "socketpair", "file"])
def test_directory_added_with_a_count_is_a_permanent_error(
    tmp_path: Path, size: int, target: str
) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    batch = IOBatch()
    try:
        batch.addfile(fd, 0, size)
        if target == "file":
            with (tmp_path / "out").open("wb") as file:
                assert iob_send(file, batch) == IOB_ERROR
        else:
            with stream_pair(target) as (one, _other):
                assert iob_send(one, batch) == IOB_ERROR
        assert isinstance(batch.error, IsADirectoryError)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [10, LARGE])
def test_closed_file_is_ebadf_after_the_bytes_before_it(
    step: Any, make_file: MakeFile, size: int
) -> None:
    fd = os.dup(make_file(data(size)))
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(fd)
    os.close(fd)
    with stream_pair("tcp4") as (one, other):
        assert step(one, batch) == 6
        assert receive(other, 6) == b"header"
        assert step(one, batch) == IOB_ERROR
        assert isinstance(batch.error, OSError)
        assert batch.error.errno == errno.EBADF
        assert batch.bytesleft == size


@pytest.mark.parametrize("size", [10, LARGE])
def test_write_only_file_is_ebadf(tmp_path: Path, size: int) -> None:
    fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    try:
        os.ftruncate(fd, size)
        batch = IOBatch()
        batch.addfile(fd)
        with stream_pair() as (one, _other):
            assert iob_send(one, batch) == IOB_ERROR
        assert isinstance(batch.error, OSError)
        assert batch.error.errno == errno.EBADF
    finally:
        os.close(fd)

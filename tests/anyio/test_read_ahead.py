"""File ranges that are not in the page cache: a thread reads them, and the loop goes on."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from iobatch import IOBatch, TruncatedFileError
from iobatch.anyio import send_batch
from iobatch.filters import Filter
from tests.support.anyio import nonblocking_pair, read, watched_awaits
from tests.support.batches import batch_of, check_invariants, data
from tests.support.filters import Identity
from tests.support.pagecache import LARGE, PAGE, SMALL, batch_of_ranges, slow_disk
from tests.support.sockets import PATIENCE, receive_all, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from tests.support.batches import MakeFile

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "callback",
    [lambda: None, lambda: socket.socket.send, lambda: Filter(Identity())],
    ids=["iob_send", "socket.send", "Filter"],
)
async def test_loop_never_reads_from_the_disk(
    callback: Callable[[], Any], make_file: MakeFile
) -> None:
    content = data(LARGE)
    fd = make_file(content)
    batch, wanted = batch_of_ranges(fd, content)
    with slow_disk() as disk, stream_pair() as (sock, peer), ThreadPoolExecutor(1) as pool:
        disk.evict(fd)
        sock.setblocking(False)
        reader = pool.submit(receive_all, peer)
        assert await send_batch(sock, batch, callback()) == len(wanted)
        sock.shutdown(socket.SHUT_WR)
        assert reader.result(PATIENCE) == wanted
        assert not disk.stalls
        assert disk.thread_reads


async def test_other_tasks_run_while_the_disk_is_waited_for(make_file: MakeFile) -> None:
    fd = make_file(data(SMALL))
    batch = batch_of(b"header")
    batch.addfile(fd)
    with slow_disk() as disk, nonblocking_pair() as (sock, peer):
        disk.evict(fd)
        disk.ready.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_batch, sock, batch)
            assert await read(peer, 6) == b"header"
            assert batch.bytesleft == SMALL
            disk.ready.set()
            assert await read(peer, SMALL) == data(SMALL)


async def test_cached_ranges_need_no_thread(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = data(LARGE)
    batch, wanted = batch_of_ranges(make_file(content), content)
    monkeypatch.setattr("iobatch.anyio.to_thread", None)
    with stream_pair() as (sock, peer), ThreadPoolExecutor(1) as pool:
        sock.setblocking(False)
        reader = pool.submit(receive_all, peer)
        assert await send_batch(sock, batch) == len(wanted)
        sock.shutdown(socket.SHUT_WR)
        assert reader.result(PATIENCE) == wanted


async def test_error_of_the_disk_is_raised_after_the_bytes_before_it(make_file: MakeFile) -> None:
    content = data(LARGE)
    fd = make_file(content)
    batch = batch_of(b"header")
    batch.addfile(fd)
    with slow_disk() as disk, stream_pair() as (sock, peer), ThreadPoolExecutor(1) as pool:
        disk.evict(fd)
        disk.broken_from = 150 * PAGE
        sock.setblocking(False)
        reader = pool.submit(receive_all, peer)
        for _ in range(2):  # a failed batch raises its error again
            with pytest.raises(OSError, match="the disk is broken") as caught:
                await send_batch(sock, batch)
            assert caught.value.errno == errno.EIO
        sock.shutdown(socket.SHUT_WR)
        sent = batch.bytessent
        assert reader.result(PATIENCE) == (b"header" + content)[:sent]
        assert sent == 6 + 150 * PAGE
        assert not disk.stalls
    assert isinstance(batch.error, OSError)
    assert batch.error.__traceback__ is None
    check_invariants(batch)


async def test_error_of_a_page_that_has_one_byte_of_the_range_is_raised(
    make_file: MakeFile,
) -> None:
    """The page after it is cached."""
    fd = make_file(data(LARGE))
    batch = IOBatch()
    batch.addfile(fd, PAGE - 1)
    with slow_disk() as disk, nonblocking_pair() as (sock, _peer):
        disk.evict(fd, 0, 0)
        disk.broken_from = 0
        with pytest.raises(OSError, match="the disk is broken"):
            await send_batch(sock, batch)
    assert batch.bytessent == 0


async def test_error_of_a_range_that_another_task_has_dropped_is_no_error(
    make_file: MakeFile,
) -> None:
    fd = make_file(data(SMALL))
    batch = batch_of(b"header")
    batch.addfile(fd)
    with slow_disk() as disk, nonblocking_pair() as (sock, peer):
        disk.evict(fd)
        disk.broken_from = 0
        disk.ready.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_batch, sock, batch)
            assert await read(peer, 6) == b"header"
            batch.reset()
            batch.addbuf(b"another")
            disk.ready.set()
            assert await read(peer, 7) == b"another"
    assert (batch.bytesleft, batch.error) == (0, None)


async def test_file_that_ends_early_is_a_truncated_file_error(make_file: MakeFile) -> None:
    fd = make_file(data(LARGE))
    batch = IOBatch()
    batch.addfile(fd)
    os.ftruncate(fd, 3 * PAGE)
    with slow_disk() as disk, nonblocking_pair() as (sock, peer):
        disk.evict(fd)
        with pytest.raises(TruncatedFileError) as caught:
            await send_batch(sock, batch)
        assert caught.value.offset == 3 * PAGE
        assert await read(peer, 3 * PAGE) == data(LARGE)[: 3 * PAGE]


@pytest.mark.parametrize("missing", ["thread", "descriptor"])
async def test_send_reads_by_itself_if_no_thread_or_descriptor_is_available(
    missing: str, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = make_file(data(SMALL))
    batch = batch_of(b"header")
    batch.addfile(fd)
    awaits: list[str] = []

    def refuse(*_: Any, **__: Any) -> Any:
        if missing == "thread":
            raise RuntimeError("can't start new thread")
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with slow_disk() as disk, nonblocking_pair() as (sock, peer):
        disk.evict(fd)
        if missing == "thread":
            monkeypatch.setattr(anyio.to_thread, "run_sync", refuse)
        else:
            monkeypatch.setattr(os, "dup", refuse)
        with watched_awaits(awaits.append):
            assert await send_batch(sock, batch) == 6 + SMALL
        monkeypatch.undo()
        assert await read(peer, 6 + SMALL) == b"header" + data(SMALL)
        assert disk.stalls
        assert not disk.thread_reads
    if missing == "descriptor":  # other tasks may close one
        assert awaits == ["checkpoint", "checkpoint"]


async def test_exception_of_a_signal_handler_is_not_taken_for_a_missing_thread(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = make_file(data(SMALL))
    batch = IOBatch()
    batch.addfile(fd)

    def handler(_number: int, _frame: FrameType | None) -> None:
        raise RuntimeError("interrupted")

    async def interrupted(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    with slow_disk() as disk, nonblocking_pair() as (sock, _peer):
        disk.evict(fd)
        monkeypatch.setattr(anyio.to_thread, "run_sync", interrupted)
        with pytest.raises(RuntimeError, match="interrupted"):
            await send_batch(sock, batch)
    signal.signal(signal.SIGUSR1, before)
    assert (batch.bytesleft, batch.error) == (SMALL, None)


async def test_batch_can_be_sent_again_after_its_file_was_read_by_a_thread(
    make_file: MakeFile,
) -> None:
    """The ranges that count as read are of one call: later they may not be cached any more."""
    fd = make_file(data(SMALL))
    threads = threading.active_count()
    with slow_disk() as disk, nonblocking_pair() as (sock, peer):
        for _ in range(3):
            disk.evict(fd)
            batch = IOBatch()
            batch.addfile(fd)
            await send_batch(sock, batch)
            assert await read(peer, SMALL) == data(SMALL)
        assert not disk.stalls
    assert threading.active_count() <= threads + 1

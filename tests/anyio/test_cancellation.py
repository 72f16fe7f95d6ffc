"""A cancelled send_batch: the batch holds exactly the bytes that are not sent."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from iobatch import IOBatch
from iobatch.anyio import send_batch
from iobatch.filters import Filter
from tests.support.anyio import nonblocking_pair, read, until, watched_awaits
from tests.support.batches import batch_of, check_invariants, data
from tests.support.filters import Identity
from tests.support.pagecache import LARGE, PAGE, SMALL, batch_of_ranges, slow_disk
from tests.support.sockets import PATIENCE, clog, fd_count, receive_all, stream_pair

if TYPE_CHECKING:
    from tests.support.batches import MakeFile

pytestmark = pytest.mark.anyio


def receive_after(event: threading.Event, peer: socket.socket) -> bytes:
    assert event.wait(PATIENCE)
    return receive_all(peer)


@pytest.mark.parametrize("name", ["iob_send", "socket.send", "Filter"])
async def test_every_await_can_be_cancelled_and_a_second_call_sends_the_rest(
    name: str, make_file: MakeFile
) -> None:
    """The last run has fewer awaits than the number of the one to cancel.

    The peer does not read before the first wait.
    """
    content = data(LARGE + 100_000)
    fd = make_file(content)
    cancelled: set[str] = set()
    scope = anyio.CancelScope()
    for stop in itertools.count(1):
        left = stop
        waits = threading.Event()

        def cancel_the_last(awaited: str) -> None:
            nonlocal left
            left -= 1
            if awaited == "wait_writable":
                waits.set()  # noqa: B023 # it runs in this pass only
            if not left:
                cancelled.add(awaited)
                scope.cancel()

        callback: Any = {
            "iob_send": None,
            "socket.send": socket.socket.send,
            "Filter": Filter(Identity()),
        }[name]
        batch, wanted = batch_of_ranges(fd, content)
        total = batch.bytesleft
        with (
            slow_disk() as disk,
            stream_pair(buffers=65536) as (sock, peer),
            ThreadPoolExecutor(1) as pool,
        ):
            disk.evict(fd, 10, 600)
            sock.setblocking(False)
            reader = pool.submit(receive_after, waits, peer)
            try:
                with anyio.CancelScope() as scope, watched_awaits(cancel_the_last):
                    await send_batch(sock, batch, callback, limit=300_000)
                was_cancelled = scope.cancelled_caught
                assert was_cancelled or not batch
                assert batch.bytessent + batch.bytesleft == total
                check_invariants(batch)
                waits.set()
                rest = batch.bytesleft
                assert await send_batch(sock, batch, callback) == rest
            finally:
                waits.set()
                sock.shutdown(socket.SHUT_WR)
            assert reader.result(PATIENCE) == wanted
        if not was_cancelled:
            break
    assert {"checkpoint", "wait_writable", "run_sync"} <= cancelled


async def test_send_that_expires_continues_where_it_stopped() -> None:
    content = data(500_000)
    batch = batch_of(content)

    def expire(awaited: str) -> None:
        if awaited == "wait_writable":
            scope.deadline = anyio.current_time()

    with nonblocking_pair(buffers=4096) as (sock, peer):
        with anyio.CancelScope() as scope, watched_awaits(expire):
            await send_batch(sock, batch)
        assert scope.cancelled_caught
        sent = batch.bytessent
        assert 0 < sent < len(content)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_batch, sock, batch)
            assert await read(peer, len(content)) == content


async def test_send_in_a_cancelled_scope_sends_nothing() -> None:
    batch = batch_of(b"hello")
    with nonblocking_pair() as (sock, _peer), anyio.CancelScope() as scope:
        scope.cancel()
        await send_batch(sock, batch)
    assert scope.cancelled_caught
    assert (batch.bytessent, batch.bytesleft) == (0, 5)


@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {}), ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"]
)
async def test_cancelled_asyncio_task_leaves_exact_counts() -> None:
    batch = batch_of(data(500_000))
    with nonblocking_pair(buffers=4096) as (sock, peer):
        task = asyncio.ensure_future(send_batch(sock, batch))
        await anyio.wait_all_tasks_blocked()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        sent = batch.bytessent
        assert sent + batch.bytesleft == 500_000
        assert await read(peer, sent) == data(500_000)[:sent]


async def test_cancelled_send_does_not_wait_for_the_thread_that_reads(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread has a descriptor of its own, and closes it at its end."""
    fd = make_file(data(SMALL))
    batch = batch_of(b"header")
    batch.addfile(fd)
    began = threading.Event()
    advise = os.posix_fadvise

    def advise_and_tell(*args: int) -> None:
        advise(*args)
        began.set()

    with slow_disk() as disk, nonblocking_pair() as (sock, peer):
        disk.evict(fd)
        disk.ready.clear()
        await anyio.to_thread.run_sync(int)  # opens what the loop keeps for its threads
        before = fd_count()
        monkeypatch.setattr(os, "posix_fadvise", advise_and_tell)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_batch, sock, batch)
            await until(began.is_set)
            tasks.cancel_scope.cancel()
        assert fd_count() == before + 1
        assert (batch.bytessent, batch.bytesleft) == (6, SMALL)
        check_invariants(batch)
        disk.ready.set()
        await until(lambda: fd_count() == before)
        assert await send_batch(sock, batch) == SMALL
        assert await read(peer, 6 + SMALL) == b"header" + data(SMALL)


async def test_thread_that_never_begins_leaves_no_descriptor_open(make_file: MakeFile) -> None:
    """All threads of the limiter are in use."""
    fd = make_file(data(SMALL))
    batch = IOBatch()
    batch.addfile(fd, PAGE)
    limiter = anyio.to_thread.current_default_thread_limiter()
    with slow_disk() as disk, nonblocking_pair() as (sock, _peer):
        disk.evict(fd)
        limiter.total_tokens = 1
        before = fd_count()
        async with limiter, anyio.create_task_group() as tasks:
            tasks.start_soon(send_batch, sock, batch)
            await anyio.wait_all_tasks_blocked()
            assert fd_count() == before + 1
            tasks.cancel_scope.cancel()
        assert fd_count() == before
        assert not disk.thread_reads
        limiter.total_tokens = 40
        assert await send_batch(sock, batch) == SMALL - PAGE


async def test_cancelled_wait_leaves_the_socket_usable_by_another_task() -> None:
    with nonblocking_pair(buffers=4096) as (sock, peer):
        filler = clog(sock)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_batch, sock, batch_of(b"never"))
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_batch, sock, batch_of(b"hello"))
            assert (await read(peer, filler + 5))[filler:] == b"hello"

"""A process that forks while bytes are unsent: parent and child have a copy of each batch.

The sockets and files are shared. The child leaves by os._exit(), as it must.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import warnings
from typing import TYPE_CHECKING, NoReturn

import pytest

from iobatch import IOB_ERROR, IOBatch, iob_send, iob_sendall, iob_write
from iobatch.aio import BatchWriter
from tests.support.batches import check_invariants, data
from tests.support.loops import both_loops, read
from tests.support.pagecache import slow_disk
from tests.support.sockets import receive, stream_pair
from tests.support.threads import running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    MakeFile = Callable[[bytes], int]

CONTENT = data(3_000_000)


def fork(child: Callable[[], object]) -> int:
    """Call a function in a child, which exits with 0 if it returns; return the child's number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads (CPython 3.12)
        number = os.fork()
    return number or leave(child)


def leave(child: Callable[[], object]) -> NoReturn:
    status = 1
    try:
        child()
        status = 0
    finally:
        os._exit(status)


def check_exit(child: int) -> None:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def half_sent(one: socket.socket, path: Path, on_release: Callable[[], object]) -> IOBatch:
    """Return a batch of which some bytes were sent; it owns a file."""
    path.write_bytes(CONTENT)
    batch = IOBatch()
    batch.addbuf(bytearray(b"first"))
    batch.addbuf(bytearray(CONTENT), on_release=on_release)
    batch.addfile(path)
    one.setblocking(False)
    while iob_send(one, batch) > 0:
        pass
    assert 5 < batch.bytessent < len(CONTENT)
    return batch


def test_each_process_releases_its_own_copy(tmp_path: Path) -> None:
    """The child drops the batch: its hook runs and its file is closed, there and only there."""
    here = os.getpid()
    hooks = os.pipe()
    with stream_pair() as (one, peer):
        batch = half_sent(one, tmp_path / "file", lambda: os.write(hooks[1], b"%d," % os.getpid()))
        child = fork(batch.reset)
        check_exit(child)
        check_invariants(batch)
        with running(lambda: iob_sendall(one, batch)):
            received = receive(peer, 5 + 2 * len(CONTENT))
        assert received == b"first" + CONTENT + CONTENT
    assert os.read(hooks[0], 100) == b"%d,%d," % (child, here)
    for fd in hooks:
        os.close(fd)


def test_child_can_go_on_with_a_batch_that_its_parent_drops(tmp_path: Path) -> None:
    with stream_pair() as (one, peer):
        batch = half_sent(one, tmp_path / "file", lambda: None)
        child = fork(lambda: iob_sendall(one, batch))
        batch.reset()
        assert receive(peer, 5 + 2 * len(CONTENT)) == b"first" + CONTENT + CONTENT
        check_exit(child)


def test_pinned_offer_is_the_same_in_both_processes() -> None:
    offers = os.pipe()
    batch = IOBatch()
    batch.addbuf(b"some bytes")
    assert iob_write(None, batch, lambda _sock, view: -1, limit=4) == -1

    def offer() -> None:
        assert iob_write(offers[1], batch, os.write) == 10

    check_exit(fork(offer))
    offer()
    assert os.read(offers[0], 100) == b"some bytessome bytes"
    for fd in offers:
        os.close(fd)


def test_batch_that_a_thread_sends_at_the_fork_is_in_use_in_the_child_for_good() -> None:
    """The child can use other batches."""
    batch = IOBatch()
    batch.addbuf(CONTENT)

    def child() -> None:
        with pytest.raises(RuntimeError, match="in use"):
            batch.reset()
        with pytest.raises(RuntimeError, match="in use"):
            iob_send(one, batch)
        batch.addbuf(b"more")
        assert "IOBatch" in repr(batch)
        fresh = IOBatch()
        fresh.addbuf(b"fresh")
        with socket.socketpair()[0] as sock:
            assert iob_send(sock, fresh) in {5, IOB_ERROR}

    with stream_pair() as (one, peer), running(lambda: iob_send(one, batch, limit=None)):
        while not batch._core.activity:
            pass
        number = fork(child)
        check_exit(number)
        assert receive(peer, len(CONTENT)) == CONTENT


@both_loops
async def test_fork_disturbs_no_writer_of_the_parent(tmp_path: Path) -> None:
    """The child runs a loop and a writer of its own."""
    (tmp_path / "file").write_bytes(CONTENT)

    async def send_in_child() -> None:
        with stream_pair() as (ours, theirs):
            ours.setblocking(False)
            theirs.setblocking(False)
            async with BatchWriter(ours) as own:
                batch = IOBatch()
                batch.addbuf(CONTENT)
                own.write(batch)
                assert await read(theirs, len(CONTENT)) == CONTENT

    with stream_pair() as (one, peer):
        one.setblocking(False)
        peer.setblocking(False)
        writer = BatchWriter(one)
        batch = IOBatch()
        batch.addbuf(CONTENT)
        batch.addfile(tmp_path / "file")
        operation = writer.write(batch, timeout=60)
        assert writer.pending
        number = fork(lambda: asyncio.run(send_in_child()))
        assert await read(peer, 2 * len(CONTENT)) == CONTENT + CONTENT
        assert await operation == 2 * len(CONTENT)
        writer.close()
        check_exit(number)


@both_loops
async def test_fork_while_a_thread_reads_ahead_leaves_the_reading_to_the_parent(
    make_file: MakeFile,
) -> None:
    """The child has the batch, but not the thread."""
    file = make_file(CONTENT[:50_000])
    with stream_pair() as (one, peer), slow_disk() as disk:
        one.setblocking(False)
        peer.setblocking(False)
        disk.evict(file)
        disk.ready.clear()
        writer = BatchWriter(one)
        batch = IOBatch()
        batch.addfile(file, 0, 50_000)
        operation = writer.write(batch)
        assert threading.active_count() > 1

        def child() -> None:
            assert threading.active_count() == 1
            assert operation.batch is not None
            assert operation.batch.bytesleft == 50_000

        check_exit(fork(child))
        disk.ready.set()
        assert await read(peer, 50_000) == CONTENT[:50_000]
        assert await operation == 50_000
        writer.close()

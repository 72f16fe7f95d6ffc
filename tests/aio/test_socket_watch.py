"""When the loop watches a writer's socket, and what happens if it can't."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from unittest.mock import Mock

import pytest

from iobatch import IOB_AGAIN
from iobatch.aio import BatchWriter, WriteOperation, WriteStatus
from iobatch.aio._watch import _checks_of
from iobatch.filters import Filter
from tests.support.aio import statuses
from tests.support.batches import batch_of, data
from tests.support.filters import Identity
from tests.support.loops import (
    FakeTime,
    both_loops,
    full_writer,
    is_watched,
    turns,
    writer_pair,
)
from tests.support.sockets import fd_count, stream_pair, without_standard_input

MIB = 1024 * 1024
ABORTED, ERROR = WriteStatus.ABORTED, WriteStatus.ERROR


@both_loops
async def test_full_socket_is_not_tried_again_until_the_loop_reports_it() -> None:
    """The loop watches the socket until everything is sent."""
    with full_writer() as (writer, peer):
        with pytest.MonkeyPatch.context() as patch:
            tried: list[object] = []
            patch.setattr("iobatch.aio._sender.iob_send", lambda *_, **__: tried.append(0) or -1)
            writer.write(batch_of(b"x"))
            writer.write(batch_of(b"y"))
            tried.clear()
            await turns(50)
            assert not tried
        assert await peer.read(2) == b"xy"
        await writer.write(batch_of(b"z"))
        assert not is_watched(writer)


@both_loops
async def test_socket_is_not_watched_while_it_takes_everything() -> None:
    with writer_pair() as (writer, _), pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer._sender._watch, "loop", None)
        for _ in range(10):
            await writer.write(batch_of(bytes(100)))
            await writer.write(batch_of(bytes(100)), exactly=50)


@both_loops
async def test_application_reads_from_the_socket_while_a_write_waits() -> None:
    loop = asyncio.get_running_loop()
    with full_writer() as (writer, peer):
        reading = asyncio.create_task(loop.sock_recv(writer.sock, 99))
        await turns()
        operation = writer.write(batch_of(b"out"))
        await turns()
        peer.sock.send(b"in")
        assert await reading == b"in"
        reading = asyncio.create_task(loop.sock_recv(writer.sock, 99))
        await turns()
        assert await peer.read(3) == b"out"
        await operation
        await turns()
        peer.sock.send(b"in again")
        assert await reading == b"in again"


@both_loops
async def test_duplicate_may_have_the_number_0() -> None:
    """As in a program that has closed its standard input."""
    with full_writer() as (writer, peer), without_standard_input():
        operations = [writer.write(batch_of(b"abc"))]
        before = fd_count()
        operations.append(writer.write(batch_of(b"abc")))
        writer._sender.resume()  # it goes on waiting
        assert fd_count() == before
        assert os.path.samestat(os.fstat(0), os.fstat(writer.sock.fileno()))
        assert await peer.read(6) == b"abcabc"
        assert [await each for each in operations] == [3, 3]
        assert not is_open(0)
        operation = writer.write(batch_of(bytes(MIB)))
        assert is_open(0)
        writer.sock.close()
        assert not writer._sender._watch.check()
        assert operation.status is ABORTED
        assert not is_open(0)


@both_loops
async def test_socket_may_have_the_number_0() -> None:
    with without_standard_input(), full_writer() as (writer, peer):
        assert writer.sock.fileno() == 0
        operation = writer.write(batch_of(b"abc"))
        assert writer._sender._watch.check()
        assert await peer.read(3) == b"abc"
        assert await operation == 3


@both_loops
async def test_socket_whose_check_fails_counts_as_open() -> None:
    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "scripted")

    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fstat", fail)
            assert writer._sender._watch.check()
        assert await peer.read(3) == b"abc"
        assert await operation == 3


@both_loops
async def test_socket_is_not_checked_after_the_last_write() -> None:
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        checked = _checks_of(asyncio.get_running_loop()).watches
        assert list(checked) == [writer._sender._watch]
        await peer.read(3)
        await operation
        assert not checked


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@both_loops
async def test_failed_close_of_the_duplicate_does_not_matter() -> None:
    close = os.close

    def fail(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, "scripted")

    with full_writer() as (writer, peer):
        operations = [writer.write(batch_of(b"abc")) for _ in range(2)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "close", fail)
            assert await peer.read(6) == b"abcabc"
            assert [await each for each in operations] == [3, 3]
        assert await writer.write(batch_of(b"def")) == 3


@both_loops
async def test_write_that_waits_on_a_transports_socket_fails() -> None:
    """The loop refuses to watch a transport's socket, and the write ends with the loop's error."""
    with stream_pair(buffers=4096) as (sock, _):
        _, stream = await asyncio.open_connection(sock=sock.dup())
        fd = stream.get_extra_info("socket").fileno()
        ours = socket.socket(fileno=fd)
        try:
            ours.setblocking(False)
            writer = BatchWriter(ours)
            started = writer.write(batch_of(data(MIB)), on_error=lambda _: None)
            assert started.status is ERROR
            assert isinstance(started.error, RuntimeError)
            assert started.bytes_transferred + started.batch.bytesleft == MIB
            assert started.bytes_transferred > 0
            started.batch.reset()
            with pytest.raises(RuntimeError, match="transport"):
                await writer.write(batch_of(b"x"))
        finally:
            ours.detach()
            stream.close()
            await stream.wait_closed()


@both_loops
async def test_refused_watch_fails_the_started_write_and_aborts_the_next() -> None:
    class Unwatchable(FakeTime):
        def add_writer(self, *_args: object) -> None:
            raise OSError(errno.EBADF, "scripted")

    posted: list[WriteOperation] = []

    def callback(_sock: object, _view: memoryview) -> int:
        if posted:
            return -1
        posted.append(writer.write(batch_of(b"follow")))
        return 1

    with writer_pair(through=callback) as (writer, _):
        writer._sender._watch.loop = Unwatchable(asyncio.get_running_loop())  # type: ignore[assignment]
        before = fd_count()
        operation = writer.write(batch_of(b"abc"))
        assert fd_count() == before
        assert statuses([operation, *posted]) == [ERROR, ABORTED]
        assert operation.bytes_transferred == 1


@both_loops
async def test_bytes_in_a_filter_wait_for_the_next_write_after_a_refused_watch() -> None:
    ready = False

    def callback(_sock: object, view: memoryview) -> int:
        return len(view) if ready else IOB_AGAIN

    with writer_pair(through=Filter(Identity(), callback)) as (writer, _):
        with pytest.MonkeyPatch.context() as patch:
            loop = Mock(add_writer=Mock(side_effect=RuntimeError("scripted")))
            patch.setattr(writer._sender._watch, "loop", loop)
            assert writer.write(batch_of(b"abc")).status is ERROR
        ready = True
        writer.cancel()
        assert not is_watched(writer)
        assert writer.pending == 3
        assert writer.flush().done()
        assert writer.pending == 0

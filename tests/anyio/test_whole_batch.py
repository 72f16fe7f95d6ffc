"""send_batch sends all of a batch, and counts its bytes."""

from __future__ import annotations

import os
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from iobatch import COPY_LIMIT, WRITE_LIMIT, IOBatch
from iobatch.anyio import send_batch
from iobatch.filters import Chunked, Filter
from tests.support.anyio import nonblocking_pair, read, watched_awaits
from tests.support.batches import batch_of, check_invariants, data
from tests.support.fakes import Scripted, again
from tests.support.filters import Counting, Identity
from tests.support.sockets import KINDS, PATIENCE, clog, is_silent, receive_all, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.batches import MakeFile

pytestmark = pytest.mark.anyio

CALLBACKS: dict[str, Callable[[], Any]] = {
    "iob_send": lambda: None,
    "socket.send": lambda: socket.socket.send,
    "Filter": lambda: Filter(Identity()),
}


@pytest.mark.parametrize("callback", CALLBACKS.values(), ids=CALLBACKS)
@pytest.mark.parametrize("kind", KINDS)
async def test_all_kinds_of_entries_arrive_in_order(
    kind: str, callback: Callable[[], Any], make_file: MakeFile
) -> None:
    content = data(1_000_000)
    fd = make_file(content)
    released: list[str] = []
    batch = batch_of(b"header")
    batch.addfile(fd, 7, 500)
    batch.addbuf(bytearray(content[:70_000]), on_release=lambda: released.append("buffer"))
    batch.addfile(fd, 0, 3 * COPY_LIMIT)
    batch.addfile(fd, 1, on_release=lambda: released.append("range"))
    batch.addbuf(b"trailer")
    wanted = b"header" + content[7:507] + content[:70_000] + content[: 3 * COPY_LIMIT]
    wanted += content[1:] + b"trailer"
    progress: list[int] = []
    with stream_pair(kind, buffers=4096) as (sock, peer), ThreadPoolExecutor(1) as pool:
        sock.setblocking(False)
        reader = pool.submit(receive_all, peer)
        sent = await send_batch(sock, batch, callback(), progress=progress.append)
        sock.shutdown(socket.SHUT_WR)
        assert reader.result(PATIENCE) == wanted
    assert sent == sum(progress) == len(wanted) == batch.bytessent
    assert not batch
    assert released == ["buffer", "range"]
    check_invariants(batch)


async def test_count_is_of_this_call_only() -> None:
    batch = batch_of(b"first")
    with nonblocking_pair() as (sock, peer):
        assert await send_batch(sock, batch) == 5
        batch.addbuf(b"second")
        assert await send_batch(sock, batch) == 6
        assert batch.bytessent == 11
        assert await read(peer, 11) == b"firstsecond"


async def test_count_does_not_depend_on_a_reset_during_the_send() -> None:
    batch = batch_of(b"earlier!")
    with nonblocking_pair(buffers=4096) as (sock, peer):
        assert await send_batch(sock, batch) == 8
        filler = clog(sock)
        batch.addbuf(b"dropped")
        counts: list[int] = []

        async def send() -> None:
            counts.append(await send_batch(sock, batch))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            batch.reset()
            batch.addbuf(b"new")
            assert (await read(peer, 8 + filler + 3))[-3:] == b"new"
        assert counts == [3]


async def test_empty_batch_is_a_checkpoint_and_sends_nothing() -> None:
    awaits: list[str] = []
    with nonblocking_pair() as (sock, peer), watched_awaits(awaits.append):
        assert await send_batch(sock, IOBatch()) == 0
        assert awaits == ["checkpoint"]
        assert is_silent(peer)


async def test_entries_that_are_added_meanwhile_are_sent_too() -> None:
    batch = batch_of(b"first")

    def add(_nbytes: int) -> None:
        if batch.bytessent < 9:
            batch.addbuf(b"more")

    with nonblocking_pair() as (sock, peer):
        assert await send_batch(sock, batch, progress=add) == 9
        assert await read(peer, 9) == b"firstmore"


async def test_wait_follows_each_refusal_of_the_socket() -> None:
    """The socket is not connected, and such a socket polls as writable."""
    awaits: list[str] = []
    with Scripted(2, again(), again(), 1, again()) as sock, watched_awaits(awaits.append):
        sock.setblocking(False)
        assert await send_batch(sock, batch_of(b"hello")) == 5
        assert sock.taken == b"hello"
    assert awaits == ["checkpoint", "wait_writable", "wait_writable", "wait_writable"]


async def test_steps_are_bounded_by_the_limit_and_with_a_callback_by_write_limit() -> None:
    content = data(300_000)
    steps: list[int] = []
    with Scripted() as sock:
        sock.setblocking(False)
        await send_batch(sock, batch_of(content), limit=100_000, progress=steps.append)
        assert steps == [100_000] * 3
        counting = Counting()
        await send_batch(sock, batch_of(content), Filter(counting), limit=None)
        assert max(counting.sizes) == WRITE_LIMIT
        steps.clear()
        await send_batch(sock, batch_of(content), limit=None, progress=steps.append)
        assert steps == [300_000]


async def test_pipe_is_sent_to_as_iob_send_does() -> None:
    reading, writing = os.pipe()
    with FileIO(reading) as output, FileIO(writing, "w") as pipe:
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        received = bytearray()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_batch, pipe, batch_of(data(300_000)))
            while len(received) < 300_000:
                await anyio.wait_readable(output)
                received += output.read(65536) or b""
        assert received == data(300_000)


async def test_descriptor_0_is_open() -> None:
    """As in a program that was started by inetd, or has closed its standard input."""

    class Socket:
        def fileno(self) -> int:
            return 0

        def gettimeout(self) -> float:
            return 0.0

    assert await send_batch(Socket(), batch_of(b"hello"), lambda _sock, view: len(view)) == 5


async def test_filter_is_drained_and_not_finished() -> None:
    batch = batch_of(b"hello")
    pipeline = Filter(Chunked())
    with nonblocking_pair(buffers=4096) as (sock, peer):
        filler = clog(sock)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_batch, sock, batch, pipeline)
            await anyio.wait_all_tasks_blocked()
            assert (batch.bytesleft, pipeline.bytesleft) == (0, len(b"5\r\nhello\r\n"))
            assert (await read(peer, filler + 10))[filler:] == b"5\r\nhello\r\n"
        assert not pipeline.bytesleft
        assert is_silent(peer)


async def test_callback_that_must_read_is_waited_for_until_the_socket_is_readable() -> None:
    """The socket is never writable."""
    with nonblocking_pair(buffers=4096) as (sock, peer):
        clog(sock)
        read_bytes: list[bytes] = []

        def callback(_sock: socket.socket, view: memoryview) -> int:
            # As ssl.SSLSocket.send: it raises SSLWantReadError if there is nothing to read.
            try:
                read_bytes.append(sock.recv(10))
            except BlockingIOError:
                raise ssl.SSLWantReadError from None
            return len(view)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_batch, sock, batch_of(b"hello"), callback)
            await anyio.wait_all_tasks_blocked()
            assert not read_bytes
            peer.send(b"?")
        assert read_bytes == [b"?"]

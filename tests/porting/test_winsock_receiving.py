"""Coming from Winsock: one test for each row of the table of other calls."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from iobatch import IOBatch
from iobatch.aio import BatchWriter
from tests.support.batches import batch_of
from tests.support.loops import both_loops, full_writer, read, turns, writer_pair
from tests.support.manpages import covered, subjects

if TYPE_CHECKING:
    from tests.support.batches import MakeFile

PAGE = ("iobatch-winsock.7", "Other calls")


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


@both_loops
async def test_wsarecv_is_sock_recv_while_a_write_waits() -> None:
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        peer.sock.send(b"reply")
        assert await asyncio.get_running_loop().sock_recv(writer.sock, 10) == b"reply"
        assert await peer.read(3) == b"abc"
        assert await operation == 3
        replaced, reading = [asyncio.create_task(read(writer.sock, 1)) for _ in range(2)]
        await turns()
        peer.sock.send(b"xy")
        assert (await reading, replaced.done()) == (b"x", False)
        replaced.cancel()


@both_loops
async def test_wsarecv_with_a_port_is_a_task_whose_end_is_put_into_the_queue() -> None:
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[asyncio.Future[bytes]] = asyncio.Queue()
    with writer_pair() as (writer, peer):
        task = asyncio.ensure_future(loop.sock_recv(writer.sock, 10))
        task.add_done_callback(queue.put_nowait)
        await turns()
        peer.send(b"abc")
        ended = await queue.get()
        assert (ended is task, ended.result()) == (True, b"abc")


@both_loops
async def test_readfile_is_addfile(make_file: MakeFile) -> None:
    with writer_pair() as (writer, peer):
        batch = IOBatch()
        batch.addfile(make_file(b"abc"))
        assert await writer.write(batch) == 3
        assert await read(peer, 3) == b"abc"


@both_loops
async def test_acceptex_is_sock_accept_of_a_non_blocking_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        with socket.create_connection(listener.getsockname()) as client:
            sock, address = await asyncio.get_running_loop().sock_accept(listener)
            with sock:
                assert address == client.getsockname()
                assert await BatchWriter(sock).write(batch_of(b"abc")) == 3


@both_loops
async def test_connectex_is_sock_connect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
        assert await BatchWriter(sock).write(batch_of(b"abc")) == 3

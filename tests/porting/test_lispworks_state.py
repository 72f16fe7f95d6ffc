"""iobatch-lispworks(7), State: one test for each row of the table, in the rows' order."""

from __future__ import annotations

import asyncio
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from iobatch.aio import BatchWriter, WriteStatus
from tests.support.batches import batch_of
from tests.support.loops import both_loops, full_writer, read, writer_pair
from tests.support.manpages import covered, subjects
from tests.support.sockets import PATIENCE, stream_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = "iobatch-lispworks.7", "State"


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        yield listener


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


@both_loops
async def test_create_async_io_state_is_a_batch_writer() -> None:
    with stream_pair() as (ours, _):
        ours.setblocking(False)
        writer = BatchWriter(ours, timeout=7, user_info="mine")
        assert (writer.timeout, writer.user_info) == (7, "mine")


@both_loops
async def test_create_async_io_state_and_connected_tcp_socket_is_sock_connect() -> None:
    loop = asyncio.get_running_loop()
    with listening() as listener, socket.socket() as sock:
        sock.setblocking(False)
        async with asyncio.timeout(PATIENCE):
            await loop.sock_connect(sock, listener.getsockname())
        peer, _ = await loop.sock_accept(listener)
        with peer:
            BatchWriter(sock).write(batch_of(b"abc"))
            assert await read(peer, 3) == b"abc"


@both_loops
async def test_accept_tcp_connections_creating_async_io_states_is_sock_accept() -> None:
    loop = asyncio.get_running_loop()
    with listening() as listener, socket.create_connection(listener.getsockname()) as peer:
        peer.setblocking(False)
        sock, _ = await loop.sock_accept(listener)
        with sock:
            BatchWriter(sock).write(batch_of(b"abc"))
            assert await read(peer, 3) == b"abc"


@both_loops
async def test_async_io_state_object_is_sock() -> None:
    with stream_pair() as (ours, _):
        ours.setblocking(False)
        assert BatchWriter(ours).sock is ours


@both_loops
async def test_async_io_state_user_info_is_of_the_writer_and_of_an_operation() -> None:
    with writer_pair(user_info="old") as (writer, _):
        old = writer.write(batch_of(b"abc"))
        writer.user_info = "new"
        new = writer.write(batch_of(b"abc"))
        assert (old.user_info, new.user_info) == ("old", "new")


@both_loops
async def test_async_io_state_write_timeout_can_be_set() -> None:
    with full_writer() as (writer, _):
        before = writer.write(batch_of(b"abc"))
        writer.timeout = 0
        assert writer.write(batch_of(b"abc")).status is WriteStatus.TIMEOUT
        writer.timeout, writer.stall_timeout = None, 0
        assert writer.write(batch_of(b"abc")).status is WriteStatus.TIMEOUT
        assert before.status is WriteStatus.PENDING


@both_loops
async def test_async_io_state_peer_address_is_getpeername() -> None:
    with writer_pair("tcp4") as (writer, peer):
        assert writer.sock.getpeername() == peer.getsockname()


@both_loops
async def test_async_io_state_read_buffer_is_sock_recv_into() -> None:
    with full_writer() as (writer, peer):
        writer.write(batch_of(b"abc"))
        peer.sock.send(b"def")
        buffer = bytearray(3)
        assert await asyncio.get_running_loop().sock_recv_into(writer.sock, buffer) == 3
        assert buffer == b"def"


@both_loops
async def test_async_io_state_read_with_checking_is_sock_recv() -> None:
    with full_writer() as (writer, peer):
        writer.write(batch_of(b"abc"))
        peer.sock.send(b"a line\n")
        received = b""
        while not received.endswith(b"\n"):
            received += await asyncio.get_running_loop().sock_recv(writer.sock, 4)
        assert received == b"a line\n"


@both_loops
async def test_async_io_state_receive_message_is_sock_recv() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setblocking(False)
        theirs.send(b"one")
        theirs.send(b"other")
        loop = asyncio.get_running_loop()
        assert await loop.sock_recv(ours, 99) == b"one"
        assert await loop.sock_recv(ours, 99) == b"other"


@both_loops
async def test_async_io_state_wait_for_input_is_add_reader() -> None:
    loop = asyncio.get_running_loop()
    with full_writer() as (writer, peer):
        op = writer.write(batch_of(b"abc"))
        readable = loop.create_future()

        def wake() -> None:
            loop.remove_reader(writer.sock)
            readable.set_result(None)

        loop.add_reader(writer.sock, wake)
        peer.sock.send(b"x")
        await readable
        assert op.status is WriteStatus.PENDING
        assert await peer.read(3) == b"abc"

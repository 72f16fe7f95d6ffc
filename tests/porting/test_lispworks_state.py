"""iobatch-lispworks(7), State: one test for each row of the table, in the rows' order."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from iobatch.aio import BatchWriter, WriteStatus
from tests.support.batches import batch_of
from tests.support.loops import both_loops, full_writer, new_loop, read, turns, writer_pair
from tests.support.manpages import covered, subjects
from tests.support.sockets import PATIENCE, stream_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = "iobatch-lispworks.7", "State"


def udp() -> socket.socket:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


@contextmanager
def listening(backlog: int = 100) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(backlog)
        listener.setblocking(False)
        yield listener


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


@both_loops
async def test_create_async_io_state_is_a_batch_writer() -> None:
    loop = asyncio.get_running_loop()
    with stream_pair() as (ours, _):
        ours.setblocking(False)
        writer = BatchWriter(ours, timeout=7, user_info="mine")
        assert (writer.timeout, writer.user_info) == (7, "mine")

        def make_elsewhere() -> asyncio.Future[BatchWriter]:
            with pytest.raises(RuntimeError, match="no running event loop"):
                BatchWriter(ours)
            made: asyncio.Future[BatchWriter] = loop.create_future()
            loop.call_soon_threadsafe(lambda: made.set_result(BatchWriter(ours)))
            return made

        assert (await (await asyncio.to_thread(make_elsewhere))).sock is ours


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
async def test_hostspec_service_ipv6_are_for_getaddrinfo() -> None:
    loop = asyncio.get_running_loop()
    with listening() as listener:
        host, port = listener.getsockname()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                assert sock.getpeername() == (host, port)


@both_loops
async def test_connect_timeout_is_asyncio_timeout() -> None:
    """The queue of the listener is full, so that another connection is never made."""
    loop = asyncio.get_running_loop()
    with (
        listening(0) as listener,
        socket.create_connection(listener.getsockname()),
        socket.socket() as sock,
    ):
        sock.setblocking(False)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await loop.sock_connect(sock, listener.getsockname())


def test_nodelay_is_an_option_that_is_not_set() -> None:
    with socket.socket() as sock:
        option = socket.IPPROTO_TCP, socket.TCP_NODELAY
        assert sock.getsockopt(*option) == 0
        sock.setsockopt(*option, 1)
        assert sock.getsockopt(*option) == 1


def test_keepalive_is_an_option() -> None:
    with socket.socket() as sock:
        option = socket.SOL_SOCKET, socket.SO_KEEPALIVE
        assert sock.getsockopt(*option) == 0
        sock.setsockopt(*option, 1)
        assert sock.getsockopt(*option) == 1


@both_loops
async def test_queue_output_t_is_what_a_writer_does() -> None:
    with full_writer() as (writer, peer):
        ops = [writer.write_buffer(content, lambda *_: None) for content in (b"abc", b"def")]
        assert [op.status for op in ops] == [WriteStatus.PENDING] * 2
        assert await peer.read(6) == b"abcdef"
        await ops[1]
        assert writer.pending == 0


@both_loops
async def test_create_async_io_state_and_udp_socket_is_a_bound_datagram_socket() -> None:
    with udp() as ours, udp() as theirs:
        op = BatchWriter(ours).write(batch_of(b"abc"), address=theirs.getsockname())
        assert await op == 3
        theirs.settimeout(PATIENCE)
        assert theirs.recvfrom(99) == (b"abc", ours.getsockname())


@both_loops
async def test_create_async_io_state_and_connected_udp_socket_is_a_connected_one() -> None:
    with udp() as ours, udp() as theirs:
        ours.connect(theirs.getsockname())
        assert await BatchWriter(ours).write(batch_of(b"abc")) == 3
        assert await asyncio.get_running_loop().sock_recv(theirs, 99) == b"abc"


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
async def test_close_accepting_handle_is_the_end_of_the_accepting_task() -> None:
    with listening() as listener:
        address = listener.getsockname()
        task = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(listener))
        await turns()
        task.cancel()
        await asyncio.wait([task])
        listener.close()
        with pytest.raises(ConnectionRefusedError), socket.create_connection(address):
            pass


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
async def test_async_io_state_read_buffer_is_sock_recv_into_until_the_view_is_full() -> None:
    loop = asyncio.get_running_loop()
    with full_writer() as (writer, peer):
        writer.write(batch_of(b"abc"))
        peer.sock.send(b"de")
        loop.call_later(0, loop.call_soon, peer.sock.send, b"f")
        buffer = bytearray(5)
        view = memoryview(buffer)[1:4]
        counts: list[int] = []
        while view and 0 not in counts:
            counts.append(await loop.sock_recv_into(writer.sock, view))
            view = view[counts[-1] :]
        assert (counts, buffer) == ([2, 1], b"\0def\0")


@both_loops
async def test_async_io_state_read_with_checking_is_sock_recv_into_a_bytearray() -> None:
    with full_writer() as (writer, peer):
        writer.write(batch_of(b"abc"))
        peer.sock.send(b"a line\nmore")
        data = bytearray()
        while b"\n" not in data:
            data += await asyncio.get_running_loop().sock_recv(writer.sock, 4)
        end = data.index(b"\n") + 1
        line = bytes(data[:end])
        del data[:end]
        assert (line, data) == (b"a line\n", b"m")


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


def test_needs_address_is_sock_recvfrom() -> None:
    async def receive() -> None:
        loop = asyncio.get_running_loop()
        with udp() as ours, udp() as theirs:
            for _ in range(2):
                theirs.sendto(b"abc", ours.getsockname())
            assert await loop.sock_recvfrom(ours, 99) == (b"abc", theirs.getsockname())
            buffer = bytearray(3)
            assert await loop.sock_recvfrom_into(ours, buffer) == (3, theirs.getsockname())
            assert buffer == b"abc"

    asyncio.run(receive())
    for method in ("sock_recvfrom", "sock_recvfrom_into"):
        with contextlib.closing(new_loop("uvloop")) as loop, pytest.raises(NotImplementedError):
            loop.run_until_complete(getattr(loop, method)(None, 1))


@both_loops
async def test_async_io_state_wait_for_input_is_add_reader_until_remove_reader() -> None:
    loop = asyncio.get_running_loop()
    with full_writer() as (writer, peer):
        op = writer.write(batch_of(b"abc"))
        calls: list[bool] = []
        done = loop.create_future()

        def readable() -> None:
            calls.append(True)
            if len(calls) == 3:
                loop.remove_reader(writer.sock)
                done.set_result(None)

        loop.add_reader(writer.sock, readable)
        peer.sock.send(b"x")
        await done
        assert op.status is WriteStatus.PENDING
        assert await peer.read(3) == b"abc"

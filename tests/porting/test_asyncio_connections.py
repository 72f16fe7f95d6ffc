"""Coming from asyncio: one test for each row of the table of connections."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from iobatch.aio import BatchWriter
from iobatch.filters import TLS, Filter
from tests.support.batches import batch_of
from tests.support.loops import both_loops, read
from tests.support.manpages import covered, subjects
from tests.support.sockets import receive_all, stream_pair
from tests.support.tls import tls_contexts

if TYPE_CHECKING:
    import trustme

PAGE = ("iobatch-asyncio.7", "Connections")


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


@both_loops
async def test_asyncio_start_server_is_sock_accept_of_a_non_blocking_listener() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        with socket.create_connection(listener.getsockname()) as client:
            client.setblocking(False)
            sock, _ = await loop.sock_accept(listener)
            with sock:
                assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                assert await BatchWriter(sock).write(batch_of(b"abc")) == 3
            assert await read(client, 3) == b"abc"
    accepted: asyncio.Future[bool] = loop.create_future()

    async def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        accepted.set_result(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        with socket.create_connection(server.sockets[0].getsockname()):
            assert await accepted


@both_loops
async def test_asyncio_open_connection_is_sock_connect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
        assert await BatchWriter(sock).write(batch_of(b"abc")) == 3


class Server:
    """The objects of the server's side of a TLS connection."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.sslobject = context.wrap_bio(incoming, outgoing, server_side=True)
        self.tls = TLS(self.sslobject, incoming, outgoing)
        self.writer = BatchWriter(sock, through=Filter(self.tls))

    async def receive(self) -> None:
        self.tls.receive(await asyncio.get_running_loop().sock_recv(self.sock, 65536))

    async def shake_hands(self) -> None:
        while not self.sslobject.version():
            await self.receive()
            await self.writer.flush()


@both_loops
async def test_ssl_context_is_a_writer_through_a_filter_of_tls(authority: trustme.CA) -> None:
    context, client = tls_contexts(authority)

    def run(sock: socket.socket) -> bytes:
        with client.wrap_socket(sock, server_hostname="localhost") as conn:
            return receive_all(conn)

    with stream_pair() as (ours, theirs):
        ours.setblocking(False)
        received = asyncio.create_task(asyncio.to_thread(run, theirs))
        server = Server(ours, context)
        await server.shake_hands()
        await server.writer.write(batch_of(b"abc"))
        await server.writer.finish()
        assert await received == b"abc"


@both_loops
async def test_ssl_handshake_timeout_is_a_timeout_around_the_handshake(
    authority: trustme.CA,
) -> None:
    context, _ = tls_contexts(authority)
    with stream_pair() as (ours, _):
        ours.setblocking(False)
        server = Server(ours, context)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await server.shake_hands()


@both_loops
async def test_ssl_shutdown_timeout_is_a_timeout_around_finish_and_the_peers_end(
    authority: trustme.CA,
) -> None:
    context, client = tls_contexts(authority)

    def run(sock: socket.socket) -> ssl.SSLSocket:
        conn = client.wrap_socket(sock, server_hostname="localhost")
        receive_all(conn)
        return conn  # which has not sent close_notify

    async def shut_down(server: Server) -> None:
        await server.writer.finish()
        while not server.tls.ended:
            await server.receive()

    with stream_pair() as (ours, theirs):
        ours.setblocking(False)
        running = asyncio.create_task(asyncio.to_thread(run, theirs))
        server = Server(ours, context)
        await server.shake_hands()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await shut_down(server)
        (await running).close()

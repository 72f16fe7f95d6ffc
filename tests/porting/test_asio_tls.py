"""iobatch-asio(7), TLS: one test for each row of the table, in the rows' order."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from iobatch.aio import BatchWriter, WriteStatus
from iobatch.filters import TLS, Filter
from tests.support.batches import batch_of
from tests.support.loops import both_loops
from tests.support.manpages import covered, subjects
from tests.support.sockets import receive_all, stream_pair
from tests.support.tls import MemoryClient, tls_contexts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import trustme

PAGE = "iobatch-asio.7", "TLS"


class Server:
    """The objects of the page's table, for the server of a connection."""

    SIDE: ClassVar[dict[str, Any]] = {"server_side": True}

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.sslobject = context.wrap_bio(incoming, outgoing, **self.SIDE)
        self.tls = TLS(self.sslobject, incoming, outgoing)
        self.writer = BatchWriter(sock, through=Filter(self.tls))

    async def shake_hands(self) -> bytes:
        loop = asyncio.get_running_loop()
        plain = b""
        while not self.sslobject.version():
            plain = self.tls.receive(await loop.sock_recv(self.sock, 65536))
            await self.writer.flush()
        return plain


class Client(Server):
    """The same for a client."""

    SIDE: ClassVar[dict[str, Any]] = {"server_hostname": "localhost"}

    async def begin(self) -> None:
        with suppress(ssl.SSLWantReadError):
            self.sslobject.do_handshake()
        await self.writer.flush()


@contextmanager
def connection(
    authority: trustme.CA, client: Callable[[ssl.SSLSocket], bytes]
) -> Iterator[tuple[Server, asyncio.Future[bytes]]]:
    """Yield a server, and the future result of a client, which runs in a thread."""
    server_context, client_context = tls_contexts(authority)

    def run(sock: socket.socket) -> bytes:
        with client_context.wrap_socket(
            sock, server_hostname="localhost", suppress_ragged_eofs=False
        ) as conn:
            return client(conn)

    with stream_pair() as (ours, theirs):
        ours.setblocking(False)
        yield Server(ours, server_context), asyncio.ensure_future(asyncio.to_thread(run, theirs))


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


def test_ssl_context_makes_the_sslobject(authority: trustme.CA) -> None:
    context, _ = tls_contexts(authority)
    sslobject = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    assert sslobject.version() is None


@both_loops
async def test_ssl_stream_s_context_is_a_writer_through_a_filter(authority: trustme.CA) -> None:
    with connection(authority, receive_all) as (server, received):
        await server.shake_hands()
        async with server.writer as writer:
            await writer.write(batch_of(b"abc", b"def"))
            await writer.finish()
        assert await received == b"abcdef"


@both_loops
async def test_async_handshake_server_is_receive_and_flush(authority: trustme.CA) -> None:
    def client(conn: ssl.SSLSocket) -> bytes:
        receive_all(conn)
        return str(conn.version()).encode()

    with connection(authority, client) as (server, version):
        await server.shake_hands()
        assert server.sslobject.version()
        await server.writer.finish()
        assert (await version).decode() == server.sslobject.version()
    context, client_context = tls_contexts(authority, ssl.TLSVersion.TLSv1_3)
    client_context.check_hostname = False
    with stream_pair() as (ours, theirs):
        ours.setblocking(False)
        server = Server(ours, context)
        memory = MemoryClient(theirs, client_context)

        def greet() -> None:
            memory.tls.do_handshake()
            memory.tls.write(b"GET")  # one segment with the end of the handshake

        greeting = asyncio.create_task(asyncio.to_thread(memory.drive, greet, 1 << 16))
        assert await server.shake_hands() == b"GET"
        await greeting


@contextmanager
def client_of(
    authority: trustme.CA, context: ssl.SSLContext, server: Callable[[ssl.SSLSocket], bytes]
) -> Iterator[tuple[Client, asyncio.Future[bytes]]]:
    """Yield a client, and the future result of a server, which runs in a thread."""
    server_context, _ = tls_contexts(authority)

    def run(sock: socket.socket) -> bytes:
        with server_context.wrap_socket(sock, server_side=True) as conn:
            return server(conn)

    with stream_pair() as (ours, theirs):
        ours.setblocking(False)
        yield Client(ours, context), asyncio.ensure_future(asyncio.to_thread(run, theirs))


@both_loops
async def test_async_handshake_client_begins_with_do_handshake_and_flush(
    authority: trustme.CA,
) -> None:
    _, context = tls_contexts(authority)
    with client_of(authority, context, receive_all) as (client, received):
        await client.begin()
        await client.shake_hands()
        await client.writer.write(batch_of(b"abc"))
        await client.writer.finish()
        assert await received == b"abc"


@both_loops
async def test_write_before_the_handshake_wants_to_read(authority: trustme.CA) -> None:
    context, _ = tls_contexts(authority)
    with stream_pair() as (ours, _):
        ours.setblocking(False)
        server = Server(ours, context)
        op = server.writer.write(batch_of(b"abc"))
        with pytest.raises(ssl.SSLWantReadError):
            await op
        assert (op.status, op.batch.bytesleft) == (WriteStatus.ERROR, 3)


@both_loops
async def test_ssl_async_write_some_counts_plain_bytes(authority: trustme.CA) -> None:
    with connection(authority, receive_all) as (server, received):
        await server.shake_hands()
        assert await server.writer.write_some(batch_of(b"abc", b"def")) == 6
        await server.writer.finish()
        assert await received == b"abcdef"


@both_loops
async def test_async_shutdown_is_finish_and_does_not_wait_for_the_peer(
    authority: trustme.CA,
) -> None:
    """Without close_notify the client's recv() would raise SSLEOFError."""

    def client(conn: ssl.SSLSocket) -> bytes:
        received = receive_all(conn)
        conn.unwrap()
        return received

    with connection(authority, client) as (server, received):
        await server.shake_hands()
        await server.writer.finish()
        assert not server.tls.ended
        loop = asyncio.get_running_loop()
        while not server.tls.ended:
            with pytest.raises(ssl.SSLZeroReturnError):
                server.tls.receive(await loop.sock_recv(server.sock, 65536))
        assert await received == b""


@both_loops
async def test_ssl_stream_truncated_is_ssl_eof_error_of_receive(authority: trustme.CA) -> None:
    def client(conn: ssl.SSLSocket) -> bytes:
        received = conn.recv(3)
        conn.shutdown(socket.SHUT_WR)
        return received

    with connection(authority, client) as (server, received):
        await server.shake_hands()
        await server.writer.write(batch_of(b"abc"))
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(server.sock, 65536):
            server.tls.receive(data)
        assert not server.tls.ended
        with pytest.raises(ssl.SSLEOFError):
            server.tls.receive(data)
        assert server.tls.ended
        assert await received == b"abc"


@both_loops
async def test_error_ssl_category_is_ssl_error_of_receive(authority: trustme.CA) -> None:
    def server(sock: ssl.SSLSocket) -> bytes:
        raise AssertionError(sock)

    with client_of(authority, ssl.create_default_context(), server) as (client, refused):
        await client.begin()
        with pytest.raises(ssl.SSLError) as raised:
            await client.shake_hands()
        assert raised.value.reason == "CERTIFICATE_VERIFY_FAILED"
        await client.writer.flush()
        with pytest.raises(ssl.SSLError, match="alert"):
            await refused


@both_loops
async def test_next_layer_is_refused_for_a_write(authority: trustme.CA) -> None:
    with connection(authority, receive_all) as (server, received):
        await server.shake_hands()
        assert server.writer.sock is server.sock
        with pytest.raises(ValueError, match="through"):
            server.writer.write(batch_of(b"plain text"), through=None)
        await server.writer.finish()
        assert await received == b""

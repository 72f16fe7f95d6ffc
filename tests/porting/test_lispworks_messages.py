"""iobatch-lispworks(7), Messages and SSL: one test for each row, in the rows' order."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from iobatch.aio import BatchWriter, WriteStatus
from iobatch.filters import TLS, Filter
from tests.support.batches import batch_of
from tests.support.loops import both_loops, turns
from tests.support.manpages import covered, subjects
from tests.support.sockets import receive, receive_all, stream_pair
from tests.support.tls import tls_contexts

if TYPE_CHECKING:
    from collections.abc import Callable

    import trustme

    from iobatch.aio import WriteOperation

PAGE = "iobatch-lispworks.7", "Messages and SSL"


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


@both_loops
async def test_async_io_state_send_message_is_write_buffer() -> None:
    counts: list[int] = []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setblocking(False)
        writer = BatchWriter(ours)
        for message in (b"one", b"other"):
            writer.write_buffer(message, lambda _writer, _data, nbytes: counts.append(nbytes))
        await turns()
        assert counts == [3, 5]
        assert [theirs.recv(99), theirs.recv(99)] == [b"one", b"other"]


@both_loops
async def test_async_io_state_send_message_to_address_is_write_with_an_address() -> None:
    ended: list[WriteOperation] = []
    with (
        socket.socket(type=socket.SOCK_DGRAM) as ours,
        socket.socket(type=socket.SOCK_DGRAM) as theirs,
    ):
        ours.setblocking(False)
        theirs.bind(("127.0.0.1", 0))
        writer = BatchWriter(ours)
        batch = batch_of(b"a ", b"message")
        sent = writer.write(
            batch, address=theirs.getsockname(), on_complete=ended.append, timeout=9, user_info=9
        )
        assert theirs.recv(99) == b"a message"
        assert (writer.timeout, writer.user_info) == (None, None)
        refused = writer.write(
            batch_of(b"a"), address=("127.0.0.1", "http"), on_complete=ended.append
        )
        await turns()
        assert ended == [sent, refused]
        assert (refused.status, type(refused.error)) == (WriteStatus.ERROR, TypeError)


async def serve(
    authority: trustme.CA,
    client: Callable[[ssl.SSLSocket], bytes],
    then: bytes = b"",
    first: bytes = b"",
) -> bytes:
    """Send plain bytes, "encrypted" over TLS, end TLS, and send plain bytes.

    Return what the client returns.
    """
    loop = asyncio.get_running_loop()
    server_context, client_context = tls_contexts(authority)

    def run(sock: socket.socket) -> bytes:
        assert receive(sock, len(first)) == first
        with client_context.wrap_socket(
            sock, server_hostname="localhost", suppress_ragged_eofs=False
        ) as conn:
            return client(conn)

    with stream_pair() as (sock, theirs):
        sock.setblocking(False)
        receiving = asyncio.create_task(asyncio.to_thread(run, theirs))
        async with BatchWriter(sock) as plain:
            plain.write(batch_of(first))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        sslobject = server_context.wrap_bio(incoming, outgoing, server_side=True)
        tls = TLS(sslobject, incoming, outgoing)
        async with BatchWriter(sock, through=Filter(tls)) as writer:
            while not sslobject.version():
                tls.receive(await loop.sock_recv(sock, 65536))
                await writer.flush()
            await writer.write(batch_of(b"encrypted"))
            await writer.finish()
        if then:
            while not tls.ended:
                with pytest.raises(ssl.SSLZeroReturnError):
                    tls.receive(await loop.sock_recv(sock, 65536))
            async with BatchWriter(sock) as plain:
                plain.write(batch_of(then))
        return await receiving


@both_loops
async def test_async_io_state_attach_ssl_is_a_filter_with_tls(authority: trustme.CA) -> None:
    assert await serve(authority, receive_all, first=b"plain") == b"encrypted"


def test_ssl_side_is_server_side(authority: trustme.CA) -> None:
    server, client = tls_contexts(authority)
    assert server.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True).server_side
    assert not client.wrap_bio(
        ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost"
    ).server_side


def test_tlsext_host_name_is_server_hostname(authority: trustme.CA) -> None:
    _, context = tls_contexts(authority)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    sslobject = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        sslobject.do_handshake()
    assert b"localhost" in outgoing.read()


@both_loops
async def test_handshake_timeout_is_asyncio_timeout(authority: trustme.CA) -> None:
    context, _ = tls_contexts(authority)
    with stream_pair() as (sock, _):
        sock.setblocking(False)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = TLS(context.wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                tls.receive(await asyncio.get_running_loop().sock_recv(sock, 65536))


@both_loops
async def test_async_io_state_handshake_is_receive_and_flush(authority: trustme.CA) -> None:
    def version(conn: ssl.SSLSocket) -> bytes:
        receive_all(conn)
        return str(conn.version()).encode()

    assert (await serve(authority, version)).startswith(b"TLS")


@both_loops
async def test_async_io_state_detach_ssl_is_finish_and_another_writer(
    authority: trustme.CA,
) -> None:
    def client(conn: ssl.SSLSocket) -> bytes:
        received = receive_all(conn)
        with conn.unwrap() as sock:
            return received + b", " + sock.recv(99)

    assert await serve(authority, client, b"plain") == b"encrypted, plain"

"""BatchWriter through TLS filters and TLS sockets."""

from __future__ import annotations

import asyncio
import ssl
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from iobatch.aio import BatchWriter, WriteStatus
from iobatch.filters import TLS, Filter
from tests.support.batches import batch_of, data
from tests.support.loops import both_loops
from tests.support.sockets import PATIENCE, receive_all, stream_pair
from tests.support.tls import tls_contexts

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    import trustme

    Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


class TLSServer:
    """The server's end of a TLS connection over a non-blocking socket."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.conn = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.tls = TLS(self.conn, self.incoming, self.outgoing)

    async def handshake(self) -> None:
        """Do the handshake as an application does it, with its own reads and writes."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                self.conn.do_handshake()
            except ssl.SSLWantReadError:
                await loop.sock_sendall(self.sock, self.outgoing.read())
                self.incoming.write(await loop.sock_recv(self.sock, 1 << 16))
            else:
                return


def receive_over_tls(
    sock: socket.socket, context: ssl.SSLContext, *, close_notify: bool = True
) -> bytes:
    """Receive up to the end of stream; SSLEOFError if close_notify is required and missing."""
    with context.wrap_socket(
        sock, server_hostname="localhost", suppress_ragged_eofs=not close_notify
    ) as conn:
        return receive_all(conn)


@pytest.fixture(scope="module")
def contexts(authority: trustme.CA) -> Contexts:
    """Give the contexts of a server and of its client."""
    return tls_contexts(authority)


@both_loops
async def test_file_over_tls_arrives_whole_and_finish_sends_close_notify(
    make_file: Callable[[bytes], int], contexts: Contexts
) -> None:
    server_context, client_context = contexts
    content = data(1 << 20)
    fd = make_file(content)
    with stream_pair("tcp4", buffers=16_384) as (ours, theirs):
        ours.setblocking(False)
        client = asyncio.create_task(asyncio.to_thread(receive_over_tls, theirs, client_context))
        server = TLSServer(ours, server_context)
        await server.handshake()
        async with BatchWriter(ours, through=Filter(server.tls)) as writer:
            batch = batch_of(b"header")
            batch.addfile(fd)
            operation = writer.write(batch)
            assert operation.status is WriteStatus.PENDING
            assert await operation == (1 << 20) + 6
            assert await writer.write(batch_of(b"footer")) == 6
            await writer.finish()
        assert await client == b"header" + content + b"footer"


@both_loops
async def test_flush_that_is_posted_and_not_awaited_lets_a_reader_beside_a_write_go_on(
    contexts: Contexts,
) -> None:
    """The client reads only after the server has received everything."""
    server_context, client_context = contexts
    content = data(1 << 20)
    all_received = threading.Event()

    def send_then_receive(sock: socket.socket) -> bytes:
        with client_context.wrap_socket(sock, server_hostname="localhost") as conn:
            conn.sendall(content)
            assert all_received.wait(PATIENCE)
            return receive_all(conn)

    with stream_pair("tcp4", buffers=16_384) as (ours, theirs):
        ours.setblocking(False)
        client = asyncio.create_task(asyncio.to_thread(send_then_receive, theirs))
        server = TLSServer(ours, server_context)
        await server.handshake()
        async with BatchWriter(ours, through=Filter(server.tls)) as writer:
            operation = writer.write(batch_of(content))
            received = bytearray()
            while len(received) < len(content):
                received += server.tls.receive(
                    await asyncio.get_running_loop().sock_recv(ours, 1 << 16)
                )
                assert not writer.flush().done()  # awaiting it would wait forever
            all_received.set()
            await operation
            await writer.finish()
        assert await client == content
        assert received == content


@both_loops
async def test_write_before_the_handshake_fails_and_keeps_its_bytes(contexts: Contexts) -> None:
    """The filter must read the client's messages, and a BatchWriter does not read."""
    server_context, client_context = contexts
    with stream_pair("tcp4") as (ours, theirs):
        ours.setblocking(False)
        client = asyncio.create_task(asyncio.to_thread(receive_over_tls, theirs, client_context))
        server = TLSServer(ours, server_context)
        async with BatchWriter(ours, through=Filter(server.tls)) as writer:
            operation = writer.write(batch_of(b"early"))
            with pytest.raises(ssl.SSLWantReadError, match="read") as caught:
                await operation
            assert caught.value.reason is None  # as in the ssl module's own errors
            await server.handshake()
            assert await writer.write(operation.batch) == 5
            await writer.finish()
        assert await client == b"early"


@both_loops
async def test_ssl_socket_is_written_through_its_own_send(contexts: Contexts) -> None:
    server_context, client_context = contexts
    content = data(1 << 20)
    with stream_pair("tcp4", buffers=16_384) as (ours, theirs):
        # SSLSocket.close() sends no close_notify.
        client = asyncio.create_task(
            asyncio.to_thread(receive_over_tls, theirs, client_context, close_notify=False)
        )
        conn = await asyncio.to_thread(server_context.wrap_socket, ours, server_side=True)
        with conn:
            conn.setblocking(False)
            async with BatchWriter(conn, through=ssl.SSLSocket.send) as writer:
                assert await writer.write(batch_of(b"header", content)) == (1 << 20) + 6
        assert await client == b"header" + content


@both_loops
async def test_flush_drives_a_handshake_and_a_server_may_speak_first(contexts: Contexts) -> None:
    """do_handshake() of the SSLObject returns when the handshake is over."""
    server_context, client_context = contexts
    loop = asyncio.get_running_loop()
    with stream_pair("tcp4") as (ours, theirs):
        ours.setblocking(False)
        client = asyncio.create_task(asyncio.to_thread(receive_over_tls, theirs, client_context))
        server = TLSServer(ours, server_context)
        async with BatchWriter(ours, through=Filter(server.tls)) as writer:
            while True:
                assert server.tls.receive(await loop.sock_recv(ours, 1 << 16)) == b""
                await writer.flush()
                try:
                    server.conn.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                break
            assert await writer.write(batch_of(b"greeting")) == 8
            await writer.finish()
        assert await client == b"greeting"


@both_loops
async def test_response_goes_out_after_the_client_has_ended_its_direction(
    contexts: Contexts,
) -> None:
    """In TLS 1.3 close_notify ends one direction only (RFC 8446, section 6.1)."""
    server_context, client_context = contexts
    loop = asyncio.get_running_loop()

    def ask(sock: socket.socket) -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        conn = client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        received = b""
        for step in (conn.do_handshake, lambda: conn.write(b"request"), conn.unwrap):
            while True:
                try:
                    step()
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    if step == conn.unwrap:
                        break
                    incoming.write(sock.recv(1 << 16))
                else:
                    sock.sendall(outgoing.read())
                    break
        while raw := sock.recv(1 << 16):
            incoming.write(raw)
        try:
            while piece := conn.read(1 << 16):
                received += piece
        except ssl.SSLZeroReturnError:
            pass
        return received

    with stream_pair("tcp4") as (ours, theirs):
        ours.setblocking(False)
        client = asyncio.create_task(asyncio.to_thread(ask, theirs))
        server = TLSServer(ours, server_context)
        async with BatchWriter(ours, through=Filter(server.tls)) as writer:
            request = b""
            while not server.tls.ended:
                # The last message of the handshake may arrive with all that follows it.
                with suppress(ssl.SSLZeroReturnError):
                    request += server.tls.receive(await loop.sock_recv(ours, 1 << 16))
                await writer.flush()
            assert request == b"request"
            assert await writer.write(batch_of(b"response")) == 8
            await writer.finish()
        ours.close()
        assert await client == b"response"

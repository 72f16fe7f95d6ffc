"""TLS in both directions: one task receives while another sends through Filter(TLS)."""

from __future__ import annotations

import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import anyio
import pytest

from iobatch import IOBatch
from iobatch.anyio import send_batch
from iobatch.filters import TLS, Filter
from tests.support.batches import batch_of, data
from tests.support.pagecache import LARGE, slow_disk
from tests.support.sockets import PATIENCE, receive_all, stream_pair
from tests.support.tls import TLS_VERSIONS, tls_contexts

if TYPE_CHECKING:
    import socket

    import trustme

    from tests.support.batches import MakeFile

pytestmark = pytest.mark.anyio

UPLOAD = data(1_000_000, seed=1)


class Connection:
    """The server's end of a TLS connection."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.sock = sock
        self.sslobject = context.wrap_bio(incoming, outgoing, server_side=True)
        self.tls = TLS(self.sslobject, incoming, outgoing)
        self.filter = Filter(self.tls)

    async def receive(self) -> bytes:
        """Return what the next bytes of the peer decrypt to; b"" may be a part of the handshake."""
        await anyio.wait_readable(self.sock)
        plain: bytes = self.tls.receive(self.sock.recv(65536))
        return plain

    async def shake_hands(self) -> bytes:
        """Send and receive until the handshake is over; return the plain text received by then."""
        plain = b""
        while self.sslobject.version() is None:
            plain += await self.receive()
            await send_batch(self.sock, IOBatch(), self.filter)
        return plain


async def send_and_receive(connection: Connection, batch: IOBatch, received: bytearray) -> None:
    """Send a batch in one task, and receive the rest of UPLOAD in another; then end the stream."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send_batch, connection.sock, batch, connection.filter)
        while len(received) < len(UPLOAD):
            received += await connection.receive()
    while connection.filter.finish(connection.sock):
        await anyio.wait_writable(connection.sock)


def talk(peer: socket.socket, context: ssl.SSLContext) -> bytes:
    """Be the client: send UPLOAD before reading anything, and return what the server sends."""
    with context.wrap_socket(peer, server_hostname="localhost") as conn:
        conn.sendall(UPLOAD)
        return receive_all(conn)


@pytest.mark.parametrize("version", TLS_VERSIONS, ids=lambda version: version.name)
async def test_one_task_receives_while_another_sends(
    version: ssl.TLSVersion, authority: trustme.CA, make_file: MakeFile
) -> None:
    """The client reads only after its upload, so a send that stopped the receiver would hang.

    The file is not cached, and a thread reads it.
    """
    server, client = tls_contexts(authority, version)
    content = data(LARGE)
    batch = batch_of(b"header")
    fd = make_file(content)
    batch.addfile(fd)
    received = bytearray()
    with (
        slow_disk() as disk,
        stream_pair(buffers=4096) as (sock, peer),
        ThreadPoolExecutor(1) as pool,
    ):
        disk.evict(fd)
        sock.setblocking(False)
        reader = pool.submit(talk, peer, client)
        connection = Connection(sock, server)
        with anyio.fail_after(PATIENCE):
            received += await connection.shake_hands()
            await send_and_receive(connection, batch, received)
        assert received == UPLOAD
        assert reader.result(PATIENCE) == b"header" + content
        assert not disk.stalls


async def test_cancelled_tls_send_continues_with_the_same_record(authority: trustme.CA) -> None:
    """Plain text that the filter has taken counts as sent, and leaves with the next call."""
    server, client = tls_contexts(authority)
    content = data(500_000)
    batch = batch_of(content)
    with stream_pair(buffers=4096) as (sock, peer), ThreadPoolExecutor(1) as pool:
        sock.setblocking(False)
        reader = pool.submit(talk, peer, client)
        connection = Connection(sock, server)
        received = bytearray(await connection.shake_hands())
        # The client is uploading, and does not read.
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send_batch, sock, batch, connection.filter)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        sent = batch.bytessent
        assert 0 < sent < len(content)
        assert sent + batch.bytesleft == len(content)
        await send_and_receive(connection, batch, received)
        assert reader.result(PATIENCE) == content

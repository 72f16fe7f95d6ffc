"""Coming from asyncio: one test for each row of the tables of transports and streams.

The modules that it imports have the tests for the other tables in iobatch-asyncio(7).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from iobatch import IOBatch, iob_send
from iobatch.aio import BatchWriter, WriteStatus, send_to_stream
from iobatch.filters import TLS, Filter
from tests.porting.test_asyncio_connections import PAGE as CONNECTIONS
from tests.porting.test_asyncio_sockets import PAGE as SOCKETS
from tests.porting.test_asyncio_tasks import PAGE as TASKS
from tests.support.aio import statuses
from tests.support.batches import STAGE_LIMIT, batch_of, data
from tests.support.loops import (
    both_loops,
    full_writer,
    read,
    scripted_writer,
    stream,
    turns,
    writer_pair,
)
from tests.support.manpages import covered, subjects
from tests.support.sockets import receive as receive_exactly
from tests.support.sockets import receive_all, stream_pair, wait_for_error
from tests.support.sockets import reset as reset_connection
from tests.support.tls import TLSClient, tls_contexts

if TYPE_CHECKING:
    import trustme

PAGE = ("iobatch-asyncio.7", "Transports", "Streams")


def test_the_tests_here_and_the_rows_of_the_tables_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)
    modules = (PAGE, CONNECTIONS, SOCKETS, TASKS)
    assert subjects(PAGE[0]) == [each for page in modules for each in subjects(*page)]


# Transports


@both_loops
async def test_write_data_holds_the_data_and_reports_an_error() -> None:
    with full_writer() as (writer, peer):
        buffer = bytearray(b"abc")
        batch = IOBatch()
        batch.addbuf(buffer)
        writer.write(batch)
        buffer[:] = b"ABC"
        assert await peer.read(3) == b"ABC"
        peer.sock.close()
        with pytest.raises(BrokenPipeError):
            await writer.write(batch_of(b"def"))


@both_loops
async def test_writelines_pieces_is_addbufs() -> None:
    with writer_pair() as (writer, peer):
        batch = IOBatch()
        batch.addbufs([b"abc", bytearray(b"def")])
        assert await writer.write(batch) == 6
        assert await read(peer, 6) == b"abcdef"


@both_loops
async def test_write_eof_is_shutdown_after_the_operation() -> None:
    with writer_pair(buffers=4096) as (writer, peer):
        reading = asyncio.create_task(read(peer, 50_000))
        await writer.write(batch_of(bytes(50_000)))
        writer.sock.shutdown(socket.SHUT_WR)
        await reading
        assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""


@both_loops
async def test_get_write_buffer_size_is_pending() -> None:
    with full_writer() as (writer, peer):
        writer.write(batch_of(b"abc"))
        writer.write(batch_of(b"de"))
        assert writer.pending == 5
        await peer.read(5)
        assert writer.pending == 0


@both_loops
async def test_set_write_buffer_limits_high_is_high_water_with_the_same_default() -> None:
    async with stream() as (writer, _):
        _, high = writer.transport.get_write_buffer_limits()  # type: ignore[attr-defined]
    for options, mark in (({}, high), ({"high_water": 10}, 10), ({"high_water": 1}, 1)):
        with full_writer(**options) as (batch_writer, _):
            batch_writer.write(batch_of(bytes(mark - 1)))
            await batch_writer.drain()
            batch_writer.write(batch_of(b"x"))
            draining = asyncio.ensure_future(batch_writer.drain())
            await turns()
            assert not draining.done()
            draining.cancel()


@both_loops
async def test_pause_writing_is_no_callback_but_a_drain_that_waits() -> None:
    with full_writer(high_water=3) as (writer, _):
        writer.write(batch_of(b"abc"))
        draining = asyncio.ensure_future(writer.drain())
        await turns()
        assert not draining.done()
        draining.cancel()


@both_loops
async def test_resume_writing_is_no_callback_but_the_end_of_drain() -> None:
    with full_writer(high_water=3) as (writer, peer):
        writer.write(batch_of(b"abc"))
        reading = asyncio.create_task(peer.read(3))
        await writer.drain()
        assert writer.pending < 3
        assert await reading == b"abc"


@both_loops
async def test_close_is_the_end_of_async_with_and_a_close_after_reading_on() -> None:
    loop = asyncio.get_running_loop()
    with writer_pair("tcp4", buffers=4096) as (writer, peer):
        peer.send(b"unread")
        reading = asyncio.create_task(read(peer, 50_000))
        async with writer:
            operation = writer.write(batch_of(bytes(50_000)))
            assert not operation.done()
        assert operation.status is WriteStatus.DONE
        writer.sock.shutdown(socket.SHUT_WR)
        await reading
        assert await loop.sock_recv(peer, 1) == b""
        peer.close()
        while await loop.sock_recv(writer.sock, 65536):
            pass
        writer.sock.close()


@both_loops
async def test_abort_is_close_of_writer_and_socket() -> None:
    with full_writer() as (writer, peer):
        operations = [writer.write(batch_of(b"abc")) for _ in range(2)]
        reading = asyncio.create_task(asyncio.get_running_loop().sock_recv(writer.sock, 1))
        await turns()
        writer.close()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        writer.sock.close()
        assert statuses(operations) == [WriteStatus.ABORTED] * 2
        await peer.clear()
        assert await asyncio.get_running_loop().sock_recv(peer.sock, 1) == b""


@both_loops
async def test_connection_lost_exc_is_raised_by_await() -> None:
    reset = ConnectionResetError(errno.ECONNRESET, "scripted")
    with scripted_writer(reset) as (writer, _), pytest.raises(ConnectionResetError):
        await writer.write(batch_of(b"abc"))
    receive = asyncio.get_running_loop().sock_recv
    for learns in (
        lambda writer: writer.write(batch_of(b"abc")),
        lambda writer: receive(writer.sock, 1),
    ):
        with writer_pair("tcp4") as (writer, peer):
            reset_connection(peer)
            wait_for_error(writer.sock)
            await turns()
            await writer.drain()
            with pytest.raises(ConnectionResetError):
                await learns(writer)


@both_loops
async def test_get_extra_info_socket_is_sock_and_that_of_a_transport_is_refused() -> None:
    async with stream() as (writer, _):
        sock = writer.get_extra_info("socket")
        with pytest.raises(TypeError, match="must be a socket object"):
            BatchWriter(sock)
        with pytest.raises(TypeError, match="socket of a transport"):
            iob_send(sock, batch_of(b"abc"))


@both_loops
async def test_get_extra_info_peercert_is_getpeercert_of_the_sslobject(
    authority: trustme.CA,
) -> None:
    client = TLSClient(authority)
    client.shake_hands()
    certificate = client.sslobject.getpeercert()
    assert certificate
    assert certificate["subjectAltName"] == (("DNS", "localhost"),)


@both_loops
async def test_create_server_factory_is_a_factory_of_stream_reader_protocols() -> None:
    loop = asyncio.get_running_loop()

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await send_to_stream(writer, batch_of(b"abc"))
        writer.close()

    def factory() -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), answer)

    server = await loop.create_server(factory, "127.0.0.1", 0)
    async with server:
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            client.setblocking(False)
            assert await read(client, 3) == b"abc"
            assert await loop.sock_recv(client, 1) == b""


@both_loops
async def test_create_connection_factory_is_open_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await send_to_stream(writer, batch_of(b"abc")) == 3
        writer.close()
        await writer.wait_closed()


@both_loops
async def test_protocol_no_stream_is_a_stream_that_takes_the_transport() -> None:
    loop = asyncio.get_running_loop()
    with stream_pair("tcp4") as (ours, peer):
        peer.setblocking(False)
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours.dup())
        with pytest.raises(TypeError, match="writer must be a StreamWriter"):
            await send_to_stream(transport, batch_of(b"abc"))  # type: ignore[arg-type]
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        content = data(200_000)
        sending = asyncio.create_task(send_to_stream(writer, batch_of(content)))
        assert await read(peer, len(content)) == content
        assert await sending == len(content)
        peer.send(b"reply")
        assert await reader.readexactly(5) == b"reply"
        writer.close()
        await writer.wait_closed()


# Streams


@both_loops
async def test_stream_write_data_is_addbuf_and_send_to_stream() -> None:
    async with stream() as (writer, peer):
        assert await send_to_stream(writer, batch_of(b"abc")) == 3
        assert await read(peer, 3) == b"abc"


@both_loops
async def test_stream_writelines_pieces_is_addbufs_and_send_to_stream() -> None:
    async with stream() as (writer, peer):
        batch = IOBatch()
        batch.addbufs([b"abc", bytearray(b"def")])
        assert await send_to_stream(writer, batch) == 6
        assert await read(peer, 6) == b"abcdef"


@both_loops
async def test_stream_drain_is_called_after_each_piece() -> None:
    async with stream(buffers=4096) as (writer, peer):
        sending = asyncio.create_task(send_to_stream(writer, batch_of(data(2_000_000))))
        await turns()
        _, high = writer.transport.get_write_buffer_limits()  # type: ignore[attr-defined]
        assert 0 < writer.transport.get_write_buffer_size() <= high + STAGE_LIMIT
        assert await read(peer, 2_000_000) == data(2_000_000)
        assert await sending == 2_000_000


@both_loops
async def test_stream_write_eof_stays_after_send_to_stream() -> None:
    async with stream(buffers=4096) as (writer, peer):
        reading = asyncio.create_task(read(peer, 200_000))
        await send_to_stream(writer, batch_of(bytes(200_000)))
        writer.write_eof()
        await reading
        assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""


@both_loops
async def test_stream_close_stays_after_send_to_stream_and_stops_it_before() -> None:
    async with stream(buffers=4096) as (writer, peer):
        await send_to_stream(writer, batch_of(bytes(50_000)))
        writer.close()
        await read(peer, 50_000)
        assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""
    async with stream(buffers=4096) as (writer, peer):
        sending = asyncio.create_task(send_to_stream(writer, batch_of(bytes(2_000_000))))
        await turns()
        writer.close()
        reading = asyncio.create_task(asyncio.to_thread(receive_rest, peer))
        with pytest.raises(BrokenPipeError):
            await sending
        await reading


def receive_rest(sock: socket.socket) -> bytes:
    sock.setblocking(True)
    return receive_all(sock)


@both_loops
async def test_stream_wait_closed_stays() -> None:
    async with stream() as (writer, peer):
        await send_to_stream(writer, batch_of(b"abc"))
        writer.close()
        await writer.wait_closed()
        assert await read(peer, 3) == b"abc"


@both_loops
async def test_stream_transport_abort_does_not_wait_after_a_cancelled_send_to_stream() -> None:
    async with stream(buffers=4096) as (writer, peer):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await send_to_stream(writer, batch_of(bytes(2_000_000)))
        writer.transport.abort()
        await writer.wait_closed()
        peer.setblocking(True)
        assert len(receive_all(peer)) < 2_000_000


@both_loops
async def test_stream_start_tls_context_stays_and_is_through_of_later_writes(
    authority: trustme.CA,
) -> None:
    server, context = tls_contexts(authority)

    def receive(sock: socket.socket) -> bytes:
        with server.wrap_socket(sock, server_side=True) as conn:
            return receive_all(conn)

    with stream_pair("tcp4") as (ours, theirs):
        receiving = asyncio.create_task(asyncio.to_thread(receive, theirs))
        _, writer = await asyncio.open_connection(sock=ours.dup())
        await writer.start_tls(context, server_hostname="localhost")
        assert await send_to_stream(writer, batch_of(data(200_000))) == 200_000
        writer.close()
        await writer.wait_closed()
        assert await receiving == data(200_000)

    def upgrade(sock: socket.socket) -> bytes:
        return receive_exactly(sock, 5) + receive(sock)

    with stream_pair("tcp4") as (ours, theirs):
        ours.setblocking(False)
        upgrading = asyncio.create_task(asyncio.to_thread(upgrade, theirs))
        batch_writer = BatchWriter(ours)
        await batch_writer.write(batch_of(b"plain"))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        sslobject = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        tls = TLS(sslobject, incoming, outgoing)
        secure = Filter(tls)
        with pytest.raises(ssl.SSLWantReadError):
            sslobject.do_handshake()
        await batch_writer.flush(through=secure)
        while not sslobject.version():
            tls.receive(await asyncio.get_running_loop().sock_recv(ours, 65536))
            await batch_writer.flush(through=secure)
        await batch_writer.write(batch_of(data(200_000)), through=secure)
        await batch_writer.finish(through=secure)
        assert await upgrading == b"plain" + data(200_000)

"""BatchWriter through callbacks and filters: compression, and TLS on both loops."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import zlib
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, WRITE_LIMIT
from iobatch.aio import BatchWriter, CancellationType, WriteOperation, WriteStatus
from iobatch.filters import TLS, Chunked, Filter
from tests.helpers import data, receive_all, stream_pair
from tests.loops import (
    FakeTime,
    batch_of,
    both_loops,
    full_writer,
    is_watched,
    read,
    turns,
    writer_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("no_leaks")

MIB = 1024 * 1024


class Same:
    """A transform that changes nothing."""

    def compress(self, piece: Any, /) -> bytes:
        return bytes(piece)

    def flush(self) -> bytes:
        return b"the end"


class Scripted:
    """A callback that takes of each offer what its script says, then everything."""

    def __init__(self, *script: int | BaseException) -> None:
        self.script = list(script)
        self.offers: list[bytes] = []
        self.taken = bytearray()

    def __call__(self, _sock: socket.socket, view: memoryview) -> int:
        self.offers.append(bytes(view))
        action = self.script.pop(0) if self.script else len(view)
        if isinstance(action, BaseException):
            raise action
        self.taken += view[: max(action, 0)]
        return action


# Callbacks that keep nothing


@both_loops
async def test_any_callback() -> None:
    """Any callback of iob_write will do; short counts and "again" lose nothing."""
    callback = Scripted(3, -1, 2)
    with writer_pair(through=callback) as (writer, _):
        first = writer.write(batch_of(b"abcdef"))
        second = writer.write(batch_of(b"XYZ"))
        assert (first.bytes_transferred, writer.pending) == (3, 6)
        assert [await first, await second] == [6, 3]
        assert callback.taken == b"abcdefXYZ"
        assert callback.offers[1] == callback.offers[2] == b"def"
        assert not is_watched(writer)


@both_loops
async def test_again_and_then_an_error() -> None:
    """What failed behind "again" was begun all the same, and ends what is behind it."""
    with writer_pair(through=Scripted(-1, OSError(errno.ENOBUFS, "scripted"))) as (writer, _):
        first = writer.write(batch_of(b"abc"))
        behind = writer.write(batch_of(b"behind"))
        with pytest.raises(OSError, match="scripted"):
            await first
        assert behind.status is WriteStatus.ABORTED


@both_loops
async def test_an_end_and_a_finish_without_a_filter() -> None:
    """Without a filter there is nothing to finish: it only waits for its turn."""
    with full_writer() as (writer, peer):
        writer.write(batch_of(b"abc"))
        end = writer.finish()
        assert not end.done()
        assert await peer.read(3) == b"abc"
        assert await end == 0
        assert writer.write(batch_of(b"def")).done()


@both_loops
async def test_flags_and_a_filter() -> None:
    """Flags can't reach the socket through a filter."""
    with writer_pair(through=Filter(Same())) as (writer, _):
        batch = batch_of(b"abc")
        with pytest.raises(ValueError, match="flags"):
            writer.write(batch, flags=socket.MSG_OOB)
        assert batch.bytesleft == 3


@both_loops
async def test_what_was_offered_is_not_replaced() -> None:
    """Behind "again" of a callback like SSL_write, nothing but the same bytes may be offered.

    A part of them may be on its way: so TOTAL is refused, and a cancellation aborts what is behind.
    """
    callback = Scripted(-1, -1)
    with writer_pair(through=callback) as (writer, _):
        first = writer.write(batch_of(b"abc"))
        behind = writer.write(batch_of(b"behind"))
        assert first.bytes_transferred == 0
        assert not first.cancel(CancellationType.TOTAL)
        assert not writer.cancel(CancellationType.TOTAL)
        assert first.cancel()
        assert behind.status is WriteStatus.CANCELLED  # by writer.cancel
        first = writer.write(first.batch)
        behind = writer.write(batch_of(b"behind"))
        assert first.cancel()
        assert behind.status is WriteStatus.ABORTED
        resumed = writer.write(first.batch)
        assert await resumed == 3
        assert callback.offers == [b"abc"] * 3


@both_loops
async def test_the_callback_breaks() -> None:
    """An exception of a callback is the operation's; the next one finds the callback again."""
    callback = Scripted(2, ZeroDivisionError(), -7)
    with writer_pair(through=callback) as (writer, _):
        broken = writer.write(batch_of(b"abc"))
        with pytest.raises(ZeroDivisionError):
            await broken
        assert (broken.status, broken.bytes_transferred) == (WriteStatus.ERROR, 2)
        assert broken.batch.bytesleft == 1
        with pytest.raises(ValueError, match="-7"):
            await writer.write(batch_of(b"abc"))
        assert await writer.write(broken.batch) == 1


@both_loops
async def test_an_interruption() -> None:
    """What is no Exception passes through a callback, too, and closes the writer."""
    callback = Scripted(-1, 1, KeyboardInterrupt())
    with writer_pair(through=callback) as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        # Of a loop's own call it would end the loop, so this stands for that call.
        with pytest.raises(KeyboardInterrupt):
            writer._sender.take_turn()
        assert (operation.status, operation.bytes_transferred) == (WriteStatus.ABORTED, 1)
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"def"))


@both_loops
async def test_a_callback_that_wants_to_read() -> None:
    """A writer can't read: a callback that wants to ends its operation with an error."""
    callback = Scripted(ssl.SSLWantReadError())
    with writer_pair(through=callback) as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        with pytest.raises(ssl.SSLWantReadError, match="read"):
            await operation
        assert operation.batch.bytesleft == 3
        assert await writer.write(operation.batch) == 3


# Filters


@both_loops
async def test_compression(make_file: Callable[[bytes], int]) -> None:
    """What comes out of a pipeline is what was written; finish() ends the stream."""
    content = data(300_000)
    pipeline = Filter(zlib.compressobj(wbits=31), Filter(Chunked()))
    with writer_pair(buffers=4096, through=pipeline) as (writer, peer):
        batch = batch_of(b"header")
        batch.addfile(make_file(content))
        operations = [writer.write(batch), writer.write(batch_of(b"footer")), writer.finish()]
        received = bytearray()
        while not received.endswith(b"\r\n0\r\n\r\n"):
            received += await asyncio.get_running_loop().sock_recv(peer, 1 << 16)
        assert [await operation for operation in operations] == [300_006, 6, 0]
        decompressed = zlib.decompress(unchunk(bytes(received)), wbits=31)
        assert decompressed == b"header" + content + b"footer"
        assert writer.pending == 0
        with pytest.raises(BrokenPipeError):
            await writer.write(batch_of(b"more"))
        assert await writer.finish() == 0


def unchunk(coded: bytes) -> bytes:
    body = b""
    while True:
        size, _, coded = coded.partition(b"\r\n")
        if not int(size, 16):
            return body
        body += coded[: int(size, 16)]
        coded = coded[int(size, 16) + 2 :]


@both_loops
async def test_done_means_passed_on() -> None:
    """An operation is done when the filter has passed on all that it took of it."""
    with full_writer(through=Filter(Same())) as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        assert operation.bytes_transferred == 3
        assert operation.status is WriteStatus.PENDING
        assert writer.pending == 3  # the filter holds them
        some = writer.write_some(batch_of(b"defg"))
        assert writer.pending == 7
        assert await peer.read(7) == b"abcdefg"
        assert await operation == 3
        assert await some == 4


@both_loops
async def test_a_turn_of_a_filter() -> None:
    """Through a filter a turn takes WRITE_LIMIT bytes, or what `limit` says."""
    options: dict[str, int]
    for limit, options in (WRITE_LIMIT, {}), (1000, {"limit": 1000}):
        callback = Scripted()
        with writer_pair(through=callback, **options) as (writer, _):
            operation = writer.write(batch_of(bytes(3 * limit)))
            assert len(callback.taken) == limit
            await turns(1)
            assert await operation == 3 * limit


@both_loops
async def test_what_was_cancelled_is_passed_on() -> None:
    """What a filter took of a cancelled operation goes out, though nothing is posted behind it."""
    content = data(1000)
    with full_writer(through=Filter(Same(), high_water=1000)) as (writer, peer):
        whole = writer.write(batch_of(content))
        behind = writer.write(batch_of(b"behind"))
        assert (whole.bytes_transferred, whole.status) == (1000, WriteStatus.PENDING)
        assert not whole.cancel(CancellationType.TOTAL)
        assert behind.cancel()
        assert whole.cancel()
        assert writer.pending == 1000
        assert await peer.read(1000) == content
        await turns()
        assert writer.pending == 0
        assert not is_watched(writer)


@both_loops
async def test_cancel_behind_the_last_byte() -> None:
    """An operation whose every byte the filter has is no truncated body: the next one follows."""
    with full_writer(through=Filter(Same())) as (writer, peer):
        whole = writer.write(batch_of(b"whole"))
        behind = writer.write(batch_of(b"behind"))
        assert whole.cancel()
        assert (whole.bytes_transferred, behind.status) == (5, WriteStatus.PENDING)
        assert await peer.read(11) == b"wholebehind"
        assert await behind == 6


@both_loops
async def test_leftovers_take_turns() -> None:
    """What operations that ended have left in a filter goes out in turns, too."""
    with full_writer(through=Filter(Same()), limit=5000) as (writer, peer):
        operation = writer.write(batch_of(bytes(5000)))
        assert operation.bytes_transferred == 5000
        operation.cancel()
        assert await peer.read(5000) == bytes(5000)
        await turns()
        assert not is_watched(writer)


@both_loops
async def test_the_filter_fails() -> None:
    """A filter's error ends its operation, though the filter had all of its bytes."""
    with full_writer(through=Filter(Same())) as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        behind = writer.write(batch_of(b"def"))
        peer.sock.close()
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            await operation
        assert (operation.bytes_transferred, operation.status) == (3, WriteStatus.ERROR)
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            await behind
        assert not is_watched(writer)


class Scheduled:
    """A filter that takes everything, and answers drain() and finish() as its script says."""

    def __init__(self, *script: int | BaseException, wants: int = EVENT_WRITE) -> None:
        self.script = list(script)
        self.wants = wants
        self.bytesleft = 0
        self.error: OSError | None = None

    def __call__(self, _sock: socket.socket, view: memoryview) -> int:
        self.bytesleft += len(view)
        return len(view)

    def drain(self, _sock: socket.socket) -> int:
        action = self.script.pop(0) if self.script else IOB_DONE
        if isinstance(action, BaseException):
            raise action
        if action == IOB_DONE:
            self.bytesleft = 0
        if action == IOB_ERROR:
            self.error = OSError(errno.EIO, "scripted")
        return action

    finish = drain


@both_loops
async def test_drain_answers() -> None:
    """Bytes moved, "again", an error, an exception, a wish to read: each ends as it should."""
    with writer_pair(through=Scheduled(2, IOB_AGAIN, 1)) as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        assert not operation.done()
        assert await operation == 3
    for error, script, wants in [
        (OSError, [IOB_ERROR, IOB_ERROR], EVENT_WRITE),
        (ZeroDivisionError, [ZeroDivisionError(), IOB_DONE], EVENT_WRITE),
        (ssl.SSLWantReadError, [IOB_AGAIN, IOB_AGAIN], EVENT_READ),
    ]:
        with writer_pair(through=Scheduled(*script, wants=wants)) as (writer, _):
            operation = writer.write(batch_of(b"abc"))
            with pytest.raises(error):
                await operation
            assert operation.status is WriteStatus.ERROR
            assert not is_watched(writer)
        with writer_pair(through=Scheduled(*script, wants=wants)) as (writer, _):
            with pytest.raises(error):
                await writer.finish()
            assert not is_watched(writer)


@both_loops
async def test_leftovers_fail() -> None:
    """A filter that breaks over leftovers tells drain, as there is no operation to tell it."""
    with writer_pair(through=Scheduled(IOB_AGAIN, 1, ZeroDivisionError())) as (writer, _):
        writer.write(batch_of(b"abc")).cancel()
        assert await wait_idle(writer)
        with pytest.raises(ZeroDivisionError):
            await writer.drain()
        await writer.drain()
    with writer_pair(through=Scheduled(IOB_AGAIN, ZeroDivisionError())) as (writer, _):
        writer._sender.expire(writer.write(batch_of(b"abc"))._posted)
        assert await wait_idle(writer)
        with pytest.raises(TimeoutError):  # the first of them
            await writer.drain()
        await writer.drain()


@both_loops
async def test_a_failed_filter_is_told_once() -> None:
    """Who was told of the filter's error is not told again by drain() and the writer's end."""

    class Broken(Same):
        def compress(self, piece: Any, /) -> bytes:
            raise ZeroDivisionError

    with stream_pair() as (sock, _):
        sock.setblocking(False)
        told: list[WriteOperation] = []
        async with BatchWriter(sock, through=Filter(Broken())) as writer:
            with pytest.raises(ZeroDivisionError):
                await writer.write(batch_of(b"abc"))
            operation = writer.write(batch_of(b"abc"), on_error=told.append)
            await writer.drain()
        await turns()
        assert told == [operation]


@both_loops
async def test_a_bad_file_behind_what_the_filter_holds(make_file: Callable[[bytes], int]) -> None:
    """What was counted before a file failed leaves the filter all the same."""
    with full_writer(through=Filter(Same()), high_water=100) as (writer, peer):
        batch = batch_of(bytes(2000))
        batch.addfile(make_file(b""), 0, 10)
        operation = writer.write(batch)
        while not operation.done():
            await peer.clear()
            await asyncio.sleep(0)
        assert (operation.status, operation.bytes_transferred) == (WriteStatus.ERROR, 2000)
        assert await read(peer.sock, 2000) == bytes(2000)


@both_loops
async def test_slow_behind_a_filter_is_not_stalled() -> None:
    """As long as the filter gets rid of bytes, however slowly, no stall_timeout ends anything."""
    with writer_pair(buffers=4096, through=Filter(Same())) as (writer, peer):
        now = FakeTime(asyncio.get_running_loop())
        writer._sender.loop = now  # type: ignore[assignment]
        operation = writer.write(batch_of(bytes(MIB)), stall_timeout=10)
        for _ in range(100):
            now.go_on(9)
            pending = writer.pending
            while writer.pending == pending:
                with suppress(BlockingIOError):
                    peer.recv(1000)
                await asyncio.sleep(0)
        assert operation.status is WriteStatus.PENDING
        now.go_on(10.1)
        assert operation.status is WriteStatus.TIMEOUT


async def wait_idle(writer: BatchWriter) -> bool:
    while "waiting" in repr(writer):  # noqa: ASYNC110 # there is no event for this
        await asyncio.sleep(0)
    return True


@both_loops
async def test_drain_stops_waiting_for_what_cannot_go_on() -> None:
    """If a filter keeps its bytes, since it failed, nobody waits in drain for them."""
    filter_ = Scheduled(IOB_AGAIN, IOB_ERROR, IOB_ERROR)
    with writer_pair(through=filter_, high_water=1) as (writer, _):
        operation = writer.write(batch_of(b"abc"), on_error=lambda _: None)
        await writer.drain()
        assert operation.status is WriteStatus.ERROR
        assert writer.pending == 3


@both_loops
async def test_a_broken_rest_is_told() -> None:
    """A filter that fails with what a cancelled operation left in it tells drain()."""
    filter_ = Scheduled(IOB_AGAIN, IOB_ERROR)
    with writer_pair(through=filter_, high_water=1) as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        assert operation.cancel()
        await turns()
        with pytest.raises(OSError, match="scripted"):
            await writer.drain()


@both_loops
async def test_pending_has_what_each_filter_holds() -> None:
    """What waits in a filter further on is pending too."""
    with full_writer(through=Filter(Same(), Filter(Same())), high_water=1) as (writer, peer):
        operation = writer.write(batch_of(data(5000)))
        await turns()
        assert (operation.status, writer.pending) == (WriteStatus.PENDING, 5000)
        await peer.clear()
        await operation
        assert writer.pending == 0


@both_loops
async def test_write_some_keeps_what_a_callback_was_offered_in_front() -> None:
    """What a callback holds a part of is offered again before anything that is posted behind."""
    offers: list[bytes] = []
    script = [100, BlockingIOError(errno.EAGAIN, "again")]

    def callback(_sock: Any, view: memoryview) -> int:
        offers.append(bytes(view))
        action = script.pop(0) if script else len(view)
        if isinstance(action, BaseException):
            raise action
        return action

    first, second, third = data(100), data(60_000, 1), data(100, 2)
    with writer_pair(through=callback) as (writer, _):
        some = writer.write_some(batch_of(bytearray(first), bytearray(second)))  # type: ignore[arg-type]
        behind = writer.write(batch_of(third))
        assert await some == len(first + second)
        await behind
    assert offers == [first, second, second, third]


@both_loops
async def test_exactly_is_no_less_than_what_was_offered() -> None:
    """Of bytes that must be offered again, a part can't be asked for."""

    def callback(_sock: Any, _view: memoryview) -> int:
        return -1

    with writer_pair(through=callback) as (writer, _):
        operation = writer.write(batch_of(data(1000)))
        operation.cancel()
        with pytest.raises(ValueError):
            writer.write(operation.batch, exactly=10)
        assert operation.batch.bytesleft == 1000


# TLS


class Server:
    """The server's end of a TLS connection on a loop, and its client in a thread."""

    def __init__(self, sock: socket.socket, authority: trustme.CA) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.conn = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.tls = TLS(self.conn, self.incoming, self.outgoing)

    async def handshake(self) -> None:
        """Make the handshake by hand, as an application does."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                self.conn.do_handshake()
            except ssl.SSLWantReadError:
                await loop.sock_sendall(self.sock, self.outgoing.read())
                self.incoming.write(await loop.sock_recv(self.sock, 1 << 16))
            else:
                return


def tls_client(sock: socket.socket, authority: trustme.CA) -> bytes:
    """Receive all up to close_notify."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    with context.wrap_socket(sock, server_hostname="localhost") as conn:
        return receive_all(conn)


@both_loops
async def test_a_file_over_tls(make_file: Callable[[bytes], int]) -> None:
    """A file over TLS arrives byte by byte as it was, behind its header; finish() says goodbye."""
    content = data(MIB)
    fd = make_file(content)
    authority = trustme.CA()
    with stream_pair("tcp4", buffers=16_384) as (ours, theirs):
        ours.setblocking(False)
        client = asyncio.create_task(asyncio.to_thread(tls_client, theirs, authority))
        server = Server(ours, authority)
        await server.handshake()
        async with BatchWriter(ours, through=Filter(server.tls)) as writer:
            batch = batch_of(b"header")
            batch.addfile(fd)
            operation = writer.write(batch)
            assert operation.status is WriteStatus.PENDING
            assert await operation == MIB + 6
            assert await writer.write(batch_of(b"footer")) == 6
            await writer.finish()
        assert await client == b"header" + content + b"footer"


@both_loops
async def test_before_the_handshake() -> None:
    """Before its handshake a TLS filter wants to read: the error says so, nothing is lost."""
    authority = trustme.CA()
    with stream_pair("tcp4") as (ours, theirs):
        ours.setblocking(False)
        client = asyncio.create_task(asyncio.to_thread(tls_client, theirs, authority))
        server = Server(ours, authority)
        async with BatchWriter(ours, through=Filter(server.tls)) as writer:
            operation = writer.write(batch_of(b"early"))
            with pytest.raises(ssl.SSLWantReadError, match="read"):
                await operation
            await server.handshake()
            assert await writer.write(operation.batch) == 5
            await writer.finish()
        assert await client == b"early"


@both_loops
async def test_an_ssl_socket() -> None:
    """An ssl.SSLSocket is written through its own send."""
    content = data(MIB)
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with stream_pair("tcp4", buffers=16_384) as (ours, theirs):
        client = asyncio.create_task(asyncio.to_thread(tls_client, theirs, authority))
        conn = await asyncio.to_thread(context.wrap_socket, ours, server_side=True)
        with conn:
            conn.setblocking(False)
            async with BatchWriter(conn, through=ssl.SSLSocket.send) as writer:
                assert await writer.write(batch_of(b"header", content)) == MIB + 6
        assert await client == b"header" + content

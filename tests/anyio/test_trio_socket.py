"""A trio.socket is sent to as a socket, not as a descriptor."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from iobatch import COPY_LIMIT, IOBatch
from iobatch.anyio import send_batch
from iobatch.filters import Chunked, Filter
from tests.support.anyio import read
from tests.support.batches import batch_of, data
from tests.support.fakes import patch_os
from tests.support.sockets import fd_count, is_silent, receive, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.batches import MakeFile

    Pair = tuple[trio.socket.SocketType, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Give a trio.socket, and the non-blocking socket that receives its bytes."""
    with stream_pair("tcp4", buffers=4096) as (ours, theirs):
        theirs.setblocking(False)
        yield trio.socket.from_stdlib_socket(ours), theirs


def refuse_writes(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a descriptor is written to")

    patch_os(patch, "write", refuse)
    patch_os(patch, "writev", refuse)


def test_header_and_file_leave_as_over_a_socket(
    pair: Pair, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that is given by its descriptor would be written to by write(2)."""
    sock, peer = pair
    content = data(5 * COPY_LIMIT)
    batch = batch_of(b"header")
    batch.addfile(make_file(content))

    refuse_writes(monkeypatch)

    async def main() -> bytes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_batch, sock, batch)
            return await read(peer, 6 + len(content))

    assert trio.run(main) == b"header" + content
    assert sock.fileno() >= 0


@pytest.mark.parametrize(
    ("callback", "expected"),
    [(lambda: Filter(Chunked()), b"5\r\nhello\r\n"), (lambda: socket.socket.send, b"hello")],
    ids=["Filter", "socket.send"],
)
def test_callback_gets_a_socket_in_place_of_a_trio_socket(
    callback: Callable[[], Any], expected: bytes, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The methods of a trio.socket are coroutines, and write(2) can raise SIGPIPE."""
    sock, peer = pair
    refuse_writes(monkeypatch)

    async def main() -> bytes:
        await send_batch(sock, batch_of(b"hello"), callback())
        return await read(peer, len(expected))

    assert trio.run(main) == expected


def test_trio_socket_that_is_closed_during_the_wait_ends_the_send(pair: Pair) -> None:
    """Its close() notifies the waiting task."""
    sock, _peer = pair
    batch = batch_of(data(500_000))

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await send_batch(sock, batch)

            nursery.start_soon(send)
            await wait_all_tasks_blocked()
            sock.close()

    trio.run(main)
    assert batch.bytessent + batch.bytesleft == 500_000
    assert batch.error is None


def test_closed_trio_socket_is_refused(pair: Pair) -> None:
    sock, _peer = pair
    batch = batch_of(b"hello")

    async def main() -> None:
        sock.close()
        with pytest.raises(anyio.ClosedResourceError):
            await send_batch(sock, batch)

    trio.run(main)
    assert (batch.bytesleft, batch.error) == (5, None)


def test_bytes_never_go_to_a_file_that_got_the_number_of_the_closed_socket(
    pair: Pair, make_file: MakeFile
) -> None:
    """A hook closes the socket between two system calls of one step."""
    sock, peer = pair
    batch = IOBatch()
    others: list[socket.socket] = []

    def reuse() -> None:
        number = sock.fileno()
        sock.close()
        others.extend(socket.socketpair())
        assert number in {each.fileno() for each in others}

    batch.addbuf(b"hello", on_release=reuse)
    batch.addfile(make_file(data(5 * COPY_LIMIT)))

    async def main() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await send_batch(sock, batch)

    trio.run(main)
    assert all(map(is_silent, others))
    for other in others:
        other.close()
    sent = batch.bytessent
    assert receive(peer, sent) == (b"hello" + data(5 * COPY_LIMIT))[:sent]
    assert batch.error is None
    batch.reset()


def test_two_sends_over_a_trio_socket_are_refused(pair: Pair) -> None:
    sock, _peer = pair

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_batch, sock, batch_of(data(500_000)))
            await wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await send_batch(sock, batch_of(b"second"))
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_default_timeout_of_sockets_does_not_make_the_send_wait(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop would stand still until the timeout."""
    sock, _peer = pair
    batch = batch_of(data(500_000))
    timeouts: set[float | None] = set()

    def callback(target: socket.socket, view: memoryview) -> int:
        timeouts.add(target.gettimeout())
        return target.send(view)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_batch, sock, batch, callback)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(1)
    try:
        trio.run(main)
    finally:
        socket.setdefaulttimeout(before)
    assert timeouts == {0}
    assert 0 < batch.bytessent < 500_000


def test_socket_of_a_transport_is_refused() -> None:
    """It has fileno(), and the transport may hold bytes that must leave first."""
    import asyncio  # noqa: PLC0415

    async def main() -> None:
        with stream_pair() as (ours, _theirs):
            _, writer = await asyncio.open_connection(sock=ours.dup())
            with pytest.raises(TypeError, match="socket of a transport"):
                await send_batch(writer.get_extra_info("socket"), IOBatch())
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())


def test_failed_close_of_the_duplicate_does_not_matter(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is sent, and the trio.socket stays open."""
    close = socket.socket.close

    def fail(sock: socket.socket) -> None:
        close(sock)
        raise OSError(errno.EIO, "scripted")

    sock, peer = pair

    async def main() -> int:
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "close", fail)
            return await send_batch(sock, batch_of(b"abc"))

    assert trio.run(main) == 3
    assert receive(peer, 3) == b"abc"


def test_duplicate_that_cannot_be_used_is_closed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOBUFS, "scripted")

    sock, _ = pair
    before = fd_count()
    batch = batch_of(b"abc")

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", refuse)
            await send_batch(sock, batch)

    with pytest.raises(OSError, match="scripted"):
        trio.run(main)
    assert fd_count() == before
    assert (batch.bytesleft, batch.error) == (3, None)

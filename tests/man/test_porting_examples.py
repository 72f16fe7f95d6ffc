"""The examples of the pages for programs that come from another library."""

from __future__ import annotations

import asyncio
import errno
import socket
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from iobatch.aio import WriteStatus
from tests.support.batches import batch_of, data
from tests.support.loops import both_loops, read, turns, writer_pair
from tests.support.manpages import example
from tests.support.sockets import PATIENCE, clog, receive, stream_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def test_example_of_libowfat_sends_each_batch_in_time_and_returns_the_errors() -> None:
    content = data(500_000)
    send_all = example("iobatch-libowfat.7")["send_all"]
    with (
        stream_pair(buffers=4096) as (one, first),
        stream_pair(buffers=4096) as (other, second),
        stream_pair() as (lost, third),
        ThreadPoolExecutor(2) as pool,
    ):
        third.close()
        received = [pool.submit(receive, peer, len(content)) for peer in (first, second)]
        batches = {sock: batch_of(content) for sock in (one, other, lost)}
        errors: dict[socket.socket, OSError] = send_all(batches, PATIENCE)
        assert [each.result(PATIENCE) for each in received] == [content, content]
    assert [(sock, type(error)) for sock, error in errors.items()] == [(lost, BrokenPipeError)]


@both_loops
async def test_example_of_libevent_flushes_each_message_and_ends_the_stream() -> None:
    loop = asyncio.get_running_loop()
    coder = zlib.decompressobj(wbits=31)

    with writer_pair() as (writer, peer):

        async def messages() -> AsyncIterator[bytes]:
            for message in (b"one", b"two"):
                yield message
                # The message has been flushed when the next one is requested.
                assert coder.decompress(await loop.sock_recv(peer, 1 << 16)) == message

        await example("iobatch-libevent.7")["send_messages"](writer.sock, messages())
        assert coder.decompress(await loop.sock_recv(peer, 1 << 16)) == b""
        assert coder.eof


@both_loops
async def test_example_of_asio_echoes_on_each_connection_until_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first call to accept a connection fails."""
    names = example("iobatch-asio.7")
    loop = asyncio.get_running_loop()
    accept = loop.sock_accept

    async def fail(_: socket.socket) -> None:
        monkeypatch.setattr(loop, "sock_accept", accept)
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(loop, "sock_accept", fail)
    with socket.socket() as listener, socket.socket() as one, socket.socket() as other:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        server = asyncio.create_task(names["listen"](listener))
        for sock in (one, other):
            sock.setblocking(False)
            await loop.sock_connect(sock, listener.getsockname())
        for content in (b"abc", data(100_000)):
            for sock in (one, other):
                sending = asyncio.create_task(loop.sock_sendall(sock, content))
                assert await read(sock, len(content)) == content
                await sending
        for sock in (one, other):
            sock.shutdown(socket.SHUT_WR)
            assert await loop.sock_recv(sock, 1) == b""
        await turns()
        server.cancel()
        await asyncio.wait([server])


@both_loops
async def test_example_of_lispworks_sends_each_line_after_the_one_before() -> None:
    finished = asyncio.get_running_loop().create_future()
    with stream_pair(buffers=4096) as (ours, theirs):
        theirs.setblocking(False)
        filler = clog(ours)
        lines = ["caf\xe9\n", "", "last\n"]
        example("iobatch-lispworks.7")["send_lines"](ours, lines, finished.set_result)
        assert (await read(theirs, filler + 10))[filler:] == b"caf\xe9\nlast\n"
        assert await finished == "all lines were sent"


@both_loops
async def test_example_of_lispworks_reports_a_failure_with_its_count() -> None:
    reports: list[str] = []
    with stream_pair() as (ours, theirs):
        ours.setblocking(False)
        theirs.close()
        example("iobatch-lispworks.7")["send_lines"](ours, ["one\n", "other\n"], reports.append)
        await turns()
        assert reports == ["ERROR after 0 bytes of b'one\\n'"]


@both_loops
async def test_example_of_winsock_collects_the_result_of_each_send() -> None:
    send_buffers = example("iobatch-winsock.7")["send_buffers"]
    buffers = [data(50_000), b"abc", data(50_000, 1)]
    with writer_pair(buffers=4096) as (writer, peer):
        sending = asyncio.create_task(send_buffers(writer.sock, buffers))
        assert await read(peer, 100_003) == b"".join(buffers)
        done = WriteStatus.DONE
        assert await sending == {0: (done, 50_000), 1: (done, 3), 2: (done, 50_000)}
        peer.close()
        assert await send_buffers(writer.sock, [b"abc"]) == {0: (WriteStatus.ERROR, 0)}


@both_loops
@pytest.mark.parametrize("over", ["stream", "socket"])
async def test_example_of_asyncio_answers_with_a_header_and_a_file(
    over: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(data(200_000))
    header = b"HTTP/1.0 200 OK\r\nContent-Length: 200000\r\n\r\n"
    names = example("iobatch-asyncio.7")
    with stream_pair("tcp4", buffers=4096) as (ours, peer):
        ours.setblocking(False)
        peer.setblocking(False)
        peer.send(b"GET / HTTP/1.0\r\n\r\n")
        if over == "stream":
            reader, writer = await asyncio.open_connection(sock=ours.dup())
            answering = asyncio.create_task(
                names["answer_stream"](reader, writer, tmp_path / "file")
            )
        else:
            answering = asyncio.create_task(names["answer_socket"](ours, tmp_path / "file"))
        assert await read(peer, len(header) + 200_000) == header + data(200_000)
        peer.shutdown(socket.SHUT_WR)
        await answering
        ours.close()
        assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""

"""iobatch-asio(7), Writing: one test for each row of the table, in the rows' order."""

from __future__ import annotations

import asyncio
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from iobatch import COPY_LIMIT, IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_send, iob_sendall
from iobatch.aio import BatchWriter, WriteStatus
from tests.support.batches import batch_of, data, take
from tests.support.fakes import Scripted, again, script_sendfile
from tests.support.loops import both_loops, full_writer, read, scripted_writer, writer_pair
from tests.support.manpages import covered, subjects
from tests.support.sockets import PATIENCE, clog, receive, stream_pair

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.batches import MakeFile

PAGE = "iobatch-asio.7", "Writing"


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


@both_loops
async def test_async_write_s_buffers_sends_all_of_the_batch() -> None:
    content = data(100_000)
    with writer_pair(buffers=4096) as (writer, peer):
        op = writer.write(batch_of(content))
        assert await read(peer, len(content)) == content
        assert await op == len(content)


@both_loops
async def test_async_write_some_buffers_is_done_after_some_bytes() -> None:
    with scripted_writer(2) as (writer, sock):
        op = writer.write_some(batch_of(b"abcdef"))
        assert (await op, op.batch.bytesleft) == (2, 4)
        assert sock.taken == b"ab"


@both_loops
async def test_async_send_buffers_is_write_some() -> None:
    with writer_pair() as (writer, peer):
        assert await writer.write_some(batch_of(b"abc", b"def")) == 6
        assert await read(peer, 6) == b"abcdef"


@both_loops
async def test_async_send_with_flags_gives_flags_to_each_send() -> None:
    with scripted_writer() as (writer, sock):
        writer.write_some(batch_of(b"a"), flags=socket.MSG_DONTROUTE)
        writer.write(batch_of(b"b"), flags=socket.MSG_DONTROUTE)
        writer.write(batch_of(b"c"))
        assert [bool(call.flags & socket.MSG_DONTROUTE) for call in sock.calls] == [
            True,
            True,
            False,
        ]


@both_loops
async def test_async_send_of_a_datagram_sends_one_message_and_none_if_empty() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        async with BatchWriter(ours) as writer:
            empty = writer.write(IOBatch())
            assert await writer.write(batch_of(b"one ", b"message")) == 11
            assert (empty.status, theirs.recv(99)) == (WriteStatus.DONE, b"one message")
            with pytest.raises(BlockingIOError):
                theirs.recv(99)


@both_loops
async def test_async_send_to_b_endpoint_sends_one_message_to_an_address() -> None:
    with (
        socket.socket(type=socket.SOCK_DGRAM) as ours,
        socket.socket(type=socket.SOCK_DGRAM) as theirs,
    ):
        ours.setblocking(False)
        theirs.bind(("127.0.0.1", 0))
        async with BatchWriter(ours) as writer:
            await writer.write(batch_of(b"one ", b"message"), address=theirs.getsockname())
        assert theirs.recv(99) == b"one message"


def test_write_s_buffers_blocks_until_all_is_sent() -> None:
    content = data(100_000)
    with stream_pair(buffers=4096) as (ours, theirs), ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(receive, theirs, len(content))
        assert iob_sendall(ours, batch_of(content)) == len(content)
        assert receiving.result(PATIENCE) == content


def test_write_s_buffers_ec_raises_and_counts() -> None:
    with Scripted(4, ConnectionResetError(104, "reset")) as sock:
        batch = batch_of(b"abcdef")
        with pytest.raises(ConnectionResetError):
            iob_sendall(sock, batch)
        assert (batch.bytessent, batch.bytesleft) == (4, 2)


def test_s_write_some_buffers_returns_the_number_of_bytes() -> None:
    with stream_pair() as (ours, theirs):
        assert iob_send(ours, batch_of(b"abc", b"def")) == 6
        assert receive(theirs, 6) == b"abcdef"


def test_s_write_some_buffers_ec_returns_a_code_in_place_of_an_error() -> None:
    with Scripted(2, again(), ConnectionResetError(104, "reset")) as sock:
        batch = batch_of(b"abc")
        codes = [iob_send(sock, batch) for _ in range(3)]
        assert codes == [2, IOB_AGAIN, IOB_ERROR]
        assert isinstance(batch.error, ConnectionResetError)
        assert iob_send(sock, IOBatch()) == IOB_DONE


@both_loops
async def test_s_non_blocking_true_is_required() -> None:
    with stream_pair() as (ours, _):
        with pytest.raises(ValueError, match="non-blocking"):
            BatchWriter(ours)
        ours.setblocking(False)
        assert BatchWriter(ours).pending == 0


@both_loops
async def test_write_while_one_runs_is_queued_in_order() -> None:
    with full_writer() as (writer, peer):
        ops = [writer.write(batch_of(content)) for content in (b"abc", b"de", b"f")]
        assert [op.status for op in ops] == [WriteStatus.PENDING] * 3
        assert await peer.read(6) == b"abcdef"


@both_loops
async def test_transfer_all_is_the_default() -> None:
    with scripted_writer(2, again(), 1) as (writer, sock):
        assert await writer.write(batch_of(b"abcdef")) == 6
        assert sock.taken == b"abcdef"


@both_loops
async def test_transfer_exactly_n_keeps_the_rest_and_refuses_too_many() -> None:
    with writer_pair() as (writer, peer):
        op = writer.write(batch_of(b"abcdef"), exactly=4)
        assert await op == 4
        assert (peer.recv(99), take(op.batch)) == (b"abcd", b"ef")
        with pytest.raises(ValueError, match="exactly"):
            writer.write(batch_of(b"abc"), exactly=4)


@both_loops
async def test_async_write_to_stream_file_goes_by_a_thread(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as file:  # a small file
        sent = await asyncio.to_thread(iob_sendall, file.fileno(), batch_of(b"abc", b"def"))
        with pytest.raises(TypeError, match="socket"):
            BatchWriter(file)  # type: ignore[arg-type]
    assert (sent, (tmp_path / "file").read_bytes()) == (6, b"abcdef")


def test_file_to_send_goes_by_sendfile(
    monkeypatch: pytest.MonkeyPatch, make_file: MakeFile, tmp_path: Path
) -> None:
    content = data(2 * COPY_LIMIT)
    (tmp_path / "file").write_bytes(content)
    with Scripted() as sock, IOBatch() as batch:
        counts = script_sendfile(monkeypatch, sock)
        batch.addfile(tmp_path / "file", 5, COPY_LIMIT + 1)
        assert iob_send(sock, batch) == COPY_LIMIT + 1
        assert counts == [COPY_LIMIT + 1]
        assert sock.taken == content[5 : COPY_LIMIT + 6]


@both_loops
async def test_posix_stream_descriptor_is_for_iob_send() -> None:
    readable, writable = os.pipe()
    try:
        assert iob_send(writable, batch_of(b"abc")) == 3
        assert os.read(readable, 99) == b"abc"
        with pytest.raises(TypeError, match="socket"):
            BatchWriter(writable)  # type: ignore[arg-type]
    finally:
        os.close(readable)
        os.close(writable)


@both_loops
async def test_socket_assign_fd_makes_a_socket_for_a_writer() -> None:
    with stream_pair() as (ours, theirs), socket.socket(fileno=ours.detach()) as sock:
        sock.setblocking(False)
        assert await BatchWriter(sock).write(batch_of(b"abc")) == 3
        assert receive(theirs, 3) == b"abc"


def test_native_handle_is_fileno() -> None:
    with stream_pair() as (ours, theirs):
        assert iob_send(ours.fileno(), batch_of(b"abc")) == 3
        assert receive(theirs, 3) == b"abc"


@both_loops
async def test_async_wait_wait_write_is_add_writer_until_remove_writer() -> None:
    loop = asyncio.get_running_loop()
    with stream_pair(buffers=4096) as (ours, theirs):
        theirs.setblocking(False)
        filler = clog(ours)
        batch = batch_of(b"abc")
        assert iob_send(ours, batch) == IOB_AGAIN
        codes: list[int] = []
        done = loop.create_future()

        def send() -> None:
            codes.append(iob_send(ours, batch))
            if len(codes) == 3:
                loop.remove_writer(ours)
                done.set_result(None)

        loop.add_writer(ours, send)
        await read(theirs, filler)
        await done
        assert codes == [3, IOB_DONE, IOB_DONE]


@both_loops
async def test_async_read_some_is_the_loops() -> None:
    """The loop reads while the writer waits for the socket to be writable."""
    with full_writer() as (writer, peer):
        op = writer.write(batch_of(b"answer"))
        peer.sock.send(b"request")
        assert await asyncio.get_running_loop().sock_recv(writer.sock, 99) == b"request"
        assert await peer.read(6) == b"answer"
        assert await op == 6


@both_loops
async def test_shutdown_shutdown_send_follows_the_last_operation() -> None:
    content = data(100_000)
    with writer_pair(buffers=4096) as (writer, peer):
        receiving = asyncio.create_task(read(peer, len(content)))
        await writer.write(batch_of(content))
        writer.sock.shutdown(socket.SHUT_WR)
        assert await receiving == content
        assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""


@both_loops
async def test_sigpipe_is_not_raised() -> None:
    with scripted_writer() as (writer, sock):
        writer.write(batch_of(b"abc"))
        assert all(call.flags & socket.MSG_NOSIGNAL for call in sock.calls)


@both_loops
async def test_message_out_of_band_marks_the_last_byte() -> None:
    with stream_pair("tcp4") as (ours, theirs):
        ours.setblocking(False)
        async with BatchWriter(ours) as writer:
            await writer.write(batch_of(b"abc!"), flags=socket.MSG_OOB)
        assert receive(theirs, 3) == b"abc"
        assert theirs.recv(1, socket.MSG_OOB) == b"!"


@both_loops
async def test_message_do_not_route_is_msg_dontroute() -> None:
    with writer_pair("tcp4") as (writer, peer):
        assert await writer.write(batch_of(b"abc"), flags=socket.MSG_DONTROUTE) == 3
        assert await read(peer, 3) == b"abc"


@both_loops
async def test_message_end_of_record_is_msg_eor() -> None:
    """The records stay apart without it, too."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        async with BatchWriter(ours) as writer:
            await writer.write(batch_of(b"ab", b"c"), flags=socket.MSG_EOR)
            await writer.write(batch_of(b"de"))
        assert [theirs.recv(99), theirs.recv(99)] == [b"abc", b"de"]

"""Coming from Winsock: one test for each row of the tables of messages, buffers and files."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from iobatch import IOBatch, TruncatedFileError, iob_sendmsg
from iobatch.aio import BatchWriter, WriteStatus
from tests.support.aio import statuses
from tests.support.batches import batch_of, data
from tests.support.fakes import again
from tests.support.loops import (
    both_loops,
    end_reading,
    full_writer,
    read,
    scripted_writer,
    turns,
    writer_pair,
)
from tests.support.manpages import covered, subjects
from tests.support.sockets import PATIENCE, is_silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.batches import MakeFile

PAGE = (
    "iobatch-winsock.7",
    "Messages",
    "Buffers, cancellation and closing",
    "TransmitFile",
)


def test_the_tests_here_and_the_rows_of_the_tables_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


# Messages


@contextmanager
def datagrams() -> Iterator[tuple[BatchWriter, socket.socket]]:
    """Yield a writer on a UDP socket that is not connected, and a socket with an address."""
    with socket.socket(type=socket.SOCK_DGRAM) as ours, socket.socket(type=socket.SOCK_DGRAM) as to:
        ours.setblocking(False)
        to.setblocking(False)
        to.bind(("127.0.0.1", 0))
        yield BatchWriter(ours), to


@both_loops
async def test_wsasendto_lpto_is_address_and_is_refused_for_a_stream() -> None:
    loop = asyncio.get_running_loop()
    with datagrams() as (writer, to):
        assert await writer.write(batch_of(b"abc"), address=to.getsockname()) == 3
        assert await loop.sock_recv(to, 10) == b"abc"
        address = to.getsockname()
    with writer_pair() as (writer, _), pytest.raises(ValueError, match="for messages"):
        writer.write(batch_of(b"abc"), address=address)


@both_loops
async def test_wsasendmsg_control_is_ancdata() -> None:
    """WSASendMsg sets the source address by IP_PKTINFO."""
    source_address = socket.inet_aton("127.0.0.5")
    pktinfo = bytes(4) + source_address * 2  # of any interface
    ancdata = [(socket.IPPROTO_IP, 8, pktinfo)]  # 8: IP_PKTINFO
    with datagrams() as (writer, to):
        to.settimeout(PATIENCE)
        assert await writer.write(batch_of(b"abc"), ancdata=ancdata, address=to.getsockname()) == 3
        data, source = to.recvfrom(10)
        assert (data, source[0]) == (b"abc", "127.0.0.5")
        assert iob_sendmsg(writer.sock, batch_of(b"def"), ancdata, 0, to.getsockname()) == 3
        data, source = to.recvfrom(10)
        assert (data, source[0]) == (b"def", "127.0.0.5")


@both_loops
async def test_message_of_0_bytes_is_not_sent_by_an_empty_batch() -> None:
    with datagrams() as (writer, to):
        writer.sock.connect(to.getsockname())
        operation = writer.write(IOBatch())
        assert operation.status is WriteStatus.DONE
        with pytest.raises(BlockingIOError):
            to.recv(10)
        writer.sock.send(b"")
        assert await asyncio.get_running_loop().sock_recv(to, 10) == b""


@both_loops
async def test_tp_element_eop_is_the_end_of_a_batch() -> None:
    loop = asyncio.get_running_loop()
    with datagrams() as (writer, to):
        for batch in (batch_of(b"abc", b"def"), batch_of(b"ghi")):
            await writer.write(batch, address=to.getsockname())
        assert [await loop.sock_recv(to, 10) for _ in range(2)] == [b"abcdef", b"ghi"]


# Buffers, cancellation and closing


@both_loops
async def test_lifetime_of_a_buffer_ends_when_it_was_sent_or_reset() -> None:
    """The buffer is free although the operation is pending."""
    released: list[str] = []
    buffer = bytearray(b"abc")
    with full_writer() as (writer, peer):
        batch = IOBatch()
        batch.addbuf(buffer, on_release=lambda: released.append("abc"))
        batch.addbuf(bytes(1_000_000))
        operation = writer.write(batch)
        assert released == []
        with pytest.raises(BufferError):
            buffer.clear()
        await peer.read(3)
        buffer.clear()
        assert (released, operation.done()) == (["abc"], False)
    with full_writer() as (writer, _):
        batch.addbuf(b"def", on_release=lambda: released.append("def"))
        operation = writer.write(batch, timeout=0)
        assert (operation.status, released) == (WriteStatus.TIMEOUT, ["abc"])
        operation.batch.reset()
        assert released == ["abc", "def"]


@both_loops
async def test_lifetime_of_the_array_is_the_call() -> None:
    with full_writer() as (writer, peer):
        batch = batch_of(b"abc")
        writer.write(batch)
        assert not batch
        batch.addbuf(b"def")
        writer.write(batch)
        assert await peer.read(6) == b"abcdef"


@both_loops
async def test_cancelioex_s_overlapped_is_cancel_of_the_operation() -> None:
    with full_writer() as (writer, peer):
        operations = [writer.write(batch_of(b"%d" % number)) for number in range(3)]
        assert operations[1].cancel()
        ended = [WriteStatus.PENDING, WriteStatus.CANCELLED, WriteStatus.PENDING]
        assert statuses(operations) == ended
        assert await peer.read(2) == b"02"


@both_loops
async def test_cancelioex_s_null_is_cancel_of_the_writer() -> None:
    with full_writer() as (writer, peer):
        operations = [writer.write(batch_of(b"abc")) for _ in range(3)]
        reading = asyncio.create_task(read(writer.sock, 3))
        await turns()
        assert writer.cancel()
        assert statuses(operations) == [WriteStatus.CANCELLED] * 3
        peer.sock.send(b"def")
        assert await reading == b"def"
    with scripted_writer(2, again()) as (writer, sock):
        operations = [writer.write(batch_of(b"abc")) for _ in range(2)]
        assert writer.cancel()
        operations.append(writer.write(batch_of(b"def")))
        ended = [WriteStatus.CANCELLED, WriteStatus.CANCELLED, WriteStatus.ABORTED]
        assert statuses(operations) == ended
        operations[0].batch.reset()
        assert await writer.write(operations[2].batch) == 3
        assert sock.taken == b"abdef"


@both_loops
async def test_error_not_found_is_false() -> None:
    with writer_pair() as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        assert [operation.cancel(), writer.cancel()] == [False, False]
        assert operation.status is WriteStatus.DONE


@both_loops
@pytest.mark.parametrize("first", ["writer", "socket"])
async def test_closesocket_aborts_the_pending_operations(first: str) -> None:
    with full_writer() as (writer, _):
        operations = [writer.write(batch_of(b"abc")) for _ in range(3)]
        reading = asyncio.create_task(read(writer.sock, 1))
        await turns()
        if first == "writer":
            writer.close()
            assert statuses(operations) == [WriteStatus.ABORTED] * 3
        await end_reading(reading, writer.sock)
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait(operations)
        assert statuses(operations) == [WriteStatus.ABORTED] * 3


@both_loops
async def test_so_linger_is_the_option_of_the_socket() -> None:
    """0 seconds: the kernel drops what it has accepted, and resets the connection."""
    with writer_pair("tcp4") as (writer, peer):
        option = struct.pack("ii", 1, 0)
        writer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
        await writer.write(batch_of(b"abc"))
        writer.sock.close()
        with pytest.raises(ConnectionResetError):
            await read(peer, 4)


@both_loops
async def test_sio_flush_drops_what_waits_in_the_writer_only() -> None:
    with full_writer() as (writer, peer):
        writer.write(batch_of(b"abc"))
        writer.cancel()
        assert writer.pending == 0
        await peer.clear()  # all that the kernel had accepted arrives
        assert await writer.write(batch_of(b"def")) == 3
        assert await peer.read(3) == b"def"
    with writer_pair(buffers=4096) as (writer, peer):
        operation = writer.write(batch_of(bytes(1_000_000)))
        writer.cancel()
        await read(peer, operation.bytes_transferred)
        assert writer.write(batch_of(b"def")).status is WriteStatus.ABORTED
        operation.batch.reset()
        assert await writer.write(batch_of(b"def")) == 3


@both_loops
async def test_shutdown_s_sd_send_follows_the_last_operation() -> None:
    with writer_pair(buffers=4096) as (writer, peer):
        reading = asyncio.create_task(read(peer, 100_000))
        writer.write(batch_of(bytes(50_000)))
        await writer.write(batch_of(bytes(50_000)))
        writer.sock.shutdown(socket.SHUT_WR)
        await reading
        assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""


@both_loops
async def test_wsasenddisconnect_is_a_write_and_shutdown() -> None:
    with writer_pair() as (writer, peer):
        await writer.write(batch_of(b"disconnect data"))
        writer.sock.shutdown(socket.SHUT_WR)
        assert await read(peer, 15) == b"disconnect data"
        assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""


# TransmitFile


@both_loops
async def test_hfile_offset_is_addfile_and_write(make_file: MakeFile) -> None:
    with writer_pair() as (writer, peer):
        batch = IOBatch()
        batch.addfile(make_file(b"abcdef"), 2, 3)
        assert await writer.write(batch) == 3
        assert await read(peer, 3) == b"cde"


@both_loops
async def test_no_lpoverlapped_is_tell_as_the_offset(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abcdef")
    with writer_pair() as (writer, peer), (tmp_path / "file").open("rb") as file:
        file.seek(4)
        batch = IOBatch()
        batch.addfile(file)
        batch.addfile(file, file.tell())
        assert await writer.write(batch) == 8
        assert await read(peer, 8) == b"abcdefef"
        assert (file.tell(), os.lseek(file.fileno(), 0, os.SEEK_CUR)) == (4, 4)


@both_loops
async def test_nnumberofbytestowrite_is_count_and_may_exceed_2_gib(tmp_path: Path) -> None:
    """The file has no blocks."""
    with (tmp_path / "file").open("wb") as file:
        file.truncate(5 << 30)
    with writer_pair(buffers=4096) as (writer, peer):
        batch = IOBatch()
        batch.addfile(tmp_path / "file", 0, 5 << 30)
        operation = writer.write(batch)
        await read(peer, 100_000)
        assert operation.bytes_transferred + operation.batch.bytesleft == 5 << 30
        writer.close()
        operation.batch.reset()


@both_loops
async def test_whole_file_size_0_is_the_end_at_the_time_of_addfile(make_file: MakeFile) -> None:
    fd = make_file(b"abc")
    with writer_pair() as (writer, peer):
        batch = IOBatch()
        batch.addfile(fd)
        os.pwrite(fd, b"def", 3)
        assert await writer.write(batch) == 3
        assert await read(peer, 3) == b"abc"


@both_loops
async def test_nnumberofbytespersend_is_limit_of_the_writer(make_file: MakeFile) -> None:
    with writer_pair(limit=1000) as (writer, peer):
        batch = IOBatch()
        batch.addfile(make_file(data(3000)))
        operation = writer.write(batch)
        assert operation.bytes_transferred == 1000
        await turns(1)
        assert operation.bytes_transferred == 2000
        assert await operation == 3000
        assert await read(peer, 3000) == data(3000)


@both_loops
async def test_lptransmitbuffers_are_entries_before_and_after_the_file(make_file: MakeFile) -> None:
    content = data(100_000)
    with writer_pair() as (writer, peer):
        batch = batch_of(b"head")
        batch.addfile(make_file(content))
        batch.addbuf(b"tail")
        operation = writer.write(batch)
        assert await read(peer, len(content) + 8) == b"head" + content + b"tail"
        assert await operation == len(content) + 8


@both_loops
async def test_transmitpackets_is_a_batch_of_any_entries(make_file: MakeFile) -> None:
    with writer_pair() as (writer, peer):
        batch = IOBatch()
        fd = make_file(b"abcdef")
        for start in (4, 0):
            batch.addfile(fd, start, 2)
            batch.addbuf(b", ")
        assert await writer.write(batch) == 8
        assert await read(peer, 8) == b"ef, ab, "


@both_loops
async def test_range_beyond_the_file_is_a_truncated_file_error(make_file: MakeFile) -> None:
    with writer_pair() as (writer, peer):
        batch = batch_of(b"head")
        batch.addfile(make_file(b"abc"), 0, 5)
        batch.addbuf(b"tail")
        operation = writer.write(batch)
        assert await read(peer, 7) == b"headabc"
        with pytest.raises(TruncatedFileError):
            await operation
        assert (operation.status, operation.bytes_transferred) == (WriteStatus.ERROR, 7)
        assert is_silent(peer)
        operation.batch.reset()
        batch.addfile(make_file(b"abc"), 5)
        assert await writer.write(batch) == 0


@both_loops
async def test_closehandle_hfile_is_after_the_operation_or_addfile_close(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with full_writer() as (writer, peer), (tmp_path / "file").open("rb") as file:
        batch = IOBatch()
        batch.addfile_close(file)
        operation = writer.write(batch)
        assert not file.closed
        assert await peer.read(3) == b"abc"
        assert await operation == 3
        assert file.closed


@both_loops
async def test_tf_disconnect_is_shutdown_after_the_operation(make_file: MakeFile) -> None:
    with writer_pair("tcp4") as (writer, peer):
        batch = IOBatch()
        batch.addfile(make_file(b"abc"))
        await writer.write(batch)
        writer.sock.shutdown(socket.SHUT_WR)
        assert await read(peer, 3) == b"abc"
        assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""


@both_loops
async def test_tf_write_behind_is_what_done_means() -> None:
    """The peer has read nothing when the operation is done."""
    with writer_pair("tcp4") as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        assert operation.status is WriteStatus.DONE
        assert await read(peer, 3) == b"abc"

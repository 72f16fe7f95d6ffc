"""iobatch-asio(7), Buffers: one test for each row of the table, in the rows' order."""

from __future__ import annotations

import array
from typing import TYPE_CHECKING

import pytest

from iobatch import IOBatch, iob_send
from iobatch.aio import WriteStatus
from tests.support.batches import IOV_MAX, batch_of, mmap_of, take
from tests.support.fakes import Scripted, again
from tests.support.loops import both_loops, full_writer, scripted_writer, writer_pair
from tests.support.manpages import covered, subjects
from tests.support.sockets import receive, stream_pair

if TYPE_CHECKING:
    from typing_extensions import Buffer

PAGE = "iobatch-asio.7", "Buffers"


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


@pytest.mark.parametrize(
    "buffer",
    [b"12", bytearray(b"12"), memoryview(b"12"), array.array("H", b"12"), mmap_of(b"12")],
    ids=lambda buffer: type(buffer).__name__,
)
def test_const_buffer_is_any_buffer_in_bytes(buffer: Buffer) -> None:
    with IOBatch() as batch:
        batch.addbuf(buffer)
        assert batch.bytesleft == 2
        assert take(batch) == b"12"
    with pytest.raises(BufferError):
        batch.addbuf(memoryview(b"abcd")[::2])


def test_buffer_data_is_addbuf() -> None:
    with IOBatch() as batch:
        batch.addbuf(b"abc")
        assert take(batch) == b"abc"


def test_buffer_data_n_is_a_slice_of_a_memoryview_of_bytes() -> None:
    with IOBatch() as batch:
        numbers = array.array("H", b"abcdef")
        batch.addbuf(memoryview(numbers).cast("B")[:3])
        batch.addbuf(memoryview(numbers)[:2])
        assert take(batch) == b"abcabcd"


def test_const_buffer_n_is_a_slice_from_an_offset() -> None:
    with IOBatch() as batch:
        batch.addbuf(memoryview(array.array("H", b"abcdef")).cast("B")[3:])
        assert take(batch) == b"def"


def test_buffer_string_is_adds_in_utf_8() -> None:
    with IOBatch() as batch:
        batch.adds("é")
        batch.adds("é", "latin-1")
        assert take(batch) == b"\xc3\xa9\xe9"


def test_constbuffersequence_is_added_all_or_none() -> None:
    with IOBatch() as batch:
        batch.addbufs([b"abc", bytearray(b"def")])
        with pytest.raises(TypeError):
            batch.addbufs([b"ghi", "no buffer"])  # type: ignore[list-item]
        assert take(batch) == b"abcdef"


def test_buffer_size_buffers_is_bytesleft() -> None:
    assert batch_of(b"abc", b"defg").bytesleft == 7


def test_dynamic_buffer_streambuf_loses_what_was_sent() -> None:
    with Scripted(4, again()) as sock:
        batch = batch_of(b"abc", b"def")
        assert iob_send(sock, batch) == 4
        batch.addbuf(b"ghi")
        assert take(batch) == b"efghi"


def test_consume_n_is_done_by_each_call_that_sends() -> None:
    with Scripted(1, again(), 2, again()) as sock:
        batch = batch_of(b"abcdef")
        assert [iob_send(sock, batch), iob_send(sock, batch)] == [1, -1]
        assert (batch.bytessent, batch.bytesleft) == (1, 5)


@both_loops
async def test_copy_of_the_sequence_is_a_move_of_the_entries() -> None:
    with full_writer() as (writer, peer):
        batch = batch_of(b"abc")
        op = writer.write(batch)
        assert (batch.bytesleft, op.batch.bytesleft) == (0, 3)
        batch.addbuf(b"def")
        writer.write(batch)
        assert await peer.read(6) == b"abcdef"


@both_loops
async def test_memory_valid_until_handler_is_held_by_the_batch() -> None:
    with full_writer() as (writer, peer):
        buffer = bytearray(b"abc")
        op = writer.write(batch_of(buffer))
        with pytest.raises(BufferError):
            buffer.append(0)
        assert await peer.read(3) == b"abc"
        await op
        buffer.append(0)


@both_loops
async def test_memory_free_in_handler_is_a_hook_that_may_run_inside_write() -> None:
    released: list[str] = []
    with Scripted(4, again()) as sock, IOBatch() as batch:
        batch.addbuf(b"abc", on_release=lambda: released.append("abc"))
        batch.addbuf(b"def", on_release=lambda: released.append("def"))
        assert (iob_send(sock, batch), released) == (4, ["abc"])
        assert (iob_send(sock, batch), released) == (-1, ["abc"])
        assert (iob_send(sock, batch), released) == (2, ["abc", "def"])
    released: list[str] = []
    with writer_pair() as (writer, _):
        batch = IOBatch()
        batch.addbuf(b"abc", on_release=lambda: released.append("abc"))
        writer.write(batch)
        assert released == ["abc"]


def test_more_than_64_buffers_go_out_together() -> None:
    """Buffers that can change are never joined, so each is one of a system call's buffers."""
    batch = batch_of(*[bytearray(b"x") for _ in range(IOV_MAX)])
    with stream_pair() as (ours, theirs):
        assert iob_send(ours, batch) == IOV_MAX
        assert receive(theirs, IOV_MAX) == b"x" * IOV_MAX
    with Scripted() as sock:
        iob_send(sock, batch_of(*[bytearray(b"x") for _ in range(65)]))
        assert [len(call.pieces) for call in sock.calls] == [65]


@both_loops
async def test_empty_sequence_is_done_at_once() -> None:
    with scripted_writer() as (writer, sock), writer_pair():
        op = writer.write(IOBatch())
        assert (op.status, await op, sock.calls) == (WriteStatus.DONE, 0, [])

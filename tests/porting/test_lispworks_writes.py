"""iobatch-lispworks(7), Write: one test for each row of the table, in the rows' order."""

from __future__ import annotations

import array
import functools
from typing import TYPE_CHECKING

import pytest

from iobatch.aio import WriteStatus
from tests.support.batches import batch_of
from tests.support.loops import both_loops, full_writer, read, turns, writer_pair
from tests.support.manpages import covered, subjects

if TYPE_CHECKING:
    from iobatch.aio import BatchWriter

PAGE = "iobatch-lispworks.7", "Write"


def ignore(*_: object) -> None:
    """Do nothing: a callback."""


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


@both_loops
async def test_async_io_state_write_buffer_is_write_buffer_and_returns_an_operation() -> None:
    with writer_pair() as (writer, peer):
        assert await writer.write_buffer(b"abc", ignore) == 3
        assert await read(peer, 3) == b"abc"


@both_loops
async def test_buffer_base_string_is_text_in_latin_1() -> None:
    with writer_pair() as (writer, peer):
        text = "caf\xe9"
        assert await writer.write_buffer(text.encode("latin-1"), ignore) == len(text)
        assert await read(peer, 4) == b"caf\xe9"


@both_loops
async def test_buffer_8_bit_array_is_any_buffer() -> None:
    with writer_pair() as (writer, peer):
        for buffer in (b"ab", bytearray(b"cd"), array.array("B", b"ef"), memoryview(b"gh")):
            writer.write_buffer(buffer, ignore)
        assert await read(peer, 8) == b"abcdefgh"
        with pytest.raises(BufferError):
            writer.write_buffer(memoryview(b"abcd")[::2], ignore)


@both_loops
async def test_contents_of_buffer_are_held_until_they_are_sent() -> None:
    with full_writer() as (writer, peer):
        buffer = bytearray(b"abc")
        op = writer.write_buffer(buffer, ignore)
        with pytest.raises(BufferError):
            buffer.append(0)
        assert await peer.read(3) == b"abc"
        await op
        buffer.append(0)


@both_loops
async def test_start_end_are_offsets_in_bytes_inside_the_data() -> None:
    with writer_pair() as (writer, peer):
        numbers = array.array("H", b"abcdef")
        writer.write_buffer(numbers, ignore, start=1, end=3)
        writer.write_buffer(numbers, ignore, start=5)
        writer.write_buffer(numbers, ignore)
        assert await read(peer, 9) == b"bcfabcdef"
        for start, end in [(0, 7), (-1, None), (3, 2)]:
            with pytest.raises(ValueError, match="<= 6"):
                writer.write_buffer(numbers, ignore, start=start, end=end)


@both_loops
async def test_timeout_is_kept_for_later_operations() -> None:
    with full_writer() as (writer, _):
        writer.write_buffer(b"abc", ignore, timeout=0)
        assert writer.timeout == 0
        assert writer.write_buffer(b"abc", ignore).status is WriteStatus.TIMEOUT
        assert writer.write(batch_of(b"abc")).status is WriteStatus.TIMEOUT
        writer.write_buffer(b"abc", ignore, timeout=None)
        assert writer.timeout is None


@both_loops
async def test_user_info_is_kept_for_later_operations() -> None:
    with writer_pair() as (writer, _):
        writer.write_buffer(b"abc", ignore, user_info="mine")
        assert writer.user_info == "mine"
        assert writer.write_buffer(b"abc", ignore).user_info == "mine"
        seen: list[tuple[object, object]] = []

        def callback(value: object, writer: BatchWriter, *_: object) -> None:
            seen.append((value, writer.user_info))

        for value in "AB":
            writer.write_buffer(b"abc", functools.partial(callback, value), user_info=value)
        await turns()
        assert seen == [("A", "B"), ("B", "B")]


@both_loops
async def test_error_callback_is_for_one_operation() -> None:
    called: list[str] = []
    with full_writer() as (writer, _):
        first = writer.write_buffer(
            b"abc",
            lambda *_: called.append("first, callback"),
            error_callback=lambda *_: called.append("first, error_callback"),
        )
        second = writer.write_buffer(b"abc", lambda *_: called.append("second, callback"))
        assert (first.cancel(), second.cancel()) == (True, True)
        await turns()
        assert called == ["first, error_callback", "second, callback"]


@both_loops
async def test_argument_not_supplied_changes_nothing_but_none_does() -> None:
    with writer_pair(timeout=7, user_info="mine") as (writer, _):
        writer.write_buffer(b"abc", ignore)
        assert (writer.timeout, writer.user_info) == (7, "mine")
        writer.write_buffer(b"abc", ignore, timeout=None, user_info=None)
        assert (writer.timeout, writer.user_info) == (None, None)


@both_loops
async def test_several_buffers_are_one_operation_of_write() -> None:
    with writer_pair() as (writer, peer):
        assert await writer.write(batch_of(b"abc", b"def")) == 6
        assert await read(peer, 6) == b"abcdef"

"""write_buffer(), LispWorks' async-io-state-write-buffer."""

from __future__ import annotations

import array
from contextlib import suppress
from typing import Any

import pytest

from iobatch.aio import BatchWriter, WriteStatus
from tests.support.batches import batch_of
from tests.support.loops import (
    both_loops,
    full_writer,
    turns,
    writer_pair,
)


@both_loops
async def test_write_buffer_sends_a_slice_and_calls_back_with_its_length() -> None:
    with writer_pair() as (writer, peer):
        calls: list[tuple[object, ...]] = []

        def callback(*arguments: object) -> None:
            calls.append((*arguments, writer.status))

        text = bytearray(b"0123456789")
        numbers = array.array("H", [1, 2, 3])
        writer.write_buffer(text, callback)
        writer.write_buffer(text, callback, start=2, end=5)
        writer.write_buffer(text, callback, start=9)
        operation = writer.write_buffer(numbers, callback, end=4)
        assert await operation == 4
        text.clear()  # a held bytearray could not be resized
        expected = b"0123456789" + b"234" + b"9" + numbers.tobytes()[:4]
        assert peer.recv(99) == expected
        assert not calls
        await turns()
        assert [call[2] for call in calls] == [10, 3, 1, 4]
        assert calls[3] == (writer, numbers, 4, WriteStatus.DONE)
        with pytest.raises(BufferError):
            writer.write_buffer(memoryview(b"abcd")[::2], callback)


@both_loops
async def test_write_buffer_keeps_timeout_and_user_info_for_later_operations() -> None:
    """None is a value, "no timeout", and doesn't mean "unchanged"."""
    with writer_pair() as (writer, _):
        first = writer.write_buffer(b"x", ignore, timeout=7, user_info="mine")
        second = writer.write_buffer(b"x", ignore)
        assert (first.user_info, second.user_info) == ("mine", "mine")
        assert (writer.timeout, writer.user_info) == (7, "mine")
        assert writer.write(batch_of(b"x"), timeout=1).user_info == "mine"
        assert writer.timeout == 7
        writer.write_buffer(b"x", ignore, timeout=None, user_info=None)
        assert (writer.timeout, writer.user_info) == (None, None)


def ignore(*_: object) -> None:
    """Do nothing: a callback."""


@both_loops
@pytest.mark.parametrize("with_error_callback", [True, False])
async def test_timeouts_go_to_callback_and_failures_to_error_callback(
    *, with_error_callback: bool
) -> None:
    """Without an error_callback, failures go to callback too."""
    with full_writer() as (writer, peer):
        calls: list[tuple[str, int, WriteStatus]] = []

        def callback(_writer: BatchWriter, _data: object, nbytes: int) -> None:
            calls.append(("callback", nbytes, writer.status))

        def failed(_writer: BatchWriter, _data: object, nbytes: int) -> None:
            calls.append(("failed", nbytes, writer.status))

        options: Any = {"error_callback": failed} if with_error_callback else {}
        writer.write_buffer(b"timeout", callback, timeout=0, **options)
        writer.write_buffer(b"cancel", callback, timeout=None, **options).cancel()
        failing = writer.write_buffer(b"error", callback, **options)
        peer.sock.close()
        with suppress(OSError):
            await failing
        name = "failed" if with_error_callback else "callback"
        assert calls == [
            ("callback", 0, WriteStatus.TIMEOUT),
            (name, 0, WriteStatus.CANCELLED),
            (name, 0, WriteStatus.ERROR),
        ]


@both_loops
@pytest.mark.parametrize(
    ("start", "end"), [(-1, None), (4, 3), (7, None), (0, 7), (2, -1), (0, -(10**30))]
)
async def test_write_buffer_refuses_a_slice_outside_the_data(start: int, end: int | None) -> None:
    """The unit is bytes: the data has three items of two."""
    with writer_pair() as (writer, _):
        numbers = array.array("H", [1, 2, 3])
        with pytest.raises(ValueError, match="<= 6"):
            writer.write_buffer(numbers, ignore, start=start, end=end, timeout=9)
        assert writer.timeout is None
        assert writer.write_buffer(numbers, ignore, start=6).bytes_transferred == 0


@both_loops
async def test_write_buffer_refuses_what_is_no_index() -> None:
    with writer_pair() as (writer, _), pytest.raises(TypeError, match="integer"):
        writer.write_buffer(b"abc", ignore, start=1.0)  # type: ignore[arg-type]

"""Released buffers: a bytearray can be resized, an mmap can be closed."""

from __future__ import annotations

import array
import errno
import mmap
import socket
from typing import Any

import pytest

from iobatch import IOB_ERROR, IOBatch, iob_send, iob_write
from tests.support.batches import take
from tests.support.fakes import Scripted


def test_bytearray_can_be_resized_once_its_last_byte_is_accepted() -> None:
    """Until then it is locked by the view that the batch holds."""
    buffer = bytearray(b"0123456789")
    batch = IOBatch()
    batch.addbuf(buffer)
    batch.addbuf(b"more")
    for _ in range(9):
        take(batch, 1)
        with pytest.raises(BufferError):
            buffer.append(0)
    take(batch, 1)
    buffer.append(0)
    assert take(batch) == b"more"


@pytest.mark.parametrize("item_format", ["B", "H"], ids=["bytes", "2-byte items"])
def test_mmap_can_be_closed_after_reset(item_format: str) -> None:
    """The batch releases every view that it made of the buffer, whatever the item size."""
    memory = mmap.mmap(-1, 100)
    batch = IOBatch()
    with memoryview(memory).cast(item_format) as view:
        batch.addbuf(view)
    with pytest.raises(BufferError):
        memory.close()
    batch.reset()
    memory.close()


def test_caller_can_release_its_memoryview_after_addbuf() -> None:
    """The batch holds a view of its own."""
    batch = IOBatch()
    with memoryview(bytearray(b"abcd")).cast("H") as view:
        batch.addbuf(view)
    assert take(batch) == b"abcd"


def test_hook_can_resize_its_bytearray_after_iob_write() -> None:
    """The view is released before the hook runs."""
    batch = IOBatch()
    buffer = bytearray(b"0123456789")
    batch.addbuf(buffer, on_release=lambda: buffer.extend(b"!"))
    take(batch, 4)
    take(batch)
    assert buffer == b"0123456789!"


@pytest.mark.parametrize("flags", [0, socket.MSG_OOB], ids=["no flags", "MSG_OOB"])
def test_hook_can_resize_its_bytearray_after_iob_send(flags: int) -> None:
    """It holds for a single buffer, and for the second of two."""
    for before in (b"", bytearray(b"other")):
        buffer = bytearray(b"0123456789")
        batch = IOBatch()
        batch.addbuf(before)
        batch.addbuf(buffer, on_release=lambda buffer=buffer: buffer.extend(b"!"))
        with Scripted(3, len(before) + 2) as sock:
            while iob_send(sock, batch, flags=flags) > 0:
                pass
        assert buffer == b"0123456789!"


@pytest.mark.parametrize("kind", ["bytearray", "array"])
def test_bytearray_can_be_resized_after_an_error_and_reset(kind: str) -> None:
    """The stored error has no traceback: its frames would hold views while the caller keeps it."""
    for accepted in (0, 3):
        buffer: Any = bytearray(40) if kind == "bytearray" else array.array("I", range(10))
        batch = IOBatch()
        batch.addbuf(buffer)
        batch.addbuf(bytearray(10))
        with Scripted(
            accepted or OSError(errno.EIO, "scripted"), OSError(errno.EIO, "again")
        ) as sock:
            while iob_send(sock, batch) > 0:
                pass
        error = batch.error
        assert isinstance(error, OSError)
        with pytest.raises(BufferError):
            buffer.append(0)
        batch.reset()
        buffer.append(0)
        assert error.__traceback__ is None


def test_bytearray_can_be_resized_after_an_error_of_a_callback_and_reset() -> None:
    """The stored error has no context and no cause, which could refer to the view of the offer."""

    def callback(_sock: None, view: memoryview) -> int:
        try:
            raise KeyError(view)
        except KeyError as exc:
            raise OSError(errno.EIO, "scripted") from exc

    buffer = bytearray(b"0123456789")
    batch = IOBatch()
    batch.addbuf(buffer)
    assert iob_write(None, batch, callback) == IOB_ERROR
    error = batch.error
    assert isinstance(error, OSError)
    assert error.__traceback__ is error.__context__ is error.__cause__ is None
    batch.reset()
    buffer.append(0)


def test_bytearray_can_be_resized_after_its_batch_is_collected() -> None:
    buffer = bytearray(b"0123456789")
    batch = IOBatch()
    batch.addbuf(buffer)
    take(batch, 3)
    del batch
    buffer.append(0)

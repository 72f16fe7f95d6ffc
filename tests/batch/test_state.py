"""The state of a batch: attributes, reset() and repr."""

from __future__ import annotations

import copy
import errno
import gc
import pickle
import selectors
import ssl
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from iobatch import IOB_AGAIN, IOB_ERROR, IOBatch, iob_write
from iobatch._entries import describe
from tests.support.batches import check_invariants, data, take
from tests.support.sockets import fd_count

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.batches import MakeFile


def test_new_batch_is_empty_without_error_and_waits_for_writing() -> None:
    batch = IOBatch()
    assert not batch
    assert (batch.bytesleft, batch.bytessent, batch.error) == (0, 0, None)
    assert batch.wants == selectors.EVENT_WRITE
    check_invariants(batch)


def test_attributes_of_a_batch_cannot_be_set() -> None:
    batch = IOBatch()
    for name in ("bytesleft", "bytessent", "error", "wants", "other"):
        with pytest.raises(AttributeError):
            setattr(batch, name, 1)


def test_batch_equals_only_itself() -> None:
    batch = IOBatch()
    assert batch != IOBatch()
    assert {batch: 1}[batch] == 1


def test_constructor_refuses_arguments(unraisable: list[BaseException | None]) -> None:
    """The finalizer of the half-made object raises nothing."""
    with pytest.raises(TypeError):
        IOBatch(b"data")  # type: ignore[call-arg]
    gc.collect()
    assert unraisable == []


def test_raise_for_error_raises_a_copy_of_the_error() -> None:
    """The stored error gains no traceback, whose frames would hold views and batches."""
    batch = IOBatch()
    batch.raise_for_error()
    batch.addbuf(b"0123456789")
    error = ConnectionResetError(errno.ECONNRESET, "scripted")

    def callback(_sock: None, _view: memoryview) -> int:
        raise error

    assert iob_write(None, batch, callback) == IOB_ERROR
    for _ in range(2):
        with pytest.raises(ConnectionResetError, match="scripted") as caught:
            batch.raise_for_error()
        assert caught.value is not batch.error
        assert caught.value.errno == errno.ECONNRESET
    assert batch.error is error
    assert error.__traceback__ is None
    batch.reset()
    batch.raise_for_error()


def test_raise_for_error_raises_nothing_during_a_call() -> None:
    """The error that is stored meanwhile is the state of a call in progress."""
    batch = IOBatch()
    batch.addbuf(b"0123456789")

    def callback(_sock: None, view: memoryview) -> int:
        batch.raise_for_error()
        return len(view)

    assert iob_write(None, batch, callback) == 10


def test_reset_drops_entries_and_clears_counts_error_and_wants() -> None:
    """The batch can be used again, and a second reset() does nothing."""
    batch = IOBatch()
    batch.addbuf(b"0123456789")
    take(batch, 4)

    def callback(_sock: None, _view: memoryview) -> int:
        raise ssl.SSLWantReadError

    assert iob_write(None, batch, callback) == IOB_AGAIN
    assert batch.wants == selectors.EVENT_READ
    batch.reset()
    assert batch.wants == selectors.EVENT_WRITE
    batch.addbuf(b"0123456789")
    take(batch, 4)
    assert iob_write(None, batch, lambda _sock, _view: -3) == IOB_ERROR
    batch.reset()
    check_invariants(batch)
    assert (batch.bytesleft, batch.bytessent, batch.error) == (0, 0, None)
    assert batch.wants == selectors.EVENT_WRITE
    batch.addbuf(b"again")
    assert take(batch) == b"again"
    batch.reset()
    batch.reset()


def test_reset_drops_the_pin() -> None:
    batch = IOBatch()
    batch.addbuf(b"0123456789")
    assert iob_write(None, batch, lambda _sock, _view: -1, limit=7) == IOB_AGAIN
    batch.reset()
    batch.prepend(b"new")
    assert take(batch) == b"new"


@pytest.mark.parametrize("fails", [False, True], ids=["normal exit", "exception"])
def test_with_block_resets_the_batch_on_exit(tmp_path: Path, *, fails: bool) -> None:
    """An exception that leaves the block is not suppressed."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    before = fd_count()
    batch = IOBatch()
    with pytest.raises(KeyError) if fails else nullcontext(), batch as entered:
        assert entered is batch
        batch.addfile(path)
        assert fd_count() == before + 1
        if fails:
            raise KeyError
    assert (batch.bytesleft, fd_count()) == (0, before)


def test_repr_shows_bytes_left_bytes_sent_and_the_error(make_file: MakeFile) -> None:
    batch = IOBatch()
    assert "IOBatch" in repr(batch)
    batch.addbuf(bytearray(1234), on_release=lambda: None)
    batch.addbuf(bytes(4321))
    batch.addfile(make_file(data(100)))
    assert "5655" in repr(batch)
    assert "3 entries, the first: a buffer of 1234 bytes" in repr(batch)
    take(batch, 34)
    assert "5621" in repr(batch)
    assert "34" in repr(batch)
    take(batch, 1200)
    assert "4421" in repr(batch)
    take(batch, 4321)
    assert "1 entries, the first: 100 bytes of descriptor" in repr(batch)
    iob_write(None, batch, lambda _sock, _view: 0)
    assert "BrokenPipeError" in repr(batch)
    other = IOBatch()
    other.addfile(make_file(data(77)))
    assert "77" in repr(other)
    batch.reset()


def test_batch_can_be_neither_copied_nor_pickled() -> None:
    """Two batches with the same entries would release them twice."""
    batch = IOBatch()
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            duplicate(batch)


def test_released_buffer_can_be_described() -> None:
    """Other code may release the first entry while repr() runs."""
    view = memoryview(b"hello")
    view.release()
    assert describe(view) == "a released buffer"


def test_each_batch_has_its_own_error_if_its_count_is_unknown() -> None:
    """A caller may raise it, and its traceback must not grow."""

    def lack_memory(_sock: None, _view: memoryview) -> int:
        raise MemoryError

    errors = []
    for _ in range(2):
        batch = IOBatch()
        batch.addbuf(b"hello")
        with pytest.raises(MemoryError):
            iob_write(None, batch, lack_memory)
        assert batch.error is batch.error
        errors.append(batch.error)
    assert errors[0] is not errors[1]

"""The errors that iob_sendall raises."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch, TruncatedFileError, iob_sendall
from tests.support.batches import batch_of, check_invariants, data
from tests.support.fakes import Scripted

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


def test_error_of_the_batch_is_raised_by_each_call() -> None:
    """After the first call no system call is made."""
    batch = batch_of(b"hello")
    with Scripted(2, BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))) as sock:
        for _ in range(2):
            with pytest.raises(BrokenPipeError, match=os.strerror(errno.EPIPE)) as caught:
                iob_sendall(sock, batch)
            assert caught.value.errno == errno.EPIPE
            assert isinstance(batch.error, BrokenPipeError)
            assert (batch.bytessent, batch.bytesleft) == (2, 3)
        assert len(sock.calls) == 2
    check_invariants(batch)


def test_raised_truncated_file_error_has_its_attributes(make_file: MakeFile) -> None:
    """The raised error is a copy of the stored one."""
    fd = make_file(data(100))
    batch = IOBatch()
    batch.addfile(fd)
    os.ftruncate(fd, 40)
    with Scripted() as sock, pytest.raises(TruncatedFileError) as caught:
        iob_sendall(sock, batch)
    error = caught.value
    assert (error.fd, error.offset, error.missing) == (fd, 40, 60)
    batch.reset()


def test_raised_error_leaves_no_traceback_in_batch_error() -> None:
    """The frames of a traceback would keep the failed batch alive."""
    released: list[bool] = []
    batch = IOBatch()
    batch.addbuf(b"hello", on_release=lambda: released.append(True))
    with Scripted(OSError(errno.EPIPE, "scripted")) as sock:
        with suppress(BrokenPipeError):
            iob_sendall(sock, batch)
        assert isinstance(batch.error, BrokenPipeError)
        assert batch.error.__traceback__ is None
        del batch
    assert released == [True]


def test_buffer_can_be_resized_while_the_error_is_handled() -> None:
    """No frame of the traceback has a view of the buffer after reset()."""
    buffer = bytearray(b"hello")
    batch = IOBatch()
    batch.addbuf(buffer)
    with Scripted(2, OSError(errno.EPIPE, "scripted")) as sock:
        try:
            iob_sendall(sock, batch)
        except BrokenPipeError:
            batch.reset()
            buffer.append(0)
    assert buffer == b"hello\0"


def test_other_exception_of_the_callback_propagates_and_loses_nothing() -> None:
    outcomes: list[Any] = [2, KeyError("scripted")]

    def callback(_sock: object, view: memoryview) -> int:
        outcome = outcomes.pop(0) if outcomes else len(view)
        if isinstance(outcome, Exception):
            raise outcome
        return int(outcome)

    batch = batch_of(b"hello")
    with pytest.raises(KeyError):
        iob_sendall(None, batch, callback)
    assert batch.bytessent == 2
    assert iob_sendall(None, batch, callback) == 3


def test_error_that_cannot_be_copied_is_raised_itself() -> None:
    """The copy module calls the class with `args`, which this __init__ doesn't accept."""

    class OddError(OSError):
        def __init__(self, a: int, b: int, c: int) -> None:
            super().__init__(errno.EIO, "odd")
            self.all = (a, b, c)

    def callback(_sock: None, _view: memoryview) -> int:
        raise OddError(1, 2, 3)

    batch = IOBatch()
    batch.addbuf(b"x")
    with pytest.raises(OddError) as caught:
        iob_sendall(None, batch, callback)
    assert caught.value.all == (1, 2, 3)

"""The return values of iob_send, and the error that a batch keeps."""

from __future__ import annotations

import errno
import selectors
import ssl
from typing import TYPE_CHECKING

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_send, iob_write
from tests.support.batches import IOV_MAX, check_invariants, data
from tests.support.fakes import Scripted, again
from tests.support.send import send_repeatedly

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


def test_empty_batch_is_done_without_a_system_call() -> None:
    with Scripted() as sock:
        assert iob_send(sock, IOBatch()) == IOB_DONE
        assert sock.calls == []


def test_count_is_returned_first_then_done() -> None:
    """Done comes with the next call, which makes no system call."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    with Scripted() as sock:
        assert iob_send(sock, batch) == 5
        assert (batch.bytesleft, batch.bytessent) == (0, 5)
        assert iob_send(sock, batch) == IOB_DONE
        assert len(sock.calls) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        BlockingIOError(errno.EAGAIN, "scripted"),
        OSError(errno.EWOULDBLOCK, "scripted"),
        TimeoutError("timed out"),
    ],
    ids=repr,
)
def test_refusal_is_again_and_changes_nothing(refusal: OSError) -> None:
    """A socket's own timeout is a TimeoutError without errno."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    with Scripted(refusal, refusal) as sock:
        assert iob_send(sock, batch) == IOB_AGAIN
        assert iob_send(sock, batch) == IOB_AGAIN
        assert (batch.bytesleft, batch.bytessent, batch.error) == (5, 0, None)
        assert batch.wants == selectors.EVENT_WRITE
        assert send_repeatedly(sock, batch) == [5, 0]
        assert sock.taken == b"hello"


@pytest.mark.parametrize(
    "number",
    [
        errno.EPIPE,
        errno.ECONNRESET,
        errno.ENOBUFS,
        errno.ENOTCONN,
        errno.EHOSTUNREACH,
        errno.ETIMEDOUT,
        errno.EIO,
        errno.EFAULT,
    ],
    ids=errno.errorcode.get,
)
def test_other_errnos_are_permanent_until_reset(number: int) -> None:
    """ETIMEDOUT is permanent: the connection has ended. A failed batch makes no system call."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    with Scripted(OSError(number, "scripted")) as sock:
        for _ in range(3):
            assert iob_send(sock, batch) == IOB_ERROR
            assert isinstance(batch.error, OSError)
            assert batch.error.errno == number
        assert len(sock.calls) == 1
        assert batch.bytesleft == 5
        batch.addbuf(b" still refused")
        assert iob_send(sock, batch) == IOB_ERROR
        batch.reset()
        assert batch.error is None
        assert iob_send(sock, batch) == IOB_DONE
        batch.addbuf(b"new")
        assert iob_send(sock, batch) == 3


def test_stored_error_has_no_traceback_context_or_cause() -> None:
    """The frames of a traceback would keep views and batches alive."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    try:
        raise KeyError  # the context that must not be kept
    except KeyError:
        with Scripted(OSError(errno.EIO, "scripted")) as sock:
            assert iob_send(sock, batch) == IOB_ERROR
    assert isinstance(batch.error, OSError)
    assert batch.error.__traceback__ is None
    assert batch.error.__context__ is None
    assert batch.error.__cause__ is None


@pytest.mark.parametrize(
    ("refusal", "code"),
    [(again(), IOB_AGAIN), (OSError(errno.EPIPE, "scripted"), IOB_ERROR)],
    ids=["again", "error"],
)
def test_count_is_returned_first_then_the_code_of_a_refusal(refusal: OSError, code: int) -> None:
    """After a permanent error the code comes without another system call."""
    batch = IOBatch()
    for _ in range(IOV_MAX + 5):
        batch.addbuf(bytearray(b"x"))
    with Scripted(IOV_MAX, refusal, refusal) as sock:
        assert iob_send(sock, batch) == IOV_MAX
        assert len(sock.calls) == 2
        assert (batch.bytesleft, batch.bytessent) == (5, IOV_MAX)
        assert iob_send(sock, batch) == code
        assert len(sock.calls) == (3 if code == IOB_AGAIN else 2)


def test_send_that_takes_nothing_is_not_done() -> None:
    batch = IOBatch()
    batch.addbuf(b"hello")
    with Scripted(0) as sock:
        assert iob_send(sock, batch) != IOB_DONE


def test_exception_other_than_oserror_propagates_and_loses_nothing(make_file: MakeFile) -> None:
    """The next call on the batch is accepted, and sends everything."""
    content = data(100)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(make_file(content))
    with Scripted(ZeroDivisionError()) as sock:
        with pytest.raises(ZeroDivisionError):
            iob_send(sock, batch)
        check_invariants(batch)
        assert send_repeatedly(sock, batch) == [106, 0]
        assert sock.taken == b"header" + content


def test_again_sets_wants_to_write_after_a_callback_wanted_to_read() -> None:
    def callback(_sock: None, _view: memoryview) -> int:
        raise ssl.SSLWantReadError

    batch = IOBatch()
    batch.addbuf(b"hello")
    assert iob_write(None, batch, callback) == IOB_AGAIN
    assert batch.wants == selectors.EVENT_READ
    with Scripted(again()) as sock:
        assert iob_send(sock, batch) == IOB_AGAIN
    assert batch.wants == selectors.EVENT_WRITE

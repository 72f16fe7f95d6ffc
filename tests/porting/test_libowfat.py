"""Coming from libowfat: one test for each row of the first tables in iobatch-libowfat(7).

test_libowfat_waiting.py has the tests for its tables of callbacks and of the event loop, and
tests/test_departures.py those for its table of departures.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from array import array
from selectors import EVENT_WRITE
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import (
    IOB_AGAIN,
    IOB_DONE,
    IOB_ERROR,
    IOBatch,
    iob_send,
    iob_sendmsg,
    iob_write,
)
from tests.support.batches import batch_of, data, mmap_of, take
from tests.support.fakes import Scripted, patch_os
from tests.support.manpages import covered, subjects
from tests.support.sockets import clog, receive, stream_pair
from tests.support.write import Sink

if TYPE_CHECKING:
    from tests.support.batches import MakeFile

PAGE = ("iobatch-libowfat.7", "Functions", "Return values")


def test_the_tests_here_and_the_rows_of_the_tables_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


# Functions


def test_iob_new_iob_init_make_an_empty_batch() -> None:
    assert not IOBatch()


def test_iob_addbuf_holds_the_first_n_bytes_of_an_array_after_a_cast() -> None:
    buf = bytearray(b"abcdef")
    batch = IOBatch()
    batch.addbuf(memoryview(buf)[:3])
    with pytest.raises(BufferError):
        buf.clear()
    assert take(batch) == b"abc"
    buf.clear()
    items = array("i", [1, 2])
    batch.addbuf(memoryview(items).cast("B")[:5])
    assert take(batch) == items.tobytes()[:5]


def test_iob_addbuf_free_calls_the_hook_after_the_last_byte_and_not_after_an_error() -> None:
    freed: list[str] = []
    batch = IOBatch()
    batch.addbuf(b"abc", on_release=lambda: freed.append("sent"))
    batch.addbuf(b"def", on_release=lambda: freed.append("reset"))
    take(batch, 3)
    assert freed == ["sent"]
    batch.reset()
    assert freed == ["sent", "reset"]
    with pytest.raises(TypeError):
        batch.addbuf("str", on_release=lambda: freed.append("refused"))  # type: ignore[arg-type]
    assert freed == ["sent", "reset"]


def test_iob_addbuf_munmap_closes_the_mapping_unless_there_is_another_view(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reports: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: reports.append(report.exc_type))
    mapping = mmap_of(b"abcdef")
    batch = IOBatch()
    batch.addbuf(memoryview(mapping)[:3], on_release=mapping.close)
    assert take(batch) == b"abc"
    assert (mapping.closed, reports) == (True, [])
    mapping = mmap_of(b"abcdef")
    with memoryview(mapping) as view:
        batch.addbuf(view[:3], on_release=mapping.close)
        assert take(batch) == b"abc"
        assert (mapping.closed, reports) == (False, [BufferError])


def test_iob_adds_encodes_all_of_the_str() -> None:
    batch = IOBatch()
    batch.adds("a\0\xe9")
    assert take(batch) == b"a\0\xc3\xa9"


def test_iob_adds_free_is_adds() -> None:
    batch = IOBatch()
    batch.adds("abc".upper())
    assert take(batch) == b"ABC"


def test_iob_addfile_borrows_the_descriptor(make_file: MakeFile) -> None:
    fd = make_file(b"abcdef")
    batch = IOBatch()
    batch.addfile(fd, 1, 3)
    assert take(batch) == b"bcd"
    assert os.pread(fd, 6, 0) == b"abcdef"


@pytest.mark.parametrize("end", ["sent", "reset", "refused"])
def test_iob_addfile_close_closes_the_descriptor(end: str, make_file: MakeFile) -> None:
    fd = os.dup(make_file(b"abcdef"))
    batch = IOBatch()
    if end == "refused":
        with pytest.raises(ValueError, match="-1"):
            batch.addfile_close(fd, 0, -1)
    else:
        batch.addfile_close(fd, 1, 3)
        assert os.fstat(fd)
        if end == "sent":
            assert take(batch) == b"bcd"
        else:
            batch.reset()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_iob_bytesleft_is_a_number_of_bytes(make_file: MakeFile) -> None:
    batch = batch_of(b"abc")
    batch.addbuf(array("i", [1, 2]))
    batch.addfile(make_file(b"abcdef"), 1, 3)
    assert batch.bytesleft == 3 + 2 * array("i").itemsize + 3


def test_iob_prefetch_advises_the_kernel(
    monkeypatch: pytest.MonkeyPatch, make_file: MakeFile
) -> None:
    advised: list[tuple[int, ...]] = []
    patch_os(monkeypatch, "posix_fadvise", lambda *args: advised.append(args))
    fd = make_file(bytes(1000))
    batch = IOBatch()
    batch.addfile(fd)
    batch.prefetch(600)
    assert advised == [(fd, 0, 600, os.POSIX_FADV_WILLNEED)]


def test_iob_send_takes_a_socket_or_a_descriptor() -> None:
    with stream_pair() as (ours, theirs):
        batch = batch_of(b"abcdef")
        assert iob_send(ours, batch, limit=4) == 4
        assert iob_send(ours.fileno(), batch) == 2
        assert receive(theirs, 6) == b"abcdef"


def test_iob_write_gives_any_object_to_the_callback() -> None:
    seen: list[object] = []
    connection = object()
    batch = batch_of(b"abc")
    assert iob_write(connection, batch, lambda sock, view: seen.append(sock) or len(view)) == 3
    assert seen == [connection]


def test_iob_reset_drops_the_error_and_what_extend_has_not_moved() -> None:
    batch, other = batch_of(b"abc"), IOBatch()
    assert iob_write(None, batch, Sink(-3)) == IOB_ERROR
    other.extend(batch)
    assert take(other) == b"abc"
    batch.reset()
    assert (batch.bytesleft, batch.error) == (0, None)
    batch.addbuf(b"def")
    assert take(batch) == b"def"


def test_iob_free_is_the_end_of_the_with_statement_or_of_the_last_reference() -> None:
    freed: list[str] = []
    with IOBatch() as batch:
        batch.addbuf(b"abc", on_release=lambda: freed.append("with"))
    assert freed == ["with"]
    batch.addbuf(b"abc", on_release=lambda: freed.append("collected"))
    del batch
    assert freed == ["with", "collected"]


def test_io_sendfile_is_a_batch_of_one_range(make_file: MakeFile) -> None:
    content = data(100_000)
    with stream_pair() as (ours, theirs), IOBatch() as batch:
        batch.addfile(make_file(content), 1, 99_998)
        assert iob_send(ours, batch) == 99_998
        assert receive(theirs, 99_998) == content[1:-1]


def test_io_mmapwritefile_is_a_batch_of_one_range(make_file: MakeFile) -> None:
    sink = Sink()
    with IOBatch() as batch:
        batch.addfile(make_file(b"abcdef"), 1, 4)
        assert iob_write(None, batch, sink) == 4
    assert sink.taken == b"bcde"


def test_io_passfd_is_a_message_with_a_byte(make_file: MakeFile) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [make_file(b"passed")]))]
    with stream_pair() as (ours, theirs):
        assert iob_sendmsg(ours, IOBatch(), rights) == IOB_DONE
        assert iob_sendmsg(ours, batch_of(b"x"), rights) == 1
        with pytest.raises(TypeError):
            iob_sendmsg(ours.fileno(), batch_of(b"x"), rights)  # type: ignore[arg-type]
        message, [fd], _, _ = socket.recv_fds(theirs, 10, 1)
    assert (message, os.pread(fd, 10, 0)) == (b"x", b"passed")
    os.close(fd)


def test_io_receivefd_is_recv_fds(make_file: MakeFile) -> None:
    with stream_pair() as (ours, theirs):
        socket.send_fds(ours, [b"x"], [make_file(b"passed")])
        message, [fd], _, _ = socket.recv_fds(theirs, 1, 1)
        ours.close()
        assert socket.recv_fds(theirs, 1, 1)[1] == []
    assert (message, os.pread(fd, 10, 0)) == (b"x", b"passed")
    assert os.get_inheritable(fd)
    os.set_inheritable(fd, False)
    os.close(fd)


# Return values


def test_1_of_iob_add_is_none() -> None:
    assert IOBatch().addbuf(b"abc") is None  # type: ignore[func-returns-value]


def test_0_of_iob_add_is_an_exception_and_the_batch_is_as_before() -> None:
    batch = batch_of(b"abc")
    with pytest.raises(FileNotFoundError):
        batch.addfile("/does/not/exist")
    assert take(batch) == b"abc"


def test_n_bytes_are_what_this_call_has_written() -> None:
    with Scripted(2) as sock:
        batch = batch_of(b"abc")
        assert [iob_send(sock, batch) for _ in range(2)] == [2, 1]


def test_0_is_the_code_of_an_empty_batch_only() -> None:
    with stream_pair() as (ours, _theirs):
        batch = batch_of(b"abc")
        assert [iob_send(ours, batch) for _ in range(3)] == [3, IOB_DONE, IOB_DONE]


def test_minus_1_is_the_code_of_a_full_socket() -> None:
    with stream_pair(buffers=4096) as (ours, _theirs):
        clog(ours)
        batch = batch_of(b"abc")
        assert iob_send(ours, batch) == IOB_AGAIN
        assert (batch.wants, batch.error) == (EVENT_WRITE, None)


def test_minus_3_is_returned_until_reset() -> None:
    sink = Sink(OSError(errno.EIO, "scripted"))
    batch = batch_of(b"abc")
    assert [iob_write(None, batch, sink) for _ in range(3)] == [IOB_ERROR] * 3
    assert len(sink.offers) == 1
    batch.reset()
    batch.addbuf(b"abc")
    assert iob_write(None, batch, sink) == 3


def test_errno_after_minus_3_is_in_the_error() -> None:
    with stream_pair() as (ours, theirs):
        theirs.close()
        batch = batch_of(b"abc")
        assert iob_send(ours, batch) == IOB_ERROR
    assert batch.error is not None
    assert batch.error.errno == errno.EPIPE
    with pytest.raises(BrokenPipeError):
        batch.raise_for_error()

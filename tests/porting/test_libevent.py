"""Coming from libevent: one test for each row of the tables about evbuffer.

test_libevent_bufferevent.py and test_libevent_filters.py have the tests for the other tables in
iobatch-libevent(7).
"""

from __future__ import annotations

import errno
import os
import socket
from functools import partial
from typing import TYPE_CHECKING

import pytest

from iobatch import (
    IOB_AGAIN,
    IOB_DONE,
    IOB_ERROR,
    SEND_LIMIT,
    IOBatch,
    TruncatedFileError,
    iob_send,
    iob_sendall,
    iob_write,
)
from tests.support.batches import batch_of, data, take
from tests.support.fakes import Scripted, script_sendfile
from tests.support.manpages import covered, subjects
from tests.support.sockets import clog, receive, stream_pair

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.batches import MakeFile

PAGE = ("iobatch-libevent.7", "evbuffer", "Return values")
LARGE = 100_000  # bytes of a range that goes by sendfile


def test_the_tests_here_and_the_rows_of_the_tables_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


# evbuffer


def test_evbuffer_new_makes_an_empty_batch() -> None:
    assert not IOBatch()


def test_evbuffer_free_is_reset_or_the_end_of_the_with_statement(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"def")
    file = (tmp_path / "file").open("rb")
    freed: list[str] = []
    with IOBatch() as batch:
        batch.addbuf(b"abc", on_release=lambda: freed.append("abc"))
        batch.addfile_close(file)
    assert (freed, file.closed, batch.bytesleft) == (["abc"], True, 0)


def test_evbuffer_add_holds_the_buffer_and_bytes_copies_it() -> None:
    buffer = bytearray(b"abc")
    batch = IOBatch()
    batch.addbuf(buffer)
    batch.addbuf(bytes(buffer))
    buffer[:] = b"ABC"
    assert take(batch) == b"ABCabc"


def test_evbuffer_add_printf_is_adds() -> None:
    batch = IOBatch()
    batch.adds(f"{7:03}\xe9")
    assert take(batch) == b"007\xc3\xa9"


def test_evbuffer_add_iovec_adds_several_buffers_without_a_copy() -> None:
    buffers = [bytearray(b"abc"), bytearray(b"def")]
    batch = IOBatch()
    batch.addbufs(buffers)
    buffers[1][:] = b"DEF"
    assert take(batch) == b"abcDEF"


def test_evbuffer_add_reference_calls_the_hook_without_arguments() -> None:
    freed: list[bytes] = []
    batch = IOBatch()
    batch.addbuf(b"abc", on_release=partial(freed.append, b"abc"))
    assert take(batch, 2) == b"ab"
    assert freed == []
    assert take(batch) == b"c"
    assert freed == [b"abc"]


@pytest.mark.parametrize("count", [None, -1])
def test_evbuffer_add_file_closes_the_descriptor(count: int | None, make_file: MakeFile) -> None:
    fd = os.dup(make_file(b"abcdef"))
    batch = IOBatch()
    if count is None:
        batch.addfile_close(fd, 1)
        assert take(batch) == b"bcdef"
    else:
        with pytest.raises(ValueError, match="-1"):
            batch.addfile_close(fd, 1, count)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_evbuffer_add_file_segment_adds_one_file_to_several_batches(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abcdef")
    one, other = IOBatch(), IOBatch()
    with (tmp_path / "file").open("rb") as file:
        one.addfile(file, 1, 3)
        other.addfile(file, 2, 3)
        assert (take(one), take(other)) == (b"bcd", b"cde")


def test_evbuffer_file_segment_add_cleanup_cb_is_a_hook_of_each_range(make_file: MakeFile) -> None:
    fd = make_file(b"abcdef")
    freed: list[int] = []
    batch = IOBatch()
    for offset in (0, 3):
        batch.addfile(fd, offset, 3, on_release=partial(freed.append, offset))
    take(batch, 3)
    assert freed == [0]
    take(batch)
    assert freed == [0, 3]


def test_evbuf_fs_close_on_free_is_addfile_close_or_a_count_of_several_ranges(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_bytes(b"abcdef")
    file, segment = ((tmp_path / "file").open("rb") for _ in range(2))
    one, other = IOBatch(), IOBatch()
    one.addfile_close(file)
    assert (take(one), file.closed) == (b"abcdef", True)

    unsent = [0, 3]

    def on_release() -> None:
        unsent.pop()
        if not unsent:
            segment.close()

    one.addfile(segment, 0, 3, on_release=on_release)
    other.addfile(segment, 3, 3, on_release=on_release)
    assert (take(one), segment.closed) == (b"abc", False)
    assert (take(other), segment.closed) == (b"def", True)


def test_evbuffer_add_buffer_is_extend() -> None:
    batch, other = batch_of(b"abc"), batch_of(b"def")
    batch.extend(other)
    assert (take(batch), other.bytesleft) == (b"abcdef", 0)


def test_evbuffer_add_buffer_reference_adds_the_buffers_to_each_batch() -> None:
    buffer = bytearray(b"abc")
    one, other = IOBatch(), IOBatch()
    one.addbuf(buffer)
    other.addbuf(buffer)
    buffer[:] = b"ABC"
    assert (take(one), take(other)) == (b"ABC", b"ABC")


def test_evbuffer_prepend_adds_before_the_rest() -> None:
    batch = batch_of(b"def")
    batch.prepend(b"abc")
    assert take(batch) == b"abcdef"


def test_evbuffer_prepend_buffer_is_extend_twice() -> None:
    batch, other = batch_of(b"def"), batch_of(b"abc")
    other.extend(batch)
    batch.extend(other)
    assert (take(batch), other.bytesleft) == (b"abcdef", 0)


def test_evbuffer_drain_is_a_callback_that_drops(make_file: MakeFile) -> None:
    batch = batch_of(b"abc")
    batch.addfile(make_file(b"def"))
    for wanted, rest in ((4, 2), (9, 0)):
        n = min(wanted, batch.bytesleft)
        while n:
            n -= iob_write(None, batch, lambda _, view: len(view), limit=n)
        assert batch.bytesleft == rest
    batch = batch_of(b"abc")
    batch.reset()
    assert not batch


def test_evbuffer_remove_is_a_callback_that_copies() -> None:
    copied = bytearray()

    def copy(_sock: None, view: memoryview) -> int:
        copied.extend(view)
        return len(view)

    batch = batch_of(b"abc", b"def")
    assert iob_write(None, batch, copy, limit=4) == 4
    assert (copied, take(batch)) == (b"abcd", b"ef")


def test_evbuffer_get_length_is_bytesleft() -> None:
    assert batch_of(b"abc", b"def").bytesleft == 6


def test_evbuffer_write_goes_on_until_the_batch_is_sent(
    monkeypatch: pytest.MonkeyPatch, make_file: MakeFile
) -> None:
    """Two system calls: the buffer by sendmsg, and the range by sendfile."""
    with Scripted() as sock:
        counts = script_sendfile(monkeypatch, sock)
        batch = batch_of(bytes(SEND_LIMIT))
        batch.addfile(make_file(bytes(LARGE)))
        assert iob_send(sock, batch, limit=None) == SEND_LIMIT + LARGE
        assert counts


def test_evbuffer_write_atmost_is_limit_for_files_too(make_file: MakeFile) -> None:
    with stream_pair() as (ours, theirs), IOBatch() as batch:
        batch.addfile(make_file(data(LARGE)))
        assert iob_send(ours, batch, limit=50_000) == 50_000
        assert receive(theirs, 50_000) == data(LARGE)[:50_000]
        assert batch.bytesleft == LARGE - 50_000


def test_evbuffer_add_cb_n_deleted_is_progress_or_the_count_that_includes_dropped_bytes() -> None:
    deleted: list[int] = []
    with stream_pair() as (ours, _theirs):
        batch = batch_of(b"abcdefgh")
        before = batch.bytessent
        iob_write(None, batch, lambda _, view: len(view), limit=2)
        assert batch.bytessent - before == 2
        iob_sendall(ours, batch, limit=4, progress=deleted.append)
        assert batch.bytessent - before == 8
    assert deleted == [4, 2]


# Return values


def test_evbuffer_write_n_bytes_is_the_number_of_bytes() -> None:
    with Scripted(2) as sock:
        batch = batch_of(b"abc")
        assert [iob_send(sock, batch) for _ in range(2)] == [2, 1]


def test_evbuffer_write_minus_1_eagain_is_minus_1() -> None:
    with stream_pair(buffers=4096) as (ours, _theirs):
        clog(ours)
        batch = batch_of(b"abc")
        assert iob_send(ours, batch) == IOB_AGAIN
        assert batch.error is None


def test_evbuffer_write_0_a_file_eagain_is_minus_1(make_file: MakeFile) -> None:
    with stream_pair(buffers=4096) as (ours, _theirs), IOBatch() as batch:
        clog(ours)
        batch.addfile(make_file(bytes(LARGE)))
        assert iob_send(ours, batch) == IOB_AGAIN


def test_evbuffer_write_minus_1_empty_is_0() -> None:
    with socket.socket() as sock:
        assert iob_send(sock, IOBatch()) == IOB_DONE


def test_evbuffer_write_0_short_file_is_a_truncated_file_error(make_file: MakeFile) -> None:
    with stream_pair() as (ours, _theirs), IOBatch() as batch:
        batch.addfile(make_file(bytes(LARGE)), 0, LARGE + 1)
        assert [iob_send(ours, batch) for _ in range(2)] == [LARGE, IOB_ERROR]
        assert isinstance(batch.error, TruncatedFileError)


def test_evbuffer_write_minus_1_other_errno_is_minus_3_until_reset() -> None:
    with stream_pair() as (ours, theirs):
        theirs.close()
        batch = batch_of(b"abc")
        assert [iob_send(ours, batch) for _ in range(2)] == [IOB_ERROR] * 2
        assert batch.error is not None
        assert batch.error.errno == errno.EPIPE
        batch.reset()
        assert iob_send(ours, batch) == IOB_DONE


def test_minus_1_of_functions_that_add_is_an_exception() -> None:
    batch = batch_of(b"abc")
    with pytest.raises(TypeError):
        batch.addbufs([b"def", "str"])  # type: ignore[list-item]
    assert take(batch) == b"abc"

"""Departures from libowfat: one test for each row of the table in iobatch-libowfat(7).

A test's name is the row's subject followed by what iobatch does; the tests are in the rows' order.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import socket
from selectors import EVENT_WRITE, DefaultSelector
from typing import TYPE_CHECKING

import pytest

from iobatch import (
    COPY_LIMIT,
    IOB_AGAIN,
    IOB_DONE,
    IOB_ERROR,
    SEND_LIMIT,
    WRITE_LIMIT,
    IOBatch,
    TruncatedFileError,
    iob_send,
    iob_write,
)
from tests.support.batches import IOV_MAX, batch_of, data, take
from tests.support.drivers import pump
from tests.support.fakes import Scripted, again, patch_os, script_sendfile
from tests.support.manpages import covered, subjects
from tests.support.programs import run_python
from tests.support.sockets import PATIENCE, fd_count, receive, stream_pair, takes_no_more

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.batches import MakeFile

DEPARTURES = ("iobatch-libowfat.7", "Departures from libowfat")
MSG_ZEROCOPY = 0x4000000  # of Linux; Python has no name for it
LARGE = COPY_LIMIT + 1  # the shortest range that goes by sendfile


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *DEPARTURES) == subjects(*DEPARTURES)


@pytest.mark.parametrize("count", [COPY_LIMIT, 2 * COPY_LIMIT], ids=["read", "sendfile"])
def test_a_file_that_ends_early_is_a_truncated_file_error(count: int, make_file: MakeFile) -> None:
    fd = make_file(bytes(100))
    with stream_pair() as (ours, _theirs), IOBatch() as batch:
        batch.addfile(fd, 0, count)
        assert [iob_send(ours, batch) for _ in range(3)] == [100, IOB_ERROR, IOB_ERROR]
        assert isinstance(batch.error, TruncatedFileError)
        assert (batch.error.offset, batch.error.missing) == (100, count - 100)


def test_socket_full_after_some_bytes_gives_their_number_then_minus_1() -> None:
    """The second of two system calls finds the socket full."""
    with Scripted(20 * IOV_MAX, again(), again()) as sock:
        batch = batch_of(*[bytes(20)] * (IOV_MAX + 1))
        assert [iob_send(sock, batch) for _ in range(3)] == [20 * IOV_MAX, IOB_AGAIN, 20]
        assert batch.error is None


def test_more_than_iov_max_buffers_are_sent() -> None:
    """Buffers that can change are never joined, so each is one of a system call's buffers."""
    content = data(2 * IOV_MAX + 1)
    batch = batch_of(*[bytearray([byte]) for byte in content])
    with stream_pair() as (ours, theirs):
        assert iob_send(ours, batch) == len(content)
        assert receive(theirs, len(content)) == content


def test_tcp_cork_is_removed_by_each_call_except_the_callers(
    monkeypatch: pytest.MonkeyPatch, make_file: MakeFile
) -> None:
    fd = make_file(data(1 << 20))
    sendfile = os.sendfile
    corks = []

    def observed(out: int, *args: int) -> int:
        corks.append(cork())
        return sendfile(out, *args)

    def cork() -> int:
        return ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)

    patch_os(monkeypatch, "sendfile", observed)
    with stream_pair("tcp4", buffers=4096) as (ours, _theirs), IOBatch() as batch:
        ours.setblocking(False)
        batch.addbuf(b"header")
        batch.addfile(fd)
        batch.addbuf(b"trailer")
        is_full = False
        while not is_full:
            is_full = takes_no_more(ours)
            while iob_send(ours, batch) > 0:
                assert not cork()
        assert (batch.error, cork()) == (None, 0)  # after -1
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        assert (iob_send(ours, batch), cork()) == (IOB_AGAIN, 1)
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        os.ftruncate(fd, 0)
        assert (iob_send(ours, batch), cork()) == (IOB_ERROR, 0)
        assert corks
        assert all(corks), "the library sets a cork while it sends a range that bytes follow"


def test_msg_more_is_set_only_if_bytes_follow_in_the_same_call() -> None:
    """The third call ends at the limit, and the last at the end of the batch."""
    with Scripted() as sock:
        batch = batch_of(*[bytes(20)] * (IOV_MAX + 1))
        assert iob_send(sock, batch) == 20 * IOV_MAX + 20
        batch = batch_of(bytes(20), bytes(20))
        assert [iob_send(sock, batch, limit=20), iob_send(sock, batch)] == [20, 20]
        more = [bool(call.flags & socket.MSG_MORE) for call in sock.calls]
        assert more == [True, False, False, False]


def test_msg_zerocopy_is_not_used() -> None:
    with Scripted() as sock:
        assert iob_send(sock, batch_of(bytes(LARGE), bytes(LARGE))) == 2 * LARGE
        assert sock.calls
        assert not any(call.flags & MSG_ZEROCOPY for call in sock.calls)


def test_sigpipe_is_not_raised_by_socket_objects(tmp_path: Path) -> None:
    """Python ignores SIGPIPE; with the default action, a raised one would end the program."""
    (tmp_path / "large").write_bytes(bytes(LARGE))
    result = run_python(
        """
import signal, socket, sys
from iobatch import IOBatch, iob_send
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
for header in (b"header", b""):
    ours, theirs = socket.socketpair()
    theirs.close()
    with IOBatch() as batch:
        batch.addbuf(header)
        batch.addfile(sys.argv[1])
        print(iob_send(ours, batch), type(batch.error).__name__)
""",
        str(tmp_path / "large"),
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "-3 BrokenPipeError\n" * 2


@pytest.mark.parametrize("make_pair", [os.pipe, os.openpty])
def test_buffers_to_a_pipe_or_tty_arrive(
    make_pair: Callable[[], tuple[int, int]], make_file: MakeFile
) -> None:
    """The first range is read, the second goes by sendfile where that works."""
    content = bytes(range(ord("!"), ord("~"))) * 1000  # no byte that a terminal would change
    fd = make_file(content)
    reader, writer = make_pair()
    os.set_blocking(writer, False)
    batch = batch_of(b"header")
    batch.addfile(fd, 0, COPY_LIMIT)
    batch.addfile(fd, COPY_LIMIT)
    try:
        assert pump(iob_send, writer, reader, batch) == b"header" + content
    finally:
        os.close(reader)
        os.close(writer)


def test_sendfile_refused_makes_the_range_be_read_and_sent(
    monkeypatch: pytest.MonkeyPatch, make_file: MakeFile
) -> None:
    content = data(LARGE)

    def refuse(*_args: int) -> int:
        raise OSError(errno.EINVAL, "scripted")

    patch_os(monkeypatch, "sendfile", refuse)
    with stream_pair() as (ours, theirs):
        batch = IOBatch()
        batch.addfile(make_file(content))
        assert iob_send(ours, batch) == LARGE
        assert receive(theirs, LARGE) == content


def test_small_files_are_read_and_sent_along_with_their_header(
    monkeypatch: pytest.MonkeyPatch, make_file: MakeFile
) -> None:
    content = data(COPY_LIMIT)
    with Scripted() as sock:
        sendfile_counts = script_sendfile(monkeypatch, sock)
        batch = batch_of(b"header")
        batch.addfile(make_file(content))
        assert iob_send(sock, batch) == 6 + COPY_LIMIT
        [call] = sock.calls
        assert b"".join(call.pieces) == b"header" + content
        assert not sendfile_counts


def test_bytes_in_one_iob_send_are_at_most_limit() -> None:
    """The first call makes two system calls."""
    limit = 20 * IOV_MAX + 10
    with Scripted() as sock:
        batch = batch_of(*[bytes(20)] * (IOV_MAX + 1), bytes(SEND_LIMIT))
        assert iob_send(sock, batch, limit=limit) == limit
        assert iob_send(sock, batch) == SEND_LIMIT
        assert iob_send(sock, batch) == 10


def test_files_and_buffers_are_each_released_as_they_are_used_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"def")
    buffer = bytearray(b"abc")
    file = (tmp_path / "file").open("rb")
    with Scripted() as sock, IOBatch() as batch:
        batch.addbuf(buffer)
        batch.addfile_close(file)
        batch.addbuf(b"the rest")
        assert iob_send(sock, batch, limit=3) == 3
        buffer.clear()  # BufferError if the batch still held it
        assert not file.closed
        assert iob_send(sock, batch, limit=3) == 3
        assert file.closed
        assert batch.bytesleft == 8


def test_owned_but_empty_entries_are_released_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = (tmp_path / "file").open("rb")
    released: list[str] = []
    batch = IOBatch()
    batch.addbuf(b"before")
    batch.addfile_close(file)
    batch.addbuf(b"", on_release=lambda: released.append("buffer"))
    assert file.closed
    assert released == ["buffer"]


def test_total_length_beyond_the_largest_offset_is_an_overflow_error(make_file: MakeFile) -> None:
    batch = IOBatch()
    batch.addfile(make_file(b""), 0, 2**63 - 1)
    for _ in range(2):
        with pytest.raises(OverflowError):
            batch.addbuf(b"x")
    assert batch.bytesleft == 2**63 - 1


def test_prefetch_starts_at_the_current_position_and_crosses_files(
    monkeypatch: pytest.MonkeyPatch, make_file: MakeFile
) -> None:
    advised: list[tuple[int, ...]] = []
    patch_os(monkeypatch, "posix_fadvise", lambda *args: advised.append(args))
    first, second = make_file(bytes(10_000)), make_file(bytes(10_000))
    with Scripted() as sock:
        batch = IOBatch()
        batch.addfile(first)
        batch.addfile(second)
        assert iob_send(sock, batch, limit=4_000) == 4_000
        batch.prefetch(8_000)
    willneed = os.POSIX_FADV_WILLNEED
    assert advised == [(first, 4_000, 6_000, willneed), (second, 0, 2_000, willneed)]


def test_iob_write_half_written_keeps_the_other_half() -> None:
    batch = batch_of(b"one half")
    assert iob_write(None, batch, lambda _sock, _view: 4) == 4
    assert batch.bytesleft == 4
    assert take(batch) == b"half"


def test_iob_write_then_iob_send_goes_on_where_the_other_stopped() -> None:
    batch = batch_of(b"abc", bytes(LARGE), b"xyz")
    with stream_pair() as (ours, theirs):
        assert iob_write(ours, batch, lambda sock, view: sock.send(view[:1]), limit=2) == 1
        assert iob_write(ours, batch, lambda _sock, _view: -1) == IOB_AGAIN
        assert iob_send(ours, batch) == 2 + LARGE + 3
        assert iob_send(ours, batch) == IOB_DONE
        assert receive(theirs, 3 + LARGE + 3) == b"abc" + bytes(LARGE) + b"xyz"


def test_bytes_in_one_iob_write_are_at_most_limit() -> None:
    """A callback that always takes what it is offered would otherwise get the whole batch."""
    batch = batch_of(*[bytes(WRITE_LIMIT)] * 3)
    assert iob_write(None, batch, lambda _sock, view: len(view), limit=100) == 100
    assert iob_write(None, batch, lambda _sock, view: len(view)) == WRITE_LIMIT
    assert batch.bytesleft == 2 * WRITE_LIMIT - 100


def test_retry_after_again_offers_the_same_bytes_and_length(make_file: MakeFile) -> None:
    content = data(1000)
    offers: list[bytes] = []
    batch = IOBatch()
    batch.addfile(make_file(content))
    for limit in (100, 1, 1000, None):
        code = iob_write(None, batch, lambda _, view: offers.append(bytes(view)), limit=limit)
        assert code == IOB_AGAIN
        batch.addbuf(b"more")
    assert offers == [content[:100]] * 4


def test_files_for_a_callback_are_read_and_not_mapped(make_file: MakeFile) -> None:
    """Reading a mapped page after the end of its file raises SIGBUS."""
    content = data(3 * mmap.PAGESIZE)
    fd = make_file(content)
    taken = bytearray()

    def truncate_then_take(_sock: None, view: memoryview) -> int:
        assert not isinstance(view.obj, mmap.mmap)
        os.ftruncate(fd, 0)
        taken.extend(view)
        return len(view)

    batch = IOBatch()
    batch.addfile(fd)
    limit = len(content) - 1
    assert iob_write(None, batch, truncate_then_take, limit=limit) == limit
    assert taken == content[:-1]
    assert iob_write(None, batch, truncate_then_take) == IOB_ERROR
    assert isinstance(batch.error, TruncatedFileError)


def test_callback_returns_too_much_is_a_value_error() -> None:
    batch = batch_of(b"abc")
    with pytest.raises(ValueError, match="4 when 3 bytes were offered"):
        iob_write(None, batch, lambda _sock, view: len(view) + 1)
    assert (batch.bytesleft, batch.bytessent) == (3, 0)


@pytest.mark.parametrize("kind", ["buffer", "file"])
def test_callback_returns_minus_1_means_again_and_an_error_is_minus_3_or_an_os_error(
    kind: str, make_file: MakeFile
) -> None:
    failure = ConnectionResetError(errno.ECONNRESET, "scripted")

    def fail(_sock: None, _view: memoryview) -> int:
        raise failure

    batch = IOBatch()
    for expected in (OSError, ConnectionResetError):
        if kind == "buffer":
            batch.addbuf(b"abc")
        else:
            batch.addfile(make_file(b"abc"))
        assert iob_write(None, batch, lambda _sock, _view: -1) == IOB_AGAIN
        assert batch.error is None
        callback = fail if expected is ConnectionResetError else lambda _sock, _view: -3
        assert iob_write(None, batch, callback) == IOB_ERROR
        assert type(batch.error) is expected
        batch.reset()


def wait_by_selectors(sock: socket.socket, step: Callable[[], bool]) -> None:
    """Call `step` whenever a socket is writable, until it returns False."""
    with DefaultSelector() as selector:
        selector.register(sock, EVENT_WRITE)
        while step():
            selector.select(PATIENCE)


def wait_by_asyncio(sock: socket.socket, step: Callable[[], bool]) -> None:
    """Do the same on an asyncio loop."""

    async def main() -> None:
        finished = asyncio.Event()
        asyncio.get_running_loop().add_writer(sock, lambda: step() or finished.set())
        await asyncio.wait_for(finished.wait(), PATIENCE)
        asyncio.get_running_loop().remove_writer(sock)

    asyncio.run(main())


@pytest.mark.parametrize("wait", [wait_by_selectors, wait_by_asyncio])
def test_event_loop_is_any_that_waits_for_the_socket(
    wait: Callable[[socket.socket, Callable[[], bool]], None], make_file: MakeFile
) -> None:
    """A loop of iobatch's own would need a descriptor (epoll(7))."""
    content = data(1 << 20)
    received = bytearray()
    batch = IOBatch()
    batch.addfile(make_file(content))

    def step() -> bool:
        before = fd_count()
        code = iob_send(ours, batch)
        assert fd_count() == before
        received.extend(receive(theirs, batch.bytessent - len(received)))
        return code != IOB_DONE

    with stream_pair() as (ours, theirs):
        ours.setblocking(False)
        wait(ours, step)
    assert received == content

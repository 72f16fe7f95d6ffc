"""TCP_CORK and MSG_MORE fill frames within a call, and hold nothing back after it."""

from __future__ import annotations

import errno
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import COPY_LIMIT, IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_send
from tests.support.batches import IOV_MAX, data
from tests.support.drivers import pump
from tests.support.fakes import Scripted, again, patch_os
from tests.support.forms import forms, is_compiled, name_of_form
from tests.support.send import (
    LARGE,
    failing_sendfile,
    get_cork,
    is_held_back,
    make_response,
    send_repeatedly,
    set_cork,
    unsent,
)
from tests.support.sockets import PATIENCE, clog, receive, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.batches import MakeFile

    Pair = tuple[socket.socket, socket.socket]


@pytest.mark.parametrize("corked", [0, 1])
@pytest.mark.parametrize("size", [1000, LARGE])
def test_again_before_the_first_byte_leaves_the_cork_as_it_was(
    tcp: Pair, make_file: MakeFile, corked: int, size: int
) -> None:
    one, other = tcp
    filler = clog(one)
    set_cork(one, corked)
    batch, wanted = make_response(make_file, size)
    assert iob_send(one, batch) == IOB_AGAIN
    assert (batch.bytessent, get_cork(one)) == (0, corked)
    set_cork(one, 0)
    receive(other, filler)
    assert pump(iob_send, one, other, batch) == wanted
    assert get_cork(one) == 0


@pytest.mark.parametrize("trailer", [False, True])
@pytest.mark.parametrize(
    ("outcome", "code"), [("again", IOB_AGAIN), ("error", IOB_ERROR), ("truncated", IOB_ERROR)]
)
def test_header_leaves_at_once_if_its_large_range_is_not_sent(
    tcp: Pair,
    make_file: MakeFile,
    monkeypatch: pytest.MonkeyPatch,
    outcome: str,
    code: int,
    *,
    trailer: bool,
) -> None:
    """The header was sent with MSG_MORE. With a trailer the socket was corked, too."""
    one, other = tcp
    batch, wanted = make_response(make_file)
    if not trailer:
        batch.reset()
        batch.addbuf(wanted[:200])
        batch.addfile(make_file(wanted[200:]))
    numbers = {"again": errno.EAGAIN, "error": errno.EIO}
    if outcome == "truncated":
        patch_os(monkeypatch, "sendfile", lambda *_args: 0)
    else:
        patch_os(monkeypatch, "sendfile", failing_sendfile(numbers[outcome]))
    assert iob_send(one, batch) == 200
    assert unsent(one) == 0
    assert get_cork(one) == 0
    assert receive(other, 200) == wanted[:200]
    assert iob_send(one, batch) == code
    assert get_cork(one) == 0


class FullAfterOne(socket.socket):
    """A socket that accepts one sendmsg and nothing else."""

    calls = 0

    def sendmsg(self, *args: Any) -> int:
        self.calls += 1
        if self.calls > 1:
            raise again()
        return super().sendmsg(*args)

    def send(self, *_args: Any) -> int:
        raise again()


@pytest.mark.parametrize("flags", [0, socket.MSG_MORE], ids=["no flags", "MSG_MORE"])
def test_earlier_bytes_leave_after_a_refusal_unless_the_caller_set_msg_more(flags: int) -> None:
    """iob_send sets MSG_MORE on the first of two sends, and the socket refuses the second."""
    with stream_pair("tcp4") as (plain, other), FullAfterOne(fileno=plain.detach()) as one:
        batch = IOBatch()
        for _ in range(IOV_MAX + 1):
            batch.addbuf(bytearray(b"x"))
        start = monotonic()
        assert iob_send(one, batch, flags=flags) == IOV_MAX
        if flags:
            assert is_held_back(one, IOV_MAX, start)
        else:
            assert unsent(one) == 0
        set_cork(one, 0)
        assert receive(other, IOV_MAX) == b"x" * IOV_MAX


def test_header_leaves_at_once_if_its_small_range_is_truncated(
    tcp: Pair, make_file: MakeFile
) -> None:
    one, other = tcp
    batch, wanted = make_response(make_file, 1000)
    batch.reset()
    fd = make_file(wanted)
    batch.addbuf(b"header")
    batch.addfile(fd, 0, 1000)
    os.ftruncate(fd, 0)
    assert iob_send(one, batch) == 6
    assert (unsent(one), get_cork(one)) == (0, 0)
    assert receive(other, 6) == b"header"


class OptionLog(socket.socket):
    """A socket that logs the options set on it."""

    changes: list[Any]

    def setsockopt(self, *args: Any) -> None:
        self.changes.append(args)
        super().setsockopt(*args)


@pytest.mark.parametrize("header", [b"", b"header"])
@pytest.mark.parametrize("ranges", [1, 3])
@pytest.mark.parametrize("trailer", [b"", b"trailer"])
def test_cork_is_set_once_if_bytes_follow_a_large_range(
    make_file: MakeFile, header: bytes, ranges: int, trailer: bytes
) -> None:
    """A single large range at the end needs no cork."""
    content = data(COPY_LIMIT + 1)
    wanted = header + content * ranges + trailer
    with (
        stream_pair("tcp4") as (plain, other),
        OptionLog(fileno=plain.detach()) as one,
        ThreadPoolExecutor(1) as pool,
    ):
        one.changes = []
        reader = pool.submit(receive, other, len(wanted))
        batch = IOBatch()
        batch.addbuf(header)
        for _ in range(ranges):
            batch.addfile(make_file(content))
        batch.addbuf(trailer)
        results = send_repeatedly(one, batch)
        assert reader.result(PATIENCE) == wanted
        assert get_cork(one) == 0
        if len(results) == 2:  # one call sent everything, as is usual on a blocking socket
            corked = bool(trailer) or ranges > 1
            values = [value for _level, _option, value in one.changes]
            assert values == ([1, 0] if corked else [])


@pytest.mark.parametrize("send", forms(iob_send), ids=name_of_form)
def test_cork_is_removed_after_an_exception(
    tcp: Pair,
    make_file: MakeFile,
    monkeypatch: pytest.MonkeyPatch,
    send: Callable[[socket.socket, IOBatch], int],
) -> None:
    """The exception is a KeyboardInterrupt, as Ctrl-C raises it."""

    def interrupt(*_args: int) -> int:
        raise KeyboardInterrupt

    one, other = tcp
    batch, wanted = make_response(make_file)
    with monkeypatch.context() as patch:
        patch_os(patch, "sendfile", interrupt)
        with pytest.raises(KeyboardInterrupt):
            send(one, batch)
    assert (get_cork(one), unsent(one), batch.bytessent) == (0, 0, 200)
    assert receive(other, 200) == wanted[:200]
    if is_compiled(send):
        one.setblocking(False)
        assert send(one, batch) > 0
    else:
        assert send(one, batch) == IOB_ERROR  # the number of bytes that sendfile sent is unknown


def test_callers_cork_is_never_changed(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cork stays while sending, after a refusal and at the end."""
    with stream_pair("tcp4") as (plain, other), OptionLog(fileno=plain.detach()) as one:
        one.changes = []
        set_cork(one, 1)
        one.changes.clear()
        batch, wanted = make_response(make_file)
        with monkeypatch.context() as patch:
            patch_os(patch, "sendfile", failing_sendfile(errno.EAGAIN))
            start = monotonic()
            assert iob_send(one, batch) == 200
        assert get_cork(one) == 1
        assert is_held_back(one, 200, start)
        one.setblocking(False)
        received = b""
        while (nbytes := iob_send(one, batch)) != IOB_DONE:
            if nbytes == IOB_AGAIN:
                received += receive(other, 1)
        assert (get_cork(one), one.changes) == (1, [])
        set_cork(one, 0)
        assert received + receive(other, len(wanted) - len(received)) == wanted


@pytest.mark.parametrize("size", [1000, LARGE])
def test_nothing_is_held_back_when_the_limit_ends_a_call(
    tcp: Pair, make_file: MakeFile, size: int
) -> None:
    one, other = tcp
    one.setblocking(False)
    for limit in (100, 200, 201, 777, 1200, 1201):
        batch, wanted = make_response(make_file, size)
        received = b""
        for _ in range(3):
            nbytes = iob_send(one, batch, limit=limit)
            assert unsent(one) == 0
            received += receive(other, max(0, nbytes))
        assert received + pump(iob_send, one, other, batch) == wanted


def test_all_sent_bytes_arrive_after_again_part_way(make_file: MakeFile) -> None:
    """The peer receives the bytes without another call of iob_send."""
    with stream_pair("tcp4", buffers=20_000) as (one, other):
        one.setblocking(False)
        batch, wanted = make_response(make_file, 3_000_000)
        received = b""
        for _ in range(1_000_000):
            nbytes = iob_send(one, batch)
            assert get_cork(one) == 0
            if nbytes == IOB_AGAIN:
                received += receive(other, batch.bytessent - len(received))
            elif nbytes == IOB_DONE:
                break
        assert received + receive(other, len(wanted) - len(received)) == wanted


def test_unix_socket_needs_no_cork(make_file: MakeFile) -> None:
    with stream_pair("unix") as (one, other):
        one.setblocking(False)
        batch, wanted = make_response(make_file)
        assert pump(iob_send, one, other, batch) == wanted


def test_earlier_bytes_leave_after_a_joined_send_is_refused() -> None:
    batch = IOBatch()
    for _ in range(IOV_MAX + 400):
        batch.addbuf(b"x" * 20)

    class Corkable(Scripted):
        uncorked = 0

        def getsockopt(self, *_: Any) -> Any:
            return 0

        def setsockopt(self, *_: Any) -> None:
            self.uncorked += 1

    with Corkable(20 * IOV_MAX, again()) as sock:
        assert iob_send(sock, batch) == 20 * IOV_MAX
        assert [bool(call.flags & socket.MSG_MORE) for call in sock.calls] == [True, False]
        assert sock.uncorked == 1


def test_udp_socket_holds_nothing_back_if_its_range_is_truncated(make_file: MakeFile) -> None:
    """MSG_MORE holds a datagram back until the socket is uncorked (udp(7))."""
    empty = make_file(b"")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
    ):
        other.bind(("127.0.0.1", 0))
        other.settimeout(PATIENCE)
        one.connect(other.getsockname())
        batch = IOBatch()
        batch.addbuf(b"header")
        batch.addfile(empty, 0, LARGE)
        assert iob_send(one, batch) == 6
        assert other.recv(100) == b"header"
        batch.reset()


class Refusing(OptionLog):
    """A TCP socket that refuses to set its options to 0, for a number of times."""

    refusals = 0

    def setsockopt(self, *args: Any) -> None:
        if args == (socket.IPPROTO_TCP, socket.TCP_CORK, 0) and self.refusals:
            self.refusals -= 1
            raise OSError(errno.ENOMEM, "scripted")
        super().setsockopt(*args)


@pytest.mark.parametrize("outcome", ["sent", "again", "exception"])
def test_cork_whose_removal_fails_once_does_not_stay(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    """A later call would take it for the caller's."""

    def sendfile(*args: int) -> int:
        if outcome == "again":
            raise again()
        if outcome == "exception":
            raise KeyError
        return real(*args)

    real = os.sendfile
    patch_os(monkeypatch, "sendfile", sendfile)
    with stream_pair("tcp4") as (plain, other), Refusing(fileno=plain.detach()) as one:
        one.changes = []
        one.refusals = 1
        batch, wanted = make_response(make_file, COPY_LIMIT + 1)
        with suppress(KeyError):
            iob_send(one, batch)
        assert one.refusals == 0
        assert (get_cork(one), unsent(one)) == (0, 0)
        assert receive(other, batch.bytessent) == wanted[: batch.bytessent]


def test_socket_that_a_hook_closes_needs_no_cork_removal(make_file: MakeFile) -> None:
    with stream_pair("tcp4") as (one, other):
        batch, wanted = make_response(make_file, COPY_LIMIT + 1)
        batch.addbuf(b"end", on_release=one.close)
        assert iob_send(one, batch) == len(wanted) + 3
        assert iob_send(one, batch) == IOB_DONE
        assert receive(other, len(wanted) + 3) == wanted + b"end"

"""Coming from libowfat: one test for each row of the tables about callbacks and waiting."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector, EpollSelector

import pytest

from iobatch import (
    IOB_AGAIN,
    IOB_ERROR,
    WRITE_LIMIT,
    iob_send,
    iob_sendall,
    iob_write,
)
from tests.support.batches import batch_of
from tests.support.manpages import covered, example, subjects
from tests.support.sockets import PATIENCE, clog, receive, stream_pair
from tests.support.write import Sink

PAGE = ("iobatch-libowfat.7", "Callbacks", "Event loop")


def test_the_tests_here_and_the_rows_of_the_tables_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


# Callbacks


def test_callback_s_buf_n_is_called_with_a_view_that_has_the_length() -> None:
    kept: list[memoryview] = []

    def callback(sock: str, view: memoryview) -> int:
        assert (sock, bytes(view), len(view), view.readonly) == ("socket", b"abc", 3, True)
        kept.append(view)
        return len(view)

    assert iob_write("socket", batch_of(b"abc"), callback) == 3
    with pytest.raises(ValueError, match="released"):
        kept[0].tobytes()


def test_io_trywrite_is_send_or_os_write() -> None:
    with stream_pair(buffers=4096) as (ours, theirs):
        batch = batch_of(b"abc", b"def")
        assert iob_write(ours, batch, socket.socket.send, limit=3) == 3
        assert iob_write(ours.fileno(), batch, os.write) == 3
        assert receive(theirs, 6) == b"abcdef"
        clog(ours)
        batch.addbuf(b"abc")
        assert iob_write(ours, batch, socket.socket.send) == IOB_AGAIN
        assert iob_write(ours.fileno(), batch, os.write) == IOB_AGAIN
        with pytest.raises(BlockingIOError):
            ours.send(b"abc")


def test_io_trywritetimeout_is_a_callback_that_raises_etimedout() -> None:
    batch = batch_of(b"abc")
    with pytest.raises(ValueError, match="-2"):
        iob_write(None, batch, lambda _sock, _view: -2)
    assert iob_write(None, batch, Sink(TimeoutError(errno.ETIMEDOUT, "late"))) == IOB_ERROR
    assert isinstance(batch.error, TimeoutError)


def test_io_waitwrite_is_iob_sendall() -> None:
    offers: list[int] = []

    def callback(sock: socket.socket, view: memoryview) -> int:
        offers.append(len(view))
        return -1 if len(offers) == 1 else sock.send(view)

    with stream_pair() as (ours, theirs):
        assert iob_sendall(ours, batch_of(b"abc"), callback) == 3
        assert receive(theirs, 3) == b"abc"
    assert offers == [3, 3]


def test_ssl_write_that_wants_to_read_sets_wants() -> None:
    batch = batch_of(b"abc")
    assert iob_write(None, batch, Sink(ssl.SSLWantReadError())) == IOB_AGAIN
    assert batch.wants == EVENT_READ


def test_returns_n_below_the_offer_ends_the_call() -> None:
    sink = Sink(2)
    batch = batch_of(b"abc", b"def")
    assert iob_write(None, batch, sink) == 2
    assert iob_write(None, batch, sink) == 4
    assert sink.taken == b"abcdef"


def test_returns_0_is_a_broken_pipe_error() -> None:
    batch = batch_of(b"abc")
    assert iob_write(None, batch, Sink(0)) == IOB_ERROR
    assert isinstance(batch.error, BrokenPipeError)


@pytest.mark.parametrize("answer", [-1, None, BlockingIOError(errno.EAGAIN, "full")])
def test_returns_minus_1_eagain_is_again(answer: object) -> None:
    assert iob_write(None, batch_of(b"abc"), Sink(answer)) == IOB_AGAIN


def test_returns_minus_1_other_errno_is_an_exception() -> None:
    batch = batch_of(b"abc")
    assert iob_write(None, batch, Sink(ConnectionResetError(errno.ECONNRESET, ""))) == IOB_ERROR
    assert isinstance(batch.error, ConnectionResetError)


def test_returns_minus_3_is_eio() -> None:
    batch = batch_of(b"abc")
    assert iob_write(None, batch, Sink(-3)) == IOB_ERROR
    assert batch.error is not None
    assert batch.error.errno == errno.EIO


def test_writes_64k_then_returns_minus_1_is_the_default_limit() -> None:
    batch = batch_of(bytes(3 * WRITE_LIMIT))
    assert iob_write(None, batch, Sink()) == WRITE_LIMIT == 64 * 1024


# Event loop


def test_io_nonblock_makes_a_full_socket_return_minus_1() -> None:
    with stream_pair(buffers=4096) as (ours, _theirs):
        ours.setblocking(False)
        batch = batch_of(bytes(1 << 20))
        while (code := iob_send(ours, batch)) > 0:
            pass
        assert code == IOB_AGAIN


def test_io_fd_is_not_needed_to_send() -> None:
    with stream_pair() as (ours, theirs):
        assert iob_send(ours, batch_of(b"abc")) == 3
        assert receive(theirs, 3) == b"abc"


def test_io_wantread_io_wantwrite_is_register_or_modify() -> None:
    with stream_pair() as (ours, theirs), DefaultSelector() as selector:
        theirs.send(b"abc")
        selector.register(ours, EVENT_WRITE, "data")
        assert [events for _, events in selector.select()] == [EVENT_WRITE]
        with pytest.raises(KeyError):
            selector.register(ours, EVENT_READ, "data")
        selector.modify(ours, EVENT_READ | EVENT_WRITE, "data")
        [(key, events)] = selector.select()
        assert (key.data, events) == ("data", EVENT_READ | EVENT_WRITE)
        assert selector.modify(ours, EVENT_READ).data is None


def test_io_dontwantread_io_dontwantwrite_is_modify_or_unregister() -> None:
    with stream_pair() as (ours, theirs), EpollSelector() as selector:
        selector.register(ours, EVENT_READ | EVENT_WRITE, "data")
        selector.modify(ours, EVENT_READ, "data")
        assert selector.select(0) == []
        selector.modify(ours, 0, "data")
        theirs.close()
        for _ in range(2):
            assert [events for _, events in selector.select()] == [0]
        selector.unregister(ours)
        assert selector.select(0) == []


def test_io_wait_is_select() -> None:
    with stream_pair(buffers=4096) as (ours, theirs), DefaultSelector() as selector:
        filler = clog(ours)
        selector.register(ours, EVENT_WRITE)
        assert selector.select(0) == []
        receive(theirs, filler)
        assert selector.select()


def test_io_waituntil_is_select_with_seconds_from_now() -> None:
    with DefaultSelector() as selector:
        assert selector.select(0.001) == []


def test_io_waituntil2_is_select_with_seconds_or_none() -> None:
    with stream_pair() as (ours, _theirs), DefaultSelector() as selector:
        assert selector.select(1 / 1000) == []
        selector.register(ours, EVENT_WRITE)
        assert selector.select(None)


def test_io_check_is_select_without_a_wait() -> None:
    with stream_pair() as (ours, _theirs), DefaultSelector() as selector:
        selector.register(ours, EVENT_READ)
        assert selector.select(0) == []


def test_io_canread_io_canwrite_are_the_events_of_a_socket_that_is_returned_again() -> None:
    with stream_pair() as (ours, theirs), DefaultSelector() as selector:
        theirs.send(b"abc")
        selector.register(ours, EVENT_READ | EVENT_WRITE)
        batch = batch_of(b"abc")
        for _ in range(3):
            [(key, events)] = selector.select()
            assert events == EVENT_READ | EVENT_WRITE
            assert iob_send(key.fileobj, batch, limit=1) == 1
        ours.recv(3)
        assert [events for _, events in selector.select()] == [EVENT_WRITE]


def test_io_setcookie_io_getcookie_is_the_data_of_a_key() -> None:
    batch = batch_of(b"abc")
    with stream_pair() as (ours, _theirs), DefaultSelector() as selector:
        selector.register(ours, EVENT_WRITE, batch)
        [(key, _)] = selector.select()
        assert key.data is batch
        assert selector.get_key(ours).data is batch


def test_io_timeout_is_a_deadline_in_the_data() -> None:
    """As in the example of the page: a socket that takes nothing stays registered until it."""
    batch = batch_of(b"abc")
    with stream_pair(buffers=4096) as (ours, _theirs):
        clog(ours)
        errors = example(PAGE[0])["send_all"]({ours: batch}, 0)
        assert [(sock, type(error)) for sock, error in errors.items()] == [(ours, TimeoutError)]
    assert batch.bytesleft == 3


def test_io_timeouted_compares_each_deadline_with_the_clock() -> None:
    """The socket whose deadline is not reached is sent to."""
    content = bytes(3)
    with stream_pair() as (ours, theirs):
        assert example(PAGE[0])["send_all"]({ours: batch_of(content)}, PATIENCE) == {}
        assert receive(theirs, 3) == content


def test_io_tryread_is_recv() -> None:
    with stream_pair() as (ours, theirs):
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(10)
        theirs.send(b"abc")
        assert ours.recv(10) == b"abc"
        theirs.close()
        assert ours.recv(10) == b""


def test_io_waitread_is_recv_of_a_blocking_socket() -> None:
    with stream_pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        received = pool.submit(ours.recv, 10)
        theirs.send(b"abc")
        assert received.result(PATIENCE) == b"abc"


def test_io_close_is_unregister_and_close() -> None:
    with DefaultSelector() as selector:
        sock, _peer = socket.socketpair()
        with _peer:
            selector.register(sock, EVENT_WRITE)
            fd = sock.fileno()
            sock.close()
            with socket.socket(fileno=os.dup2(_peer.fileno(), fd)) as following:
                with pytest.raises(KeyError):
                    selector.register(following, EVENT_WRITE)
                selector.unregister(fd)
                selector.register(following, EVENT_WRITE)
                selector.unregister(following)

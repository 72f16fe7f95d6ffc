"""Coming from libowfat: one test for each row of the tables about callbacks and waiting."""

from __future__ import annotations

import errno
import os
import signal
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector, EpollSelector
from typing import TYPE_CHECKING

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
from tests.support.tls import tls_contexts
from tests.support.write import Sink

if TYPE_CHECKING:
    import trustme

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


def test_io_nonblock_io_block_choose_whether_a_full_socket_returns_minus_1() -> None:
    with stream_pair(buffers=4096) as (ours, _theirs):
        ours.setblocking(False)
        batch = batch_of(bytes(1 << 20))
        while (code := iob_send(ours, batch)) > 0:
            pass
        assert code == IOB_AGAIN
        ours.setblocking(True)
        assert ours.gettimeout() is None


def test_io_fd_is_not_needed_to_send() -> None:
    with stream_pair() as (ours, theirs):
        assert iob_send(ours, batch_of(b"abc")) == 3
        assert receive(theirs, 3) == b"abc"


def test_io_wantread_io_wantwrite_is_register_or_modify() -> None:
    with stream_pair() as (ours, theirs), DefaultSelector() as selector:
        theirs.send(b"abc")
        for event, wanted in ((EVENT_WRITE, EVENT_WRITE), (EVENT_READ, EVENT_READ | EVENT_WRITE)):
            if ours in selector.get_map():
                with pytest.raises(KeyError):
                    selector.register(ours, event)
                selector.modify(ours, selector.get_key(ours).events | event)
            else:
                selector.register(ours, event)
            assert [events for _, events in selector.select()] == [wanted]


def test_io_dontwantread_io_dontwantwrite_is_modify_or_unregister() -> None:
    with stream_pair() as (ours, theirs), EpollSelector() as selector:
        selector.register(ours, EVENT_READ | EVENT_WRITE, "data")
        for event in (EVENT_WRITE, EVENT_READ):
            key = selector.get_key(ours)
            if events := key.events & ~event:
                assert selector.modify(ours, events).data is None
                assert selector.select(0) == []
            else:
                selector.modify(ours, 0, "data")
                theirs.close()
                for _ in range(2):
                    assert [events for _, events in selector.select()] == [0]
                selector.unregister(ours)
        assert selector.select(0) == []


def test_io_wait_is_select_which_a_signal_ends_by_a_wakeup_descriptor_only() -> None:
    signals: list[int] = []

    def handle(number: int, _frame: object) -> None:
        signals.append(number)
        if len(signals) == 3:
            signal.set_wakeup_fd(wakes.fileno())

    with stream_pair() as (wakes, woken), DefaultSelector() as selector:
        wakes.setblocking(False)
        selector.register(woken, EVENT_READ)
        before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        try:
            assert selector.select()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGALRM, before)
    assert len(signals) > 3


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


def test_io_canread_io_canwrite_are_events_to_skip_if_closed_or_unregistered_meanwhile() -> None:
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
    seen: list[socket.socket] = []
    with (
        stream_pair() as (one, other),
        stream_pair() as (third, _),
        DefaultSelector() as selector,
    ):
        connections = {one: "one", other: "other", third: "third"}
        for sock in connections:
            selector.register(sock, EVENT_WRITE)
        for key, _ in selector.select():
            sock = key.fileobj
            if sock not in connections or sock not in selector.get_map():
                continue
            seen.append(sock)
            closed, unregistered = (each for each in (one, other, third) if each is not sock)
            selector.unregister(closed)
            del connections[closed]
            closed.close()
            selector.unregister(unregistered)
    assert len(seen) == 1


def test_io_setcookie_io_getcookie_are_items_of_a_dict_since_a_key_loses_its_data() -> None:
    with stream_pair() as (ours, _theirs), DefaultSelector() as selector:
        connections = {ours: "cookie"}
        selector.register(ours, EVENT_WRITE, "data")
        selector.unregister(ours)
        with pytest.raises(KeyError):
            selector.get_key(ours)
        assert selector.register(ours, EVENT_WRITE).data is None
        assert [connections[key.fileobj] for key, _ in selector.select()] == ["cookie"]


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


def test_io_tryread_is_recv_and_of_an_sslsocket_has_another_error(authority: trustme.CA) -> None:
    with stream_pair() as (ours, theirs):
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(10)
        theirs.send(b"abc")
        assert ours.recv(10) == b"abc"
        theirs.close()
        assert ours.recv(10) == b""
    server, client = tls_contexts(authority)
    with (
        stream_pair() as (ours, theirs),
        DefaultSelector() as selector,
        ThreadPoolExecutor(1) as pool,
    ):
        accepted = pool.submit(server.wrap_socket, theirs, server_side=True)
        with client.wrap_socket(ours, server_hostname="localhost") as conn:
            with accepted.result(PATIENCE) as peer:
                peer.send(b"abcdef")
                conn.settimeout(PATIENCE)
                assert conn.recv(3) == b"abc"
                conn.setblocking(False)
                selector.register(conn, EVENT_READ)
                assert (conn.pending(), selector.select(0)) == (3, [])
                assert conn.recv(10) == b"def"
                with pytest.raises(ssl.SSLWantReadError) as caught:
                    conn.recv(10)
            assert not isinstance(caught.value, BlockingIOError)
            selector.unregister(conn)


def test_io_waitread_is_recv_of_a_blocking_socket() -> None:
    with stream_pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        received = pool.submit(ours.recv, 10)
        theirs.send(b"abc")
        assert received.result(PATIENCE) == b"abc"


def test_io_close_is_unregister_if_registered_and_close() -> None:
    with DefaultSelector() as selector, stream_pair() as (sock, peer):
        selector.register(sock, EVENT_WRITE)
        for _ in range(2):
            if sock in selector.get_map():
                selector.unregister(sock)
        selector.register(sock, EVENT_WRITE)
        fd = sock.fileno()
        sock.close()
        with socket.socket(fileno=os.dup2(peer.fileno(), fd)) as following:
            with pytest.raises(KeyError):
                selector.register(following, EVENT_WRITE)
            selector.unregister(fd)
            selector.register(following, EVENT_WRITE)
            selector.unregister(following)


def test_io_finishandshutdown_is_close_of_the_selector() -> None:
    with stream_pair() as (ours, _theirs):
        selector = DefaultSelector()
        selector.register(ours, EVENT_WRITE)
        selector.close()
        assert selector.get_map() is None

"""Sockets: their kinds, blocking modes and timeouts, and signals during a send."""

from __future__ import annotations

import errno
import select
import selectors
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import COPY_LIMIT, IOB_AGAIN, IOB_DONE, IOB_ERROR, SEND_LIMIT, IOBatch, iob_send
from tests.support.batches import data
from tests.support.drivers import pump
from tests.support.interruptions import alarm
from tests.support.send import LARGE, make_response, send_repeatedly
from tests.support.sockets import PATIENCE, clog, receive, receive_all, stream_pair

if TYPE_CHECKING:
    from tests.support.batches import MakeFile

    Pair = tuple[socket.socket, socket.socket]


def test_mixed_batch_arrives_whole_on_every_stream_socket(
    step: Any, pair: Pair, make_file: MakeFile
) -> None:
    one, other = pair
    one.setblocking(False)
    content = data(1_000_000)
    fd = make_file(content)
    batch = IOBatch()
    wanted = b""
    for i in range(20):
        head = data(100 + i, seed=i)
        batch.addbuf(head)
        batch.addfile(fd, i * 1000, i * 5000)
        batch.addbuf(bytearray(head))
        wanted += head + content[i * 1000 : i * 6000] + head
    assert pump(step, one, other, batch) == wanted


def test_no_byte_is_lost_with_the_smallest_socket_buffers(step: Any, make_file: MakeFile) -> None:
    """Nearly every call ends in a partial write."""
    with stream_pair(buffers=1) as (one, other):
        one.setblocking(False)
        batch, wanted = make_response(make_file, 400_000)
        for _ in range(300):
            batch.addbuf(b"small")
        assert pump(step, one, other, batch) == wanted + b"small" * 300


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_blocking_socket_waits_for_a_slow_reader(
    pair: Pair, make_file: MakeFile, timeout: float | None
) -> None:
    """One call sends more than the socket's buffers hold."""
    one, other = pair
    one.settimeout(timeout)
    content = data(SEND_LIMIT, seed=1)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(receive_all, other)
        batch = IOBatch()
        batch.addbuf(content)
        first = iob_send(one, batch)
        if timeout is None:
            assert first == SEND_LIMIT
        batch.addfile(make_file(content))
        poll = select.poll()
        poll.register(one, select.POLLOUT)
        while nbytes := iob_send(one, batch):
            if nbytes == IOB_AGAIN:  # sendfile does not wait for a socket with a timeout
                assert timeout is not None
                assert poll.poll(PATIENCE * 1000)
            else:
                assert nbytes > 0
        one.shutdown(socket.SHUT_WR)
        assert reader.result(PATIENCE) == content + content


@pytest.mark.parametrize("size", [COPY_LIMIT, LARGE])
def test_signal_during_a_blocking_send_does_not_end_it(make_file: MakeFile, size: int) -> None:
    """EINTR never surfaces (PEP 475): the handler runs, then the send goes on."""
    content = data(size)
    with stream_pair() as (one, other), ThreadPoolExecutor(1) as pool:
        filled = clog(one)
        one.setblocking(True)
        readers = []

        def handler(_number: int, _frame: object) -> None:
            # Reading begins here, so the send was waiting when the signal arrived.
            readers.append(pool.submit(receive, other, filled + size))

        batch = IOBatch()
        batch.addfile(make_file(content))
        with alarm(handler, one):
            results = send_repeatedly(one, batch)
        assert results[-1] == IOB_DONE
        assert sum(results) == size
        (reader,) = readers
        assert reader.result(PATIENCE)[filled:] == content


@pytest.mark.parametrize("size", [10, LARGE])
def test_timeout_of_the_socket_is_again(make_file: MakeFile, size: int) -> None:
    """Both for a send and for sendfile."""
    with stream_pair() as (one, other):
        filled = clog(one)
        one.settimeout(0.01)
        content = data(size)
        batch = IOBatch()
        batch.addfile(make_file(content))
        assert iob_send(one, batch) == IOB_AGAIN
        assert (batch.error, batch.bytessent) == (None, 0)
        receive(other, filled)
        assert pump(iob_send, one, other, batch) == content


def test_nonblocking_socket_takes_what_fits_then_again() -> None:
    with stream_pair() as (one, other):
        one.setblocking(False)
        batch = IOBatch()
        content = data(2_000_000)
        batch.addbuf(content)
        first = iob_send(one, batch)
        assert 0 < first < 2_000_000
        while (nbytes := iob_send(one, batch)) > 0:
            pass
        assert nbytes == IOB_AGAIN
        assert batch.wants == selectors.EVENT_WRITE
        sent = batch.bytessent
        assert receive(other, sent) + pump(iob_send, one, other, batch) == content


def test_closed_socket_is_ebadf(make_file: MakeFile) -> None:
    sock = socket.socket()
    sock.close()
    for add in (lambda b: b.addbuf(b"x"), lambda b: b.addfile(make_file(data(LARGE)))):
        batch = IOBatch()
        add(batch)
        assert iob_send(sock, batch) == IOB_ERROR
        assert isinstance(batch.error, OSError)
        assert batch.error.errno == errno.EBADF

"""Signals that arrive during a system call."""

from __future__ import annotations

import errno
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import COPY_LIMIT, IOB_ERROR, IOBatch, iob_send, iob_sendall
from iobatch._core import COUNT_UNKNOWN
from tests.support.batches import data, take
from tests.support.forms import forms, is_compiled, name_of_form
from tests.support.interruptions import KINDS, alarm
from tests.support.sockets import PATIENCE, clog, receive, receive_all, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.batches import MakeFile


@pytest.mark.parametrize("error", [*KINDS, KeyboardInterrupt], ids=lambda error: error.__name__)
@pytest.mark.parametrize("callback", [None, socket.socket.send], ids=["iob_send", "iob_write"])
def test_deadline_raised_by_a_handler_leaves_iob_sendall(
    error: type[BaseException], callback: Any
) -> None:
    """The exception isn't handled as one of the socket, such as a timeout.

    No byte is sent twice: the batch has failed, or has counted the bytes that were sent.
    """
    content = data(3_000_000)

    def deadline(_number: int, _frame: object) -> None:
        raise error("deadline")

    with stream_pair() as (sock, peer):
        batch = IOBatch()
        batch.addbuf(content)
        with pytest.raises(error, match="deadline"), alarm(deadline, sock):
            iob_sendall(sock, batch, callback)
        counted = callback is None and is_compiled(iob_send)
        if not counted:
            assert batch.error is not None
            assert batch.error.errno == errno.EIO
            assert iob_send(sock, batch) == IOB_ERROR
        sock.close()
        received = bytearray()
        while piece := peer.recv(1 << 20):
            received += piece
        assert received == content[: len(received)]
        if counted:
            assert batch.error is None
            assert len(received) == batch.bytessent
            assert take(batch) == content[len(received) :]
        else:
            assert len(received) >= batch.bytessent


@pytest.mark.parametrize("entries", ["range and buffer", "views"])
@pytest.mark.parametrize("send", forms(iob_send), ids=name_of_form)
def test_count_is_unknown_or_exact_whatever_the_batch_holds(
    send: Callable[..., int], entries: str, make_file: MakeFile
) -> None:
    """A buffer after a large range needs a cork; many views need memory for their exports."""
    content = data(8_000_000)
    pieces = 40 if entries == "views" else 1
    size = len(content) // pieces

    def handler(_number: int, _frame: object) -> None:
        raise ZeroDivisionError

    with stream_pair("tcp4", buffers=1 << 16) as (sock, peer):
        batch = IOBatch()
        start = 0
        if entries == "range and buffer":
            start = COPY_LIMIT + 1
            batch.addfile(make_file(content[:start]), 0, start)
        for offset in range(start, len(content), size):
            batch.addbuf(memoryview(content)[offset : offset + size])
        with pytest.raises(ZeroDivisionError), alarm(handler, sock):
            send(sock, batch, limit=None)
        sock.shutdown(socket.SHUT_WR)
        received = receive_all(peer)
        assert received == content[: len(received)]
        if is_compiled(send):
            assert batch.error is None
            assert len(received) == batch.bytessent
            assert take(batch) == content[len(received) :]
        else:
            assert "unknown" in str(batch.error)


@pytest.mark.parametrize("send", forms(iob_send), ids=name_of_form)
def test_ctrl_c_during_a_send_leaves_the_count_unknown_or_exact(
    send: Callable[[socket.socket, IOBatch], int],
) -> None:
    """Its handler is written in C and has no frame, by which other handlers are known."""
    with stream_pair() as (sock, _):
        clog(sock)
        sock.setblocking(True)
        batch = IOBatch()
        batch.addbuf(b"waits")
        with pytest.raises(KeyboardInterrupt), alarm(signal.default_int_handler, sock):
            send(sock, batch)
        if is_compiled(send):
            assert (batch.error, batch.bytesleft) == (None, 5)
        else:
            assert "unknown" in str(batch.error)
            assert batch.error is not COUNT_UNKNOWN, "the batch must have an error of its own"
        batch.reset()
        assert batch.error is None


def test_send_resumes_after_a_handler_that_returns() -> None:
    """Python repeats the interrupted system call (PEP 475)."""
    content = data(3_000_000)
    with stream_pair() as (sock, peer), ThreadPoolExecutor(1) as pool:
        batch = IOBatch()
        batch.addbuf(content)
        received = []

        def handler(_number: int, _frame: object) -> None:
            received.append(pool.submit(receive, peer, len(content)))

        with alarm(handler, sock):
            assert iob_sendall(sock, batch) == len(content)
        assert received[0].result(PATIENCE) == content

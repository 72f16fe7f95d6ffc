"""Batches in threads: each thread has its own, or hands it on."""

from __future__ import annotations

import queue
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from iobatch import IOB_AGAIN, IOBatch, iob_send, iob_sendall, iob_sendmsg, iob_write
from iobatch.filters import Filter
from tests.support.batches import check_invariants, data
from tests.support.sockets import PATIENCE, clog, receive_all, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    MakeFile = Callable[[bytes], int]

LARGE = 100_000  # the length of a file range that goes by sendfile


def test_batch_that_is_handed_from_thread_to_thread_arrives_whole(make_file: MakeFile) -> None:
    """Each thread sends it once, and gives it to the next one; the functions take turns."""
    content = data(200_000)
    batch = IOBatch()
    released: list[int] = []
    expected = b""
    for turn in range(8):
        batch.addbuf(content[turn:9000], on_release=lambda: released.append(threading.get_ident()))
        batch.addfile(make_file(content[turn:]), 0, LARGE)
        expected += content[turn:9000] + content[turn : turn + LARGE]
    hands: list[queue.SimpleQueue[IOBatch | None]] = [queue.SimpleQueue() for _ in range(3)]
    calls: list[Callable[[socket.socket, IOBatch], int]] = [
        lambda sock, each: iob_send(sock, each, limit=50_000),
        lambda sock, each: iob_write(sock, each, socket.socket.send),
        lambda sock, each: iob_write(sock, each, lambda to, view: to.send(view[:777])),
    ]

    def work(number: int) -> None:
        following = hands[(number + 1) % len(hands)]
        while (mine := hands[number].get(timeout=PATIENCE)) is not None:
            calls[number](one, mine)
            check_invariants(mine)
            following.put(mine or None)
        following.put(None)

    with stream_pair() as (one, peer), ThreadPoolExecutor(len(hands) + 1) as pool:
        arriving = pool.submit(receive_all, peer)
        workers = [pool.submit(work, number) for number in range(len(hands))]
        hands[0].put(batch)
        for worker in workers:
            worker.result(PATIENCE)
        one.shutdown(socket.SHUT_WR)
        assert arriving.result(PATIENCE) == expected
    assert len(released) == 8
    assert len(set(released)) > 1


def test_many_threads_with_a_batch_each_send_their_own_bytes(make_file: MakeFile) -> None:
    content = data(150_000)
    file = make_file(content)
    released: list[int] = []

    def work(number: int) -> bytes:
        with stream_pair() as (one, peer), ThreadPoolExecutor(1) as reader:
            arriving = reader.submit(receive_all, peer)
            batch = IOBatch()
            for turn in range(30):
                batch.addbuf(b"%d," % number, on_release=lambda: released.append(number))
                batch.addfile(file, turn, number * 1000)
                iob_sendall(one, batch, timeout=PATIENCE if turn % 2 else None)
            one.shutdown(socket.SHUT_WR)
            return arriving.result(PATIENCE)

    with ThreadPoolExecutor(8) as pool:
        for number, received in enumerate(pool.map(work, range(8))):
            pieces = [content[turn : turn + number * 1000] for turn in range(30)]
            assert received == b"".join(b"%d,%s" % (number, piece) for piece in pieces)
    assert sorted(released) == sorted(30 * list(range(8)))


class Blocking:
    """A transform that waits in one thread while another thread calls its filter."""

    def __init__(self) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()

    def compress(self, piece: memoryview) -> bytes:
        self.entered.set()
        assert self.leave.wait(PATIENCE)
        return bytes(piece)

    def flush(self) -> bytes:
        return b""


def test_batch_is_in_use_while_another_thread_writes_it_through_a_filter() -> None:
    transform = Blocking()
    batch = IOBatch()
    batch.addbuf(b"first")
    with stream_pair() as (one, peer), ThreadPoolExecutor(1) as pool:
        writing = pool.submit(iob_write, one, batch, Filter(transform))
        assert transform.entered.wait(PATIENCE)
        for call in (batch.reset, lambda: iob_send(one, batch), lambda: iob_sendmsg(one, batch)):
            with pytest.raises(RuntimeError, match="in use"):
                call()
        batch.addbuf(b"second")
        transform.leave.set()
        assert writing.result(PATIENCE) > 0
        assert peer.recv(5) == b"first"
    batch.reset()


@pytest.fixture
def small_stacks() -> Iterator[None]:
    """Give the threads that start a stack of 128 KiB."""
    before = threading.stack_size(128 * 1024)
    yield
    threading.stack_size(before)


def test_thread_with_a_small_stack_can_send(make_file: MakeFile, small_stacks: None) -> None:
    file = make_file(data(LARGE))

    def send() -> None:
        with stream_pair() as (one, _):
            clog(one)
            for size in (1, 100, LARGE):
                batch = IOBatch()
                batch.addbufs([bytearray(size), bytes(size)] * 10)
                batch.addfile(file, 0, size)
                assert iob_send(one, batch) == IOB_AGAIN
                batch.reset()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(send).result(PATIENCE)

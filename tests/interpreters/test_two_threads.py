"""Two threads on one batch: RuntimeError or a right answer, never a crash or a lost byte or hook.

The interpreter switches threads as often as it can. Each fact is counted: which bytes arrive, and
how often each hook runs.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch, iob_send, iob_sendall, iob_sendmsg, iob_write
from tests.support.batches import check_invariants, data
from tests.support.interruptions import handler_at
from tests.support.sockets import PATIENCE, clog, receive, receive_all, stream_pair
from tests.support.threads import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RECORD = 8
TURNS = 1500

SENDERS: dict[str, Callable[[socket.socket, IOBatch], int]] = {
    "iob_send": iob_send,
    "iob_sendmsg": iob_sendmsg,
    "iob_write": lambda sock, batch: iob_write(sock, batch, socket.socket.send),
}


@pytest.fixture(autouse=True)
def quick_switches() -> Iterator[None]:
    """Have threads take turns as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def records_of(content: bytes) -> Counter[bytes]:
    assert len(content) % RECORD == 0
    return Counter(content[at : at + RECORD] for at in range(0, len(content), RECORD))


class Uses:
    """What one thread does with the batch, turn by turn."""

    def __init__(self, number: int, batch: IOBatch, other: IOBatch) -> None:
        self.number = number
        self.batch = batch
        self.other = other
        self.added: list[bytes] = []
        self.hooks: list[int] = []  # the turns whose hook is to run
        self.ran: list[int] = []
        self.turn = 0

    def act(self) -> None:
        """Use the batch in one of eight ways."""
        record = (self.number << 32 | self.turn).to_bytes(RECORD)
        kind = self.turn % 8
        if kind == 0:
            self.batch.addbuf(record)
        elif kind == 1:
            self.batch.addbufs([record])
        elif kind == 2:
            self.batch.addbuf(bytearray(record))
        elif kind == 3:
            self.batch.addbuf(record, on_release=self.hook())
        elif kind == 4:
            self.batch.addbuf(b"", on_release=self.hook())
            record = b""
        elif kind == 5:
            try:
                self.batch.prepend(record, on_release=self.hook())
            except RuntimeError:  # refused, and nothing has changed
                self.hooks.pop()
                record = b""
        else:
            record = b""
            repr(self.batch)
            with suppress(RuntimeError):
                self.other.extend(self.batch)
            with suppress(RuntimeError):
                self.batch.extend(self.other)
        if record:
            self.added.append(record)
        self.turn += 1

    def hook(self) -> Callable[[], object]:
        turn = self.turn
        self.hooks.append(turn)
        return lambda: self.ran.append(turn)


def untraced(target: Callable[[], object]) -> Callable[[], object]:
    """Return a function that runs without coverage.py's trace function.

    It allocates memory between any two statements. So a finalizer, and then another thread, can run
    inside of what is one step otherwise: see _core.py.
    """

    def run() -> None:
        sys.settrace(None)
        target()

    return run


@pytest.mark.parametrize("function", SENDERS)
def test_each_byte_is_sent_once_and_each_hook_runs_once(function: str) -> None:
    """Each call returns as usual, or raises RuntimeError because the batch is in use."""
    batch, other = IOBatch(), IOBatch()
    threads = [Uses(number, batch, other) for number in range(2)]
    ended: list[Uses] = []

    def run(uses: Uses) -> None:
        while uses.turn < TURNS:
            uses.act()
            with suppress(RuntimeError):
                SENDERS[function](one, batch)
        ended.append(uses)

    received = bytearray()
    with stream_pair() as (one, peer), running(lambda: received.extend(receive_all(peer))):
        with (
            running(untraced(lambda: run(threads[0]))),
            running(untraced(lambda: run(threads[1]))),
        ):
            pass
        assert len(ended) == 2
        batch.extend(other)
        check_invariants(batch)
        iob_sendall(one, batch)
        one.shutdown(socket.SHUT_WR)
    assert records_of(bytes(received)) == Counter(threads[0].added) + Counter(threads[1].added)
    for uses in threads:
        assert Counter(uses.ran) == Counter(uses.hooks)


def test_bytes_that_one_thread_adds_keep_their_order() -> None:
    batch = IOBatch()
    added = [bytearray(), bytearray()]

    def add(number: int) -> None:
        for turn in range(TURNS):
            record = (number << 32 | turn).to_bytes(RECORD)
            batch.addbuf(record)
            added[number] += record
            if turn % 4 == 0:
                with suppress(RuntimeError):
                    iob_send(one, batch, limit=37)

    received = bytearray()
    with stream_pair() as (one, peer), running(lambda: received.extend(receive_all(peer))):
        with running(untraced(lambda: add(0))), running(untraced(lambda: add(1))):
            pass
        iob_sendall(one, batch)
        one.shutdown(socket.SHUT_WR)
    for number in range(2):
        marked = [
            received[at : at + RECORD]
            for at in range(0, len(received), RECORD)
            if received[at + 3] == number
        ]
        assert b"".join(marked) == added[number]


def test_reset_by_another_thread_keeps_the_counts_right_and_runs_each_hook_once() -> None:
    batch = IOBatch()
    stop = threading.Event()
    hooks, ran = 0, 0

    def hook() -> None:
        nonlocal ran
        ran += 1  # one step: no call is between the load and the store

    def send() -> None:
        nonlocal hooks
        for turn in range(TURNS):
            batch.addbuf(bytearray(3) if turn % 3 else bytes(turn), on_release=hook)
            hooks += 1
            with suppress(RuntimeError):
                iob_send(one, batch)
        stop.set()

    def reset() -> None:
        while not stop.is_set():
            batch.addbufs([b"abc", b"defg"])
            with suppress(RuntimeError):
                batch.reset()

    with stream_pair() as (one, peer), running(lambda: receive_all(peer)):
        with running(untraced(send)), running(untraced(reset)):
            pass
        check_invariants(batch)
        batch.reset()
        check_invariants(batch)
        one.shutdown(socket.SHUT_WR)
    assert ran == hooks == TURNS


@pytest.mark.parametrize("operation", ["reset", "extend", *SENDERS])
def test_send_that_another_thread_begins_at_any_point_of_a_call_repeats_nothing(
    operation: str,
) -> None:
    """The other thread's send waits for its peer until this call has ended."""
    for point in range(1, 100):
        batch = IOBatch()
        batch.addbuf(b"first")
        other = IOBatch()
        threads: list[threading.Thread] = []

        def send(batch: IOBatch = batch) -> None:
            with suppress(RuntimeError):
                iob_send(one, batch)

        def begin(batch: Any = batch, threads: list[threading.Thread] = threads) -> None:
            threads.append(threading.Thread(target=send))
            threads[0].start()
            while threads[0].is_alive() and not batch._core.activity:
                pass

        with stream_pair() as (one, peer), stream_pair() as (two, second_peer):
            filler = clog(one)
            one.setblocking(True)
            with handler_at(point, begin) as reached, suppress(RuntimeError):
                if operation == "reset":
                    batch.reset()
                elif operation == "extend":
                    other.extend(batch)
                else:
                    SENDERS[operation](two, batch)
            receive(peer, filler)
            for thread in threads:
                thread.join(PATIENCE)
                assert not thread.is_alive()
            check_invariants(batch)
            check_invariants(other)
            one.close()
            two.close()
            received = len(receive_all(peer)) + len(receive_all(second_peer))
        if operation != "reset":
            assert received + batch.bytesleft + other.bytesleft == 5
        assert received <= 5
        if not reached:
            break
    assert point < 99


def test_buffers_are_held_while_a_send_waits() -> None:
    """Not even the batch's own view can be released."""
    batch: Any = IOBatch()
    buffer = bytearray(data(3_000_000))
    batch.addbuf(buffer)
    batch.addbuf(bytearray(b"last"))
    with stream_pair() as (one, peer), running(lambda: iob_sendall(one, batch)):
        received = bytearray(peer.recv(1000))
        with pytest.raises(BufferError):
            buffer.append(1)
        for view in list(batch._core.queue):
            if len(view) > 4:
                with suppress(BufferError):  # between two calls it succeeds
                    view.obj.append(1)
        while len(received) < 3_000_004:
            received += peer.recv(1 << 20)
    buffer.append(1)
    assert received == buffer[:-1] + b"last"

"""Operations that are repeated leave nothing behind: no memory, references or objects.

IOBATCH_LEAK_ROUNDS=100000 repeats each operation that often.
"""

from __future__ import annotations

import gc
import os
import socket
import ssl
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, IOB_ERROR, IOBatch, iob_send, iob_sendmsg, iob_write
from tests.support.batches import data
from tests.support.fakes import SYSTEM_CALLS
from tests.support.sockets import clog
from tests.support.usage import resident_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROUNDS = int(os.environ.get("IOBATCH_LEAK_ROUNDS", "1000"))
PIECE = data(500)


class Bench:
    """What the operations use: sockets that accept all, nothing or a part, and a file."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(data(70_000))
        self.fd = os.open(path, os.O_RDONLY)
        self.one, self.peer = socket.socketpair()
        self.full, self.full_peer = socket.socketpair()
        clog(self.full)
        self.lost, other = socket.socketpair()
        other.close()
        self.buffer = bytearray(PIECE)

    def close(self) -> None:
        os.close(self.fd)
        for sock in (self.one, self.peer, self.full, self.full_peer, self.lost):
            sock.close()

    def receive(self, nbytes: int) -> None:
        while nbytes > 0:
            nbytes -= len(self.peer.recv(nbytes))


def add_and_reset(bench: Bench) -> None:
    batch = IOBatch()
    batch.addbuf(PIECE[: len(PIECE) - 1])
    batch.addbufs([PIECE, PIECE])
    batch.addbufs([b"", bench.buffer, PIECE])
    batch.adds("text")
    batch.addfile(bench.fd, 5, 1000)
    batch.addfile(bench.fd, 5, 1000, on_release=dict)
    batch.prepend(bench.buffer, on_release=dict)
    other = IOBatch()
    other.addbuf(PIECE)
    other.extend(batch)
    repr(other)
    other.reset()


def refuse_arguments(bench: Bench) -> None:
    batch: Any = IOBatch()
    for call in (
        lambda: batch.addbuf("text"),
        lambda: batch.addbufs([PIECE, bench.buffer, "text"]),
        lambda: batch.addfile(bench.fd, -1, 5),
        lambda: batch.addfile(bench.fd, 0, 2**63),
        lambda: iob_send(bench.one, batch, limit=0),
        lambda: iob_write(bench.one, batch, dict, limit=0),
    ):
        with suppress(TypeError, ValueError, OverflowError):
            call()


def send_entries(bench: Bench) -> None:
    for pieces in ([PIECE], [PIECE] * 3, [bytes(20_000), PIECE], [bench.buffer, PIECE]):
        batch = IOBatch()
        batch.addbufs(pieces)
        bench.receive(iob_send(bench.one, batch))


def send_ranges(bench: Bench) -> None:
    for count in (1000, 20_000, 40_000):
        batch = IOBatch()
        batch.addbuf(PIECE)
        batch.addfile(bench.fd, 1, count)
        while batch:
            bench.receive(iob_send(bench.one, batch, limit=25_000))


def send_to_a_full_socket(bench: Bench) -> None:
    batch = IOBatch()
    batch.addbuf(PIECE)
    assert iob_send(bench.full, batch) == IOB_AGAIN
    batch.addfile(bench.fd, 1, 1000)
    assert iob_send(bench.full, batch) == IOB_AGAIN
    batch.addbuf(bench.buffer)
    assert iob_send(bench.full, batch) == IOB_AGAIN
    batch.addbuf(bytes(20_000))
    assert iob_send(bench.full, batch) == IOB_AGAIN


def send_to_a_lost_peer(bench: Bench) -> None:
    for pieces in ([PIECE], [PIECE, bench.buffer], [bytes(20_000)]):
        batch = IOBatch()
        batch.addbufs(pieces)
        assert iob_send(bench.lost, batch) == IOB_ERROR


def send_a_truncated_file(bench: Bench) -> None:
    for count in (1000, 100_000):
        batch = IOBatch()
        batch.addbuf(PIECE)
        batch.addfile(bench.fd, 70_000, count)
        bench.receive(iob_send(bench.one, batch))
        assert iob_send(bench.one, batch) == IOB_ERROR


def send_a_message(bench: Bench) -> None:
    batch = IOBatch()
    batch.addbufs([PIECE, bench.buffer])
    bench.receive(iob_sendmsg(bench.one, batch))


def send_in_parts(bench: Bench) -> None:
    batch = IOBatch()
    batch.addbufs([PIECE] * 3)
    batch.addbuf(bench.buffer, on_release=dict)
    batch.addfile(bench.fd, 1, 1000)
    while batch:
        bench.receive(iob_send(bench.one, batch, limit=333))


def raise_from_a_hook(bench: Bench) -> None:
    batch = IOBatch()
    batch.addbuf(PIECE, on_release=fail)
    with suppress(KeyboardInterrupt):
        iob_send(bench.one, batch)
    bench.receive(len(PIECE))
    batch.reset()


def fail() -> None:
    raise KeyboardInterrupt


def write_through_callbacks(bench: Bench) -> None:
    for answer in (-1, None, 0, -3, 5, len(PIECE), ssl.SSLWantReadError, OSError, ValueError, "x"):
        batch = IOBatch()
        batch.addbufs([PIECE, bench.buffer])

        def callback(_sock: object, view: memoryview, answer: Any = answer) -> Any:
            if isinstance(answer, type):
                raise answer
            return answer

        with suppress(ValueError, TypeError):
            iob_write(None, batch, callback)
    batch = IOBatch()
    batch.addbufs([PIECE, bench.buffer])
    batch.addfile(bench.fd, 1, 1000)
    iob_write(None, batch, lambda _sock, view: len(view))


def interrupt_a_send(bench: Bench) -> None:
    def interrupted(*_args: object) -> int:
        raise ZeroDivisionError

    SYSTEM_CALLS.send = interrupted
    SYSTEM_CALLS.sendmsg = interrupted
    try:
        for pieces in ([PIECE], [PIECE] * 3, [bytes(20_000), bench.buffer]):
            batch = IOBatch()
            batch.addbufs(pieces)
            with suppress(ZeroDivisionError):
                iob_send(bench.full, batch)
    finally:
        SYSTEM_CALLS.send = SYSTEM_CALLS.sendmsg = None


def collect_a_cycle(_bench: Bench) -> None:
    batch = IOBatch()
    batch.addbuf(PIECE, on_release=batch.__repr__)


OPERATIONS = (
    add_and_reset,
    refuse_arguments,
    send_entries,
    send_ranges,
    send_to_a_full_socket,
    send_to_a_lost_peer,
    send_a_truncated_file,
    send_a_message,
    send_in_parts,
    raise_from_a_hook,
    write_through_callbacks,
    interrupt_a_send,
    collect_a_cycle,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "file")
    yield made
    made.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_repeated_operation_leaves_nothing_behind(
    operation: Callable[[Bench], None], bench: Bench
) -> None:
    """An unfreed block is found by sys.getallocatedblocks, other memory by the resident size."""

    def repeat(rounds: int) -> None:
        for _ in range(rounds):
            operation(bench)
        gc.collect()

    def counts() -> tuple[int, int, int, int]:
        return (
            sys.getallocatedblocks(),
            len(gc.get_objects()),
            sys.getrefcount(PIECE),
            sys.getrefcount(bench.buffer),
        )

    repeat(ROUNDS // 5)
    before, resident = counts(), resident_bytes()
    repeat(ROUNDS)
    after = counts()
    assert all(new - old < ROUNDS // 20 for old, new in zip(before, after, strict=True)), (
        before,
        after,
    )
    assert resident_bytes() - resident < 2**20 + 16 * ROUNDS
    bench.buffer.append(1)  # it is not exported any more

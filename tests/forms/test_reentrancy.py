"""Code that runs inside the calls of a batch: signal handlers, and finalizers of the collector.

Such code gets RuntimeError or a right answer; it never causes a crash, or a wrong count.
"""

from __future__ import annotations

import gc
import signal
import socket
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.batches import check_invariants, data
from tests.support.fakes import SYSTEM_CALLS
from tests.support.interruptions import alarm, untraced
from tests.support.sockets import clog, receive, receive_all, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def misuse(lib: Any, batch: Any, sock: socket.socket) -> None:
    """Do what is refused during a call on the batch."""
    for call in (
        batch.reset,
        lambda: lib.IOBatch().extend(batch),
        lambda: lib.iob_send(sock, batch),
        lambda: lib.iob_sendmsg(sock, batch),
        lambda: lib.iob_write(sock, batch, socket.socket.send),
    ):
        with pytest.raises(RuntimeError, match="in use"):
            call()


def test_handler_of_a_signal_finds_the_batch_in_use(lib: Any) -> None:
    """The signal arrives while the send waits for its peer, and nothing has been sent."""
    batch = lib.IOBatch()
    batch.addbuf(b"first")
    filler = 0

    def handler(_number: int, _frame: object) -> None:
        misuse(lib, batch, one)
        batch.addbuf(b"added")
        receive(peer, filler)

    with stream_pair() as (one, peer):
        filler = clog(one)
        one.setblocking(True)
        with alarm(handler, one):
            assert lib.iob_send(one, batch) == 5
        assert lib.iob_send(one, batch) == 5
        check_invariants(batch)
        assert receive(peer, 10) == b"firstadded"


@pytest.mark.parametrize("function", ["iob_send", "iob_write"])
def test_finalizer_of_a_sent_file_finds_the_batch_in_use(
    lib: Any, function: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(data(100))
    failures: list[BaseException] = []

    class Finalized:
        def __init__(self) -> None:
            self.file = (tmp_path / "file").open("rb")

        def fileno(self) -> int:
            return self.file.fileno()

        def __del__(self) -> None:
            self.file.close()
            try:
                misuse(lib, batch, one)
                batch.addbuf(b"added")
            except BaseException as exc:  # noqa: BLE001 # the test reports it
                failures.append(exc)

    batch = lib.IOBatch()
    batch.addbuf(b"first")
    batch.addfile(Finalized(), 0, 100)
    batch.addfile(Finalized(), 0, 100)
    batch.addbuf(b"last")
    with stream_pair() as (one, peer):
        total = 0
        while batch:
            if function == "iob_send":
                total += lib.iob_send(one, batch)
            else:
                total += lib.iob_write(one, batch, socket.socket.send)
            check_invariants(batch)
        assert not failures
        one.shutdown(socket.SHUT_WR)
        received = receive_all(peer)
    assert len(received) == total == batch.bytessent
    assert received.count(b"added") == 2
    assert received.replace(b"added", b"") == b"first" + 2 * data(100) + b"last"


def test_finalizers_that_run_at_any_allocation_lose_no_entry(lib: Any) -> None:
    """The garbage collector runs them wherever an object is made."""
    batch = lib.IOBatch()
    added = 0

    class Garbage:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            nonlocal added
            batch.addbuf(b"finalized")
            added += len(b"finalized")

    before = gc.get_threshold()
    try:
        with socket.socket() as sock, pytest.MonkeyPatch.context() as patch:
            take = lambda _fd, piece, _flags: len(piece) // 2 + 1  # noqa: E731
            patch.setattr(SYSTEM_CALLS, "send", take)
            patch.setattr(SYSTEM_CALLS, "sendmsg", lambda _fd, pieces, _flags: len(pieces[0]))
            patch.setattr(socket.socket, "send", take)
            patch.setattr(socket.socket, "sendmsg", lambda _sock, pieces, *_: len(pieces[0]))
            for turn in range(300):
                gc.set_threshold(1 + turn % 7)
                for _ in range(3):
                    Garbage()
                    batch.addbufs([b"12", b"345"])
                    batch.addbufs((b"12", b"", b"345"))
                    batch.addbuf(b"6789")
                    batch.addbuf(bytearray(10))
                    added += 24
                if turn % 3 == 0:
                    lib.iob_send(sock, batch)
                gc.set_threshold(0)
                check_invariants(batch)
                assert batch.bytessent + batch.bytesleft == added
    finally:
        gc.set_threshold(*before)
        gc.collect()


@contextmanager
def finalizer(act: Callable[[], object]) -> Iterator[None]:
    """Have the collector call a function at the first allocation in the block."""

    class Garbage:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            act()

    gc.collect()
    before = gc.get_threshold()
    lists: list[Any] = [[] for _ in range(200)]  # the interpreter keeps some unused lists ready
    Garbage()
    with untraced():
        gc.set_threshold(1, 1, 1)
        try:
            yield
        finally:
            gc.set_threshold(*before)
    gc.collect()
    lists.clear()


@pytest.mark.parametrize("count", [3, 100])
def test_entry_that_a_finalizer_adds_while_the_queue_is_emptied_is_kept(
    lib: Any, count: int
) -> None:
    for empty in ("reset", "send"):
        batch = lib.IOBatch()
        batch.addbufs([b"x"] * count)
        with stream_pair() as (one, _), finalizer(partial(batch.addbuf, b"added")):
            if empty == "reset":
                batch.reset()
            else:
                lib.iob_send(one, batch)
        check_invariants(batch)
        assert batch.bytesleft in {0, 5, 5 + count}


def test_reset_by_a_finalizer_during_repr_causes_no_crash(lib: Any) -> None:
    for count in range(1, 200, 7):
        batch = lib.IOBatch()
        batch.addbufs([bytes([count]) * (100 + i) for i in range(count)])
        with finalizer(batch.reset):
            assert "IOBatch" in repr(batch)
        check_invariants(batch)


@pytest.mark.parametrize("act", ["send", "prepend", "reset", "extend"])
def test_bytes_that_are_being_dropped_are_never_sent(lib: Any, act: str, tmp_path: Path) -> None:
    """A finalizer of a file runs while reset() drops the batch."""
    (tmp_path / "file").write_bytes(b"dropped")
    other = lib.IOBatch()

    class Finalized:
        def __init__(self) -> None:
            self.file = (tmp_path / "file").open("rb")

        def fileno(self) -> int:
            return self.file.fileno()

        def __del__(self) -> None:
            self.file.close()
            with suppress(RuntimeError):
                if act == "prepend":
                    batch.prepend(b"added")
                else:
                    batch.addbuf(b"added")
                if act == "send":
                    lib.iob_send(one, batch)
                elif act == "reset":
                    batch.reset()
                elif act == "extend":
                    other.extend(batch)

    with stream_pair() as (one, peer), (tmp_path / "file").open("rb") as file:
        batch = lib.IOBatch()
        batch.addfile(Finalized(), 0, 7)
        batch.addfile(file.fileno(), 0, 7)
        batch.addbuf(b"dropped")
        batch.reset()
        for each in batch, other:
            check_invariants(each)
            while lib.iob_send(one, each) > 0:
                pass
        one.shutdown(socket.SHUT_WR)
        assert b"dropped" not in receive_all(peer)


def test_exit_by_a_handler_in_a_finalizer_is_reported_and_ignored(
    lib: Any, unraisable: list[BaseException | None]
) -> None:
    """As an exception of any finalizer: the process goes on."""

    def leave(_number: int, _frame: object) -> None:
        raise SystemExit

    batch = lib.IOBatch()
    batch.addbuf(b"data", on_release=lambda: signal.raise_signal(signal.SIGUSR1))
    before = signal.signal(signal.SIGUSR1, leave)
    try:
        del batch
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [type(exc) for exc in unraisable] == [SystemExit]

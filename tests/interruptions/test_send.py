"""Handlers that raise while a batch is sent."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_send, iob_sendmsg, iob_write
from tests.support.batches import batch_of, check_invariants, data, take
from tests.support.fakes import patch_os
from tests.support.forms import is_compiled, pure
from tests.support.interruptions import (
    KINDS,
    LARGE,
    PURE_STEPS,
    SMALL,
    STEPS,
    ReleaseLog,
    drain,
    every_kind,
    handler_that_raises,
    interrupted_by,
    send_all,
)
from tests.support.send import get_cork
from tests.support.sockets import is_silent, receive, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.batches import MakeFile
    from tests.support.interruptions import Step


@every_kind
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_interrupted_send_repeats_no_byte_no_hook_and_no_close(
    step: Step, kind: type[Exception], make_file: MakeFile
) -> None:
    """Only the handler's exception leaves the call.

    If the number of sent bytes is unknown afterwards, the batch fails with EIO. Otherwise the next
    call continues.
    """
    content = data(LARGE)
    fd = make_file(content)
    view = bytearray(data(300, seed=1))
    wanted = b"".join((b"one", view, content[:SMALL], b"two", content, b"three"))
    failed = 0
    for point in count(1):
        with pytest.MonkeyPatch.context() as patch, stream_pair(buffers=4096) as (sock, peer):
            sock.setblocking(False)
            peer.setblocking(False)
            released = ReleaseLog(patch)
            owned = [os.dup(fd), os.dup(fd)]
            batch = IOBatch()
            batch.addbuf(b"one", on_release=released.hook("one"))
            batch.addbuf(view, on_release=released.hook("view"))
            batch.addfile_close(owned[0], 0, SMALL)
            batch.addbuf(b"two")
            batch.addfile_close(owned[1])
            batch.addbuf(b"three", on_release=released.hook("three"))
            batch.addbuf(b"", on_release=released.hook("empty"))
            with handler_that_raises(point, kind) as raised:
                received, caught = send_all(step, sock, peer, batch)
            assert caught == raised, "another exception left the call"
            if batch.error is None:
                assert received == wanted
                check_invariants(batch)
            else:
                failed += 1
                assert raised
                assert batch.error.errno == errno.EIO
                assert received == wanted[: len(received)]
                assert len(received) >= batch.bytessent
                assert step(sock, batch) == IOB_ERROR
            batch.reset()
            if raised:
                raised[0].__traceback__ = None  # its frames may hold a view of the offer
            view.append(0)  # BufferError if the batch still holds a view of it
            view.pop()
            assert sorted(map(str, released.entries)) == sorted(
                ["one", "view", "three", "empty", *map(str, owned)]
            )
        if not raised:
            break
    # iob_send in its compiled form counts in the step of the system call, with no point between.
    exact = step is iob_send and is_compiled(step)
    assert point > (25 if exact else 50)
    assert (failed > 0) is not exact


def test_entry_accepted_before_an_interruption_is_not_sent_with_later_entries() -> None:
    """The accepted entry may still be queued when the next one is added."""
    for point in count(1):
        with stream_pair() as (sock, peer):
            batch = IOBatch()
            batch.addbuf(bytearray(b"first"), on_release=partial(int))
            batch.addbuf(b"second")
            with handler_that_raises(point, ZeroDivisionError) as raised, suppress(*KINDS):
                iob_send(sock, batch)
            if batch.error is None:
                left = batch.bytesleft
                batch.prepend(b"<")
                batch.addbuf(b">")
                assert iob_send(sock, batch) == left + 2
                wanted = b"<firstsecond>" if left else b"firstsecond<>"
                assert receive(peer, len(wanted)) == wanted
        if not raised:
            break


def test_handlers_exception_in_the_report_of_a_hooks_exception_adds_no_report(
    unraisable: list[BaseException | None],
) -> None:
    """The report may be missing then: the exception of the handler has that of the hook in it."""

    def hook() -> None:
        raise KeyError("hook")

    for point in count(1):
        with stream_pair() as (sock, _):
            batch = IOBatch()
            batch.addbuf(b"x", on_release=hook)
            with handler_that_raises(point, ZeroDivisionError) as raised, suppress(*KINDS):
                iob_send(sock, batch)
            batch.reset()
        assert {type(exc) for exc in unraisable} <= {KeyError}
        if not raised:
            break
    assert point > 10


def test_runtime_error_of_a_handler_leaves_the_snapshot_of_a_long_batch() -> None:
    """snapshot() retries only for the RuntimeError of a deque that grew during the iteration."""
    batch = IOBatch()
    for _ in range(5000):  # more than IOV_MAX: snapshot() copies a part of the queue
        batch.addbuf(b"x" * 20)

    def handler(_number: int, _frame: object) -> None:
        raise RuntimeError("from a handler")

    with stream_pair() as (sock, _), pytest.MonkeyPatch.context() as patch:
        patch.setattr("iobatch._core.islice", interrupted_by(handler))
        with pytest.raises(RuntimeError, match="from a handler"):
            pure(iob_send)(sock, batch)
    assert batch.bytesleft == 100_000
    assert batch.error is None


def test_empty_entry_added_after_an_interruption_repeats_no_byte() -> None:
    """The release of the empty entry must not end the removal of accepted entries."""
    for point in count(1):
        with stream_pair() as (sock, peer):
            batch = IOBatch()
            batch.addbuf(b"A" * 3000)
            batch.addbuf(bytearray(b"B" * 2000))
            with handler_that_raises(point, ZeroDivisionError) as raised, suppress(*KINDS):
                iob_send(sock, batch, limit=3000)
            batch.addbuf(bytearray())
            if batch.error is None:
                while iob_send(sock, batch) > 0:
                    pass
                assert batch.bytesleft == 0
                assert receive(peer, 5000) == b"A" * 3000 + b"B" * 2000
        if not raised:
            break


def test_interruption_after_a_pinned_offer_was_taken_pins_nothing() -> None:
    """The next offer has the length that its call asks for."""
    offers: list[int] = []

    def callback(_sock: None, view: memoryview) -> int:
        offers.append(len(view))
        return len(view)

    checked = 0
    for point in count(1):
        batch = IOBatch()
        batch.addbuf(bytearray(b"first"))
        batch.addbuf(bytearray(b"second"))
        assert iob_write(None, batch, lambda _sock, _view: -1, limit=5) == IOB_AGAIN
        with handler_that_raises(point, ZeroDivisionError) as raised, suppress(*KINDS):
            iob_write(None, batch, callback)
        if batch.error is None and batch.bytessent == 5:
            iob_write(None, batch, callback, limit=1)
            assert offers[-1] == 1
            checked += 1
        if not raised:
            break
    assert checked > 0


def test_interruption_leaves_no_cork(make_file: MakeFile) -> None:
    """A cork that stays would be taken for the caller's by the next call."""
    fd = make_file(data(LARGE))
    for point in count(1):
        with stream_pair("tcp4") as (sock, _):
            batch = IOBatch()
            batch.addbuf(b"header")
            batch.addfile(fd)
            batch.addbuf(b"trailer")
            with handler_that_raises(point, ZeroDivisionError) as raised, suppress(*KINDS):
                iob_send(sock, batch)
            assert get_cork(sock) == 0
        if not raised:
            break
    assert point > (15 if is_compiled(iob_send) else 30)


def at_depth(room: int, call: Callable[[], object]) -> None:
    """Make a call with room for this number of frames in the stack."""
    if room_left() > room:
        at_depth(room, call)
    else:
        call()


def room_left() -> int:
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return sys.getrecursionlimit() - depth


@pytest.mark.parametrize("step", [*STEPS, iob_sendmsg], ids=lambda step: step.__name__)
def test_recursion_error_repeats_no_byte(step: Step, make_file: MakeFile) -> None:
    """It comes before the system call, or after the accounting."""
    content = data(SMALL)
    fd = make_file(content)
    view = bytearray(data(300, seed=1))
    wanted = b"one" + view + content + b"two"
    raised = []
    for room in range(1, 30):
        with stream_pair() as (sock, peer):
            peer.setblocking(False)
            batch = batch_of(b"one")
            batch.addbuf(view)
            batch.addfile(fd)
            batch.addbuf(b"two")
            try:
                at_depth(room, partial(step, sock, batch))
            except RecursionError:
                raised.append(room)
            received = drain(peer)
            assert len(received) == batch.bytessent
            while (code := step(sock, batch)) > 0:
                pass
            assert code == IOB_DONE
            assert received + drain(peer) == wanted
            check_invariants(batch)
    assert raised == [*range(1, len(raised) + 1)]
    assert 0 < len(raised) < 25


@pytest.mark.parametrize("step", [*PURE_STEPS, iob_sendmsg], ids=lambda step: step.__name__)
@pytest.mark.parametrize("kind", [MemoryError, RecursionError])
def test_exhaustion_in_the_accounting_fails_the_batch_for_good(
    step: Step, kind: type[Exception]
) -> None:
    batch = batch_of(b"hello")

    def consume(_core: object, _nbytes: int) -> None:
        raise kind

    with stream_pair() as (sock, peer):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("iobatch._core.BatchCore.consume", consume)
            with pytest.raises(kind):
                step(sock, batch)
        assert receive(peer, 5) == b"hello"
        assert step(sock, batch) == IOB_ERROR
        assert isinstance(batch.error, OSError)
        assert batch.error.errno == errno.EIO
        assert is_silent(peer)


@pytest.mark.parametrize("kind", [MemoryError, RecursionError])
def test_exhaustion_before_a_send_changes_nothing(
    kind: type[Exception], make_file: MakeFile
) -> None:
    """A file is read, and buffers are joined, before the system call."""
    batch = batch_of(b"header")
    batch.addfile(make_file(data(SMALL)))

    def pread(*_args: int) -> bytes:
        raise kind

    with stream_pair() as (sock, peer):
        with pytest.MonkeyPatch.context() as patch:
            patch_os(patch, "pread", pread)
            with pytest.raises(kind):
                iob_send(sock, batch)
        assert batch.error is None
        assert iob_send(sock, batch) == 6 + SMALL
        assert receive(peer, 6 + SMALL) == b"header" + data(SMALL)


def raise_error(kind: type[Exception]) -> Callable[[None, memoryview], int]:
    def callback(_sock: None, _view: memoryview) -> int:
        raise kind

    return callback


def test_callbacks_own_recursion_error_leaves_the_batch_as_it_was() -> None:
    """It is like any other exception of a callback: the callback has taken nothing."""
    batch = batch_of(b"hello")
    with pytest.raises(RecursionError):
        iob_write(None, batch, raise_error(RecursionError))
    assert batch.error is None
    assert take(batch) == b"hello"


def test_memory_error_out_of_a_callback_fails_the_batch_for_good() -> None:
    """The callback may have sent bytes before memory ran out."""
    batch = batch_of(b"hello")
    with pytest.raises(MemoryError):
        iob_write(None, batch, raise_error(MemoryError))
    assert isinstance(batch.error, OSError)
    assert batch.bytesleft == 5


def test_recursion_error_leaves_the_snapshot_of_a_long_batch() -> None:
    """It is a RuntimeError, as that of a queue that grew during the iteration."""
    batch = batch_of(*[b"x" * 20] * 5000)

    def islice(*_args: object) -> None:
        raise RecursionError

    with stream_pair() as (sock, _), pytest.MonkeyPatch.context() as patch:
        patch.setattr("iobatch._core.islice", islice)
        with pytest.raises(RecursionError):
            pure(iob_send)(sock, batch)
    assert (batch.bytesleft, batch.error) == (100_000, None)


def test_recursion_error_of_a_handler_during_a_callback_leaves_the_count_unknown() -> None:
    def handler(_number: int, _frame: object) -> None:
        raise RecursionError("from a handler")

    batch = batch_of(b"hello")
    with pytest.raises(RecursionError, match="from a handler"):
        iob_write(None, batch, interrupted_by(handler))
    assert isinstance(batch.error, OSError)

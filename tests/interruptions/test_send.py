"""Handlers that raise while a batch is sent."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import pytest

from iobatch import IOB_AGAIN, IOB_ERROR, IOBatch, iob_send, iob_write
from tests.support.batches import check_invariants, data
from tests.support.interruptions import (
    KINDS,
    LARGE,
    SMALL,
    STEPS,
    ReleaseLog,
    every_kind,
    handler_that_raises,
    interrupted_by,
    send_all,
)
from tests.support.sockets import receive, stream_pair

if TYPE_CHECKING:
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
    assert point > 50
    assert failed > 0


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
            iob_send(sock, batch)
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

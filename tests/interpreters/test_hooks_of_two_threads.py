"""Hooks of one batch that run in two threads: while one thread sends, another adds an empty entry.

An empty entry is released at once, by the thread that adds it. Nothing else is released by another
thread than the one that sends.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_DONE, IOBatch, iob_send
from tests.support.batches import check_invariants, data
from tests.support.sockets import PATIENCE, clog, receive, stream_pair
from tests.support.threads import running

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeFile = Callable[[bytes], int]

LARGE = data(100_000)  # it goes by sendfile, in a step of its own


def wait_until_in_use(batch: Any) -> None:
    """Wait until a thread sends a batch."""
    while not batch._core.activity:
        pass


class Meeting:
    """A batch that one thread sends over a full socket, while this thread adds an empty entry."""

    def __init__(self, batch: IOBatch) -> None:
        self.batch = batch
        self.codes: list[int] = []
        self.sent = threading.Event()

    def send(self, sock: Any) -> None:
        """Send the whole batch."""
        while (code := iob_send(sock, self.batch)) > 0:
            self.codes.append(code)
        self.codes.append(code)
        self.sent.set()

    def run(self, during_hook: Callable[[], object], expected: bytes) -> None:
        """Send in a thread; add an empty entry meanwhile, whose hook lets the send go on."""

        def hook() -> None:
            assert receive(peer, filler + len(expected))[filler:] == expected
            during_hook()

        with stream_pair() as (one, peer):
            filler = clog(one)
            one.setblocking(True)
            with running(lambda: self.send(one)):
                wait_until_in_use(self.batch)
                self.batch.addbuf(b"", on_release=hook)
            check_invariants(self.batch)
            self.batch.addbuf(b"more")
            assert iob_send(one, self.batch) == 4
            assert receive(peer, 4) == b"more"


def test_send_of_several_steps_repeats_no_byte_while_a_hook_of_another_thread_runs(
    make_file: MakeFile,
) -> None:
    """The bytes of its first step are removed before the second one, although a hook runs."""
    ran: list[str] = []
    batch = IOBatch()
    batch.addbuf(bytearray(b"first"), on_release=lambda: ran.append("first"))
    batch.addfile(make_file(LARGE), 0, len(LARGE))
    batch.addbuf(b"last", on_release=lambda: ran.append("last"))
    meeting = Meeting(batch)
    meeting.run(lambda: meeting.sent.wait(PATIENCE), b"first" + LARGE + b"last")
    assert meeting.codes[-1] == IOB_DONE
    assert ran == ["first", "last"]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_hook_runs_once_although_two_threads_run_hooks(count: int) -> None:
    ran: list[int] = []
    batch = IOBatch()
    for number in range(count):
        batch.addbuf(b"%d" % number, on_release=lambda number=number: ran.append(number))
    meeting = Meeting(batch)

    def meanwhile() -> None:
        for number in range(count, 2 * count):
            batch.addbuf(b"", on_release=lambda number=number: ran.append(number))
        assert meeting.sent.wait(PATIENCE)

    meeting.run(meanwhile, b"".join(b"%d" % number for number in range(count)))
    assert sorted(ran) == list(range(2 * count))


def test_batch_can_be_sent_again_while_a_hook_of_another_thread_runs() -> None:
    batch = IOBatch()
    batch.addbuf(bytearray(b"first"))
    meeting = Meeting(batch)

    def send_again() -> None:
        assert meeting.sent.wait(PATIENCE)
        with stream_pair() as (one, peer):
            batch.addbuf(bytearray(b"second"), on_release=lambda: ran.append(batch.bytesleft))
            assert iob_send(one, batch) == 6
            assert receive(peer, 6) == b"second"

    ran: list[int] = []
    meeting.run(send_again, b"first")
    assert ran == [0]


def test_hook_of_an_empty_entry_cannot_prepend_while_another_thread_sends() -> None:
    """Its bytes would be taken for those that the other thread's system call has sent."""
    batch = IOBatch()
    batch.addbuf(b"first")
    ran: list[str] = []

    def prepend() -> None:
        with pytest.raises(RuntimeError, match="are being sent"):
            batch.prepend(b"before")
        ran.append("hook")

    with stream_pair() as (one, peer):
        filler = clog(one)
        one.setblocking(True)
        with running(lambda: iob_send(one, batch)):
            wait_until_in_use(batch)
            batch.addbuf(b"", on_release=prepend)
            assert receive(peer, filler + 5)[filler:] == b"first"
    assert ran == ["hook"]
    check_invariants(batch)

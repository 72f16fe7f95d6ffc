"""Re-entrancy: finalizers and signal handlers that change the batch during a call."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_DONE, IOBatch, iob_send, iob_sendmsg
from iobatch._core import BatchCore
from tests.support.batches import IOV_MAX, Borrowed, batch_of, check_invariants, data
from tests.support.fakes import Scripted, script_sendfile
from tests.support.forms import forms, name_of_form, pure
from tests.support.send import LARGE

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from iobatch._entries import Entry
    from tests.support.batches import MakeFile


@pytest.mark.parametrize("send", [iob_send, iob_sendmsg])
def test_prepend_during_a_system_call_is_refused(
    send: Callable[[socket.socket, IOBatch], int],
) -> None:
    """A signal handler or finalizer could try to prepend."""

    class Reentrant(Scripted):
        def _take(self, name: str, pieces: Any, flags: int) -> int:
            with pytest.raises(RuntimeError):
                batch.prepend(b"PRE")
            return super()._take(name, pieces, flags)

    batch = IOBatch()
    batch.addbuf(b"hello")
    with Reentrant() as sock:
        assert send(sock, batch) == 5
        assert sock.taken == b"hello"


def test_buffers_added_while_ranges_are_read_are_sent(make_file: MakeFile) -> None:
    """The finalizer of a range's file object adds the buffers."""

    class Finalized:
        def __init__(self, fd: int) -> None:
            self.fd = fd

        def fileno(self) -> int:
            return self.fd

        def __del__(self) -> None:
            batch.addbuf(b"!")

    content = data(30)
    fd = make_file(content)
    batch = IOBatch()
    for offset in (0, 10, 20):
        batch.addfile(Finalized(fd), offset, 10)
    with Scripted() as sock:
        while iob_send(sock, batch) > 0:
            check_invariants(batch)
        assert sock.taken == content + b"!!!"


def test_range_added_while_the_queue_is_copied_is_sent(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffers alone would have been joined; a range can't be."""
    content = data(30)
    fd = make_file(content)
    batch = batch_of(b"one", b"two")
    snapshot = BatchCore.snapshot

    def grown_snapshot(core: BatchCore, count: int | None = None) -> list[Entry]:
        if len(core.queue) == 2:
            batch.addfile(fd, 0, 30)
        return snapshot(core, count)

    monkeypatch.setattr(BatchCore, "snapshot", grown_snapshot)
    with Scripted() as sock:
        assert pure(iob_send)(sock, batch) == 36
        assert sock.taken == b"onetwo" + content
    assert iob_send(sock, batch) == IOB_DONE
    check_invariants(batch)


@pytest.mark.parametrize("send", forms(iob_send), ids=name_of_form)
def test_range_added_while_the_queue_is_cleared_is_sent(
    send: Callable[[socket.socket, IOBatch], int],
    make_file: MakeFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The finalizer of the last file adds the range."""
    content = data(LARGE)
    fd = make_file(content)
    batch = IOBatch()

    class Finalized(Borrowed):
        def __del__(self) -> None:
            batch.addfile(fd, 0, 30)

    batch.addfile(Finalized(fd))
    with Scripted() as sock:
        script_sendfile(monkeypatch, sock)
        assert send(sock, batch) == LARGE
        check_invariants(batch)
        assert send(sock, batch) == 30
        assert sock.taken == content + content[:30]
    assert send(sock, batch) == IOB_DONE


def test_entries_moved_into_the_batch_by_a_finalizer_are_sent(make_file: MakeFile) -> None:
    """The finalizer of the last buffer moves the entries."""
    content = data(30)
    other = IOBatch()
    other.addfile(make_file(content), 0, 30)

    class Finalized(bytearray):
        def __del__(self) -> None:
            batch.extend(other)

    batch = IOBatch()
    batch.addbuf(Finalized(b"one"))
    with Scripted() as sock:
        while iob_send(sock, batch) > 0:
            check_invariants(batch)
        assert sock.taken == b"one" + content
    assert other.bytesleft == 0


def test_buffer_added_while_a_long_queue_is_copied_is_sent() -> None:
    """The addition invalidates the iterator over the queue."""
    batch = IOBatch()
    for _ in range(IOV_MAX + 1):
        batch.addbuf(b"x" * 20)

    def islice_then_add(queue: Any, count: int) -> Iterator[Any]:
        entries = islice(queue, count)
        if batch.bytesleft == 20 * (IOV_MAX + 1):
            batch.addbuf(b"later")
        return entries

    with pytest.MonkeyPatch.context() as patch, Scripted() as sock:
        patch.setattr("iobatch._core.islice", islice_then_add)
        assert pure(iob_send)(sock, batch) == 20 * (IOV_MAX + 1) + 5
        assert sock.taken.endswith(b"xlater")

"""Hooks, finalizers and signal handlers that use a writer or its batch during a send."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch, iob_send
from iobatch.aio import WriteOperation, WriteStatus
from tests.support.aio import statuses
from tests.support.batches import batch_of, data
from tests.support.fakes import Scripted, again
from tests.support.loops import (
    both_loops,
    is_watched,
    scripted_writer,
    writer_pair,
)
from tests.support.pagecache import (
    SMALL,
)
from tests.support.sockets import PATIENCE, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.batches import MakeFile

MORE = int(socket.MSG_MORE)
DONE, ABORTED, TIMEOUT = WriteStatus.DONE, WriteStatus.ABORTED, WriteStatus.TIMEOUT


@both_loops
async def test_write_posted_by_a_hook_goes_out_after_the_current_write() -> None:
    with writer_pair() as (writer, peer):
        posted: list[WriteOperation] = []
        for first in (batch_of(b"one "), IOBatch()):
            first.addbuf(
                b"two ", on_release=lambda: posted.append(writer.write(batch_of(b"three ")))
            )
            first.addbuf(b"four ")
            operation = writer.write(first)
            assert operation.status is DONE
            assert posted.pop().status is DONE
        assert peer.recv(99) == b"one two four three two four three "


@both_loops
async def test_write_posted_by_a_hook_follows_a_current_write_that_has_to_wait() -> None:
    with scripted_writer(3, again()) as (writer, sock):
        posted: list[WriteOperation] = []
        batch = IOBatch()
        batch.addbuf(b"abc", on_release=lambda: posted.append(writer.write(batch_of(b"XYZ"))))
        batch.addbuf(b"def")
        operation = writer.write(batch)
        assert not operation.done()
        assert not posted[0].done()
        assert await posted[0] == 3
        assert operation.done()
        assert sock.taken == b"abcdefXYZ"


@both_loops
async def test_write_posted_by_a_hook_with_a_timeout_of_zero_times_out() -> None:
    """The new write has to wait for the one whose hook posts it."""
    with writer_pair() as (writer, _):
        posted: list[WriteOperation] = []
        batch = IOBatch()
        batch.addbuf(
            b"abc", on_release=lambda: posted.append(writer.write(batch_of(b"x"), timeout=0))
        )
        assert writer.write(batch).status is DONE
        assert posted[0].status is TIMEOUT


@both_loops
async def test_hook_cannot_post_its_own_batch() -> None:
    """WSASend's WSAEINPROGRESS is a RuntimeError."""
    with writer_pair() as (writer, _), stream_pair() as (sock, _):
        refused: list[BaseException] = []

        def hook() -> None:
            try:
                writer.write(batch)
            except RuntimeError as exc:
                refused.append(exc)

        batch = IOBatch()
        batch.addbuf(b"x", on_release=hook)
        iob_send(sock, batch)
        assert len(refused) == 1
        assert writer.write(batch_of(b"x")).done()


@both_loops
async def test_hook_cannot_cancel_or_close_during_a_send() -> None:
    """How much was sent is unknown inside a hook."""
    with scripted_writer(again(), again()) as (writer, _):
        refused: list[Exception] = []

        def hook() -> None:
            for call in (writer.close, writer.cancel, posted.cancel):
                try:
                    call()
                except RuntimeError as exc:
                    refused.append(exc)

        batch = IOBatch()
        batch.addbuf(b"abc", on_release=hook)
        posted = writer.write(batch, timeout=PATIENCE)
        assert await writer.write(batch_of(b"x")) == 1
        assert (posted.status, len(refused)) == (DONE, 3)


@both_loops
async def test_entry_added_by_a_finalizer_goes_out_with_the_next_write(
    make_file: MakeFile,
) -> None:
    fd = make_file(b"content")

    class File:
        def fileno(self) -> int:
            return fd

        def __del__(self) -> None:
            batch.addfile(fd, 3, 4)

    with writer_pair() as (writer, peer):
        batch = batch_of(b"header ")
        batch.addfile(File(), 0, 3)
        assert await writer.write(batch) == 10
        assert await writer.write(batch) == 4
        assert peer.recv(99) == b"header content"


@both_loops
async def test_entry_added_by_a_hook_goes_out_with_the_next_write() -> None:
    """The hook finds its batch empty although the write has to wait."""
    with scripted_writer(3) as (writer, sock):
        batch = IOBatch()
        batch.addbuf(b"abc", on_release=lambda: batch.addbuf(b"XYZ"))
        batch.addbuf(b"def")
        operation = writer.write(batch)
        assert (operation.done(), batch.bytesleft, batch.bytessent) == (False, 3, 0)
        assert await operation == 6
        assert await writer.write(batch) == 3
        assert sock.taken == b"abcdefXYZ"


@both_loops
async def test_signal_handler_cannot_post_a_batch_that_another_call_sends() -> None:
    with scripted_writer() as (writer, sock), Scripted() as other:
        batch = batch_of(b"abc")
        send = other.send

        def send_and_handle(*args: Any) -> int:
            with pytest.raises(RuntimeError):
                writer.write(batch)
            return send(*args)

        other.send = send_and_handle  # type: ignore[method-assign]
        assert iob_send(other, batch) == 3
        assert (sock.taken, other.taken) == (b"", b"abc")


@both_loops
async def test_write_posted_by_a_signal_handler_follows_one_that_fails_at_once() -> None:
    """The failed write has sent no byte, so it aborts nothing."""
    with scripted_writer() as (writer, sock):
        posted: list[WriteOperation] = []
        send = sock.send

        def send_or_fail(*args: Any) -> int:
            if posted:
                return send(*args)
            posted.append(writer.write(batch_of(b"next")))
            raise BrokenPipeError(errno.EPIPE, "scripted")

        sock.send = send_or_fail  # type: ignore[method-assign]
        failed = writer.write(batch_of(b"abc"))
        assert statuses([failed, *posted]) == [WriteStatus.ERROR, DONE]
        assert sock.taken == b"next"


@both_loops
async def test_signal_handler_cannot_post_the_batch_being_sent() -> None:
    with scripted_writer() as (writer, sock):
        batch = batch_of(b"abc")
        send = sock.send

        def send_and_handle(*args: Any) -> int:
            nbytes = send(*args)
            with pytest.raises(RuntimeError):
                writer.write(batch)
            return nbytes

        sock.send = send_and_handle  # type: ignore[method-assign]
        assert await writer.write(batch) == 3
        assert sock.taken == b"abc"


@both_loops
async def test_entry_added_by_a_signal_handler_goes_out_with_the_next_write(
    make_file: MakeFile,
) -> None:
    fd = make_file(data(SMALL))
    batch = batch_of(b"header")
    batch.addfile(fd)
    with scripted_writer() as (writer, sock):
        send = sock.send

        def send_and_handle(*args: Any) -> int:
            if not sock.calls:
                batch.addbuf(b"from a handler")
            return send(*args)

        sock.send = send_and_handle  # type: ignore[method-assign]
        assert await writer.write(batch) == 6 + SMALL
        assert (batch.bytesleft, batch.bytessent) == (14, 0)
        await writer.write(batch)
        assert sock.taken == b"header" + data(SMALL) + b"from a handler"


@both_loops
@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), ZeroDivisionError()], ids=repr)
@pytest.mark.parametrize("where", ["write", "write with flags", "the loop's turn"])
async def test_exception_of_a_signal_handler_closes_the_writer_and_propagates(
    where: str, interruption: BaseException
) -> None:
    """How much was sent is unknown then, so nothing may follow."""
    in_turn = where == "the loop's turn"
    with scripted_writer(*[again()] * in_turn, interruption) as (writer, sock):
        operations: list[WriteOperation] = []
        if in_turn:
            operations += [writer.write(batch_of(b"abc")), writer.write(batch_of(b"follow"))]
        calls: dict[str, Callable[[], object]] = {
            "write": lambda: writer.write(batch_of(b"abc")),
            "write with flags": lambda: writer.write(batch_of(b"abc"), flags=MORE),
            "the loop's turn": writer._sender.resume,  # KeyboardInterrupt would end the loop
        }
        with pytest.raises(type(interruption)):
            calls[where]()
        assert all(operation.status is ABORTED for operation in operations)
        assert not is_watched(writer)
        assert sock.taken == b""
        with pytest.raises(OSError, match="closed") as raised:
            writer.write(batch_of(b"def"))
        assert raised.value.errno == errno.ECANCELED

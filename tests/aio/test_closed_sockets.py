"""A socket that its owner closes while a write waits for it."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch
from iobatch.aio import BatchWriter, WriteStatus
from iobatch.aio._watch import CHECK_INTERVAL, SocketWatch
from iobatch.filters import Chunked, Filter
from tests.support.aio import statuses
from tests.support.batches import batch_of, data
from tests.support.loops import both_loops, full_writer, is_watched, turns, writer_pair
from tests.support.pagecache import SMALL, slow_disk
from tests.support.programs import run_python
from tests.support.sockets import (
    PATIENCE,
    clog,
    fd_count,
    is_silent,
    stream_pair,
    without_standard_input,
)

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


@both_loops
@pytest.mark.parametrize("how", ["close", "os.close", "replaced", "detach"])
async def test_closing_the_socket_aborts_every_waiting_write(how: str) -> None:
    """The descriptor's number may already belong to another file ("replaced")."""
    with full_writer() as (writer, _):
        operations = [writer.write(batch_of(b"abc")) for _ in range(3)]
        fd = writer.sock.fileno()
        if how == "close":
            writer.sock.close()
        elif how == "os.close":
            os.close(fd)
        elif how == "detach":
            os.close(writer.sock.detach())
        else:
            with socket.socket() as other:
                os.dup2(other.fileno(), fd)
        async with asyncio.timeout(PATIENCE):
            for operation in operations:
                with pytest.raises(OSError, match="canceled") as raised:
                    await operation
                assert raised.value.errno == errno.ECANCELED
        assert statuses(operations) == [WriteStatus.ABORTED] * 3
        assert [operation.batch.bytesleft for operation in operations] == [3, 3, 3]
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"x"))
        if how == "os.close":
            writer.sock.detach()  # it still has the number of the descriptor


@both_loops
async def test_peer_sees_the_end_soon_after_the_socket_is_closed() -> None:
    """The watched duplicate would keep the connection open."""
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        writer.sock.close()
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([operation])
        await peer.clear()
        assert await asyncio.get_running_loop().sock_recv(peer.sock, 10) == b""


@both_loops
async def test_error_path_that_closes_the_socket_first_leaves_no_descriptor() -> None:
    """A handler's usual mistake: the socket's `with` is left before the writer is closed."""
    before = fd_count()
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        writer.sock.close()
        writer.close()
        assert operation.status is WriteStatus.ABORTED
    assert fd_count() == before


@both_loops
async def test_each_wait_watches_a_duplicate_and_closes_it() -> None:
    with full_writer() as (writer, peer):
        before = fd_count()
        operation = writer.write(batch_of(b"abc"))
        assert fd_count() == before + 1
        assert await peer.read(3) == b"abc"
        await operation
        assert fd_count() == before


def test_one_timer_checks_all_watched_sockets_of_a_loop() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        delays: list[float] = []
        call_later = loop.call_later

        def log(delay: float, *args: Any) -> asyncio.TimerHandle:
            delays.append(delay)
            return call_later(delay, *args)

        loop.call_later = log  # type: ignore[assignment,method-assign]
        with full_writer() as (first, _), full_writer() as (second, _):
            for writer in (first, second):
                writer.write(batch_of(b"x"))
                assert is_watched(writer)
        return delays

    assert asyncio.run(main()) == [CHECK_INTERVAL]


@both_loops
async def test_open_socket_goes_on_after_a_check() -> None:
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        writer._sender._watch.check()
        assert operation.status is WriteStatus.PENDING
        assert await peer.read(3) == b"abc"
        assert await operation == 3


def refuse_dup(patch: pytest.MonkeyPatch, *errnos: int) -> list[int]:
    """Make os.dup fail with these errnos, one after the other; return those still to come."""
    left = list(errnos)
    dup = os.dup

    def scripted(fd: int) -> int:
        if left:
            raise OSError(left.pop(0), "scripted")
        return dup(fd)

    patch.setattr(os, "dup", scripted)
    return left


@both_loops
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE], ids=errno.errorcode.get)
async def test_write_waits_even_if_no_descriptor_is_available_at_first(number: int) -> None:
    """Sending is tried again after a while, until a duplicate can be made."""
    with full_writer() as (writer, peer), pytest.MonkeyPatch.context() as patch:
        left = refuse_dup(patch, number)
        operation = writer.write(batch_of(b"abc"))
        assert operation.status is WriteStatus.PENDING
        async with asyncio.timeout(PATIENCE):
            assert await peer.read(3) == b"abc"
            assert await operation == 3
        assert not left


@both_loops
async def test_write_waits_after_one_that_was_cancelled_without_a_descriptor() -> None:
    with full_writer() as (writer, peer), pytest.MonkeyPatch.context() as patch:
        refuse_dup(patch, errno.EMFILE)
        assert writer.write(batch_of(b"abc")).cancel()
        operation = writer.write(batch_of(b"def"))
        assert await peer.read(3) == b"def"
        assert await operation == 3


@both_loops
async def test_another_error_of_dup_ends_the_write() -> None:
    with full_writer() as (writer, _), pytest.MonkeyPatch.context() as patch:
        refuse_dup(patch, errno.EIO)
        with pytest.raises(OSError, match="scripted"):
            await writer.write(batch_of(b"abc"))


@both_loops
async def test_closing_the_socket_aborts_a_write_for_which_no_descriptor_is_available() -> None:
    with full_writer() as (writer, _), pytest.MonkeyPatch.context() as patch:
        refuse_dup(patch, *[errno.EMFILE] * 3)
        operation = writer.write(batch_of(b"abc"))
        writer.sock.close()
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([operation])
        assert operation.status is WriteStatus.ABORTED
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"x"))


@both_loops
@pytest.mark.parametrize("broken_from", [None, 0], ids=["read", "error"])
async def test_closing_the_socket_aborts_a_write_while_a_thread_reads(
    broken_from: int | None, make_file: MakeFile
) -> None:
    fd = make_file(data(SMALL))
    with slow_disk() as disk, writer_pair() as (writer, _):
        disk.evict(fd)
        disk.ready.clear()
        batch = IOBatch()
        batch.addfile(fd)
        operations = [writer.write(batch), writer.write(batch_of(b"abc"))]
        await turns()
        writer.sock.close()
        disk.broken_from = broken_from
        disk.ready.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait(operations)
        assert statuses(operations) == [WriteStatus.ABORTED] * 2
        assert [operation.batch.bytesleft for operation in operations] == [SMALL, 3]


@both_loops
async def test_closing_the_socket_in_a_hook_aborts_the_rest_of_the_write() -> None:
    with writer_pair(buffers=4096, through=Filter(Chunked())) as (writer, _):
        batch = IOBatch()
        batch.addbuf(b"head", on_release=writer.sock.close)
        batch.addbuf(bytes(1_000_000))
        operation = writer.write(batch)
        assert operation.status is WriteStatus.ABORTED
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"x"))


@both_loops
async def test_closing_the_socket_aborts_a_write_that_goes_on_in_the_next_turn() -> None:
    with writer_pair(limit=1000) as (writer, _):
        operations = [writer.write(batch_of(bytes(5000))), writer.write(batch_of(b"abc"))]
        writer.sock.shutdown(socket.SHUT_RDWR)
        writer.sock.close()
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait(operations)
        assert statuses(operations) == [WriteStatus.ABORTED] * 2


@both_loops
async def test_closing_the_writer_stops_its_retries() -> None:
    with full_writer() as (writer, _), pytest.MonkeyPatch.context() as patch:
        refuse_dup(patch, errno.EMFILE)
        operation = writer.write(batch_of(b"abc"))
        retry: Any = writer._sender._watch._scheduled
        assert not retry.cancelled()
        writer.close()
        assert operation.status is WriteStatus.ABORTED
        assert retry.cancelled()


@pytest.mark.parametrize("standard_input", [True, False])
def test_writer_that_a_closed_loop_leaves_behind_frees_its_duplicate(
    *, standard_input: bool
) -> None:
    """The duplicate has the number 0 if there is no standard input."""
    with stream_pair(buffers=4096) as (ours, theirs), ExitStack() as stack:
        ours.setblocking(False)
        clog(ours)
        before = fd_count()

        async def leave() -> None:
            if not standard_input:
                stack.enter_context(without_standard_input())
            BatchWriter(ours).write(batch_of(b"abc"))
            assert fd_count() > before

        loop = asyncio.new_event_loop()
        running = fd_count()
        loop.run_until_complete(leave())
        loop.close()
        del loop
        gc.collect()
        assert fd_count() == before < running
        assert theirs.fileno() >= 0


CLOSES_ITS_SOCKET = """
import asyncio, socket, sys
from iobatch import IOBatch
from iobatch.aio import BatchWriter
if sys.argv[1] == "uvloop":
    from uvloop import run
else:
    from asyncio import run

async def main():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        try:
            with ours:
                writer = BatchWriter(ours)
                batch = IOBatch()
                batch.addbuf(bytes(10_000_000))
                operation = writer.write(batch)
                raise ValueError("the error path")
        except ValueError:
            pass
        await asyncio.wait([operation])
        print(operation.status.name, operation.bytes_transferred > 0)

run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_program_that_closes_its_socket_in_an_error_path_goes_on(loop: str) -> None:
    """Uvloop ends the process if a watched descriptor is closed."""
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is missing: install it (pip install uvloop)")
    result = run_python(CLOSES_ITS_SOCKET, loop)
    assert (result.stdout, result.stderr, result.returncode) == ("ABORTED True\n", "", 0)


@both_loops
@pytest.mark.parametrize("wakes", ["writable", "stall timer"])
async def test_no_byte_reaches_another_connection_that_got_the_descriptors_number(
    wakes: str,
) -> None:
    """The socket is writable, or its stall timer fires, before the check for closed sockets."""
    with full_writer() as (writer, peer), stream_pair() as (stranger, strangers_peer):
        operation = writer.write(batch_of(b"secret"))
        os.dup2(stranger.fileno(), writer.sock.fileno())
        if wakes == "writable":
            await peer.clear()
        else:
            writer._sender.try_now()
        with pytest.raises(OSError, match="canceled"):
            await operation
        assert operation.status is WriteStatus.ABORTED
        assert is_silent(strangers_peer)


@both_loops
async def test_exception_in_one_check_does_not_stop_the_others() -> None:
    loop = asyncio.get_running_loop()
    errors: list[Any] = []
    reported = asyncio.Event()

    def report(_loop: object, context: dict[str, Any]) -> None:
        errors.append(context["exception"])
        reported.set()

    loop.set_exception_handler(report)
    with full_writer() as (first, _), full_writer() as (second, _):
        operations = [writer.write(batch_of(b"abc")) for writer in (first, second)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SocketWatch, "check", raise_error)
            async with asyncio.timeout(PATIENCE):
                await reported.wait()
        for writer in (first, second):
            writer.sock.close()
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait(operations)
        assert statuses(operations) == [WriteStatus.ABORTED] * 2
    assert {type(error) for error in errors} == {ZeroDivisionError}


def raise_error(_watch: SocketWatch) -> bool:
    raise ZeroDivisionError

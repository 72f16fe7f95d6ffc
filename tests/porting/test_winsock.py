"""Coming from Winsock: one test for each row of the tables of parameters.

The modules that it imports have the tests for the other tables in iobatch-winsock(7).
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from concurrent.futures import ThreadPoolExecutor
from selectors import EVENT_WRITE, DefaultSelector
from typing import TYPE_CHECKING

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_send, iob_sendall
from iobatch.aio import BatchWriter, WriteOperation, WriteStatus
from tests.porting.test_winsock_buffers import PAGE as BUFFERS
from tests.porting.test_winsock_codes import PAGE as CODES
from tests.porting.test_winsock_completion import PAGE as COMPLETION
from tests.porting.test_winsock_receiving import PAGE as RECEIVING
from tests.support.batches import IOV_MAX, batch_of, data
from tests.support.fakes import again
from tests.support.loops import both_loops, full_writer, read, scripted_writer, turns, writer_pair
from tests.support.manpages import covered, subjects
from tests.support.sockets import PATIENCE, clog, receive, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = (
    "iobatch-winsock.7",
    "Parameters of WSASend",
    "Parameters of the completion routine",
    "WSASend without overlapped I/O",
)


def test_the_tests_here_and_the_rows_of_the_tables_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)
    modules = (PAGE, COMPLETION, BUFFERS, RECEIVING, CODES)
    assert subjects(PAGE[0]) == [each for page in modules for each in subjects(*page)]


# Parameters of WSASend


@both_loops
async def test_s_is_a_non_blocking_socket_object() -> None:
    with socket.socket() as sock:
        with pytest.raises(ValueError, match="must be non-blocking"):
            BatchWriter(sock)
        sock.setblocking(False)
        assert BatchWriter(sock).sock is sock
        with pytest.raises(TypeError, match="must be a socket object"):
            BatchWriter(sock.fileno())  # type: ignore[arg-type]


@both_loops
async def test_lpbuffers_are_added_by_addbufs_and_held() -> None:
    with full_writer() as (writer, peer):
        buffer = bytearray(b"abc")
        batch = IOBatch()
        batch.addbufs([buffer, b"def"])
        operation = writer.write(batch)
        buffer[:] = b"ABC"
        assert await peer.read(6) == b"ABCdef"
        assert await operation == 6


@both_loops
async def test_dwbuffercount_is_any_number() -> None:
    """Buffers that can change are never joined."""
    content = data(2 * IOV_MAX + 1)
    batch = IOBatch()
    batch.addbufs([bytearray([byte]) for byte in content])
    with writer_pair() as (writer, peer):
        assert await writer.write(batch) == len(content)
        assert await read(peer, len(content)) == content


@both_loops
async def test_wsabuf_len_is_the_length_of_a_slice_in_bytes() -> None:
    with writer_pair() as (writer, peer):
        batch = IOBatch()
        batch.addbuf(memoryview(b"abcdef")[:4])
        assert await writer.write(batch) == 4
        assert await read(peer, 4) == b"abcd"


@both_loops
async def test_lpnumberofbytessent_is_bytes_transferred_also_after_an_error() -> None:
    reset = ConnectionResetError(errno.ECONNRESET, "scripted")
    with scripted_writer(2, again(), reset) as (writer, _):
        operation = writer.write(batch_of(b"abcd"))
        assert (operation.done(), operation.bytes_transferred) == (False, 2)
        with pytest.raises(ConnectionResetError):
            await operation
        assert operation.bytes_transferred == 2


@both_loops
async def test_dwflags_go_with_each_send_of_this_operation_only() -> None:
    with scripted_writer(2, again()) as (writer, sock):
        writer.write(batch_of(b"abcd"), flags=socket.MSG_DONTROUTE)
        await writer.write(batch_of(b"ef"))
        routed = [not call.flags & socket.MSG_DONTROUTE for call in sock.calls]
        assert routed == [False, False, False, True]


@both_loops
async def test_msg_dontroute_has_the_same_name() -> None:
    with writer_pair("tcp4") as (writer, peer):
        assert await writer.write(batch_of(b"abc"), flags=socket.MSG_DONTROUTE) == 3
        assert await read(peer, 3) == b"abc"


@both_loops
async def test_msg_oob_makes_the_last_byte_urgent() -> None:
    with writer_pair("tcp4") as (writer, peer):
        assert await writer.write(batch_of(b"ab!"), flags=socket.MSG_OOB) == 3
        assert await read(peer, 2) == b"ab"
        assert peer.recv(1, socket.MSG_OOB) == b"!"


@both_loops
async def test_msg_partial_is_msg_more_where_the_socket_knows_it() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(type=socket.SOCK_DGRAM) as ours, socket.socket(type=socket.SOCK_DGRAM) as to:
        for sock in (ours, to):
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
        ours.connect(to.getsockname())
        writer = BatchWriter(ours)
        await writer.write(batch_of(b"one, "), flags=socket.MSG_MORE)
        await writer.write(batch_of(b"two"))
        assert await loop.sock_recv(to, 99) == b"one, two"
    local, peer = socket.socketpair(type=socket.SOCK_DGRAM)
    with local, peer:
        local.setblocking(False)
        with pytest.raises(OSError, match="ignores MSG_MORE") as caught:
            BatchWriter(local).write(batch_of(b"one"), flags=socket.MSG_MORE)
        assert caught.value.errno == errno.EOPNOTSUPP


@both_loops
async def test_lpoverlapped_is_an_operation_of_its_own_for_each_write() -> None:
    with full_writer() as (writer, _):
        operations = {writer.write(batch_of(b"abc")) for _ in range(3)}
        assert {type(each) for each in operations} == {WriteOperation}
        assert len(operations) == 3


@both_loops
async def test_hevent_is_await_by_any_number_of_tasks() -> None:
    with full_writer() as (writer, peer):
        operation = writer.write(batch_of(b"abc"))
        waiting = [asyncio.ensure_future(operation) for _ in range(3)]
        await peer.read(3)
        assert await asyncio.gather(*waiting) == [3, 3, 3]
        assert [await operation, await operation] == [3, 3]
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await operation
        assert operation.cancelled()


@both_loops
async def test_context_in_hevent_is_user_info() -> None:
    with writer_pair() as (writer, _):
        context = object()
        assert writer.write(batch_of(b"abc"), user_info=context).user_info is context


@both_loops
async def test_lpcompletionroutine_is_on_complete_or_a_done_callback_after_any_end() -> None:
    completed: list[WriteOperation] = []
    added: list[WriteOperation] = []
    reset = ConnectionResetError(errno.ECONNRESET, "scripted")
    with scripted_writer(3, reset, again(), again()) as (writer, _):
        for options in ({}, {}, {"timeout": 0}, {}):
            operation = writer.write(batch_of(b"abc"), on_complete=completed.append, **options)
            operation.add_done_callback(added.append)
        operation.cancel()
        await turns()
    ends = {WriteStatus.DONE, WriteStatus.ERROR, WriteStatus.TIMEOUT, WriteStatus.CANCELLED}
    assert {operation.status for operation in completed} == ends
    assert {*completed} == {*added}


@both_loops
async def test_routine_for_failures_is_on_error() -> None:
    called: list[tuple[str, WriteOperation]] = []

    def routine(name: str) -> Callable[[WriteOperation], None]:
        return lambda operation: called.append((name, operation))

    reset = ConnectionResetError(errno.ECONNRESET, "scripted")
    with scripted_writer(3, reset) as (writer, _):
        operations = [
            writer.write(batch_of(b"abc"), on_complete=routine("done"), on_error=routine("error"))
            for _ in range(2)
        ]
        await turns()
    assert called == [("done", operations[0]), ("error", operations[1])]


# Parameters of the completion routine


@both_loops
async def test_argument_dwerror_is_status_and_error() -> None:
    reset = ConnectionResetError(errno.ECONNRESET, "scripted")
    seen: list[WriteOperation] = []
    with scripted_writer(3, again(), again(), reset) as (writer, _):
        for _ in range(2):
            writer.write(batch_of(b"abc"), on_complete=seen.append)
        writer.write(batch_of(b"abc"), on_complete=seen.append).cancel()
        async with writer:  # until no operation is pending
            pass
        await turns()
    assert {operation.status: type(operation.error) for operation in seen} == {
        WriteStatus.DONE: type(None),
        WriteStatus.CANCELLED: type(None),
        WriteStatus.ERROR: ConnectionResetError,
    }


@both_loops
async def test_argument_cbtransferred_is_exact_after_an_error() -> None:
    sizes: list[int] = []
    reset = ConnectionResetError(errno.ECONNRESET, "scripted")
    with scripted_writer(2, reset) as (writer, _):
        writer.write(batch_of(b"abcd"), on_complete=lambda op: sizes.append(op.bytes_transferred))
        await turns()
    assert sizes == [2]


@both_loops
async def test_argument_lpoverlapped_is_the_argument_of_the_callback() -> None:
    seen: list[WriteOperation] = []
    with writer_pair() as (writer, _):
        operation = writer.write(batch_of(b"abc"), on_complete=seen.append)
        await turns()
    assert seen == [operation]


# WSASend without overlapped I/O


def test_blocking_socket_is_iob_sendall() -> None:
    content = data(200_000)
    with stream_pair(buffers=4096) as (ours, peer), ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive, peer, len(content))
        batch = batch_of(content)
        iob_sendall(ours, batch)
        assert (batch.bytesleft, received.result(PATIENCE)) == (0, content)
        peer.close()
        with pytest.raises(BrokenPipeError):
            iob_sendall(ours, batch_of(b"abc"))


def test_non_blocking_socket_is_iob_send_until_it_returns_0() -> None:
    with stream_pair(buffers=4096) as (ours, peer):
        ours.setblocking(False)
        batch = batch_of(bytes(1_000_000))
        assert 0 < iob_send(ours, batch) == 1_000_000 - batch.bytesleft
        small = batch_of(b"abc")
        assert receive(peer, batch.bytessent)
        assert [iob_send(ours, small), iob_send(ours, small)] == [3, IOB_DONE]


def test_its_wsaewouldblock_is_iob_again() -> None:
    with stream_pair(buffers=4096) as (ours, _):
        ours.setblocking(False)
        clog(ours)
        assert iob_send(ours, batch_of(b"abc")) == IOB_AGAIN


def test_its_wsagetlasterror_is_iob_error_and_batch_error() -> None:
    with stream_pair() as (ours, peer):
        peer.close()
        batch = batch_of(b"abc")
        assert iob_send(ours, batch) == IOB_ERROR
        assert (type(batch.error), batch.bytesleft) == (BrokenPipeError, 3)


def test_fd_write_wsaeventselect_is_a_selector_that_is_level_triggered() -> None:
    with stream_pair(buffers=4096) as (ours, peer), DefaultSelector() as selector:
        ours.setblocking(False)
        selector.register(ours, EVENT_WRITE)
        assert [len(selector.select(0)) for _ in range(2)] == [1, 1]
        batch = batch_of(bytes(1_000_000))
        while iob_send(ours, batch) > 0:
            pass
        assert selector.select(0) == []
        receive(peer, batch.bytessent)
        assert selector.select(0) != []


def test_wsapoll_select_is_a_default_selector() -> None:
    with DefaultSelector() as selector:
        assert hasattr(select, type(selector).__name__.removesuffix("Selector").lower())

"""Gather writes: many buffers in one system call."""

from __future__ import annotations

import array
import errno
import mmap
import sys
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_DONE, IOB_ERROR, IOBatch, iob_send
from tests.support.batches import IOV_MAX, check_invariants, data, mmap_of
from tests.support.drivers import pump
from tests.support.fakes import Scripted, again
from tests.support.send import send_repeatedly
from tests.support.sockets import receive, stream_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    Send = Callable[..., int]
    Pair = tuple[socket.socket, socket.socket]


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("count", [1, 2, IOV_MAX - 1, IOV_MAX, IOV_MAX + 1, 100_000])
def test_no_system_call_gets_more_than_iov_max_buffers(send: Send, count: int, kind: type) -> None:
    """All arrive in order, and each sendmsg gets as many as it can take."""
    content = data(3 * count)
    batch = IOBatch()
    for i in range(0, 3 * count, 3):
        batch.addbuf(kind(content[i : i + 3]))
    with Scripted() as sock:
        while send(sock, batch) > 0:
            pass
        assert sock.taken == content
        assert max(len(call.pieces) for call in sock.calls) <= IOV_MAX
        if all(call.name == "sendmsg" for call in sock.calls):
            assert len(sock.calls) == -(-count // IOV_MAX)
    check_invariants(batch)


def test_100_000_buffers_arrive_in_order(pair: Pair) -> None:
    one, other = pair
    one.setblocking(False)
    content = data(500_000)
    batch = IOBatch()
    for i in range(0, 500_000, 5):
        piece = content[i : i + 5]
        batch.addbuf(piece if i % 3 else bytearray(piece))
    assert pump(iob_send, one, other, batch) == content


def test_work_is_linear_in_the_number_of_buffers(send: Send) -> None:
    """Five times as many buffers cause fewer than seven times as many profile events."""
    counts = []
    for number in (10_000, 50_000):
        batch = IOBatch()
        for _ in range(number):
            batch.addbuf(bytearray(b"x"), on_release=int)
        events = 0

        def count(_frame: object, _event: str, _arg: object) -> None:
            nonlocal events
            events += 1

        with Scripted(*[again(), 700, 100] * 1000) as sock:
            sys.setprofile(count)
            try:
                while batch:
                    send(sock, batch)
            finally:
                sys.setprofile(None)
        counts.append(events)
    assert counts[1] < 7 * counts[0]


@pytest.mark.parametrize("size", [1, 6_000])
def test_partial_write_continues_at_the_next_byte(send: Send, size: int) -> None:
    """The first call accepts only some bytes: inside or up to the end of any buffer."""
    content = data(5 * size)
    kinds: list[Callable[[bytes], Any]] = [bytes, bytearray, memoryview, mmap_of, bytes]
    cuts = range(1, 5 * size + 1, max(1, size // 7))
    for cut in cuts:
        batch = IOBatch()
        for i, kind in enumerate(kinds):
            batch.addbuf(kind(content[i * size : (i + 1) * size]))
        with Scripted(cut, again()) as sock:
            first = send(sock, batch)
            assert 0 < first <= cut
            check_invariants(batch)
            assert batch.bytesleft == 5 * size - first
            for _ in range(20):
                if send(sock, batch) == IOB_DONE:
                    break
            assert sock.taken == content


def test_every_kind_of_buffer_arrives_whole(pair: Pair, step: Any) -> None:
    one, other = pair
    one.setblocking(False)
    numbers = array.array("I", range(70_000))
    pieces: list[Any] = [
        bytearray(data(100_000)),
        numbers,
        mmap_of(data(200_000)),
        memoryview(data(50_000))[17:40_000],
        memoryview(numbers)[5:6_000],
        b"end",
    ]
    batch = IOBatch()
    for piece in pieces:
        batch.addbuf(piece)
    assert pump(step, one, other, batch) == b"".join(bytes(memoryview(p)) for p in pieces)


@pytest.mark.parametrize(
    ("pieces", "calls"),
    [
        pytest.param([200] * 64, ["send"], id="small in total"),
        pytest.param([1000] * 64, ["send"], id="small on average"),
        pytest.param([4000] * 64, ["sendmsg"], id="large"),
        pytest.param([100_000], ["send"], id="single"),
    ],
)
def test_small_bytes_are_joined_into_one_send(pieces: list[int], calls: list[str]) -> None:
    """Joining small buffers costs less than the list of buffers of a sendmsg."""
    batch = IOBatch()
    wanted = b""
    for index, size in enumerate(pieces):
        piece = data(size, seed=index)
        wanted += piece
        batch.addbuf(piece)
    with Scripted() as sock:
        assert iob_send(sock, batch) == len(wanted)
        assert sock.taken == wanted
        assert [name for name, *_ in sock.calls] == calls


@pytest.mark.parametrize("count", [1, IOV_MAX - 1, IOV_MAX, IOV_MAX + 1])
def test_hook_runs_with_the_last_of_many_buffers(count: int) -> None:
    """With IOV_MAX buffers the hook is beyond the entries considered for one system call."""
    batch = IOBatch()
    for _ in range(count - 1):
        batch.addbuf(b"x" * 20)
    released = []
    batch.addbuf(b"last", on_release=lambda: released.append(batch.bytesleft))
    batch.addbuf(b"")
    with Scripted() as sock:
        assert iob_send(sock, batch) == 20 * (count - 1) + 4
        assert sock.taken == b"x" * 20 * (count - 1) + b"last"
    assert released == [0]
    check_invariants(batch)


@pytest.mark.parametrize("size", [100, 20_000])
def test_truncated_mmap_is_efault_and_not_sigbus(tmp_path: Path, size: int) -> None:
    """The kernel reads the pages. A join in this process would raise SIGBUS."""
    path = tmp_path / "file"
    path.write_bytes(data(size))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        batch = IOBatch()
        batch.addbuf(b"header")
        batch.addbuf(memory)
        batch.addbuf(b"trailer")
        file.truncate(0)
        with stream_pair("tcp4") as (one, other):
            results = send_repeatedly(one, batch)
            assert results[-1] == IOB_ERROR
            received = receive(other, batch.bytessent)
        assert b"header".startswith(received)
        assert isinstance(batch.error, OSError)
        assert batch.error.errno == errno.EFAULT
        batch.reset()

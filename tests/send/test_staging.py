"""Staging: file ranges that are read to be sent together with their neighbours."""

from __future__ import annotations

import errno
import signal
import socket
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import COPY_LIMIT, IOB_DONE, IOB_ERROR, IOBatch, iob_send
from tests.support.batches import STAGE_LIMIT, check_invariants, data
from tests.support.fakes import Call, Read, Scripted, again, log_preads, patch_os, script_sendfile
from tests.support.forms import pure
from tests.support.send import MORE, NOSIGNAL, failing_sendfile, send_repeatedly

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


@pytest.mark.parametrize("size", [1, 1024, COPY_LIMIT])
def test_small_ranges_and_buffers_share_one_system_call(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Each range takes one pread. The send has no MSG_MORE, as nothing follows it."""
    content = data(2 * size)
    fd = make_file(content)
    reads = log_preads(monkeypatch)
    batch = IOBatch()
    batch.addbuf(b"one: ")
    batch.addfile(fd, 0, size)
    batch.addbuf(b"two: ")
    batch.addfile(fd, size, size)
    batch.addbuf(b"end")
    with Scripted() as sock:
        assert send_repeatedly(sock, batch) == [2 * size + 13, 0]
        assert sock.taken == b"one: " + content[:size] + b"two: " + content[size:] + b"end"
        assert [call.flags for call in sock.calls] == [NOSIGNAL]
    assert reads == [Read(fd, 0, size), Read(fd, size, size)]


def test_range_after_a_hook_is_read_into_its_own_place(make_file: MakeFile) -> None:
    content = data(1000)
    batch = IOBatch()
    seen: list[int] = []
    batch.addbuf(b"header", on_release=lambda: seen.append(batch.bytessent))
    batch.addfile(make_file(content))
    with Scripted(3) as sock:
        send_repeatedly(sock, batch)
        assert sock.taken == b"header" + content
    assert seen == [1006]


def test_memory_error_of_a_joined_send_leaves_the_count_unknown(make_file: MakeFile) -> None:
    """The socket may have taken the bytes. The compiled form calls no method that can raise it."""
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(make_file(data(1000)))
    with Scripted(MemoryError()) as sock:
        with pytest.raises(MemoryError):
            pure(iob_send)(sock, batch)
        assert batch.error is not None
        assert iob_send(sock, batch) == IOB_ERROR
        assert len(sock.calls) == 1


def test_range_longer_than_copy_limit_goes_by_sendfile(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header before it is sent with MSG_MORE, as the range follows."""
    content = data(COPY_LIMIT + 1)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(make_file(content))
    batch.addbuf(b"trailer")
    with Scripted() as sock:
        script_sendfile(monkeypatch, sock)
        reads = log_preads(monkeypatch)
        send_repeatedly(sock, batch)
        assert [(call.name, call.flags) for call in sock.calls] == [
            ("send", NOSIGNAL | MORE),
            ("sendfile", 0),
            ("send", NOSIGNAL),
        ]
        assert sock.taken == b"header" + content + b"trailer"
    assert reads == []


def staged_per_call(log: list[Any]) -> list[int]:
    """Return the number of file bytes that were read before each send."""
    staged = [0]
    for event in log:
        if isinstance(event, Read):
            staged[-1] += event.size
        else:
            assert isinstance(event, Call)
            staged.append(0)
    return staged[:-1]


@pytest.mark.parametrize("reason", ["small", "flags", "refused", "SIGPIPE", "no sendfile"])
@pytest.mark.parametrize("script", ["all", "one byte"])
def test_at_most_128_kib_are_staged_and_no_byte_is_read_twice(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, reason: str, script: str
) -> None:
    """The bound holds for each system call, and for what a slow reader's batch keeps in memory."""
    size = COPY_LIMIT if reason == "small" else 300_000
    total = 40 * COPY_LIMIT if reason == "small" else 4 * size
    content = data(total)
    fd = make_file(content)
    flags, send = 0, iob_send
    if reason == "flags":
        flags = int(socket.MSG_DONTROUTE)
    elif reason == "refused":
        patch_os(monkeypatch, "sendfile", failing_sendfile(errno.EINVAL))
    elif reason == "no sendfile":
        send = pure(iob_send)
        monkeypatch.setattr("iobatch._send._sendfile", None)
    elif reason == "SIGPIPE":
        monkeypatch.setattr("iobatch._send.getsignal", lambda _number: signal.SIG_DFL)
    batch = IOBatch()
    for offset in range(0, total, size):
        batch.addfile(fd, offset, size)
    batch.addbuf(b"end")
    with Scripted(*([] if script == "all" else [1, again()] * 50)) as sock:
        log = log_preads(monkeypatch, sock.calls)  # reads and sends in one list, in order
        while batch:
            send(sock, batch, flags=flags)
            read = sum(event.size for event in log if isinstance(event, Read))
            assert read - batch.bytessent <= STAGE_LIMIT
        assert sock.taken == content + b"end"
    assert max(staged_per_call(log)) <= STAGE_LIMIT
    reads = sorted(event for event in log if isinstance(event, Read))
    assert sum(event.size for event in reads) == total
    for before, after in pairwise(reads):
        assert before.offset + before.size == after.offset


def test_ranges_between_buffers_are_each_read_once(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = data(1000)
    fd = make_file(content)
    reads = log_preads(monkeypatch)
    batch = IOBatch()
    wanted = b""
    for i in range(60):
        piece = data(7_000, seed=i)
        batch.addbuf(piece if i % 2 else bytearray(piece))
        batch.addfile(fd)
        wanted += piece + content
    with Scripted(*[50_000, again(), 3] * 20) as sock:
        while iob_send(sock, batch) != IOB_DONE:
            check_invariants(batch)
        assert sock.taken == wanted
    assert sum(read.size for read in reads) == 60 * len(content)

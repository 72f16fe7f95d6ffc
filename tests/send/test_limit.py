"""The limits of a call of iob_send and of a system call."""

from __future__ import annotations

import mmap
import socket
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import COPY_LIMIT, IOB_DONE, SEND_LIMIT, IOBatch, iob_send
from tests.support.batches import check_invariants, data
from tests.support.fakes import Scripted, patch_os, script_sendfile
from tests.support.forms import copy_limit
from tests.support.send import LARGE, MORE, send_repeatedly

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from tests.support.batches import MakeFile

    Send = Callable[..., int]


def test_default_limit_is_send_limit_and_none_is_no_cap(make_file: MakeFile) -> None:
    content = data(SEND_LIMIT + 12_345)
    fd = make_file(content)
    for add in (lambda b: b.addbuf(content), lambda b: b.addfile(fd)):
        batch = IOBatch()
        add(batch)
        with Scripted() as sock, pytest.MonkeyPatch.context() as patch:
            script_sendfile(patch, sock)
            assert send_repeatedly(sock, batch) == [SEND_LIMIT, 12_345, 0]
            add(batch)
            assert send_repeatedly(sock, batch, limit=None) == [SEND_LIMIT + 12_345, 0]
            assert sock.taken == content + content


@pytest.mark.parametrize("limit", [1, 2, 7, 100, 1000, 40_000, LARGE, LARGE + 200])
@pytest.mark.parametrize("flags", [0, int(socket.MSG_DONTROUTE)], ids=["no flags", "MSG_DONTROUTE"])
def test_no_call_exceeds_its_limit_or_ends_with_msg_more(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, limit: int, flags: int
) -> None:
    """With MSG_MORE the last bytes of a call would be held back until the next call."""
    # Little content if a system call sends few bytes.
    content, longest_copy = (data(3000), 500) if limit < 1000 else (data(LARGE), COPY_LIMIT)
    fd = make_file(content)
    batch = IOBatch()
    batch.addbuf(content[:100])
    batch.addfile(fd, 100, 900)
    batch.addbuf(bytearray(content[1000:2000]))
    batch.addfile(fd, 2000)
    batch.addbuf(b"trailer")
    with Scripted() as sock, copy_limit(longest_copy):
        script_sendfile(monkeypatch, sock)
        while (nbytes := iob_send(sock, batch, limit=limit, flags=flags)) > 0:
            assert nbytes <= limit
            last = sock.calls[-1]
            assert not last.flags & MORE
            check_invariants(batch)
        assert nbytes == IOB_DONE
        assert sock.taken == content + b"trailer"


def test_limit_of_1_sends_byte_by_byte(send: Send, make_file: MakeFile) -> None:
    batch = IOBatch()
    batch.addbuf(b"ab")
    batch.addfile(make_file(b"cde"))
    with Scripted() as sock:
        for wanted in (b"a", b"ab", b"abc", b"abcd", b"abcde"):
            assert send(sock, batch, limit=1) == 1
            assert sock.taken == wanted


MAX_RW_COUNT = 0x7FFFF000  # linux/fs.h, for pages of 4 KiB
MAP_NORESERVE = 0x4000  # mmap(2); Python 3.11 has no name for it


class Counting(socket.socket):
    """A socket that accepts everything and copies nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def send(self, buffer: Buffer, _flags: int = 0, /) -> int:
        self.sizes.append(memoryview(buffer).nbytes)
        return self.sizes[-1]

    def sendmsg(self, buffers: Any, *_args: Any) -> int:
        self.sizes.append(sum(memoryview(buffer).nbytes for buffer in buffers))
        return self.sizes[-1]


def test_no_system_call_gets_more_than_max_rw_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux transfers no more in one call, from memory or a file (write(2), sendfile(2))."""
    counts: list[int] = []
    patch_os(
        monkeypatch, "sendfile", lambda _out, _fd, _offset, count: counts.append(count) or count
    )
    total = 5 * 2**30
    memory = mmap.mmap(-1, 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with Counting() as sock:
        batch = IOBatch()
        batch.addfile(0, 0, total)
        while iob_send(sock, batch, limit=None) > 0:
            pass
        assert sum(counts) == total
        assert max(counts) <= MAX_RW_COUNT
        for _ in range(2**12):  # 4 GiB in total, 1 MiB each
            batch.addbuf(memory)
        while iob_send(sock, batch, limit=None) > 0:
            pass
        assert sum(sock.sizes) == 2**32
        assert max(sock.sizes) <= MAX_RW_COUNT
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    memory_large = mmap.mmap(-1, 2**31 + 5, flags=flags)
    with Counting() as sock:
        batch.addbuf(memory_large)
        batch.addbuf(memory_large)
        while iob_send(sock, batch, limit=None) > 0:
            pass
        assert sum(sock.sizes) == 2 * (2**31 + 5)
        assert max(sock.sizes) <= MAX_RW_COUNT
    memory_large.close()
    memory.close()

"""iob_send: the kernel path, on real sockets and scripted ones."""

from __future__ import annotations

import array
import errno
import fcntl
import mmap
import os
import select
import selectors
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tty
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import (
    COPY_LIMIT,
    IOB_AGAIN,
    IOB_DONE,
    IOB_ERROR,
    SEND_LIMIT,
    IOBatch,
    TruncatedFileError,
    iob_send,
    iob_sendmsg,
    iob_write,
)
from iobatch._batch import core_of
from tests.helpers import (
    IOV_MAX,
    PATIENCE,
    STAGE_LIMIT,
    Borrowed,
    Call,
    Read,
    Scripted,
    again,
    check_invariants,
    clog,
    data,
    is_silent,
    log_preads,
    patch_os,
    pump,
    receive,
    receive_all,
    run_python,
    script_sendfile,
    stream_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Buffer

    MakeFile = Callable[[bytes], int]
    Send = Callable[..., int]
    Pair = tuple[socket.socket, socket.socket]

pytestmark = pytest.mark.usefixtures("no_leaks")

NOSIGNAL = int(socket.MSG_NOSIGNAL)
MORE = int(socket.MSG_MORE)
LARGE = 5 * COPY_LIMIT
MAX_CALL = 0x7FFFF000
SIOCOUTQNSD = 0x894B


def unsent(sock: socket.socket) -> int:
    """Return how many bytes TCP holds back or has no window for."""
    return int(struct.unpack("i", fcntl.ioctl(sock, SIOCOUTQNSD, bytes(4)))[0])


def get_cork(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)


def set_cork(sock: socket.socket, value: int) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, value)


def send_all(sock: Any, batch: IOBatch, **options: Any) -> list[int]:
    """Call iob_send until it says something else than n > 0; return all it said."""
    said = []
    for _ in range(100_000):
        said.append(iob_send(sock, batch, **options))
        check_invariants(batch)
        if said[-1] <= 0:
            return said
    raise AssertionError("iob_send does not come to an end")


# What it returns


def test_empty_batch() -> None:
    """An empty batch is done, without a system call."""
    with Scripted() as sock:
        assert iob_send(sock, IOBatch()) == IOB_DONE
        assert sock.calls == []


def test_bytes_then_done() -> None:
    """The bytes are counted first; done comes with the next call, which makes no system call."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    with Scripted() as sock:
        assert iob_send(sock, batch) == 5
        assert (batch.bytesleft, batch.bytessent) == (0, 5)
        assert iob_send(sock, batch) == IOB_DONE
        assert len(sock.calls) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        BlockingIOError(errno.EAGAIN, "scripted"),
        OSError(errno.EWOULDBLOCK, "scripted"),
        TimeoutError("timed out"),
    ],
    ids=repr,
)
def test_again(refusal: OSError) -> None:
    """EAGAIN, EWOULDBLOCK and a socket's own timeout mean again, and nothing changes."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    with Scripted(refusal, refusal) as sock:
        assert iob_send(sock, batch) == IOB_AGAIN
        assert iob_send(sock, batch) == IOB_AGAIN
        assert (batch.bytesleft, batch.bytessent, batch.error) == (5, 0, None)
        assert batch.wants == selectors.EVENT_WRITE
        assert send_all(sock, batch) == [5, 0]
        assert sock.taken == b"hello"


@pytest.mark.parametrize(
    "number",
    [
        errno.EPIPE,
        errno.ECONNRESET,
        errno.ENOBUFS,
        errno.ENOTCONN,
        errno.EHOSTUNREACH,
        errno.ETIMEDOUT,
        errno.EIO,
        errno.EFAULT,
    ],
)
def test_any_other_errno_is_permanent(number: int) -> None:
    """Any other errno, ETIMEDOUT too, is permanent until reset(), without another system call."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    with Scripted(OSError(number, "scripted")) as sock:
        for _ in range(3):
            assert iob_send(sock, batch) == IOB_ERROR
            assert isinstance(batch.error, OSError)
            assert batch.error.errno == number
        assert len(sock.calls) == 1
        assert batch.bytesleft == 5
        batch.addbuf(b" still refused")
        assert iob_send(sock, batch) == IOB_ERROR
        batch.reset()
        assert batch.error is None
        assert iob_send(sock, batch) == IOB_DONE
        batch.addbuf(b"new")
        assert iob_send(sock, batch) == 3


def test_error_is_kept_without_traceback_and_context() -> None:
    """The stored error has no traceback and no context."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    try:
        raise KeyError  # its context
    except KeyError:
        with Scripted(OSError(errno.EIO, "scripted")) as sock:
            assert iob_send(sock, batch) == IOB_ERROR
    assert isinstance(batch.error, OSError)
    assert batch.error.__traceback__ is None
    assert batch.error.__context__ is None
    assert batch.error.__cause__ is None


@pytest.mark.parametrize(
    ("refusal", "code"), [(again(), IOB_AGAIN), (OSError(errno.EPIPE, "s"), IOB_ERROR)]
)
def test_bytes_first_code_next(refusal: OSError, code: int) -> None:
    """Bytes that went out before a refusal are returned; the code comes with the next call."""
    batch = IOBatch()
    for _ in range(IOV_MAX + 5):
        batch.addbuf(bytearray(b"x"))
    with Scripted(IOV_MAX, refusal, refusal) as sock:
        assert iob_send(sock, batch) == IOV_MAX
        assert len(sock.calls) == 2
        assert (batch.bytesleft, batch.bytessent) == (5, IOV_MAX)
        assert iob_send(sock, batch) == code
        assert len(sock.calls) == (3 if code == IOB_AGAIN else 2)


def test_never_done_while_bytes_remain() -> None:
    """Even a send that takes nothing and reports no error never looks like the end."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    with Scripted(0) as sock:
        assert iob_send(sock, batch) != IOB_DONE


def test_a_foreign_exception_passes_and_the_batch_goes_on(make_file: MakeFile) -> None:
    """What is no OSError propagates; nothing is lost, and the batch is not locked."""
    content = data(100)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(make_file(content))
    with Scripted(ZeroDivisionError()) as sock:
        with pytest.raises(ZeroDivisionError):
            iob_send(sock, batch)
        check_invariants(batch)
        assert send_all(sock, batch) == [106, 0]
        assert sock.taken == b"header" + content


# Arguments


@pytest.mark.parametrize(
    ("limit", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError), (1.5, TypeError)]
)
def test_bad_limit(limit: Any, error: type[Exception]) -> None:
    """A limit below 1 is a ValueError, and nothing is sent."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    with Scripted() as sock:
        with pytest.raises(error):
            iob_send(sock, batch, limit=limit)
        assert sock.calls == []
    assert batch.bytesleft == 5


@pytest.mark.parametrize("bad", ["name", None, 1.5, object()], ids=repr)
def test_no_socket(bad: Any) -> None:
    """What is neither a descriptor nor has one is a TypeError, also for an empty batch."""
    batch = IOBatch()
    with pytest.raises(TypeError):
        iob_send(bad, batch)
    batch.addbuf(b"hello")
    with pytest.raises(TypeError):
        iob_send(bad, batch)
    check_invariants(batch)


def test_flags_are_for_socket_objects(tmp_path: Path) -> None:
    """Flags on a descriptor, or on an object that is no socket, are a ValueError."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    with stream_pair() as (one, other), (tmp_path / "file").open("wb") as file:
        for sock in (one.fileno(), file):
            with pytest.raises(ValueError):
                iob_send(sock, batch, flags=socket.MSG_DONTWAIT)
        assert is_silent(other)
    assert (tmp_path / "file").stat().st_size == 0
    assert batch.bytesleft == 5


def test_ssl_socket_is_refused(make_file: MakeFile) -> None:
    """An SSLSocket is refused before a byte moves, also for an empty batch."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    batch = IOBatch()
    with stream_pair() as (one, other):
        with context.wrap_socket(one, do_handshake_on_connect=False) as secure:
            for size in (0, 100, LARGE):
                batch.addfile(make_file(data(size)))
                with pytest.raises(TypeError):
                    iob_send(secure, batch)
                with pytest.raises(TypeError):
                    iob_sendmsg(secure, batch)
                assert is_silent(other)
        assert batch.bytesleft == 100 + LARGE


def test_pyopenssl_connection_is_refused() -> None:
    """So is any other object with do_handshake, whose descriptor would carry plain text."""

    class Connection:
        """Looks like OpenSSL.SSL.Connection."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

        def do_handshake(self) -> None:
            raise AssertionError("nobody asked for it")

    batch = IOBatch()
    batch.addbuf(b"secret")
    with stream_pair() as (one, other):
        connection: Any = Connection(one)
        for refused in (iob_send, iob_sendmsg):
            with pytest.raises(TypeError):
                refused(connection, batch)
        assert is_silent(other)
    assert batch.bytesleft == 6


# Vectors


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("count", [1, 2, IOV_MAX - 1, IOV_MAX, IOV_MAX + 1, 100_000])
def test_many_buffers(send: Send, count: int, kind: type) -> None:
    """Any number of buffers goes out in order, at most IOV_MAX of them in a system call."""
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


def test_many_buffers_on_a_real_socket(pair: Pair) -> None:
    """100,000 buffers of many kinds arrive byte-identical."""
    one, other = pair
    one.setblocking(False)
    content = data(500_000)
    batch = IOBatch()
    for i in range(0, 500_000, 5):
        piece = content[i : i + 5]
        batch.addbuf(piece if i % 3 else bytearray(piece))
    assert pump(iob_send, one, other, batch) == content


def test_work_is_linear(send: Send) -> None:
    """Five times as many buffers take about five times as many steps of the interpreter."""
    counts = []
    for number in (10_000, 50_000):
        batch = IOBatch()
        for _ in range(number):
            batch.addbuf(bytearray(b"x"), on_release=int)
        calls = 0

        def count(_frame: object, _event: str, _arg: object) -> None:
            nonlocal calls
            calls += 1

        with Scripted(*[again(), 700, 100] * 1000) as sock:
            sys.setprofile(count)
            try:
                while batch:
                    send(sock, batch)
            finally:
                sys.setprofile(None)
        counts.append(calls)
    assert counts[1] < 7 * counts[0]


@pytest.mark.parametrize("size", [1, 6_000])
def test_partial_send_at_every_cut(send: Send, size: int) -> None:
    """A send that stops inside the first, the nth or the last buffer goes on at the next byte."""
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


def mmap_of(content: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(content))
    memory[:] = content
    return memory


def test_all_kinds_of_buffers_on_a_real_socket(pair: Pair, step: Any) -> None:
    """bytearray, array('I'), mmap and slices of memoryviews arrive whole."""
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


class Counting(socket.socket):
    """Takes everything and copies nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def send(self, buffer: Buffer, _flags: int = 0, /) -> int:
        self.sizes.append(memoryview(buffer).nbytes)
        return self.sizes[-1]

    def sendmsg(self, buffers: Any, *_args: Any) -> int:
        self.sizes.append(sum(memoryview(buffer).nbytes for buffer in buffers))
        return self.sizes[-1]


def test_no_system_call_gets_more_than_linux_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """No system call is given more than 0x7ffff000 bytes, of buffers or of a file."""
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
        assert max(counts) <= MAX_CALL
        for _ in range(2**12):  # 4 GiB, in one system call but for the limit: no
            batch.addbuf(memory)
        while iob_send(sock, batch, limit=None) > 0:
            pass
        assert sum(sock.sizes) == 2**32
    memory_large = mmap.mmap(-1, 2**31 + 5, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    with Counting() as sock:
        batch.addbuf(memory_large)
        batch.addbuf(memory_large)
        while iob_send(sock, batch, limit=None) > 0:
            pass
        assert sum(sock.sizes) == 2 * (2**31 + 5)
        assert max(sock.sizes) <= MAX_CALL
    memory_large.close()
    memory.close()


# The limit


def test_default_limit(make_file: MakeFile) -> None:
    """Without a limit given one call sends at most SEND_LIMIT bytes; None is no cap."""
    content = data(SEND_LIMIT + 12_345)
    fd = make_file(content)
    for add in (lambda b: b.addbuf(content), lambda b: b.addfile(fd)):
        batch = IOBatch()
        add(batch)
        with Scripted() as sock, pytest.MonkeyPatch.context() as patch:
            script_sendfile(patch, sock)
            assert send_all(sock, batch) == [SEND_LIMIT, 12_345, 0]
            add(batch)
            assert send_all(sock, batch, limit=None) == [SEND_LIMIT + 12_345, 0]
            assert sock.taken == content + content


@pytest.mark.parametrize("limit", [1, 2, 7, 100, 1000, 40_000, LARGE, LARGE + 200])
@pytest.mark.parametrize("flags", [0, int(socket.MSG_DONTROUTE)])
def test_limit(make_file: MakeFile, limit: int, flags: int) -> None:
    """No call sends more than its limit, of whatever it consists, and no MSG_MORE is left."""
    content = data(LARGE)
    fd = make_file(content)
    batch = IOBatch()
    batch.addbuf(content[:100])
    batch.addfile(fd, 100, 900)
    batch.addbuf(bytearray(content[1000:2000]))
    batch.addfile(fd, 2000)
    batch.addbuf(b"trailer")
    limit = max(limit, LARGE // 500)
    with Scripted() as sock, pytest.MonkeyPatch.context() as patch:
        script_sendfile(patch, sock)
        while (nbytes := iob_send(sock, batch, limit=limit, flags=flags)) > 0:
            assert nbytes <= limit
            last = sock.calls[-1]
            assert not last.flags & MORE
            check_invariants(batch)
        assert nbytes == IOB_DONE
        assert sock.taken == content + b"trailer"


def test_limit_of_one_byte(send: Send, make_file: MakeFile) -> None:
    """A limit of 1 sends byte by byte."""
    batch = IOBatch()
    batch.addbuf(b"ab")
    batch.addfile(make_file(b"cde"))
    with Scripted() as sock:
        for wanted in (b"a", b"ab", b"abc", b"abcd", b"abcde"):
            assert send(sock, batch, limit=1) == 1
            assert sock.taken == wanted


# Staging


@pytest.mark.parametrize("size", [1, 1024, COPY_LIMIT])
def test_small_files_and_headers_in_one_system_call(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Header, small file, header, small file: two preads, and one system call without MSG_MORE."""
    content = data(2 * size)
    fd = make_file(content)
    reads = log_preads(monkeypatch)
    batch = IOBatch()
    batch.addbuf(b"one: ")
    batch.addfile(fd, 0, size)
    batch.addbuf(b"two: ")
    batch.addfile(fd, size, size)
    with Scripted() as sock:
        assert send_all(sock, batch) == [2 * size + 10, 0]
        assert sock.taken == b"one: " + content[:size] + b"two: " + content[size:]
        assert [call.flags for call in sock.calls] == [NOSIGNAL]
    assert reads == [Read(fd, 0, size), Read(fd, size, size)]


def test_large_ranges_go_by_sendfile(make_file: MakeFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A range longer than COPY_LIMIT goes by sendfile; its header leaves with MSG_MORE."""
    content = data(COPY_LIMIT + 1)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(make_file(content))
    batch.addbuf(b"trailer")
    with Scripted() as sock:
        script_sendfile(monkeypatch, sock)
        reads = log_preads(monkeypatch)
        send_all(sock, batch)
        assert [(call.name, call.flags) for call in sock.calls] == [
            ("send", NOSIGNAL | MORE),
            ("sendfile", 0),
            ("send", NOSIGNAL),
        ]
        assert sock.taken == b"header" + content + b"trailer"
    assert reads == []


def staged_per_call(log: list[Any]) -> list[int]:
    """Return how many bytes of files were read for each system call that sent."""
    staged = [0]
    for event in log:
        if isinstance(event, Read):
            staged[-1] += event.size
        else:
            assert isinstance(event, Call)
            staged.append(0)
    return staged[:-1]


@pytest.mark.parametrize("how", ["small", "flags", "refused", "SIGPIPE", "no sendfile"])
@pytest.mark.parametrize("script", ["all", "one byte"])
def test_staging_is_bounded_and_nothing_is_read_twice(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, how: str, script: str
) -> None:
    """One call stages at most 128 KiB of files, a slow reader holds no more, none is read twice."""
    size = COPY_LIMIT if how == "small" else 300_000
    total = 40 * COPY_LIMIT if how == "small" else 4 * size
    content = data(total)
    fd = make_file(content)
    flags = 0
    if how == "flags":
        flags = int(socket.MSG_DONTROUTE)
    elif how == "refused":
        patch_os(monkeypatch, "sendfile", refuse(errno.EINVAL))
    elif how == "no sendfile":
        monkeypatch.setattr("iobatch._send._sendfile", None)
    elif how == "SIGPIPE":
        monkeypatch.setattr("iobatch._send.getsignal", lambda _number: signal.SIG_DFL)
    batch = IOBatch()
    for offset in range(0, total, size):
        batch.addfile(fd, offset, size)
    with Scripted(*([] if script == "all" else [1, again()] * 50)) as sock:
        log = log_preads(monkeypatch, sock.calls)  # both kinds of event in one list
        while batch:
            iob_send(sock, batch, flags=flags)
            read = sum(event.size for event in log if isinstance(event, Read))
            assert read - batch.bytessent <= STAGE_LIMIT
        assert sock.taken == content
    assert max(staged_per_call(log)) <= STAGE_LIMIT
    reads = sorted(event for event in log if isinstance(event, Read))
    assert sum(event.size for event in reads) == total
    for before, after in pairwise(reads):
        assert before.offset + before.size == after.offset


def test_buffers_in_front_of_files_count_too(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stands in front, all small files of a long batch arrive, each read once."""
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


# Flags


def test_no_signal_on_every_send(send: Send, make_file: MakeFile) -> None:
    """Every send and sendmsg has MSG_NOSIGNAL."""
    batch = IOBatch()
    fd = make_file(data(3 * IOV_MAX))
    for i in range(2 * IOV_MAX):
        batch.addbuf(bytearray(b"x"))
        if i % 100 == 0:
            batch.addfile(fd, i, 10)
    with Scripted() as sock:
        while send(sock, batch) > 0:
            pass
        assert all(call.flags & NOSIGNAL for call in sock.calls)
        assert all(call.flags & MORE for call in sock.calls[:-1])
        assert not sock.calls[-1].flags & MORE


@pytest.mark.parametrize("flags", [int(socket.MSG_DONTROUTE), socket.MSG_OOB, socket.MSG_MORE])
def test_flags_reach_every_send(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, flags: int
) -> None:
    """The caller's flags reach every send, and ranges then go by pread."""
    content = data(LARGE)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(make_file(content))
    batch.addbuf(bytearray(b"trailer"))
    patch_os(monkeypatch, "sendfile", refuse(errno.EIO))
    with Scripted(4, 1000) as sock:
        while iob_send(sock, batch, flags=flags) > 0:
            pass
        assert sock.taken == b"header" + content + b"trailer"
        assert all(call.flags & flags and call.flags & NOSIGNAL for call in sock.calls)
        assert {call.name for call in sock.calls} <= {"send", "sendmsg"}


def test_oob_data(tcp: Pair) -> None:
    """With MSG_OOB a byte arrives out of band."""
    one, other = tcp
    batch = IOBatch()
    batch.addbuf(b"!")
    assert iob_send(one, batch, flags=socket.MSG_OOB) == 1
    assert select.select([], [], [other], PATIENCE)[2]
    assert other.recv(1, socket.MSG_OOB) == b"!"


def test_more_of_the_caller_is_kept(tcp: Pair) -> None:
    """With MSG_MORE among its flags, the caller decides when the last frame leaves."""
    one, other = tcp
    batch = IOBatch()
    batch.addbuf(b"held back")
    assert send_all(one, batch, flags=socket.MSG_MORE) == [9, 0]
    assert unsent(one) == 9
    batch.addbuf(b", let go")
    assert send_all(one, batch) == [8, 0]
    assert unsent(one) == 0
    assert receive(other, 17) == b"held back, let go"


# Frames, which TCP_CORK and MSG_MORE make full


def refuse(number: int) -> Callable[..., int]:
    def sendfile(*_args: int) -> int:
        raise OSError(number, "scripted")

    return sendfile


def response(make_file: MakeFile, size: int = LARGE) -> tuple[IOBatch, bytes]:
    """Return a batch of header, file and trailer, and its bytes."""
    content = data(size)
    batch = IOBatch()
    batch.addbuf(b"h" * 200)
    batch.addfile(make_file(content))
    batch.addbuf(b"t" * 300)
    return batch, b"h" * 200 + content + b"t" * 300


@pytest.mark.parametrize("corked", [0, 1])
@pytest.mark.parametrize("size", [1000, LARGE])
def test_again_before_the_first_byte(
    tcp: Pair, make_file: MakeFile, corked: int, size: int
) -> None:
    """EAGAIN at once leaves no cork, and does not touch the caller's."""
    one, other = tcp
    filled = clog(one)
    set_cork(one, corked)
    batch, wanted = response(make_file, size)
    assert iob_send(one, batch) == IOB_AGAIN
    assert (batch.bytessent, get_cork(one)) == (0, corked)
    set_cork(one, 0)
    receive(other, filled)
    assert pump(iob_send, one, other, batch) == wanted
    assert get_cork(one) == 0


@pytest.mark.parametrize("trailer", [False, True])
@pytest.mark.parametrize(
    ("outcome", "code"), [("again", IOB_AGAIN), ("error", IOB_ERROR), ("truncated", IOB_ERROR)]
)
def test_nothing_is_held_back_after_a_refusal(
    tcp: Pair,
    make_file: MakeFile,
    monkeypatch: pytest.MonkeyPatch,
    outcome: str,
    code: int,
    *,
    trailer: bool,
) -> None:
    """A header sent with MSG_MORE leaves at once when the file behind it does not follow."""
    one, other = tcp
    batch, wanted = response(make_file)
    if not trailer:
        batch.reset()
        batch.addbuf(wanted[:200])
        batch.addfile(make_file(wanted[200:]))
    numbers = {"again": errno.EAGAIN, "error": errno.EIO}
    if outcome == "truncated":
        patch_os(monkeypatch, "sendfile", lambda *_args: 0)
    else:
        patch_os(monkeypatch, "sendfile", refuse(numbers[outcome]))
    assert iob_send(one, batch) == 200
    assert unsent(one) == 0
    assert get_cork(one) == 0
    assert receive(other, 200) == wanted[:200]
    assert iob_send(one, batch) == code
    assert get_cork(one) == 0


class Halting(socket.socket):
    """A socket that takes one sendmsg, and then no more."""

    calls = 0

    def sendmsg(self, *args: Any) -> int:
        self.calls += 1
        if self.calls > 1:
            raise again()
        return super().sendmsg(*args)

    def send(self, *_args: Any) -> int:
        raise again()


@pytest.mark.parametrize("flags", [0, socket.MSG_MORE])
def test_nothing_but_the_callers_is_held_back_between_two_sends(flags: int) -> None:
    """What left with MSG_MORE leaves when the next send is refused, unless the caller wants it."""
    with stream_pair("tcp4") as (plain, other), Halting(fileno=plain.detach()) as one:
        batch = IOBatch()
        for _ in range(IOV_MAX + 1):
            batch.addbuf(bytearray(b"x"))
        assert iob_send(one, batch, flags=flags) == IOV_MAX
        assert unsent(one) == (IOV_MAX if flags else 0)
        set_cork(one, 0)
        assert receive(other, IOV_MAX) == b"x" * IOV_MAX


def test_a_truncated_small_file_holds_nothing_back(tcp: Pair, make_file: MakeFile) -> None:
    """What stands in front of a small file that has ended leaves at once."""
    one, other = tcp
    batch, wanted = response(make_file, 1000)
    batch.reset()
    fd = make_file(wanted)
    batch.addbuf(b"header")
    batch.addfile(fd, 0, 1000)
    os.ftruncate(fd, 0)
    assert iob_send(one, batch) == 6
    assert (unsent(one), get_cork(one)) == (0, 0)
    assert receive(other, 6) == b"header"


class Watched(socket.socket):
    """A socket that keeps what options were set on it."""

    changes: list[Any]

    def setsockopt(self, *args: Any) -> None:
        self.changes.append(args)
        super().setsockopt(*args)


@pytest.mark.parametrize("header", [b"", b"header"])
@pytest.mark.parametrize("ranges", [1, 3])
@pytest.mark.parametrize("trailer", [b"", b"trailer"])
def test_cork_is_set_once_and_only_where_needed(
    make_file: MakeFile, header: bytes, ranges: int, trailer: bytes
) -> None:
    """One cork where bytes follow a large range, none where it is the last."""
    content = data(COPY_LIMIT + 1)
    wanted = header + content * ranges + trailer
    with (
        stream_pair("tcp4") as (plain, other),
        Watched(fileno=plain.detach()) as one,
        ThreadPoolExecutor(1) as pool,
    ):
        one.changes = []
        reader = pool.submit(receive, other, len(wanted))
        batch = IOBatch()
        batch.addbuf(header)
        for _ in range(ranges):
            batch.addfile(make_file(content))
        batch.addbuf(trailer)
        said = send_all(one, batch)
        assert reader.result(PATIENCE) == wanted
        assert get_cork(one) == 0
        if len(said) == 2:  # all in one call, as it should be on a blocking socket
            corked = bool(trailer) or ranges > 1
            values = [value for _level, _option, value in one.changes]
            assert values == ([1, 0] if corked else [])


def test_nothing_is_held_back_after_an_exception(
    tcp: Pair, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cork is removed in any case, as when the user presses Ctrl-C."""

    def interrupt(*_args: int) -> int:
        raise KeyboardInterrupt

    one, other = tcp
    batch, wanted = response(make_file)
    with monkeypatch.context() as patch:
        patch_os(patch, "sendfile", interrupt)
        with pytest.raises(KeyboardInterrupt):
            iob_send(one, batch)
    assert (get_cork(one), unsent(one), batch.bytessent) == (0, 0, 200)
    assert receive(other, 200) == wanted[:200]
    assert iob_send(one, batch) == IOB_ERROR  # it is unknown what sendfile has sent


def test_callers_cork_is_never_touched(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the caller has corked, its cork holds: while sending, after a refusal, at the end."""
    with stream_pair("tcp4") as (plain, other), Watched(fileno=plain.detach()) as one:
        one.changes = []
        set_cork(one, 1)
        one.changes.clear()
        batch, wanted = response(make_file)
        with monkeypatch.context() as patch:
            patch_os(patch, "sendfile", refuse(errno.EAGAIN))
            assert iob_send(one, batch) == 200
        assert (get_cork(one), unsent(one)) == (1, 200)
        one.setblocking(False)
        received = b""
        while (nbytes := iob_send(one, batch)) != IOB_DONE:
            if nbytes == IOB_AGAIN:
                received += receive(other, 1)
        assert (get_cork(one), one.changes) == (1, [])
        set_cork(one, 0)
        assert received + receive(other, len(wanted) - len(received)) == wanted


@pytest.mark.parametrize("size", [1000, LARGE])
def test_nothing_is_held_back_at_the_limit(tcp: Pair, make_file: MakeFile, size: int) -> None:
    """What one call sends up to its limit leaves at once, though more of the batch follows."""
    one, other = tcp
    one.setblocking(False)
    for limit in (100, 200, 201, 777, 1200, 1201):
        batch, wanted = response(make_file, size)
        received = b""
        for _ in range(3):
            nbytes = iob_send(one, batch, limit=limit)
            assert unsent(one) == 0
            received += receive(other, max(0, nbytes))
        assert received + pump(iob_send, one, other, batch) == wanted


def test_partial_response_is_on_its_way(make_file: MakeFile) -> None:
    """After -1 in the middle of a response the peer gets every byte sent so far, by itself."""
    with stream_pair("tcp4", buffers=20_000) as (one, other):
        one.setblocking(False)
        batch, wanted = response(make_file, 3_000_000)
        received = b""
        for _ in range(1_000_000):
            nbytes = iob_send(one, batch)
            assert get_cork(one) == 0
            if nbytes == IOB_AGAIN:
                received += receive(other, batch.bytessent - len(received))
            elif nbytes == IOB_DONE:
                break
        assert received + receive(other, len(wanted) - len(received)) == wanted


def test_socket_without_cork(make_file: MakeFile) -> None:
    """A large range between buffers needs no TCP."""
    with stream_pair("unix") as (one, other):
        one.setblocking(False)
        batch, wanted = response(make_file)
        assert pump(iob_send, one, other, batch) == wanted


def segments(sock: socket.socket) -> tuple[int, int]:
    """Return the data segments sent (tcpi_data_segs_out) and the size of a full one."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    return struct.unpack_from("I", info, 156)[0], struct.unpack_from("I", info, 16)[0]


RESPONSES = [
    (200, 100, 0),
    (200, 1024, 300),
    (200, COPY_LIMIT, 0),
    (200, COPY_LIMIT, 300),
    (200, LARGE, 0),
    (200, LARGE, 300),
    (0, LARGE, 300),
    (200, 1_000_000, 300),
]


def our_segments(path: Path, header: int, trailer: int) -> tuple[int, int]:
    """Send a response to a reader; return its data segments, and those that full frames need."""
    with (
        stream_pair("tcp4", maxseg=1460) as (one, other),
        ThreadPoolExecutor(1) as pool,
        IOBatch() as batch,
    ):
        reader = pool.submit(receive_all, other)
        batch.addbuf(b"h" * header)
        batch.addfile(path)
        batch.addbuf(b"t" * trailer)
        while iob_send(one, batch) > 0:
            pass
        one.shutdown(socket.SHUT_WR)
        assert reader.result(PATIENCE) == b"h" * header + path.read_bytes() + b"t" * trailer
        sent, full = segments(one)
        needed = -(-batch.bytessent // full)
        # A last range has no cork, and its pages may begin a segment of their own behind a header.
        return sent, needed + (header > 0 and batch.bytessent > COPY_LIMIT and not trailer)


# Where the system allows no large window, a reader that is late for a moment closes it inside a
# frame, whoever sends: so the best of some tries counts. What cuts frames itself cuts in each.
TRIES = 10


@pytest.mark.parametrize(("header", "file", "trailer"), RESPONSES)
def test_full_frames(tmp_path: Path, header: int, file: int, trailer: int) -> None:
    """A response leaves in full frames: no more data segments than its bytes need."""
    path = tmp_path / "file"
    path.write_bytes(data(file))
    for _ in range(TRIES):
        sent, needed = our_segments(path, header, trailer)
        if sent <= needed:
            break
    assert sent <= needed


@pytest.fixture(scope="module")
def owfat(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Compile the C driver of libowfat's iob_send."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: install gcc")
    program = tmp_path_factory.mktemp("owfat") / "owfat"
    source = Path(__file__).parent / "bench" / "senders.c"
    made = subprocess.run(
        [compiler, "-O2", "-o", program, source, "-DOWFAT", "-lowfat"],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        if "iob.h" in made.stderr or "lowfat" in made.stderr:
            pytest.skip("libowfat is missing: install libowfat-dev")
        raise AssertionError(made.stderr)
    return str(program)


def their_segments(owfat: str, path: Path, header: int, trailer: int) -> int:
    """Let libowfat send the same to a reader of the same kind; return its data segments."""
    with socket.socket() as listener, ThreadPoolExecutor(1) as pool:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        listener.settimeout(PATIENCE)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)

        def read() -> bytes:
            peer, _ = listener.accept()
            with peer:
                return receive_all(peer)

        reader = pool.submit(read)
        port = listener.getsockname()[1]
        job = f"{port} 1 1 {path} {header} 0 {path.stat().st_size} {trailer} 0 0\n"
        answer = subprocess.check_output([owfat], input=job, text=True, timeout=PATIENCE)
        assert reader.result(PATIENCE) == b"h" * header + path.read_bytes() + b"h" * trailer
        return int(answer.split()[1])


@pytest.mark.parametrize(("header", "file", "trailer"), RESPONSES)
def test_no_more_segments_than_libowfat(
    owfat: str, tmp_path: Path, header: int, file: int, trailer: int
) -> None:
    """The same batch makes no more data segments than libowfat's own iob_send does."""
    path = tmp_path / "file"
    path.write_bytes(data(file))
    for _ in range(TRIES):
        theirs = their_segments(owfat, path, header, trailer)
        ours, needed = our_segments(path, header, trailer)
        # Theirs too has the segment that `needed` allows for in most runs, but not in each.
        theirs = max(theirs, needed)
        if ours <= theirs:
            break
    assert ours <= theirs


# Files


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Give a sparse file of a bit over 4 GiB, with data around 2 GiB and 4 GiB."""
    path = tmp_path_factory.mktemp("sparse") / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, data(200_000, seed=2), 2**31 - 100_000)
    os.pwrite(fd, data(200_000, seed=4), 2**32 - 100_000)
    yield fd
    os.close(fd)
    path.unlink()


def test_sparse_file_over_4_gib(step: Any, pair: Pair, sparse: int) -> None:
    """Ranges past 2 GiB and 4 GiB, small and large, come from the right place."""
    one, other = pair
    one.setblocking(False)
    around_2, around_4 = data(200_000, seed=2), data(200_000, seed=4)
    batch = IOBatch()
    batch.addfile(sparse)
    assert batch.bytesleft == 2**32 + 100_000
    batch.reset()
    batch.addfile(sparse, 2**31 - 50, 100)
    batch.addfile(sparse, 2**32 - 50, 100)
    batch.addfile(sparse, 2**31 - 100_000, 200_000)
    batch.addfile(sparse, 2**32 - 100_000)
    batch.addfile(sparse, 2**32 + 99_990)
    assert pump(step, one, other, batch) == (
        around_2[99_950:100_050] + around_4[99_950:100_050] + around_2 + around_4 + around_4[-10:]
    )


@pytest.mark.parametrize("size", [1000, LARGE])
@pytest.mark.parametrize("end", [0, 1, 999])
def test_file_truncated_before_the_send(
    step: Any, pair: Pair, make_file: MakeFile, size: int, end: int
) -> None:
    """What is there arrives, then TruncatedFileError says where the file ended; never 0."""
    one, other = pair
    one.setblocking(False)
    content = data(size + 10)
    fd = make_file(content)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(fd, 10, size)
    batch.addbuf(b"trailer")
    os.ftruncate(fd, 10 + end)
    said = []
    received = b""
    while not said or said[-1] not in (IOB_DONE, IOB_ERROR):
        said.append(step(one, batch))
        check_invariants(batch)
        received += receive(other, max(0, said[-1]))
        assert len(said) < 100
    assert said[-1] == IOB_ERROR
    assert received == b"header" + content[10 : 10 + end]
    error = batch.error
    assert isinstance(error, TruncatedFileError)
    assert (error.fd, error.offset, error.missing) == (fd, 10 + end, size - end)
    assert batch.bytesleft == size - end + 7
    assert step(one, batch) == IOB_ERROR


@pytest.mark.parametrize("size", [20_000, LARGE])
@pytest.mark.parametrize("end", [0, 9_000, 19_000])
def test_file_truncated_during_the_send(
    send: Send, make_file: MakeFile, size: int, end: int
) -> None:
    """A file that shrinks under the send is an error, after what could be sent; no SIGBUS."""
    content = data(size)
    fd = make_file(content)
    batch = IOBatch()
    batch.addfile(fd)
    with stream_pair() as (one, other):
        one.setblocking(False)
        assert send(one, batch, limit=10_000) == 10_000
        received = receive(other, 10_000)  # first: what sendfile sends are the file's own pages
        os.ftruncate(fd, end)
        for _ in range(100):
            nbytes = send(one, batch)
            if nbytes == IOB_ERROR:
                break
            received += receive(other, nbytes)
        error = batch.error
        assert isinstance(error, TruncatedFileError)
        assert received == content[: len(received)]
        assert (error.offset, error.missing) == (len(received), size - len(received))
        # What was staged before goes out all the same, nothing else.
        assert len(received) <= max(10_000, end)


@pytest.mark.parametrize("size", [1000, LARGE])
def test_file_growing_during_the_send(send: Send, make_file: MakeFile, size: int) -> None:
    """What is appended after addfile is not sent."""
    content = data(size)
    fd = make_file(content)
    batch = IOBatch()
    batch.addfile(fd)
    batch.addbuf(b"end")
    with stream_pair() as (one, other):
        one.setblocking(False)
        os.pwrite(fd, b"growing", size)
        assert send(one, batch, limit=500) == 500
        os.pwrite(fd, b"and growing", size + 7)
        received = receive(other, 500) + pump(send, one, other, batch)
        assert received == content + b"end"
        assert is_silent(other)


def test_empty_file(step: Any, make_file: MakeFile) -> None:
    """An empty file between two buffers is nothing at all."""
    batch = IOBatch()
    batch.addbuf(b"be")
    batch.addfile(make_file(b""))
    batch.addbuf(b"fore")
    with stream_pair() as (one, other):
        assert pump(step, one, other, batch) == b"before"


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("target", ["tcp4", "socketpair", "file"])
def test_directory_with_a_count(tmp_path: Path, size: int, target: str) -> None:
    """A directory's descriptor, added with a count, is a permanent error when it is sent."""
    fd = os.open(tmp_path, os.O_RDONLY)
    batch = IOBatch()
    try:
        batch.addfile(fd, 0, size)
        if target == "file":
            with (tmp_path / "out").open("wb") as file:
                assert iob_send(file, batch) == IOB_ERROR
        else:
            with stream_pair(target) as (one, _other):
                assert iob_send(one, batch) == IOB_ERROR
        assert isinstance(batch.error, IsADirectoryError)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [10, LARGE])
def test_descriptor_closed_under_the_batch(step: Any, make_file: MakeFile, size: int) -> None:
    """A borrowed descriptor that was closed is EBADF; what stands in front of it was sent."""
    fd = os.dup(make_file(data(size)))
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(fd)
    os.close(fd)
    with stream_pair("tcp4") as (one, other):
        assert step(one, batch) == 6
        assert receive(other, 6) == b"header"
        assert step(one, batch) == IOB_ERROR
        assert isinstance(batch.error, OSError)
        assert batch.error.errno == errno.EBADF
        assert batch.bytesleft == size


def test_closed_socket(make_file: MakeFile) -> None:
    """A closed socket is EBADF, for buffers and for large ranges."""
    sock = socket.socket()
    sock.close()
    for add in (lambda b: b.addbuf(b"x"), lambda b: b.addfile(make_file(data(LARGE)))):
        batch = IOBatch()
        add(batch)
        assert iob_send(sock, batch) == IOB_ERROR
        assert isinstance(batch.error, OSError)
        assert batch.error.errno == errno.EBADF


@pytest.mark.parametrize("size", [10, LARGE])
def test_write_only_file(tmp_path: Path, size: int) -> None:
    """A file that can't be read is an error and no loop."""
    fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    try:
        os.ftruncate(fd, size)
        batch = IOBatch()
        batch.addfile(fd)
        with stream_pair() as (one, _other):
            assert iob_send(one, batch) == IOB_ERROR
        assert isinstance(batch.error, OSError)
        assert batch.error.errno == errno.EBADF
    finally:
        os.close(fd)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EOVERFLOW])
def test_sendfile_refused(
    tcp: Pair, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Where sendfile refuses a range, pread and send take over; it is not asked again for it."""
    asked: list[int] = []

    def sendfile(_out: int, _fd: int, offset: int, _count: int) -> int:
        asked.append(offset)
        raise OSError(number, "scripted")

    patch_os(monkeypatch, "sendfile", sendfile)
    one, other = tcp
    one.setblocking(False)
    content = data(2 * LARGE)
    fd = make_file(content)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(fd, 0, LARGE)
    batch.addfile(fd, LARGE, LARGE)
    assert pump(iob_send, one, other, batch) == b"header" + content
    assert asked == [0, LARGE]
    assert get_cork(one) == 0


def test_sendfile_refused_in_the_middle(
    tcp: Pair, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where sendfile took some bytes before it refused, pread goes on at the next one."""
    real, taken = os.sendfile, []

    def sendfile(out: int, fd: int, offset: int, count: int) -> int:
        if taken:
            raise OSError(errno.EINVAL, "scripted")
        taken.append(real(out, fd, offset, min(count, 1000)))
        return taken[0]

    patch_os(monkeypatch, "sendfile", sendfile)
    one, other = tcp
    one.setblocking(False)
    batch, wanted = response(make_file)
    assert pump(iob_send, one, other, batch) == wanted
    assert taken == [1000]


def test_sendfile_refused_keeps_the_file_object(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file object that only the batch has lives while its refused range is unsent."""
    patch_os(monkeypatch, "sendfile", refuse(errno.EINVAL))
    content = data(LARGE)
    file = Borrowed(make_file(content))
    alive = weakref.ref(file)
    batch = IOBatch()
    batch.addfile(file)
    del file
    with Scripted() as sock:
        iob_send(sock, batch, limit=1000)
        assert alive() is not None
        send_all(sock, batch)
        assert sock.taken == content
    assert alive() is None


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EPIPE])
def test_sendfile_failed(
    tcp: Pair, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Any other error of sendfile is permanent."""
    patch_os(monkeypatch, "sendfile", refuse(number))
    batch = IOBatch()
    batch.addfile(make_file(data(LARGE)))
    assert iob_send(tcp[0], batch) == IOB_ERROR
    assert isinstance(batch.error, OSError)
    assert batch.error.errno == number


def test_sendfile_refused_by_an_appending_file(tmp_path: Path, make_file: MakeFile) -> None:
    """Linux refuses sendfile into a file opened with O_APPEND: the range arrives all the same."""
    content = data(LARGE)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(make_file(content))
    batch.addbuf(b"trailer")
    path = tmp_path / "log"
    path.write_bytes(b"before ")
    with path.open("ab", buffering=0) as file:
        send_all(file, batch)
    assert path.read_bytes() == b"before header" + content + b"trailer"


# A peer that is gone


SIGPIPE_PROGRAM = """
import signal, socket, sys, tempfile
from iobatch import IOBatch, iob_send
kind, size, header, target = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
if kind == "socketpair":
    one, other = socket.socketpair()
else:
    listener = socket.create_server(("127.0.0.1", 0))
    one = socket.create_connection(listener.getsockname())
    other, _ = listener.accept()
with tempfile.TemporaryFile() as file, IOBatch() as batch:
    file.write(bytes(size))
    file.flush()
    other.close()
    for _ in range(1000):  # TCP takes bytes until the peer's reset comes
        batch.addbuf(header.encode())
        batch.addfile(file)
        while (n := iob_send(one if target == "socket" else one.fileno(), batch)) > 0:
            pass
        if n == -3:
            break
    print(type(batch.error).__name__)
"""


@pytest.mark.parametrize("size", [100, 10_000_000])
@pytest.mark.parametrize("header", ["", "header"])
@pytest.mark.parametrize("kind", ["socketpair", "tcp"])
def test_sigpipe_does_not_kill(kind: str, size: int, header: str) -> None:
    """With SIGPIPE at SIG_DFL a peer that is gone is an error, not the end of the process."""
    done = run_python(SIGPIPE_PROGRAM, kind, str(size), header, "socket")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("BrokenPipeError", "ConnectionResetError")


def test_a_descriptor_raises_sigpipe_as_write_does() -> None:
    """A descriptor is written to as write(2) does: SIGPIPE at SIG_DFL ends the process."""
    done = run_python(SIGPIPE_PROGRAM, "socketpair", "100", "", "descriptor")
    assert done.returncode == -signal.SIGPIPE


@pytest.mark.parametrize("size", [100, LARGE])
def test_broken_pipe(step: Any, make_file: MakeFile, size: int) -> None:
    """With SIGPIPE ignored, as Python has it, a peer that is gone is BrokenPipeError."""
    batch = IOBatch()
    batch.addfile(make_file(data(size)))
    with stream_pair() as (one, other):
        other.close()
        assert step(one, batch) == IOB_ERROR
    assert isinstance(batch.error, BrokenPipeError)
    assert batch.bytesleft == size


@pytest.mark.parametrize("size", [100, LARGE])
def test_connection_reset(step: Any, make_file: MakeFile, size: int) -> None:
    """A connection that the peer has reset is ConnectionResetError."""
    batch = IOBatch()
    batch.addfile(make_file(data(size)))
    with stream_pair("tcp4") as (one, other):
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        other.close()
        poll = select.poll()
        poll.register(one, 0)  # errors are always reported
        assert poll.poll(PATIENCE * 1000)
        assert step(one, batch) == IOB_ERROR
    assert isinstance(batch.error, ConnectionResetError)
    assert batch.bytesleft == size


def test_no_sendfile_where_sigpipe_would_kill(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where SIGPIPE is at SIG_DFL large ranges go by pread and send, to a socket only."""
    monkeypatch.setattr("iobatch._send.getsignal", lambda _number: signal.SIG_DFL)
    content = data(LARGE)
    fd = make_file(content)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(fd)
    with Scripted() as sock:
        counts = script_sendfile(monkeypatch, sock)
        send_all(sock, batch)
        assert (counts, sock.taken) == ([], b"header" + content)
        batch.addfile(fd)
        send_all(sock.fileno(), batch)
        assert counts == [LARGE]


# Kinds of sockets and descriptors


def test_every_stream_socket(step: Any, pair: Pair, make_file: MakeFile) -> None:
    """A mixed batch arrives byte-identical on every kind of stream socket."""
    one, other = pair
    one.setblocking(False)
    content = data(1_000_000)
    fd = make_file(content)
    batch = IOBatch()
    wanted = b""
    for i in range(20):
        head = data(100 + i, seed=i)
        batch.addbuf(head)
        batch.addfile(fd, i * 1000, i * 5000)
        batch.addbuf(bytearray(head))
        wanted += head + content[i * 1000 : i * 6000] + head
    assert pump(step, one, other, batch) == wanted


def test_slow_reader(step: Any, make_file: MakeFile) -> None:
    """With the smallest buffers, and so partial sends all the time, every byte arrives."""
    with stream_pair(buffers=1) as (one, other):
        one.setblocking(False)
        batch, wanted = response(make_file, 400_000)
        for _ in range(300):
            batch.addbuf(b"small")
        assert pump(step, one, other, batch) == wanted + b"small" * 300


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_blocking_socket(pair: Pair, make_file: MakeFile, timeout: float | None) -> None:
    """A blocking send waits for a slow reader: buffers that fit nowhere go out in one call."""
    one, other = pair
    one.settimeout(timeout)
    content = data(SEND_LIMIT, seed=1)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(receive_all, other)
        batch = IOBatch()
        batch.addbuf(content)
        first = iob_send(one, batch)
        if timeout is None:
            assert first == SEND_LIMIT
        batch.addfile(make_file(content))
        poll = select.poll()
        poll.register(one, select.POLLOUT)
        while nbytes := iob_send(one, batch):
            if nbytes == IOB_AGAIN:  # sendfile does not wait for a socket with a timeout
                assert timeout is not None
                assert poll.poll(PATIENCE * 1000)
            else:
                assert nbytes > 0
        one.shutdown(socket.SHUT_WR)
        assert reader.result(PATIENCE) == content + content


@pytest.mark.parametrize("size", [COPY_LIMIT, LARGE])
def test_interrupted_system_call(make_file: MakeFile, size: int) -> None:
    """A signal in the middle of a blocking send does not surface: its handler runs, it goes on."""
    content = data(size)
    with stream_pair() as (one, other), ThreadPoolExecutor(1) as pool:
        filled = clog(one)
        one.setblocking(True)
        readers = []

        def handler(_number: int, _frame: object) -> None:
            # Only now somebody reads: so the send was waiting when the signal came.
            readers.append(pool.submit(receive, other, filled + size))

        before = signal.signal(signal.SIGALRM, handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            batch = IOBatch()
            batch.addfile(make_file(content))
            said = send_all(one, batch)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert said[-1] == IOB_DONE
        assert sum(said) == size
        (reader,) = readers
        assert reader.result(PATIENCE)[filled:] == content


@pytest.mark.parametrize("size", [10, LARGE])
def test_timeout_is_again(make_file: MakeFile, size: int) -> None:
    """A socket's own timeout means again, for a send and for sendfile."""
    with stream_pair() as (one, other):
        filled = clog(one)
        one.settimeout(0.01)
        content = data(size)
        batch = IOBatch()
        batch.addfile(make_file(content))
        assert iob_send(one, batch) == IOB_AGAIN
        assert (batch.error, batch.bytessent) == (None, 0)
        receive(other, filled)
        assert pump(iob_send, one, other, batch) == content


def test_nonblocking_socket_takes_what_fits() -> None:
    """A full socket is -1; one with room takes what fits, then -1."""
    with stream_pair() as (one, other):
        one.setblocking(False)
        batch = IOBatch()
        content = data(2_000_000)
        batch.addbuf(content)
        first = iob_send(one, batch)
        assert 0 < first < 2_000_000
        while (nbytes := iob_send(one, batch)) > 0:
            pass
        assert nbytes == IOB_AGAIN
        assert batch.wants == selectors.EVENT_WRITE
        sent = batch.bytessent
        assert receive(other, sent) + pump(iob_send, one, other, batch) == content


DESCRIPTOR_STEPS = ["send", "send without sendfile", "send without sendmsg"]


@pytest.mark.parametrize("kind", ["pipe", "pty"])
def test_pipe_and_terminal(send: Send, make_file: MakeFile, kind: str) -> None:
    """A pipe and a terminal get buffers, small and large ranges."""
    source, target = os.pipe() if kind == "pipe" else os.openpty()
    try:
        if kind == "pty":
            tty.setraw(target)
        os.set_blocking(target, False)
        batch, wanted = response(make_file)
        batch.addbuf(bytearray(b"more"))
        assert pump(send, target, source, batch) == wanted + b"more"
    finally:
        os.close(source)
        os.close(target)


@pytest.mark.parametrize("by", ["descriptor", "object"])
def test_regular_file(send: Send, tmp_path: Path, make_file: MakeFile, by: str) -> None:
    """A regular file, by its number or by an object with fileno(), gets the whole batch."""
    batch, wanted = response(make_file)
    path = tmp_path / "copy"
    with path.open("wb", buffering=0) as file:
        while (nbytes := send(file.fileno() if by == "descriptor" else file, batch)) > 0:
            pass
    assert nbytes == IOB_DONE
    assert path.read_bytes() == wanted


def test_full_device(send: Send) -> None:
    """A device that is full is a permanent error."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        assert send(fd, batch) == IOB_ERROR
    finally:
        os.close(fd)
    assert isinstance(batch.error, OSError)
    assert batch.error.errno == errno.ENOSPC


def test_pipe_without_reader() -> None:
    """A pipe that nobody reads any more is BrokenPipeError, where SIGPIPE is ignored."""
    source, target = os.pipe()
    os.close(source)
    batch = IOBatch()
    batch.addbuf(b"hello")
    try:
        assert iob_send(target, batch) == IOB_ERROR
    finally:
        os.close(target)
    assert isinstance(batch.error, BrokenPipeError)


def test_subclass_of_socket_is_a_socket(make_file: MakeFile) -> None:
    """A subclass of socket.socket is sent to by its own methods, with flags."""

    class Own(socket.socket):
        pass

    batch, wanted = response(make_file, 1000)
    with stream_pair() as (plain, other), Own(fileno=plain.detach()) as one:
        assert iob_send(one, batch, flags=socket.MSG_DONTWAIT) == 1500
        assert receive(other, 1500) == wanted


@pytest.mark.parametrize("size", [100, 20_000])
def test_truncated_mmap_is_an_error(tmp_path: Path, size: int) -> None:
    """An mmap whose file was truncated is EFAULT from the kernel, and no SIGBUS."""
    path = tmp_path / "file"
    path.write_bytes(data(size))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        batch = IOBatch()
        batch.addbuf(b"header")
        batch.addbuf(memory)
        batch.addbuf(b"trailer")
        file.truncate(0)
        with stream_pair("tcp4") as (one, other):
            said = send_all(one, batch)
            assert said[-1] == IOB_ERROR
            received = receive(other, batch.bytessent)
        assert b"header".startswith(received)
        assert isinstance(batch.error, OSError)
        assert batch.error.errno == errno.EFAULT
        batch.reset()


def test_again_wants_to_write_after_tls_wanted_to_read() -> None:
    """An again of iob_send is for writing, whatever an earlier callback wanted."""

    def callback(_sock: None, _view: memoryview) -> int:
        raise ssl.SSLWantReadError

    batch = IOBatch()
    batch.addbuf(b"hello")
    assert iob_write(None, batch, callback) == IOB_AGAIN
    assert batch.wants == selectors.EVENT_READ
    with Scripted(again()) as sock:
        assert iob_send(sock, batch) == IOB_AGAIN
    assert batch.wants == selectors.EVENT_WRITE


def test_write_then_send() -> None:
    """On a plain socket iob_send may follow iob_write: it drops the pin."""
    batch = IOBatch()
    batch.addbuf(b"0123456789")
    assert iob_write(None, batch, lambda _sock, _view: None, limit=4) == IOB_AGAIN
    with stream_pair() as (one, other):
        assert iob_send(one, batch, limit=2) == 2
        batch.prepend(b"+")
        assert iob_send(one, batch) == 9
        assert receive(other, 11) == b"01+23456789"


@pytest.mark.parametrize("send", [iob_send, iob_sendmsg])
def test_nothing_gets_in_front_of_what_is_being_sent(
    send: Callable[[socket.socket, IOBatch], int],
) -> None:
    """Prepending while a system call has the head, as a signal handler could, is refused."""

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


def test_what_is_added_while_the_head_is_read_goes_out_too(make_file: MakeFile) -> None:
    """A finalizer, or a signal handler, may add entries in the middle of a call."""

    class Dying:
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
        batch.addfile(Dying(fd), offset, 10)
    with Scripted() as sock:
        while iob_send(sock, batch) > 0:
            check_invariants(batch)
        assert sock.taken == content + b"!!!"


def test_what_is_added_while_bytes_are_joined_goes_out_too(make_file: MakeFile) -> None:
    """A finalizer may add what is no bytes, and can't be joined, at the last moment."""
    content = data(30)
    fd = make_file(content)
    batch = IOBatch()

    class Collected(deque[Any]):
        """The moment before its content is read."""

        collected = False

        def __iter__(self) -> Iterator[Any]:
            if not self.collected:
                self.collected = True
                batch.addfile(fd, 0, 30)
            return super().__iter__()

    core_of(batch).queue = Collected()
    batch.addbuf(b"one")
    batch.addbuf(b"two")
    with Scripted() as sock:
        assert iob_send(sock, batch) == 36
        assert sock.taken == b"onetwo" + content
    assert iob_send(sock, batch) == IOB_DONE
    check_invariants(batch)


def test_what_is_added_when_all_is_sent_goes_out_next(make_file: MakeFile) -> None:
    """So does what a signal's handler adds at the very end of a call, which can't be joined."""
    content = data(30)
    fd = make_file(content)
    batch = IOBatch()

    class Handled(deque[Any]):
        """The moment behind its clear()."""

        def clear(self) -> None:
            super().clear()
            if not sock.calls[1:]:
                batch.addfile(fd, 0, 30)

    core_of(batch).queue = Handled()
    batch.addbuf(b"one")
    with Scripted() as sock:
        assert iob_send(sock, batch) == 3
        check_invariants(batch)
        assert iob_send(sock, batch) == 30
        assert sock.taken == b"one" + content


def test_what_a_finalizer_moves_here_goes_out_too(make_file: MakeFile) -> None:
    """A finalizer may extend the very batch whose last entry it belonged to."""
    content = data(30)
    other = IOBatch()
    other.addfile(make_file(content), 0, 30)

    class Dying(bytearray):
        def __del__(self) -> None:
            batch.extend(other)

    batch = IOBatch()
    batch.addbuf(Dying(b"one"))
    with Scripted() as sock:
        while iob_send(sock, batch) > 0:
            check_invariants(batch)
        assert sock.taken == b"one" + content
    assert other.bytesleft == 0


@pytest.mark.parametrize("count", [1, IOV_MAX - 1, IOV_MAX, IOV_MAX + 1])
def test_a_hook_behind_many_buffers(count: int) -> None:
    """What belongs to the last of as many buffers as a call takes is released with them."""
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


def test_what_is_added_before_the_first_look_goes_out_too() -> None:
    """More entries than a call takes may become one more before the first of them is looked at."""
    batch = IOBatch()
    for _ in range(IOV_MAX + 1):
        batch.addbuf(b"x" * 20)

    def handled(queue: Any, count: int) -> Iterator[Any]:
        entries = islice(queue, count)
        if batch.bytesleft == 20 * (IOV_MAX + 1):
            batch.addbuf(b"behind")
        return entries

    with pytest.MonkeyPatch.context() as patch, Scripted() as sock:
        patch.setattr("iobatch._core.islice", handled)
        assert iob_send(sock, batch) == 20 * (IOV_MAX + 1) + 6
        assert sock.taken.endswith(b"xbehind")


def test_nothing_is_held_back_behind_a_joined_send() -> None:
    """What went out with MSG_MORE is let go, though the joined rest was not taken."""
    batch = IOBatch()
    for _ in range(IOV_MAX + 400):
        batch.addbuf(b"x" * 20)

    class Corkable(Scripted):
        released = 0

        def getsockopt(self, *_: Any) -> Any:
            return 0

        def setsockopt(self, *_: Any) -> None:
            self.released += 1

    with Corkable(20 * IOV_MAX, again()) as sock:
        assert iob_send(sock, batch) == 20 * IOV_MAX
        assert [bool(call.flags & socket.MSG_MORE) for call in sock.calls] == [True, False]
        assert sock.released == 1


@pytest.mark.parametrize(
    ("pieces", "calls"),
    [
        pytest.param([200] * 64, ["send"], id="small in all"),
        pytest.param([1000] * 64, ["send"], id="small in the mean"),
        pytest.param([4000] * 64, ["sendmsg"], id="neither"),
        pytest.param([100_000], ["send"], id="one"),
    ],
)
def test_small_bytes_are_joined(pieces: list[int], calls: list[str]) -> None:
    """Joining costs less than a list of pieces, up to where it does not."""
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


def test_a_datagram_socket_keeps_nothing_either(make_file: MakeFile) -> None:
    """What MSG_MORE held back on a UDP socket is let go when nothing follows."""
    empty = make_file(b"")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
    ):
        other.bind(("127.0.0.1", 0))
        other.settimeout(PATIENCE)
        one.connect(other.getsockname())
        batch = IOBatch()
        batch.addbuf(b"header")
        batch.addfile(empty, 0, LARGE)
        assert iob_send(one, batch) == 6
        assert other.recv(100) == b"header"
        batch.reset()

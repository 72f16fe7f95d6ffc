"""Files that are not in the page cache: a loop's thread never reads them, nobody else waits."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import COPY_LIMIT, IOBatch, TruncatedFileError, iob_send
from iobatch._pagecache import PROBE_STRIDE, READ_AHEAD
from iobatch.aio import BatchWriter, CancellationType, WriteOperation, WriteStatus, send_to_stream
from iobatch.filters import Filter
from tests.helpers import (
    PATIENCE,
    again,
    check_invariants,
    data,
    is_silent,
    log_preads,
    patch_os,
    receive_all,
    stream_pair,
)
from tests.loops import (
    batch_of,
    both_loops,
    full_writer,
    is_watched,
    read,
    scripted_writer,
    turns,
    writer_pair,
)
from tests.test_aio_stream import stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    MakeFile = Callable[[bytes], int]

pytestmark = pytest.mark.usefixtures("no_leaks")

PAGE = 4096
SMALL = 3 * PAGE  # it is joined with what is around it
MEDIUM = 6 * PAGE  # it is read, but not so
LARGE = 3 * READ_AHEAD + 5
MESSAGE = 20 * PAGE


class Disk:
    """Stands between the library and the files, and says what of them is not in the page cache.

    A thread that reads such a page has to wait until the disk is `ready`; then it is in the cache.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.here = threading.get_ident()
        self.cold: set[tuple[int, int]] = set()  # each an inode and the number of a page
        self.forgets = False  # the cache keeps nothing
        self.ready = threading.Event()
        self.ready.set()
        self.probes = 0
        self.stalls: list[tuple[int, int]] = []  # what the loop's thread waited for
        self.fetched: list[tuple[int, int]] = []  # what other threads have read: inode, bytes
        self.broken: int | None = None  # from here on no file can be read
        self.real = {name: getattr(os, name) for name in ("preadv", "pread", "sendfile")}
        for name in self.real:
            patch_os(patch, name, getattr(self, name))

    def drop(self, fd: int, first: int = 0, last: int | None = None) -> None:
        """Drop pages of a file from the cache."""
        status = os.fstat(fd)
        if last is None:
            last = status.st_size // PAGE
        self.cold |= {(status.st_ino, page) for page in range(first, last + 1)}

    def missing(self, fd: int, offset: int, count: int) -> set[tuple[int, int]]:
        inode = os.fstat(fd).st_ino
        pages = range(offset // PAGE, (offset + count - 1) // PAGE + 1)
        return self.cold & {(inode, page) for page in pages}

    def preadv(self, fd: int, buffers: Any, offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        self.probes += 1
        if self.missing(fd, offset, sum(map(len, buffers))):
            raise BlockingIOError(errno.EAGAIN, "not in the cache")
        return self.real["preadv"](fd, buffers, offset)

    def wait(self, fd: int, offset: int, count: int) -> int:
        """Wait until it is in the cache; return how much of it can be read."""
        if self.broken is not None:
            count = min(count, self.broken - offset)
            if count <= 0:
                raise OSError(errno.EIO, "the disk is broken")
        missing = self.missing(fd, offset, count)
        if threading.get_ident() == self.here:
            self.stalls += missing
        else:
            assert self.ready.wait(PATIENCE)
        if not self.forgets:
            self.cold -= missing
        return count

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        count = self.wait(fd, offset, count)
        piece: bytes = self.real["pread"](fd, count, offset)
        if threading.get_ident() != self.here:
            self.fetched.append((os.fstat(fd).st_ino, len(piece)))
        return piece

    def sendfile(self, out: int, fd: int, offset: int, count: int) -> int:
        count = self.wait(fd, offset, count)
        sent: int = self.real["sendfile"](out, fd, offset, count)
        return sent


@contextmanager
def slow_disk() -> Iterator[Disk]:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        try:
            yield disk
        finally:
            disk.ready.set()


def mixed(fd: int, content: bytes) -> tuple[IOBatch, bytes]:
    """Return a batch with ranges of all sizes, and what should arrive of it."""
    batch = batch_of(b"header")
    expected = [b"header"]
    for offset, count in (0, 1), (PAGE - 1, SMALL), (7, len(content) - 7), (5, COPY_LIMIT + 1):
        batch.addfile(fd, offset, count)
        batch.addbuf(b"between")
        expected += [content[offset : offset + count], b"between"]
    return batch, b"".join(expected)


# What is cold is read by a thread


@both_loops
@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize("buffers", [None, 4096])
async def test_the_loop_never_reads_what_is_cold(
    buffers: int | None,
    forgets: bool,  # noqa: FBT001
    make_file: MakeFile,
) -> None:
    """Whatever is cold is read by a thread, and arrives, even if the cache keeps nothing."""
    content = data(LARGE)
    fd = make_file(content)
    with slow_disk() as disk, writer_pair(buffers=buffers) as (writer, peer):
        batch, expected = mixed(fd, content)
        disk.drop(fd)
        disk.forgets = forgets
        operation = writer.write(batch)
        behind = writer.write(batch_of(b"behind"))
        assert not operation.done()
        assert await read(peer, len(expected) + 6) == expected + b"behind"
        assert (await operation, await behind) == (len(expected), 6)
        if not forgets:
            assert not disk.stalls
        assert sum(count for _, count in disk.fetched) >= LARGE


@both_loops
async def test_what_is_warm_takes_no_thread(make_file: MakeFile) -> None:
    """Warm files are sent inside the call, after one probe if small, and a few if large."""
    content = data(LARGE)
    fd = make_file(content)
    with slow_disk() as disk, scripted_writer() as (writer, sock):

        def sendfile(_out: int, fd: int, offset: int, count: int) -> int:
            return sock._take("sendfile", (disk.real["pread"](fd, count, offset),), 0)

        disk.real["sendfile"] = sendfile
        for size, probes in (
            (1, 1),
            (SMALL, 1),
            (PROBE_STRIDE, 2),
            (PROBE_STRIDE + 1, 3),
            (4 * PROBE_STRIDE, 5),
        ):
            disk.probes = 0
            batch = batch_of(b"header")
            batch.addfile(fd, 0, size)
            assert writer.write(batch).done()
            assert disk.probes == probes
            assert sock.taken == b"header" + content[:size]
            sock.taken.clear()
        assert not disk.fetched


@both_loops
async def test_a_large_limit(make_file: MakeFile) -> None:
    """However much may be sent in a turn, a file is not probed for more than a call sends."""
    fd = make_file(b"")
    os.truncate(fd, 1 << 40)
    with slow_disk() as disk, writer_pair(limit=1 << 50) as (writer, _):
        batch = IOBatch()
        batch.addfile(fd)
        operation = writer.write(batch, timeout=PATIENCE)
        assert not operation.done()
        assert disk.probes < 100


@both_loops
@pytest.mark.parametrize("lacking", ["the system", "the file system"])
async def test_where_nothing_is_known_of_the_cache(lacking: str, make_file: MakeFile) -> None:
    """Where nobody can tell what is cached, files are read at once, as by iob_send."""
    fd = make_file(data(SMALL))

    def preadv(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "as on tmpfs")

    with pytest.MonkeyPatch.context() as patch, writer_pair() as (writer, _):
        if lacking == "the system":
            patch.setattr("iobatch._pagecache._preadv", None)
            patch.setattr("iobatch._pagecache._NOWAIT", 0)
        else:
            patch.setattr("iobatch._pagecache._preadv", preadv)
        reads = log_preads(patch)
        batch = IOBatch()
        batch.addfile(fd)
        assert writer.write(batch).done()
        assert writer.write(batch_of(b"header"), timeout=PATIENCE).done()
        batch.addfile(fd)
        assert writer.write(batch, timeout=PATIENCE).done()
        assert len(reads) == 2


@both_loops
@pytest.mark.parametrize("lacking", ["descriptor", "thread"])
@pytest.mark.parametrize("over", ["writer", "stream"])
async def test_where_there_is_no_thread_to_be_had(
    over: str, lacking: str, make_file: MakeFile
) -> None:
    """Without a thread, or a descriptor for it, files are read here: better late than never."""
    fd = make_file(data(LARGE))

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "full")

    if lacking == "thread":
        await asyncio.get_running_loop().shutdown_default_executor()
    async with stream() as (sending, there):
        with (
            slow_disk() as disk,
            writer_pair() as (writer, here),
            pytest.MonkeyPatch.context() as p,
        ):
            if lacking == "descriptor":
                p.setattr("os.dup", refuse)
            disk.drop(fd)
            batch = batch_of(b"header")
            batch.addfile(fd)
            arriving = asyncio.create_task(read(here if over == "writer" else there, 6 + LARGE))
            if over == "writer":
                assert await writer.write(batch) == 6 + LARGE
            else:
                assert await send_to_stream(sending, batch) == 6 + LARGE
            assert await arriving == b"header" + data(LARGE)
            assert len(disk.stalls) == LARGE // PAGE + 1


@both_loops
@pytest.mark.parametrize("over", ["writer", "stream"])
async def test_where_the_threads_are_dismissed(over: str, make_file: MakeFile) -> None:
    """What waited for a thread is read here when the executor is shut down."""
    fd = make_file(data(LARGE))
    busy = threading.Event()
    loop = asyncio.get_running_loop()
    with slow_disk() as disk, writer_pair() as (writer, here), ThreadPoolExecutor(1) as pool:
        loop.set_default_executor(pool)
        pool.submit(busy.wait, PATIENCE)
        async with stream() as (sending, there):
            disk.drop(fd)
            batch = IOBatch()
            batch.addfile(fd)
            arriving = asyncio.create_task(read(here if over == "writer" else there, LARGE))
            if over == "writer":
                posted: Any = writer.write(batch)
            else:
                posted = asyncio.create_task(send_to_stream(sending, batch))
            await turns()
            pool.shutdown(wait=False, cancel_futures=True)
            busy.set()
            assert await posted == LARGE
            assert await arriving == data(LARGE)
            assert not disk.fetched


@both_loops
async def test_a_file_object_is_let_go(make_file: MakeFile) -> None:
    """A file object that a thread has read for is released with the last byte."""

    class File:
        def __init__(self, fd: int) -> None:
            self.fd = fd

        def fileno(self) -> int:
            return self.fd

    with slow_disk() as disk, writer_pair() as (writer, peer):
        file = File(make_file(data(SMALL)))
        gone = weakref.ref(file)
        disk.drop(file.fileno())
        batch = IOBatch()
        batch.addfile(file, 0, SMALL)
        del file
        assert await writer.write(batch) == SMALL
        assert await read(peer, SMALL) == data(SMALL)
        assert gone() is None


@both_loops
@pytest.mark.parametrize("over", ["writer", "stream"])
async def test_a_file_that_says_again(over: str, make_file: MakeFile) -> None:
    """A file that is not ready to be read, other than for the disk, is what it was before."""
    fd = make_file(data(MEDIUM))
    script = [again()]
    pread = os.pread

    def unready(fd: int, count: int, offset: int) -> bytes:
        if script:
            raise script.pop()
        return pread(fd, count, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch_os(patch, "pread", unready)
        batch = IOBatch()
        batch.addfile(fd)
        if over == "writer":
            with writer_pair() as (writer, peer):
                assert await writer.write(batch) == MEDIUM
                assert await read(peer, MEDIUM) == data(MEDIUM)
        else:
            async with stream() as (sending, _):
                with pytest.raises(BlockingIOError):
                    await send_to_stream(sending, batch)


@both_loops
async def test_a_real_file(make_file: MakeFile) -> None:
    """A file that the kernel has just dropped from its cache, or may have, arrives as it was."""
    content = data(LARGE)
    fd = make_file(content)
    with writer_pair("tcp4") as (writer, peer):
        batch, expected = mixed(fd, content)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        operation = writer.write(batch)
        assert await read(peer, len(expected)) == expected
        assert await operation == len(expected)


@both_loops
@pytest.mark.parametrize("how", ["callback", "filter"])
async def test_through_a_callback(how: str, make_file: MakeFile) -> None:
    """What goes through a callback or a filter is read by a thread, too."""
    content = data(LARGE)
    fd = make_file(content)
    through: Any = socket.socket.send if how == "callback" else Filter(zlib.compressobj())
    with slow_disk() as disk, writer_pair(buffers=4096, through=through) as (writer, peer):
        batch, expected = mixed(fd, content)
        disk.drop(fd)
        peer.setblocking(True)
        arriving = asyncio.create_task(asyncio.to_thread(receive_all, peer))
        assert await writer.write(batch) == len(expected)
        await writer.finish()
        writer.sock.shutdown(socket.SHUT_WR)
        arrived = await arriving
        assert (arrived if how == "callback" else zlib.decompress(arrived)) == expected
        assert disk.fetched
        assert not disk.stalls


@both_loops
@pytest.mark.parametrize("forgets", [False, True])
async def test_a_message(forgets: bool, make_file: MakeFile) -> None:  # noqa: FBT001
    """A message waits until all of its files are there, and is sent whole."""
    one, other = make_file(data(MESSAGE)), make_file(data(MESSAGE, 1))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, slow_disk() as disk:
        ours.setblocking(False)
        async with BatchWriter(ours) as writer:
            batch = batch_of(b"header")
            batch.addfile(one)
            batch.addbuf(b"between")
            batch.addfile(other)
            disk.drop(one)
            disk.drop(other)
            disk.forgets = forgets
            operation = writer.write(batch)
            assert (operation.done(), operation.bytes_transferred) == (False, 0)
            assert await operation == 13 + 2 * MESSAGE
            expected = b"header" + data(MESSAGE) + b"between" + data(MESSAGE, 1)
            assert theirs.recv(1 << 20) == expected
            assert disk.stalls == [] or forgets
            assert len({inode for inode, _ in disk.fetched}) == 2


@both_loops
@pytest.mark.parametrize("forgets", [False, True])
async def test_over_a_stream(forgets: bool, make_file: MakeFile) -> None:  # noqa: FBT001
    """send_to_stream has a thread read, too, whether the file goes by sendfile or not."""
    content = data(LARGE)
    fd = make_file(content)
    with slow_disk() as disk:
        async with stream(buffers=4096) as (writer, peer):
            batch, expected = mixed(fd, content)
            disk.drop(fd)
            disk.forgets = forgets
            arriving = asyncio.create_task(read(peer, len(expected)))
            assert await send_to_stream(writer, batch) == len(expected)
            assert await arriving == expected
            check_invariants(batch)
            assert disk.stalls == [] or forgets
            assert sum(count for _, count in disk.fetched) >= LARGE


@both_loops
async def test_everything_else_goes_on(make_file: MakeFile) -> None:
    """While a thread reads, what is in front has gone, what is behind waits, others don't."""
    fd = make_file(data(SMALL))
    with slow_disk() as disk, writer_pair() as (writer, peer), writer_pair() as (other, _):
        disk.drop(fd)
        disk.ready.clear()
        batch = batch_of(b"header")
        batch.addfile(fd)
        operation = writer.write(batch)
        behind = writer.write(batch_of(b"behind"))
        assert await read(peer, 6) == b"header"
        await turns()
        assert (operation.bytes_transferred, behind.bytes_transferred) == (6, 0)
        assert writer.pending == SMALL + 6
        assert other.write(batch_of(b"abc")).done()
        assert not is_watched(writer)  # it could be written to: the loop would spin
        disk.ready.set()
        assert await read(peer, SMALL + 6) == data(SMALL) + b"behind"
        assert await behind == 6


@both_loops
async def test_what_is_behind_a_full_socket(make_file: MakeFile) -> None:
    """A cold file keeps nothing back of what is in front of it, when there is room again."""
    fd = make_file(data(SMALL))
    with slow_disk() as disk, full_writer() as (writer, peer):
        disk.drop(fd)
        disk.ready.clear()
        batch = batch_of(b"header")
        batch.addfile(fd)
        operation = writer.write(batch)
        await turns()
        assert await peer.read(6) == b"header"
        disk.ready.set()
        assert await read(peer.sock, SMALL) == data(SMALL)
        assert await operation == SMALL + 6


@both_loops
async def test_the_cache_lets_go_of_it(make_file: MakeFile) -> None:
    """What was in the cache once may not be there the next time."""
    fd = make_file(data(SMALL))
    with slow_disk() as disk, writer_pair() as (writer, peer):
        for options in {}, {"timeout": PATIENCE}, {"timeout": PATIENCE}:
            disk.drop(fd)
            batch = IOBatch()
            batch.addfile(fd)
            assert await writer.write(batch, **options) == SMALL
            assert await read(peer, SMALL) == data(SMALL)
        assert len(disk.fetched) == 3
        assert not disk.stalls


@both_loops
async def test_only_what_is_soon_sent_is_read(make_file: MakeFile) -> None:
    """Of a large file a thread reads a piece at a time, as the peer takes it."""
    content = data(LARGE)
    fd = make_file(content)
    with slow_disk() as disk, writer_pair(buffers=4096) as (writer, peer):
        batch = IOBatch()
        batch.addfile(fd)
        disk.drop(fd)
        operation = writer.write(batch)
        start = await read(peer, 1000)
        await turns(50)
        assert sum(count for _, count in disk.fetched) == READ_AHEAD
        assert start + await read(peer, LARGE - 1000) == content
        assert await operation == LARGE
        assert sum(count for _, count in disk.fetched) == LARGE
        assert not disk.stalls


@both_loops
@pytest.mark.parametrize("over", ["writer", "stream"])
async def test_partly_cold(over: str, make_file: MakeFile) -> None:
    """A range of which only the start, the end or the midst is cold does not go unseen.

    But a hole of less than PROBE_STRIDE may, and is waited for.
    """
    content = data(LARGE)
    last = LARGE // PAGE
    for first, end in (0, 0), (last, last), (100, 100 + PROBE_STRIDE // PAGE), (9, 20):
        fd = make_file(content)
        batch = IOBatch()
        batch.addfile(fd)
        with slow_disk() as disk:
            disk.drop(fd, first, end)
            if over == "writer":
                with writer_pair(buffers=4096) as (writer, peer):
                    operation = writer.write(batch)
                    assert await read(peer, LARGE) == content
                    assert await operation == LARGE
            else:
                async with stream(buffers=4096) as (sending, peer):
                    arriving = asyncio.create_task(read(peer, LARGE))
                    assert await send_to_stream(sending, batch) == LARGE
                    assert await arriving == content
            if end != 20:
                assert not disk.stalls


@both_loops
@pytest.mark.parametrize("size", [SMALL, MEDIUM])
@pytest.mark.parametrize("what", [b"from a handler", b""])
async def test_a_signal_between_two_entries(what: bytes, size: int, make_file: MakeFile) -> None:
    """What a signal's handler adds while a batch is looked at is sent with it."""
    fd = make_file(data(size))
    with slow_disk() as disk, writer_pair() as (writer, peer):
        batch = batch_of(b"header")
        batch.addfile(fd)
        batch.addbuf(b"behind")
        handled = []

        def preadv(*args: Any) -> int:
            if not handled:
                handled.append(batch.addbuf(what))
            return Disk.preadv(disk, *args)

        disk.patch.setattr("iobatch._pagecache._preadv", preadv)
        expected = b"header" + data(size) + b"behind" + what
        assert await writer.write(batch) == len(expected)
        assert await read(peer, len(expected)) == expected


@both_loops
async def test_a_signal_while_it_is_sent(make_file: MakeFile) -> None:
    """What it adds while all else is sent is there for the next write."""
    fd = make_file(data(SMALL))
    batch = batch_of(b"header")
    batch.addfile(fd)
    with scripted_writer() as (writer, sock):
        send = sock.send

        def handled(*args: Any) -> int:
            if not sock.calls:
                batch.addbuf(b"from a handler")
            return send(*args)

        sock.send = handled  # type: ignore[method-assign]
        assert await writer.write(batch) == 6 + SMALL
        assert (batch.bytesleft, batch.bytessent) == (14, 0)
        await writer.write(batch)
        assert sock.taken == b"header" + data(SMALL) + b"from a handler"


# How it ends meanwhile


def cancel(operation: WriteOperation, _writer: BatchWriter) -> None:
    assert operation.cancel()


def cancel_terminal(operation: WriteOperation, _writer: BatchWriter) -> None:
    assert operation.cancel(CancellationType.TERMINAL)


def close(_operation: WriteOperation, writer: BatchWriter) -> None:
    writer.close()


def expire(operation: WriteOperation, writer: BatchWriter) -> None:
    writer._sender.try_now()  # a stall_timeout that is over looks first
    writer._sender.expire(operation._posted)


@both_loops
@pytest.mark.parametrize("front", [b"", b"header"])
@pytest.mark.parametrize("end", [cancel, cancel_terminal, close, expire])
async def test_an_end_while_a_thread_reads(
    end: Callable[[WriteOperation, BatchWriter], None], front: bytes, make_file: MakeFile
) -> None:
    """It ends at once, with exact counts and an untouched batch; the thread changes nothing."""
    fd = make_file(data(SMALL))
    with slow_disk() as disk, writer_pair() as (writer, peer):
        disk.drop(fd)
        disk.ready.clear()
        batch = batch_of(front)
        batch.addfile(fd)
        operation = writer.write(batch)
        behind = writer.write(batch_of(b"behind"))
        await turns()
        end(operation, writer)
        assert operation.status in {
            WriteStatus.CANCELLED,
            WriteStatus.ABORTED,
            WriteStatus.TIMEOUT,
        }
        assert (operation.bytes_transferred, operation.batch.bytesleft) == (len(front), SMALL)
        check_invariants(operation.batch)
        follows = not front and end in {cancel, expire}
        expected = front + (b"behind" if follows else b"")
        assert await read(peer, len(expected)) == expected
        await turns()
        assert behind.status is (WriteStatus.DONE if follows else WriteStatus.ABORTED)
        disk.ready.set()
        await asyncio.get_running_loop().shutdown_default_executor()
        await turns()
        assert (operation.bytes_transferred, operation.batch.bytesleft) == (len(front), SMALL)
        assert is_silent(peer)
        assert len(disk.fetched) == 1
        if end in {close, cancel_terminal}:
            with pytest.raises(OSError, match="closed"):
                writer.write(batch_of(b"more"))
        # What is left belongs to the caller, and is sent as ever, by waiting if need be.
        disk.drop(fd)
        assert iob_send(writer.sock, operation.batch) == SMALL


@both_loops
async def test_a_file_that_is_closed_meanwhile(make_file: MakeFile, tmp_path: Any) -> None:
    """The thread reads from the file that it was to read, whatever becomes of the descriptor."""
    with slow_disk() as disk, writer_pair() as (writer, _):
        fd = os.dup(make_file(data(SMALL)))
        inode = os.fstat(fd).st_ino
        disk.drop(fd)
        disk.ready.clear()
        batch = IOBatch()
        batch.addfile_close(fd)
        operation = writer.write(batch)
        await turns()
        operation.cancel()
        operation.batch.reset()
        with (tmp_path / "another").open("wb") as another:
            assert another.fileno() == fd
            disk.ready.set()
            await asyncio.get_running_loop().shutdown_default_executor()
        assert disk.fetched == [(inode, SMALL)]


@both_loops
async def test_a_task_that_is_cancelled_meanwhile(make_file: MakeFile) -> None:
    """A cancelled send_to_stream ends at once, and the next one goes on."""
    fd = make_file(data(SMALL))
    with slow_disk() as disk:
        async with stream() as (writer, peer):
            disk.drop(fd)
            disk.ready.clear()
            batch = batch_of(b"header")
            batch.addfile(fd)
            sending = asyncio.create_task(send_to_stream(writer, batch))
            assert await read(peer, 6) == b"header"
            await turns()
            sending.cancel()
            await asyncio.wait([sending])
            assert sending.cancelled()
            assert (batch.bytessent, batch.bytesleft) == (6, SMALL)
            disk.ready.set()
            assert await send_to_stream(writer, batch) == SMALL
            assert await read(peer, SMALL) == data(SMALL)


@both_loops
async def test_a_task_that_is_cancelled_before_the_thread_s_turn(make_file: MakeFile) -> None:
    """The descriptor that waits for a thread is closed, also when nobody wants it any more."""
    fd = make_file(data(SMALL))
    busy = threading.Event()
    loop = asyncio.get_running_loop()
    with slow_disk() as disk, ThreadPoolExecutor(1) as pool:
        loop.set_default_executor(pool)
        pool.submit(busy.wait, PATIENCE)
        async with stream() as (writer, _):
            disk.drop(fd)
            batch = IOBatch()
            batch.addfile(fd)
            sending = asyncio.create_task(send_to_stream(writer, batch))
            await turns()
            sending.cancel()
            await asyncio.wait([sending])
            assert sending.cancelled()
        busy.set()
        await loop.shutdown_default_executor()
        assert len(disk.fetched) == 1


def test_a_loop_that_is_closed_meanwhile(make_file: MakeFile) -> None:
    """A thread that outlives its loop closes what it was given; so can the writer be closed."""
    fd = make_file(data(SMALL))
    with slow_disk() as disk, stream_pair() as (sock, _):
        sock.setblocking(False)
        disk.drop(fd)
        disk.ready.clear()

        async def post() -> BatchWriter:
            writer = BatchWriter(sock)
            batch = IOBatch()
            batch.addfile(fd)
            writer.write(batch)
            return writer

        loop = asyncio.new_event_loop()
        pool = ThreadPoolExecutor(1)
        loop.set_default_executor(pool)
        writer = loop.run_until_complete(post())
        loop.close()
        writer.close()
        writer.close()
        disk.ready.set()
        pool.shutdown()


# Errors


BROKEN = READ_AHEAD + 100_000  # where the disk can't be read any more


@both_loops
@pytest.mark.parametrize("broken", [0, BROKEN])
@pytest.mark.parametrize("through", [None, socket.socket.send], ids=["plain", "callback"])
async def test_an_error_of_the_thread(through: Any, broken: int, make_file: MakeFile) -> None:
    """What the thread could not read is the same error as if it had been read here.

    That is: what can be read goes out before it.
    """
    fd = make_file(data(LARGE))
    with slow_disk() as disk, writer_pair(through=through) as (writer, peer):
        disk.drop(fd)
        disk.broken = broken
        batch = IOBatch()
        batch.addfile(fd)
        operation = writer.write(batch)
        behind = writer.write(batch_of(b"behind"))
        assert await read(peer, broken) == data(LARGE)[:broken]
        with pytest.raises(OSError, match="broken") as raised:
            await operation
        assert raised.value.errno == errno.EIO
        assert (operation.status, operation.bytes_transferred) == (WriteStatus.ERROR, broken)
        assert operation.batch.bytesleft == LARGE - broken
        if broken:
            assert behind.status is WriteStatus.ABORTED
        else:
            assert await read(peer, 6) == b"behind"
            assert await behind == 6
        assert not disk.stalls


@both_loops
@pytest.mark.parametrize("broken", [0, BROKEN])
async def test_an_error_of_a_streams_thread(broken: int, make_file: MakeFile) -> None:
    """So it is for a stream."""
    fd = make_file(data(LARGE))
    with slow_disk() as disk:
        async with stream() as (writer, peer):
            disk.drop(fd)
            disk.broken = broken
            batch = IOBatch()
            batch.addfile(fd)
            arriving = asyncio.create_task(read(peer, broken))
            with pytest.raises(OSError, match="broken") as raised:
                await send_to_stream(writer, batch)
            assert await arriving == data(LARGE)[:broken]
            assert (repr(batch.error), batch.bytessent) == (repr(raised.value), broken)
            assert batch.bytesleft == LARGE - broken
            assert not disk.stalls


@both_loops
@pytest.mark.parametrize("size", [0, 10, LARGE])
async def test_a_truncated_file(size: int, make_file: MakeFile) -> None:
    """A file that ended before the thread read it is the same error, at the same place."""
    fd = make_file(data(LARGE + 10))
    with slow_disk() as disk, writer_pair() as (writer, peer):
        batch = IOBatch()
        batch.addfile(fd)
        disk.drop(fd)
        os.truncate(fd, size)
        operation = writer.write(batch)
        assert await read(peer, size) == data(LARGE + 10)[:size]
        with pytest.raises(TruncatedFileError) as raised:
            await operation
        assert (raised.value.offset, raised.value.missing) == (size, LARGE + 10 - size)
        assert not disk.stalls


@both_loops
@pytest.mark.parametrize("size", [0, 10, LARGE])
async def test_a_truncated_file_over_a_stream(size: int, make_file: MakeFile) -> None:
    """So it is for a stream."""
    fd = make_file(data(LARGE + 10))
    with slow_disk() as disk:
        async with stream() as (writer, peer):
            batch = IOBatch()
            batch.addfile(fd)
            disk.drop(fd)
            os.truncate(fd, size)
            arriving = asyncio.create_task(read(peer, size))
            with pytest.raises(TruncatedFileError) as raised:
                await send_to_stream(writer, batch)
            assert await arriving == data(LARGE + 10)[:size]
            assert (raised.value.offset, raised.value.missing) == (size, LARGE + 10 - size)
            assert not disk.stalls


@both_loops
@pytest.mark.parametrize("short", ["truncated", "broken"])
async def test_a_message_with_a_bad_file(short: str, make_file: MakeFile) -> None:
    """A message with a file that ends early, or breaks in its midst, is not sent at all."""
    fd = make_file(data(MESSAGE))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, slow_disk() as disk:
        ours.setblocking(False)
        writer = BatchWriter(ours)
        batch = batch_of(b"header")
        batch.addfile(fd)
        disk.drop(fd)
        if short == "truncated":
            os.truncate(fd, 5 * PAGE)
        else:
            disk.broken = 5 * PAGE
        operation = writer.write(batch)
        with pytest.raises(OSError, match=r"ended|broken"):
            await operation
        assert (operation.bytes_transferred, operation.batch.bytesleft) == (0, 6 + MESSAGE)
        assert is_silent(theirs)

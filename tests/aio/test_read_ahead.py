"""Files that are not in the page cache: a thread reads them, and the loop goes on."""

from __future__ import annotations

import asyncio
import os
import socket
import weakref
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import COMPILED, IOBatch
from iobatch._pagecache import (
    PROBE_STRIDE,
    READ_AHEAD,
)
from iobatch.aio import send_to_stream
from iobatch.filters import Filter
from tests.support.batches import Borrowed, batch_of, check_invariants, data
from tests.support.fakes import patch_os
from tests.support.loops import (
    both_loops,
    full_writer,
    is_watched,
    read,
    scripted_writer,
    stream,
    turns,
    writer_pair,
)
from tests.support.pagecache import (
    LARGE,
    MEDIUM,
    PAGE,
    SMALL,
    Disk,
    batch_of_ranges,
    slow_disk,
)
from tests.support.sockets import PATIENCE, receive_all

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


@both_loops
@pytest.mark.parametrize("keeps_nothing", [False, True])
@pytest.mark.parametrize("buffers", [None, 4096], ids=["fast", "slow"])
async def test_uncached_ranges_are_read_by_a_thread(
    *, buffers: int | None, keeps_nothing: bool, make_file: MakeFile
) -> None:
    """The bytes arrive even if the page cache keeps nothing, and the loop's thread reads again."""
    content = data(LARGE)
    fd = make_file(content)
    with slow_disk() as disk, writer_pair(buffers=buffers) as (writer, peer):
        batch, expected = batch_of_ranges(fd, content)
        disk.evict(fd)
        disk.keeps_nothing = keeps_nothing
        operation = writer.write(batch)
        following = writer.write(batch_of(b"follow"))
        assert not operation.done()
        assert await read(peer, len(expected) + 6) == expected + b"follow"
        assert (await operation, await following) == (len(expected), 6)
        if not keeps_nothing:
            assert not disk.stalls
        assert sum(count for _, count in disk.thread_reads) >= LARGE


@both_loops
async def test_cached_ranges_are_probed_and_sent_without_a_thread(make_file: MakeFile) -> None:
    """A small range takes one probe; a large one, one at its start and one per PROBE_STRIDE."""
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
        assert not disk.thread_reads


@both_loops
async def test_number_of_probes_is_bounded_whatever_the_limit(make_file: MakeFile) -> None:
    """A range is not probed for more than one call sends."""
    fd = make_file(b"")
    os.truncate(fd, 1 << 40)
    with slow_disk() as disk, writer_pair(limit=1 << 50) as (writer, _):
        batch = IOBatch()
        batch.addfile(fd)
        operation = writer.write(batch, timeout=PATIENCE)
        assert not operation.done()
        assert disk.probes < 100


@both_loops
@pytest.mark.parametrize("over", ["writer", "stream"])
async def test_range_that_is_only_partly_uncached_is_read_by_a_thread(
    over: str, make_file: MakeFile
) -> None:
    """A hole shorter than PROBE_STRIDE may be overlooked: then the loop's thread reads it."""
    content = data(LARGE)
    last = LARGE // PAGE
    hole = (9, 20)
    for pages in (0, 0), (last, last), (100, 100 + PROBE_STRIDE // PAGE), hole:
        fd = make_file(content)
        batch = IOBatch()
        batch.addfile(fd)
        with slow_disk() as disk:
            disk.evict(fd, *pages)
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
            if pages != hole:
                assert not disk.stalls


@both_loops
async def test_page_cache_is_probed_anew_for_each_write(make_file: MakeFile) -> None:
    fd = make_file(data(SMALL))
    with slow_disk() as disk, writer_pair() as (writer, peer):
        for options in {}, {"timeout": PATIENCE}, {"timeout": PATIENCE}:
            disk.evict(fd)
            batch = IOBatch()
            batch.addfile(fd)
            assert await writer.write(batch, **options) == SMALL
            assert await read(peer, SMALL) == data(SMALL)
        assert len(disk.thread_reads) == 3
        assert not disk.stalls


@both_loops
async def test_thread_reads_a_large_file_in_pieces_as_the_peer_takes_it(
    make_file: MakeFile,
) -> None:
    content = data(LARGE)
    fd = make_file(content)
    with slow_disk() as disk, writer_pair(buffers=4096) as (writer, peer):
        batch = IOBatch()
        batch.addfile(fd)
        disk.evict(fd)
        operation = writer.write(batch)
        start = await read(peer, 1000)
        await turns(50)
        assert sum(count for _, count in disk.thread_reads) == READ_AHEAD
        assert start + await read(peer, LARGE - 1000) == content
        assert await operation == LARGE
        assert sum(count for _, count in disk.thread_reads) == LARGE
        assert not disk.stalls


@both_loops
async def test_uncached_file_delays_only_what_comes_after_it(make_file: MakeFile) -> None:
    fd = make_file(data(SMALL))
    with slow_disk() as disk, writer_pair() as (writer, peer), writer_pair() as (other, _):
        disk.evict(fd)
        disk.ready.clear()
        batch = batch_of(b"header")
        batch.addfile(fd)
        operation = writer.write(batch)
        following = writer.write(batch_of(b"follow"))
        assert await read(peer, 6) == b"header"
        await turns()
        assert (operation.bytes_transferred, following.bytes_transferred) == (6, 0)
        assert writer.pending == SMALL + 6
        assert other.write(batch_of(b"abc")).done()
        assert not is_watched(writer)  # the socket is writable: to watch it would be a busy loop
        disk.ready.set()
        assert await read(peer, SMALL + 6) == data(SMALL) + b"follow"
        assert await following == 6


@both_loops
async def test_bytes_before_an_uncached_file_go_out_once_the_socket_has_room(
    make_file: MakeFile,
) -> None:
    fd = make_file(data(SMALL))
    with slow_disk() as disk, full_writer() as (writer, peer):
        disk.evict(fd)
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
async def test_file_object_is_released_with_its_last_byte(make_file: MakeFile) -> None:
    with slow_disk() as disk, writer_pair() as (writer, peer):
        file = Borrowed(make_file(data(SMALL)))
        gone = weakref.ref(file)
        disk.evict(file.fileno())
        batch = IOBatch()
        batch.addfile(file, 0, SMALL)
        del file
        assert await writer.write(batch) == SMALL
        assert await read(peer, SMALL) == data(SMALL)
        assert gone() is None


@both_loops
async def test_file_evicted_by_the_kernel_arrives(make_file: MakeFile) -> None:
    """posix_fadvise() is advice: the kernel may keep the file in its cache."""
    content = data(LARGE)
    fd = make_file(content)
    with writer_pair("tcp4") as (writer, peer):
        batch, expected = batch_of_ranges(fd, content)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        operation = writer.write(batch)
        assert await read(peer, len(expected)) == expected
        assert await operation == len(expected)


@both_loops
@pytest.mark.parametrize("kind", ["callback", "filter"])
async def test_file_for_a_callback_or_filter_is_read_by_a_thread(
    kind: str, make_file: MakeFile
) -> None:
    content = data(LARGE)
    fd = make_file(content)
    through: Any = socket.socket.send if kind == "callback" else Filter(zlib.compressobj())
    with slow_disk() as disk, writer_pair(buffers=4096, through=through) as (writer, peer):
        batch, expected = batch_of_ranges(fd, content)
        disk.evict(fd)
        peer.setblocking(True)
        arriving = asyncio.create_task(asyncio.to_thread(receive_all, peer))
        assert await writer.write(batch) == len(expected)
        await writer.finish()
        writer.sock.shutdown(socket.SHUT_WR)
        arrived = await arriving
        assert (arrived if kind == "callback" else zlib.decompress(arrived)) == expected
        assert disk.thread_reads
        assert not disk.stalls


@both_loops
@pytest.mark.parametrize("keeps_nothing", [False, True])
async def test_send_to_stream_has_a_thread_read_uncached_ranges(
    *, keeps_nothing: bool, make_file: MakeFile
) -> None:
    """Large ranges go by sendfile, small ones are read."""
    content = data(LARGE)
    fd = make_file(content)
    with slow_disk() as disk:
        async with stream(buffers=4096) as (writer, peer):
            batch, expected = batch_of_ranges(fd, content)
            disk.evict(fd)
            disk.keeps_nothing = keeps_nothing
            arriving = asyncio.create_task(read(peer, len(expected)))
            assert await send_to_stream(writer, batch) == len(expected)
            assert await arriving == expected
            check_invariants(batch)
            assert disk.stalls == [] or keeps_nothing
            assert sum(count for _, count in disk.thread_reads) >= LARGE


@both_loops
@pytest.mark.parametrize("size", [SMALL, MEDIUM], ids=["small", "medium"])
@pytest.mark.parametrize("added", [b"from a handler", b""], ids=["bytes", "empty"])
async def test_entry_added_by_a_signal_handler_during_a_probe_is_sent(
    added: bytes, size: int, make_file: MakeFile
) -> None:
    """The compiled form sends what was in the batch before the probe."""
    fd = make_file(data(size))
    later = added if COMPILED else b""
    with slow_disk() as disk, writer_pair() as (writer, peer):
        batch = batch_of(b"header")
        batch.addfile(fd)
        batch.addbuf(b"follow")
        handled = []

        def preadv(*args: Any) -> int:
            if not handled:
                handled.append(batch.addbuf(added))
            return Disk.preadv(disk, *args)

        patch_os(disk.patch, "preadv", preadv)
        expected = b"header" + data(size) + b"follow" + added
        assert await writer.write(batch) == len(expected) - len(later)
        assert batch.bytesleft == len(later)
        assert await writer.write(batch) == len(later)
        assert handled
        assert await read(peer, len(expected)) == expected

"""Files where the page cache can't be probed, or no thread can read ahead."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch
from iobatch.aio import send_to_stream
from tests.support.batches import batch_of, data
from tests.support.fakes import again, log_preads, patch_os
from tests.support.loops import (
    both_loops,
    read,
    stream,
    turns,
    writer_pair,
)
from tests.support.pagecache import (
    LARGE,
    MEDIUM,
    PAGE,
    slow_disk,
)
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


@both_loops
@pytest.mark.parametrize("lacking", ["the system", "the file system"])
async def test_file_is_read_at_once_where_the_cache_cannot_be_probed(
    lacking: str, make_file: MakeFile
) -> None:
    """The loop's thread may wait for the disk then, as in iob_send()."""
    fd = make_file(data(1000))

    def preadv(*_: object) -> int:
        number = errno.ENOSYS if lacking == "the system" else errno.EOPNOTSUPP  # as on tmpfs
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch, writer_pair() as (writer, _):
        patch_os(patch, "preadv", preadv)
        if lacking == "the system":
            patch.setattr("iobatch._pagecache._preadv", None)
            patch.setattr("iobatch._pagecache._NOWAIT", 0)
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
async def test_loop_reads_the_file_without_a_thread_or_a_descriptor_for_it(
    over: str, lacking: str, make_file: MakeFile
) -> None:
    fd = make_file(data(LARGE))

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "scripted")

    if lacking == "thread":
        await asyncio.get_running_loop().shutdown_default_executor()
    async with stream() as (sending, stream_peer):
        with (
            slow_disk() as disk,
            writer_pair() as (writer, writer_peer),
            pytest.MonkeyPatch.context() as patch,
        ):
            if lacking == "descriptor":
                patch.setattr("os.dup", refuse)
            disk.evict(fd)
            batch = batch_of(b"header")
            batch.addfile(fd)
            peer = writer_peer if over == "writer" else stream_peer
            arriving = asyncio.create_task(read(peer, 6 + LARGE))
            if over == "writer":
                assert await writer.write(batch) == 6 + LARGE
            else:
                assert await send_to_stream(sending, batch) == 6 + LARGE
            assert await arriving == b"header" + data(LARGE)
            assert len(disk.stalls) == LARGE // PAGE + 1


@both_loops
@pytest.mark.parametrize("over", ["writer", "stream"])
async def test_loop_reads_the_file_if_the_executor_is_shut_down_meanwhile(
    over: str, make_file: MakeFile
) -> None:
    fd = make_file(data(LARGE))
    busy = threading.Event()
    loop = asyncio.get_running_loop()
    with slow_disk() as disk, writer_pair() as (writer, writer_peer), ThreadPoolExecutor(1) as pool:
        loop.set_default_executor(pool)
        pool.submit(busy.wait, PATIENCE)
        async with stream() as (sending, stream_peer):
            disk.evict(fd)
            batch = IOBatch()
            batch.addfile(fd)
            peer = writer_peer if over == "writer" else stream_peer
            arriving = asyncio.create_task(read(peer, LARGE))
            if over == "writer":
                posted: Any = writer.write(batch)
            else:
                posted = asyncio.create_task(send_to_stream(sending, batch))
            await turns()
            pool.shutdown(wait=False, cancel_futures=True)
            busy.set()
            assert await posted == LARGE
            assert await arriving == data(LARGE)
            assert not disk.thread_reads


@both_loops
@pytest.mark.parametrize("over", ["writer", "stream"])
async def test_file_that_is_not_ready_is_tried_again_by_a_writer_only(
    over: str, make_file: MakeFile
) -> None:
    """A file's read can raise BlockingIOError for another reason than the page cache."""
    fd = make_file(data(MEDIUM))
    script = [again()]
    pread = os.pread

    def pread_after_again(fd: int, count: int, offset: int) -> bytes:
        if script:
            raise script.pop()
        return pread(fd, count, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch_os(patch, "pread", pread_after_again)
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


def fail_to_start() -> None:
    raise ZeroDivisionError("the executor's initializer")


@both_loops
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("over", ["writer", "stream"])
async def test_loop_reads_the_file_if_the_executor_is_broken(
    over: str, make_file: MakeFile, caplog: pytest.LogCaptureFixture
) -> None:
    fd = make_file(data(LARGE))
    loop = asyncio.get_running_loop()
    with (
        slow_disk() as disk,
        writer_pair() as (writer, writer_peer),
        ThreadPoolExecutor(1, initializer=fail_to_start) as pool,
    ):
        loop.set_default_executor(pool)
        async with stream() as (sending, stream_peer):
            disk.evict(fd)
            batch = batch_of(b"header")
            batch.addfile(fd)
            peer = writer_peer if over == "writer" else stream_peer
            arriving = asyncio.create_task(read(peer, 6 + LARGE))
            if over == "writer":
                operation = writer.write(batch)
                after = writer.write(batch_of(b"after"))
                assert await operation == 6 + LARGE
                assert await after == 5
            else:
                assert await send_to_stream(sending, batch) == 6 + LARGE
            assert await arriving == b"header" + data(LARGE)
    caplog.clear()

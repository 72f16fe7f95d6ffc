"""Coming from libevent: one test for each row of the table about filters and flush modes."""

from __future__ import annotations

import errno
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, WRITE_LIMIT, iob_write
from iobatch.filters import Filter
from tests.support.batches import batch_of
from tests.support.fakes import Scripted
from tests.support.filters import (
    Identity,
    Swallowing,
    step_until_done,
    step_when_writable,
    write_and_finish,
)
from tests.support.loops import both_loops, writer_pair
from tests.support.manpages import covered, example, subjects

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = ("iobatch-libevent.7", "Filters and flush modes")


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


def flushing_gzip() -> Any:
    """Return the transform of the page's example."""
    return example(PAGE[0])["FlushingGzip"]()


def test_bufferevent_filter_new_is_a_filter_over_another(sock: Scripted) -> None:
    write_and_finish(sock, batch_of(b"abc"), Filter(zlib.compressobj(), Filter(Identity())))
    assert zlib.decompress(bytes(sock.taken)) == b"abc"


def test_src_is_taken_as_a_whole(sock: Scripted) -> None:
    seen: list[bytes] = []

    class Transform(Identity):
        def compress(self, data: Any) -> bytes:
            seen.append(bytes(data))
            return b""

    assert iob_write(sock, batch_of(b"abc"), Filter(Transform())) == 3
    assert seen == [b"abc"]


def test_dst_is_the_value_returned(sock: Scripted) -> None:
    class Transform(Identity):
        def compress(self, data: Any) -> bytes:
            return bytes(data).upper()

        def flush(self) -> bytes:
            return b"."

    write_and_finish(sock, batch_of(b"abc"), Filter(Transform()))
    assert sock.taken == b"ABC."


def test_dst_limit_is_high_water_of_the_filter() -> None:
    pipeline = Filter(Identity(), lambda _sock, _view: -1, high_water=3)
    batch = batch_of(b"abcdef")
    codes = [iob_write(None, batch, pipeline, limit=2) for _ in range(3)]
    assert codes == [2, 2, IOB_AGAIN]

    later = Filter(Identity(), lambda _sock, _view: -1, high_water=1)
    first = Filter(Identity(), later, high_water=1)
    assert iob_write(None, batch_of(bytes(3 * WRITE_LIMIT)), first, limit=None) == 3 * WRITE_LIMIT
    assert (first.bytesleft, later.bytesleft) == (2 * WRITE_LIMIT, WRITE_LIMIT)


def test_ctx_is_an_attribute_of_the_transform(sock: Scripted) -> None:
    transform = Swallowing()
    assert iob_write(sock, batch_of(b"abc"), Filter(transform)) == 3
    assert transform.kept == b"abc"


def test_bev_ok_is_the_output(sock: Scripted) -> None:
    assert iob_write(sock, batch_of(b"abc"), Filter(Identity())) == 3
    assert sock.taken == b"abc"


def test_bev_need_more_is_no_output(sock: Scripted) -> None:
    pipeline = Filter(Swallowing())
    batch = batch_of(b"abc")
    assert iob_write(sock, batch, pipeline) == 3
    assert (sock.taken, batch.bytesleft) == (b"", 0)
    step_until_done(sock, lambda: pipeline.finish(sock), pipeline)
    assert sock.taken == b"abc"


def test_bev_error_is_an_os_error_that_stays(sock: Scripted) -> None:
    class Transform(Identity):
        def compress(self, data: Any) -> bytes:
            raise OSError(errno.EILSEQ, "scripted")

    pipeline = Filter(Transform())
    batch = batch_of(b"abc")
    assert [iob_write(sock, batch, pipeline) for _ in range(2)] == [IOB_ERROR] * 2
    assert pipeline.error is not None
    assert pipeline.error.errno == errno.EILSEQ


def test_bev_normal_is_compress_and_flushes_nothing(sock: Scripted) -> None:
    pipeline = Filter(flushing_gzip())
    assert iob_write(sock, batch_of(b"abc"), pipeline) == 3
    assert zlib.decompressobj(31).decompress(bytes(sock.taken)) == b""


@pytest.mark.parametrize("flush", ["drain", "flush", "write"])
@both_loops
async def test_bev_flush_is_compress_of_nothing(flush: str) -> None:
    pipeline = Filter(flushing_gzip())
    with writer_pair(through=pipeline) as (writer, peer):
        if flush == "write":
            await writer.write(batch_of(b"abc"))
        else:
            assert iob_write(writer.sock, batch_of(b"abc"), pipeline) == 3
            if flush == "flush":
                await writer.flush()
            else:
                step_when_writable(lambda: pipeline.drain(writer.sock), writer.sock, pipeline)
        assert zlib.decompressobj(31).decompress(peer.recv(1 << 16)) == b"abc"
        assert pipeline.drain(writer.sock) == IOB_DONE  # no further flush


@both_loops
async def test_bev_finished_is_flush_called_once() -> None:
    pipeline = Filter(flushing_gzip())
    with writer_pair(through=pipeline) as (writer, peer):
        writer.write(batch_of(b"abc"))
        await writer.finish()
        assert await writer.finish() == 0
        coder = zlib.decompressobj(31)
        assert coder.decompress(peer.recv(1 << 16)) == b"abc"
        assert (coder.eof, coder.unused_data) == (True, b"")


@pytest.mark.parametrize("step", [Filter.drain, Filter.finish])
def test_bufferevent_flush_is_repeated_while_it_moves_bytes(
    step: Callable[[Filter, Any], int],
) -> None:
    pipeline = Filter(flushing_gzip())
    with Scripted(*[1] * 5) as sock:
        assert iob_write(sock, batch_of(b"abc"), pipeline) == 3
        assert step(pipeline, sock) > 0
        step_until_done(sock, lambda: step(pipeline, sock), pipeline)
        assert zlib.decompressobj(31).decompress(bytes(sock.taken)) == b"abc"

    asked: list[bytes] = []

    class Asked(Identity):
        def compress(self, data: Any) -> Any:
            asked.append(bytes(data))
            return data

    with Scripted() as sock:
        assert Filter(Identity(), Filter(Asked())).drain(sock) == IOB_DONE
    assert asked == [b""]


def test_bufferevent_get_underlying_is_then() -> None:
    underlying = Filter(Identity())
    assert Filter(Identity(), underlying).then is underlying

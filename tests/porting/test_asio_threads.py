"""iobatch-asio(7), Threads: one test for each row of the table, in the rows' order."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from iobatch.aio import BatchWriter, WriteOperation
from tests.support.batches import batch_of
from tests.support.loops import LOOPS, both_loops, new_loop, read, turns, writer_pair
from tests.support.manpages import covered, subjects
from tests.support.sockets import PATIENCE, clog, receive, receive_all, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = "iobatch-asio.7", "Threads"


async def call_in_thread(function: Callable[[], object]) -> None:
    """Call a function in a thread of its own, and wait for its end."""
    thread = threading.Thread(target=function)
    thread.start()
    await asyncio.to_thread(thread.join, PATIENCE)
    assert not thread.is_alive()


def send_in_a_loop(sock: socket.socket, content: bytes, loop_name: str) -> None:
    """Send bytes from a loop that ends then."""

    async def main() -> None:
        async with BatchWriter(sock) as writer:
            writer.write(batch_of(content))

    with asyncio.Runner(loop_factory=lambda: new_loop(loop_name)) as runner:
        runner.run(main())


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


def test_io_context_is_the_running_loop() -> None:
    with stream_pair() as (ours, _):
        ours.setblocking(False)
        with pytest.raises(RuntimeError, match="no running event loop"):
            BatchWriter(ours)


@pytest.mark.parametrize("loop_name", LOOPS)
def test_io_context_run_is_run_or_run_forever(loop_name: str) -> None:
    with stream_pair() as (ours, theirs):
        ours.setblocking(False)
        send_in_a_loop(ours, b"abc", loop_name)
        assert receive(theirs, 3) == b"abc"

    async def post_only(sock: socket.socket) -> WriteOperation:
        return BatchWriter(sock).write(batch_of(b"abc"))

    with stream_pair(buffers=4096) as (ours, theirs):
        filler = clog(ours)
        with asyncio.Runner(loop_factory=lambda: new_loop(loop_name)) as runner:
            op = runner.run(post_only(ours))
        ours.shutdown(socket.SHUT_WR)
        assert len(receive_all(theirs)) == filler
        assert op.batch.bytesleft == 3


@pytest.mark.parametrize("loop_name", LOOPS)
def test_io_context_stop_is_stop(loop_name: str) -> None:
    loop = new_loop(loop_name)
    with stream_pair() as (ours, theirs):
        ours.setblocking(False)

        def post() -> None:
            BatchWriter(ours).write(batch_of(b"abc"), on_complete=lambda _: loop.stop())

        loop.call_soon(post)
        loop.run_forever()
        loop.close()
        assert receive(theirs, 3) == b"abc"

    async def main() -> None:
        asyncio.get_running_loop().stop()
        await asyncio.get_running_loop().create_future()

    with (
        asyncio.Runner(loop_factory=lambda: new_loop(loop_name)) as runner,
        pytest.raises(RuntimeError, match="before Future completed"),
    ):
        runner.run(main())


@both_loops
async def test_post_ex_f_defer_ex_f_is_call_soon() -> None:
    order: list[str] = []
    asyncio.get_running_loop().call_soon(order.append, "posted")
    order.append("posting")
    await turns(1)
    assert order == ["posting", "posted"]


@both_loops
async def test_post_from_another_thread_is_call_soon_threadsafe() -> None:
    loop = asyncio.get_running_loop()
    ident = loop.create_future()

    def post() -> None:
        loop.call_soon_threadsafe(lambda: ident.set_result(threading.get_ident()))

    await call_in_thread(post)
    assert await ident == threading.get_ident()


@both_loops
async def test_dispatch_ex_f_is_a_call() -> None:
    with writer_pair() as (writer, peer):

        def write() -> None:
            writer.write(batch_of(b"abc"))

        write()
        assert await read(peer, 3) == b"abc"


@pytest.mark.parametrize("loop_name", LOOPS)
def test_run_in_several_threads_is_a_loop_in_each(loop_name: str) -> None:
    with stream_pair() as one, stream_pair() as other:
        threads = []
        for ours, _ in (one, other):
            ours.setblocking(False)
            threads.append(threading.Thread(target=send_in_a_loop, args=(ours, b"abc", loop_name)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert [receive(theirs, 3) for _, theirs in (one, other)] == [b"abc", b"abc"]


@both_loops
async def test_write_from_another_thread_is_call_soon_threadsafe() -> None:
    loop = asyncio.get_running_loop()
    with writer_pair() as (writer, peer):
        batch = batch_of(b"abc")
        await call_in_thread(lambda: loop.call_soon_threadsafe(writer.write, batch))
        assert await read(peer, 3) == b"abc"

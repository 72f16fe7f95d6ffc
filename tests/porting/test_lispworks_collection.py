"""iobatch-lispworks(7), Collection: one test for each row of the table, in the rows' order."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from iobatch.aio import BatchWriter
from tests.support.batches import batch_of
from tests.support.loops import LOOPS, both_loops, new_loop, read, turns, writer_pair
from tests.support.manpages import covered, subjects
from tests.support.sockets import PATIENCE, receive, stream_pair

if TYPE_CHECKING:
    from iobatch.aio import WriteOperation

PAGE = "iobatch-lispworks.7", "Collection"


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *PAGE) == subjects(*PAGE)


def test_make_wait_state_collection_is_new_event_loop() -> None:
    loop = asyncio.new_event_loop()
    with stream_pair() as (ours, theirs):
        ours.setblocking(False)

        async def write() -> int:
            return await BatchWriter(ours).write(batch_of(b"abc"))

        assert loop.run_until_complete(write()) == 3
        assert receive(theirs, 3) == b"abc"
    loop.close()


@pytest.mark.parametrize("loop_name", LOOPS)
def test_create_and_run_wait_state_collection_is_a_thread_with_a_loop(loop_name: str) -> None:
    loop = new_loop(loop_name)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with stream_pair() as (ours, theirs):
        ours.setblocking(False)
        loop.call_soon_threadsafe(lambda: BatchWriter(ours).write(batch_of(b"abc")))
        assert receive(theirs, 3) == b"abc"
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        loop.close()


@pytest.mark.parametrize("loop_name", LOOPS)
def test_loop_processing_wait_state_collection_is_run_forever(loop_name: str) -> None:
    loop = new_loop(loop_name)
    with stream_pair() as (ours, theirs):
        ours.setblocking(False)
        calls: list[int] = []

        def post() -> None:
            writer = BatchWriter(ours)
            writer.write_buffer(b"abc", lambda _writer, _data, nbytes: calls.append(nbytes))
            writer.write_buffer(b"def", lambda *_: loop.stop())

        loop.call_soon(post)
        loop.run_forever()
        loop.close()
        assert (calls, receive(theirs, 6)) == ([3], b"abcdef")


@pytest.mark.parametrize("loop_name", LOOPS)
def test_wait_state_collection_stop_loop_is_stop_after_run_forever(loop_name: str) -> None:
    loop = new_loop(loop_name)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    loop.close()

    async def main() -> None:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(PATIENCE)

    with (
        asyncio.Runner(loop_factory=lambda: new_loop(loop_name)) as runner,
        pytest.raises(RuntimeError, match="stopped before"),
    ):
        runner.run(main())


@pytest.mark.parametrize("loop_name", LOOPS)
def test_wait_state_collection_alive_p_is_is_running(loop_name: str) -> None:
    loop = new_loop(loop_name)
    running: list[bool] = []
    loop.call_soon(lambda: running.append(loop.is_running()))
    loop.call_soon(loop.stop)
    assert not loop.is_running()
    loop.run_forever()
    assert running == [True]
    loop.close()


@both_loops
async def test_apply_in_wait_state_collection_process_is_call_soon_threadsafe() -> None:
    loop = asyncio.get_running_loop()
    applied: list[object] = []
    loop.call_soon_threadsafe(applied.append, "from the loop")
    assert applied == []
    await turns(2)
    await asyncio.to_thread(loop.call_soon_threadsafe, applied.append, "from a thread")
    await turns(2)
    assert applied == ["from the loop", "from a thread"]


@both_loops
async def test_write_from_another_process_is_run_coroutine_threadsafe() -> None:
    loop = asyncio.get_running_loop()
    idents: list[int] = []

    def callback(*_: object) -> None:
        idents.append(threading.get_ident())

    with writer_pair() as (writer, peer):

        async def post() -> WriteOperation:
            return writer.write_buffer(b"abc", callback, timeout=PATIENCE)

        def write() -> WriteOperation:
            return asyncio.run_coroutine_threadsafe(post(), loop).result(PATIENCE)

        op = await asyncio.to_thread(write)
        assert await op == 3
        assert await read(peer, 3) == b"abc"
        await turns()
        assert idents == [threading.get_ident()]
        writer.close()
        with pytest.raises(OSError, match="closed"):
            await asyncio.to_thread(write)

"""Handlers that use the batch or the writer that they interrupt."""

from __future__ import annotations

import errno
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define

from iobatch import COMPILED, IOBatch, iob_send
from iobatch.aio import WriteOperation, WriteStatus
from tests.support.batches import batch_of, check_invariants, data
from tests.support.forms import is_compiled
from tests.support.interruptions import LARGE, SMALL, STEPS, handler_at, send_all
from tests.support.loops import both_loops, read, scripted_writer, writer_pair
from tests.support.sockets import stream_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tests.support.batches import MakeFile
    from tests.support.interruptions import Step


# Each action, and the bytes that it adds.
ACTIONS = {
    "add bytes": b"bytes",
    "add a view with a hook": b"view",
    "add an empty hook": b"",
    "add an empty view": b"",
    "extend": b"extended",
    "prepend": b"prepended",
    "send": b"",
    "reset": b"",
}


@define
class Done:
    """The effect of an action."""

    added: bytes = b""
    dropped: int = 0  # the bytes that reset() dropped


def act(
    action: str, batch: IOBatch, sock: socket.socket, hook: Callable[[], object], done: Done
) -> None:
    """Run an action. The batch may refuse it (RuntimeError) while a call on it is in progress."""

    def extend() -> None:
        other = IOBatch()
        other.addbuf(b"extended", on_release=hook)
        batch.extend(other)

    actions: dict[str, Callable[[], object]] = {
        "add bytes": lambda: batch.addbuf(b"bytes"),
        "add a view with a hook": lambda: batch.addbuf(bytearray(b"view"), on_release=hook),
        "add an empty hook": lambda: batch.addbuf(b"", on_release=hook),
        "add an empty view": lambda: batch.addbuf(bytearray()),
        "extend": extend,
        "prepend": lambda: batch.prepend(b"prepended"),
        "send": lambda: iob_send(sock, batch),
        "reset": batch.reset,
    }
    left = batch.bytesleft
    with suppress(RuntimeError):
        actions[action]()
        done.added = ACTIONS[action]
        done.dropped = left if action == "reset" else 0


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
@pytest.mark.parametrize("action", ACTIONS)
def test_handler_that_uses_the_interrupted_batch_loses_and_repeats_nothing(
    action: str, step: Step, make_file: MakeFile
) -> None:
    """All bytes arrive once and each hook runs once, at whatever point the handler runs."""
    content = data(LARGE)
    fd = make_file(content)
    wanted = b"".join((b"one", b"view", content[:SMALL], b"two", content, b"three"))
    for point in count(1):
        with stream_pair(buffers=4096) as (sock, peer):
            sock.setblocking(False)
            peer.setblocking(False)
            hooks: list[str] = []
            done = Done()
            batch = IOBatch()
            batch.addbuf(b"one", on_release=partial(hooks.append, "one"))
            batch.addbuf(bytearray(b"view"), on_release=partial(hooks.append, "view"))
            batch.addfile(fd, 0, SMALL)
            batch.addbuf(b"two")
            batch.addfile(fd)
            batch.addbuf(b"three", on_release=partial(hooks.append, "three"))
            handler = partial(act, action, batch, sock, partial(hooks.append, "handler"), done)
            with handler_at(point, handler) as reached:
                received, _ = send_all(step, sock, peer, batch)
            assert batch.error is None
            check_invariants(batch)
            if action == "prepend":
                assert received.replace(done.added, b"", 1) == wanted
                assert len(received) == len(wanted + done.added)
            elif not done.dropped:
                assert received == wanted + done.added
            batch.reset()
            assert len(set(hooks)) == len(hooks)
            assert {"one", "view", "three"} <= set(hooks)
        if not reached:
            break
    assert point > (20 if step is iob_send and is_compiled(step) else 50)


def test_prepend_by_a_handler_does_not_delay_the_hook_of_an_entry_that_was_sent() -> None:
    """It comes before or after the removal of the entry and its hook, or is refused between."""
    for point in count(1):
        with stream_pair() as (sock, peer):
            batch = IOBatch()
            hooks: list[str] = []
            batch.addbuf(bytearray(b"one"), on_release=partial(hooks.append, "one"))

            def prepend() -> None:
                with suppress(RuntimeError):
                    batch.prepend(b"<")  # noqa: B023 # called in this turn

            with handler_at(point, prepend) as reached:
                assert iob_send(sock, batch, limit=3) == 3
            assert bool(hooks) is (peer.recv(10) == b"one")
        if not reached:
            break


@both_loops
@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_write_posted_by_a_handler_is_sent_before_or_after_the_interrupted_one(
    size: int, make_file: MakeFile
) -> None:
    """It never goes between the bytes of the interrupted write."""
    content = data(size)
    fd = make_file(content)
    for point in count(1):
        with writer_pair() as (writer, peer):
            batch = batch_of(b"header")
            batch.addfile(fd)
            posted: list[WriteOperation] = []
            post = partial(writer.write, batch_of(b"posted"))
            with handler_at(point, lambda: posted.append(post())) as reached:  # noqa: B023  # called in this turn
                operation = writer.write(batch)
            await operation
            received = await read(peer, 6 + size + 6 * len(posted))
            body = b"header" + content
            assert received in ({body + b"posted", b"posted" + body} if posted else {body})
        if not reached:
            break
    # The compiled form writes a plain batch without running any Python code.
    assert point == 1 if COMPILED else point > 10


@both_loops
async def test_write_posted_by_a_handler_during_a_failing_write_is_sent() -> None:
    """The failed write leaves the queue, and the posted one is next."""
    posted = []
    with scripted_writer(ConnectionResetError(errno.ECONNRESET, "reset")) as (writer, sock):
        send = sock.send

        def post_and_send(*args: Any) -> int:
            # As if a handler ran when this function began.
            if not posted:
                posted.append(writer.write(batch_of(b"posted")))
            return send(*args)

        sock.send = post_and_send  # type: ignore[method-assign]
        operation = writer.write(batch_of(b"fails"))
        assert operation.status is WriteStatus.ERROR
        assert await posted[0] == 6
        assert sock.taken == b"posted"

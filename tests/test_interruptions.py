"""Exceptions of signal handlers, at every point where the interpreter runs one.

Those points are where a function begins and where a call of a C function ends. A profile function
is called there too, with the interrupted frame as a handler is, and may raise: so each point is
tried in turn, instead of waiting for a signal to hit it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from traceback import walk_tb
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_send, iob_sendall, iob_write
from iobatch._batch import core_of
from iobatch._pagecache import PageCacheProbe
from iobatch.aio import WriteOperation, WriteStatus, send_to_stream
from iobatch.aio._readahead import start_reading
from iobatch.filters import Filter
from tests.helpers import (
    PATIENCE,
    Scripted,
    check_invariants,
    clog,
    data,
    fd_count,
    patch_os,
    receive,
    stream_pair,
)
from tests.loops import (
    batch_of,
    both_loops,
    full_writer,
    read,
    scripted_writer,
    writer_pair,
)
from tests.test_aio_stream import stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from typing_extensions import Buffer

    MakeFile = Callable[[bytes], int]
    Step = Callable[[socket.socket, IOBatch], int]

pytestmark = pytest.mark.usefixtures("no_leaks")

# No exception of a handler's may be taken for one of a system call or of the interpreter.
KINDS = (
    ZeroDivisionError,
    TimeoutError,
    BlockingIOError,
    BrokenPipeError,
    RuntimeError,
    BufferError,
)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
SMALL = 1000
LARGE = 40_000


@contextmanager
def handler_at(point: int, action: Callable[[], object]) -> Iterator[list[bool]]:
    """Do something once, when the library comes to its nth point; tell whether it came there."""
    reached: list[bool] = []
    passed = 0

    def handler(frame: FrameType, event: str, _arg: object) -> None:
        nonlocal passed
        module: str = frame.f_globals.get("__name__", "")
        if event in {"call", "c_return"} and module.startswith("iobatch") and not finalizes(frame):
            passed += 1
            if passed == point:
                sys.setprofile(None)
                reached.append(True)
                action()

    sys.setprofile(handler)
    try:
        yield reached
    finally:
        sys.setprofile(None)


@contextmanager
def handler_that_raises(point: int, kind: type[Exception]) -> Iterator[list[Exception]]:
    """Raise once, when the library comes to its nth point; give what was raised."""
    raised: list[Exception] = []

    def action() -> None:
        raised.append(kind("from a handler"))
        raise raised[0]

    with handler_at(point, action):
        yield raised


def finalizes(frame: FrameType | None) -> bool:
    """Tell whether a finalizer runs, which no exception ever leaves."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def innermost(exc: Exception) -> str:
    """Return the name of the function that a handler has interrupted."""
    assert exc.__traceback__ is not None
    frames = [frame for frame, _ in walk_tb(exc.__traceback__)]
    return frames[-3].f_code.co_name  # the last two are the handler's


class Released:
    """Notes what is released, and how often."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.names: list[object] = []
        self._close = os.close
        patch_os(patch, "close", self.close)

    def hook(self, name: str) -> Callable[[], object]:
        """Return a hook that no handler can interrupt, as it is written in C."""
        return partial(self.names.append, name)

    def close(self, fd: int) -> None:
        self.names.append(fd)
        self._close(fd)


def by_callback(sock: socket.socket, batch: IOBatch) -> int:
    return iob_write(sock, batch, lambda sock, view: sock.send(view))


def by_socket_send(sock: socket.socket, batch: IOBatch) -> int:
    return iob_write(sock, batch, socket.socket.send, limit=3000)


def to_descriptor(sock: socket.socket, batch: IOBatch) -> int:
    return iob_send(sock.fileno(), batch)


STEPS: tuple[Step, ...] = (iob_send, to_descriptor, by_socket_send, by_callback)


def send(
    step: Step, sock: socket.socket, peer: socket.socket, batch: IOBatch
) -> tuple[bytes, list[Exception]]:
    """Send what can be sent, whatever is raised in between; return what came, and what came out."""
    received = bytearray()
    came_out: list[Exception] = []
    code = IOB_AGAIN
    while code not in {IOB_DONE, IOB_ERROR}:
        try:
            code = step(sock, batch)
        except KINDS as exc:
            came_out.append(exc)
            assert repr(batch)
        received += drain(peer)
    return bytes(received), came_out


def drain(peer: socket.socket) -> bytes:
    """Read what has come so far."""
    received = bytearray()
    with suppress(BlockingIOError):
        while True:
            received += peer.recv(1 << 20)
    return bytes(received)


@every_kind
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_a_handler_that_raises_while_a_batch_is_sent(
    step: Step, kind: type[Exception], make_file: MakeFile
) -> None:
    """Its exception comes out, nothing is sent twice, and each hook runs and each file closes once.

    Where the count is unknown the batch has failed for good, and says so; else it goes on.
    """
    content = data(LARGE)
    fd = make_file(content)
    view = bytearray(data(300, seed=1))
    wanted = b"".join((b"one", view, content[:SMALL], b"two", content, b"three"))
    failed = 0
    for point in count(1):
        with pytest.MonkeyPatch.context() as patch, stream_pair(buffers=4096) as (sock, peer):
            sock.setblocking(False)
            peer.setblocking(False)
            released = Released(patch)
            owned = [os.dup(fd), os.dup(fd)]
            batch = IOBatch()
            batch.addbuf(b"one", on_release=released.hook("one"))
            batch.addbuf(view, on_release=released.hook("view"))
            batch.addfile_close(owned[0], 0, SMALL)
            batch.addbuf(b"two")
            batch.addfile_close(owned[1])
            batch.addbuf(b"three", on_release=released.hook("three"))
            batch.addbuf(b"", on_release=released.hook("empty"))
            with handler_that_raises(point, kind) as raised:
                received, came_out = send(step, sock, peer, batch)
            assert came_out == raised, "it comes out, and nothing else does"
            if batch.error is None:
                assert received == wanted
                check_invariants(batch)
            else:
                failed += 1
                assert raised
                assert batch.error.errno == errno.EIO
                assert received == wanted[: len(received)]
                assert len(received) >= batch.bytessent
                assert step(sock, batch) == IOB_ERROR
            batch.reset()
            if raised:
                raised[0].__traceback__ = None  # its frames may hold a view that was being offered
            view.append(0)  # views of it were released
            view.pop()
            assert sorted(map(str, released.names)) == sorted(
                ["one", "view", "three", "empty", *map(str, owned)]
            )
        if not raised:
            break
    assert point > 50
    assert failed > 0


def additions(
    batch: IOBatch, other: IOBatch, released: Released, owned: list[int]
) -> dict[str, Callable[[], None]]:
    """Return each way to add something, by the name of its hook."""
    return {
        "one": lambda: batch.addbuf(b"1", on_release=released.hook("one")),
        "close": lambda: batch.addfile_close(owned[0], 0, 10),
        "view": lambda: other.addbuf(bytearray(b"2"), on_release=released.hook("view")),
        "close in other": lambda: other.addfile_close(owned[1]),
        "extend": lambda: batch.extend(other),
        "prepend": lambda: batch.prepend(b"3", on_release=released.hook("prepend")),
        "empty": lambda: batch.addbuf(b"", on_release=released.hook("empty")),
        "close empty": lambda: batch.addfile_close(owned[2], 0, 0),
    }


@every_kind
def test_a_handler_that_raises_while_entries_are_added(
    kind: type[Exception], make_file: MakeFile
) -> None:
    """An entry is added or it is not; an owned file is closed once either way."""
    content = data(SMALL)
    fd = make_file(content)
    for point in count(1):
        with pytest.MonkeyPatch.context() as patch:
            released = Released(patch)
            owned = [os.dup(fd) for _ in range(3)]
            batch, other = IOBatch(), IOBatch()
            missing = set()
            with handler_that_raises(point, kind) as raised:
                for name, add in additions(batch, other, released, owned).items():
                    try:
                        add()
                    except KINDS:
                        missing.add(name)
            queued = [str(entry) for entry in (*core_of(batch).look(), *core_of(other).look())]
            for each in released.names:
                assert not any(entry.startswith(f"({each},") for entry in queued), "it is closed"
            batch.reset()
            other.reset()
            check_invariants(batch)
            check_invariants(other)
            closed = [name for name in released.names if isinstance(name, int)]
            hooks = [name for name in released.names if isinstance(name, str)]
            assert len(set(closed)) == len(closed)
            for each in set(owned) - set(closed):
                assert innermost(raised[0]) in {"addfile_close", "_add_owned"}, "it had not begun"
                os.close(each)
            assert len(set(hooks)) == len(hooks)
            assert {"one", "view", "prepend", "empty"} - set(hooks) <= missing
        if not raised:
            break
    assert point > 50


@every_kind
def test_a_handler_that_raises_while_a_batch_is_reset(
    kind: type[Exception], make_file: MakeFile
) -> None:
    """What the reset that was stopped left is released by the next one."""
    fd = make_file(data(SMALL))
    for point in count(1):
        with pytest.MonkeyPatch.context() as patch:
            released = Released(patch)
            owned = os.dup(fd)
            batch = IOBatch()
            batch.addbuf(b"one", on_release=released.hook("one"))
            batch.addfile_close(owned)
            batch.addbuf(bytearray(b"two"), on_release=released.hook("two"))
            with handler_that_raises(point, kind) as raised, suppress(kind):
                batch.reset()
            assert repr(batch)
            batch.reset()
            check_invariants(batch)
            assert released.names == ["one", owned, "two"]
        if not raised:
            break
    assert point > 5


def test_what_is_added_to_a_batch_that_was_interrupted_is_sent_alone() -> None:
    """Entries that were accepted and not yet removed are never sent again."""
    for point in count(1):
        with stream_pair() as (sock, peer):
            batch = IOBatch()
            batch.addbuf(bytearray(b"first"), on_release=partial(int))
            batch.addbuf(b"second")
            with handler_that_raises(point, ZeroDivisionError) as raised, suppress(*KINDS):
                iob_send(sock, batch)
            if batch.error is None:
                left = batch.bytesleft
                batch.prepend(b"<")
                batch.addbuf(b">")
                assert iob_send(sock, batch) == left + 2
                wanted = b"<firstsecond>" if left else b"firstsecond<>"
                assert receive(peer, len(wanted)) == wanted
        if not raised:
            break


@contextmanager
def alarm(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have a handler called while the code in between waits in a system call."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("error", [*KINDS, KeyboardInterrupt], ids=lambda error: error.__name__)
@pytest.mark.parametrize("callback", [None, socket.socket.send], ids=["iob_send", "iob_write"])
def test_a_deadline_that_a_handler_raises_comes_out_of_iob_sendall(
    error: type[BaseException], callback: Any
) -> None:
    """It is not taken for the socket's own timeout, and nothing is sent twice."""
    content = data(3_000_000)

    def deadline(_number: int, _frame: object) -> None:
        raise error("deadline")

    with stream_pair() as (sock, peer):
        batch = IOBatch()
        batch.addbuf(content)
        with pytest.raises(error, match="deadline"), alarm(deadline):
            iob_sendall(sock, batch, callback)
        assert batch.error is not None
        assert batch.error.errno == errno.EIO
        assert iob_send(sock, batch) == IOB_ERROR
        sock.close()
        received = bytearray()
        while piece := peer.recv(1 << 20):
            received += piece
        assert received == content[: len(received)]
        assert len(received) >= batch.bytessent


def test_ctrl_c_leaves_a_batch_that_says_that_its_count_is_unknown() -> None:
    """The handler of Ctrl-C is written in C, and has no frame to be known by."""
    with stream_pair() as (sock, _):
        clog(sock)
        sock.setblocking(True)
        batch = IOBatch()
        batch.addbuf(b"waits")
        with pytest.raises(KeyboardInterrupt), alarm(signal.default_int_handler):
            iob_send(sock, batch)
        assert "unknown" in str(batch.error)
        assert batch.error is not IOBatch().error
        batch.reset()
        assert batch.error is None


def test_a_handler_that_returns_changes_nothing() -> None:
    """The call goes on where it was (PEP 475)."""
    content = data(3_000_000)
    with stream_pair() as (sock, peer), ThreadPoolExecutor(1) as pool:
        batch = IOBatch()
        batch.addbuf(content)
        readers = []

        def handler(_number: int, _frame: object) -> None:
            readers.append(pool.submit(receive, peer, len(content)))

        with alarm(handler):
            assert iob_sendall(sock, batch) == len(content)
        assert readers[0].result(PATIENCE) == content


@both_loops
@every_kind
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("hook", [None, partial(int)], ids=["no hook", "hook"])
@pytest.mark.parametrize("options", [{}, {"timeout": PATIENCE}], ids=["at once", "posted"])
async def test_a_handler_that_raises_in_a_write_never_leaves_a_writer_half_way(
    size: int,
    hook: Callable[[], object] | None,
    options: dict[str, Any],
    kind: type[Exception],
    make_file: MakeFile,
) -> None:
    """The writer is closed, as its page says, or nothing has happened and it goes on."""
    content = data(size)
    fd = make_file(content)
    closed = 0
    for point in count(1):
        with writer_pair() as (writer, peer):
            batch = IOBatch()
            batch.addbuf(b"header", on_release=hook)
            batch.addfile(fd)
            operations = []
            with (
                handler_that_raises(point, kind) as raised,
                suppress(*KINDS),
            ):
                operations.append(writer.write(batch, **options))
            try:
                operations.append(writer.write(batch_of(b"next")))
            except OSError:  # the writer is closed
                closed += 1
                assert raised
            else:
                operations.append(writer.write(batch))
                await operations[-1]
            writer.close()
            assert all(operation.done() for operation in operations)
            received = drain(peer)
            wanted = b"header" + content
            if received != wanted[: len(received)]:  # the first write was made, or the last one
                assert received in {wanted + b"next", b"next" + wanted}
        if not raised:
            break
    assert point > 10
    assert closed > 0


@both_loops
@every_kind
async def test_a_handler_that_raises_in_a_turn_ends_every_write(
    kind: type[Exception], make_file: MakeFile
) -> None:
    """What waits is aborted if it was not sent, and nothing is sent twice."""
    content = data(LARGE)
    fd = make_file(content)
    for point in count(1):
        with full_writer() as (writer, peer):
            first, second = IOBatch(), batch_of(b"second")
            first.addbuf(b"header")
            first.addfile(fd)
            operations = [writer.write(first), writer.write(second)]
            await peer.clear()
            with handler_that_raises(point, kind) as raised, suppress(kind):
                writer._sender.take_turn()  # the loop's own call would end the loop
            writer.close()
            assert all(operation.done() for operation in operations)
            received = drain(peer.sock)
            wanted = b"header" + content + b"second"
            assert received == wanted[: len(received)]
            assert operations[0].bytes_transferred <= len(received)
        if not raised:
            break
    assert point > 20


@both_loops
@every_kind
@pytest.mark.parametrize("end", ["cancel", "expire"])
async def test_a_handler_that_raises_while_a_write_ends_lets_nothing_follow_it(
    end: str, kind: type[Exception]
) -> None:
    """What is posted after a truncated body is never sent, wherever the end was interrupted."""
    content = data(1_000_000)
    for point in count(1):
        with writer_pair(buffers=4096) as (writer, peer):
            operation = writer.write(batch_of(content))
            after = writer.write(batch_of(b"after"))
            with handler_that_raises(point, kind) as raised, suppress(kind):
                if end == "cancel":
                    operation.cancel()
                else:
                    writer._sender.expire(operation._posted)
            if operation.done():
                assert after.done()
                assert after.bytes_transferred == 0
            writer.close()
            assert operation.done()
            assert after.done()
            with suppress(BlockingIOError):
                while piece := peer.recv(1 << 20):
                    assert b"after" not in piece
        if not raised:
            break
    assert point > 10


def test_a_handler_that_raises_while_a_long_batch_is_looked_at() -> None:
    """It is not taken for the interpreter's word that a queue was added to."""
    batch = IOBatch()
    for _ in range(5000):
        batch.addbuf(b"x" * 20)

    def interrupted(_queue: object, _count: int) -> Any:
        signal.raise_signal(signal.SIGALRM)

    def handler(_number: int, _frame: object) -> None:
        raise RuntimeError("from a handler")

    with stream_pair() as (sock, _), pytest.MonkeyPatch.context() as patch, alarm(handler):
        patch.setattr("iobatch._core.islice", interrupted)
        with pytest.raises(RuntimeError, match="from a handler"):
            iob_send(sock, batch)
    assert batch.bytesleft == 100_000
    assert batch.error is None


def raise_from_a_handler(*_args: object) -> Any:
    """Stand for a call at whose end a signal handler raises an OSError."""
    before = signal.signal(signal.SIGALRM, broken_handler)
    try:
        signal.raise_signal(signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)


def broken_handler(_number: int, _frame: object) -> None:
    raise BlockingIOError(errno.EAGAIN, "from a handler")


def test_a_handler_that_raises_while_a_file_is_probed(make_file: MakeFile) -> None:
    """Its exception is taken neither for a file that is not cached nor for one that is."""
    fd = make_file(data(LARGE))
    batch = IOBatch()
    batch.addfile(fd)
    probe = PageCacheProbe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iobatch._pagecache._preadv", raise_from_a_handler)
        patch.setattr("os.dup", raise_from_a_handler)
        for call in (
            lambda: probe.examine(core_of(batch), LARGE),
            lambda: probe.ready(core_of(batch), 100),
            probe.read_ahead,
        ):
            with pytest.raises(BlockingIOError, match="handler"):
                call()
    assert batch.bytesleft == LARGE


@both_loops
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
async def test_a_handler_that_raises_while_a_thread_is_started_leaves_no_descriptor(
    error: type[BaseException], make_file: MakeFile
) -> None:
    """The duplicate for the thread is closed, and the exception comes out."""

    def handler(_number: int, _frame: object) -> None:
        raise error("from a handler")

    def run_in_executor(*_args: object) -> Any:
        before = signal.signal(signal.SIGALRM, handler)
        try:
            signal.raise_signal(signal.SIGALRM)
        finally:
            signal.signal(signal.SIGALRM, before)

    fd = make_file(data(LARGE))
    batch = IOBatch()
    batch.addfile(fd)
    probe = PageCacheProbe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iobatch._pagecache._preadv", not_cached)
        assert probe.ready(core_of(batch), LARGE) == 0
    before = fd_count()
    loop: Any = SimpleNamespace(run_in_executor=run_in_executor)
    with pytest.raises(error, match="handler"):
        start_reading(loop, probe)
    assert fd_count() == before


def not_cached(*_args: object) -> int:
    raise BlockingIOError(errno.EAGAIN, "not in the cache")


@both_loops
async def test_a_handler_that_raises_while_the_loop_is_asked_to_watch_closes_the_writer() -> None:
    """Its exception is not taken for the loop's refusal."""
    with full_writer() as (writer, _):
        with pytest.MonkeyPatch.context() as patch:
            blind: Any = SimpleNamespace(add_writer=raise_from_a_handler)
            patch.setattr(writer._sender._watch, "loop", blind)
            with pytest.raises(BlockingIOError, match="handler"):
                writer.write(batch_of(b"abc"))
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"def"))


@both_loops
async def test_a_handler_that_raises_while_leftovers_are_drained_closes_the_writer() -> None:
    """Its exception is not taken for the filter's."""
    interrupted = False

    def callback(_sock: object, _view: memoryview) -> int:
        if interrupted:
            raise_from_a_handler()
        return IOB_AGAIN

    with writer_pair(through=Filter(Identity(), callback)) as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        interrupted = True
        operation.cancel()
        with pytest.raises(BlockingIOError, match="handler"):
            writer._sender.take_turn()
        with pytest.raises(OSError, match="closed"):
            writer.write(batch_of(b"def"))


class Identity:
    """A transform that returns what it takes."""

    def compress(self, data: Buffer, /) -> bytes:
        return bytes(data)

    def flush(self) -> bytes:
        return b""


@both_loops
async def test_what_a_handler_posts_while_a_write_fails_is_sent() -> None:
    """The write that failed leaves the queue, and the one that was posted meanwhile is next."""
    posted = []
    with scripted_writer(ConnectionResetError(errno.ECONNRESET, "reset")) as (writer, sock):
        send = sock.send

        def handled(*args: Any) -> int:
            if not posted:
                posted.append(writer.write(batch_of(b"posted")))
            return send(*args)

        sock.send = handled  # type: ignore[method-assign]
        operation = writer.write(batch_of(b"fails"))
        assert operation.status is WriteStatus.ERROR
        assert await posted[0] == 6
        assert sock.taken == b"posted"


ACTIONS = (
    "add bytes",
    "add a view with a hook",
    "add an empty hook",
    "add an empty view",
    "extend",
    "prepend",
    "send",
    "reset",
)


def act(action: str, batch: IOBatch, sock: socket.socket, hook: Callable[[], object]) -> bytes:
    """Do what a handler may; return what it has added."""

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
        return {
            "add bytes": b"bytes",
            "add a view with a hook": b"view",
            "extend": b"extended",
            "prepend": b"prepended",
        }.get(action, b"reset" if action == "reset" and left else b"")
    return b""


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
@pytest.mark.parametrize("action", ACTIONS)
def test_what_a_handler_does_to_a_batch_loses_nothing(
    action: str, step: Step, make_file: MakeFile
) -> None:
    """Whatever it does, and whenever: all bytes arrive once, and each hook runs once."""
    content = data(LARGE)
    fd = make_file(content)
    wanted = b"".join((b"one", b"view", content[:SMALL], b"two", content, b"three"))
    for point in count(1):
        with stream_pair(buffers=4096) as (sock, peer):
            sock.setblocking(False)
            peer.setblocking(False)
            hooks: list[str] = []
            added: list[bytes] = []
            batch = IOBatch()
            batch.addbuf(b"one", on_release=partial(hooks.append, "one"))
            batch.addbuf(bytearray(b"view"), on_release=partial(hooks.append, "view"))
            batch.addfile(fd, 0, SMALL)
            batch.addbuf(b"two")
            batch.addfile(fd)
            batch.addbuf(b"three", on_release=partial(hooks.append, "three"))
            doing = partial(act, action, batch, sock, partial(hooks.append, "handler"))
            with handler_at(point, lambda: added.append(doing())) as reached:  # noqa: B023
                received, _ = send(step, sock, peer, batch)
            assert batch.error is None
            check_invariants(batch)
            if added != [b"reset"]:
                extra = b"".join(added)
                if action == "prepend":
                    assert received.replace(extra, b"", 1) == wanted
                    assert len(received) == len(wanted + extra)
                else:
                    assert received == wanted + extra
            batch.reset()
            assert len(set(hooks)) == len(hooks)
            assert {"one", "view", "three"} <= set(hooks)
        if not reached:
            break
    assert point > 50


def test_what_is_added_empty_after_an_interruption_sends_nothing_twice() -> None:
    """An empty entry has nothing to be removed, and ends nothing that was left to be removed."""
    for point in count(1):
        with stream_pair() as (sock, peer):
            batch = IOBatch()
            batch.addbuf(b"A" * 3000)
            batch.addbuf(bytearray(b"B" * 2000))
            with handler_that_raises(point, ZeroDivisionError) as raised, suppress(*KINDS):
                iob_send(sock, batch, limit=3000)
            batch.addbuf(bytearray())
            if batch.error is None:
                while iob_send(sock, batch) > 0:
                    pass
                assert batch.bytesleft == 0
                assert receive(peer, 5000) == b"A" * 3000 + b"B" * 2000
        if not raised:
            break


@both_loops
async def test_a_writer_sends_nothing_twice_of_a_batch_that_was_interrupted() -> None:
    """What was accepted before is not a part of the write."""
    for point in count(1):
        with stream_pair() as (sock, other), writer_pair() as (writer, peer):
            batch = IOBatch()
            batch.addbuf(b"A" * 3000)
            batch.addbuf(b"B" * 2000)
            with handler_that_raises(point, ZeroDivisionError) as raised, suppress(*KINDS):
                iob_send(sock, batch, limit=3000)
            if batch.error is None:
                left = batch.bytesleft
                assert await writer.write(batch) == left
                wanted = (b"A" * 3000 + b"B" * 2000)[5000 - left :]
                assert await read(peer, left) == wanted
                assert writer.pending == 0
            other.close()
        if not raised:
            break


def test_hooks_are_never_nested() -> None:
    """A hook that prepends, or adds an empty entry with a hook, is over before the next runs."""
    order: list[str] = []
    batch = IOBatch()

    def hook(number: int) -> None:
        order.append(f"{number}(")
        batch.prepend(b"%d" % number)
        batch.addbuf(b"", on_release=lambda: order.append(f"empty {number}"))
        order.append(f"){number}")

    for number in range(300):
        batch.addbuf(b"x", on_release=partial(hook, number))
    with Scripted() as sock:
        assert iob_send(sock, batch) == 300
    assert [name for name in order if "(" in name] == [f"{number}(" for number in range(300)]
    for number in range(300):
        assert order[order.index(f"{number}(") + 1] == f"){number}"
    assert batch.bytesleft == sum(len(str(number)) for number in range(300))
    batch.reset()


@both_loops
@every_kind
@pytest.mark.parametrize("size", [SMALL, LARGE, 600_000])
async def test_a_handler_that_raises_in_send_to_stream_sends_nothing_twice(
    size: int, kind: type[Exception], make_file: MakeFile
) -> None:
    """Its exception comes out, and what the stream has taken is not written to it again."""
    content = data(size)
    fd = make_file(content)
    wanted = b"header" + content
    for point in count(1):
        async with stream() as (writer, peer):
            batch = batch_of(b"header")
            batch.addfile(fd)
            received = bytearray()

            async def arrive(peer: socket.socket = peer, received: bytearray = received) -> None:
                with suppress(ConnectionResetError):
                    while piece := await asyncio.get_running_loop().sock_recv(peer, 1 << 20):
                        received.extend(piece)

            arriving = asyncio.create_task(arrive())
            with handler_that_raises(point, kind) as raised, suppress(kind):
                await send_to_stream(writer, batch)
                assert not raised, "it comes out"
            if raised and batch.error is None and not writer.is_closing():
                await send_to_stream(writer, batch)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            await arriving
            assert bytes(received) == wanted[: len(received)]
        if not raised or point > 120:
            break
    assert point > 10


@both_loops
@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_what_a_handler_posts_while_a_write_is_examined_comes_after_or_before_it(
    size: int, make_file: MakeFile
) -> None:
    """Never in the middle of it."""
    content = data(size)
    fd = make_file(content)
    for point in count(1):
        with writer_pair() as (writer, peer):
            batch = batch_of(b"header")
            batch.addfile(fd)
            posted: list[WriteOperation] = []
            post = partial(writer.write, batch_of(b"posted"))
            with handler_at(point, lambda: posted.append(post())) as reached:  # noqa: B023
                operation = writer.write(batch)
            await operation
            received = await read(peer, 6 + size + 6 * len(posted))
            body = b"header" + content
            assert received in ({body + b"posted", b"posted" + body} if posted else {body})
        if not reached:
            break
    assert point > 10


@both_loops
async def test_a_handler_that_raises_while_a_stream_is_written_to_fails_the_batch() -> None:
    """What the transport took is unknown then; after a refusal of its own it is known."""

    def refuse(_data: object) -> None:
        raise RuntimeError("the transport is sending a file")

    async with stream() as (writer, _):
        for write, error, failed in (
            (refuse, RuntimeError, False),
            (raise_from_a_handler, BlockingIOError, True),
        ):
            batch = batch_of(b"header")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(writer, "write", write)
                with pytest.raises(error):
                    await send_to_stream(writer, batch)
            assert (batch.bytesleft, batch.error is not None) == (6, failed)

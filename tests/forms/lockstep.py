"""Both forms of the hot path in lockstep: the same random operations on each.

The first side is the library as it is installed, the second is a copy of it in pure Python. After
each operation both must have returned or raised the same, made the same system calls with the same
bytes and flags, run the same hooks, and hold the same entries and counts. Five differences are
allowed:

- The compiled form has its twin deal with a short read and with the end of a file, and the twin
  reads again. So after a short read no pread is compared, and no sendfile that returned 0 is.
- A limit that ends within an entry: one form may join what the other sends by sendmsg, since in the
  pure form the part before the limit is a view.
- Bytes that were read: the compiled form reads them to where they are joined with others, and so it
  joins more of them.
- What pushes held back bytes at the end of a call: the twin and the compiled form may both do so.
  It is compared whether bytes are still held back.
- The exception of a signal handler that leaves a send makes the count unknown in the pure form, and
  leaves it exact in the compiled form. Then the bytes taken and left are compared, as one stream,
  and the episode ends. It also ends after the exception of a handler during a read, which the two
  forms may reach at different times.

In a pure installation both sides are pure, and this tests the test.

    python -m tests.forms.lockstep STEPS [FIRST_EPISODE]

Each episode has its number as its seed. A failure prints it, with the operations up to there.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import socket
import ssl
import sys
import tempfile
import time
from array import array
from contextlib import ExitStack
from functools import partial
from itertools import repeat, zip_longest
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.batches import Borrowed, check_invariants, data
from tests.support.fakes import SYSTEM_CALLS, library_modules, patch_os, pure_copy
from tests.support.interruptions import drain
from tests.support.sockets import stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType, ModuleType

    Operation = Callable[["Side"], object]
    # A number of bytes to accept, an errno to fail with (negative), or what a handler does.
    Action = int | Operation

CONTENT = data(1 << 20)
STEPS_OF_EPISODE = 40
LIMITS = (16, 1536, 4096, 16384, 32768, 65536, 131072)
ERRORS = (
    errno.EAGAIN,
    errno.EAGAIN,
    errno.EAGAIN,
    errno.EPIPE,
    errno.ECONNRESET,
    errno.ENOBUFS,
    errno.EINVAL,
    errno.EINPROGRESS,
    errno.ETIMEDOUT,
)
# The descriptors of files that no system call sees. Their content repeats without end, except where
# noted.
GOOD = 100_000
ENDS = 100_001  # at ENDS_AT
SHORT = 100_002  # each read returns at most SHORT_READ bytes
BAD = 100_003  # reading byte BAD_AT fails
REFUSED = 100_004  # sendfile fails with EINVAL
FAKE_FILES = (GOOD, GOOD, GOOD, GOOD, ENDS, SHORT, BAD, REFUSED)
SENDS = ("send", "sendmsg", "send or sendmsg", "sendfile")
OPTIONS = ("getsockopt", "setsockopt")
ENDS_AT, SHORT_READ, BAD_AT = 50_000, 1000, 20_000


class Interruption(Exception):  # noqa: N818 # it is not an error
    """What a signal handler raises."""


def on_signal(_number: int, _frame: FrameType | None) -> None:
    raise Interruption


class Bytes(bytes):
    """Bytes of a class that the compiled form does not handle."""

    __slots__ = ()


def of_file(offset: int, count: int) -> bytes:
    start = offset % len(CONTENT)
    piece = CONTENT[start : start + count]
    while len(piece) < count:
        piece += CONTENT[: count - len(piece)]
    return piece


def outcome(operation: Operation, side: Side) -> object:
    """Return what an operation returns, or a description of what it raises."""
    try:
        return operation(side)
    except BaseException as exc:  # noqa: BLE001 # it is compared
        if isinstance(exc, Interruption):
            side.interrupted = True
        return describe_error(exc)


def describe_error(exc: BaseException | None) -> object:
    return exc and (type(exc).__name__, exc.args, vars(exc))


class Side:
    """One form: its functions, two batches, and what its system calls, callbacks and hooks do."""

    def __init__(self, modules: dict[str, ModuleType], sock: socket.socket) -> None:
        self.modules = modules
        self.lib: Any = modules["iobatch"]
        self.sock = sock
        self.log: list[Any] = []
        self.batches: list[Any] = []
        self.begin(tcp=True)

    def begin(self, *, tcp: bool) -> None:
        self.batches = [self.lib.IOBatch(), self.lib.IOBatch()]
        self.taken = bytearray()
        self.corked = 0
        self.tcp = tcp
        self.files: tuple[int, ...] = FAKE_FILES
        self.start_step(())

    def start_step(self, script: Iterable[Action], interrupted_read: int = 0) -> None:
        self.log.clear()
        self.script = iter(script)
        self.interrupted_read = interrupted_read
        self.reads_interrupted = interrupted_read > 0
        self.interrupted = self.short_read = False
        self.calls_left = 60  # huge ranges would never end
        self.limit_left = 0
        self.has_read = False  # whether it has read since the last send
        self.held_back = False  # whether the last bytes were sent with MSG_MORE and not pushed

    # System calls

    def accepts(self, offered: int) -> int:
        """Follow the script up to a call's result."""
        self.calls_left -= 1
        if self.calls_left < 0:
            raise OSError(errno.EAGAIN, "enough")
        for action in self.script:
            if not isinstance(action, int):
                action(self)  # a signal handler
            elif action < 0:
                raise OSError(-action, os.strerror(-action))
            else:
                return min(action, offered)
        return offered

    def take(self, name: str, pieces: Iterable[Any], flags: int = 0) -> int:
        held = [bytes(piece) for piece in pieces]
        offered = b"".join(held)
        has_read, self.has_read = self.has_read, False
        if has_read or len(offered) == self.limit_left:
            self.log.append(("send or sendmsg", len(offered), int(flags)))
        else:
            self.log.append((name, [len(piece) for piece in held], int(flags)))
        count = self.accepts(len(offered))
        self.limit_left -= count
        self.held_back = bool(flags & socket.MSG_MORE)
        self.log.append(offered[:count])
        self.taken += offered[:count]
        return count

    def sendfile(self, _out: int, fd: int, offset: int, count: int) -> int:
        if fd == ENDS:
            count = max(min(count, ENDS_AT - offset), 0)
            if not count:
                return 0
        self.log.append(("sendfile", fd, offset, count))
        if fd == REFUSED:
            raise OSError(errno.EINVAL, "refused")
        count = max(self.accepts(count), 1)  # 0 would be the end of the file
        self.limit_left -= count
        self.held_back = False
        self.log.append(count)
        if count <= len(CONTENT):
            self.taken += of_file(offset, count)
        return count

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        if self.interrupted_read:
            self.interrupted_read -= 1
            if not self.interrupted_read:
                signal.raise_signal(signal.SIGUSR1)
        got = count
        if fd == ENDS:
            got = max(min(count, ENDS_AT - offset), 0)
        elif fd == SHORT:
            got = min(count, SHORT_READ)
        elif fd == BAD and offset <= BAD_AT < offset + count:
            got = BAD_AT - offset
        self.short_read |= got < count
        self.log.append(("pread", fd, offset, count))
        self.has_read = True
        if fd == BAD and not got:
            raise OSError(errno.EIO, "bad")
        return of_file(offset, got)

    def getsockopt(self, level: int, option: int) -> int:
        self.log.append(("getsockopt", level, option))
        if (level == socket.IPPROTO_TCP) is not self.tcp:
            raise OSError(errno.EOPNOTSUPP, "no such option")
        return self.corked

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.log.append(("setsockopt", level, option, value))
        self.corked = value
        self.held_back = False

    # Results

    def batch_state(self, batch: Any) -> list[object]:
        core = batch._core
        return [
            batch.bytesleft,
            batch.bytessent,
            bool(batch),
            batch.wants,
            describe_error(batch.error),
            repr(batch),
            core.pinned,
            core.ranges,
            core.releasable,
            core.activity,
            core.release_pending,
            *map(describe_entry, core.queue),
        ]

    def state(self) -> list[object]:
        return [*map(self.batch_state, self.batches), self.corked, self.held_back]

    def calls(self, *, preads: bool) -> list[Any]:
        """Return the log without what may differ."""
        calls: list[Any] = []
        sends = False  # whether the next system call sends
        for call in reversed(self.log):
            name = call[0] if type(call) is tuple else None
            sends = name in SENDS or (sends and name in OPTIONS)
            if (preads or name != "pread") and (sends or name not in OPTIONS):
                calls.append(call)
        return calls[::-1]

    def stream(self) -> tuple[object, ...]:
        """Return the bytes taken and left, in whichever entries they are."""
        left = [(batch.bytessent + batch.bytesleft) for batch in self.batches]
        content = bytearray(self.taken)
        for batch in self.batches:
            for entry in batch._core.queue:
                if type(entry) is tuple:
                    content += of_file(entry[1], min(entry[2], len(CONTENT)))
                elif isinstance(entry, bytes | memoryview):
                    content += entry
        return left, (len(content) > len(CONTENT) or bytes(content))


def describe_entry(entry: Any) -> object:
    if type(entry) is bytes:
        return entry
    if type(entry) is memoryview:
        return ("view", bytes(entry))
    if type(entry) is tuple:
        fd, offset, count, file, refused = entry
        return (fd, offset, count, type(file), refused)
    return entry.closes


# The system calls of both sides. `active` is the one whose turn it is.

SYSTEM = SimpleNamespace(active=None)


def install(patch: pytest.MonkeyPatch, sides: tuple[Side, Side]) -> None:
    """Have the system calls of both sides follow their scripts."""
    real_close, real_write = os.close, os.write

    def close(fd: int) -> None:
        if fd < GOOD:
            return real_close(fd)
        SYSTEM.active.log.append(("close", fd))
        if fd == BAD:
            raise OSError(errno.EIO, "bad")
        return None

    def write(fd: int, piece: Any) -> int:
        if SYSTEM.active is None or fd != SYSTEM.active.sock.fileno():
            return real_write(fd, piece)
        return SYSTEM.active.take("write", (piece,))  # type: ignore[no-any-return]

    def writev(_fd: int, pieces: Iterable[Any]) -> int:
        return SYSTEM.active.take("writev", pieces)  # type: ignore[no-any-return]

    def pread(*args: int) -> bytes:
        return SYSTEM.active.pread(*args)  # type: ignore[no-any-return]

    def sendfile(*args: int) -> int:
        return SYSTEM.active.sendfile(*args)  # type: ignore[no-any-return]

    for fake in (close, write, writev, pread, sendfile):
        patch_os(patch, fake.__name__, fake, sides[1].modules.values())
    replace_method(patch, "send", send_by_script)
    replace_method(patch, "sendmsg", sendmsg_by_script)
    replace_method(patch, "getsockopt", Side.getsockopt)
    replace_method(patch, "setsockopt", Side.setsockopt)
    patch.setattr(SYSTEM_CALLS, "send", partial(call_active, send_by_script))
    patch.setattr(SYSTEM_CALLS, "sendmsg", partial(call_active, sendmsg_by_script))
    patch.setattr(
        sys,
        "unraisablehook",
        lambda args: SYSTEM.active.log.append(("unraisable", describe_error(args.exc_value))),
    )


def replace_method(patch: pytest.MonkeyPatch, name: str, fake: Callable[..., Any]) -> None:
    """Replace a method of all sockets, for the socket of the side whose turn it is."""
    real = getattr(socket.socket, name)

    def call(sock: socket.socket, *args: Any) -> Any:
        if SYSTEM.active is None or sock is not SYSTEM.active.sock:
            return real(sock, *args)
        return fake(SYSTEM.active, *args)

    patch.setattr(socket.socket, name, call)


def send_by_script(side: Side, piece: Any, flags: int = 0) -> int:
    return side.take("send", (piece,), flags)


def sendmsg_by_script(side: Side, pieces: Any, *rest: Any) -> int:
    """Do as socket.sendmsg, whose flags follow the ancillary data, or as the compiled form."""
    flags = rest[1] if len(rest) > 1 else rest[0] if rest else 0
    return side.take("sendmsg", pieces, flags)


def call_active(take: Callable[..., int], _fd: int, *args: Any) -> int:
    return take(SYSTEM.active, *args)


class Draw:
    """Random operations. What is drawn is the same for both sides."""

    def __init__(self, seed: int, *, scripted: bool) -> None:
        self.rng = random.Random(seed)
        self.scripted = scripted
        self.hooks = 0

    def chance(self, percent: int) -> bool:
        return self.rng.random() * 100 < percent

    def size(self) -> int:
        rng = self.rng
        kind = rng.randrange(10)
        if kind < 5:
            return rng.randrange(40)
        if kind < 7:
            return rng.randrange(3000)
        if kind < 9:
            return rng.choice(LIMITS) + rng.randrange(-1, 2)
        return rng.randrange(70_000)

    def piece(self, size: int | None = None) -> bytes:
        size = self.size() if size is None else size
        start = self.rng.randrange(len(CONTENT) - size)
        return CONTENT[start : start + size]

    def buffer(self) -> Callable[[], Any]:
        """Return a function that makes a buffer, for each side its own."""
        piece = self.piece()
        kind = self.rng.randrange(30)
        if kind < 18:
            return lambda: piece
        if kind < 22:
            return lambda: bytearray(piece)
        if kind < 25:
            return lambda: memoryview(piece)
        if kind == 25:
            return lambda: Bytes(piece)
        if kind == 26:
            return lambda: memoryview(piece)[::2]  # not contiguous, unless it is short
        if kind == 27:
            return lambda: array("I", piece[: len(piece) // 4 * 4])
        if kind == 28:
            return lambda: "not a buffer"

        def mapped() -> mmap.mmap:
            memory = mmap.mmap(-1, len(piece) + 1)
            memory[:-1] = piece
            return memory

        return mapped

    def batch(self) -> Operation:
        index = int(self.chance(15))
        return lambda side: side.batches[index]

    def hook(self) -> Callable[[Side], Any]:
        """Return a function that makes a hook, or None."""
        if not self.chance(20):
            return lambda _side: None
        self.hooks += 1
        number = self.hooks
        actions = [self.action_of_hook() for _ in range(self.rng.randrange(3))]
        raised = self.rng.choice([None] * 16 + [ZeroDivisionError, OSError, KeyboardInterrupt])
        if self.chance(2):
            return lambda _side: "not callable"

        def make(side: Side) -> Callable[[], None]:
            def hook() -> None:
                side.log.append(("hook", number, side.batches[0].bytessent))
                for action in actions:
                    side.log.append(outcome(action, side))
                if raised is not None:
                    raise raised(number)

            return hook

        return make

    def action_of_hook(self) -> Operation:
        """Return what a hook, callback or handler does to the batches."""
        batch, piece = self.batch(), self.piece()
        kind = self.rng.randrange(8)
        if kind < 3:
            return lambda side: batch(side).addbuf(piece)
        if kind == 3:
            hook = self.hook() if self.chance(50) else (lambda _side: None)
            return lambda side: batch(side).addbuf(piece, on_release=hook(side))
        if kind == 4:
            return lambda side: batch(side).prepend(piece)
        if kind == 5:
            return lambda side: side.lib.iob_send(side.sock, batch(side))
        if kind == 6:
            return lambda side: batch(side).reset()
        return lambda side: side.batches[0].extend(side.batches[1])

    def script(self) -> list[Action]:
        """Return the results of the next system calls."""
        rng = self.rng
        script: list[Action] = []
        if self.chance(30):
            return script
        for _ in range(rng.randrange(5)):
            kind = rng.randrange(10)
            if kind < 5:
                script.append(self.size())
            elif kind < 8:
                script.append(-rng.choice(ERRORS))
            elif kind == 8:
                script.append(self.handler())
            elif self.chance(20):
                script.append(interrupt)
        return script

    def handler(self) -> Operation:
        action = self.action_of_hook()
        return lambda side: side.log.append(outcome(action, side))

    # Operations

    def operation(self, *, crowded: bool) -> tuple[str, Operation]:
        if crowded and self.chance(60):
            name = self.rng.choice(["reset", "drain"])
        else:
            [name] = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
        made: Operation = getattr(self, f"draw_{name}")()
        return name, made

    def draw_addbuf(self) -> Operation:
        batch, buffer, hook = self.batch(), self.buffer(), self.hook()
        return lambda side: batch(side).addbuf(buffer(), on_release=hook(side))

    def draw_add_many(self) -> Operation:
        batch = self.batch()
        pieces = [self.piece(self.rng.randrange(1, 300)) for _ in range(self.rng.randrange(40))]

        def add(side: Side) -> None:
            for piece in pieces:
                batch(side).addbuf(piece)

        return add

    def draw_addbufs(self) -> Operation:
        batch, rng = self.batch(), self.rng
        if self.chance(8):
            # Their total stays above JOIN_LIMIT, up to which draw_send_short_entries() goes.
            buffers = [partial(bytes, self.piece(rng.choice((17, 18, 1536, 1537))))]
            buffers *= rng.choice((1000, 1023, 1024, 1025, 1100))
        elif self.chance(30):
            buffers = [self.buffer() for _ in range(rng.randrange(30))]
        else:
            pieces = [self.piece() for _ in range(rng.randrange(12))]
            buffers = [partial(bytes, piece) for piece in pieces]
        kind = rng.choice([list, list, tuple, iter, lambda _buffers: 5])
        return lambda side: batch(side).addbufs(kind([buffer() for buffer in buffers]))

    def draw_adds(self) -> Operation:
        batch = self.batch()
        text = self.rng.choice(["", "text", "\xfc" * 30, "\ud800", 5, b"bytes"])
        encoding = self.rng.choice(["utf-8", "utf-8", "latin-1", "unknown"])
        return lambda side: batch(side).adds(text, encoding)

    def offset_and_count(self) -> tuple[Any, Any]:
        rng = self.rng
        count: Any = self.size()
        if self.scripted and self.chance(5):
            count = rng.choice([2**31, 2**40, 2**62, 2**63 - 1, 2**63, -1, True, 2.0, "1"])
        offset: Any = rng.randrange(60_000)
        if self.scripted and self.chance(5):
            offset = rng.choice([2**40, 2**62, 2**63 - 1, 2**63, -1, True, "1"])
        return offset, count

    def draw_addfile(self) -> Operation:
        batch, hook = self.batch(), self.hook()
        offset, count = self.offset_and_count()
        which = self.rng.randrange(8)
        kind: Any = int
        if self.chance(20):
            kind = self.rng.choice(
                [Borrowed, str, float, lambda fd: -fd, lambda fd: fd << 20, bool]
            )
            if not self.scripted:
                kind = Borrowed

        def add(side: Side) -> None:
            file = kind(side.files[which])
            batch(side).addfile(file, offset, count, on_release=hook(side))

        return add

    def draw_addfile_close(self) -> Operation:
        batch, which = self.batch(), self.rng.randrange(8)
        offset, count = self.offset_and_count()
        return lambda side: batch(side).addfile_close(side.files[which], offset, count)

    def draw_prepend(self) -> Operation:
        batch, buffer, hook = self.batch(), self.buffer(), self.hook()
        return lambda side: batch(side).prepend(buffer(), on_release=hook(side))

    def draw_extend(self) -> Operation:
        to, other = self.rng.choice([(0, 1), (0, 1), (0, 1), (1, 0), (0, 0)])
        return lambda side: side.batches[to].extend(side.batches[other])

    def draw_reset(self) -> Operation:
        batch = self.batch()
        return lambda side: batch(side).reset()

    def draw_new(self) -> Operation:
        """Drop a batch, entries and all."""
        index = self.rng.randrange(2)
        return lambda side: side.batches.__setitem__(index, side.lib.IOBatch())

    def draw_raise_for_error(self) -> Operation:
        batch = self.batch()
        return lambda side: batch(side).raise_for_error()

    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        rng = self.rng
        if self.chance(40):
            options["limit"] = rng.choice([None, self.size(), self.size(), 1, True, 2**21])
            if self.chance(5):
                options["limit"] = rng.choice([0, -1, 1.5, "1", 2**63, 2**70])
        return options

    def draw_send(self) -> Operation:
        batch, options = self.batch(), self.options()
        if self.scripted and self.chance(10):
            options["flags"] = self.rng.choice([0, socket.MSG_MORE, socket.MSG_DONTROUTE, 2**40])
        if self.chance(5):
            wrong: Any = self.rng.choice([None, "socket", -1, 1.5])
            return lambda side: side.lib.iob_send(wrong, batch(side), **options)
        if self.chance(2):
            return lambda side: side.lib.iob_send(side.sock, side, **options)
        target: Callable[[Side], Any] = lambda side: side.sock  # noqa: E731
        if self.chance(10):
            target = self.rng.choice(
                [
                    lambda side: side.sock.fileno(),
                    lambda side: Borrowed(side.sock.fileno()),
                ]
            )

        def send(side: Side) -> int:
            side.limit_left = limit_of(options)
            return side.lib.iob_send(target(side), batch(side), **options)  # type: ignore[no-any-return]

        return send

    def draw_send_short_entries(self) -> Operation:
        """Send more entries than one sendmsg takes, which are all joined."""
        entries = [self.piece(1)] * self.rng.choice((1000, 1023, 1024, 1025, 16383, 16384))

        def send(side: Side) -> list[object]:
            batch = side.lib.IOBatch()
            batch.addbufs(entries)
            return [side.lib.iob_send(side.sock, batch), side.batch_state(batch)]

        return send

    def draw_drain(self) -> Operation:
        options = self.options()

        def drain(side: Side) -> list[int]:
            results = []
            for _ in range(8):
                side.limit_left = limit_of(options)
                results.append(side.lib.iob_send(side.sock, side.batches[0], **options))
                side.log.append("returned")
                if results[-1] <= 0:
                    break
            return results

        return drain

    def draw_sendmsg(self) -> Operation:
        batch = self.batch()
        return lambda side: side.lib.iob_sendmsg(side.sock, batch(side))

    def draw_write(self) -> Operation:
        batch, options, rng = self.batch(), self.options(), self.rng
        results: list[Any] = [
            *repeat("all", 6),
            *repeat("half", 2),
            *(1, 16384, -1, -1, None, 0, -3, -2, "too many", 1.5, True),
            *(ssl.SSLWantReadError, ssl.SSLWantWriteError, TimeoutError, BlockingIOError),
            *(ValueError, KeyboardInterrupt, RecursionError, MemoryError, "taken"),
            *(partial(OSError, code, "callback") for code in ERRORS),
            *([interrupt] if self.scripted else ()),
        ]
        plan = [
            (self.handler() if self.chance(15) else None, rng.choice(results))
            for _ in range(rng.randrange(4))
        ]

        def write(side: Side) -> int:
            steps = iter(plan)

            def callback(sock: Any, view: memoryview) -> Any:
                assert sock is side.sock
                assert view.readonly
                side.log.append(("offer", bytes(view)))
                side.calls_left -= 1
                action, result = next(steps, (None, "all" if side.calls_left > 0 else None))
                if action:
                    action(side)
                taken = callback_result(side, result, len(view))
                if type(taken) is int and 0 < taken <= len(view):
                    side.taken += view[:taken]
                return taken

            return side.lib.iob_write(side.sock, batch(side), callback, **options)  # type: ignore[no-any-return]

        return write


def limit_of(options: dict[str, Any]) -> int:
    """Return the limit of a call, 0 if none is given or if it is wrong."""
    limit = options.get("limit")
    return limit if isinstance(limit, int) else 0


def callback_result(side: Side, result: Any, offered: int) -> Any:
    """Return or raise what a callback was drawn to."""
    if result is interrupt:
        return interrupt(side)
    if result == "taken":
        raise BlockingIOError(errno.EAGAIN, "some were taken", 1)
    if callable(result):
        raise result()
    return {"all": offered, "half": -(-offered // 2), "too many": offered + 1}.get(result, result)


def interrupt(_side: Side) -> None:
    """Have a signal handler raise an exception."""
    signal.raise_signal(signal.SIGUSR1)


WEIGHTS = {
    "addbuf": 24,
    "add_many": 6,
    "addbufs": 10,
    "adds": 2,
    "addfile": 16,
    "addfile_close": 4,
    "prepend": 3,
    "extend": 3,
    "reset": 1,
    "new": 1,
    "raise_for_error": 1,
    "send": 24,
    "send_short_entries": 0.5,
    "drain": 10,
    "sendmsg": 3,
    "write": 10,
}


def run_episode(sides: tuple[Side, Side], seed: int) -> int:
    """Run random operations over scripted system calls; return how many ran."""
    draw = Draw(seed, scripted=True)
    names: list[str] = []
    sigpipe = signal.SIG_DFL if draw.chance(5) else signal.SIG_IGN
    timeout = draw.rng.choice([None, 0, 0, 0, 5])
    tcp = draw.chance(70)
    handlers = {
        number: signal.signal(number, handler)
        for number, handler in ((signal.SIGPIPE, sigpipe), (signal.SIGUSR1, on_signal))
    }
    try:
        for side in sides:
            SYSTEM.active = side
            side.sock.settimeout(timeout)
            side.begin(tcp=tcp)
        for _ in range(STEPS_OF_EPISODE):
            state = sides[0].batches
            crowded = any(
                len(batch._core.queue) > 1500 or batch.bytesleft > len(CONTENT) for batch in state
            )
            name, operation = draw.operation(crowded=crowded)
            names.append(name)
            script = draw.script()
            interrupted_read = draw.rng.randrange(1, 4) if draw.chance(2) else 0
            corked = int(draw.chance(10))
            results = []
            for side in sides:
                SYSTEM.active = side
                side.corked = corked
                side.start_step(script, interrupted_read)
                results.append(outcome(operation, side))
            if not compare(sides, results, f"episode {seed}: {names}"):
                break
        # What the batches still hold is released in the same order.
        for side in sides:
            SYSTEM.active = side
            interrupted = side.interrupted
            side.start_step(())
            side.interrupted = interrupted
            while side.batches:
                outcome(lambda side: side.batches.pop().reset(), side)
        if not any(side.interrupted for side in sides):
            compare_lists(*(side.calls(preads=False) for side in sides), f"end of episode {seed}")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return len(names)


def run_real_episode(modules: Iterable[dict[str, ModuleType]], fd: int, seed: int) -> int:
    """Run random operations over real sockets with small buffers; return how many ran."""
    draw = Draw(seed, scripted=False)
    names: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(
            sys, "unraisablehook", lambda args: None
        )
        sides, peers = [], []
        for each in modules:
            # On TCP the time of an acknowledgement could decide how many bytes a call takes.
            sock, peer = stack.enter_context(stream_pair("unix", buffers=4096))
            sock.setblocking(False)
            peer.setblocking(False)
            sides.append(Side(each, sock))
            sides[-1].files = (fd,) * len(FAKE_FILES)
            peers.append(peer)
        for _ in range(STEPS_OF_EPISODE):
            crowded = any(batch.bytesleft > len(CONTENT) for batch in sides[0].batches)
            name, operation = draw.operation(crowded=crowded)
            if name == "addfile_close":  # its descriptors have different numbers
                continue
            names.append(name)
            results, received = [], []
            for side, peer in zip(sides, peers, strict=True):
                side.start_step(())
                results.append(outcome(operation, side))
                received.append(drain(peer))
            assert received[0] == received[1], f"real episode {seed}: {names}"
            compare((sides[0], sides[1]), results, f"real episode {seed}: {names}")
        for side in sides:
            while side.batches:
                outcome(lambda side: side.batches.pop().reset(), side)
    return len(names)


def run_real(steps: int, first_episode: int = 0) -> tuple[int, int]:
    """Do as run_scripted() over real sockets."""
    modules = library_modules(), pure_copy()
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(CONTENT[:150_000])
        done, episode = 0, first_episode
        while done < steps:
            done += run_real_episode(modules, file.fileno(), episode)
            episode += 1
    return done, episode - first_episode


def compare_lists(first: list[Any], second: list[Any], where: str) -> None:
    if first != second:
        pairs = zip_longest(first, second, fillvalue="none")
        one, other = next(pair for pair in pairs if pair[0] != pair[1])
        raise AssertionError(f"{where}\n{one!r:.2000}\n{other!r:.2000}")


def compare(sides: tuple[Side, Side], results: list[object], where: str) -> bool:
    """Assert that both sides are equal; return whether the episode can go on."""
    first, second = sides
    if first.interrupted or second.interrupted:
        if not first.reads_interrupted:
            assert first.interrupted is second.interrupted, where
            assert first.stream() == second.stream(), where
        return False
    preads = not (first.short_read or second.short_read)
    compare_lists(results[:1], results[1:], where)
    compare_lists(first.calls(preads=preads), second.calls(preads=preads), where)
    compare_lists(first.state(), second.state(), where)
    assert first.taken == second.taken, where
    for batch in first.batches:
        if not batch._core.release_pending:
            check_invariants(batch)
    return True


def run_scripted(steps: int, first_episode: int = 0) -> tuple[int, int]:
    """Run this number of steps or a few more; return how many, and how many episodes."""
    with pytest.MonkeyPatch.context() as patch, socket.socket() as one, socket.socket() as other:
        sides = Side(library_modules(), one), Side(pure_copy(), other)
        install(patch, sides)
        try:
            done, episode = 0, first_episode
            while done < steps:
                done += run_episode(sides, episode)
                episode += 1
        finally:
            SYSTEM.active = None
    return done, episode - first_episode


def main() -> None:
    steps, first, *_ = (*map(int, sys.argv[1:]), 0)
    for run in (run_scripted, run_real):
        start = time.monotonic()
        done, episodes = run(steps, first)
        took = time.monotonic() - start
        print(f"{run.__name__}: {done} steps in {episodes} episodes, {took:.0f} s: no difference")


if __name__ == "__main__":
    main()

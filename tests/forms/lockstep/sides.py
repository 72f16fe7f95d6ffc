"""One form of the library, and what its system calls do."""

from __future__ import annotations

import errno
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

from tests.support.batches import data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType, ModuleType

    Operation = Callable[["Side"], object]
    # A number of bytes to accept, an errno to fail with (negative), or what a handler does.
    Action = int | Operation

CONTENT = data(1 << 20)
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


def interrupt(_side: Side) -> None:
    """Have a signal handler raise an exception."""
    signal.raise_signal(signal.SIGUSR1)


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

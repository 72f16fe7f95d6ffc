"""Random operations, the same for both sides."""

from __future__ import annotations

import errno
import socket
import ssl
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

from tests.forms.lockstep.sides import interrupt
from tests.forms.lockstep.values import ERRORS, Values
from tests.support.batches import Borrowed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.forms.lockstep.sides import Operation, Side

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


class Draw(Values):
    """Draws operations."""

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

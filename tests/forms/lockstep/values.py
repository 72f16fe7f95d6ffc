"""Random buffers, hooks and scripts, the same for both sides."""

from __future__ import annotations

import errno
import mmap
import random
from array import array
from typing import TYPE_CHECKING, Any

from tests.forms.lockstep.sides import CONTENT, interrupt, outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.forms.lockstep.sides import Action, Operation, Side

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


class Bytes(bytes):
    """Bytes of a class that the compiled form does not handle."""

    __slots__ = ()


class Values:
    """Draws what operations are made of."""

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

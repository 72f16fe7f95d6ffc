"""A batch as plain bytes: what it must hold, send and release."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from attrs import Factory, define

from tests.support.fakes import patch_os

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


@define
class Piece:
    """An entry of a batch."""

    content: bytes
    missing: int = 0  # the bytes of its range that its file doesn't have, after `content`
    release: str = ""  # the name of its hook or of its owned file

    @property
    def size(self) -> int:
        return len(self.content) + self.missing


@define
class PlainBatch:
    """The entries of a batch."""

    pieces: list[Piece] = Factory(list)
    sent: int = 0  # since creation or reset()

    @property
    def left(self) -> int:
        return sum(piece.size for piece in self.pieces)

    @property
    def truncated(self) -> int:
        """The number of missing bytes if the file of the first entry has ended, else 0."""
        head = self.pieces[0] if self.pieces else Piece(b"")
        return 0 if head.content else head.missing

    def starts_with(self, content: bytes) -> bool:
        for piece in self.pieces:
            part = content[: len(piece.content)]
            if not piece.content.startswith(part):
                return False
            content = content[len(part) :]
            if not content or piece.missing:
                break
        return not content

    def append(self, piece: Piece) -> None:
        if piece.size:
            self.pieces.append(piece)

    def take(self, nbytes: int) -> tuple[bytes, list[str]]:
        """Remove the first nbytes; return them, and what is released with them."""
        taken = bytearray()
        released = []
        while nbytes > len(taken):
            head = self.pieces[0]
            assert head.content, "bytes were sent that the batch doesn't have"
            part = head.content[: nbytes - len(taken)]
            taken += part
            head.content = head.content[len(part) :]
            if not head.size:
                released.append(self.pieces.pop(0).release)
        self.sent += nbytes
        return bytes(taken), [name for name in released if name]

    def clear(self) -> list[str]:
        """Remove all entries, as reset(); return what is released."""
        released = [piece.release for piece in self.pieces if piece.release]
        self.pieces = []
        self.sent = 0
        return released


# Owned files get descriptors from this one on, each number once in an example. So a second close
# fails, and closes no other file.
FIRST_OWNED = 500


class Releases:
    """The hooks and owned files that were given to batches, and those that were released."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ended = False  # a hook that runs after its example does nothing
        self.made: list[str] = []
        self.log: list[str] = []
        self.violations: list[str] = []  # what went wrong where the library catches exceptions
        # What must be released, in this order; hooks of empty entries are only in `made`.
        self.expected: list[str] = []
        self._owned: dict[int, str] = {}
        self._close = os.close
        patch_os(patch, "close", self._close_and_log)

    def hook(self, action: Callable[[], object] = int) -> tuple[str, Callable[[], object]]:
        """Return a name, and a hook that logs it and then runs an action."""
        name = self._name("hook")

        def run() -> None:
            if not self.ended and self._release(name):
                action()

        return name, run

    def own(self, fd: int) -> tuple[str, int]:
        """Return a name, and a duplicate of a descriptor whose close is logged."""
        name = self._name("file")
        owned = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_OWNED + len(self._owned))
        self._owned[owned] = name
        return name, owned

    def _name(self, kind: str) -> str:
        self.made.append(f"{kind} {len(self.made)}")
        return self.made[-1]

    def _close_and_log(self, fd: int) -> None:
        if fd in self._owned:
            self._release(self._owned[fd])
        self._close(fd)

    def _release(self, name: str) -> bool:
        """Log a release; return whether it is the first one of this name."""
        first = name not in self.log
        self.log.append(name)
        if not first:
            self.violations.append(f"{name} was released twice")
        return first

    def check(self, *, settled: bool) -> None:
        """Check the order of what was released.

        Args:
            settled: all that is due has been released; not so if an exception stopped the releases.

        """
        assert not self.violations, self.violations[0]
        in_order = set(self.expected)
        log = [name for name in self.log if name in in_order]
        assert log == (self.expected if settled else self.expected[: len(log)])

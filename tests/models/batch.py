"""A batch, its plain twin, and what hooks, signal handlers and finalizers do to both."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_ERROR, IOBatch, iob_send
from tests.models.plain import Piece, PlainBatch, Releases
from tests.models.wires import Wire
from tests.support.batches import data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FILE_SIZE = 200_000
CONTENT = data(FILE_SIZE, seed=-1)
# What a hook, a signal handler or a finalizer does to the batch whose call it interrupts.
ACTIONS = (
    "add bytes",
    "add a view with a hook",
    "add an empty entry with a hook",
    "prepend",
    "extend",
    "move away and back",
    "send",
    "reset",
    "prefetch",
)
# What only a hook does.
RAISING_ACTIONS = ("raise", "interrupt", "signal that raises")


class Interruption(Exception):  # noqa: N818 # no error: it stands for a handler's timeout
    """What a signal handler raises."""


class Finalized:
    """An object whose owner is garbage; what its finalizer does runs at some allocation."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action
        self.cycle = self

    def __del__(self) -> None:
        self.action()


class BatchModel:
    """A batch and a wire, and what they must hold."""

    def __init__(self, wire: str) -> None:
        self.patch = pytest.MonkeyPatch()
        self.wire = Wire(wire, self.patch)
        self.releases = Releases(self.patch)
        self.batch = IOBatch()
        self.plain = PlainBatch()
        self.stream = bytearray()  # what the wire has accepted
        self.seed = 0
        self.calls = 0  # the calls on the batch that are in progress
        self.wanted_read = False  # a callback of the last call did
        self.only_adds = False  # for the hooks of a batch that is not the model's any more
        self.stopped = False  # whether an exception has left an action, which may be incomplete
        self.acting = 0  # the actions that are running
        self.inner = 0  # the bytes that were sent by actions within a call
        self.acted: list[str] = []
        self.unraisable: list[type[BaseException]] = []  # a traceback would hold the batch
        self.hook_errors = 0
        self.handler_action: Callable[[], object] = int
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 # close() closes it
        self.file.write(CONTENT)
        self.patch.setattr(sys, "unraisablehook", self._on_unraisable)
        self._handler = signal.signal(signal.SIGUSR1, self._on_signal)

    def close(self) -> None:
        """Drop what the batch holds. Hooks do nothing from here on, whenever they run."""
        self.releases.ended = True
        with ExitStack() as stack:
            stack.callback(self.file.close)
            stack.callback(self.wire.close)
            stack.callback(self.patch.undo)
            stack.callback(signal.signal, signal.SIGUSR1, self._handler)
            self.batch.reset()

    def _on_unraisable(self, args: Any) -> None:
        self.unraisable.append(args.exc_type)
        if issubclass(args.exc_type, AssertionError):  # of a hook or a finalizer
            self.releases.violations.append("".join(traceback.format_exception(args.exc_value)))

    def piece(self, size: int) -> bytes:
        self.seed += 1
        return data(size, self.seed)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Have actions know that a call on the batch is in progress."""
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1

    def sync(self) -> int:
        """Move the bytes that the wire has accepted meanwhile; return their number."""
        nbytes = self.wire.accepted - len(self.stream)
        taken, released = self.plain.take(nbytes)
        self.stream += taken
        self.releases.expected += released
        return nbytes

    def reset(self, batch: IOBatch | None = None) -> None:
        """Reset the batch and its twin. What hooks add meanwhile stays in both."""
        self.sync()
        plain = self.plain
        self.plain = PlainBatch()
        try:
            (self.batch if batch is None else batch).reset()
        except RuntimeError:
            self.plain = plain
            raise
        finally:
            if self.plain is not plain:
                self.releases.expected += plain.clear()

    # What hooks, handlers and finalizers do

    def act(self, action: str) -> None:
        """Run an action. The batch may refuse it only while a call on it is in progress."""
        if self.releases.ended:
            return
        self.sync()
        if self.only_adds and action in {"send", "reset"}:
            return
        self.acted.append(action)
        actions: dict[str, Callable[[], object]] = {
            "add bytes": lambda: self.add(9),
            "add a view with a hook": lambda: self.add(7, bytearray, hook=self.releases.hook()),
            "add an empty entry with a hook": lambda: self.add(0, hook=self.releases.hook()),
            "prepend": lambda: self.prepend(5),
            "extend": lambda: self.extend(4),
            "move away and back": self.move_away_and_back,
            "send": self.send_inside,
            "reset": self.reset,
            "prefetch": lambda: self.batch.prefetch(100),
        }
        self.acting += 1
        try:
            actions[action]()
        except RuntimeError:
            assert self.calls, action
            assert action in {"prepend", "move away and back", "send", "reset"}
        except BaseException:  # of another hook; a finalizer would lose it
            self.stopped = True
            raise
        finally:
            self.acting -= 1

    def act_between(self, action: str) -> None:
        """Run an action, unless another one is half done: the order of the two is then unknown."""
        if not self.acting:
            self.act(action)

    def hook(self, action: str | None) -> tuple[str, Callable[[], object]]:
        """Return a hook that runs an action, or only logs."""
        if action is None:
            return self.releases.hook()
        if action == "raise":
            return self.releases.hook(self._raise_from_hook)
        if action == "interrupt":
            return self.releases.hook(self._interrupt)
        if action.startswith("signal"):
            return self.releases.hook(partial(self.signal, raises=action.endswith("raises")))
        return self.releases.hook(partial(self.act, action))

    def _raise_from_hook(self) -> None:
        self.hook_errors += 1
        raise OSError("from a hook")

    def _interrupt(self) -> None:
        self.acted.append("interrupt")
        raise KeyboardInterrupt

    def signal(self, *, raises: bool) -> None:
        self.handler_action = self.interrupt if raises else partial(self.act, "add bytes")
        os.kill(os.getpid(), signal.SIGUSR1)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self.handler_action()

    def interrupt(self) -> None:
        self.acted.append("signal that raises")
        raise Interruption

    def finalize_inside(self, action: str) -> None:
        """Make garbage whose finalizer runs an action."""
        Finalized(partial(self.act_between, action))

    def send_inside(self) -> None:
        before = self.wire.accepted
        try:
            code = iob_send(self.wire.sock, self.batch)
            assert code == IOB_ERROR or self.wire.accepted - before == max(code, 0)
        finally:
            self.inner += self.wire.accepted - before
            self.sync()

    # Adding

    def add(self, size: int, kind: Any = bytes, hook: Any = ("", None)) -> None:
        content = self.piece(size)
        name, on_release = hook
        self.batch.addbuf(kind(content), on_release=on_release)
        self.plain.append(Piece(content, release=name))

    def prepend(self, size: int, hook: Any = ("", None)) -> None:
        content = self.piece(size)
        name, on_release = hook
        self.batch.prepend(bytearray(content), on_release=on_release)
        if content:
            self.plain.pieces.insert(0, Piece(content, release=name))

    def extend(self, size: int) -> None:
        other = IOBatch()
        content = self.piece(size)
        name, on_release = self.releases.hook()
        other.addbuf(content, on_release=on_release)
        other.addfile(self.file.fileno(), 10, size)
        self.batch.extend(other)
        assert (other.bytesleft, bool(other)) == (0, False)
        self.plain.append(Piece(content, release=name))
        self.plain.append(Piece(CONTENT[10 : 10 + size]))

    def move_away_and_back(self) -> None:
        other = IOBatch()
        other.extend(self.batch)
        self.batch.extend(other)

"""The part of the batch's machine that adds to it, moves it, and ends it."""

from __future__ import annotations

import gc
import warnings
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from iobatch import IOBatch
from tests.models.batch import (
    ACTIONS,
    CONTENT,
    FILE_SIZE,
    RAISING_ACTIONS,
    BatchModel,
    Interruption,
)
from tests.models.machine import Machine, step
from tests.models.plain import Piece, PlainBatch
from tests.models.wires import WIRES
from tests.support.batches import check_invariants
from tests.support.forms import copy_limit
from tests.support.sockets import fd_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZES = st.one_of(st.integers(0, 40), st.integers(0, 40), st.integers(0, 70_000))
HOOKS = st.one_of(
    st.just("no hook"),
    st.none(),
    st.sampled_from(RAISING_ACTIONS),
    st.sampled_from(["signal that acts", *ACTIONS]),
)


class AddingMachine(Machine):
    """A batch on one of three wires."""

    @initialize(wire=st.sampled_from(WIRES), copied=st.sampled_from([None, 16, 1000]))
    def start(self, wire: str, copied: int | None) -> None:
        """Make a batch; a file range longer than `copied` goes by sendfile."""
        self.before = fd_count()
        self.stack = ExitStack()
        if copied is not None:
            self.stack.enter_context(copy_limit(copied))
        self.model = BatchModel(wire)
        self.reach(f"on {wire}")
        self.settled = True
        self.failed = False
        # The offer that the next call must repeat, or None; whether that is known.
        self.pinned: bytes | None = None
        self.pin_known = True

    def check_end(self) -> None:
        model = self.model
        self.reset()
        self.reset()  # what hooks added
        model.releases.check(settled=True)
        unreleased = set(model.releases.made) - set(model.releases.log)
        assert not unreleased, f"never released: {unreleased}"
        model.wire.read_all()
        assert model.wire.received == model.stream

    def clean_up(self) -> None:
        self.stack.close()
        self.model.close()
        if fd_count() != self.before:
            gc.collect()
            assert fd_count() == self.before

    # Adding

    def hook(self, action: str | None) -> tuple[str, Any]:
        return ("", None) if action == "no hook" else self.model.hook(action)

    def added(self, add: Callable[[], None]) -> None:
        """Add an entry. If it is empty, its hook runs at once and may raise."""
        with self.interruptible():
            add()

    @step(size=SIZES, kind=st.sampled_from([bytes, bytearray, memoryview]), hook=HOOKS)
    def addbuf(self, size: int, kind: Any, hook: str | None) -> None:
        self.added(lambda: self.model.add(size, kind, self.hook(hook)))

    @step(sizes=st.lists(st.integers(0, 300), max_size=20), views=st.booleans())
    def addbufs(self, sizes: list[int], *, views: bool) -> None:
        pieces = [self.model.piece(size) for size in sizes]
        kind = bytearray if views else bytes
        self.model.batch.addbufs(map(kind, pieces))
        for piece in pieces:
            self.model.plain.append(Piece(piece))
        with pytest.raises(TypeError):
            self.model.batch.addbufs([b"good", "bad"])  # type: ignore[list-item]

    @step(text=st.text(max_size=20))
    def adds(self, text: str) -> None:
        self.model.batch.adds(text)
        self.model.plain.append(Piece(text.encode()))

    @step(
        offset=st.one_of(st.integers(0, FILE_SIZE), st.integers(FILE_SIZE - 50, FILE_SIZE)),
        size=SIZES,
        whole=st.booleans(),
        kind=st.sampled_from(["descriptor", "object", "owned"]),
        hook=HOOKS,
    )
    def addfile(self, offset: int, size: int, kind: str, hook: str | None, *, whole: bool) -> None:
        """Add a range, whose end may be after the end of the file."""
        self.settle()  # else a hook that is due may stop the call
        count = None if whole and offset > FILE_SIZE - 70_000 else size
        end = FILE_SIZE if count is None else offset + count
        content = CONTENT[offset:end]
        model = self.model
        if kind == "owned":
            name, fd = model.releases.own(model.file.fileno())
            model.batch.addfile_close(fd, offset, count)
            model.plain.append(Piece(content, end - offset - len(content), name))
        else:
            file: Any = model.file if kind == "object" else model.file.fileno()

            def add() -> None:
                name, on_release = self.hook(hook)
                model.batch.addfile(file, offset, count, on_release=on_release)
                model.plain.append(Piece(content, end - offset - len(content), name))

            self.added(add)

    @step(size=SIZES, hook=HOOKS)
    def prepend(self, size: int, hook: str | None) -> None:
        self.settle()  # else a hook that is due may stop the call
        if self.pinned is None and self.pin_known:
            self.added(lambda: self.model.prepend(size, self.hook(hook)))

    @step(size=st.integers(0, 300))
    def extend(self, size: int) -> None:
        self.model.extend(size)

    @step()
    def move_to_another_batch(self) -> None:
        """Move what is left; this also saves what a failed batch holds."""
        self.settle()
        model = self.model
        moved = IOBatch()
        moved.extend(model.batch)
        assert (model.batch.bytesleft, model.batch.error is None) == (0, not self.failed)
        check_invariants(model.batch)
        model.batch = moved
        model.plain.sent = 0
        self.failed = False

    @step(nbytes=st.integers(0, 10**6))
    def prefetch(self, nbytes: int) -> None:
        self.model.batch.prefetch(nbytes)

    # Ending

    @step()
    def reset_it(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.model.acted.clear()
        with self.interruptible():
            self.model.reset()
            self.settled = True
        self.settle()
        self.failed = False
        self.pinned = None
        self.pin_known = True

    def settle(self) -> None:
        """Have the releases go on that exceptions of hooks have stopped."""
        while not self.settled:
            self.model.releases.check(settled=False)
            with self.interruptible():
                with suppress(RuntimeError):  # the head is pinned
                    self.model.batch.prepend(b"")
                self.settled = True

    @step()
    def drop(self) -> None:
        """Collect the batch. What hooks add goes to the next one."""
        model = self.model
        self.settle()
        old, plain = model.batch, model.plain
        model.batch, model.plain = IOBatch(), PlainBatch()
        model.releases.expected += plain.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            model.only_adds = True
            del old
            model.only_adds = False
        self.failed = False
        self.pinned = None
        self.pin_known = True

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Have a call on the batch, out of which the exception of a hook or handler may come."""
        try:
            with self.model.call():
                yield
        except (KeyboardInterrupt, Interruption):
            assert {"interrupt", "signal that raises"} & set(self.model.acted)
            self.settled = False
            self.reach("a hook raised")
        assert not self.model.releases.violations, self.model.releases.violations[0]

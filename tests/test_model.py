"""A batch against plain bytes: calls cut at every byte, and random operations."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_send, iob_sendmsg, iob_write
from tests.support.batches import check_invariants, data
from tests.support.fakes import Scripted, again, patch_os, script_sendfile
from tests.support.forms import copy_limit, pure
from tests.support.sockets import fd_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.batches import MakeFile
    from tests.support.drivers import Step

# Replaces COPY_LIMIT: a longer range goes by sendfile, so a short batch meets every path.
SHORT_COPY_LIMIT = 16


def by_iob_write(sock: Scripted, batch: IOBatch) -> int:
    return iob_write(sock, batch, Scripted.send)


SENDERS: dict[str, Step] = {
    "iob_send": iob_send,
    "iob_send, its pure form": pure(iob_send),
    "iob_send without sendfile": pure(iob_send),
    "iob_send without sendmsg": pure(iob_send),
    "iob_send, sendfile refused": iob_send,
    "iob_sendmsg": iob_sendmsg,
    "iob_write": by_iob_write,
}


@pytest.fixture(params=SENDERS)
def sender(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Step]]:
    if "without" in request.param:
        attribute, value = {
            "iob_send without sendfile": ("_sendfile", None),
            "iob_send without sendmsg": ("_HAS_SENDMSG", False),
        }[request.param]
        monkeypatch.setattr(f"iobatch._send.{attribute}", value)
    with copy_limit(SHORT_COPY_LIMIT):
        yield request.param, SENDERS[request.param]


def make_batch(fd: int, content: bytes, released: list[int]) -> tuple[IOBatch, bytes, list[int]]:
    """Return a batch with every kind of entry, its content, and the end of each entry with a hook.

    Each hook appends the batch's bytessent to `released`.
    """
    batch = IOBatch()
    wanted = bytearray()
    ends = []

    def hook() -> None:
        released.append(batch.bytessent)

    def add_file(offset: int, count: int, **options: Any) -> None:
        batch.addfile(fd, offset, count, **options)
        wanted.extend(content[offset : offset + count])

    def add(piece: bytes | bytearray, **options: Any) -> None:
        batch.addbuf(piece, **options)
        wanted.extend(piece)

    add(b"first")
    add(b"second", on_release=hook)
    ends.append(len(wanted))
    add_file(3, SHORT_COPY_LIMIT)
    add(bytearray(b"third"), on_release=hook)
    ends.append(len(wanted))
    add_file(20, 3 * SHORT_COPY_LIMIT, on_release=hook)
    ends.append(len(wanted))
    add_file(90, 2)
    batch.addfile_close(os.dup(fd), 0, 5)
    wanted.extend(content[:5])
    add(b"x", on_release=hook)
    ends.append(len(wanted))
    add_file(30, SHORT_COPY_LIMIT + 1, on_release=hook)
    ends.append(len(wanted))
    add(b"last", on_release=hook)
    ends.append(len(wanted))
    return batch, bytes(wanted), ends


def test_call_cut_at_any_byte_loses_and_repeats_no_byte_and_no_hook(
    sender: tuple[str, Step], make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each hook runs once, when the last byte of its entry was accepted."""
    name, step = sender
    content = data(100)
    fd = make_file(content)
    before = fd_count()
    unused, wanted, _ends = make_batch(fd, content, [])
    unused.reset()
    total = len(wanted)
    for cut in range(1, total + 1):
        for next_cuts in (1, 7, total):
            released: list[int] = []
            batch, wanted, ends = make_batch(fd, content, released)
            script = [cut, again(), again()] + [next_cuts, again()] * total
            with Scripted(*script) as sock, monkeypatch.context() as patch:
                if name in {"iob_send", "iob_send, its pure form"}:
                    script_sendfile(patch, sock)
                elif name == "iob_send, sendfile refused":
                    patch_os(patch, "sendfile", refuse_sendfile)
                for _ in range(4 * total):
                    sent = batch.bytessent
                    nbytes = step(sock, batch)
                    check_invariants(batch)
                    assert batch.bytessent - sent == max(nbytes, 0)
                    assert batch.bytessent == len(sock.taken) == total - batch.bytesleft
                    assert len(released) == sum(end <= batch.bytessent for end in ends)
                    if nbytes == IOB_DONE:
                        break
                assert sock.taken == wanted
            assert all(seen >= end for seen, end in zip(released, ends, strict=True))
            assert fd_count() == before


def refuse_sendfile(*_args: int) -> int:
    raise OSError(errno.EINVAL, "scripted")


FILE_SIZE = 200_000
SIZES = st.one_of(st.integers(0, 40), st.integers(0, 70_000))


class BatchMachine(RuleBasedStateMachine):
    """A batch, and the bytes that are left in it according to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.batch = IOBatch()
        self.model = bytearray()
        self.sent = 0
        self.seed = 0
        # For each hook, a list with the number of its runs.
        self.hooks: list[list[int]] = []
        # The offer that the next call must repeat.
        self.pinned: bytes | None = None
        self.content = data(FILE_SIZE, seed=-1)
        self.before = fd_count()
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 # teardown closes it
        self.file.write(self.content)
        self.sock = Scripted()
        script_sendfile(self.patch, self.sock)

    def teardown(self) -> None:
        self.batch.reset()
        assert all(runs == [1] for runs in self.hooks)
        self.patch.undo()
        self.sock.close()
        self.file.close()
        assert fd_count() == self.before

    def hook(self) -> Callable[[], None]:
        runs = [0]
        self.hooks.append(runs)

        def run() -> None:
            runs[0] += 1

        return run

    def piece(self, size: int) -> bytes:
        self.seed += 1
        return data(size, self.seed)

    @rule(size=SIZES, kind=st.sampled_from([bytes, bytearray, memoryview]), hooked=st.booleans())
    def addbuf(self, size: int, kind: Any, *, hooked: bool) -> None:
        piece = self.piece(size)
        self.batch.addbuf(kind(piece), on_release=self.hook() if hooked else None)
        self.model += piece

    @rule(text=st.text(max_size=20))
    def adds(self, text: str) -> None:
        self.batch.adds(text)
        self.model += text.encode()

    @rule(
        offset=st.integers(0, FILE_SIZE),
        size=st.one_of(SIZES, st.none()),
        kind=st.sampled_from(["descriptor", "object", "owned"]),
        hooked=st.booleans(),
    )
    def addfile(self, offset: int, size: int | None, kind: str, *, hooked: bool) -> None:
        end = FILE_SIZE if size is None else min(offset + size, FILE_SIZE)
        count = None if size is None else end - offset
        if kind == "owned":
            self.batch.addfile_close(os.dup(self.file.fileno()), offset, count)
        else:
            file: Any = self.file if kind == "object" else self.file.fileno()
            hook = self.hook() if hooked else None
            self.batch.addfile(file, offset, count, on_release=hook)
        self.model += self.content[offset:end]

    @rule(size=SIZES, hooked=st.booleans())
    def prepend(self, size: int, *, hooked: bool) -> None:
        piece = self.piece(size)
        if self.pinned is not None:
            with pytest.raises(RuntimeError):
                self.batch.prepend(piece)
        else:
            self.batch.prepend(piece, on_release=self.hook() if hooked else None)
            self.model[:0] = piece

    @rule(sizes=st.lists(st.integers(0, 300), max_size=5), offset=st.integers(0, 1000))
    def extend(self, sizes: list[int], offset: int) -> None:
        other = IOBatch()
        for size in sizes:
            piece = self.piece(size)
            other.addbuf(piece, on_release=self.hook())
            other.addfile(self.file.fileno(), offset, size)
            self.model += piece + self.content[offset : offset + size]
        self.batch.extend(other)
        assert not other
        check_invariants(other)

    @rule()
    def move_to_another_batch(self) -> None:
        moved = IOBatch()
        moved.extend(self.batch)
        check_invariants(self.batch)
        self.sent = 0
        self.batch = moved

    @rule(nbytes=st.integers(0, 10**6))
    def prefetch(self, nbytes: int) -> None:
        self.batch.prefetch(nbytes)

    @rule()
    def reset(self) -> None:
        self.batch.reset()
        self.model.clear()
        self.sent = 0
        self.pinned = None

    def account(self, nbytes: int) -> None:
        taken = bytes(self.sock.taken)
        self.sock.taken.clear()
        self.sock.script.clear()
        assert nbytes != IOB_ERROR, self.batch.error
        assert len(taken) == max(nbytes, 0)
        assert taken == self.model[: len(taken)]
        assert nbytes != IOB_DONE or not self.model
        del self.model[: len(taken)]
        self.sent += len(taken)

    @rule(
        script=st.lists(st.one_of(SIZES.filter(bool), st.none()), max_size=6),
        limit=st.one_of(st.integers(1, 200_000), st.none()),
        flags=st.sampled_from([0, 0, socket.MSG_OOB]),
    )
    def send(self, script: list[int | None], limit: int | None, flags: int) -> None:
        self.sock.script.extend(again() if size is None else size for size in script)
        had_bytes = bool(self.model)
        nbytes = iob_send(self.sock, self.batch, limit=limit, flags=flags)
        if had_bytes:
            self.pinned = None
        assert limit is None or nbytes <= limit
        self.account(nbytes)

    @rule(size=st.one_of(SIZES.filter(bool), st.none()))
    def sendmsg(self, size: int | None) -> None:
        self.sock.script.append(again() if size is None else size)
        if self.model:
            self.pinned = None
        self.account(iob_sendmsg(self.sock, self.batch))

    @precondition(lambda self: self.model)
    @rule(
        script=st.lists(st.one_of(SIZES.filter(bool), st.none()), max_size=6),
        limit=st.one_of(st.integers(1, 200_000), st.none()),
    )
    def write(self, script: list[int | None], limit: int | None) -> None:
        self.sock.script.extend(again() if size is None else size for size in script)
        self.sock.calls.clear()
        nbytes = iob_write(self.sock, self.batch, Scripted.send, limit=limit)
        offers = [call.pieces[0] for call in self.sock.calls]
        if self.pinned is not None:
            assert offers[0] == self.pinned
        # A refused offer is pinned, and no other offer follows it.
        refused = len(script) >= len(offers) and script[len(offers) - 1] is None
        self.pinned = offers[-1] if refused else None
        assert nbytes != IOB_AGAIN or refused
        self.account(nbytes)

    @invariant()
    def batch_agrees_with_the_model(self) -> None:
        check_invariants(self.batch)
        assert self.batch.bytesleft == len(self.model)
        assert self.batch.bytessent == self.sent
        assert all(runs[0] <= 1 for runs in self.hooks)
        assert self.batch.error is None


BatchMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestBatchAgreesWithModel = BatchMachine.TestCase

"""A BatchWriter against plain bytes: every way to post, to end and to interrupt a write."""

from __future__ import annotations

import asyncio
import errno
from functools import partial
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st

from iobatch import IOBatch
from iobatch.aio import BatchWriter, CancellationType, WriteStatus
from tests.models.machine import every_round, patiently, run, step
from tests.models.wires import WIRES
from tests.models.writer import (
    CONTENT,
    ENDED_EARLY,
    FILE_SIZE,
    PENDING,
    Coded,
    Posted,
    PostingMachine,
)
from tests.support.batches import batch_of
from tests.support.interruptions import KINDS
from tests.support.loops import LOOPS

SIZES = st.one_of(st.integers(0, 40), st.integers(3000, 70_000), st.integers(3000, 70_000))
KINDS_OF_CANCEL = st.sampled_from([CancellationType.PARTIAL, CancellationType.TOTAL])
RAISING = st.one_of(*[st.none()] * 4, st.tuples(st.integers(1, 60), st.sampled_from(KINDS)))


class WriterMachine(PostingMachine):
    """A writer on one of three wires, on either loop, with a filter or without."""

    OUTCOMES: ClassVar[frozenset[str]] = frozenset(
        {f"ended as {status.name}" for status in WriteStatus if status is not PENDING}
        | {f"on {name}" for name in (*WIRES, *LOOPS)}
        | {"through a filter", "to the socket", "a truncated file", "a whole stream"}
        | {"a handler raised", "a hook posted"}
        | {"another codec is open", "refused by a closed writer", "a codec ended"}
    )

    @step(
        lambda self: self.codec is None,
        size=SIZES,
        ranged=st.integers(0, 50_000),
        call=st.sampled_from(["write", "write", "some", "exactly", "timeout 0", "timeout 99"]),
        share=st.integers(0, 100),
        hooked=st.booleans(),
        raising=RAISING,
    )
    def write(self, call: str, share: int, raising: Any, **parts: Any) -> None:
        batch, content = self.make_batch(**parts)
        size = len(content)
        options: dict[str, Any] = {"on_complete": self.completed.append}
        goal = size
        if call == "exactly":
            options["exactly"] = goal = size * share // 100
        elif call.startswith("timeout"):
            options["timeout"] = int(call.split()[1])
        method = self.writer.write_some if call == "some" else self.writer.write
        posted = Posted(content, min(1, size) if call == "some" else goal, goal)
        self.post(posted, lambda: method(batch, **options), raising, reported=True)

    def make_batch(self, size: int, ranged: int, *, hooked: bool) -> tuple[IOBatch, bytes]:
        content = self.piece(size) + CONTENT[5 : 5 + ranged]
        batch = IOBatch()
        hook = partial(self.post_in_hook, self.writer) if hooked and size else None
        batch.addbuf(content[:size], on_release=hook)
        batch.addfile(self.file.fileno(), 5, ranged)
        return batch, content

    def post_in_hook(self, writer: BatchWriter) -> None:
        """Post a write from a hook, which may also run at the end of a writer."""
        if writer is not self.writer or self.closed or self.codec or self.ending:
            return
        batch = IOBatch()
        batch.addbuf(b"hook")
        posted = Posted(b"hook", 4, 4)
        self.posted.append(posted)
        try:
            posted.operation = writer.write(batch, on_complete=self.completed.append)
        except OSError as exc:
            if exc.errno != errno.ECANCELED:
                raise
            self.posted.remove(posted)  # an exception has closed the writer
        else:
            self.reach("a hook posted")

    ending = False

    @step(
        lambda self: self.codec is None,
        size=SIZES,
        start=st.integers(0, 100),
        end=st.integers(0, 100),
    )
    def write_buffer(self, size: int, start: int, end: int) -> None:
        content = self.piece(size)
        first, last = sorted((size * start // 100, size * end // 100))
        called: list[int] = []

        def callback(writer: BatchWriter, _data: object, nbytes: int) -> None:
            assert writer.status is not PENDING
            called.append(nbytes)

        part = content[first:last]
        operation = self.post(
            Posted(part, len(part), len(part)),
            lambda: self.writer.write_buffer(bytearray(content), callback, start=first, end=last),
        )
        if operation is not None and operation.done():
            self.run(lambda: None, 2)
            assert called == [operation.bytes_transferred]

    @step(lambda self: self.codec is None, size=st.integers(1, 5000), missing=st.integers(1, 300))
    def write_truncated(self, size: int, missing: int) -> None:
        """Post a range whose file ends early."""
        batch = IOBatch()
        batch.addfile(self.file.fileno(), FILE_SIZE - size, size + missing)
        size += missing
        posted = Posted(CONTENT[FILE_SIZE - size + missing :], size, size, missing=missing)
        self.post(posted, lambda: self.writer.write(batch))

    def with_rest(self) -> list[Posted]:
        """Return the writes that have ended early, and whose unsent bytes can be posted."""
        return [
            each
            for each in self.posted
            if each.operation.status in ENDED_EARLY
            and each.operation.batch
            and not each.missing
            and each.stream is None
        ]

    @step(
        lambda self: not (self.codec or self.closed) and self.with_rest(),
        which=st.integers(0, 1000),
    )
    def write_rest(self, which: int) -> None:
        """Post the unsent bytes of a write that ended: until then, others are aborted."""
        candidates = self.with_rest()
        truncated = self.truncated
        each = truncated if truncated in candidates else candidates[which % len(candidates)]
        operation, sent = each.operation, each.sent
        rest = Posted(each.content[sent:], 0, 0, resumes=each is truncated)
        rest.goal = rest.most = len(rest.content)
        each.content, each.most = each.content[:sent], sent
        each.goal = sent + 1 if each is truncated else sent  # it stays one that ended part-way
        write = partial(self.writer.write, operation.batch, on_complete=self.completed.append)
        self.post(rest, write, reported=True)

    @step(lambda self: self.truncated)
    def drop_rest(self) -> None:
        """Drop the unsent bytes of a write that ended part-way, so that others may follow."""
        self.truncated.operation.batch.reset()
        self.truncated.dropped = True

    # Codecs: pipelines of single writes above the writer's filter

    @step(
        lambda self: self.filtered and not self.closed and self.truncated is None,
        size=st.integers(1, 20_000),
    )
    def write_coded(self, size: int) -> None:
        if self.codec is None:
            self.codec = Coded(self.own)
            self.codecs.append(self.codec)
        codec = self.codec
        batch = IOBatch()
        content = self.piece(size)
        batch.addbuf(content)
        posted = Posted(content, size, size, codec)
        self.post(posted, lambda: self.writer.write(batch, through=codec.filter))

        def refuse() -> None:
            pending = any(
                each.stream is codec and not each.operation.done() for each in self.posted
            )
            if pending or codec.recorder.taken:  # it has not been aborted
                with pytest.raises(RuntimeError, match="another codec is open"):
                    self.writer.write(batch_of(b"refused"))
                self.reach("another codec is open")

        self.run(refuse)

    def coded_is_pending(self) -> bool:
        """Whether an early end could truncate a codec's stream."""
        return self.codec is not None or any(
            each.stream and not each.operation.done() for each in self.posted
        )

    # Ending

    @step(
        lambda self: self.posted and not self.coded_is_pending(),
        which=st.integers(0, 1000),
        kind=KINDS_OF_CANCEL,
        head=st.booleans(),
    )
    def cancel(self, which: int, kind: CancellationType, *, head: bool) -> None:
        posted = self.posted[which % len(self.posted)]
        if head:
            posted = next((each for each in self.posted if not each.operation.done()), posted)
        operation = posted.operation

        def cancel() -> None:
            pending, sent = not operation.done(), posted.sent
            refused = kind is CancellationType.TOTAL and sent > 0
            assert operation.cancel(kind) == (pending and not refused)
            assert not pending or operation.done() is not refused
            assert posted.sent == sent

        self.run(cancel)

    def started(self) -> Posted | None:
        """Return the pending write that has sent some bytes."""
        return next((each for each in self.posted if each.sent and not each.operation.done()), None)

    @step(lambda self: self.started())
    def cancel_totally(self) -> None:
        """Do what is refused after the first byte."""
        operation = self.started().operation
        assert self.run(lambda: operation.cancel(CancellationType.TOTAL)) is False
        assert not operation.cancelled()

    @step(lambda self: not self.coded_is_pending(), kind=KINDS_OF_CANCEL)
    def cancel_all(self, kind: CancellationType) -> None:
        def cancel() -> None:
            pending = [each for each in self.posted if not each.operation.done()]
            refused = kind is CancellationType.TOTAL and any(each.sent for each in pending)
            assert self.writer.cancel(kind) is (bool(pending) and not refused)

        self.run(cancel)

    @step(
        lambda self: self.posted and len(self.posted) > 4 and not self.closed,
        terminal=st.booleans(),
    )
    def close(self, *, terminal: bool) -> None:
        if terminal:
            self.run(lambda: self.writer.cancel(CancellationType.TERMINAL))
        else:
            self.run(self.writer.close)
        self.closed = True

    @step(lambda self: self.closed)
    def connect_again(self) -> None:
        self.wire.read_all()
        self.wire.close()
        self.connect()

    @step(lambda self: self.codec is None)
    def flush(self) -> None:
        self.post(Posted(b"", 0, 0), self.writer.flush)

    @step(nbytes=st.integers(1, 100_000), turn=st.integers(0, 3))
    def receive(self, nbytes: int, turn: int) -> None:
        self.wire.read(nbytes)
        self.run(lambda: None, turn)

    @step(script=st.lists(st.one_of(st.integers(1, 9000), st.none()), max_size=6))
    def limit_socket(self, script: list[Any]) -> None:
        self.wire.script(script)

    @step()
    def drain(self) -> None:
        """Wait for backpressure to end, while the peer reads."""

        async def drain() -> None:
            await self.writer.drain()
            # The end of a stream makes more bytes later.
            queued = any(not each.operation.done() for each in self.posted)
            assert not queued or self.writer.pending < self.options["high_water"]

        async def wait() -> None:
            task = asyncio.ensure_future(drain())
            for _ in patiently():
                if task.done():
                    break
                self.wire.read(1 << 20)
                await asyncio.sleep(0)
            await task

        self.run(wait)


@every_round
def test_writer_agrees_with_plain_bytes(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    run(WriterMachine, number, capsys)

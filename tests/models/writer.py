"""A writer and the bytes that were posted on it: how to post them, and what is checked then."""

from __future__ import annotations

import asyncio
import errno
import tempfile
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from iobatch import TruncatedFileError
from iobatch.aio import BatchWriter, WriteOperation, WriteStatus
from iobatch.filters import Chunked, Filter
from tests.models.codings import Recorder, decode
from tests.models.machine import Machine, patiently, step
from tests.models.wires import WIRES, Wire
from tests.support.batches import check_invariants, data
from tests.support.filters import Identity
from tests.support.interruptions import handler_that_raises
from tests.support.loops import LOOPS, new_loop, turns

if TYPE_CHECKING:
    from collections.abc import Callable

PENDING, DONE = WriteStatus.PENDING, WriteStatus.DONE
ENDED_EARLY = (WriteStatus.CANCELLED, WriteStatus.TIMEOUT, WriteStatus.ERROR)
FILE_SIZE = 100_000
CONTENT = data(FILE_SIZE, seed=-1)


@define(eq=False)
class Posted:
    """A posted write, and what may be sent of it."""

    content: bytes
    goal: int  # it is done when this number of bytes was sent
    most: int  # at most this number of bytes is sent
    stream: Any = None  # the codec whose bytes these are
    missing: int = 0
    operation: WriteOperation | None = None
    resumes: bool = False  # it continues a write that ended part-way
    dropped: bool = False  # its unsent bytes were dropped

    @property
    def sent(self) -> int:
        return 0 if self.operation is None else self.operation.bytes_transferred


class Coded:
    """A chunked coding above the writer's filter."""

    def __init__(self, own: Any) -> None:
        self.recorder = Recorder(Chunked())
        self.filter = Filter(self.recorder, own, high_water=3000)
        self.end: WriteOperation | None = None

    @property
    def passed_on(self) -> bytes:
        return bytes(self.recorder.output[: self.filter.bytessent])


class PostingMachine(Machine):
    """A writer on one of three wires, on either loop, with a filter or without."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 # teardown closes it
        self.file.write(CONTENT)
        self.complaints: list[Any] = []

    def run(self, call: Callable[[], Any], turn: int = 0) -> Any:
        """Make a call while the loop runs, and then let it run for some turns."""

        async def main() -> Any:
            result = call()
            if asyncio.iscoroutine(result):
                result = await result
            await turns(turn)
            return result

        return self.loop.run_until_complete(main())

    def check_end(self) -> None:
        if not self.closed:
            self.end_all()
        self.close_all()
        assert not self.complaints

    def clean_up(self) -> None:
        self.closed = True  # no hook posts
        with ExitStack() as stack:
            stack.callback(self.patch.undo)
            stack.callback(self.file.close)
            if self.loop is not None:
                stack.callback(self.loop.close)
                self.close_all()

    @initialize(
        loop=st.sampled_from(LOOPS),
        wire=st.sampled_from(WIRES),
        filtered=st.booleans(),
        limit=st.sampled_from([None, 1000, 20_000]),
        high_water=st.sampled_from([1, 5000, 64 * 1024]),
    )
    def start(self, loop: str, wire: str, *, filtered: bool, **options: Any) -> None:
        self.reach(f"on {loop}")
        self.reach(f"on {wire}")
        self.reach("through a filter" if filtered else "to the socket")
        self.loop = new_loop(loop)
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.kind, self.filtered, self.options = wire, filtered, options
        self.connect()

    def connect(self) -> None:
        self.wire = Wire(self.kind, self.patch)
        self.recorder = Recorder(Identity())
        self.own = Filter(self.recorder, high_water=5000) if self.filtered else None
        self.writer: BatchWriter = self.run(
            lambda: BatchWriter(self.wire.sock, through=self.own, **self.options)
        )
        self.posted: list[Posted] = []
        self.completed: list[WriteOperation] = []
        self.codec: Coded | None = None  # whose end was not posted
        self.codecs: list[Coded] = []
        self.closed = False
        self.truncated: Posted | None = None

    def close_all(self) -> None:
        self.run(self.writer.close)
        self.run(lambda: None, 3)
        self.wire.close()

    # Posting

    def piece(self, size: int) -> bytes:
        return data(size, len(self.posted) + 1)

    def post(
        self,
        posted: Posted,
        call: Callable[[], WriteOperation],
        raising: Any = None,
        *,
        reported: bool = False,
    ) -> WriteOperation | None:
        """Post a write, during which a signal handler may raise."""
        if self.closed:
            with pytest.raises(OSError, match="closed") as caught:
                self.run(call)
            assert caught.value.errno == errno.ECANCELED
            self.reach("refused by a closed writer")
            return None
        point, kind = raising or (0, ValueError)
        raised: list[Exception] = []

        def interrupted_call() -> WriteOperation:
            self.posted.append(posted)  # not before: a hook may post in an earlier turn
            with handler_that_raises(point, kind) as log:
                try:
                    return call()
                finally:
                    raised.extend(log)

        try:
            operation = self.run(interrupted_call)
        except kind as exc:
            if [exc] != raised:
                raise
            exc.__traceback__ = None
            self.reach("a handler raised")
            self.interrupted()
            return None
        posted.operation = operation
        if not reported:
            operation.add_done_callback(self.completed.append)
        return operation

    def interrupted(self) -> None:
        """Check that no byte was sent twice or out of order; connect again.

        The interrupted write was sent in part, or it has changed nothing.
        """
        self.run(self.writer.close)
        self.run(lambda: None, 3)
        assert all(each.operation is None or each.operation.done() for each in self.posted)
        self.wire.read_all()
        received = bytes(self.wire.received)
        if self.own is not None:
            assert self.recorder.output.startswith(received)
        else:
            sent = [
                each.content if each.operation is None else each.content[: each.sent]
                for each in self.posted
            ]
            others = [each.content[: each.sent] for each in self.posted if each.operation]
            assert b"".join(sent).startswith(received) or b"".join(others).startswith(received)
        self.wire.close()
        self.connect()

    @step(lambda self: self.codec is not None)
    def finish_codec(self) -> None:
        codec, self.codec = self.codec, None
        posted = Posted(b"", 0, 0, codec)
        finish = partial(self.writer.finish, through=codec.filter, until=self.own)
        codec.end = self.post(posted, finish)

    # Checks

    def end_all(self) -> None:
        """Let all writes end, while the peer reads; compare what arrived."""

        async def wait() -> None:
            for _ in patiently():
                done = all(each.operation.done() for each in self.posted)
                if done and not (self.own is not None and self.own.bytesleft):
                    break
                self.wire.read(1 << 20)
                await asyncio.sleep(0)
            await turns(3)

        if self.codec is not None:
            self.finish_codec()
        self.ending = True
        self.run(wait)
        self.ending = False
        self.check()
        self.wire.read_all()
        assert self.wire.received == (self.stream() if self.own is None else self.recorder.output)
        operations = [each.operation for each in self.posted]
        assert len(self.completed) == len(operations)
        assert set(self.completed) == set(operations)
        done = [each for each in self.completed if each.status is DONE]
        assert done == [each for each in operations if each.status is DONE]
        assert self.writer.pending == 0
        self.reach("a whole stream")

    def stream(self) -> bytes:
        """Return the bytes that the operations count as sent, coded where they are."""
        stream = bytearray()
        seen: list[Coded] = []
        for each in self.posted:
            if each.stream is None:
                stream += each.content[: each.sent]
            elif each.stream not in seen:
                seen.append(each.stream)
                stream += each.stream.passed_on
        return bytes(stream)

    def check_codec(self, codec: Coded) -> None:
        writes = [each for each in self.posted if each.stream is codec]
        content = b"".join(each.content[: each.sent] for each in writes)
        assert codec.recorder.taken == content
        if codec.end is not None and codec.end.status is DONE:
            assert decode("chunked", bytes(codec.recorder.output)) == content
            self.reach("a codec ended")

    def check_posted(self, each: Posted) -> None:
        """Check the counts of a write, and whether it may have ended as it did."""
        operation, sent = each.operation, each.sent
        status = operation.status
        check_invariants(operation.batch)
        if each.most and not each.dropped:
            assert sent + operation.batch.bytesleft == len(each.content) + each.missing
        if status is not PENDING:
            self.reach(f"ended as {status.name}")
        if status is DONE:
            assert each.goal <= sent <= each.most
        elif status is WriteStatus.ABORTED:
            assert sent == 0 or self.closed
        elif status is WriteStatus.ERROR:
            assert isinstance(operation.error, TruncatedFileError)
            assert each.missing
            assert sent == len(each.content)
            self.reach("a truncated file")

    def check_order(self) -> None:
        """Check that no byte follows a write that ended part-way, and nothing else is aborted."""
        self.truncated = None
        ended_part_way = False
        for each in self.posted:
            status = each.operation.status
            if self.truncated is not None and each.most:
                assert status is not PENDING
                assert each.sent == 0
            if status is WriteStatus.ABORTED:
                assert ended_part_way or self.closed
            if status in ENDED_EARLY and (each.sent or each.resumes) and each.sent < each.goal:
                ended_part_way = True
                if each.operation.batch:
                    self.truncated = each

    @invariant()
    def check(self) -> None:
        for each in self.posted:
            self.check_posted(each)
        self.check_order()
        pending = sum(
            each.most - each.sent for each in self.posted if each.operation.status is PENDING
        )
        held = 0
        sent = self.stream()
        if self.own is None:
            assert self.wire.accepted == len(sent)
        else:
            held = len(self.recorder.output) - self.wire.accepted
            held += sum(len(each.recorder.output) - len(each.passed_on) for each in self.codecs)
            assert self.recorder.taken == sent
        assert self.writer.pending == pending + held
        for each in self.codecs:
            self.check_codec(each)
        if self.wire.scripted:
            self.wire.read(0)
        assert (sent if self.own is None else self.recorder.output).startswith(self.wire.received)

"""A pipeline of filters against plain bytes: faults, partial takers and handlers at every level."""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import strategies as st

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, iob_write
from iobatch.filters import Filter
from tests.models.codings import (
    CODECS,
    ENDS,
    FAULTS,
    TRANSFORMS,
    Recorder,
)
from tests.models.machine import every_round, run, step
from tests.models.pipeline import StreamMachine
from tests.support.batches import data
from tests.support.interruptions import KINDS, handler_at, handler_that_raises

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


SIZES = st.one_of(st.integers(0, 40), st.integers(0, 3000), st.integers(0, 20_000))
ACCEPTED = st.one_of(st.integers(1, 5000), st.none(), st.none(), st.integers(1, 70_000))
SCRIPTS = st.lists(ACCEPTED, max_size=5)
ANSWERS = st.lists(
    st.sampled_from(["all", "half", "one", "-1", "reads", "fails", "raises"]), max_size=3
)
# A transform, by its position, and the fault of its next call.
ARMED = st.one_of(*[st.none()] * 4, st.tuples(st.integers(0, 3), st.sampled_from(sorted(FAULTS))))
INTERRUPTIONS = st.one_of(
    st.none(),
    st.none(),
    st.none(),
    st.tuples(st.just("raising"), st.integers(1, 60), st.sampled_from(KINDS)),
    st.tuples(st.just("handler"), st.integers(1, 60), st.just(None)),
)
CALL = {"script": SCRIPTS, "answers": ANSWERS, "interruption": INTERRUPTIONS, "armed": ARMED}


class PipelineMachine(StreamMachine):
    """A batch that is written through filters, response after response."""

    OUTCOMES: ClassVar[frozenset[str]] = frozenset(
        {"IOB_DONE", "IOB_AGAIN", "IOB_ERROR", "some bytes", "wants to read", "an open pipeline"}
        | {"a whole stream", "a response ended", "a handler raised", "a handler acted", "restart"}
        | {f"through {name}" for name in (*TRANSFORMS, *ENDS)}
        | {f"a fault: {name}" for name in FAULTS}
    )

    # What the pipeline is given

    @step(size=SIZES, repetitive=st.booleans())
    def add(self, size: int, *, repetitive: bool) -> None:
        self.seed += 1
        content = b"again " * (size // 6) if repetitive else data(size, self.seed)
        self.batch.addbuf(content)
        self.queue += content

    @step(nbytes=st.integers(1, 100_000))
    def receive(self, nbytes: int) -> None:
        self.wire.read(nbytes)

    # Calls

    @contextmanager
    def interrupted(self, interruption: Any) -> Iterator[None]:
        kind, point, what = interruption or ("", 0, None)
        if kind == "raising":
            raised: list[Exception] = []
            try:
                with handler_that_raises(point, what) as raised:
                    yield
            except KINDS as exc:
                if [exc] != raised:
                    raise
                self.settled = False
                self.reach("a handler raised")
        elif kind == "handler":
            with handler_at(point, self.add_inside) as reached:
                yield
            if reached:
                self.reach("a handler acted")
        else:
            yield

    def add_inside(self) -> None:
        self.batch.addbuf(b"handler")
        self.queue += b"handler"

    def call(
        self,
        step: Callable[[], int],
        script: list[Any],
        answers: list[str],
        interruption: Any,
        armed: tuple[int, str] | None,
    ) -> int | None:
        """Make a call; return its code, or None if an exception left it."""
        wire = self.wire
        wire.script(script)
        self.answers = answers[::-1]
        self.faulty = self.alert = False
        if armed is not None:
            which, kind = armed
            self.recorders[which % len(self.recorders)].fault = FAULTS[kind]()
        faults = [each.fault for each in self.recorders]
        code: int | None = None
        try:
            with self.interrupted(interruption):
                code = step()
        except ValueError as exc:
            if exc not in faults and exc.args != ("callback",):
                raise
        if wire.scripted:
            wire.sock.script.clear()
        for each, fault in zip(self.recorders, faults, strict=True):
            if fault is not None and each.fault is None:
                self.reach(f"a fault: {type(fault).__name__}")
                self.alert |= type(fault) is ssl.SSLError
        if code is not None:
            self.check_code(code)
        if self.pipeline.error or self.batch.error:
            self.failed = True
            reasons = [each for each in self.recorders if each.raised]
            assert reasons or self.faulty or self.finishing or interruption
        return code

    def check_code(self, code: int) -> None:
        if code == IOB_AGAIN:
            if self.pipeline.wants == EVENT_READ:
                self.reach("wants to read")
            else:
                assert self.pipeline.wants == EVENT_WRITE
                self.reach("IOB_AGAIN")
        elif code == IOB_ERROR:
            assert self.pipeline.error or self.batch.error
            self.reach("IOB_ERROR")
        else:
            self.reach("some bytes" if code else "IOB_DONE")

    @step(
        lambda self: not self.failed,
        limit=st.one_of(st.none(), st.integers(1, 100_000)),
        **CALL,
    )
    def write(self, limit: int | None, **drawn: Any) -> None:
        before = self.batch.bytessent
        taken = len(self.recorders[0].taken)
        flushed = self.recorders[0].flushes
        code = self.call(
            lambda: iob_write(self.sock, self.batch, self.pipeline, limit=limit), **drawn
        )
        nbytes = self.batch.bytessent - before
        self.written += self.queue[:nbytes]
        del self.queue[:nbytes]
        if code is None:
            return
        assert nbytes == max(code, 0)
        if code == IOB_DONE:
            assert not self.batch
        if flushed:
            assert code in {IOB_DONE, IOB_ERROR}
            assert len(self.recorders[0].taken) == taken

    @step(
        lambda self: not self.failed,
        **CALL,
    )
    def drain(self, **drawn: Any) -> None:
        self.push(lambda: self.pipeline.drain(self.sock), drawn)

    @step(
        lambda self: not self.failed,
        **CALL,
        whole=st.booleans(),
    )
    def finish(self, *, whole: bool, **drawn: Any) -> None:
        """End the response, or the whole connection."""
        self.finishing = True
        until = None if whole else self.own
        with pytest.raises(ValueError, match="until"):
            self.pipeline.finish(self.sock, until=Filter(Recorder(None)))
        code = self.push(lambda: self.pipeline.finish(self.sock, until=until), drawn)
        if whole and self.own_recorder.flushes:
            self.own_ended = True
        if code == IOB_DONE:
            self.response_ended()

    def push(self, step: Callable[[], int], drawn: dict[str, Any]) -> int | None:
        before, accepted = self.moved(), self.wire.accepted
        held = any(each.bytesleft for each in self.filters)
        code = self.call(step, **drawn)
        moved = self.moved() - before
        if code is not None:
            assert code <= 0 or moved > 0
        if code == IOB_DONE:
            assert not any(each.bytesleft for each in self.filters)
            assert self.wire.accepted == len(self.own_recorder.output)
        if code == IOB_ERROR:
            # Bytes may have moved to a later filter. A full one sends what it holds before it takes
            # more, and fails then. Otherwise only the alert of an SSLError is sent.
            assert self.wire.accepted == accepted or held or self.alert
        return code

    @step(lambda self: not (self.failed or self.queue or self.begun), codecs=CODECS)
    def next_response(self, codecs: list[tuple[str, int]]) -> None:
        """Put other codings above the connection's own filter."""
        self.open(codecs)
        self.reach("an open pipeline")

    @step(lambda self: self.failed)
    def restart(self) -> None:
        """Check that nothing is sent after a failure, and connect again."""
        accepted = self.wire.accepted
        pipeline = self.pipeline
        if pipeline.error is not None:
            held = [each.bytesleft for each in self.filters]
            assert pipeline.drain(self.sock) == pipeline.finish(self.sock) == IOB_ERROR
            assert [each.bytesleft for each in self.filters] == held
        if self.batch.error is not None:
            assert iob_write(self.sock, self.batch, pipeline) == IOB_ERROR
        assert self.wire.accepted == accepted
        self.reach("restart")
        self.start_again()


@every_round
def test_pipeline_agrees_with_plain_bytes(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    run(PipelineMachine, number, capsys)

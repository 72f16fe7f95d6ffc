"""A pipeline of filters against plain bytes: what goes into each and comes out of it.

Each transform is wrapped, so that the machine sees what the filter gave it and got from it. Then
every byte has one place: a filter has passed on the first `bytessent` bytes of its transform's
output, they are what the next one was given, and the rest is what the filter holds.
"""

from __future__ import annotations

import errno
import ssl
import sys
from contextlib import contextmanager
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_write
from iobatch.filters import Filter
from tests.models.codings import ENDS, FAULTS, TRANSFORMS, Recorder, decode, make_tls
from tests.models.machine import Machine, every_round, run, step
from tests.models.wires import WIRES, Wire
from tests.support.batches import data
from tests.support.filters import check_pipeline
from tests.support.interruptions import KINDS, handler_at, handler_that_raises

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.tls import TLSClient

SIZES = st.one_of(st.integers(0, 40), st.integers(0, 3000), st.integers(0, 20_000))
HIGH_WATER = st.sampled_from([1, 1000, 50_000, 256 * 1024])
CODECS = st.lists(
    st.tuples(st.sampled_from(sorted(TRANSFORMS)), HIGH_WATER),
    max_size=3,
    unique_by=lambda codec: codec[0],
)
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


class PipelineMachine(Machine):
    """A batch that is written through filters, response after response."""

    OUTCOMES: ClassVar[frozenset[str]] = frozenset(
        {"IOB_DONE", "IOB_AGAIN", "IOB_ERROR", "some bytes", "wants to read", "an open pipeline"}
        | {"a whole stream", "a response ended", "a handler raised", "a handler acted", "restart"}
        | {f"through {name}" for name in (*TRANSFORMS, *ENDS)}
        | {f"a fault: {name}" for name in FAULTS}
    )

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        # A generator that is closed is a point for handler_at(), but not for a signal handler. The
        # exception is lost there.
        self.patch.setattr(sys, "unraisablehook", self.on_unraisable)
        self.lost: list[object] = []
        self.wire: Wire | None = None
        self.seed = 0

    def on_unraisable(self, args: Any) -> None:
        self.lost.append(args.exc_value.args)

    def teardown(self) -> None:
        if self.wire is not None:
            if not self.failed:
                self.end_all()
            self.wire.close()
        self.patch.undo()
        assert all(args == ("from a handler",) for args in self.lost)

    @initialize(
        wire=st.sampled_from(WIRES), end=st.sampled_from(ENDS), water=HIGH_WATER, codecs=CODECS
    )
    def start(self, wire: str, end: str, water: int, codecs: list[tuple[str, int]]) -> None:
        """Make the wire, the connection's own filter, and the codings of a response above it."""
        self.wire = Wire(wire, self.patch)
        self.sock = self.wire.sock
        self.wire_kind, self.end, self.failed = wire, end, False
        self.reach(f"through {end}")
        self.answers: list[str] = []
        self.client: TLSClient | None = None
        then: Any = self.callback if end == "callback" else None
        if end.startswith("TLS"):
            recorder, self.own, self.client = make_tls(end, water)
        else:
            recorder = Recorder(TRANSFORMS["identity"]())
            self.own = Filter(recorder, then, high_water=water)
        self.own_recorder = recorder
        self.ended: bytearray = bytearray()  # all that ended responses gave to the own filter
        self.own_ended = False
        self.open(codecs)

    def open(self, codecs: list[tuple[str, int]]) -> None:
        self.names: list[str] = []
        self.filters = [self.own]
        self.recorders = [self.own_recorder]
        for name, water in codecs:
            self.reach(f"through {name}")
            recorder = Recorder(TRANSFORMS[name]())
            self.filters.insert(0, Filter(recorder, self.filters[0], high_water=water))
            self.recorders.insert(0, recorder)
            self.names.insert(0, name)
        self.batch = IOBatch()
        self.queue = bytearray()
        self.written = bytearray()
        self.finishing = False

    @property
    def pipeline(self) -> Filter:
        return self.filters[0]

    @property
    def begun(self) -> bool:
        """Whether the response has begun: a coder may make its header without any input."""
        return bool(
            self.written or self.finishing or any(each.output for each in self.recorders[:-1])
        )

    def callback(self, sock: Any, view: memoryview) -> int:
        answer = self.answers.pop() if self.answers else "all"
        if answer == "-1":
            return -1
        if answer == "reads":
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "callback")
        if answer == "fails":
            self.faulty = True
            raise ConnectionResetError(errno.ECONNRESET, "callback")
        if answer == "raises":
            self.faulty = True
            raise ValueError("callback")
        size = {"half": max(1, len(view) // 2), "one": 1}.get(answer, len(view))
        sent: int = sock.send(view[:size])
        return sent

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

    def moved(self) -> int:
        return sum(each.bytessent for each in self.filters)

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
        code = self.call(step, **drawn)
        moved = self.moved() - before
        if code is not None:
            assert code <= 0 or moved > 0
        if code == IOB_DONE:
            assert not any(each.bytesleft for each in self.filters)
            assert self.wire.accepted == len(self.own_recorder.output)
        if code == IOB_ERROR:
            # Bytes may have moved to a later filter. Only the alert of an SSLError is sent.
            assert self.wire.accepted == accepted or self.alert
        return code

    def response_ended(self) -> None:
        """Decode the response, and open the next one if the connection is open."""
        coded = bytes(self.recorders[-2].output) if self.names else None
        if coded is not None:
            for name in reversed(self.names):
                coded = decode(name, coded)
            assert coded == self.written
            self.ended += self.recorders[-2].output
        else:
            self.ended += self.written
        assert self.own_recorder.taken == self.ended
        self.reach("a response ended")
        if self.own_ended:
            self.end_connection()
            self.start_again()
        else:
            self.open([])

    def end_connection(self) -> None:
        self.wire.read_all()
        plain = decode(self.end, bytes(self.wire.received), self.client)
        assert plain == self.ended
        self.reach("a whole stream")

    def start_again(self) -> None:
        self.wire.close()
        self.start(self.wire_kind, self.end, 1000, [("gzip", 1000), ("chunked", 1000)])

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

    def end_all(self) -> None:
        """Write and finish all, while the peer reads."""
        for each in self.recorders:
            each.fault = None
        self.answers = []
        if not self.finishing:
            while self.batch:
                self.wire.read(1 << 20)
                code = iob_write(self.sock, self.batch, self.pipeline)
                assert code != IOB_ERROR, self.batch.error
                self.written += self.queue[: max(code, 0)]
                del self.queue[: max(code, 0)]
        while code := self.pipeline.finish(self.sock):
            assert code != IOB_ERROR, self.pipeline.error
            self.wire.read(1 << 20)
        self.own_ended = False
        self.response_ended()
        self.end_connection()

    @invariant()
    def every_byte_has_one_place(self) -> None:
        assert (self.batch.bytesleft, bool(self.batch)) == (len(self.queue), bool(self.queue))
        accepted = self.wire.accepted
        output = self.own_recorder.output
        if self.wire.scripted:
            self.wire.read(0)
        assert output[:accepted].startswith(self.wire.received)
        if self.failed:
            assert accepted <= len(output)
            return
        check_pipeline(self.pipeline)
        assert self.own.bytessent == accepted
        taken = bytes(self.ended)
        assert self.recorders[0].taken == (self.written if self.names else taken + self.written)
        for index, each in enumerate(self.filters):
            recorder = self.recorders[index]
            assert each.bytesleft + each.bytessent == len(recorder.output)
            if index + 1 < len(self.filters):
                passed = recorder.output[: each.bytessent]
                before = taken if each.then is self.own else b""
                assert self.recorders[index + 1].taken == before + passed
            assert each.error is None


@every_round
def test_pipeline_agrees_with_plain_bytes(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    run(PipelineMachine, capsys)

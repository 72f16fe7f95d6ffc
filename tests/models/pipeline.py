"""A pipeline of filters, and where each byte of it must be.

Each transform is wrapped, so that the machine sees what the filter gave it and got from it. Then
every byte has one place: a filter has passed on the first `bytessent` bytes of its transform's
output, they are what the next one was given, and the rest is what the filter holds.
"""

from __future__ import annotations

import errno
import ssl
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from iobatch import IOB_DONE, IOB_ERROR, IOBatch, iob_write
from iobatch.filters import Filter
from tests.models.codings import CODECS, ENDS, HIGH_WATER, TRANSFORMS, Recorder, decode, make_tls
from tests.models.machine import Machine, patiently
from tests.models.wires import WIRES, Wire
from tests.support.filters import check_pipeline

if TYPE_CHECKING:
    from tests.support.tls import TLSClient


class StreamMachine(Machine):
    """Responses through codings of their own, and through the connection's own filter."""

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

    def check_end(self) -> None:
        if not self.failed:
            self.end_all()
        assert all(args == ("from a handler",) for args in self.lost)

    def clean_up(self) -> None:
        self.patch.undo()
        if self.wire is not None:
            self.wire.close()

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
        self.settled = True  # no exception of a handler has stopped the removal of sent entries
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

    def moved(self) -> int:
        return sum(each.bytessent for each in self.filters)

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

    def end_all(self) -> None:
        """Write and finish all, while the peer reads."""
        for each in self.recorders:
            each.fault = None
        self.answers = []
        if not self.finishing:
            for _ in patiently():
                if not self.batch:
                    break
                self.wire.read(1 << 20)
                code = iob_write(self.sock, self.batch, self.pipeline)
                assert code != IOB_ERROR, self.batch.error
                self.written += self.queue[: max(code, 0)]
                del self.queue[: max(code, 0)]
        for _ in patiently():
            code = self.pipeline.finish(self.sock)
            if code == IOB_DONE:
                break
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
        if self.settled:
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

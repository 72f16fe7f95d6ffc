"""A batch against plain bytes: every sender, while hooks, finalizers and signal handlers act."""

from __future__ import annotations

import errno
import gc
import socket
from contextlib import contextmanager
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant

from iobatch import (
    IOB_AGAIN,
    IOB_DONE,
    IOB_ERROR,
    TruncatedFileError,
    iob_send,
    iob_sendall,
    iob_sendmsg,
    iob_write,
)
from tests.models.adding import SIZES, AddingMachine
from tests.models.batch import ACTIONS, FILE_SIZE, Interruption
from tests.models.machine import every_round, run, step
from tests.models.offers import ANSWERS, Offers
from tests.models.wires import WIRES
from tests.support.batches import check_invariants
from tests.support.interruptions import KINDS, handler_at
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAULTS = (errno.ECONNRESET, errno.EPIPE, errno.ENOBUFS, errno.EIO)
ACCEPTED = st.one_of(SIZES.filter(bool), SIZES.filter(bool), st.none())
FAULT = st.sampled_from(FAULTS).map(lambda number: OSError(number, "scripted"))
SCRIPTS = st.one_of(
    st.lists(ACCEPTED, max_size=6), st.lists(st.one_of(ACCEPTED, FAULT), max_size=6)
)
LIMITS = st.one_of(st.integers(1, 200_000), st.none())
# What other code does during a call: nothing mostly.
INTERRUPTIONS = st.one_of(
    st.none(),
    st.none(),
    st.none(),
    st.tuples(st.just("handler"), st.integers(1, 60), st.sampled_from(ACTIONS)),
    st.tuples(st.just("raising"), st.integers(1, 60), st.sampled_from(KINDS)),
    st.tuples(st.just("finalizer"), st.just(0), st.sampled_from(ACTIONS)),
)


class BatchMachine(AddingMachine):
    """A batch on one of three wires."""

    OUTCOMES: ClassVar[frozenset[str]] = frozenset(
        {"IOB_DONE", "IOB_AGAIN", "IOB_ERROR", "some bytes", "a fault", "a truncated file"}
        | {"a handler raised", "a handler acted", "a finalizer acted", "the count is unknown"}
        | {"sendall sent all", "sendall ran out of time"}
        | {"a hook raised", "a hook acted", "a pinned offer", "prepend is refused", "wants to read"}
        | {f"on {wire}" for wire in WIRES}
    )

    @contextmanager
    def interrupted(self, interruption: Any) -> Iterator[None]:
        """Have other code run during a call, or raise out of it."""
        model = self.model
        kind, point, what = interruption or ("", 0, "")
        if kind == "handler":
            with handler_at(point, lambda: model.act_between(what)) as reached:
                yield
            if reached:
                self.reach("a handler acted")
        elif kind == "raising":
            raised: list[Exception] = []

            def raise_it() -> None:
                if not model.acting:  # else it is unknown how much of the action was done
                    raised.append(what("from a handler"))
                    raise raised[0]

            try:
                with handler_at(point, raise_it):
                    yield
            except KINDS as exc:
                assert [exc] == raised, "another exception left the call"  # noqa: PT017
                exc.__traceback__ = None
                self.settled = self.pin_known = False
                # It may have come in place of the report of a hook's exception.
                model.hook_errors = model.unraisable.count(OSError)
                self.reach("a handler raised")
            else:
                assert not raised, "the exception of a handler is lost"
        elif kind == "finalizer":
            acted = len(model.acted)
            threshold = gc.get_threshold()
            gc.disable()
            model.finalize_inside(what)
            gc.set_threshold(1)
            gc.enable()
            try:
                yield
            finally:
                gc.set_threshold(*threshold)
                if len(model.acted) == acted:
                    gc.collect(0)
            if len(model.acted) > acted:
                self.reach("a finalizer acted")
        else:
            yield

    def send_by(
        self,
        call: Callable[[], int | None],
        interruption: Any,
        reasons: list[Any],
        limit: int | None,
        offers: Offers | None = None,
    ) -> None:
        """Make a call that sends, and compare what it did with the contract."""
        model = self.model
        model.wire.script(reasons if offers is None else [])
        had_bytes = bool(model.plain.left)
        model.inner = 0
        model.wanted_read = False
        model.acted.clear()
        model.stopped = False
        code: int | None = None
        before = model.wire.accepted
        with self.interruptible(), self.interrupted(interruption):
            code = call()
            self.settled = True
        self.settled &= not model.stopped
        accepted = model.wire.accepted - before - model.inner
        model.sync()
        if set(ACTIONS) & set(model.acted):
            self.reach("a hook acted")
        if model.wire.scripted:
            model.wire.sock.script.clear()
        if code is not None:
            self.check_code(code, accepted, limit, had_bytes=had_bytes)
        self.check_error(reasons, offers, reset="reset" in model.acted)
        if offers is not None:
            self.pin_after(offers)

    def check_code(self, code: int, accepted: int, limit: int | None, *, had_bytes: bool) -> None:
        assert accepted == max(code, 0), (code, accepted, self.model.acted)
        assert limit is None or code <= limit
        if code == IOB_DONE:
            assert not had_bytes or self.model.acted
            self.reach("IOB_DONE")
        elif code == IOB_AGAIN:
            assert self.model.batch.wants == (EVENT_READ if self.model.wanted_read else EVENT_WRITE)
            self.reach("wants to read" if self.model.wanted_read else "IOB_AGAIN")
        elif code == IOB_ERROR:
            # A finalizer may run after the call.
            assert self.model.batch.error is not None or "reset" in self.model.acted
            self.reach("IOB_ERROR")
        else:
            self.reach("some bytes")
        assert not self.failed or code == IOB_ERROR or "reset" in self.model.acted

    def check_error(self, reasons: list[Any], offers: Offers | None, *, reset: bool) -> None:
        """Check that a batch fails only for a reason, and stays failed."""
        model = self.model
        error = model.batch.error
        if error is None:
            assert not self.failed or reset
            self.failed = False
            return
        if self.failed:
            return
        self.failed = True
        self.pinned, self.pin_known = None, True
        if "the number of bytes sent is unknown" in str(error):
            assert not self.settled
            self.reach("the count is unknown")
            assert model.batch.bytessent <= model.plain.sent, "more was counted than sent"
            assert iob_send(model.wire.sock, model.batch) == IOB_ERROR
            self.reset()
            if offers is not None:
                offers.last = "unknown"
        elif isinstance(error, TruncatedFileError):
            assert error.missing == model.plain.truncated > 0
            assert error.offset >= FILE_SIZE
            self.reach("a truncated file")
        else:
            expected = [each for each in reasons if isinstance(each, OSError)]
            assert (error.errno, type(error)) in [(each.errno, type(each)) for each in expected]
            assert error.__traceback__ is None
            self.reach("a fault")
        if model.batch.error is error:
            with pytest.raises(type(error)):
                model.batch.raise_for_error()

    @step(
        script=SCRIPTS,
        limit=LIMITS,
        flags=st.sampled_from([0, 0, 0, socket.MSG_DONTROUTE]),
        interruption=INTERRUPTIONS,
        descriptor=st.booleans(),
    )
    def send(
        self,
        script: list[Any],
        limit: int | None,
        flags: int,
        interruption: Any,
        *,
        descriptor: bool,
    ) -> None:
        model = self.model
        target: Any = model.wire.sock
        if descriptor and not (flags or model.wire.scripted):
            target = target.fileno()
        if model.plain.left and not self.failed:
            self.pinned, self.pin_known = None, True
        call = partial(iob_send, target, model.batch, limit=limit, flags=flags)
        self.send_by(call, interruption, script, limit)

    @step(script=SCRIPTS, interruption=INTERRUPTIONS)
    def sendmsg(self, script: list[Any], interruption: Any) -> None:
        model = self.model
        if model.plain.left and not self.failed:
            self.pinned, self.pin_known = None, True
        call = partial(iob_sendmsg, model.wire.sock, model.batch)
        self.send_by(call, interruption, script, None)

    @step(answers=st.lists(ANSWERS, max_size=4), limit=LIMITS, interruption=INTERRUPTIONS)
    def write(self, answers: list[str], limit: int | None, interruption: Any) -> None:
        self.write_by(Offers(self.model, answers), limit, interruption)

    @step(lambda self: self.pinned is not None and self.pin_known, limit=st.integers(1, 99_999))
    def retry(self, limit: int) -> None:
        """Write after "again": the same bytes are offered, whatever the limit."""
        self.write_by(Offers(self.model, []), limit, None)

    def write_by(self, offers: Offers, limit: int | None, interruption: Any) -> None:
        model = self.model
        known = self.pin_known
        expected = self.pinned if known else None
        failed = self.failed

        def call() -> int | None:
            try:
                return iob_write(model.wire.sock, model.batch, offers.take, limit=limit)
            except ValueError:
                assert offers.last in {"ValueError", "too many"}
                return None

        self.send_by(call, interruption, offers.reasons, None, offers)
        assert not (failed and offers.seen) or model.acted
        if expected is not None and offers.seen and not model.acted:
            assert offers.seen[0] == expected
            self.reach("a pinned offer")
        if limit is not None and known and not model.acted:
            assert sum(map(len, offers.seen)) <= max(limit, len(expected or b""))

    def pin_after(self, offers: Offers) -> None:
        if not self.settled or {"send", "reset", "move away and back"} & {*self.model.acted}:
            self.pin_known = False
        elif self.failed or offers.last == "unknown":
            self.pinned, self.pin_known = None, True
        elif offers.seen:
            if offers.last in {"ValueError", "too many"}:  # as before the last call
                self.pinned = self.pinned if len(offers.seen) == 1 else None
                return
            self.pinned = offers.seen[-1] if offers.last == "again" else None
            self.pin_known = True
        if self.pinned is not None and self.pin_known:
            with pytest.raises(RuntimeError, match="offered to the callback again"):
                self.model.batch.prepend(b"refused")
            self.reach("prepend is refused")

    @step(
        script=SCRIPTS, limit=LIMITS, through=st.booleans(), answers=st.lists(ANSWERS, max_size=3)
    )
    def sendall(
        self, script: list[Any], limit: int | None, answers: list[str], *, through: bool
    ) -> None:
        model = self.model
        scripted = model.wire.scripted
        # An unconnected socket polls as writable, so the script alone decides when it is full.
        answers = [each for each in answers if each not in {"ValueError", "too many"}]
        offers = Offers(model, answers)
        progress: list[int] = []
        # With the timeout a call that lost bytes fails; else it would never end.
        timeout = PATIENCE if scripted and "SSLWantReadError" not in answers else 0
        mode = model.wire.sock.gettimeout()

        def call() -> int | None:
            callback = offers.take if through else None
            try:
                sent = iob_sendall(
                    model.wire.sock,
                    model.batch,
                    callback,
                    timeout=timeout,
                    limit=limit,
                    progress=progress.append,
                )
            except TimeoutError:
                assert timeout == 0, "the call never ends"
                self.reach("sendall ran out of time")
                return None
            except OSError as exc:
                if repr(exc) != repr(model.batch.error):
                    raise
                return None
            assert sent == sum(progress)
            assert not model.batch
            self.reach("sendall sent all")
            return sent

        if not through and model.plain.left and not self.failed:
            self.pinned, self.pin_known = None, True
        reasons = offers.reasons if through else script
        self.send_by(call, None, reasons, None, offers if through else None)
        assert model.wire.sock.gettimeout() == mode

    @step(nbytes=st.integers(1, 100_000))
    def receive(self, nbytes: int) -> None:
        self.model.wire.read(nbytes)

    @invariant()
    def batch_agrees_with_the_model(self) -> None:
        model = self.model
        batch, plain = model.batch, model.plain
        model.releases.check(settled=self.settled)
        assert (batch.bytesleft, batch.bytessent) == (plain.left, plain.sent)
        assert bool(batch) is bool(plain.left)
        assert f"{plain.left} bytes left, {plain.sent} sent" in repr(batch)
        assert (batch.error is not None) is self.failed
        assert model.wire.accepted == len(model.stream)
        assert model.stream.startswith(model.wire.received)
        assert model.unraisable.count(OSError) == model.hook_errors
        others = {*model.unraisable} - {OSError}
        assert others <= {KeyboardInterrupt, Interruption}, model.unraisable
        if self.settled:
            check_invariants(batch)


@every_round
def test_batch_agrees_with_plain_bytes(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    run(BatchMachine, number, capsys)

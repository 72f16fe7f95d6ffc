"""What the machines share: the account of what they reach, and how a test runs them."""

from __future__ import annotations

import faulthandler
import functools
import sys
from collections import Counter
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import event, settings
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NIGHTLY = settings.get_current_profile_name() == "nightly"
ROUNDS = 16 if NIGHTLY else 1  # the tests of each machine


def every_round(test: Callable[..., None]) -> Any:
    """Repeat a test. To shorten a sequence that fails may take minutes."""
    return pytest.mark.timeout(900)(pytest.mark.parametrize("number", range(ROUNDS))(test))


def patiently() -> Iterator[None]:
    """Yield until the loop around it ends; fail after PATIENCE seconds."""
    deadline = monotonic() + PATIENCE
    while monotonic() < deadline:
        yield
    raise AssertionError("the bytes that are left are never sent")


@contextmanager
def no_keyboard_interrupt() -> Iterator[None]:
    """Fail if a KeyboardInterrupt leaves the block: it would end the run, not fail the test."""
    try:
        yield
    except KeyboardInterrupt as exc:
        raise AssertionError("KeyboardInterrupt left a step") from exc


class Machine(RuleBasedStateMachine):
    """A machine that counts its steps, and what they reach."""

    # What a run must reach besides each rule.
    OUTCOMES: ClassVar[frozenset[str]] = frozenset()
    reached: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self._handled = sys.exception()

    def reach(self, outcome: str) -> None:
        event(outcome)
        self.reached[outcome] += 1

    def teardown(self) -> None:
        """End an example. If a step has failed, its exception is the one that is reported."""
        failed = sys.exception() is not self._handled
        try:
            if not failed:
                failed = True
                with no_keyboard_interrupt():
                    self.check_end()
                failed = False
        finally:
            with suppress(*[Exception] * failed):
                self.clean_up()

    def check_end(self) -> None:
        """Check the end of an example in which no step has failed."""

    def clean_up(self) -> None:
        """Close everything. No hook does anything any more, and no signal is sent."""


def step(
    when: Callable[[Any], object] = lambda _: True, /, **strategies: Any
) -> Callable[[Callable[..., None]], Any]:
    """Make a method a rule that does nothing unless `when(machine)` is true; count it if it is.

    A precondition must not depend on what a socket did, since Hypothesis must be able to repeat
    what it has drawn.
    """

    def decorate(method: Callable[..., None]) -> Any:
        @functools.wraps(method)
        def counted(self: Machine, **drawn: Any) -> None:
            if not when(self):
                return
            self.reached["steps"] += 1
            self.reached[method.__name__] += 1
            with no_keyboard_interrupt():
                method(self, **drawn)

        made: Any = rule(**strategies)(counted)
        made.is_step = True
        return made

    return decorate


def run(machine: type[Machine], number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a machine. By its last round a nightly run must have reached each rule and outcome."""
    if number == 0:
        machine.reached = Counter()
    # To shorten takes minutes, and a dump of stacks from another thread can crash the interpreter.
    faulthandler.cancel_dump_traceback_later()
    run_state_machine_as_test(machine)  # type: ignore[no-untyped-call]
    if NIGHTLY and number == ROUNDS - 1:
        reached = machine.reached
        with capsys.disabled():
            print(f"\n{machine.__name__}: {reached['steps']} steps")
            print(", ".join(f"{name} {count}" for name, count in sorted(reached.items())))
        rules = {name for name in dir(machine) if hasattr(getattr(machine, name), "is_step")}
        missing = (rules | machine.OUTCOMES) - reached.keys()
        assert not missing, f"never reached: {sorted(missing)}"

"""What the machines share: the account of what they reach, and how a test runs them."""

from __future__ import annotations

import faulthandler
import functools
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import event, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

if TYPE_CHECKING:
    from collections.abc import Callable

NIGHTLY = settings.get_current_profile_name() == "nightly"
ROUNDS = 16 if NIGHTLY else 1  # the tests of each machine


def every_round(test: Callable[..., None]) -> Any:
    """Repeat a test. To shorten a sequence that fails may take minutes."""
    return pytest.mark.timeout(900)(pytest.mark.parametrize("number", range(ROUNDS))(test))


class Machine(RuleBasedStateMachine):
    """A machine that counts its steps, and what they reach."""

    # What a run must reach besides each rule.
    OUTCOMES: ClassVar[frozenset[str]] = frozenset()
    reached: ClassVar[Counter[str]] = Counter()

    def reach(self, outcome: str) -> None:
        event(outcome)
        self.reached[outcome] += 1

    @invariant()
    def count_step(self) -> None:
        self.reached["steps"] += 1


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
            self.reached[method.__name__] += 1
            try:
                method(self, **drawn)
            except KeyboardInterrupt as exc:  # it would end the run, not fail the test
                raise AssertionError("KeyboardInterrupt left a step") from exc

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

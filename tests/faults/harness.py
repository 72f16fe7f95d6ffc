"""Scenarios, and running each with every fault at every system call that it makes.

A scenario is a function of a Run. It makes its sockets, files and batches, drives the library
inside `run.counting()`, checks what arrived by the facts below, and closes everything. Calls
outside `run.counting()`, as those of the peer, have no faults.

The clean runs give the number of calls of each name. Then the scenario runs once for each of these
calls and each kind of fault. After each run:

- the fault has happened exactly once;
- all descriptors are closed, and none was closed twice;
- sys.unraisablehook was given nothing, except the error of a close(2) that failed, which the
  documentation promises to report there: once;
- the number of calls is bounded by a multiple of that of a clean run. shim.c aborts the process at
  the call after that, and a run that hangs ends the process after PATIENCE seconds, both with the
  tracebacks of all threads.

The scenario itself checks what only it knows: see scenarios/.
"""

from __future__ import annotations

import errno
import gc
import importlib
import pkgutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.faults import scenarios
from tests.faults.shim import ERRORS, NO_LIMIT, SIGNAL, TRANSFERS, Fault, Shim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import FrameType


class Interrupted(BlockingIOError):  # noqa: N818 # it is no error
    """What the handler of SIGNAL raises: the library must not take it for "again"."""


class Run:
    """One run of a scenario.

    Attributes:
        fault: what happens in this run; None: a clean run.
        folder: for files.
        reports: what sys.unraisablehook was given.

    """

    def __init__(self, shim: Shim, folder: Path, fault: Fault | None = None) -> None:
        self.shim = shim
        self.folder = folder
        self.fault = fault
        self.reports: list[BaseException | None] = []

    def counting(self) -> AbstractContextManager[None]:
        """Return a context in which calls are counted, and in which the fault can happen."""
        return self.shim.counting()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count no calls of this block, inside counting()."""
        self.shim.stop()
        yield
        self.shim.start()

    def is_fault(self, error: BaseException | None) -> bool:
        """Return whether an error is that of the fault."""
        fault = self.fault
        if fault is None:
            return False
        if fault.signal:
            return isinstance(error, Interrupted)
        return isinstance(error, OSError) and error.errno == fault.number


class Scenario(NamedTuple):
    """A function of a Run, and which faults it is not run with.

    Attributes:
        name: the function's.
        function: the scenario.
        signals: whether handlers of signals raise, too.
        spared: faults that are left out, as a pair of call and kind; None stands for all of them.

    """

    name: str
    function: Callable[[Run], object]
    signals: bool
    spared: frozenset[tuple[str | None, str | None]]

    def kinds(self, call: str) -> list[str]:
        """Return the kinds of faults of a call."""
        kinds = [*ERRORS, *(["short"] if call in TRANSFERS else [])]
        if self.signals:
            kinds += ["signal", "signal+EINTR"]
            kinds += ["signal+short"] if call in TRANSFERS else []
        spared = self.spared
        return [kind for kind in kinds if not {(call, kind), (None, kind), (call, None)} & spared]


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    *, signals: bool = True, spared: tuple[tuple[str | None, str | None], ...] = ()
) -> Callable[[Callable[[Run], object]], Callable[[Run], object]]:
    """Register a scenario. A reason stands beside each fault that is spared."""

    def register(function: Callable[[Run], object]) -> Callable[[Run], object]:
        name = function.__name__
        SCENARIOS[name] = Scenario(name, function, signals, frozenset(spared))
        return function

    return register


def load_scenarios() -> dict[str, Scenario]:
    """Import all modules with scenarios; return the scenarios by their names."""
    for module in pkgutil.iter_modules(scenarios.__path__, f"{scenarios.__name__}."):
        importlib.import_module(module.name)
    return SCENARIOS


class Result(NamedTuple):
    """What the runs of a scenario found.

    Attributes:
        calls: the number of calls of a clean run.
        combinations: the number of faults.
        met: how many of them happened.
        failures: the fault and the reason of each run that failed.

    """

    calls: int
    combinations: int
    met: int
    failures: list[tuple[str, str]]


class Runner:
    """Runs scenarios in this process, which was started with the shim."""

    def __init__(self, folder: Path, started: Callable[[str, str], object]) -> None:
        """Make a runner.

        Args:
            folder: for files.
            started: called before each run with the scenario's name and the fault.

        """
        self.shim = Shim()
        self.folder = folder
        self.started = started

        def handler(_number: int, frame: FrameType | None) -> None:
            # The library recognizes a handler by its frame argument.
            raise Interrupted(errno.EAGAIN, "from a handler")

        signal.signal(SIGNAL, handler)

    def run(self, scenario: Scenario, faults: list[Fault] | None, *, ends: bool) -> Result:
        """Run a scenario with each fault.

        Args:
            scenario: the scenario.
            faults: the faults; None: all.
            ends: only the first and the last call of each name have faults.

        """
        try:
            clean = [self._run_once(scenario, None, NO_LIMIT) for _ in range(2)]
        except Exception as exc:  # noqa: BLE001 # as below
            return Result(0, 0, 0, [("", describe(exc))])
        # The first run makes more calls: it imports modules, for example.
        counts = {name: min(count, clean[0].get(name, 0)) for name, count in clean[1].items()}
        counts = {name: count for name, count in counts.items() if count}
        calls = sum(clean[-1].values())
        if faults is None:
            faults = list(all_faults(scenario, counts, ends=ends))
        met = 0
        failures = []
        for fault in faults:
            try:
                self._run_once(scenario, fault, 4 * calls + 100)
                met += 1
            except Exception as exc:  # noqa: BLE001 # a failure is reported, and the next run begins
                failures.append((str(fault), describe(exc)))
        return Result(calls, len(faults), met, failures)

    def _run_once(self, scenario: Scenario, fault: Fault | None, limit: int) -> dict[str, int]:
        """Run a scenario once, and check everything; return the number of calls of each name."""
        shim = self.shim
        run = Run(shim, self.folder, fault)
        self.started(scenario.name, str(fault or ""))
        before, bad_closes = open_descriptors(), shim.bad_closes
        sys.unraisablehook = lambda args: run.reports.append(args.exc_value)
        shim.arm(fault, limit)
        try:
            scenario.function(run)
        finally:
            counts, met = shim.counts(), shim.met
            shim.arm()
            if open_descriptors() != before:
                gc.collect()
            sys.unraisablehook = sys.__unraisablehook__
        assert open_descriptors() == before, "a descriptor is still open, or one more is closed"
        assert shim.bad_closes == bad_closes, "a descriptor was closed twice"
        check_reports(run)
        assert met == (fault is not None), f"the fault happened {met} times: {counts}"
        return counts


def check_reports(run: Run) -> None:
    """Check that nothing was reported as unraisable, except the failure to close, once."""
    fault = run.fault
    reports = run.reports
    if fault is not None and fault.signal:
        # A handler can raise before a file that was just opened has another owner than itself: its
        # finalizer closes it.
        reports = [report for report in reports if not isinstance(report, ResourceWarning)]
    if fault is not None and fault.call == "close" and not fault.signal and len(reports) == 1:
        assert run.is_fault(reports[0]), f"reported: {reports!r}"
    else:
        assert reports == [], f"reported: {reports!r}"


def all_faults(scenario: Scenario, counts: dict[str, int], *, ends: bool) -> Iterator[Fault]:
    """Yield the faults of each call, or of the first and the last of each name."""
    for call, count in counts.items():
        for nth in sorted({1, count}) if ends else range(1, count + 1):
            for kind in scenario.kinds(call):
                yield Fault(call, nth, kind)


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def describe(exc: BaseException) -> str:
    """Return an exception, and where in this package it was raised last."""
    place, each = "", exc.__traceback__
    while each is not None:
        code: Any = each.tb_frame.f_code
        if "tests" in code.co_filename:
            place = f" ({Path(code.co_filename).name}:{each.tb_lineno})"
        each = each.tb_next
    return f"{type(exc).__name__}: {exc}{place}"

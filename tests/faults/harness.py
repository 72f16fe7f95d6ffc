"""Scenarios, and running each with every fault at every system call that it makes.

A scenario is a function of a Run. It makes its sockets, files and batches, drives the library
inside `run.counting()`, checks what arrived by the facts below, and closes everything. Calls
outside `run.counting()`, as those of the peer, have no faults.

A clean run gives the calls of each name, and what they return. It makes at most the calls that
calls.txt has, so one that spins without a fault fails, too. Then the scenario runs once for each of
these calls and each kind of fault that can have an effect there: see Scenario.kinds(). After each
run:

- the fault has happened exactly once, and a call that returned short transferred fewer bytes than
  it would have;
- all descriptors are closed, and none was closed twice;
- sys.unraisablehook was given nothing, except the error of a close(2) that failed, which the
  documentation promises to report there for an owned file: exactly once;
- the number of calls is bounded by that of a clean run. shim.c aborts the process at the call after
  that, and a run that hangs ends the process after PATIENCE seconds, both with the tracebacks of
  all threads.

The scenario itself checks what only it knows: see scenarios/.
"""

from __future__ import annotations

import errno
import functools
import gc
import importlib
import pkgutil
import signal
import sys
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.faults import scenarios
from tests.faults.shim import KINDS, MOST_RESULTS, NO_LIMIT, SHORTS, SIGNAL, TRANSFERS, Fault, Shim
from tests.support.sockets import open_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from contextlib import AbstractContextManager
    from types import FrameType


# The most calls of each name that a clean run makes; *: it depends on the order of threads.
CALLS_FILE = Path(__file__).with_name("calls.txt")
# Each close(2).
EVERY = range(1, MOST_RESULTS)
# Clean runs, until one makes no more calls than it may: the first one imports modules, for example.
CLEAN_RUNS = 4


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
        calls: the most calls of each name that a clean run makes.
        silent: which calls of close(2) are not of files that a batch owns: their failure is not
            reported.
        spared: faults that are left out, as a pair of call and kind; None stands for all of them.

    """

    name: str
    function: Callable[[Run], object]
    calls: Counter[str]
    silent: Container[int]
    spared: frozenset[tuple[str | None, str | None]]

    def kinds(self, call: str, result: int) -> list[str]:
        """Return the kinds of faults that have an effect at a call.

        A call that fails in a clean run can't fail with the same errno, and one that transfers
        fewer than two bytes can't transfer fewer.

        Args:
            call: its name.
            result: what it returns in a clean run; a negative errno if it fails.

        """
        spared = self.spared
        return [
            kind
            for kind in KINDS
            if not {(call, kind), (None, kind), (call, None)} & spared
            and (kind not in SHORTS or (call in TRANSFERS and result > 1))
            and getattr(errno, kind, None) != -result
        ]


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    *,
    silent: Container[int] = (),
    spared: tuple[tuple[str | None, str | None], ...] = (),
) -> Callable[[Callable[[Run], object]], Callable[[Run], object]]:
    """Register a scenario. A reason stands beside each fault and report that it is spared."""

    def register(function: Callable[[Run], object]) -> Callable[[Run], object]:
        name = function.__name__
        SCENARIOS[name] = Scenario(name, function, read_calls()[name], silent, frozenset(spared))
        return function

    return register


@functools.cache
def read_calls() -> dict[str, Counter[str]]:
    """Return the content of CALLS_FILE, by scenarios."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for line in CALLS_FILE.read_text().splitlines():
        name, *fields = line.split()
        for call, count in zip(fields[::2], fields[1::2], strict=True):
            found[name][call] = NO_LIMIT if count == "*" else int(count)
    return found


def load_scenarios() -> dict[str, Scenario]:
    """Import all modules with scenarios; return the scenarios by their names."""
    for module in pkgutil.iter_modules(scenarios.__path__, f"{scenarios.__name__}."):
        importlib.import_module(module.name)
    return SCENARIOS


class Runner:
    """Runs scenarios in this process, which was started with the shim."""

    def __init__(self, folder: Path, report: Callable[..., object]) -> None:
        """Make a runner.

        Args:
            folder: for files.
            report: called with an event and its values: see child.py.

        """
        self.shim = Shim()
        self.folder = folder
        self.report = report

        def handler(_number: int, frame: FrameType | None) -> None:
            # The library recognizes a handler by its frame argument.
            raise Interrupted(errno.EAGAIN, "from a handler")

        signal.signal(SIGNAL, handler)

    def run(self, scenario: Scenario, faults: list[Fault] | None, *, ends: bool) -> None:
        """Run a scenario with each fault.

        Args:
            scenario: the scenario.
            faults: the faults; None: all.
            ends: only the first and the last call of each name have faults.

        """
        for _ in range(CLEAN_RUNS):
            results = self._run_once(scenario, None, NO_LIMIT)
            if results is None:
                return
            counts = Counter({call: len(each) for call, each in results.items()})
            excess = counts - scenario.calls
            if not excess:
                break
        calls = counts.total()
        self.report("clean", calls, f"more calls than in calls.txt: {counts}" if excess else "")
        if excess:
            return
        for fault in all_faults(scenario, results, ends=ends) if faults is None else faults:
            result = results.get(fault.call, [])[fault.nth - 1 : fault.nth]
            self._run_once(scenario, fault, 2 * calls + 50, sum(result) // 2 or -1)

    def _run_once(
        self, scenario: Scenario, fault: Fault | None, limit: int, part: int = 0
    ) -> dict[str, list[int]] | None:
        """Run a scenario, check everything, and report that; return the calls' results, if right.

        Args:
            scenario: the scenario.
            fault: what happens.
            limit: the process aborts after this number of calls.
            part: the number of bytes that a short call transfers.

        """
        shim = self.shim
        run = Run(shim, self.folder, fault)
        self.report("at", str(fault or ""))
        before, bad_closes = open_descriptors(), shim.bad_closes
        sys.unraisablehook = lambda args: run.reports.append(args.exc_value)
        shim.arm(fault, limit, part)
        met, results, why = 0, {}, ""
        try:
            try:
                scenario.function(run)
            finally:
                results, met = shim.results(), shim.met
                shim.arm()
                if open_descriptors() != before:
                    gc.collect()
                sys.unraisablehook = sys.__unraisablehook__
            assert open_descriptors() == before, "a descriptor is still open, or one more is closed"
            assert shim.bad_closes == bad_closes, "a descriptor was closed twice"
            check_reports(run, scenario)
            assert met == (fault is not None), f"the fault was met {met} times"
        except Exception as exc:  # noqa: BLE001 # a failure is reported, and the next run begins
            why = describe(exc)
        self.report("ran", met, why)
        return None if why else results


def check_reports(run: Run, scenario: Scenario) -> None:
    """Check that nothing was reported as unraisable, except each failure to close a file, once."""
    fault = run.fault
    reports = run.reports
    if fault is not None and fault.signal:
        # A handler can raise before a file that was just opened has another owner than itself: its
        # finalizer closes it.
        reports = [report for report in reports if not isinstance(report, ResourceWarning)]
    if (
        fault is not None
        and fault.call == "close"
        and not fault.signal
        and fault.nth not in scenario.silent
    ):
        assert [run.is_fault(report) for report in reports] == [True], f"reported: {reports!r}"
    else:
        assert reports == [], f"reported: {reports!r}"


def all_faults(scenario: Scenario, results: dict[str, list[int]], *, ends: bool) -> Iterator[Fault]:
    """Yield the faults of each call, or of the first and the last of each name."""
    for call, each in results.items():
        for nth in sorted({1, len(each)}) if ends else range(1, len(each) + 1):
            for kind in scenario.kinds(call, each[nth - 1]):
                yield Fault(call, nth, kind)


def describe(exc: BaseException) -> str:
    """Return an exception, and where in this package it was raised last."""
    place, each = "", exc.__traceback__
    while each is not None:
        code: Any = each.tb_frame.f_code
        if "tests" in code.co_filename:
            place = f" ({Path(code.co_filename).name}:{each.tb_lineno})"
        each = each.tb_next
    return f"{type(exc).__name__}: {exc}{place}"

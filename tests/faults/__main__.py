"""Run every scenario with every fault at every system call, in both forms.

shim.c makes the nth call of a name fail with an errno, return short, or end with a signal whose
handler raises. The program runs each scenario with each fault that can have an effect in it, proves
by counting that each was met, and prints a row for each scenario, a table of the faults that were
met, and each failure as an argument that repeats it alone. It exits with 1 if there is a failure,
or if all scenarios together never meet one of the faults. harness.py and delivery.py describe what
is checked after each run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults.harness import load_scenarios
from tests.faults.shim import CALLS, ERRORS, KINDS, OTHERS, TRANSFERS, Fault, build
from tests.support.programs import ROOT, environment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FORMS = ("compiled", "pure")
HEADING = f"{'scenario':32} {'form':8} {'calls':>5} {'combinations':>12} {'met':>5} {'passed':>6}"


@dataclass
class Row:
    """What the runs of a scenario reported.

    Attributes:
        argument: the scenario, or one fault of it.
        form: of the library.
        calls: the number of calls of a clean run.
        combinations: the number of runs with a fault.
        met: how often each fault was met, by its call and kind.
        passed: the number of runs with a fault in which nothing was wrong.
        ended: the fault that ended the process; None: it has not ended.
        failures: the argument that repeats a run, and why it failed.

    """

    argument: str
    form: str
    calls: int = 0
    combinations: int = 0
    met: Counter[tuple[str, str]] = field(default_factory=Counter)
    passed: int = 0
    ended: str | None = None
    failures: list[tuple[str, str]] = field(default_factory=list)
    _fault: str = ""

    def __str__(self) -> str:
        numbers = f"{self.combinations:12} {self.met.total():5} {self.passed:6}"
        ended = "" if self.ended is None else f" ENDED the process at {self.ended or 'no fault'}"
        return f"{self.argument:32} {self.form:8} {self.calls:5} {numbers}{ended}"

    def take(self, event: str, *values: Any) -> None:
        """Take an event of child.py."""
        if event == "at":
            [self._fault] = values
            self.combinations += bool(self._fault)
        elif event == "ran":
            met, why = values
            if self._fault:
                call, _, kind = Fault.parse(self._fault)
                self.met[call, kind] += met
                self.passed += not why
            self._fail(why)
        elif event == "clean":
            self.calls, why = values
            self._fault = ""
            self._fail(why)

    def end(self, why: str) -> None:
        """Record that the process has ended during a run."""
        self.ended = self._fault
        self._fail(why)

    def _fail(self, why: str) -> None:
        if why:
            name = self.argument.partition("/")[0]
            self.failures.append((f"{name}/{self._fault}".rstrip("/"), why))


def run(shim: Path, chosen: list[str], form: str, *, ends: bool = False) -> Iterator[Row]:
    """Run scenarios in a process with the shim; yield the row of each when it has ended.

    If the process ends during a scenario, another one runs the scenarios after it.

    Args:
        shim: the library to preload.
        chosen: the scenarios: the arguments of this program.
        form: of the library, which must be there.
        ends: only the first and the last call of each name have faults.

    """
    changes = {"LD_PRELOAD": str(shim), "IOBATCH_PURE": "1" if form == "pure" else ""}
    left = list(chosen)
    while left:
        row = None
        # A ResourceWarning is reported as unraisable.
        arguments = ["-W", "error", "-m", "tests.faults.child", "ends" if ends else "all", *left]
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env=environment(**changes),
            )
            with process:
                assert process.stdout is not None
                for line in process.stdout:
                    event, *values = json.loads(line)
                    if event == "form":
                        assert values == [form == "compiled"], "this is the other form"
                    elif event == "begin":
                        row = Row(left.pop(0), form)
                    elif row is not None and event == "end":
                        yield row
                        row = None
                    elif row is not None:
                        row.take(event, *values)
            errors.seek(0)
            why = f"ended the process, {process.returncode}:\n{errors.read()}"
        if row is not None:
            row.end(why)
            yield row
        elif process.returncode:
            raise RuntimeError(why)


def total_of(rows: Iterable[Row], form: str = "") -> Row:
    """Return a row with the sums of some rows."""
    total = Row("total", form)
    for row in rows:
        total.calls += row.calls
        total.combinations += row.combinations
        total.met += row.met
        total.passed += row.passed
    return total


def unmet(total: Row, call: str) -> list[str]:
    """Return the kinds of faults of a call that no scenario has met."""
    short = ["short"] if call in TRANSFERS and call != "sendto" else []  # it sends datagrams
    return [kind for kind in (*ERRORS, *short) if not total.met[call, kind]]


def table(total: Row) -> Iterator[str]:
    """Yield the lines of a table: how often each fault was met, by call and kind."""
    yield " ".join([f"{'met':13}", *KINDS])
    for call in (*CALLS, *OTHERS):
        yield " ".join([f"{call:13}", *(f"{total.met[call, kind]:{len(kind)}}" for kind in KINDS)])


def argument(text: str) -> str:
    """Return an argument that names a scenario, or a fault in one; raise ValueError otherwise."""
    name, slash, fault = text.partition("/")
    if name not in load_scenarios():
        raise ValueError(text)
    if slash:
        Fault.parse(fault)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Scenarios: {', '.join(load_scenarios())}.",
    )
    parser.add_argument(
        "chosen",
        nargs="*",
        type=argument,
        metavar="SCENARIO[/CALL:NTH:KIND]",
        help="a scenario, or one run of it; all if there is none",
    )
    parser.add_argument("--form", choices=FORMS, help="run one form in place of both")
    options = parser.parse_args()
    forms = [options.form] if options.form else FORMS
    if "compiled" in forms and find_spec("iobatch._speedups") is None:
        parser.error("the compiled form is not there: build it, or give --form pure")
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        shim = build(Path(folder))
        for form in forms:
            print(HEADING)
            rows = []
            for row in run(shim, options.chosen or list(load_scenarios()), form):
                found = [f"--form {form} {repeated} {why}" for repeated, why in row.failures]
                print(row, *found, sep="\nFAILED: ", flush=True)
                failures += found
                rows.append(row)
            if not options.chosen:
                total = total_of(rows, form)
                found = [
                    f"{call} is never met with {kinds}"
                    for call in CALLS
                    if (kinds := unmet(total, call))
                ]
                print(total, "", *table(total), sep="\n")
                print("", *found, sep="\nFAILED: ", flush=True)
                failures += found
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())

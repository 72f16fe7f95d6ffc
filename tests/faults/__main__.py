"""Run every scenario with every fault at every system call, in both forms.

    python -m tests.faults [SCENARIO[/CALL:NTH:KIND] ...]

shim.c makes the nth call of a name fail with an errno, return short, or end with a signal whose
handler raises. The program runs each scenario with each fault that it can meet, proves by counting
that the fault was met, and prints a table, and each failure as an argument that repeats it alone.
It exits with 1 if there is one. harness.py and delivery.py say what is checked after each run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.faults.shim import build
from tests.support.programs import ROOT, environment


class Report(NamedTuple):
    """What a process with the shim reported.

    Attributes:
        compiled: whether the process used the compiled form.
        rows: the scenario, the number of calls, of combinations, and of faults that were met.
        failures: the argument that repeats a run, and why it failed.

    """

    compiled: bool
    rows: list[tuple[str, int, int, int]]
    failures: list[tuple[str, str]]


def run(shim: Path, chosen: list[str], *, ends: bool = False, **changes: str) -> Report:
    """Run scenarios in a process with the shim.

    Args:
        shim: the library to preload.
        chosen: the arguments of this program.
        ends: only the first and the last call of each name have faults.
        changes: of the environment.

    """
    compiled = False
    rows: list[tuple[str, int, int, int]] = []
    failures: list[tuple[str, str]] = []
    last = ""
    # A ResourceWarning is reported as unraisable.
    arguments = ["-W", "error", "-m", "tests.faults.child", "ends" if ends else "all", *chosen]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env=environment(LD_PRELOAD=str(shim), **changes),
        )
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                event, value, *rest = json.loads(line)
                if event == "form":
                    compiled = value
                elif event == "at":
                    last = f"{value}/{rest[0]}"
                else:
                    calls, combinations, met, failed = rest
                    rows.append((value, calls, combinations, met))
                    failures.extend((f"{value}/{fault}", why) for fault, why in failed)
        if process.returncode:
            errors.seek(0)
            failures.append((last, f"ended the process, {process.returncode}:\n{errors.read()}"))
    return Report(compiled, rows, failures)


def main() -> int:
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        shim = build(Path(folder))
        print(f"{'scenario':40} {'form':8} {'calls':>6} {'combinations':>12} {'met':>6}")
        total = [0, 0]
        for pure in ("", "1"):
            report = run(shim, sys.argv[1:], IOBATCH_PURE=pure)
            form = "compiled" if report.compiled else "pure"
            for name, calls, combinations, met in report.rows:
                print(f"{name:40} {form:8} {calls:6} {combinations:12} {met:6}")
                total = [total[0] + combinations, total[1] + met]
            for argument, why in report.failures:
                print(f"FAILED, {form}: {argument} {why}")
                failed = True
        print(f"{'total':56} {total[0]:12} {total[1]:6}")
    return failed


if __name__ == "__main__":
    sys.exit(main())

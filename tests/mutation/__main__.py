"""Mutation testing: each change of a statement must fail a test of its subject.

The operators of cosmic-ray, and one that deletes a statement, change the functions of the core,
filters, aio and anyio in the pure form, one place at a time. A mutant that no test notices shows a
fact that no test holds, or code that does nothing. survivors.txt has the mutants that no test can
notice, each with its reason. The program fails if a mutant survives that is not in this list, and
if a mutant in the list fails a test or no longer exists.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.mutation.mutants import mutants_of
from tests.mutation.subjects import SUBJECTS

if TYPE_CHECKING:
    from tests.mutation.mutants import Mutant
    from tests.mutation.runner import Runner


def read_reasons(modules: list[str]) -> dict[str, str]:
    """Return the names and reasons of the mutants of some modules that no test can notice."""
    text = Path(__file__).with_name("survivors.txt").read_text()
    lines = [line.split("  # ", 1) for line in text.splitlines() if line and line[0] != "#"]
    starts = tuple(f"{module}." for module in modules)
    return {name: reason for name, reason in lines if name.startswith(starts)}


class Comparison:
    """Runs mutants, and compares those that survive with the list."""

    def __init__(self, mutants: list[Mutant], reasons: dict[str, str]) -> None:
        """Prepare to run some mutants."""
        self._mutants = mutants
        self._reasons = reasons
        self.passed = False

    def run(self, runner: Runner) -> None:
        """Run the mutants; print those that differ from the list, and the numbers."""
        names = {mutant.name for mutant in self._mutants}
        survivors: set[str] = set()
        killed = 0
        for mutant in self._mutants:
            if runner.killer(mutant) is not None:
                killed += 1
                continue
            survivors.add(mutant.name)
            if mutant.name not in self._reasons:
                print(f"survived: {mutant.name}")
        stale = self._reasons.keys() & names - survivors
        for name in sorted(stale):
            print(f"in survivors.txt, but killed: {name}")
        print(f"{len(self._mutants)} mutants, {killed} killed")
        self.passed = not stale and survivors <= self._reasons.keys()


def main() -> int:
    """Run the mutants of some modules, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(SUBJECTS))
    parser.add_argument("--sample", type=int, metavar="N", help="N mutants, always the same ones")
    options = parser.parse_args()
    modules: list[str] = options.modules or list(SUBJECTS)
    mutants = [mutant for module in modules for mutant in mutants_of(module)]
    reasons = read_reasons(modules)
    unknown = sorted(reasons.keys() - {mutant.name for mutant in mutants})
    for name in unknown:
        print(f"in survivors.txt, but no mutant: {name}")
    if options.sample:
        mutants = random.Random(0).sample(mutants, options.sample)
    os.environ["IOBATCH_PURE"] = "1"
    from tests.mutation.runner import run_tests  # noqa: PLC0415 # it imports iobatch

    comparison = Comparison(mutants, reasons)
    run_tests(modules, comparison.run)
    return not comparison.passed or bool(unknown)


if __name__ == "__main__":
    sys.exit(main())

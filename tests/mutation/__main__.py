"""Mutation testing: each change of a statement must fail a test of its subject.

The operators of cosmic-ray, and one that deletes a statement, change the functions of the core,
filters, aio and anyio in the pure form, one place at a time. A mutant that no test notices shows a
fact that no test holds, or code that does nothing. survivors.txt has the mutants that no test can
notice, each with its reason. The program fails if a mutant survives that is not in this list, and
if a mutant in the list fails a test or no longer exists.

A mutant alone runs by the name that the program prints.
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


def find_mutants(name: str) -> list[Mutant]:
    """Return the mutants of a module, or the one that has a name, or none."""
    if name in SUBJECTS:
        return mutants_of(name)
    modules = (module for module in SUBJECTS if name.startswith(f"{module}."))
    return [each for module in modules for each in mutants_of(module) if each.name == name]


class Comparison:
    """Runs mutants, and compares those that survive with the list."""

    def __init__(self, mutants: list[Mutant], reasons: dict[str, str], *, verbose: bool) -> None:
        """Prepare to run some mutants."""
        self._mutants = mutants
        self._reasons = reasons
        self._verbose = verbose
        self.passed = False

    def run(self, runner: Runner) -> None:
        """Run the mutants; print those that differ from the list, and the numbers."""
        names = {mutant.name for mutant in self._mutants}
        survivors: set[str] = set()
        killed = 0
        for mutant in self._mutants:
            killer = runner.killer(mutant)
            if killer is not None:
                killed += 1
                if self._verbose:
                    print(f"killed by {killer}: {mutant.name}")
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
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"modules: {', '.join(SUBJECTS)}",
    )
    parser.add_argument(
        "names", nargs="*", metavar="MODULE|MUTANT", help="the name of either (default: all)"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="N mutants, always the same ones")
    parser.add_argument("--verbose", action="store_true", help="print each killed mutant's test")
    options = parser.parse_args()
    names: list[str] = options.names or list(SUBJECTS)
    mutants: list[Mutant] = []
    for name in names:
        found = find_mutants(name)
        if not found:
            parser.error(f"no such module or mutant: {name}")
        mutants += found
    listed = read_reasons([name for name in names if name in SUBJECTS])
    unknown = sorted(listed.keys() - {mutant.name for mutant in mutants})
    for name in unknown:
        print(f"in survivors.txt, but no mutant: {name}")
    if options.sample is not None:
        if not 0 < options.sample <= len(mutants):
            parser.error(f"--sample takes 1 to {len(mutants)}, the number of these mutants")
        mutants = random.Random(0).sample(mutants, options.sample)
    os.environ["IOBATCH_PURE"] = "1"
    from tests.mutation.runner import run_tests  # noqa: PLC0415 # it imports iobatch

    modules = list(dict.fromkeys(mutant.module for mutant in mutants))
    comparison = Comparison(mutants, read_reasons(modules), verbose=options.verbose)
    run_tests(modules, comparison.run)
    return not comparison.passed or bool(unknown)


if __name__ == "__main__":
    sys.exit(main())

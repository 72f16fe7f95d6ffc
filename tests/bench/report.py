"""Tools of all benchmarks: measure methods in turn; print medians and ranges as Markdown tables."""

from __future__ import annotations

import platform
import sys
from collections import deque
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING, TypeVar

from attrs import frozen

from iobatch import COMPILED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")

KIB = 1024
MIB = 1024 * KIB


@frozen
class Options:
    """Options of a run.

    Attributes:
        turns: the number of times that each method is measured.
        smoke: do the least work that executes all of the code; the figures are meaningless.
        plots: the folder for plots; None: write none.

    """

    turns: int = 7
    smoke: bool = False
    plots: Path | None = None

    def rounds(self, count: int) -> int:
        """Return the number of repetitions in one turn: count, but at most 3 in a smoke run."""
        return min(count, 3) if self.smoke else count


def report_missing(options: Options, what: str, why: str) -> None:
    """Report that something is missing and is left out. In a smoke run, exit with an error."""
    message = f"{what} is missing: {why}"
    if options.smoke:
        raise SystemExit(message)
    print(message, file=sys.stderr)


def print_environment(packages: Iterable[str]) -> None:
    """Print the platform, iobatch's form, and the versions of Python and of the given packages."""
    form = "compiled form" if COMPILED else "pure Python"
    found = ", ".join(f"{name} {version(name)}" for name in packages if find_spec(name))
    print(
        f"\n{platform.platform()}, Python {platform.python_version()}, iobatch in {form}: {found}"
    )


def run_in_turn(methods: Mapping[str, Callable[[], T]], turns: int) -> dict[str, list[T]]:
    """Run all methods once in each turn, one after the other; return the results of each.

    Each turn starts with the next method (A B C, B C A), so that no method always runs after the
    same other one.
    """
    results: dict[str, list[T]] = {name: [] for name in methods}
    order = deque(methods.items())
    for _ in range(turns):
        for name, method in order:
            results[name].append(method())
        order.rotate(-1)
    return results


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio in each turn, in which other load on the machine affected both."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def format_spread(values: Sequence[float], digits: int = 2) -> str:
    """Format the median and the range of the values."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def format_size(nbytes: int) -> str:
    """Format a whole number of KiB or MiB."""
    return f"{nbytes // MIB} MiB" if nbytes >= MIB else f"{nbytes // KIB} KiB"


def print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as Markdown, each row as soon as it is complete."""
    print(f"\n### {title}\n")
    print(f"| {' | '.join(head)} |")
    print("|---" * len(head) + "|")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)

"""What all benchmarks share: work done in turn, and tables of medians and spreads in Markdown."""

from __future__ import annotations

import platform
import sys
from collections import deque
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING, TypeVar

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")


@frozen
class Options:
    """How the benchmarks are to be run.

    Attributes:
        turns: how often each way has its turn.
        smoke: do as little work as shows that all of it runs; the figures say nothing.
        plots: the folder in which to write plots; None: write none.

    """

    turns: int = 7
    smoke: bool = False
    plots: Path | None = None

    def rounds(self, count: int) -> int:
        """Return how often to do in a turn what is worth doing so often."""
        return min(count, 3) if self.smoke else count


def leave_out(options: Options, what: str, why: str) -> None:
    """Say what is missing. Where all is to be run, that is an error."""
    message = f"{what} is missing: {why}"
    if options.smoke:
        raise SystemExit(message)
    print(message, file=sys.stderr)


def describe(packages: Iterable[str]) -> None:
    """Say on what this is measured."""
    found = ", ".join(f"{name} {version(name)}" for name in packages if find_spec(name))
    print(f"\n{platform.platform()}, Python {platform.python_version()}: {found}")


def in_turn(ways: Mapping[str, Callable[[], T]], turns: int) -> dict[str, list[T]]:
    """Run all ways one after the other, again and again; return what each gave.

    Each turn begins with another one (A B C, B C A), so that none always follows the same.
    """
    results: dict[str, list[T]] = {name: [] for name in ways}
    order = deque(ways.items())
    for _ in range(turns):
        for name, way in order:
            results[name].append(way())
        order.rotate(-1)
    return results


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio of each turn: what the machine did meanwhile, it did to both."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Say the median, and from where to where the values go."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as Markdown, each row as soon as it is there."""
    print(f"\n### {title}\n")
    print(f"| {' | '.join(head)} |")
    print("|---" * len(head) + "|")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)

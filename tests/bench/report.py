"""What all benchmarks share: work done in turn, and tables of medians and spreads in Markdown."""

from __future__ import annotations

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


def in_turn(ways: Mapping[str, Callable[[], T]], turns: int) -> dict[str, list[T]]:
    """Run all ways one after the other, again and again (A B A B); return what each gave."""
    results: dict[str, list[T]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            results[name].append(way())
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

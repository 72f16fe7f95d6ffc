"""Plays batches with libowfat and iobatch, and compares."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tests.original.compare import check_ours, departure, difference
from tests.original.plans import CONTENT, plan
from tests.original.play import play
from tests.original.worker import Killed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.original.worker import Worker


def compare_batches(worker: Worker, numbers: Iterable[int], forms: Sequence[str]) -> Counter[str]:
    """Compare batches; return how many were equal, and how many of each departure.

    Raises:
        AssertionError: a difference that no departure explains.

    """
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "content"
        file.write_bytes(CONTENT)
        for number in numbers:
            made = plan(number)
            try:
                theirs = worker.call("libowfat", play, number, file)
            except Killed as killed:
                theirs = killed.args[0].name
            for form in forms:
                ours = worker.call(form, play, number, file)
                wrong = check_ours(made, ours)
                assert wrong is None, f"batch {number}, {form}: {wrong}: {ours}"
                found = difference(made, theirs, ours)
                reason = departure(made, theirs, ours) if found else "equal"
                assert reason, f"batch {number}, {form}: {found}: {theirs}, ours {ours}"
            counts[reason] += 1
    return counts

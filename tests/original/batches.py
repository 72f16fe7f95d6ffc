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

    from tests.original.compare import Theirs
    from tests.original.worker import Worker


def compare_batches(worker: Worker, numbers: Iterable[int], forms: Sequence[str]) -> Counter[str]:
    """Compare batches; return how many were equal, and how many of each departure.

    Raises:
        AssertionError: iobatch is wrong, or differs, and no departure explains it.

    """
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "content"
        file.write_bytes(CONTENT)
        for number in numbers:
            try:
                reason = compare_batch(worker, number, file, forms)
            except (AssertionError, Killed) as error:
                error.add_note(f"This is batch {number}.")
                raise
            counts[reason] += 1
    return counts


def compare_batch(worker: Worker, number: int, file: Path, forms: Sequence[str]) -> str:
    """Return "equal", or the departure that explains the difference."""
    made = plan(number)
    reasons = set()
    try:
        theirs: Theirs = worker.call("libowfat", play, number, file)
    except Killed as killed:
        theirs = killed.args[0].name
    for form in forms:
        ours = worker.call(form, play, number, file)
        wrong = check_ours(made, ours)
        assert wrong is None, f"{form}: {wrong}: {ours}"
        found = difference(made, theirs, ours)
        reason = departure(made, theirs, ours) if found else "equal"
        assert reason, f"{form}: {found}: {theirs}, ours {ours}"
        reasons.add(reason)
    assert len(reasons) == 1, f"the forms differ: {reasons}"
    return reasons.pop()

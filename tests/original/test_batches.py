"""Random batches: iobatch sends the same bytes as libowfat, except for the departures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.original.batches import compare_batches
from tests.original.worker import INSTALLED

if TYPE_CHECKING:
    from tests.original.worker import Worker


def test_random_batches_are_sent_as_by_libowfat(worker: Worker) -> None:
    """`python -m tests.original` plays more of them, with both forms."""
    counts = compare_batches(worker, range(80), [INSTALLED])
    assert counts.total() == 80
    assert counts["equal"] > 50

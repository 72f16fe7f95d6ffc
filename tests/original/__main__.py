"""`python -m tests.original [BATCHES [FIRST]]`: the package describes it."""

from __future__ import annotations

import argparse

from iobatch import COMPILED
from tests.original.batches import compare_batches
from tests.original.worker import INSTALLED, PURE, Worker


def main() -> None:
    """Play batches, and print how many are equal, and how many show each departure."""
    parser = argparse.ArgumentParser(prog="python -m tests.original")
    parser.add_argument("batches", type=int, nargs="?", default=3000)
    parser.add_argument("first", type=int, nargs="?", default=0)
    options = parser.parse_args()
    print(f"installed form: {'compiled' if COMPILED else 'pure'}; and the pure copy")
    numbers = range(options.first, options.first + options.batches)
    with Worker() as worker:
        counts = compare_batches(worker, numbers, (INSTALLED, PURE))
    for reason, count in counts.most_common():
        print(f"{count:8} {reason}")


main()

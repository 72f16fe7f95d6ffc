"""`python -m tests.original [BATCHES [FIRST]]`: the package describes it."""

from __future__ import annotations

import argparse

from iobatch import COMPILED
from tests import original
from tests.original.batches import compare_batches
from tests.original.worker import INSTALLED, PURE, Worker


def main() -> None:
    """Play batches, and print how many are equal, and how many show each departure."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.original",
        description=original.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "batches",
        type=int,
        nargs="?",
        default=3000,
        metavar="BATCHES",
        help="the number of batches (default: 3000)",
    )
    parser.add_argument(
        "first",
        type=int,
        nargs="?",
        default=0,
        metavar="FIRST",
        help="the number of the first one, which is its seed (default: 0)",
    )
    options = parser.parse_args()
    if not COMPILED:
        parser.error("iobatch is not compiled, or IOBATCH_PURE is set: one form would be missing")
    numbers = range(options.first, options.first + options.batches)
    with Worker() as worker:
        counts = compare_batches(worker, numbers, (INSTALLED, PURE))
    for reason, count in counts.most_common():
        print(f"{count:8} {reason}")


main()

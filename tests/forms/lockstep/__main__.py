"""`python -m tests.forms.lockstep STEPS [FIRST]`: the package describes it."""

from __future__ import annotations

import argparse
import time

from iobatch import COMPILED
from tests.forms import lockstep
from tests.forms.lockstep.episodes import run_real, run_scripted


def main() -> None:
    """Run operations over scripted system calls, and then over real sockets."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.forms.lockstep",
        description=lockstep.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("steps", type=int, metavar="STEPS", help="the number of operations")
    parser.add_argument(
        "first", type=int, nargs="?", default=0, metavar="FIRST", help="the first episode"
    )
    options = parser.parse_args()
    if not COMPILED:
        parser.error("iobatch is not compiled, or IOBATCH_PURE is set: nothing can be compared")
    for run in (run_scripted, run_real):
        start = time.monotonic()
        done, episodes = run(options.steps, options.first)
        took = time.monotonic() - start
        print(f"{run.__name__}: {done} steps in {episodes} episodes, {took:.0f} s: no difference")


main()

"""Measure iobatch against its peers, and print the tables as Markdown.

All ways of doing a piece of work take turns in one run, and what counts is the ratio of each turn:
absolute times are those of one machine at one moment. Run it while the machine does nothing else.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

from tests.bench.report import Options

TABLES = {
    "send": "iob_send against libowfat, libevent, C and Python, CPU, system calls, segments",
    "write": "iob_write and filters: callbacks, gzip, TLS",
    "aio": "BatchWriter against asyncio's and uvloop's own ways",
    "growth": "cost and memory as batches and files grow",
    "slow": "a thousand slow peers",
    "kernel": "zero copy, splice and the like; and where reading and sendfile cross",
    "httpd": "examples/httpd against nginx and the Python servers",
}


def count(text: str) -> int:
    """Read how often to do something."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="tables:\n" + "\n".join(f"  {name:8}{text}" for name, text in TABLES.items()),
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="which to print; default: all")
    parser.add_argument(
        "--turns", type=count, default=7, help="how often each way has its turn (7)"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="only show that all runs; the figures say nothing"
    )
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write plots there, as SVG")
    args = parser.parse_args()
    if unknown := set(args.tables) - set(TABLES):
        parser.error(f"no such table: {', '.join(sorted(unknown))}")
    options = Options(1 if args.smoke else args.turns, args.smoke, args.plots)
    if options.plots is not None:
        try:
            options.plots.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            parser.error(f"--plots: {exc}")
    # So that what was begun is ended: processes, folders.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    processors = os.sched_getaffinity(0)
    for name in args.tables or TABLES:
        os.sched_setaffinity(0, processors)  # a table may have bound itself to one
        import_module(f"tests.bench.{name}").run(options)


if __name__ == "__main__":
    main()
